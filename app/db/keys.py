"""API keys. Only their hashes are stored: a key's text is shown once, to whoever creates it.

The secret is 256 random bits, so a plain SHA-256 is right: the slow hashes made for passwords help against
guessing from a small set, and nobody guesses this one, while every request would pay for the slowness. The id
in front of it finds the row; it is no secret.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import exists, literal, select, update
from sqlalchemy.orm import Session

from app.db.batches import changed_rows
from app.db.models import DEFAULT_OWNER, ApiKey, TenantLimits
from app.db.session import now, unix_now

_ID_BYTES = 8
_SECRET_BYTES = 32
_KEY = re.compile(r"sk-([0-9a-f]{16})-([A-Za-z0-9_-]{43})", re.ASCII)


class Tenant(NamedTuple):
    """Who asks: with limits of its own or None, and by which key; None where the service is open."""

    owner: str
    limits: TenantLimits | None
    key: ApiKey | None = None


def create_key(session: Session, owner: str) -> tuple[ApiKey, str]:
    """A new key of the tenant `owner` and its text, which nobody can have again."""
    key_id = secrets.token_hex(_ID_BYTES)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    key = ApiKey(id=key_id, owner=owner, secret_sha256=_digest(secret), created_at=now(session))
    session.add(key)
    session.flush()
    return key, f"sk-{key_id}-{secret}"


def find_tenant(session: Session, text: str) -> Tenant | None:
    """Whose key `text` is; None for what is no key, or a revoked one."""
    match = _KEY.fullmatch(text)
    tenant = find_tenant_by_id(session, match[1]) if match else None
    if match is None or tenant is None or tenant.key is None:
        return None
    return tenant if hmac.compare_digest(_digest(match[2]), tenant.key.secret_sha256) else None


def find_tenant_by_id(session: Session, key_id: str) -> Tenant | None:
    """Whose the key with this id is, for who has shown its text before; None for a revoked one."""
    query = select(ApiKey, TenantLimits).outerjoin(TenantLimits, TenantLimits.owner == ApiKey.owner)
    row = session.execute(query.where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))).one_or_none()
    return None if row is None else Tenant(row[0].owner, row[1], row[0])


def open_tenant(session: Session) -> Tenant | None:
    """Whose everything is on a service that never had a key; None where one was ever made."""
    one = select(literal(1)).subquery()
    own = TenantLimits.owner == DEFAULT_OWNER
    query = select(exists(select(ApiKey.id)), TenantLimits).select_from(one).outerjoin(TenantLimits, own)
    has_keys, limits = session.execute(query).one()
    return None if has_keys else Tenant(DEFAULT_OWNER, limits)


def any_keys(session: Session) -> bool:
    """Whether a key was ever made. Revoked ones count: taking the last away must not open the service."""
    return bool(session.scalar(select(exists(select(ApiKey.id)))))


def list_keys(session: Session) -> Sequence[ApiKey]:
    """All keys, oldest first."""
    return session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)).all()


def revoke_key(session: Session, key_id: str) -> bool:
    """End a key's use from the next request on; returns whether there was such a key in use."""
    in_use = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    return changed_rows(session, in_use.values(revoked_at=unix_now())) == 1


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()

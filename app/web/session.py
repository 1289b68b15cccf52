"""Who looks at a page: a signed cookie, and the token that a form must bring back."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from itsdangerous import BadSignature, URLSafeSerializer, URLSafeTimedSerializer

SESSION_SECONDS = 7 * 86_400
_FILE = "session.key"


@dataclass(frozen=True)
class Session:
    """number: random, the session's own. key_id: of the API key that logged in; None: nobody has.

    is_new: the browser does not have its cookie yet.
    """

    number: str
    key_id: str | None = None
    is_new: bool = False


class Sessions:
    """Signs with a secret in `data_dir`, which all processes of the service share."""

    def __init__(self, data_dir: Path) -> None:
        secret = _secret(data_dir.expanduser().resolve())
        self._cookies = URLSafeTimedSerializer(secret, salt="session")
        self._tokens = URLSafeSerializer(secret, salt="csrf")

    def start(self, key_id: str | None = None) -> Session:
        return Session(secrets.token_urlsafe(16), key_id, is_new=True)

    def read(self, cookie: str | None) -> Session:
        """The cookie's session; a new one if the cookie is none of ours, or too old."""
        try:
            number, key_id = self._cookies.loads(cookie or "", max_age=SESSION_SECONDS)
            return Session(number, key_id)
        except (BadSignature, TypeError, ValueError):
            return self.start()

    def cookie(self, session: Session) -> str:
        text = self._cookies.dumps([session.number, session.key_id])
        assert isinstance(text, str)
        return text

    def csrf_token(self, session: Session) -> str:
        text = self._tokens.dumps(session.number)
        assert isinstance(text, str)
        return text

    def is_token(self, session: Session, token: str) -> bool:
        try:
            return bool(self._tokens.loads(token) == session.number)
        except BadSignature:
            return False


def _secret(data_dir: Path) -> bytes:
    """Made once. Of several processes at once the first wins: a link appears whole or not at all."""
    path = data_dir / _FILE
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        draft = data_dir / f"{_FILE}.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes()

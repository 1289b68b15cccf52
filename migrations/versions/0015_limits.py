"""Limits of tenants, their requests of the last minute, what they used, and what a batch may take at most.

Revision: 0015, after 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_LIMITS = (
    "max_requests_per_minute",
    "max_stored_bytes",
    "max_requests_per_batch",
    "max_enqueued_requests",
    "max_enqueued_tokens",
)
_COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")


def upgrade() -> None:
    op.create_table(
        "limits",
        sa.Column("owner", sa.String(length=64), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in _LIMITS),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_limits")),
    )
    op.create_table(
        "request_windows",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("num_requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_request_windows")),
    )
    op.create_table(
        "usage",
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.PrimaryKeyConstraint("owner", "day", "model", name=op.f("pk_usage")),
    )
    op.add_column(
        "batches", sa.Column("enqueued_tokens", sa.BigInteger(), server_default="0", nullable=False)
    )

"""API keys, and the owner of files, uploads, batches and idempotency keys.

Revision: 0010, after 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    for table in ("files", "uploads", "batches", "idempotency_keys"):
        owner = sa.Column("owner", sa.String(length=64), server_default="default", nullable=False)
        op.add_column(table, owner)
    name = op.f("pk_idempotency_keys")
    with op.batch_alter_table("idempotency_keys") as keys:  # SQLite can only make the table anew
        keys.drop_constraint(name, type_="primary")
        keys.create_primary_key(name, ["owner", "key"])
    for table in ("files", "batches"):
        op.drop_index(f"ix_{table}_created_at_id", table)
        op.create_index(f"ix_{table}_owner_created_at_id", table, ["owner", "created_at", "id"])

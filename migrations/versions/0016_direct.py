"""Direct requests: batches of one line, and their files, that no list shows.

Revision: 0016, after 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    for table in ("files", "batches"):
        op.add_column(table, sa.Column("is_direct", sa.Boolean(), server_default=sa.false(), nullable=False))
    is_direct = sa.text("is_direct")
    op.create_index(
        "ix_batches_is_direct", "batches", ["is_direct"], sqlite_where=is_direct, postgresql_where=is_direct
    )

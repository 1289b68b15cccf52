"""Batches whose invalid lines are skipped.

Revision: 0013, after 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    mode = sa.Column("validation", sa.String(length=16), server_default="strict", nullable=False)
    op.add_column("batches", mode)

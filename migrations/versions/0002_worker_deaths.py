"""How many workers died with a batch.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("batches", sa.Column("deaths", sa.Integer(), server_default="0", nullable=False))

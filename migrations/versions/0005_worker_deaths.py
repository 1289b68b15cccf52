"""How many workers died with a batch.

Revision: 0005, after 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("batches", sa.Column("deaths", sa.Integer(), server_default="0", nullable=False))

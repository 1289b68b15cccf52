"""How long a batch's output and error files are kept.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("batches", sa.Column("output_expires_seconds", sa.Integer(), nullable=True))

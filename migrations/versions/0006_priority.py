"""Priorities, and which models a batch needs.

Revision: 0006, after 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("batches", sa.Column("models", sa.JSON(), nullable=True))
    op.add_column("batches", sa.Column("priority", sa.Integer(), server_default="0", nullable=False))

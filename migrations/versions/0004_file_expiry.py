"""Finding expired files without reading all of them.

Revision: 0004, after 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index(op.f("ix_files_expires_at"), "files", ["expires_at"])

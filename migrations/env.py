"""Run by Alembic around the migrations, in the transaction that `app.db.schema` hands over."""

from alembic import context

from app.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
    transactional_ddl=True,  # both databases have it: a migration that is killed leaves nothing behind
)
context.run_migrations()

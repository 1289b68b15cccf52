"""The worker as a process: from settings to a running worker."""

import logging
import threading
from collections.abc import Callable

from app.batch_engine import BatchEngine
from app.db.schema import schema_is_current
from app.db.session import Database
from app.outage import OUTAGE, Stopped, reason, ride_out
from app.settings import Settings, StartupError
from app.stopping import signals_raise
from app.storage import open_storage
from app.worker import Worker

SCHEMA_POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


def run_worker(settings: Settings, engine_factory: Callable[[], BatchEngine], stop: threading.Event) -> None:
    """Run a worker until `stop` is set. Raises StartupError and what the engine factory raises."""
    storage = open_storage(settings)
    database = Database(settings.resolved_database_url)

    def build() -> BatchEngine:
        log.info("Loading %s.", settings.model)
        with signals_raise(SystemExit):
            engine = engine_factory()
        log.info("Ready to run batches.")
        return engine

    try:
        _wait_for_schema(database, stop)
        Worker(database, storage, settings, build).run(stop)
    except Stopped:
        log.info("Stopped while waiting for the database.")
    finally:
        database.dispose()


def _wait_for_schema(database: Database, stop: threading.Event) -> None:
    """The keeper brings the schema up to date. Raises StartupError if there is no database, and Stopped."""
    try:
        if schema_is_current(database):
            return
    except OUTAGE as error:
        raise StartupError(
            f"The database {database} cannot be used ({reason(error)}); check BATCHLLM_DATABASE_URL."
        ) from error
    log.info("Waiting for the keeper to bring the database's schema up to date.")
    while not ride_out(lambda: schema_is_current(database), stop):
        if stop.wait(SCHEMA_POLL_SECONDS):
            raise Stopped

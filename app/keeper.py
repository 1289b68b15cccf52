"""The keeper moves batches on where no model is needed, and removes what is past its time.

Every duty can be done again after a kill at any point: what it wrote before its last transaction is deleted
and written anew (lines), or is a blob that no row names, which `sweep` removes.
"""

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from app.closing import close_batch
from app.db.batches import batches_to_close, batches_to_validate
from app.db.files import named_keys
from app.db.locks import try_lock
from app.db.models import Batch
from app.db.schema import migrate
from app.db.session import Database
from app.housekeeping import remove_expired
from app.outage import OUTAGE, is_full, trouble
from app.settings import Settings
from app.storage import Storage, StorageAway
from app.validation import validate_batch
from app.webhooks import Sender

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 0.5
_MAX_BACK_OFF_SECONDS = 30.0
_SWEEP_INTERVAL_SECONDS = 3_600.0
_TIDY_INTERVAL_SECONDS = 60.0  # what is expired is out of sight at once; this is when it gives its space back
# An upload that has stood still for so long is over; a finished blob gets its row within moments.
_ORPHAN_AGE_SECONDS = 3_600.0
_KEYS_PER_QUERY = 500


class Keeper:
    """Works on one database and its storage. Several may run: only one at a time does something."""

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings
        self._stop = threading.Event()

    def run(self, stop_event: threading.Event) -> None:
        """Migrate, then tick and send webhooks until `stop_event` is set, through outages of the database.

        Raises StartupError, and SenderFailed.
        """
        migrate(self._database)
        self._stop = stop_event
        sender = Sender(self._database, allow_private=self._settings.webhook_private_targets)
        try:
            self._work(stop_event, sender)
        finally:
            sender.close()

    def _work(self, stop_event: threading.Event, sender: Sender) -> None:
        back_off = _IDLE_SECONDS
        duties = [
            _Periodic(self.sweep, _SWEEP_INTERVAL_SECONDS),
            _Periodic(self.tidy, _TIDY_INTERVAL_SECONDS),
        ]
        while not stop_event.is_set():
            sender.check()
            try:
                delay = 0.0 if self.tick() else _IDLE_SECONDS
                for duty in duties:
                    duty.do_if_due()
                back_off = _IDLE_SECONDS
            except (SQLAlchemyError, OSError) as error:
                delay, back_off = back_off, min(2 * back_off, _MAX_BACK_OFF_SECONDS)
                _log_failure(error, delay)
            stop_event.wait(delay)

    def tick(self) -> bool:
        """Close every batch that is due and validate one; returns whether there was anything to do.

        Trouble with one batch (SQLAlchemyError, OSError) keeps no other waiting: it is raised at the end.
        """
        with try_lock(self._database, "keeper") as held:
            if not held:
                return False
            with self._database.read() as session:
                to_close, to_validate = batches_to_close(session), batches_to_validate(session)
            troubles: list[Exception] = []
            for batch in to_close:
                _attempt(self._close, batch, troubles)
            # One at a time, so that batches which end meanwhile do not wait for all of them.
            for batch in to_validate:
                if _attempt(self._validate, batch, troubles):
                    break
        if troubles:
            raise troubles[0]
        return bool(to_close or to_validate)

    def tidy(self) -> None:
        """Remove what is past its time."""
        num_blobs = remove_expired(self._database, self._storage, self._settings)
        if num_blobs:
            _log.info("Removed %d expired files or parts of uploads", num_blobs)

    def sweep(self) -> None:
        """Remove what a killed process left in the storage: old unfinished writes, blobs without a row."""
        blobs = list(self._storage.list_blobs())
        keys = [blob.name for blob in blobs if blob.is_finished]
        named: set[str] = set()
        with self._database.read() as session:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                named |= named_keys(session, keys[start : start + _KEYS_PER_QUERY])
        for blob in blobs:
            is_orphan = blob.age_seconds > _ORPHAN_AGE_SECONDS and blob.name not in named
            # No known name at all: this is likely another database's storage. Leave what is finished.
            if is_orphan and (named or not blob.is_finished):
                _log.info("Removing the blob %s, which belongs to no file", blob.name)
                self._storage.remove(blob)

    def _close(self, batch: Batch) -> None:
        close_batch(self._database, self._storage, batch, self._settings.output_retention_seconds)

    def _validate(self, batch: Batch) -> None:
        validate_batch(self._database, self._storage, batch, self._settings, self._stop)


def _log_failure(error: Exception, delay: float) -> None:
    """What is known to pass is one sentence; of anything else the log gets all."""
    if is_full(error) or isinstance(error, (*OUTAGE, StorageAway)):
        _log.error("%s; the keeper tries again in %.1f s", trouble(error), delay)
    else:
        _log.exception("The keeper could not go on; it tries again in %.1f s", delay)


class _Periodic:
    """A duty to be done at intervals. After a failure it waits for its next turn: batches come first."""

    def __init__(self, duty: Callable[[], None], interval_seconds: float) -> None:
        self._duty = duty
        self._interval_seconds = interval_seconds
        self._due_at = time.monotonic()

    def do_if_due(self) -> None:
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + self._interval_seconds
            self._duty()


def _attempt(duty: Callable[[Batch], None], batch: Batch, troubles: list[Exception]) -> bool:
    """Do `duty`; if the database or the storage fails, put the exception into `troubles`. Returns success."""
    try:
        duty(batch)
    except (SQLAlchemyError, OSError) as error:
        _log.warning(
            "Batch %s (%s) has to wait: %s", batch.id, batch.status, error, extra={"batch_id": batch.id}
        )
        troubles.append(error)
        return False
    return True

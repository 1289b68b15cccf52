"""Models of the Hugging Face hub: what the local cache holds, and what can be fetched now."""

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.file_download import repo_folder_name

PROBE_SECONDS = 5.0
# A download that writes nothing for this long is given up: the library's own time-outs were seen to
# let a silent server hold it for more than two minutes.
STALL_SECONDS = 60.0

# Everything to run a model, and nothing that runs code or that is there for other frameworks.
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_UNWANTED = ["*/*", "consolidated*"]


class HubFailure(Exception):
    """The hub gave no model; the message says why, as a phrase."""


def cached_snapshot(model_id: str) -> Path | None:
    """The snapshot of this model in the hub's local cache, if one is there; it may be incomplete."""
    try:
        return Path(
            snapshot_download(
                model_id, local_files_only=True, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
            )
        )
    except OSError:  # the library's "not in the cache" and "cannot read the cache"
        return None


def fetch_snapshot(model_id: str, report: Callable[[str], None]) -> Path:
    """Download the model into the hub's cache. Raises HubFailure, within seconds if out of reach."""
    if constants.HF_HUB_OFFLINE:
        raise HubFailure("not asked, because HF_HUB_OFFLINE is set")
    if not is_reachable(constants.ENDPOINT, PROBE_SECONDS):
        raise HubFailure(f"{constants.ENDPOINT} cannot be reached")
    report(f"Downloading {model_id} from {constants.ENDPOINT}")
    return _download_or_give_up(model_id, STALL_SECONDS)


def is_reachable(endpoint: str, limit_seconds: float) -> bool:
    """Whether anything answers HTTP there within the limit, whatever its answer is.

    Goes through the hub library's own client, so proxies and certificates are those of the download.
    """
    answered = threading.Event()

    def probe() -> None:
        try:
            get_session().head(endpoint, timeout=limit_seconds)
        except Exception as error:  # refused, no such name, bad certificate, proxy says no: all "no"
            logging.getLogger(__name__).debug("probe of %s: %r", endpoint, error)
        else:
            answered.set()

    # A thread, because name resolution has no time-out of its own.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(limit_seconds)
    return answered.is_set()


def _download_or_give_up(model_id: str, stall_seconds: float) -> Path:
    """Download in a child process, which can be killed; a thread that hangs cannot."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_download, args=(model_id, sender), daemon=True)
    child.start()
    sender.close()
    try:
        return _await_download(receiver, _repo_folder(model_id), stall_seconds)
    finally:
        child.kill()
        child.join()
        receiver.close()


def _await_download(receiver: Connection, folder: Path, stall_seconds: float) -> Path:
    bytes_seen, last_growth = 0, time.monotonic()
    while not receiver.poll(1.0):
        num_bytes = sum(file.lstat().st_size for file in folder.glob("blobs/*"))
        if num_bytes != bytes_seen:
            bytes_seen, last_growth = num_bytes, time.monotonic()
        elif time.monotonic() - last_growth > stall_seconds:
            raise HubFailure(f"the download stood still for {stall_seconds:.0f} s")
    try:
        path, failure = receiver.recv()
    except EOFError as error:
        raise HubFailure("the download process ended without a result") from error
    if failure is not None:
        raise HubFailure(failure)
    return Path(path)


def _download(model_id: str, sender: Connection) -> None:
    try:
        path = snapshot_download(model_id, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except Exception as error:  # whatever it is, the parent says it
        first_line = str(error).strip().splitlines()[:1]
        sender.send((None, f"{type(error).__name__}: {' '.join(first_line)}"))
    else:
        sender.send((path, None))


def _repo_folder(model_id: str) -> Path:
    name: str = repo_folder_name(repo_id=model_id, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / name

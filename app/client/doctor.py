"""`batchllm doctor`: would the service run here, and what to do where it would not."""

import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil
from sqlalchemy.exc import SQLAlchemyError

from app.db.schema import schema_is_current
from app.db.session import Database
from app.settings import Settings, StartupError

_LITTLE_MEMORY_BYTES = 2 << 30
_LITTLE_DISK_BYTES = 5 << 30

Verdict = Literal["ok", "warning", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """fix: what to do, unless all is well."""

    check: str
    verdict: Verdict
    says: str
    fix: str | None = None


def examine(settings: Settings) -> Iterator[Finding]:
    """One finding a check; changes nothing."""
    yield device(settings)
    yield memory(settings)
    yield compiler(settings)
    yield model(settings)
    yield storage(settings)
    yield database(settings)
    yield port(settings.host, settings.port, "--port")
    yield port(settings.ops_host, settings.ops_port, "--ops-port")


def device(settings: Settings) -> Finding:
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if settings.device == "cuda" and find_spec("triton") is None:
            return Finding("device", "broken", f"{name}, but no Triton", "pip install 'batchllm[gpu]'")
        if settings.device == "cuda":
            return Finding("device", "ok", name)
        return Finding(
            "device", "warning", f"the CPU, though there is a {name}", "Use it with --device cuda."
        )
    if settings.device == "cuda":
        return Finding(
            "device", "broken", "torch sees no GPU", "Use --device cpu, or install a driver and torch for it."
        )
    return Finding("device", "ok", f"the CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads")


def memory(settings: Settings) -> Finding:
    free = psutil.virtual_memory().available
    wanted = settings.kv_memory or 0
    if settings.device == "cpu" and wanted > free:
        return Finding(
            "memory",
            "broken",
            f"{_gib(free)} free, --kv-memory asks for {_gib(wanted)}",
            "Lower --kv-memory, or end other programs.",
        )
    if free < _LITTLE_MEMORY_BYTES:
        return Finding("memory", "warning", f"only {_gib(free)} free", "End other programs.")
    return Finding("memory", "ok", f"{_gib(free)} free")


def compiler(settings: Settings) -> Finding:
    name = os.environ.get("CC", "cc")
    if shutil.which(name) is None:
        fix = "Install one (Debian, Ubuntu: apt-get install gcc libc6-dev), or name it in CC."
        return Finding("compiler", "warning", f"no {name}: attention on the CPU takes twice as long", fix)
    said = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
    return Finding("compiler", "ok", said.partition("\n")[0] or name)


def model(settings: Settings) -> Finding:
    from engine.errors import ModelNotUsable
    from engine.execution.resolve import find_model

    try:
        directory = find_model(settings.model, settings.cache_dir)
    except ModelNotUsable as error:
        return Finding("model", "broken", str(error), "Name another with --model.")
    if directory is None:
        fix = f"The first start fetches it; 'batchllm pull {settings.model}' does so now."
        return Finding("model", "warning", f"{settings.model} is not on this machine yet", fix)
    return Finding("model", "ok", f"{settings.served_model} in {directory}")


def storage(settings: Settings) -> Finding:
    place = settings.data_dir.expanduser().resolve()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        fix = "Make it writable, or choose another with --data-dir."
        return Finding("storage", "broken", f"{there} cannot be written to", fix)
    free = shutil.disk_usage(there).free
    if free < _LITTLE_DISK_BYTES:
        return Finding(
            "storage",
            "warning",
            f"{place}: only {_gib(free)} free",
            "Make room, or choose another --data-dir.",
        )
    return Finding("storage", "ok", f"{place}: {_gib(free)} free")


def database(settings: Settings) -> Finding:
    fix = "Check --database-url, and that its server runs."
    try:
        url = settings.resolved_database_url
        if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
            return Finding("database", "ok", "SQLite in the data directory, made by the first start")
        database = Database(url)
        try:
            is_current = schema_is_current(database)
        finally:
            database.dispose()
    except StartupError as error:
        return Finding("database", "broken", str(error), fix)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        return Finding("database", "broken", reason, fix)
    state = "up to date" if is_current else "to be migrated by the next start"
    return Finding("database", "ok", f"{database}, {state}")


def port(host: str, number: int, flag: str) -> Finding:
    check = f"port {number}"
    address = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, number), family=family):
            return Finding(check, "ok", f"free on {host}")
    except OSError as error:
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        if _is_ours(f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"):
            return Finding(check, "ok", f"BatchLLM answers on {host} already")
        return Finding(check, "broken", f"{host}: {error.strerror}", f"Choose another with {flag}.")


def _is_ours(url: str) -> bool:
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{url}/healthz", timeout=2) as answer:
            return bool(answer.read(100) == b'{"status":"ok"}')
    except (urllib.error.URLError, OSError):
        return False


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"

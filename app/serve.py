"""`serve`: the three processes side by side, restarted when they die, stopped together."""

import logging
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.settings import StartupError

# A process ends with this code when it cannot start as configured: to try again would not help.
EXIT_CANNOT_START = 3

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
STEADY_SECONDS = 10.0  # a process that lived for so long starts over with the first back-off
POLL_SECONDS = 0.1
STOP_GRACE_SECONDS = 20.0  # before what does not stop is killed

log = logging.getLogger(__name__)
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # our own address needs no proxy


def service_commands() -> dict[str, list[str]]:
    """The command line of each process. -P: a folder `app` where the user stands must not shadow ours."""
    base = [sys.executable, "-P", "-m", "app.cli"]
    return {name: [*base, name, "--supervised"] for name in ("keeper", "api", "worker")}


def free_port(host: str) -> int:
    """A port of `host` that nobody listens on: what port 0 means, through all restarts of the api.

    Raises StartupError.
    """
    address = host.strip("[]")
    try:
        with socket.create_server(
            (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        ) as s:
            return int(s.getsockname()[1])
    except OSError as error:
        raise StartupError(f"Cannot listen on {host}: {error.strerror}; choose another --host.") from error


@dataclass(eq=False)
class _Child:
    """One of the processes. `process` is None between its death and its restart at `start_at` (monotonic)."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    num_starts: int = 0
    started_at: float = 0.0
    start_at: float = 0.0
    backoff_seconds: float = FIRST_BACKOFF_SECONDS

    def start(self, environment: Mapping[str, str]) -> None:
        # Its standard input is its lifeline: it closes when we die, however we die. A session of its
        # own keeps Ctrl-C from it: we alone say when to stop.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, env=environment, start_new_session=True
        )
        self.num_starts += 1
        self.started_at = time.monotonic()

    def note_death(self, exit_code: int) -> None:
        now = time.monotonic()
        if now - self.started_at >= STEADY_SECONDS:
            self.backoff_seconds = FIRST_BACKOFF_SECONDS
        how = f"signal {-exit_code}" if exit_code < 0 else f"code {exit_code}"
        log.error("The %s ended (%s): restarting it in %.1f s.", self.name, how, self.backoff_seconds)
        self.process = None
        self.start_at = now + self.backoff_seconds
        self.backoff_seconds = min(2 * self.backoff_seconds, LONGEST_BACKOFF_SECONDS)


class Supervisor:
    """Starts the processes, restarts what dies, stops all at the end."""

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        *,
        ready_url: str,
        on_ready: Callable[[], None],
    ) -> None:
        self._children = [_Child(name, command) for name, command in commands.items()]
        self._environment = environment
        self._ready_url = ready_url
        self._on_ready = on_ready

    def run(self, stop: threading.Event) -> int:
        """Until `stop` is set, or a process cannot start as configured. Returns the exit code."""
        is_ready = False
        try:
            while not stop.is_set():
                for child in self._children:
                    if self._keep_alive(child) == EXIT_CANNOT_START:
                        return EXIT_CANNOT_START  # the process has said why
                if not is_ready and self._answers():
                    is_ready = True
                    self._on_ready()
                stop.wait(POLL_SECONDS)
        finally:
            self._stop_all()
        return 0

    def _keep_alive(self, child: _Child) -> int | None:
        """Start the child if it is due; the exit code if it could not start the very first time."""
        if child.process is None:
            if time.monotonic() >= child.start_at:
                child.start(self._environment)
            return None
        exit_code = child.process.poll()
        if exit_code is None:
            return None
        if exit_code == EXIT_CANNOT_START and child.num_starts == 1:
            return exit_code
        child.note_death(exit_code)
        return None

    def _answers(self) -> bool:
        try:
            _direct.open(self._ready_url, timeout=1).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    def _stop_all(self) -> None:
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        give_up_at = time.monotonic() + STOP_GRACE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("Process %d does not stop: killing it.", process.pid)
                process.kill()
                process.wait()

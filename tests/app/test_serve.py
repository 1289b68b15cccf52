"""The supervisor, over small processes that live and die as told."""

import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import serve as serve_module
from app.serve import EXIT_CANNOT_START, Supervisor, free_port
from app.settings import StartupError

PATIENCE_SECONDS = 20.0
NOBODY = "http://127.0.0.1:9/readyz"  # the discard port: nothing answers there

# Notes its process id, then lives until it is asked to stop.
LIVES = """
import os, sys, time
print(os.getpid(), file=open(sys.argv[1], "a"), flush=True)
time.sleep(600)
"""
DIES_ONCE = """
import os, sys, time
is_first = not os.path.exists(sys.argv[1])
print(file=open(sys.argv[1], "a"), flush=True)
if is_first:
    sys.exit(7)
time.sleep(600)
"""


def wait_until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.02)


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def command(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def supervisor(commands: dict[str, list[str]], ready_url: str = NOBODY) -> tuple[Supervisor, threading.Event]:
    ready = threading.Event()
    return Supervisor(commands, os.environ, ready_url=ready_url, on_ready=ready.set), ready


def test_a_dead_process_is_restarted_and_all_are_stopped(tmp_path: Path) -> None:
    dies, lives = tmp_path / "dies", tmp_path / "lives"
    service, _ = supervisor({"dies": command(DIES_ONCE, dies), "lives": command(LIVES, lives)})
    stop = threading.Event()
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(service.run(stop)))
    thread.start()
    wait_until(lambda: len(read_lines(dies)) == 2 and read_lines(lives))
    stop.set()
    thread.join()
    assert codes == [0]
    assert len(read_lines(lives)) == 1
    assert not is_alive(int(read_lines(lives)[0]))


def test_a_process_that_cannot_start_stops_everything(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    refuses = command(
        "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)\nsys.exit(3)", lives
    )
    service, _ = supervisor({"lives": command(LIVES, lives), "refuses": refuses})
    assert service.run(threading.Event()) == EXIT_CANNOT_START
    wait_until(lambda: read_lines(lives))
    assert not is_alive(int(read_lines(lives)[0]))


def test_a_process_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "STOP_GRACE_SECONDS", 0.2)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LIVES
    note = tmp_path / "deaf"
    service, _ = supervisor({"deaf": command(deaf, note)})
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    wait_until(lambda: read_lines(note))
    stop.set()
    thread.join()
    assert not is_alive(int(read_lines(note)[0]))


@pytest.fixture
def answering_url() -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/readyz"
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_says_when_the_service_answers(
    tmp_path: Path, answering_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", NOBODY)  # a proxy has no business between us and our own process
    service, ready = supervisor({"lives": command(LIVES, tmp_path / "lives")}, answering_url)
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    assert ready.wait(PATIENCE_SECONDS)
    stop.set()
    thread.join()


def test_no_process_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    note = tmp_path / "child"
    child = f"from app.lifeline import follow_parent; follow_parent()\n{LIVES}"
    parent = textwrap.dedent(
        f"""
        import os, sys, threading
        from app.serve import Supervisor
        commands = {{"child": [sys.executable, "-c", {child!r}, {str(note)!r}]}}
        Supervisor(commands, os.environ, ready_url={NOBODY!r}, on_ready=print).run(threading.Event())
        """
    )
    root = Path(serve_module.__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", parent], env=os.environ | {"PYTHONPATH": str(root)})
    wait_until(lambda: read_lines(note))
    child_id = int(read_lines(note)[0])
    assert is_alive(child_id)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not is_alive(child_id))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "0.0.0.0"])
def test_a_free_port_can_be_listened_on(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host.strip("[]"), free_port(host)), family=family):
        pass


def test_no_port_of_a_host_that_is_not_ours() -> None:
    with pytest.raises(StartupError, match="choose another --host"):
        free_port("192.0.2.1")


def test_serve_on_port_0_says_where_it_answers(tmp_path: Path, tiny_llama_dir: Path) -> None:
    flags = ["--port", "0", "--data-dir", str(tmp_path / "data"), "--model", str(tiny_llama_dir)]
    root = Path(serve_module.__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve", *flags],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = iter(process.stderr)
    try:
        announced = next(line for line in lines if "answers at" in line)
        url = re.search(r"http://[^;]*", announced)[0]  # type: ignore[index]
        with urllib.request.urlopen(f"{url}/models", timeout=PATIENCE_SECONDS) as answer:
            assert answer.status == 200
    finally:
        process.terminate()
        process.stderr.read()
        process.wait()

"""The web process: the application and how it is served."""

import errno
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from sqlalchemy import inspect
from sqlalchemy.exc import SQLAlchemyError

from app.api import batches, direct, files, health, models, results, uploads, usage, webhooks
from app.api.answers import Desk
from app.api.authentication import Authentication
from app.api.deps import Service
from app.api.description import ERRORS, DescribedApi
from app.api.errors import install_error_handlers
from app.api.guards import DEFAULT_PACE, BodyPace, RequestGuard
from app.api.middleware import RequestEnvelope, is_loopback
from app.api.operations import create_ops_app
from app.api.protocol import BoundedHttp
from app.db.keys import any_keys
from app.db.models import ApiKey
from app.db.session import Database
from app.metrics import HttpFigures
from app.settings import Settings, StartupError
from app.storage import Storage, open_storage
from app.web.site import Dashboard

# How long a stop waits for running downloads and uploads.
GRACE_SECONDS = 10


def create_app(
    settings: Settings,
    database: Database,
    storage: Storage,
    body_pace: BodyPace = DEFAULT_PACE,
    http: HttpFigures | None = None,
) -> FastAPI:
    """The HTTP side of the service, on a database whose schema someone else keeps; `http` counts answers."""
    app = DescribedApi(
        title="BatchLLM",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    service = app.state.service = Service(settings, database, storage, int(time.time()))
    app.state.desk = Desk(service)
    for module in (files, uploads, batches, results, webhooks, direct, models, usage, health):
        app.include_router(module.router, responses=ERRORS)
    install_error_handlers(app)
    on_loopback = is_loopback(settings.host)
    app.add_middleware(Authentication, database=database, settings=settings, on_loopback=on_loopback)
    app.add_middleware(Dashboard, service=service)
    app.add_middleware(RequestGuard, pace=body_pace)
    app.add_middleware(RequestEnvelope, http=http or HttpFigures())  # added last: outermost
    return app


def listen(settings: Settings) -> socket.socket:
    """The API's listening socket. Raises `StartupError` on a refused, unknown or taken address."""
    return _listen(settings, settings.host, settings.port, "--port")


def listen_for_ops(settings: Settings) -> socket.socket:
    """The socket of /metrics and the probes. Raises `StartupError` as `listen` does."""
    return _listen(settings, settings.ops_host, settings.ops_port, "--ops-port")


def _listen(settings: Settings, host: str, port: int, flag: str) -> socket.socket:
    if not is_loopback(host) and not settings.allow_remote:
        raise StartupError(
            f"Refusing to listen on {host}, where other machines could use the service; "
            "allow it with --allow-remote (BATCHLLM_ALLOW_REMOTE=1) if that is wanted."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
        # Connections inherit it. asyncio sets it only for sockets that it opened itself, and without it the
        # second packet of an answer, its body, waits for the client's delayed acknowledgement: 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartupError(f"Port {port} on {host} is in use: choose another with {flag}.") from error
        raise StartupError(f"Cannot listen on {host}:{port}: {error.strerror}.") from error


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests end. Raises `StartupError`."""
    # The addresses first: who picked a taken port should hear that before anything is made on disk.
    with listen(settings) as sock, listen_for_ops(settings) as ops_sock:
        database = Database(settings.resolved_database_url)
        try:
            check_keys(settings, database)
            http = HttpFigures()
            app = create_app(settings, database, open_storage(settings), http=http)
            server = make_server(app)
            # uvicorn stops on a signal, then raises it again: by then all is done, and this is a clean exit.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _exit_cleanly)
            with _serving_beside(create_ops_app(app.state.service, http), ops_sock):
                server.run(sockets=[sock])
        finally:
            database.dispose()


@contextmanager
def _serving_beside(app: FastAPI, sock: socket.socket) -> Iterator[None]:
    """Serves in a thread during the block."""
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="operations")
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def check_keys(settings: Settings, database: Database) -> None:
    """Raises `StartupError` where other machines could reach a service that nobody has a key for."""
    if is_loopback(settings.host):
        return
    try:
        has_keys = inspect(database.engine).has_table(ApiKey.__tablename__)
        if has_keys:
            with database.read() as session:
                has_keys = any_keys(session)
    except SQLAlchemyError:
        return  # it is away: requests are 503s until it is back, and 401s as long as there is no key
    if not has_keys:
        raise StartupError(
            f"Refusing to listen on {settings.host} without API keys: create one with "
            "'batchllm keys create NAME' (with the same --data-dir or --database-url)."
        )


def make_server(app: FastAPI) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",
        access_log=False,
        log_config=None,  # our own log takes what it says, from warnings on
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def _exit_cleanly(number: int, frame: FrameType | None) -> None:
    sys.exit(0)

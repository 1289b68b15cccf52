"""Connections, transactions and the database's clock; everything that differs between SQLite and Postgres."""

import copy
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import BigInteger, Connection, Engine, Text, create_engine, event, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction, with_loader_criteria
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from app.db.models import DEFAULT_OWNER, Listed, Owned
from app.settings import StartupError

_BUSY_TIMEOUT_SECONDS = 60  # how long a SQLite writer waits for its turn
_CONNECT_TIMEOUT_SECONDS = 10
_BEGIN = "batchllm_begin"  # execution option: the statement that opens a transaction on SQLite


class unix_now(FunctionElement[int]):  # noqa: N801 (an SQL function)
    """The current time in whole unix seconds by the database's clock, usable in any statement."""

    type = BigInteger()
    inherit_cache = True


@compiles(unix_now, "sqlite")
def _unix_now_sqlite(element: unix_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST(strftime('%s', 'now') AS INTEGER)"


@compiles(unix_now, "postgresql")
def _unix_now_postgres(element: unix_now, compiler: SQLCompiler, **kw: Any) -> str:
    # clock_timestamp and not now(): a lease must not be dated from the start of a long transaction.
    return "CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp())) AS BIGINT)"


class json_text(FunctionElement[str]):  # noqa: N801 (an SQL function)
    """The text under a key of a JSON column's object, or NULL. Takes the column and the key."""

    type = Text()
    inherit_cache = True


@compiles(json_text, "sqlite")
def _json_text_sqlite(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    # Not ->>: there a key is part of a path, so that some of them are a syntax error.
    column, key = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(SELECT json_each.value FROM json_each({column}) WHERE json_each.key = {key})"


@compiles(json_text, "postgresql")
def _json_text_postgres(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    column, key = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({column} ->> CAST({key} AS TEXT))"


def now(session: Session) -> int:
    """Unix seconds by the database's clock."""
    return session.scalars(select(unix_now())).one()


class _OwnedSession(Session):
    """A session for which the rows of other tenants do not exist: no query has to remember whose it is.

    Nor do direct requests.
    """

    def __init__(self, bind: Engine, owner: str) -> None:
        super().__init__(bind, expire_on_commit=False)
        self.owner = owner


def owner_in(session: Session) -> str:
    """Whose the rows are that the session makes; for statements that no model's default goes through."""
    return session.owner if isinstance(session, _OwnedSession) else DEFAULT_OWNER


@event.listens_for(_OwnedSession, "do_orm_execute")
def _only_own_rows(state: ORMExecuteState) -> None:
    session = state.session
    assert isinstance(session, _OwnedSession)
    owner = session.owner
    state.statement = state.statement.options(
        with_loader_criteria(Owned, lambda table: table.owner == owner, include_aliases=True),
        with_loader_criteria(Listed, lambda table: ~table.is_direct, include_aliases=True),
    )


@event.listens_for(_OwnedSession, "before_flush")
def _own_new_rows(session: Session, _context: UOWTransaction, _instances: object) -> None:
    assert isinstance(session, _OwnedSession)
    for row in session.new:
        if isinstance(row, Owned):
            row.owner = session.owner


class Database:
    """One database: short transactions by `begin` (writes) and `read`. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        """Take a sqlite or postgres URL; connects at first use. StartupError on a URL that cannot work."""
        self.url = _parse(url)
        self._owner: str | None = None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _postgres_engine(self.url)
        # BEGIN IMMEDIATE: a SQLite reader that turns writer fails at once, whatever the time-out.
        self._writer = self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def of(self, owner: str) -> Self:
        """The same database as the tenant `owner` may see it: its transactions reach no other's rows."""
        confined = copy.copy(self)
        confined._owner = owner
        return confined

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A write transaction: committed at the end of the block, rolled back by an exception."""
        with self._session(self._writer) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction for reading; on SQLite it sees one snapshot."""
        with self._session(self.engine) as session:
            yield session

    @contextmanager
    def connect_for_writing(self) -> Iterator[Connection]:
        """The write transaction as a bare connection, for migrations."""
        with self._writer.begin() as connection:
            yield connection

    def _session(self, bind: Engine) -> Session:
        if self._owner is None:
            return Session(bind, expire_on_commit=False)
        return _OwnedSession(bind, self._owner)

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _parse(url: str) -> URL:
    """The URL with our driver. Raises StartupError."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise StartupError(
            "The database URL cannot be understood; write it like sqlite:////path/to/batchllm.db "
            "or postgresql://user:password@host:5432/name."
        ) from error
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StartupError(
            f"The database URL starts with {parsed.drivername}://; use sqlite:/// or postgresql://."
        )
    if parsed.database in (None, "", ":memory:"):
        raise StartupError("The database URL names no file; write it like sqlite:////path/to/batchllm.db.")
    return parsed


def _sqlite_engine(url: URL) -> Engine:
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"The directory of the database {path} cannot be created ({error.strerror}); "
            "choose another with BATCHLLM_DATABASE_URL or BATCHLLM_DATA_DIR."
        ) from error
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver must not open transactions behind our back
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: in WAL mode NORMAL survives kill -9, but a power cut may take back the last commits: an
        # upload answered with 200, results that cost hours. We commit in chunks, so a sync is affordable.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))

    return engine


def _postgres_engine(url: URL) -> Engine:
    if "connect_timeout" not in url.query:
        url = url.update_query_dict({"connect_timeout": str(_CONNECT_TIMEOUT_SECONDS)})
    # pre_ping: connections that a restart of the server has broken are replaced unseen.
    return create_engine(url, pool_pre_ping=True)

"""The database: SQLite beside the jobs, or PostgreSQL by URL; opened, migrated, and one way to write.

It is an index over the job directories, which are the truth; keys, users' sessions and idempotency in flight live
here alone. SQLite runs with WAL, or with a rollback journal on builds whose WAL can lose a reset
(3.7.0 to 3.51.2, but 3.50.7 and 3.44.6); every write takes the lock at its beginning, so that none fails half-way.
"""

import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.pool import ConnectionPoolEntry

import curator
from curator.errors import SpecError
from service.settings import Settings

_BUSY_TIMEOUT_MS = 5000
_TRUSTED_S = 1.0
_SQLITE_TURN = threading.RLock()  # this process queues up here: SQLite would let it sleep and try again
_MIGRATIONS = Path(__file__).parent / "migrations"
_PATIENCE = {
    "connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}  # fmt: skip
"""libpq's, unless the URL says otherwise: a server behind a broken network would else be waited for many minutes."""
_MIGRATION_LOCK = 0x63757261  # any number, the same in every process


def open_database(settings: Settings) -> Engine:
    """Connect, and bring the tables to this version; safe with several services starting at once.

    Raises:
        SpecError: the database is of a newer service.
    """
    engine = _make_engine(database_url(settings))
    try:
        _migrate(engine)
    except BaseException:
        engine.dispose()  # a server counts connections; a service that cannot start keeps none
        raise
    return engine


def database_url(settings: Settings) -> URL:
    """Where the database is; PostgreSQL always through psycopg."""
    if settings.database_url is None:
        return URL.create("sqlite", database=str(settings.data_dir / "service.db"))
    url = make_url(settings.database_url.get_secret_value())
    return url.set(drivername="postgresql+psycopg") if url.get_backend_name() == "postgresql" else url


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite can lose committed pages when a WAL is reset (fixed in 3.51.3, 3.50.7 and 3.44.6)."""
    if version < (3, 7, 0) or version >= (3, 51, 3):
        return False
    return not ((3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0))


def _journal() -> str:
    return "DELETE" if has_wal_reset_bug(sqlite3.sqlite_version_info[:3]) else "WAL"


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        patience = {name: value for name, value in _PATIENCE.items() if name not in url.query}
        engine = sa.create_engine(url, pool_size=20, max_overflow=20, connect_args=patience)
        sa.event.listen(engine, "checkin", _note_use)
        sa.event.listen(engine, "checkout", _check_rested)
        return engine
    engine = sa.create_engine(
        url, pool_size=20, max_overflow=30, connect_args={"check_same_thread": False}
    )  # fmt: skip
    sa.event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _note_use(_: object, record: ConnectionPoolEntry) -> None:
    record.info["used_s"] = time.monotonic()


def _check_rested(connection: psycopg.Connection, record: ConnectionPoolEntry, _: object) -> None:
    """Ask a connection that has rested whether it still stands; SQLAlchemy's pre-ping would ask at every use."""
    if time.monotonic() - record.info.get("used_s", math.inf) > _TRUSTED_S:
        try:
            connection.execute("")
            connection.rollback()
        except psycopg.OperationalError:
            raise sa.exc.DisconnectionError from None  # the pool takes another


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where `writing` says, not where the driver thinks
    for statement in (
        f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}",
        f"PRAGMA journal_mode={_journal()}",
        "PRAGMA synchronous=FULL",
        "PRAGMA foreign_keys=ON",
    ):
        connection.execute(statement)


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that will write: on SQLite it holds the write lock from its first moment."""
    on_sqlite = engine.dialect.name == "sqlite"
    with _SQLITE_TURN if on_sqlite else nullcontext(), engine.connect() as connection, connection.begin():
        if on_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One connection to read from, for a moment.

    On PostgreSQL without a transaction, whose begin and end are ways of their own. With SQLite's rollback journal
    readers take turns with the writers of this process: a commit waits for all readers to leave, asleep and trying
    again, and a stream of them can keep it, and everyone behind it, waiting for seconds.
    """
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    in_turn = engine.dialect.name == "sqlite" and _journal() == "DELETE"
    with _SQLITE_TURN if in_turn else nullcontext(), engine.connect() as connection:
        yield connection


def add_if_absent(connection: Connection, table: sa.Table, values: dict[str, Any]) -> bool:
    """Insert a row unless one with its key is there; on PostgreSQL an insertion still under way is waited for."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    added = insert(table).values(values).on_conflict_do_nothing().returning(*table.primary_key)
    return connection.execute(added).first() is not None


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with writing(engine) as connection:
        lock_for_transaction(connection, _MIGRATION_LOCK)
        _refuse_newer(connection, config)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _refuse_newer(connection: Connection, config: Config) -> None:
    """Raise SpecError for tables of a version that this service has never heard of; they are left as they are."""
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    found = set(MigrationContext.configure(connection).get_current_heads()) - known
    if found:
        raise SpecError(
            f"the database is of version {', '.join(sorted(found))!r}, and token-curator {curator.__version__} knows "
            f"versions up to {scripts.get_current_head()!r}: a newer service has migrated it; install that one again, "
            "or restore the backup from before it"
        )


def lock_for_transaction(connection: Connection, number: int) -> None:
    """Let one process at a time past this line, until its transaction ends; on SQLite every writer is alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))

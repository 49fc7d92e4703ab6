"""Engines for SQLite and PostgreSQL, and what must be true of a database before the farm trusts it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from ..errors import StoreError

if TYPE_CHECKING:  # a service on PostgreSQL does without its megabyte
    import sqlite3

NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.glusterfs", "ceph", "lustre"}
AWAY = "the database cannot be reached"


def make(url: str) -> tuple[Engine, Engine]:
    """Return (writer, reader) for an URL as operators write it: sqlite:///path or postgresql://….

    Raises StoreError: the URL cannot be read, or is of a database that the farm does not know.
    """
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError as error:
        raise StoreError(
            "DB_CONNECTION_STRING cannot be read",
            hint="write sqlite:////path/farm.sqlite or postgresql://user@host/database",
        ) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite(parsed)
    if backend in ("postgresql", "postgres"):
        return _postgresql(parsed.set(drivername="postgresql+psycopg"))
    raise StoreError(f"the farm cannot use a {backend} database", hint="use SQLite or PostgreSQL 15 or newer")


def _sqlite(url: URL) -> tuple[Engine, Engine]:
    path = Path(url.database or "")
    if not url.database or url.database == ":memory:":
        raise StoreError("a ledger in memory would be lost", hint="name a file: sqlite:////path/farm.sqlite")
    _check_folder(path)

    def engine(**pool: Any) -> Engine:
        made = sa.create_engine(url, connect_args={"check_same_thread": False, "timeout": 5.0}, **pool)
        sa.event.listen(made, "connect", _sqlite_connected)
        return made

    writer = engine(pool_size=1, max_overflow=0, poolclass=sa.pool.QueuePool)
    sa.event.listen(writer, "begin", _begin_immediate)
    sa.event.listen(writer, "before_cursor_execute", _note_write)
    reader = engine(pool_size=5, max_overflow=10, poolclass=sa.pool.QueuePool, pool_timeout=10)
    return writer, reader


def _sqlite_connected(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; `begin` below does
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _note_write(connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
    """Tell the transaction in hand (db.Tx) that it is more than a look: then giving up must roll it back."""
    if (tx := connection.info.get("tx")) is not None and statement.lstrip()[:6].upper() != "SELECT":
        tx.wrote = True


def _postgresql_writes(connection: Any, _record: Any) -> None:
    """Have the writer's statements, which look at single rows, planned once, and by indexes alone.

    A table that has grown since PostgreSQL last counted it is read whole otherwise, at each claim. Without JIT: compiling
    takes longer than any of them.
    """
    for setting in ("enable_sort=off", "enable_seqscan=off", "jit=off", "plan_cache_mode=force_generic_plan"):
        connection.execute(f"SET {setting}")
    connection.commit()


def _as_it_lies(_connection: Connection, cursor: Any, _statement: str, _values: Any, context: Any, _many: bool) -> None:
    """Have the rows of a statement with the option `binary` come as they lie: bodies of events not as hexadecimal text."""
    if context is not None and context.execution_options.get("binary"):
        cursor.format = 1  # psycopg.pq.Format.BINARY


def _postgresql(url: URL) -> tuple[Engine, Engine]:
    args = {
        "connect_timeout": 5,
        "application_name": "agentfarm",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    writer = sa.create_engine(url, pool_size=1, max_overflow=0, connect_args=args)
    sa.event.listen(writer, "connect", _postgresql_writes)
    sa.event.listen(writer, "before_cursor_execute", _note_write)
    # A read is one round trip: statements that only look need no transaction (each has its own snapshot in one, too).
    reader = sa.create_engine(url, pool_size=4, max_overflow=6, connect_args=args, isolation_level="AUTOCOMMIT")
    for engine in (writer, reader):
        sa.event.listen(engine, "before_cursor_execute", _as_it_lies)
    return writer, reader


def _check_folder(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise StoreError(
            f"the folder {folder} of the database does not exist",
            hint="make it, or set DB_CONNECTION_STRING to another place",
        )
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise StoreError(f"{path} is read-only for this user", hint="give this user the right to write there")
    kind = _file_system(folder.resolve())
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{folder} lies on a network file system ({kind}), where SQLite's log does not hold",
            hint="use a local disk, or PostgreSQL",
        )


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds the folder, from /proc/mounts ("" where it cannot be told)."""
    best, kind = -1, ""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, mount, what, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        if (str(folder) + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= best:
            best, kind = len(mount), what
    return kind


def check(connection: Connection) -> None:
    """Refuse a database that would forget what it said it had written. Raises StoreError or SQLAlchemy's errors."""
    with connection.begin():
        if connection.dialect.name == "sqlite":
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
            if mode != "wal":
                raise StoreError(
                    f"SQLite refuses its write-ahead log here (journal_mode is {mode})", hint="use a local disk"
                )
            return
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            value = connection.exec_driver_sql(f"SHOW {setting}").scalar()
            if value == "off":
                raise StoreError(
                    f"PostgreSQL runs with {setting}=off: it would forget", hint=f"set {setting}=on in postgresql.conf"
                )
        version = int(connection.exec_driver_sql("SHOW server_version_num").scalar() or 0)
        if version < 150000:
            raise StoreError(f"this PostgreSQL is of version {version // 10000}", hint="use 15 or newer")


@contextmanager
def still(connection: Connection) -> Iterator[None]:
    """Have all reads of the block see one moment, however much is written meanwhile. A transaction that is under way stays as it is."""
    driver = connection.connection.driver_connection
    sqlite = connection.dialect.name == "sqlite"
    under_way = getattr(driver, "in_transaction") if sqlite else getattr(driver, "info").transaction_status  # noqa: B009 (typed as Any)
    if under_way:
        yield
        return
    connection.exec_driver_sql("BEGIN" if sqlite else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        with suppress(sa.exc.DBAPIError):  # the connection is gone, and its transaction with it
            connection.exec_driver_sql("ROLLBACK")


def is_full_or_read_only(error: sa.exc.DBAPIError) -> bool:
    text = str(error.orig).lower()
    return (
        "disk is full" in text
        or "no space left" in text
        or "readonly" in text
        or "read-only" in text
        or "disk i/o" in text
    )


def is_damaged(error: sa.exc.DBAPIError) -> bool:
    return bool(re.search("malformed|not a database", str(error.orig).lower()))


def as_store_error(error: sa.exc.SQLAlchemyError) -> StoreError:
    """Say in a sentence what is wrong with the database, without its address or password."""
    text = str(getattr(error, "orig", None) or error)
    low = text.lower()
    for pattern, detail, hint in _SAYINGS:
        if re.search(pattern, low):
            return StoreError(detail, hint=hint)
    first = (
        re.sub(r"password=\S+", "password=…", text.strip().splitlines()[0]) if text.strip() else type(error).__name__
    )
    return StoreError(f"the database answers: {first[:300]}", hint="see its log; nothing was written")


_SAYINGS = [
    (
        r"disk is full|no space left|disk full",
        "the disk of the database is full",
        "free some space: nothing was lost, work goes on by itself then",
    ),
    (
        r"disk i/o",
        "the disk of the database takes no writes",
        "check its space, quota and health: nothing was lost, work goes on by itself then",
    ),
    (r"readonly|read-only", "the database is read-only", "give the service's user the right to write"),
    (
        r"not a database|malformed",
        "the file is not a SQLite database, or it is damaged",
        "restore it from a backup, or name another file",
    ),
    (r"unable to open", "the database file cannot be opened", "check the folder and its rights"),
    (r"database is locked", "another program holds the database", "close it: only the service may write there"),
    (
        r"password authentication failed|no password supplied",
        "PostgreSQL refuses the sign-in",
        "check user and password in DB_CONNECTION_STRING",
    ),
    (r'database "[^"]*" does not exist', "PostgreSQL has no such database", "create it: createdb NAME"),
    (
        r"connection refused|could not connect|connection failed|no such file|server closed|terminat|shutting down|starting up|consuming input|is closed|connection is bad|timeout expired",
        AWAY,
        "start it; the farm goes on by itself when it is back",
    ),
]

__all__ = ["AWAY", "as_store_error", "check", "is_damaged", "is_full_or_read_only", "make", "still"]

"""Which service leads: one for each database. On PostgreSQL others may stand by and take over.

SQLite: a file lock beside it. PostgreSQL: an advisory lock of the very session that writes. Who loses the lock has lost
that session, so every transaction is the leader's, and none needs a check of its own. Each leader has a number, its
*generation*, in `meta`: whoever gets the lock again after its session was lost sees there whether another one led
meanwhile. Then what it has in memory is old, and it leads no more. A leader with a lease lets PostgreSQL end its session
when nothing was heard of it for so long: it is stopped, cut off, or its machine is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ..errors import Deposed, StoreError
from . import engines
from .tables import meta

LEADER_KEY = 0x6166726D  # "afrm": the advisory lock of the active service
LEADER_WAIT = 2.0  # seconds to wait for a service before us that is about to be gone
ASK_SECONDS = 0.2  # between two questions whether the lead is free
GENERATION = "generation"  # in `meta`
OURS = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
FORMER = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"
# No timeout of PostgreSQL's counts for a leader that was stopped in the middle of a pipeline or of taking a large answer, nor
# for one whose last word was a request to flush: the timeout of an idle session ends there, and nothing begins it anew.
STUCK = f"""
    SELECT pg_terminate_backend(a.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.classid = 0 AND l.objid = {LEADER_KEY} AND l.granted
    AND a.datname = current_database() AND a.wait_event_type = 'Client'
    AND a.state_change < clock_timestamp() - make_interval(secs => %s)
"""


class Lock:
    """The lead of a database. lease: seconds of silence after which PostgreSQL gives it to another one; 0: never.

    Raises StoreError when another service holds it.
    """

    def __init__(self, writer: Engine, lease: float = 0.0) -> None:
        self._writer, self._lease = writer, lease
        self._sqlite = writer.dialect.name == "sqlite"
        self.generation = 0  # of this service; 0: it has not led yet
        self._file: int | None = None
        self._session: Connection | None = None
        self._asking: Connection | None = None  # a session that does not have the lock
        self._backend: tuple[int, object] | None = (
            None  # of the session that had the lock last: its number and beginning
        )
        self._looked = 0.0  # when somebody stuck was last looked for
        if self._sqlite:
            self._lock_file(f"{writer.url.database}.lock")

    def _lock_file(self, name: str) -> None:
        try:
            self._file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"{name} cannot be written: {error.strerror}", hint="check the disk and the folder's rights"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise taken() from error

    def connect(self) -> Connection:
        """Return a connection of the writer that holds the lock. Raises StoreError, Deposed, SQLAlchemy's errors."""
        until = time.monotonic() + LEADER_WAIT
        while (session := self.ask()) is None:  # a service that was killed just now may hold it for a moment still
            if time.monotonic() > until:
                self._drop_asking()
                raise taken()
            time.sleep(ASK_SECONDS)
        return session

    def ask(self) -> Connection | None:
        """Ask once for the lead; return the session that holds it, or None. Raises as `connect` does."""
        if self._sqlite:
            return self._writer.connect()
        try:
            if self._asking is None:
                self._asking = self._writer.connect()
                self._tell(self._asking)
            session = self._asking
            with session.begin():
                held = session.exec_driver_sql(f"SELECT pg_try_advisory_lock({LEADER_KEY})").scalar()
                if self.generation and generation(session) != self.generation:
                    raise Deposed("another service has led since", hint="it leads; this one begins anew")
                if held:
                    number, begun = session.exec_driver_sql(OURS).one()
                    self._backend = (number, begun)
                else:
                    self._end_dead(session)
        except BaseException:
            self._drop_asking()  # never back into the pool: it may hold the lock
            raise
        if not held:
            return None
        self._asking, self._session = None, session
        return session

    def _tell(self, session: Connection) -> None:
        """Refuse a pooler, and tell PostgreSQL when it is to give this session up."""
        with session.begin():
            backend = session.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            if backend != getattr(session.connection.driver_connection, "info").backend_pid:  # noqa: B009 (typed as Any)
                raise StoreError(
                    "a pooler stands between the service and PostgreSQL: the lock of the one that leads would not hold",
                    hint="name PostgreSQL's own address in DB_CONNECTION_STRING",
                )
            if not self._lease:
                return
            third = max(1, round(self._lease / 3))
            for setting, value in (
                ("idle_session_timeout", f"{self._lease * 1000:.0f}"),
                ("idle_in_transaction_session_timeout", f"{self._lease * 1000:.0f}"),
                ("tcp_user_timeout", f"{self._lease * 1000:.0f}"),
                ("tcp_keepalives_idle", f"{third}"),
                ("tcp_keepalives_interval", f"{third}"),
                ("tcp_keepalives_count", "2"),
            ):
                session.exec_driver_sql(f"SET {setting} = {value}")

    def _end_dead(self, session: Connection) -> None:
        """End a session that has the lock and cannot use it: our own former one, one that is stuck."""
        if self._backend is not None:
            session.exec_driver_sql(FORMER, self._backend)
            self._backend = None
        if self._lease and time.monotonic() - self._looked > self._lease / 4:
            self._looked = time.monotonic()
            session.exec_driver_sql(STUCK, (self._lease,))

    def lead(self, session: Connection) -> None:
        """Begin a generation: what another service still has in memory is old from here on."""
        number = sa.cast(meta.c.value, sa.Integer) + 1
        with session.begin():
            if not session.execute(
                meta.update().where(meta.c.key == GENERATION).values(value=sa.cast(number, sa.Text))
            ).rowcount:
                session.execute(meta.insert().values(key=GENERATION, value="1"))
            self.generation = generation(session)

    def cut(self) -> None:
        """End the connection of a question to which no answer comes, from another thread: it raises then."""
        if (session := self._asking) is not None:
            with contextlib.suppress(Exception), socket.socket(fileno=os.dup(_number(session))) as half_dead:
                half_dead.shutdown(socket.SHUT_RDWR)

    def _drop_asking(self) -> None:
        session, self._asking = self._asking, None
        if session is not None:
            session.invalidate()
            session.close()

    def release(self) -> None:
        """Let another service have the database. Twice is harmless."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._drop_asking()
        if self._session is not None and not self._session.closed:
            try:
                with self._session.begin():
                    self._session.exec_driver_sql(f"SELECT pg_advisory_unlock({LEADER_KEY})")
            except sa.exc.SQLAlchemyError:
                pass  # the session is gone, and the lock with it
        self._session = None


async def wait_for_lead(
    lock: Lock, lease: float, stopped: asyncio.Event, note: Callable[[str], None]
) -> Connection | None:
    """Ask until this service leads; None: `stopped` was set before. note: told what is in the way, "" where nothing is.

    A database that is away is waited for. Raises StoreError: this one will never do.
    """
    loop, stopping = asyncio.get_running_loop(), asyncio.ensure_future(stopped.wait())
    while not stopping.done():
        asking = loop.run_in_executor(None, lock.ask)
        both: list[asyncio.Future[Any]] = [asking, stopping]
        try:
            await asyncio.wait(both, timeout=lease, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                lock.cut()
            if (session := await asking) is not None:
                return session
            note("")
        except sa.exc.SQLAlchemyError as error:
            said = engines.as_store_error(error)
            if said.detail != engines.AWAY:
                raise said from error
            note(said.detail)
        await asyncio.wait({stopping}, timeout=ASK_SECONDS)
    return None


def generation(session: Connection) -> int:
    """Return the number of the service that leads, or led last; 0: none has led yet."""
    found = session.execute(sa.select(meta.c.value).where(meta.c.key == GENERATION)).scalar()
    return int(found or 0)


def taken() -> StoreError:
    return StoreError(
        "another service of AgentFarm uses this database",
        hint="stop it first; on PostgreSQL a second one can stand by: AGENTFARM_STANDBY=1 for both",
    )


def _number(session: Connection) -> int:
    return int(session.connection.driver_connection.fileno())  # type: ignore[union-attr]


__all__ = ["Lock", "generation", "taken", "wait_for_lead"]

"""The database: opening it only where it keeps its word, one writer thread with group commit, readers of their own.

Every process but the service keeps out. `write` takes a plain function: no transaction can span an await.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from agentfarm_sdk.waiting import within

from ..errors import (
    AgentFarmError,
    BudgetReached,
    Conflict,
    Deposed,
    Fenced,
    Hole,
    LimitReached,
    Parked,
    StoreError,
    Transient,
)
from ..records import Committed, Run
from . import engines, leading, schema
from .clock import Clock
from .tables import meta
from .tx import Tx as Tx

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_BATCH = 256
MAX_HEADS = 20_000
SURE_SECONDS = 2.0  # between looks whether this service still leads, at most
FROM_MEMORY = (Conflict, Fenced, Hole, Parked, LimitReached, BudgetReached)  # refusals that rows were not asked about
MEASURE_SECONDS = 30.0  # between looks at PostgreSQL's clock
TURNS = 2  # of the event loop, before the writer is woken: an append, the request behind it and an instant reply


@dataclass
class _Write:
    fn: Callable[[Tx], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None
    committed: list[Committed] = field(default_factory=list)
    moved: float = 0.0  # seconds, of the clock, by the transaction that it is the last of


class _Spoiled(Exception):
    """One member failed after it had written: the batch is rolled back and each member tried singly."""


class Database:
    """An open ledger. Make it with `Database.open`; one active one for each database."""

    def __init__(
        self, writer: Engine, reader: Engine, lock: leading.Lock, connection: Connection, lease: float = 0.0
    ) -> None:
        self.sqlite = writer.dialect.name == "sqlite"
        self.folder = Path(str(writer.url.database)).parent if self.sqlite else None  # of the file
        self._driver_error: type[Exception] = writer.dialect.loaded_dbapi.Error
        self._writer, self._reader, self._lock = writer, reader, lock
        self._lease = lease  # seconds of silence after which another service may lead; 0: none stands by
        self._deposed: Deposed | None = None
        self._connection: Connection | None = connection
        self._closing = False
        self._waiting: collections.deque[_Write] = collections.deque()
        self._wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one after each write that waits; False: the end
        self._waking: asyncio.AbstractEventLoop | None = None
        self._heads: dict[str, Run] = {}
        self._numbers: collections.deque[int] = collections.deque()  # of runs to come
        self._listeners: list[Callable[[list[Committed]], None]] = []
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="reader")
        self.commits = 0  # for metrics and benchmarks
        self.writes = 0
        self.last_error: str | None = None  # why the latest write failed; None: it did not
        self.epoch, now = self.read_now(
            lambda c: (str(c.execute(sa.select(meta.c.value).where(meta.c.key == "epoch")).scalar_one()), self._wall(c))
        )
        self._clock, self._measured = Clock(now), time.monotonic()
        self.even = self._clock.even
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, url: str) -> Database:
        """Open the database at `url`; an empty one gets the schema.

        Raises:
            StoreError: it would not keep its word (durability), cannot be reached or written, is used by another
                service, or its schema is older or newer than this code. `hint` is the way out.
        """
        writer, reader = engines.make(url)
        lock = leading.Lock(writer)
        with _closed_on_error(writer, reader, lock):
            return cls._begun(writer, reader, lock, lock.connect())

    @classmethod
    async def stand_by(
        cls, url: str, lease: float, stopped: asyncio.Event, note: Callable[[str], None]
    ) -> Database | None:
        """Wait until this service leads, and open; None: `stopped` was set before. PostgreSQL alone.

        lease: seconds without a word of the one that leads. note: told what is in the way, "" where nothing is.
        Raises StoreError.
        """
        writer, reader = engines.make(url)
        if writer.dialect.name == "sqlite":
            raise StoreError(
                "SQLite cannot have a standby: one process alone writes it",
                hint="set DB_CONNECTION_STRING to a PostgreSQL database, or start without a standby",
            )
        lock = leading.Lock(writer, lease)
        with _closed_on_error(writer, reader, lock):
            connection = await leading.wait_for_lead(lock, lease, stopped, note)
            if connection is not None:
                return cls._begun(writer, reader, lock, connection, lease)
        lock.release()
        writer.dispose()
        reader.dispose()
        return None

    @classmethod
    def _begun(
        cls, writer: Engine, reader: Engine, lock: leading.Lock, connection: Connection, lease: float = 0.0
    ) -> Database:
        engines.check(connection)
        schema.prepare(connection)
        lock.lead(connection)
        return cls(writer, reader, lock, connection, lease)

    # -- leading -------------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """How many services have led this database, this one included."""
        return self._lock.generation

    async def sure(self) -> None:
        """Return when a transaction has shown that this service still leads. Raises Transient: it may not."""
        await self.write(lambda tx: tx.look("SELECT 1", {}))

    async def certain(self, error: Exception) -> Exception:
        """Return a refusal as it is, or why it cannot be said: a service that leads no more has an old picture of its runs.

        What is done needs no such look: its transaction has shown it.
        """
        if self._lease and isinstance(error, FROM_MEMORY):
            try:
                await self.sure()
            except Transient as unsure:
                return unsure
        return error

    async def lead(self) -> None:
        """Watch for ever over this service's lead; with a lease show again and again that it works.

        Raises Deposed: another service has led, or may lead, for the database was silent for a lease.
        """
        sure_at = time.monotonic()
        while self._deposed is None:
            await asyncio.sleep(min(SURE_SECONDS, self._lease / 4 or SURE_SECONDS))
            if self.last_error is not None:
                await self._try_to_write()
            if not self._lease:
                continue
            begun = time.monotonic()
            try:
                await within(self.sure(), self._lease)
                sure_at = begun
            except (Transient, asyncio.TimeoutError):
                if self._deposed is None and time.monotonic() - sure_at >= self._lease:
                    why = f"nothing was heard of the database for {self._lease:g} s"
                    self._deposed = Deposed(f"{why}: another service may lead", hint="this one begins anew")
        raise self._deposed

    async def _try_to_write(self) -> None:
        """Write a row as it is, behind a write that failed: where nobody else writes, it is not seen that it would do again."""

        def touch(tx: Tx) -> None:
            tx.execute(meta.update().where(meta.c.key == "epoch").values(value=meta.c.value))

        try:
            await within(self.write(touch), SURE_SECONDS)
        except (AgentFarmError, asyncio.TimeoutError) as error:
            log.debug("the database does not take writes yet: %s", error)

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn`, which only reads, with a reader's connection, in a thread; again where the connection turns out cut.

        Raises Transient when the database is away.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_now, fn)

    def read_now(self, fn: Callable[[Connection], T]) -> T:
        """The same in the caller's thread."""
        with translated():
            try:
                with self._reader.connect() as connection:
                    return fn(connection)
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            with self._reader.connect() as connection:  # those of the pool were cut: this one is a new one
                return fn(connection)

    def now(self) -> float:
        """Return the time of the one clock that judges leases and limits. It goes evenly until it is moved."""
        return self._clock.now()

    def strayed(self, connection: Connection) -> float:
        """Return by how much the clock that is followed is ahead: the machine's, or PostgreSQL's (looked at each 30 s)."""
        if not self.sqlite and time.monotonic() - self._measured < MEASURE_SECONDS:
            return 0.0
        self._measured = time.monotonic()
        return self._wall(connection) - self.now()

    def move(self, seconds: float) -> None:
        """Move the clock a little: for a jump, with which durations move, see jumps.py."""
        self._clock.move(seconds)

    def _wall(self, connection: Connection) -> float:
        if self.sqlite:
            return time.time()
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    # -- writing -------------------------------------------------------------------------------------------------

    def on_commit(self, listener: Callable[[list[Committed]], None]) -> None:
        """Call `listener` on the event loop with the events of each commit, in commit order."""
        self._listeners.append(listener)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` in the writer's next transaction, together with whatever waits; return after COMMIT.

        Raises what `fn` raised, or Transient: the database is away, full or read-only; nothing was written.
        """
        return await self.submit(fn)

    def submit(self, fn: Callable[[Tx], T]) -> asyncio.Future[T]:
        """Put `fn` into the writer's queue now, behind all that was put there before; the future is `write`'s answer."""
        loop = asyncio.get_running_loop()
        if self._closing:
            raise Transient("the service is stopping", retry_after=2.0)
        write = _Write(fn, loop, loop.create_future())
        self._waiting.append(write)
        if self._waking is not loop:
            self._waking = loop
            loop.call_soon(self._wake, TURNS)
        return write.future

    def _wake(self, turns: int) -> None:
        """Wake the writer when the event loop has gone round: what belongs together is committed together."""
        if turns:
            asyncio.get_running_loop().call_soon(self._wake, turns - 1)
            return
        self._waking = None
        self._wakes.put(True)

    async def close(self) -> None:
        """Finish what waits and close. Closing twice is harmless."""
        self._closing = True
        self._wakes.put(False)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        self._pool.shutdown()
        self._lock.release()
        self._drop_connection()
        self._writer.dispose()
        self._reader.dispose()

    def _run(self) -> None:
        going_on = True
        while going_on:
            going_on = self._wakes.get()
            while batch := [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]:
                self._commit(batch)
                self._deliver(batch)

    def _commit(self, batch: list[_Write]) -> None:
        try:
            self._attempt(batch)
        except _Spoiled:
            for write in batch:
                try:
                    self._attempt([write])
                except Exception as error:
                    write.error = self._explained(error)
        except Exception as error:  # of one member, or nothing of the batch is there
            explained = self._explained(error)
            for write in batch:
                write.error = explained

    def _attempt(self, batch: list[_Write]) -> None:
        """One transaction. Raises _Spoiled for a batch of several, the error itself for a single one."""
        for write in batch:
            write.result, write.error, write.committed, write.moved = None, None, [], 0.0
        try:
            connection = self._connected()
            with connection.begin(), self._driver_errors():
                tx = Tx(connection, self._heads, self._clock.ahead(), self.sqlite, self._numbers)
                wrote = False
                for write in batch:
                    _member(tx, write)
                    wrote = wrote or tx.wrote
                tx.flush(commit=True)
        except Exception as error:
            self._heads.clear()  # whatever they said: the next use reads the rows
            self._numbers.clear()
            gone = isinstance(error, sa.exc.DBAPIError) and _lost(error)
            if gone:
                self._drop_connection()
            if gone or len(batch) == 1 or self._connection is None:
                raise
            raise _Spoiled() from error
        self.commits += 1
        self.writes += len(batch)
        if tx.moved:
            self._clock.lead(tx.moved)
            batch[-1].moved = tx.moved
        if wrote and self.last_error is not None:  # one that only looked proves nothing: the disk may still be full
            self.last_error = None
            log.info("the database takes writes again")
        self._heads.update(tx._overlay)
        for run in tx._overlay.values():
            if run.ended_at is not None:
                self._heads.pop(run.run_id, None)
        if len(self._heads) > MAX_HEADS:
            self._heads.clear()

    @contextmanager
    def _driver_errors(self) -> Iterator[None]:
        """Turn errors of the append path, which speaks to the driver, into SQLAlchemy's."""
        try:
            yield
        except self._driver_error as error:
            raise sa.exc.DBAPIError.instance(None, None, error, self._driver_error) from error

    def _connected(self) -> Connection:
        if self._deposed is not None:
            raise Transient(self._deposed.detail, hint=self._deposed.hint, retry_after=1.0)
        if self._connection is None or self._connection.closed:
            try:
                self._connection = self._lock.connect()
            except Deposed as error:
                self._deposed = error
                raise Transient(error.detail, hint=error.hint, retry_after=1.0) from error
            except StoreError as error:  # while the database was away another service began to use it
                raise Transient(error.detail, hint=error.hint, retry_after=2.0) from error
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            try:
                self._connection.invalidate()
                self._connection.close()
            except Exception as error:
                log.debug("closing a broken connection: %s", type(error).__name__)
            self._connection = None

    def _explained(self, error: Exception) -> Exception:
        explained = explain(error)
        if isinstance(explained, Transient):
            if self.last_error != explained.detail:  # said once, not with every write of an outage
                log.error("%s", explained.detail)
            self.last_error = explained.detail
        elif not isinstance(explained, AgentFarmError):
            log.error("a write failed", exc_info=error)
        return explained

    def _deliver(self, batch: list[_Write]) -> None:
        loops = {id(write.loop): write.loop for write in batch}
        for key, loop in loops.items():
            mine = [write for write in batch if id(write.loop) == key]
            try:
                loop.call_soon_threadsafe(self._resolve, mine)
            except RuntimeError:  # the loop is closed: nobody waits any more
                continue

    def _resolve(self, batch: list[_Write]) -> None:
        for moved in (write.moved for write in batch if write.moved):
            self._clock.follow(
                moved
            )  # in the same moment in which the runs hear of it: nobody sees one without the other
        committed = [one for write in batch if write.error is None for one in write.committed]
        if committed:
            for listener in self._listeners:
                try:
                    listener(committed)
                except Exception:
                    log.exception("a listener failed")
        for write in batch:
            if write.future.done():
                continue
            if write.error is not None:
                write.future.set_exception(write.error)
            else:
                write.future.set_result(write.result)


@contextmanager
def _closed_on_error(writer: Engine, reader: Engine, lock: leading.Lock) -> Iterator[None]:
    """Give everything back where opening fails; errors of the database become ours."""
    try:
        yield
    except BaseException as error:
        lock.release()
        writer.dispose()
        reader.dispose()
        if isinstance(error, sa.exc.SQLAlchemyError):
            raise engines.as_store_error(error) from error
        raise


def _member(tx: Tx, write: _Write) -> None:
    """Let one member of a batch write; one that gives up before it wrote anything harms nobody."""
    tx.wrote, tx.committed = False, write.committed
    try:
        write.result = write.fn(tx)
    except AgentFarmError as error:
        if tx.wrote:
            raise
        write.error = error
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        raise RuntimeError(f"a write function raised {type(error).__name__}") from error  # no future can carry that


def _lost(error: sa.exc.DBAPIError) -> bool:
    return error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)


def explain(error: Exception) -> Exception:
    """Turn a database's error into ours; any other is returned as it is."""
    if isinstance(error, sa.exc.IntegrityError):
        return Conflict("another write came first", hint="read the thing again and decide anew")
    if not isinstance(error, sa.exc.DBAPIError):
        return error
    if _lost(error) or engines.is_full_or_read_only(error):
        said = engines.as_store_error(error)
        return Transient(said.detail, hint=said.hint, retry_after=2.0)
    return engines.as_store_error(error) if engines.is_damaged(error) else error


@contextmanager
def translated() -> Iterator[None]:
    """Turn the database's errors inside the block into ours."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        explained = explain(error)
        if explained is error:
            raise
        raise explained from error
    except sa.exc.TimeoutError as error:
        raise Transient("every reader of the database is busy", retry_after=1.0) from error

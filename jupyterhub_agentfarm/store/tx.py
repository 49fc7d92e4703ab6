"""A transaction of the writer, as write functions are handed it. What it appends is gathered; db.py begins and commits it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..records import Committed, Run
from . import appending


class Tx:
    """A transaction of the writer, handed to write functions.

    `connection` (SQLAlchemy) and `driver` (DB-API) are one and the same transaction. `now`: epoch seconds.
    """

    def __init__(
        self,
        connection: Connection,
        heads: dict[str, Run],
        now: float,
        sqlite: bool,
        numbers: collections.deque[int] | None = None,
    ) -> None:
        self.now = now
        self.sqlite = sqlite
        self.wrote = False  # set by the statements themselves; one who writes by the driver sets it first
        self.committed: list[Committed] = []
        self.following: list[Any] | None = None  # ends that links.py has yet to follow; None: it is not at work
        self._connection = connection
        self._driver: Any = connection.connection.driver_connection
        self._heads = heads
        self._numbers = collections.deque[int]() if numbers is None else numbers
        self._overlay: dict[str, Run] = {}
        self._gathered = appending.Gathered()
        self.kept: set[str] = set()  # definitions that are known to be there
        self.moved = 0.0  # seconds, of the clock
        connection.info["tx"] = self

    @property
    def connection(self) -> Connection:
        self.flush()
        return self._connection

    @property
    def driver(self) -> Any:
        self.flush()
        return self._driver

    def execute(self, statement: Any, *args: Any) -> sa.CursorResult[Any]:
        """Execute with SQLAlchemy Core."""
        return self.connection.execute(statement, *args)

    def head(self, run_id: str) -> Run | None:
        """Return the run as this transaction sees it, if it is known in memory."""
        return self._overlay.get(run_id) or self._heads.get(run_id)

    def advance(self, run: Run) -> None:
        """Remember the run's new row; it holds beyond this transaction only after COMMIT."""
        self._overlay[run.run_id] = run

    def move(self, seconds: float) -> None:
        """Move the farm's clock, with this transaction: what is written behind it has the new time."""
        self.moved += seconds
        self.now += seconds

    def begin(self, run: Run, more: tuple[Any, ...]) -> Run:
        """Make a run's row; return it with its number. `more`: the values of appending.NEW_ONLY."""
        if not self._numbers:
            self._numbers.extend(appending.numbers(self.driver, self.sqlite))  # behind those that were gathered
        run = run.moved({"run_no": self._numbers.popleft()})
        self.wrote = True
        self._gathered.begin(run, more)
        self.advance(run)
        return run

    def insert(self, before: Run, after: Run, rows: list[appending.Row], *, whole: bool) -> None:
        """Move a run's row from `before` to `after` (`whole`: more than its head moves) and insert its events.

        Raises Transient, now or when the batch is sent: another writer moved the row.
        """
        self.wrote = True
        self._gathered.add(before, after, rows, whole=whole)

    def later(self, statement: str, values: tuple[Any, ...]) -> None:
        """Execute a statement of the driver's, with `?` for its values, whose answer nobody needs: with what was gathered."""
        self.wrote = True
        self._gathered.later.append((statement, values))

    def count(self, row: tuple[str, str, str, str], amounts: Sequence[float]) -> None:
        """Add to a row of `usage` (day, agent, owner, model; see usage.add)."""
        self.wrote = True
        self._gathered.count(row, amounts)

    def look(self, query: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a query (the driver's, with `:name` for its values), behind all that was written so far."""
        if self.sqlite:
            return list(self.driver.execute(query, values).fetchall())
        return self._gathered.send(self._driver, look=(appending.named(query), values))

    def flush(self, *, commit: bool = False) -> None:
        """Write what was gathered; on PostgreSQL with `commit` COMMIT goes with it: one round trip for all."""
        if self.sqlite:
            self._gathered.write(self._driver)
        else:
            self._gathered.send(self._driver, commit=commit)

"""How heads move and events are inserted: the statements of the append path, spoken to the driver.

What a whole transaction writes is gathered: each run's row moves once, PostgreSQL gets all of it in one round trip, and
SQLite few statements, for at each of them the interpreter's lock goes to whoever else waits for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from ..errors import Transient
from ..records import Run

Row = tuple[int, bytes, bytes, bytes, int | None, bytes | None]  # seq, header, salt, body, n, digest
Statement = tuple[str, tuple[Any, ...]]
Look = tuple[str, dict[str, Any]]
_HEAD = ("seq", "head", "last_n")
_ALL = (*_HEAD, "status", "waiting", "fence", "worker", "claim_id", "lease_until", "cancel", "ended_at")


def numbers(driver: Any, sqlite: bool) -> Iterable[int]:
    """Return numbers for runs to come: nobody else makes runs, and numbers that stay unused harm nobody."""
    if sqlite:
        (last,) = driver.execute("SELECT coalesce(max(run_no), 0) FROM runs").fetchone()
        return range(last + 1, last + 1 + _AHEAD)
    ahead = "SELECT nextval(pg_get_serial_sequence('runs', 'run_no')) FROM generate_series(1, %s)"
    return [number for (number,) in driver.execute(ahead, (_AHEAD,))]


def moved(*runs: Run) -> Transient:
    """A row was moved by another writer (by hand, by a restore): heads in memory are dropped, sent again it is right."""
    names = ", ".join(run.run_id for run in runs)
    return Transient(f"run {names} was moved by another writer", hint="send it again", retry_after=0.1)


@dataclass
class Gathered:
    """Appends of a transaction that were not sent yet: each run's row before and after, and all events."""

    whole: bool = False  # more than the heads moved
    new: dict[int, tuple[Run, tuple[Any, ...]]] = field(default_factory=dict)  # rows to be made: the run, NEW_ONLY
    runs: dict[int, tuple[Run, Run]] = field(default_factory=dict)
    rows: list[tuple[Any, ...]] = field(default_factory=list)  # run_no and Row
    later: list[Statement] = field(default_factory=list)  # statements that go with them
    used: dict[tuple[str, str, str, str], list[float]] = field(
        default_factory=dict
    )  # usage, by day, agent, owner, model

    def add(self, before: Run, after: Run, rows: list[Row], *, whole: bool) -> None:
        """Take in an append; a later one of the same run follows on the earlier."""
        self.rows += [(before.run_no, *row) for row in rows]
        if before.run_no in self.new:
            self.new[before.run_no] = (after, self.new[before.run_no][1])
            return
        self.whole = self.whole or whole
        first = self.runs[before.run_no][0] if before.run_no in self.runs else before
        self.runs[before.run_no] = (first, after)

    def begin(self, run: Run, more: tuple[Any, ...]) -> None:
        """Take in a run that begins; `more`: the values of NEW_ONLY."""
        self.new[run.run_no] = (run, more)

    def count(self, row: tuple[str, str, str, str], amounts: Sequence[float]) -> None:
        """Add to a row of `usage`: one statement for all that a transaction counts there."""
        known = self.used.setdefault(row, [0] * len(amounts))
        for place, amount in enumerate(amounts):
            known[place] += amount

    def write(self, driver: Any) -> None:
        """Write all of them to SQLite, and forget them. Raises Transient: a run was moved by another writer."""
        moves, rows, later = list(self.runs.values()), self.rows, [*self.later, *self._counted("?")]
        columns = _ALL if self.whole else _HEAD
        new = self._created()
        self._forget()
        if new:
            driver.executemany(_create("?"), new)
        if moves:
            values = [
                (*(getattr(after, name) for name in columns), before.run_no, before.fence, before.seq)
                for before, after in moves
            ]
            if driver.executemany(_move(columns), values).rowcount != len(moves):
                raise moved(*[before for before, _ in moves])
        for place in range(0, len(rows), _ROWS):
            some = rows[place : place + _ROWS]
            driver.execute(_insert(len(some)), [value for row in some for value in row])
        for statement in later:
            driver.execute(*statement)

    def send(self, driver: Any, *, commit: bool = False, look: Look | None = None) -> list[tuple[Any, ...]]:
        """Write all of them to PostgreSQL in one round trip, and forget them; with `commit` they are the transaction's last.

        Returns the rows of the query `look`, behind them. Raises Transient: a run was moved by another writer.
        """
        statements, moves = self._statements(), list(self.runs.values())
        self._forget()
        if not statements:
            return list(driver.execute(*look).fetchall()) if look else []
        # A transaction that begins here and ends here is PostgreSQL's own implicit one: no BEGIN, no COMMIT to wait for.
        alone = commit and driver.info.transaction_status == _IDLE
        found: Any = None
        try:
            if alone:
                driver.autocommit = True
            if len(statements) == 1 and not look and (alone or not commit):
                driver.execute(*statements[0])
            else:
                with driver.pipeline():
                    for statement in statements:
                        driver.execute(*statement)
                    if look:
                        found = driver.execute(*look)
                    if commit and not alone:  # psycopg's own commit() hangs behind a megabyte in a pipeline
                        driver.execute("COMMIT")
        except Exception as error:
            if getattr(error, "sqlstate", None) == _NOT_ALL:
                raise moved(*[before for before, _ in moves]) from error
            raise
        finally:
            if alone and not driver.closed:
                driver.autocommit = False
        return list(found.fetchall()) if look else []

    def _forget(self) -> None:
        self.whole, self.new, self.runs, self.rows, self.later, self.used = False, {}, {}, [], [], {}

    def _created(self) -> list[tuple[Any, ...]]:
        return [
            (*(getattr(run, name) or None if name == "task_id" else getattr(run, name) for name in _NEW), *more)
            for run, more in self.new.values()
        ]

    def _statements(self) -> list[Statement]:
        later = [*((text.replace("?", "%s"), values) for text, values in self.later), *self._counted("%s")]
        if self.new:
            first = [row for row in self.rows if row[0] in self.new]
            begun = [(_EVENTS, _columns(first))] if first else []
            later = [*((_create("%s"), row) for row in self._created()), *begun, *later]
        if not self.runs:
            return later
        if len(self.runs) > _FEW or len(self.rows) > _FEW_ROWS:
            return [self._for_many(), *later]
        return [*(self._for_one(number) for number in self.runs), *later]

    def _counted(self, mark: str) -> list[Statement]:
        return [(_count(mark), (*row, *amounts)) for row, amounts in self.used.items()]

    def _for_one(self, number: int) -> Statement:
        (before, after), columns = self.runs[number], _ALL if self.whole else _HEAD
        rows = [value for row in self.rows if row[0] == number for value in row[1:]]
        values = (*(getattr(after, name) for name in columns), number, before.fence, before.seq, number, *rows)
        return _one(self.whole, len(rows) // _COLUMNS), values

    def _for_many(self) -> Statement:
        moves = list(self.runs.values())
        guards = [[getattr(before, name) for before, _ in moves] for name in ("run_no", "fence", "seq")]
        values = [[getattr(after, name) for _, after in moves] for name in (_ALL if self.whole else _HEAD)]
        rows = [row for row in self.rows if row[0] not in self.new] if self.new else self.rows
        return _many(self.whole), (*guards, *values, *_columns(rows))


@cache
def named(query: str) -> str:
    """Return a query with PostgreSQL's driver's own marks."""
    return re.sub(r":(\w+)", r"%(\1)s", query)


_AHEAD = 100  # numbers of runs that are taken at once
_IDLE = 0  # libpq's PQTRANS_IDLE: no transaction has begun
_FEW, _FEW_ROWS = 4, 24  # up to so many runs get a statement each: it costs half of the one for many
_COLUMNS = 6  # of a Row
NEW_ONLY = ("priority", "rank", "not_before", "concurrency_key", "concurrency")  # columns that records.Run has not
_ROWS = 64  # that go in one statement (SQLite), a statement for each number of them
_AMOUNTS = ("requests", "tokens_in", "tokens_out", "cost", "estimated", "unpriced")  # of a row of `usage`
_NOT_ALL = "22012"  # division by zero: how these statements refuse, so that nothing behind them is carried out either
_TYPES = {
    "seq": "int", "head": "text", "last_n": "int", "status": "text", "waiting": "text", "fence": "int", "worker": "text",
    "claim_id": "text", "lease_until": "float8", "cancel": "text", "ended_at": "float8",
}  # fmt: skip


_NEW = tuple(one.name for one in fields(Run))
_ARRAYS = "unnest(%s::bigint[], %s::int[], %s::bytea[], %s::bytea[], %s::bytea[], %s::int[], %s::bytea[])"
_ROW = "e (run_no, seq, header, salt, body, n, digest, place)"
_EVENTS = (
    "INSERT INTO events (run_no, seq, header, salt, body, n, digest) SELECT run_no, seq, header, salt, body, n, digest "
    f"FROM {_ARRAYS} WITH ORDINALITY AS {_ROW} ORDER BY place"
)


def _columns(rows: Sequence[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


@cache
def _create(mark: str) -> str:
    """Return the statement that inserts a run."""
    columns = (*_NEW, *NEW_ONLY)
    return f"INSERT INTO runs ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))})"


@cache
def _move(columns: tuple[str, ...]) -> str:
    """Return the statement that moves the head of a run by compare-and-set (SQLite)."""
    sets = ", ".join(f"{column} = ?" for column in columns)
    return f"UPDATE runs SET {sets} WHERE run_no = ? AND fence = ? AND seq = ?"


@cache
def _insert(rows: int) -> str:
    marks = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * rows)
    return f"INSERT INTO events (run_no, seq, header, salt, body, n, digest) VALUES {marks}"


@cache
def _count(mark: str) -> str:
    """Return the statement that adds to a row of `usage`."""
    marks = ", ".join([mark] * (4 + len(_AMOUNTS)))
    sums = ", ".join(f"{name} = usage.{name} + excluded.{name}" for name in _AMOUNTS)
    return (
        f"INSERT INTO usage (day, agent, owner, model, {', '.join(_AMOUNTS)}) VALUES ({marks}) "
        f"ON CONFLICT (day, agent, owner, model) DO UPDATE SET {sums}"
    )


@cache
def _one(whole: bool, rows: int) -> str:
    """Return the statement that moves the head of a run by compare-and-set and inserts its events, in order, or fails."""
    sets = ", ".join(f"{name} = %s" for name in (_ALL if whole else _HEAD))
    row = "(%s::int, %s::bytea, %s::bytea, %s::bytea, %s::int, %s::bytea)"
    return (
        f"WITH ok AS (UPDATE runs SET {sets} WHERE run_no = %s AND fence = %s AND seq = %s RETURNING run_no) "
        "INSERT INTO events (run_no, seq, header, salt, body, n, digest) "
        f"SELECT %s::bigint / (SELECT count(*) FROM ok), e.* FROM (VALUES {', '.join([row] * rows)}) AS e"
    )


@cache
def _many(whole: bool) -> str:
    """Return the statement that does so for many runs: all of them move or none."""
    columns = _ALL if whole else _HEAD
    arrays = ", ".join(f"%s::{_TYPES[name]}[]" for name in columns)
    return (
        f"WITH v AS (SELECT * FROM unnest(%s::bigint[], %s::int[], %s::int[], {arrays}) "
        f"AS v (run_no, old_fence, old_seq, {', '.join('new_' + name for name in columns)})), "
        f"ok AS (UPDATE runs SET {', '.join(f'{name} = v.new_{name}' for name in columns)} FROM v "
        "WHERE runs.run_no = v.run_no AND runs.fence = v.old_fence AND runs.seq = v.old_seq RETURNING runs.run_no) "
        "INSERT INTO events (run_no, seq, header, salt, body, n, digest) "
        "SELECT e.run_no / CASE WHEN (SELECT count(*) FROM ok) = (SELECT count(*) FROM v) THEN 1 ELSE 0 END, "
        f"e.seq, e.header, e.salt, e.body, e.n, e.digest FROM {_ARRAYS} WITH ORDINALITY AS {_ROW} ORDER BY e.place"
    )

"""How heads move and events are inserted: the statements of the append path, spoken to the driver.

SQLite gets them one by one: a statement there costs microseconds. PostgreSQL gets those of a whole batch as one
statement: there each costs a round trip.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import Transient
from ..records import Run

Row = tuple[int, bytes, bytes, bytes, int | None, bytes | None]  # seq, header, salt, body, n, digest
_HEAD = ("seq", "head", "last_n")
_ALL = (*_HEAD, "status", "waiting", "fence", "worker", "claim_id", "lease_until", "cancel", "ended_at")


def moved(*runs: Run) -> Transient:
    """A row was moved by another writer (by hand, by a restore): heads in memory are dropped, sent again it is right."""
    names = ", ".join(run.run_id for run in runs)
    return Transient(f"run {names} was moved by another writer", hint="send it again", retry_after=0.1)


def insert_sqlite(driver: Any, before: Run, after: Run, rows: list[Row], *, whole: bool) -> None:
    """Move the head by compare-and-set (`whole`: the other columns too), insert the events. Raises Transient: moved."""
    columns = _ALL if whole else _HEAD
    sets = ", ".join(f"{column} = ?" for column in columns)
    update = f"UPDATE runs SET {sets} WHERE run_no = ? AND fence = ? AND seq = ?"
    values = (*(getattr(after, column) for column in columns), before.run_no, before.fence, before.seq)
    if driver.execute(update, values).rowcount != 1:
        raise moved(before)
    driver.executemany(
        "INSERT INTO events (run_no, seq, header, salt, body, n, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(before.run_no, *row) for row in rows],
    )


@dataclass
class Gathered:
    """Appends of a PostgreSQL transaction that were not sent yet: each run's row before and after, and all events."""

    whole: bool = False  # more than the heads moved
    runs: dict[int, tuple[Run, Run]] = field(default_factory=dict)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    later: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)  # statements that go with them

    def add(self, before: Run, after: Run, rows: list[Row]) -> None:
        """Take in an append; a later one of the same run follows on the earlier."""
        first = self.runs[before.run_no][0] if before.run_no in self.runs else before
        self.runs[before.run_no] = (first, after)
        self.rows += [(before.run_no, *row) for row in rows]

    def send(self, driver: Any) -> None:
        """Write all of them in one round trip, and forget them. Raises Transient: a run was moved by another writer."""
        moves, rows, later = list(self.runs.values()), self.rows, self.later
        self.runs, self.rows, self.later = {}, [], []
        if not moves and not later:
            return
        with driver.pipeline():
            sent = driver.execute(*self._statement(moves, rows)) if moves else None
            for statement, values in later:
                driver.execute(statement, values)
        if sent is not None and sent.rowcount != len(rows):
            raise moved(*[before for before, _ in moves])

    def _statement(self, moves: list[tuple[Run, Run]], rows: list[tuple[Any, ...]]) -> tuple[str, tuple[Any, ...]]:
        guards = [[getattr(before, name) for before, _ in moves] for name in ("run_no", "fence", "seq")]
        values = [[getattr(after, name) for _, after in moves] for name in (_ALL if self.whole else _HEAD)]
        columns = [list(column) for column in zip(*rows, strict=True)]
        return _SEND[self.whole], (*guards, *values, *columns)


_TYPES = {
    "seq": "int", "head": "text", "last_n": "int", "status": "text", "waiting": "text", "fence": "int", "worker": "text",
    "claim_id": "text", "lease_until": "float8", "cancel": "text", "ended_at": "float8",
}  # fmt: skip


def _statement(columns: tuple[str, ...]) -> str:
    """One statement that moves the heads of many runs by compare-and-set and inserts their events, in order."""
    arrays = ", ".join(f"%s::{_TYPES[name]}[]" for name in columns)
    return (
        f"WITH v AS (SELECT * FROM unnest(%s::bigint[], %s::int[], %s::int[], {arrays}) "
        f"AS v (run_no, old_fence, old_seq, {', '.join('new_' + name for name in columns)})), "
        f"ok AS (UPDATE runs SET {', '.join(f'{name} = v.new_{name}' for name in columns)} FROM v "
        "WHERE runs.run_no = v.run_no AND runs.fence = v.old_fence AND runs.seq = v.old_seq RETURNING runs.run_no) "
        "INSERT INTO events (run_no, seq, header, salt, body, n, digest) "
        "SELECT e.run_no, e.seq, e.header, e.salt, e.body, e.n, e.digest FROM unnest(%s::bigint[], %s::int[], "
        "%s::bytea[], %s::bytea[], %s::bytea[], %s::int[], %s::bytea[]) "
        "WITH ORDINALITY AS e (run_no, seq, header, salt, body, n, digest, place) JOIN ok USING (run_no) ORDER BY e.place"
    )


_SEND = {False: _statement(_HEAD), True: _statement(_ALL)}

"""Events: append-only, chained, numbered. The append path speaks to the driver.

Rows of `runs` and `tasks` and the inbox follow the kinds that are written, in the same transaction.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.audit import Link, check_chain
from agentfarm_sdk.protocol import (
    ENDED,
    GENESIS,
    WORKER_KINDS,
    Event,
    Header,
    NewEvent,
    batch_digest,
    body_hash,
    header_hash,
    make_header,
    read_event,
    timestamp,
)

from ..errors import Conflict, Fenced, Forbidden, Hole, Invalid, NotFound
from ..records import Committed, Run
from . import anchors, contents, effects, taskrows
from .appending import Row
from .db import Tx
from .engines import still
from .inbox import follow as follow_inbox
from .packing import pack, unpack
from .tables import events as events_table
from .tables import runs, tombstones

LATE_KINDS = frozenset({"body.erased"})  # what an ended run still takes
_CREATED = {  # what run.created and the row say alike
    "task": "task_id", "agent": "agent", "owner": "owner", "version": "version", "definition": "definition_hash", "mode": "mode",
    "thread": "thread_id", "bound": "bound",
}  # fmt: skip
_DOUBTS = frozenset({"tool.doubted"})
_VERDICTS = frozenset({"tool.started", "tool.failed", "tool.succeeded", "approval.requested", "simulation.requested"})
PAGE = 200  # runs that are checked with one look at what anchors hold of them
MAX_BEHIND = 1000  # events that are looked at behind an append: a reply has no more calls
_ENDS = frozenset({"run.succeeded", "run.failed", "run.cancelled"})
_COLUMNS = tuple(field.name for field in fields(Run))
RUN = sa.select(*(runs.c[name] for name in _COLUMNS))
# Statements that each task needs are made once: to make one costs more than to execute it.
_ONE = RUN.where(runs.c.run_id == sa.bindparam("run_id"))
_READ = """SELECT e.header, e.body FROM events e JOIN runs r ON r.run_no = e.run_no
WHERE r.run_id = :run_id AND e.seq > :after ORDER BY e.seq"""
_EVENTS = sa.text(_READ).execution_options(binary=True)
_SOME_EVENTS = sa.text(f"{_READ} LIMIT :limit").execution_options(binary=True)
_MOVE_TASK = "UPDATE tasks SET status = ?, waiting = ? WHERE task_id = ? AND run_id = ?"
_END_TASK = (
    "UPDATE tasks SET status = ?, waiting = ?, result = ?, error = ?, ended_at = ? WHERE task_id = ? AND run_id = ?"
)


@dataclass(frozen=True)
class Appended:
    """What an append came to: its number, the run's seq and head after it, and the events as they were recorded."""

    n: int
    seq: int
    head: str
    events: tuple[Event, ...]
    repeated: bool = False


@dataclass(frozen=True)
class Verification:
    """`ok`, how many events, the head; or the first bad event's seq and why."""

    run_id: str
    ok: bool
    events: int
    head: str
    bad_seq: int | None = None
    why: str = ""


# -- reading -----------------------------------------------------------------------------------------------------


def read_run(connection: Connection, run_id: str) -> Run:
    """Return the run's row. Raises NotFound."""
    found = fetch_runs(connection, _ONE, run_id=run_id)
    if not found and (stone := connection.execute(sa.select(tombstones).where(tombstones.c.run_id == run_id)).first()):
        told = f"its {stone.seq} events ended with {stone.head}"
        raise NotFound(f"run {run_id} was deleted on {timestamp(stone.deleted_at)} by {stone.deleted_by}", hint=told)
    if not found:
        raise NotFound(f"there is no run {run_id}", hint="list runs by: agentfarm task list")
    return found[0]


def fetch_runs(connection: Connection, statement: sa.Select[Any], **values: Any) -> list[Run]:
    """Return the runs that a statement made of `RUN` selects."""
    return [Run(*row) for row in connection.execute(statement, values)]


def select_runs(
    connection: Connection, *where: Any, order: tuple[Any, ...] = (runs.c.run_no,), limit: int | None = None
) -> list[Run]:
    """Return the runs that the conditions on `tables.runs` select."""
    statement = RUN.where(*where).order_by(*order)
    return fetch_runs(connection, statement.limit(limit) if limit else statement)


def read_events(connection: Connection, run_id: str, after: int = 0, limit: int | None = None) -> list[Event]:
    """Return the events of a run with seq > `after`, in order."""
    values: dict[str, Any] = {"run_id": run_id, "after": after, **({"limit": limit} if limit else {})}
    rows = connection.execute(_SOME_EVENTS if limit else _EVENTS, values)
    return [read_event(unpack(header), None if body is None else unpack(body)) for header, body in rows]


def held(tx: Tx, run_id: str) -> Run:
    """Return the run as this transaction sees it. Raises NotFound."""
    run = tx.head(run_id)
    return run if run is not None else read_run(tx.connection, run_id)


# -- writing -----------------------------------------------------------------------------------------------------


def create_run(
    tx: Tx, *, run_id: str, task_id: str | None, agent: str, owner: str, epoch: str, definition_hash: str, version: int | None,
    mode: str, events: Sequence[NewEvent], thread_id: str | None = None, priority: int = 0, bound: bool = False, by: str = "service",
    rank: float | None = None, not_before: float | None = None, linked: bool = False, concurrency_key: str | None = None, concurrency: int = 1,
) -> Run:  # fmt: skip
    """Begin a run with its first events (run.created, messages); it stands in the queue of its agent.

    `rank`: its place there (turns.rank; without one it came now). `not_before`: epoch seconds. `linked`: links.py is told of
    its end. `concurrency`: so many runs of the owner with the same key at once.
    """
    run = Run(
        run_no=0, run_id=run_id, task_id=task_id or "", agent=agent, owner=owner, thread_id=thread_id, version=version,
        definition_hash=definition_hash, mode=mode, epoch=epoch, bound=bound, status="queued", waiting=None, fence=0, last_n=0,
        seq=0, head=GENESIS, worker=None, claim_id=None, lease_until=None, cancel=None, created_at=tx.now, ended_at=None,
        linked=linked,
    )  # fmt: skip
    tx.begin(run, (priority, tx.now if rank is None else rank, not_before, concurrency_key, concurrency))
    record(tx, run_id, by, events)
    return held(tx, run_id)


def append(
    tx: Tx, run_id: str, fence: int, n: int, events: Sequence[NewEvent], also: Sequence[NewEvent] = ()
) -> Appended:
    """Append the worker's `n`-th batch, all or none; sent again, only answered again.

    `also` is recorded behind them by the gateway.

    Raises:
        Fenced: a newer lease holds the run, or none does; the worker must stop.
        Hole, Conflict: batch `n` is not the next one; it is another one than was written as `n`, or the run has ended.
        Forbidden, Invalid: a kind that no worker may write; no events, or some behind the run's end.
    """
    run = held(tx, run_id)
    digest = batch_digest(events)
    if run.fence == fence and 1 <= n <= run.last_n:  # also after the run was parked or has ended: the answer was lost
        return _answered_before(tx, run, fence, n, digest, reported=any(e.kind == "model.reported" for e in events))
    _fence(run, fence)
    if n != run.last_n + 1:
        raise Hole(f"append {n} came after {run.last_n}", hint=f"append {run.last_n + 1} first", last_n=run.last_n)
    _open_for(run, events)
    _of_a_worker(events)
    authors = [f"worker:{fence}"] * len(events) + ["gateway"] * len(also)
    return _write(tx, run, [*events, *also], authors, n=n, digest=digest, numbered=len(events))


def record(
    tx: Tx, run_id: str, by: str, events: Sequence[NewEvent], *, fence: int | None = None, after_n: int | None = None, changes: dict[str, Any] | None = None
) -> Appended:  # fmt: skip
    """Record events of gateway, service or user:<name>; `changes` are columns of the run that move with them.

    Raises:
        Fenced: `fence` is given and no longer holds the run.
        Hole: `after_n` is given and that append is not written yet.
        Conflict: the run has ended.
    """
    run = held(tx, run_id)
    if fence is not None:
        _fence(run, fence)
    if after_n is not None and run.last_n < after_n:
        raise Hole(f"append {after_n} is not written yet", hint="send it, then ask again", last_n=run.last_n)
    _open_for(run, events)
    if not events:
        return Appended(run.last_n, run.seq, run.head, ())
    return _write(tx, run, events, [by] * len(events), changes=changes)


def begin_life(tx: Tx, run_id: str, epoch: str) -> None:
    """Let the run's further events be of another epoch; a `run.restored` is the first of them."""
    run = held(tx, run_id)
    tx.execute(runs.update().where(runs.c.run_no == run.run_no).values(epoch=epoch))
    tx.advance(replace(run, epoch=epoch))


def _of_a_worker(events: Sequence[NewEvent]) -> None:
    if not events:
        raise Invalid("an append without events has no place in the ledger", hint="append at least one event")
    for event in events:
        if event.kind not in WORKER_KINDS:
            raise Forbidden(
                f"a worker may not write {event.kind}", hint="workers write: " + ", ".join(sorted(WORKER_KINDS))
            )
    for event in events[:-1]:
        if event.kind in _ENDS:
            raise Invalid(f"{event.kind} ends the run: nothing can stand behind it", hint="append it last")


def _fence(run: Run, fence: int) -> None:
    if run.fence != fence or (run.lease_until is None and run.status not in ENDED):
        raise Fenced(
            f"run {run.run_id}: fence {fence} was replaced by {run.fence}", hint="stop: another worker has the run"
        )


def _open_for(run: Run, events: Iterable[NewEvent]) -> None:
    if run.status in ENDED and any(event.kind not in LATE_KINDS for event in events):
        raise Conflict(
            f"run {run.run_id} has {run.status}: nothing can be added", hint="submit a new task, or rerun this one"
        )


def _answered_before(tx: Tx, run: Run, fence: int, n: int, digest: bytes, *, reported: bool) -> Appended:
    """Return the answer that append `n` got: with what the gateway recorded behind it in its transaction, not told again."""
    e = events_table.c
    rows = tx.connection.execute(
        sa.select(e.seq, e.header, e.digest).where(e.run_no == run.run_no, e.n == n).order_by(e.seq.desc())
    )
    for seq, header, known in rows:
        if msgspec.json.decode(header, type=Header).by != f"worker:{fence}":
            continue
        if known is not None and bytes(known) != digest:  # none is kept where a body of the batch was erased
            raise Conflict(
                f"append {n} was another one before", hint="a repeat must have the same bytes; use the next number"
            )
        return Appended(n, *_behind(tx, run, seq, header, reported), (), repeated=True)
    raise Conflict(f"append {n} is not on record under fence {fence}", hint="claim the run anew")


def _behind(tx: Tx, run: Run, seq: int, header: bytes, reported: bool) -> tuple[int, str]:
    """Return seq and hash of the last event of the transaction that wrote an append whose last event this is.

    The gateway writes nothing of these kinds right behind an append but with it: verdicts on the calls of a reported reply
    (else they stand behind a reply of its own, or a lease), and doubts that a probe left.
    """
    kinds = _VERDICTS if reported else _DOUBTS
    e = events_table.c
    rows = tx.connection.execute(
        sa.select(e.seq, e.header).where(e.run_no == run.run_no, e.seq > seq).order_by(e.seq).limit(MAX_BEHIND)
    )
    for at, raw in rows:
        written = msgspec.json.decode(raw, type=Header)
        if written.by != "gateway" or written.kind not in kinds:
            break
        seq, header = at, raw
    return seq, header_hash(header)


def _write(
    tx: Tx, run: Run, events: Sequence[NewEvent], authors: Sequence[str], *, n: int | None = None, digest: bytes | None = None, numbered: int = 0,
    changes: dict[str, Any] | None = None,
) -> Appended:  # fmt: skip
    """Chain the events, insert them, move run, task and inbox. The heart of the append path."""
    at, seq, head = timestamp(tx.now), run.seq, run.head
    rows: list[Row] = []
    made: list[Event] = []
    for index, (event, by) in enumerate(zip(events, authors, strict=True)):
        seq += 1
        salt, body = os.urandom(16), bytes(event.body)
        header = make_header(
            epoch=run.epoch,
            run=run.run_id,
            seq=seq,
            kind=event.kind,
            at=at,
            by=by,
            call=event.call,
            body=body_hash(salt, body),
            prev=head,
        )
        head = header_hash(header)
        marked = n is not None and index == numbered - 1
        rows.append((seq, pack(header), salt, pack(body), n if marked else None, digest if marked else None))
        made.append(
            Event(run=run.run_id, seq=seq, kind=event.kind, at=at, by=by, call=event.call, hash=head, body=event.body)
        )
    moved = {**moves(run, made, tx.now), **(changes or {})}
    after = run.moved({"seq": seq, "head": head, "last_n": run.last_n if n is None else n, **moved})
    tx.insert(run, after, rows, whole=bool(moved))
    tx.advance(after)
    if run.task_id and (after.status != run.status or after.waiting != run.waiting):
        _move_task(tx, after, made)
    follow_inbox(tx, run, after, made)
    if any(event.kind in effects.FOLLOWED for event in made):
        effects.follow(tx, after, made)
    tx.committed.append(Committed(run.run_id, run.agent, run.owner, tuple(made)))
    _follow_others(tx, run, after, made)
    return Appended(after.last_n, seq, head, tuple(made))


def _follow_others(tx: Tx, before: Run, after: Run, events: Sequence[Event]) -> None:
    """Do to other runs what follows from these events. (Those modules record events themselves, with what is here.)"""
    if any(event.kind == "child.submitted" for event in events):
        from . import children

        children.follow(tx, after, events)
    if after.linked and after.status in ENDED and before.status not in ENDED:
        from . import links

        links.follow(tx, after)


def moves(run: Run, events: Iterable[Event], now: float) -> dict[str, Any]:
    """Return the columns of the run that these events move. Pure; the fold moves the same way."""
    status, waiting, cancel = run.status, run.waiting, run.cancel
    held, freed = run.lease_until is not None, False
    for event in events:
        kind = event.kind
        if status in ENDED or status == "chain":
            break
        if kind == "run.leased":
            status, waiting, held = "running", None, True
        elif kind == "run.requeued":
            status, waiting, held, freed = "queued", None, False, True
        elif kind == "run.resumed":  # its worker may not even have parked yet
            status, waiting = "running" if held else "queued", None
        elif kind == "run.parked":
            reason, held, freed = str(event.data().get("reason", "approval")), False, True
            late = reason == "paused" != waiting and cancel is None  # it was resumed before it rested
            status, waiting = ("queued", None) if late else ("waiting", reason)
        elif kind == "run.restored":
            status, waiting, held, freed = "waiting", "restored", False, True
        elif kind == "run.paused":
            status, waiting = "waiting", "paused"
        elif kind == "tool.doubted":  # its worker is gone
            status, waiting, held, freed = "waiting", "in_doubt", False, True
        elif kind == "run.cancel_requested":
            cancel = str(event.data().get("reason", "")) or "cancelled"
            status, waiting = "cancelling", None
        elif kind in _ENDS:
            status, waiting, freed = kind[4:], None, True
        if cancel is not None and status in ("queued", "running"):
            status = "cancelling"
    moved: dict[str, Any] = {}
    for name, value in (("status", status), ("waiting", waiting), ("cancel", cancel)):
        if getattr(run, name) != value:
            moved[name] = value
    if freed:
        moved |= {"lease_until": None, "worker": None}
    if status in ENDED and run.ended_at is None:
        moved["ended_at"] = now
    return moved


def _move_task(tx: Tx, run: Run, events: Iterable[Event]) -> None:
    if run.status not in ENDED:
        tx.later(_MOVE_TASK, (run.status, run.waiting, run.task_id, run.run_id))
        return
    body = next((event.data() for event in events if event.kind in _ENDS), {})
    result = msgspec.json.encode(body.get("result")).decode() if run.status == "succeeded" else None
    failure = body.get("error")
    if run.status == "cancelled":
        failure = {"type": "cancelled", "message": str(body.get("reason") or "it was cancelled")}
    error = msgspec.json.encode(failure).decode() if failure else None
    tx.later(_END_TASK, (run.status, run.waiting, result, error, run.ended_at, run.task_id, run.run_id))


def link(tx: Tx, run: Run) -> Run:
    """Have links.py told of the run's end."""
    if not run.linked:
        tx.execute(runs.update().where(runs.c.run_no == run.run_no).values(linked=True))
        run = replace(run, linked=True)
        tx.advance(run)
    return run


# -- verifying ---------------------------------------------------------------------------------------------------


def verify(connection: Connection, run_id: str) -> Verification:
    """Check a run from its first event to its row: numbers, hashes, bodies, appends, head. It may go on meanwhile. Raises NotFound."""
    with still(connection):
        run = read_run(connection, run_id)
        return _checked(connection, run, anchors.held(connection, [run_id]).get(run_id, ()))


def _checked(connection: Connection, run: Run, holds: Sequence[anchors.Held]) -> Verification:
    run_id, links = run.run_id, read_links(connection, run)
    found = check_chain(run.epoch, run_id, links, run.seq, run.head)
    if found.ok and (gone := anchors.flaw(holds, links)):
        return Verification(run_id, False, gone[0] - 1, found.head, *gone)
    if found.ok and (why := _row_flaw(run, links)):
        return Verification(run_id, False, found.events, found.head, max(found.events, 1), why)
    if found.ok and (gone := contents.flaw(connection, run, links) or taskrows.flaw(connection, run, links)):
        return Verification(run_id, False, gone[0] - 1, found.head, *gone)
    return Verification(run_id, found.ok, found.events, found.head, found.bad_seq, found.why)


def read_links(connection: Connection, run: Run) -> list[Link]:
    """Return the run's events as they are kept, all of them."""
    e = events_table.c
    rows = connection.execute(
        sa.select(e.seq, e.header, e.salt, e.body, e.n, e.digest).where(e.run_no == run.run_no).order_by(e.seq)
    )
    return [
        Link(seq, header, salt and bytes(salt), body, n, digest and bytes(digest))
        for seq, header, salt, body, n, digest in rows
    ]


def _row_flaw(run: Run, links: Sequence[Link]) -> str:
    """Say where the run's row tells something else than its events; "" where they agree."""
    fence, last_n, ended = 0, 0, None
    for link in links:
        header = msgspec.json.decode(link.header, type=Header)
        if header.kind == "run.leased":
            fence, last_n = fence + 1, 0
        elif link.n is not None and header.by == f"worker:{fence}":
            last_n = link.n
        if header.kind in _ENDS:
            ended = header.kind[4:]
    for name, row, told in (("fence", run.fence, fence), ("last append", run.last_n, last_n)):
        if row != told:
            return f"the run's row says {name} {row}, its events {told}: one of the two was changed"
    if (ended is not None and run.status != ended) or (ended is None and run.status in ENDED):
        return f"the run's row says {run.status}, its events {ended or 'that it has not ended'}"
    created = read_event(links[0].header, links[0].body) if links else None
    for name, value in created.data().items() if created and created.kind == "run.created" else ():
        column = _CREATED.get(name)
        if column and getattr(run, column) != value:
            return f"the run's row says {column} {getattr(run, column)}, its first event {value}: one of the two was changed"
    return ""


def verify_all(connection: Connection) -> list[Verification]:
    """Check every run, the farm's own chain first."""
    found, known = list[Verification](), -1
    while True:
        with still(connection):  # each page by itself: SQLite's log would grow behind one long look
            page = select_runs(connection, runs.c.run_no > known, limit=PAGE)
            held = anchors.held(connection, [run.run_id for run in page])
            found += [_checked(connection, run, held.get(run.run_id, ())) for run in page]
        if not page:
            return found
        known = page[-1].run_no

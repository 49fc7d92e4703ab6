"""What people may take out of the ledger: bodies of ended runs, and whole runs. Never silently, and the chain still holds.

A body goes with its salt, so that its hash in the header says nothing; `body.erased` says who erased what, and why. The
copies beside the chain go too: the task's input and result, what the inbox showed, blobs that no other body names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.audit import Link
from agentfarm_sdk.fold import ERASED
from agentfarm_sdk.protocol import ENDED, Header, new_event, timestamp

from ..errors import Conflict, Invalid
from ..records import Run
from . import cases, idempotency, ledger, remains
from .db import Tx
from .engines import still
from .tables import FARM_RUN, anchored, blobs, events, inbox, run_blobs, runs, tasks, tombstones, uploads

# What became of a run, who held it and which calls were started: without words of people, models or tools.
KEPT = frozenset({
    "run.created", "run.leased", "run.requeued", "run.parked", "run.restored", "thread.continued", "tool.started", "body.erased",
    "clock.jumped",
})  # fmt: skip
CHUNK = 500  # rows named in one statement


@dataclass(frozen=True)
class Erased:
    """How many bodies and blobs went, and the run's seq and head behind it."""

    run_id: str
    bodies: int
    blobs: int
    seq: int
    head: str


@dataclass(frozen=True)
class Tombstone:
    run_id: str
    epoch: str
    seq: int
    head: str


# -- bodies --------------------------------------------------------------------------------------------------------


def erase(
    tx: Tx, run_id: str, by: str, reason: str, wanted: Callable[[int, str], bool], *, remembered: bool = False
) -> Erased:
    """Erase the bodies of the events that `wanted(seq, kind)` names; what is gone already, or always kept, is passed over.

    `remembered`: what agents remember since this run goes too.

    Raises NotFound; Conflict: the run has not ended.
    """
    run = _ended(tx, run_id)
    if remembered:
        remains.forget(tx, run, by)
    links = ledger.read_links(tx.connection, run)
    kinds = [msgspec.json.decode(link.header, type=Header).kind for link in links]
    gone = [
        link.seq
        for link, kind in zip(links, kinds, strict=True)
        if link.body is not None and kind not in KEPT and wanted(link.seq, kind)
    ]
    if not gone:
        return Erased(run_id, 0, 0, run.seq, run.head)
    chosen = set(gone)
    _take(tx, run, gone, _batches(links, chosen))
    left = [link.body for link in links if link.body is not None and link.seq not in chosen]
    lost = _drop_blobs(tx, run_id, left)
    _beside(tx, run, {kinds[seq - 1] for seq in chosen})
    body = {"seqs": ranges(gone), "reason": reason, "blobs": lost}
    done = ledger.record(tx, run_id, by, [new_event("body.erased", body)])
    return Erased(run_id, len(gone), len(lost), done.seq, done.head)


def check_named(connection: Connection, run_id: str, seqs: Sequence[int], kinds: Sequence[str]) -> None:
    """Raise Invalid where an event is named that is not there or whose body is always kept."""
    if kept := sorted(KEPT & set(kinds)):
        raise Invalid(f"bodies of {kept[0]} are kept: they hold no words of anybody", hint="leave it out")
    run = ledger.read_run(connection, run_id)
    wrong = [seq for seq in seqs if not 1 <= seq <= run.seq]
    if wrong:
        raise Invalid(f"run {run_id} has no event {wrong[0]}", hint=f"its events are 1 to {run.seq}")
    for link in ledger.read_links(connection, run) if seqs else ():
        kind = msgspec.json.decode(link.header, type=Header).kind
        if link.seq in seqs and kind in KEPT:
            raise Invalid(f"event {link.seq} is a {kind}: it holds no words of anybody, and is kept")


def ranges(seqs: Iterable[int]) -> list[list[int]]:
    """Return ascending numbers as [first, last] pairs. Pure."""
    found: list[list[int]] = []
    for seq in seqs:
        if found and seq == found[-1][1] + 1:
            found[-1][1] = seq
        else:
            found.append([seq, seq])
    return found


def _ended(tx: Tx, run_id: str) -> Run:
    run = ledger.held(tx, run_id)
    if run_id == FARM_RUN:
        raise Conflict("the farm's own chain is kept whole", hint="it holds names and numbers only")
    if run.status not in ENDED:
        raise Conflict(f"run {run_id} has not ended: it still needs what it was told", hint="cancel it first")
    return run


def _batches(links: Sequence[Link], chosen: set[int]) -> list[int]:
    """Return the events whose append's digest goes too: without salt, it would tell what a short body said."""
    found, since = [], dict[str, list[int]]()
    for link in links:
        by = msgspec.json.decode(link.header, type=Header).by
        since.setdefault(by, []).append(link.seq)
        if link.n is not None and chosen.intersection(since.pop(by)):
            found.append(link.seq)
    return found


def _take(tx: Tx, run: Run, gone: Sequence[int], digests: Sequence[int]) -> None:
    if tx.sqlite:  # what was there is written over, not only let go of
        tx.connection.exec_driver_sql("PRAGMA secure_delete=ON")
    e = events.c
    for seqs, values in ((gone, {"body": None, "salt": None}), (digests, {"digest": None})):
        for part in _parts(seqs):
            tx.execute(events.update().where(e.run_no == run.run_no, e.seq.in_(part)).values(**values))
    if tx.sqlite:
        tx.connection.exec_driver_sql("PRAGMA secure_delete=OFF")


def _parts(seqs: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(seqs), CHUNK):
        yield seqs[at : at + CHUNK]


def _drop_blobs(tx: Tx, run_id: str, left: Sequence[bytes]) -> list[str]:
    """Take from the run the blobs that its bodies no longer name; delete those that no other run's bodies name either.

    A run that only goes on from this one (a fork, a thread) has them because it was told what this one was.
    """
    b = run_blobs.c
    held = tx.connection.execute(sa.select(b.sha256).where(b.run_id == run_id)).scalars().all()
    lost = [sha256 for sha256 in held if not any(sha256.encode() in body for body in left)]
    for sha256 in lost:
        tx.execute(run_blobs.delete().where(b.run_id == run_id, b.sha256 == sha256))
        others = tx.connection.execute(sa.select(b.run_id).where(b.sha256 == sha256)).scalars().all()
        if not any(_names(tx.connection, other, sha256) for other in others):
            for table in (run_blobs, uploads, blobs):
                tx.execute(table.delete().where(table.c.sha256 == sha256))
    return lost


def _names(connection: Connection, run_id: str, sha256: str) -> bool:
    links = ledger.read_links(connection, ledger.read_run(connection, run_id))
    return any(link.body is not None and sha256.encode() in link.body for link in links)


def _beside(tx: Tx, run: Run, kinds: set[str]) -> None:
    """Erase what rows beside the chain repeat of it."""
    task: dict[str, str | None] = {}
    row = tx.connection.execute(sa.select(tasks).where(tasks.c.task_id == run.task_id)).one_or_none()
    if row is not None and row.run_id == run.run_id:
        if kinds & {"message.added", "run.forked"}:
            task["input"] = _json(ERASED)
            needs = msgspec.json.decode(row.requirements)
            task["requirements"] = _json({k: v for k, v in needs.items() if k not in ("variables", "simulate")})
        if "run.succeeded" in kinds:
            task["result"] = None
            cases.forget(tx, run.task_id)
        if row.error and kinds & {"run.failed", "run.cancelled"}:
            task["error"] = _json({**msgspec.json.decode(row.error), "message": ERASED})
        if task:
            tx.execute(tasks.update().where(tasks.c.task_id == run.task_id).values(**task))
            idempotency.erase(tx, run.task_id)
    if not any(kind.startswith(("model.", "tool.", "approval.", "simulation.", "question.")) for kind in kinds):
        return
    shown = tx.connection.execute(sa.select(inbox.c.inbox_id, inbox.c.detail).where(inbox.c.run_id == run.run_id))
    for inbox_id, detail in shown.all():
        plain = {
            k: v
            for k, v in msgspec.json.decode(detail).items()
            if k in ("tool", "key", "effect", "budget", "scope", "name")
        }
        values = {"detail": _json({**plain, "erased": True}), "votes": None, "reason": None}
        tx.execute(inbox.update().where(inbox.c.inbox_id == inbox_id).values(**values))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


# -- whole runs ----------------------------------------------------------------------------------------------------


def delete(tx: Tx, run_id: str, by: str, reason: str) -> Tombstone:
    """Delete an ended run; a tombstone with its head stays, and the farm's own chain says who did it, and why.

    Raises NotFound; Conflict: it has not ended, or a run that has not ended goes on from it.
    """
    run = _ended(tx, run_id)
    if run.thread_id is not None and thread_goes_on(tx.connection, run.thread_id):
        raise Conflict(f"thread {run.thread_id} has a run under way", hint="wait until it has ended, or cancel it")
    stone = Tombstone(run_id, run.epoch, run.seq, run.head)
    body = {"run": run_id, "epoch": run.epoch, "seq": run.seq, "head": run.head, "reason": reason}
    ledger.record(tx, FARM_RUN, by, [new_event("run.deleted", body)])
    row = {**vars(stone), "deleted_at": tx.now, "deleted_by": by}
    tx.execute(tombstones.insert().values(**row))
    _beside(tx, run, {"message.added", "run.succeeded", "run.failed", "run.cancelled"})  # its inbox goes below
    _drop_blobs(tx, run_id, [])
    if tx.sqlite:
        tx.connection.exec_driver_sql("PRAGMA secure_delete=ON")
    tx.execute(events.delete().where(events.c.run_no == run.run_no))
    tx.execute(inbox.delete().where(inbox.c.run_id == run_id))
    tx.execute(runs.delete().where(runs.c.run_no == run.run_no))
    if tx.sqlite:
        tx.connection.exec_driver_sql("PRAGMA secure_delete=OFF")
    return stone


def thread_goes_on(connection: Connection, thread_id: str) -> bool:
    active = sa.select(runs.c.run_id).where(runs.c.thread_id == thread_id, runs.c.status.not_in(ENDED)).limit(1)
    return connection.execute(active).scalar() is not None


def flaws(connection: Connection) -> list[tuple[str, str]]:
    """Return (run, why) of each tombstone that is not what the farm's own chain or an anchor says. Runs may be deleted meanwhile."""
    with still(connection):
        return _flaws(connection)


def _flaws(connection: Connection) -> list[tuple[str, str]]:
    told = {}
    for event in ledger.read_events(connection, FARM_RUN):
        if event.kind == "run.deleted":
            body = event.data()
            told[str(body.get("run"))] = (body.get("epoch"), body.get("seq"), body.get("head"), event.by, event.at)
    found = []
    stones = {
        str(one.run_id): (one.epoch, one.seq, one.head, one.deleted_by, timestamp(one.deleted_at))
        for one in connection.execute(sa.select(tombstones))
    }
    for run_id in sorted(told.keys() | stones.keys()):
        if run_id not in stones:
            found.append((run_id, "the farm's chain says that it was deleted, and its tombstone is gone"))
        elif stones[run_id] != told.get(run_id):
            found.append((run_id, "its tombstone says another thing than the farm's chain: one of the two was changed"))
    a = anchored.c
    for row in connection.execute(sa.select(anchored).where(a.run_id.in_(sa.select(tombstones.c.run_id)))):
        _, seq, head, *_ = stones[row.run_id]
        if row.seq > seq or (row.seq == seq and row.head != head):
            found.append((row.run_id, f"anchor {row.number} holds another end than its tombstone"))
    here = sa.select(runs.c.run_id).where(runs.c.run_id.in_(sa.select(tombstones.c.run_id)))
    found += [(run_id, "it has a tombstone, and is here") for run_id in connection.execute(here).scalars()]
    return found

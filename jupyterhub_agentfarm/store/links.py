"""What the end of a run means for others, in the transaction of that end: retries, tasks that come after it, its batch.

ledger.py calls `follow` for runs that are marked as linked; tasks.py calls `over` for tasks that end without a run. Nothing
here raises for what is expected: the end that is being written must be written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.fold import as_text
from agentfarm_sdk.parts import are_parts
from agentfarm_sdk.protocol import ENDED, Event, NewEvent, new_event

from ..records import Run, new_id
from . import blobs, definitions, ledger, threads
from .db import Tx
from .tables import task_links, tasks

RETRY_ON = ("unavailable", "model-failed", "worker-died", "unplaceable")  # what may be gone the next time
LONGEST_BACKOFF = 3600.0  # seconds
PIECE = 64  # events of a run that are read at once

_TASK = sa.select(tasks).where(tasks.c.task_id == sa.bindparam("task"))
_AFTER_IT = sa.select(task_links.c.task_id).where(task_links.c.after_task == sa.bindparam("task"))
_BEFORE_IT = (
    sa.select(tasks.c.task_id, tasks.c.status, tasks.c.result, tasks.c.error)
    .join(task_links, task_links.c.after_task == tasks.c.task_id)
    .where(task_links.c.task_id == sa.bindparam("task"))
    .order_by(tasks.c.task_id)
)
_NUMBER = sa.text(
    "UPDATE tasks SET batch_ended = (SELECT coalesce(max(t.batch_ended), 0) + 1 FROM tasks t WHERE t.batch_id = :batch) "
    "WHERE task_id = :task AND batch_ended IS NULL"
)


def follow(tx: Tx, run: Run) -> None:
    """Do what follows from the end of a run; ends that come of it are followed one after the other, not deeper and deeper."""
    from . import children  # it submits and cancels tasks, and those call this

    if tx.following is not None:
        tx.following.append(run)
        return
    tx.following = [run]
    try:
        while tx.following:
            ended = tx.following.pop(0)
            children.stop(tx, ended)
            if not _retried(tx, ended):
                over(tx, ended.task_id)
    finally:
        tx.following = None


def over(tx: Tx, task_id: str) -> None:
    """Do what follows from the end of a task: its batch counts it, those that come after it go on or fail."""
    task = _row(tx, task_id)
    if task is None or task["status"] not in ENDED:
        return
    if task["batch_id"]:
        tx.execute(_NUMBER, {"batch": task["batch_id"], "task": task_id})
    if task["parent_run"]:
        from . import children

        children.finished(tx, task)
    for later in tx.connection.execute(_AFTER_IT, {"task": task_id}).scalars().all():
        settle(tx, later)


# -- tasks that come after others ----------------------------------------------------------------------------------


def settle(tx: Tx, task_id: str) -> None:
    """Let a task go on that waits for none of those before it any more; fail it where one of them did not succeed."""
    task = _row(tx, task_id)
    if task is None or task["status"] in ENDED:
        return
    before = _before(tx.connection, task_id)
    bad = next((one for one in before if one["status"] in ENDED and one["status"] != "succeeded"), None)
    options = msgspec.json.decode(task["options"])
    if bad is not None and not options.get("after_any_end"):
        _fail(tx, task, bad)
    elif all(one["status"] in ENDED for one in before):
        _release(tx, task)


def unreleased(connection: Connection, run: Run) -> bool:
    """Say whether the run of a task that comes after others was never let go."""
    events = ledger.read_events(connection, run.run_id) if run.fence == 0 else []
    parked = any(e.kind == "run.parked" and e.data().get("reason") == "after" for e in events)
    return parked and not any(e.kind == "run.requeued" for e in events)


def given(connection: Connection, task_id: str, asked: Any, options: Mapping[str, Any]) -> Any:
    """Return the input as the model is told it: where the task asked for them, with the results of those before it."""
    if not options.get("results"):
        return asked
    told = [] if are_parts(asked) else [as_text(asked)]
    for one in _before(connection, task_id):
        if one["status"] == "succeeded":
            said = as_text(msgspec.json.decode(one["result"]))
        else:
            said = "it has " + str(one["status"])
        told.append(f"Result of {one['task_id']}:\n{said}")
    text = "\n\n".join(told)
    return [*asked, {"type": "text", "text": text}] if are_parts(asked) else text


def _before(connection: Connection, task_id: str) -> list[dict[str, Any]]:
    return [
        {str(name): value for name, value in row.items()}
        for row in connection.execute(_BEFORE_IT, {"task": task_id}).mappings()
    ]


def _row(tx: Tx, task_id: str) -> dict[str, Any] | None:
    found = tx.connection.execute(_TASK, {"task": task_id}).mappings().one_or_none()
    return None if found is None else {str(name): value for name, value in found.items()}


def _fail(tx: Tx, task: Mapping[str, Any], bad: Mapping[str, Any]) -> None:
    why = (msgspec.json.decode(bad["error"]) if bad["error"] else {}).get("message", "")
    message = f"{bad['task_id']}, which it comes after, has {bad['status']}" + (f": {why}" if why else "")
    end_task(tx, task["task_id"], task["run_id"], {"type": "after", "message": message})


def end_task(tx: Tx, task_id: str, run_id: str | None, error: Mapping[str, Any]) -> None:
    """End a task as failed, with the reason; so too its run."""
    if run_id:
        if ledger.held(tx, run_id).status not in ENDED:
            ledger.record(tx, run_id, "service", [new_event("run.failed", {"error": error})])
        return
    tx.execute(
        tasks.update()
        .where(tasks.c.task_id == task_id, tasks.c.status.not_in(ENDED))
        .values(status="failed", waiting=None, error=msgspec.json.encode(error).decode(), ended_at=tx.now)
    )
    over(tx, task_id)


def _release(tx: Tx, task: Mapping[str, Any]) -> None:
    if not task["run_id"]:  # a pool's: the scheduler gives it to a member
        tx.execute(
            tasks.update()
            .where(tasks.c.task_id == task["task_id"], tasks.c.waiting == "after")
            .values(status="queued", waiting=None)
        )
        return
    run = ledger.held(tx, task["run_id"])
    if run.waiting != "after":  # paused: it is looked at again when it is resumed
        return
    options, opening = msgspec.json.decode(task["options"]), list[NewEvent]()
    if options.get("results"):  # else its input stands in the run already
        definition = definitions.get(tx.connection, run.definition_hash)
        variables = msgspec.json.decode(task["requirements"]).get("variables", {})
        asked = given(tx.connection, task["task_id"], msgspec.json.decode(task["input"]), options)
        opening = threads.opening(definition, asked, variables, None)
    body = {"reason": "what it comes after has ended", "proof": None}
    ledger.record(tx, run.run_id, "service", [*opening, new_event("run.requeued", body)])


# -- retries -------------------------------------------------------------------------------------------------------


def _retried(tx: Tx, run: Run) -> bool:
    """Begin another run of the same task, where its policy allows that after this end."""
    if run.status != "failed" or run.bound:
        return False
    task = _row(tx, run.task_id)
    policy = msgspec.json.decode(task["options"]).get("retry") if task is not None else None
    if not policy or task is None or task["run_id"] != run.run_id:
        return False
    created = ledger.read_events(tx.connection, run.run_id, limit=1)[0].data()
    earlier = [*created.get("earlier", []), run.run_id]
    failure = msgspec.json.decode(task["error"] or "{}")
    pause = may_retry(policy, len(earlier), str(failure.get("type", "")))
    late = pause is not None and task["deadline"] is not None and tx.now + pause >= task["deadline"]
    if pause is None or late or _had_effect(tx, run):
        return False
    again = new_id("run")
    tx.execute(
        tasks.update()
        .where(tasks.c.task_id == run.task_id)
        .values(run_id=again, status="queued", error=None, result=None, ended_at=None)
    )
    ledger.create_run(
        tx, run_id=again, task_id=run.task_id, agent=run.agent, owner=run.owner, epoch=run.epoch, version=run.version,
        definition_hash=run.definition_hash, mode=run.mode, thread_id=run.thread_id, priority=task["priority"], rank=task["rank"],
        not_before=tx.now + pause if pause else None, linked=True, concurrency_key=task["concurrency_key"],
        concurrency=int(msgspec.json.decode(task["options"]).get("concurrency", 1)), events=[new_event("run.created", {**created, "earlier": earlier}), *_opening(_events(tx, run))],
    )  # fmt: skip
    blobs.share(tx, run.run_id, again)  # what its input, or its recording, names
    return True


def may_retry(policy: Mapping[str, Any], made: int, failed_by: str) -> float | None:
    """Return after how many seconds a task is tried again whose `made` runs have failed; None: not at all. Pure."""
    if made >= policy["attempts"] or failed_by not in (policy.get("on") or RETRY_ON):
        return None
    return float(min(policy.get("backoff", 0.0) * 2 ** (made - 1), LONGEST_BACKOFF))


def _had_effect(tx: Tx, run: Run) -> bool:
    """Say whether a call with effect `once` was started: another run would make it again, with another key."""
    if all(tool.effect != "once" for tool in definitions.get(tx.connection, run.definition_hash).tools):
        return False  # a start has its tool's effect: nothing need be read
    starts = (event for event in _events(tx, run) if event.kind == "tool.started")
    return any(event.data().get("effect", "once") == "once" for event in starts)


def _events(tx: Tx, run: Run) -> Iterator[Event]:
    """Read a run in pieces, as far as it is wanted: the one writer has everybody's commits to make, and a run may be long."""
    seq = 0
    while piece := ledger.read_events(tx.connection, run.run_id, after=seq, limit=PIECE):
        yield from piece
        seq = piece[-1].seq


def _opening(events: Iterable[Event]) -> list[NewEvent]:
    """Return the messages with which a run began. Pure."""
    begun = itertools.takewhile(lambda event: event.kind != "run.leased", events)
    return [NewEvent(kind=e.kind, body=e.body) for e in begun if e.kind == "message.added"]


def followed(connection: Connection, task_id: str) -> bool:
    """Say whether tasks come after this one."""
    return connection.execute(_AFTER_IT.limit(1), {"task": task_id}).first() is not None


def mark(tx: Tx, task_id: str) -> None:
    """Have the end of a task told to those that come after it."""
    run_id = tx.connection.execute(sa.select(tasks.c.run_id).where(tasks.c.task_id == task_id)).scalar()
    if run_id:
        ledger.link(tx, ledger.held(tx, run_id))

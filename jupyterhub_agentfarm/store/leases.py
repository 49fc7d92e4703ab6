"""Leases: who may work on a run, until when, and what becomes of open calls when nobody does.

All times are those of `Tx.now`, the one clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.fold import Call, Fold
from agentfarm_sdk.protocol import ENDED, Event, NewEvent, new_event, timestamp

from ..errors import Conflict, Fenced
from ..records import Run
from . import definitions, effects, inbox, latest, ledger, threads, turns
from .db import Tx
from .tables import runs, tasks

MAX_DEATHS = 10  # of workers, one after the other, before a run is given up
_STANDING = frozenset({  # what no step forward is
    "run.created", "message.added", "thread.continued", "run.leased", "run.requeued", "model.requested", "model.failed",
    "tool.started", "worker.died",
})  # fmt: skip
_CLAIM = f"""SELECT (SELECT c.run_id FROM runs c WHERE c.claim_id = :claim_id AND c.agent = :agent AND c.lease_until IS NOT NULL),
n.run_id, n.owner, n.owners FROM (SELECT 1) one LEFT JOIN ({turns.NEXT}) n ON true"""
_CLAIM_ANYWHERE = _CLAIM.replace(turns.NEXT, turns.NEXT_ANYWHERE)


def claim(
    tx: Tx, agent: str, worker: str, claim_id: str, seconds: float, *, new: bool = True, scratch: bool = False
) -> Run | None:
    """Give the worker the next run of the agent, or None. The same `claim_id` gets the same lease again: without `new` that alone.

    scratch: only one whose task needs no files of the agent's.

    A run of a thread waits until the thread's earlier runs have ended, one with a concurrency key until it is free;
    owners take turns, and each owner's runs go by priority and age. Bound runs never enter the queue.
    """
    [(again, run_id, owner, owners)] = tx.look(
        _CLAIM_ANYWHERE if scratch else _CLAIM, {"claim_id": claim_id, "agent": agent, "now": tx.now}
    )
    if again is not None:
        return ledger.held(tx, again)
    if run_id is None or not new:
        return None
    if owners > 1:
        turns.served(tx, agent, owner)
    return lease(tx, ledger.held(tx, run_id), worker, claim_id, seconds)


def lease(tx: Tx, run: Run, worker: str, claim_id: str, seconds: float) -> Run:
    """Give the run to a worker under a new fence, whose appends are numbered from 1."""
    run = ledger.held(tx, run.run_id)
    fence = run.fence + 1
    changes: dict[str, Any] = {
        "fence": fence, "last_n": 0, "worker": worker, "claim_id": claim_id, "lease_until": tx.now + seconds,
    }  # fmt: skip
    events = threads.opening_in_thread(tx.connection, run) if run.thread_id and run.fence == 0 else []
    events.append(new_event("run.leased", {"fence": fence, "worker": worker}))
    ledger.record(tx, run.run_id, "service", events, changes=changes)
    return ledger.held(tx, run.run_id)


def renew(tx: Tx, run_id: str, fence: int, seconds: float) -> float:
    """Keep the lease; return until when. Raises Fenced: it is somebody else's or nobody's."""
    run = ledger.held(tx, run_id)
    if run.fence != fence or run.lease_until is None:
        raise Fenced(f"run {run_id}: fence {fence} holds nothing any more", hint="stop: claim anew")
    until = tx.now + seconds
    tx.execute(runs.update().where(runs.c.run_no == run.run_no, runs.c.fence == fence).values(lease_until=until))
    tx.advance(replace(run, lease_until=until))
    return until


def expired(connection: Connection, now: float, longest: float) -> list[Run]:
    """Return the runs whose lease has run out, or ends later than one given now could: the clock has jumped since."""
    return ledger.select_runs(connection, sa.or_(runs.c.lease_until < now, runs.c.lease_until > now + longest))


def silent(connection: Connection, now: float, lease: float) -> list[Run]:
    """Return the runs whose lease holds still, but was not renewed when it should have been: for half of it."""
    return ledger.select_runs(
        connection, runs.c.lease_until >= now, runs.c.lease_until < now + lease / 2, runs.c.bound.is_(False)
    )


def held_until(connection: Connection, agents: Sequence[str]) -> dict[str, float]:
    """Return until when the latest lease of each of these agents' runs holds; agents without one are left out."""
    if not agents:
        return {}
    query = sa.select(runs.c.agent, sa.func.max(runs.c.lease_until)).where(
        runs.c.lease_until.is_not(None), runs.c.bound.is_(False), runs.c.agent.in_(agents)
    )
    return {str(agent): float(until) for agent, until in connection.execute(query.group_by(runs.c.agent))}


def requeue(tx: Tx, run_id: str, fence: int, reason: str, proof: str | None) -> ledger.Appended:
    """Take the run from its worker. Open calls are decided from the record; `proof` proves the worker dead.

    A started `read` is called again; an `idempotent` one too, after proof or its timeout; of a `once` one the next worker
    asks the tool's probe; where it has none, it is in doubt, and the run waits instead of queueing. A run bound to a kernel fails: it never enters the queue. A cancelled one ends
    where nothing is open. One whose workers die again and again without getting anywhere fails: it may be what kills them.

    Raises Fenced: `fence` holds it no more.
    """
    run = ledger.held(tx, run_id)
    if run.fence != fence or run.lease_until is None:
        raise Fenced(f"run {run_id}: fence {fence} holds nothing any more")
    recorded = latest.step(tx.connection, run)
    fold = latest.fold(run, recorded)
    started = [call for call in fold.open_calls if call.state == "started"]
    once = [call for call in started if call.effect == "once"]
    probed = _with_probe(tx, run) if once and not run.bound else frozenset()
    events = [doubt(call, reason, proof) for call in once if call.tool not in probed]
    queued = [] if events else [new_event("run.requeued", {"reason": reason, "proof": proof})]
    if run.bound:
        message = f"the kernel that drove this run is gone ({reason})"
        events.append(new_event("run.failed", {"error": {"type": "kernel-gone", "message": message}}))
    elif run.cancel:
        ending = _ending(fold, run.cancel, reason, proof)
        events = ending if any(event.kind == "tool.doubted" for event in ending) else [*queued, *ending]
    elif queued and proof and (deaths := _deaths(recorded) + 1) >= MAX_DEATHS:
        message = f"{deaths} workers in a row died on it without a step forward, the last one so: {proof}"
        events.append(new_event("run.failed", {"error": {"type": "worker-died", "message": message}}))
    else:
        events += queued
        if run.waiting == "paused":
            events.append(new_event("run.paused", {}))
    done = ledger.record(tx, run_id, "service", events)
    _wait_for(tx, run, [] if proof else started)
    return done


def died(tx: Tx, run_id: str, fence: int, proof: str) -> bool:
    """Take the word that a worker is dead: its run goes on elsewhere at once; False where it was taken from it before.

    Then the proof is recorded for the calls that it left open: a person, and the tool's probe, may rely on it, and nothing
    waits any more for what the dead worker might still have been doing.
    """
    run = ledger.held(tx, run_id)
    if run.fence == fence and run.lease_until is not None:
        requeue(tx, run_id, fence, "the worker died", proof)
        return True
    if run.status not in ENDED:
        unproven = [
            c for c in latest.of(tx.connection, run).open_calls if c.state in ("started", "doubted") and not c.proof
        ]
        if names := [call.call for call in unproven if call.fence == fence]:
            body = {"fence": fence, "proof": proof, "calls": names}
            ledger.record(tx, run_id, "service", [new_event("worker.died", body)])
            _wait_for(tx, run, [call for call in unproven if call.fence != fence])
    return False


def _wait_for(tx: Tx, run: Run, calls: Sequence[Call]) -> None:
    """Let a run wait until silent workers cannot be making its `idempotent` calls any more: their timeouts."""
    started = [call for call in calls if call.state == "started" and call.effect == "idempotent"]
    until = max(map(_timeout_at, started), default=None)
    tx.execute(runs.update().where(runs.c.run_no == run.run_no).values(not_before=until))


def _deaths(events: Sequence[Event]) -> int:
    """Return how many workers have died on a run, proven, since it last got a step forward. Pure."""
    died = 0
    for event in reversed(events):
        if event.kind not in _STANDING:
            break
        died += event.kind == "run.requeued" and bool(event.data().get("proof"))
    return died


def go_on(tx: Tx, run_id: str, by: str, events: Sequence[NewEvent], reason: str) -> ledger.Appended:
    """Record what a person decided (or an outcome that came late) about a run, and what follows from it.

    Where nothing is left to wait for, a run that nobody holds queues again (`reason` says why), or ends where it was
    asked to; a paused one stays paused. Raises Conflict: it has ended.
    """
    run = ledger.held(tx, run_id)
    fold = latest.of(tx.connection, run)
    for number, event in enumerate(events, run.seq + 1):
        fold.apply(Event(run=run_id, seq=number, kind=event.kind, at="", by=by, call=event.call, body=event.body))
    return ledger.record(tx, run_id, by, [*events, *_follows(fold, reason)])


def overdue(tx: Tx, inbox_id: str) -> None:
    """Do with an approval or a question what its time has come for: it expires and the model is told, or more people are shown it.

    Nothing where it was decided meanwhile.
    """
    item = inbox.show(tx.connection, inbox_id)
    if item["decided_at"] is not None or item["due_at"] is None or item["due_at"] > timestamp(tx.now):
        return
    if item["kind"] == "question":
        waited = f"nobody answered within {item['detail']['expires']:g} s"
        event = new_event("question.expired", {"reason": waited}, item["call"])
        go_on(tx, item["run_id"], "service", [event], "the question expired")
    elif item["due_at"] == item["expires_at"]:
        waited = f"nobody approved it within {item['detail']['approval_expires']:g} s"
        event = new_event("approval.expired", {"reason": waited}, item["call"])
        go_on(tx, item["run_id"], "service", [event], "the approval expired")
    else:
        body = {"to": item["escalate_to"], "after": item["detail"]["escalate_after"]}
        ledger.record(tx, item["run_id"], "service", [new_event("approval.escalated", body, item["call"])])


def fire(tx: Tx, run_id: str, call: str) -> None:
    """Tell a run that the time has come that one of its calls rests for. Harmless where it has ended, or is told already."""
    effects.clear(tx, run_id, call)
    run = ledger.held(tx, run_id)
    if run.status not in ENDED:
        go_on(tx, run_id, "service", [new_event("timer.fired", {}, call)], "the time has come")


def _follows(fold: Fold, reason: str) -> list[NewEvent]:
    """Return what comes of a run in this state that was waiting for a person. Pure."""
    if fold.ended or fold.held:
        return []
    open_for = fold.open_for
    if fold.cancel:
        return [] if open_for == "in_doubt" else _ending(fold, fold.cancel, reason, None)
    if fold.interrupted and fold.status == "waiting":  # a queued one is taken up, and put aside by its worker at once
        return [] if open_for == "in_doubt" else _ending(fold, fold.interrupted, reason, None)
    if fold.waiting not in (None, "approval", "in_doubt", "question", "timer", "child") or open_for == fold.waiting:
        return []
    if open_for:
        return [new_event("run.parked", {"reason": open_for})]
    return [new_event("run.requeued", {"reason": reason, "proof": None})]


def cancel(tx: Tx, run_id: str, by: str, reason: str) -> ledger.Appended | None:
    """Ask a run to stop. One that nobody works on, with no call in doubt, ends at once. Asking twice is harmless.

    Raises Conflict: it has ended otherwise.
    """
    run = ledger.held(tx, run_id)
    if run.status == "cancelled":
        return None
    if run.cancel and run.status not in ENDED:  # asked before: it ends now where nothing holds it any more
        return go_on(tx, run_id, by, [], reason)
    if run.status in ENDED:
        raise Conflict(f"run {run_id} has already {run.status}")
    return go_on(tx, run_id, by, [new_event("run.cancel_requested", {"reason": reason})], reason)


def interrupt(tx: Tx, run_id: str, task_id: str) -> None:
    """Let a thread's run end at its next step boundary, because a later message came; what it has done stays in the thread.

    One that waits ends at once, but for a call in doubt.
    """
    tx.execute(runs.update().where(runs.c.run_id == run_id).values(interrupted=True))
    event = new_event("run.interrupted", {"reason": f"interrupted by {task_id}", "task": task_id})
    go_on(tx, run_id, "service", [event], "interrupted")


def assign(tx: Tx, run_id: str) -> None:
    """Say that the run's agent is being made ready for it."""
    run = ledger.held(tx, run_id)
    if run.status == "queued":
        tx.execute(
            runs.update().where(runs.c.run_no == run.run_no, runs.c.status == "queued").values(status="assigned")
        )
        tx.execute(
            tasks.update().where(tasks.c.task_id == run.task_id, tasks.c.status == "queued").values(status="assigned")
        )
        tx.advance(replace(run, status="assigned"))


def _with_probe(tx: Tx, run: Run) -> frozenset[str]:
    definition = definitions.get(tx.connection, run.definition_hash)
    return frozenset(tool.name for tool in definition.tools if tool.probe)


def not_probed(tx: Tx, run_id: str, why: str) -> list[NewEvent]:
    """Return the doubts about the calls of a run that wait for a probe which nobody can ask."""
    calls = latest.of(tx.connection, ledger.held(tx, run_id)).open_calls
    lost = [call for call in calls if call.state == "started" and call.effect == "once"]
    return [doubt(call, f"nobody can ask the tool's probe: {why}", call.proof) for call in lost]


def doubt(call: Call, reason: str, proof: str | None) -> NewEvent:
    """Say that nobody knows whether a call took effect."""
    body = {
        "reason": reason,
        "proof": proof,
        "tool": call.tool,
        "effect": call.effect,
        "key": call.key,
        "arguments": call.arguments,
    }
    return new_event("tool.doubted", body, call.call)


def _ending(fold: Fold, wish: str, reason: str, proof: str | None) -> list[NewEvent]:
    """Return how a run that was asked to stop ends: calls that may have taken effect are in doubt first. Pure."""
    doubts, undone, open_still = [], [], False
    for call in fold.open_calls:
        if call.state == "started" and call.effect != "read":
            doubts.append(doubt(call, reason, proof))
        elif call.state == "doubted":
            open_still = True
        else:
            error = {"type": "cancelled", "message": f"the run was cancelled: {wish}"}
            undone.append(new_event("tool.failed", {"error": error}, call.call))
    ended = [] if doubts or open_still else [new_event("run.cancelled", {"reason": wish})]
    return [*undone, *doubts, *ended]


def _timeout_at(call: Call) -> float:
    return datetime.fromisoformat(call.started_at.replace("Z", "+00:00")).timestamp() + call.timeout

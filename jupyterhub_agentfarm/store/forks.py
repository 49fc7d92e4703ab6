"""Forks: a new run that begins with the messages of another one up to a step. The old one stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from agentfarm_sdk.fold import Fold, as_text
from agentfarm_sdk.protocol import NewEvent, new_event

from ..errors import Conflict, Invalid
from . import ledger


@dataclass(frozen=True)
class Origin:
    """Where a fork begins: behind event `seq` of a run, whose hash is `head`, before its reply number `step` (from 0)."""

    run_id: str
    seq: int
    head: str
    step: int


@dataclass(frozen=True)
class Effect:
    """A call that did something in the world, or may have. `arguments`: JSON text."""

    call: str
    tool: str
    arguments: str
    effect: str
    state: str
    key: str


def origin(connection: Connection, run_id: str, step: int, *, again: bool) -> Origin:
    """Return where a fork before reply number `step` begins; `again`: step 0 without the old input, as a new one follows.

    Raises NotFound; Invalid: there is no such step. Conflict: a call of the step before has no outcome.
    """
    events = ledger.read_events(connection, run_id)
    fold, asked, last, first = Fold(history=lambda _run, _seq: []), 0, 0, 0
    for event in events:
        if event.kind in ("model.replied", "model.reported") and fold.steps == step:
            break
        fold.apply(event)
        first = fold.steps if event.kind == "run.forked" else first
        if event.kind == "message.added" and event.data().get("role") == "user":
            asked = event.seq
        last = event.seq
    if not first <= step <= fold.steps:
        before = "; for an earlier one fork the run that it was forked from" if first else ""
        raise Invalid(
            f"run {run_id} has {fold.steps} steps", hint=f"fork at a step from {first} to {fold.steps}{before}"
        )
    if fold.open_calls:
        raise Conflict(
            f"call {fold.open_calls[0].call} of the step before has no outcome",
            hint=f"fork at an earlier step: {step - 1}",
        )
    if step == first == 0 and again and asked:
        last = asked - 1
    return Origin(run_id, last, events[last - 1].hash if last else "", step)


def opening(found: Origin, prompt: str | None, given: Any) -> list[NewEvent]:
    """Return the events that a fork begins with. `prompt` (rendered) stands in place of the old one, `given` is asked next."""
    body = {"run": found.run_id, "seq": found.seq, "head": found.head, "step": found.step, "prompt": prompt}
    said = [] if given is None else [new_event("message.added", {"role": "user", "content": as_text(given)})]
    return [new_event("run.forked", body), *said]


def begins(connection: Connection, run_id: str | None) -> tuple[NewEvent, ...]:
    """Return the events that a forked run began with; () for any other run."""
    first = ledger.read_events(connection, run_id, limit=3) if run_id else []
    kinds = [event.kind for event in first]
    if "run.forked" not in kinds:
        return ()
    return tuple(NewEvent(kind=e.kind, body=e.body) for e in first if e.kind in ("run.forked", "message.added"))


def effects(connection: Connection, run_id: str) -> list[Effect]:
    """Return what a run did, or may have done, that a second run would do again."""
    fold = Fold(history=lambda _run, _seq: []).apply_all(ledger.read_events(connection, run_id))
    return [
        Effect(one.call, one.tool, one.arguments, one.effect, one.state, one.key)
        for one in fold.calls.values()
        if one.effect == "once" and one.attempts and one.state in ("started", "succeeded", "doubted")
    ]

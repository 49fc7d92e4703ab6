"""What a worker may say of its run at a moment: its events checked against the fold, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agentfarm_sdk import effects
from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import WORKER_KINDS, NewEvent

from ..errors import Conflict, Forbidden, Invalid
from ..store import leases
from . import admission
from .asking import AskedCall

OUTCOMES = frozenset({"tool.succeeded", "tool.failed"})


def check(fold: Fold, fence: int, events: Iterable[NewEvent], now: float) -> None:
    """Refuse what this worker cannot say now; what stands earlier in the same append counts."""
    unanswered: dict[str, str] = {call.call: call.state for call in fold.open_calls}
    lost = {call.call for call in fold.open_calls if call.state == "started" and call.fence != fence}
    reported = False
    for event in events:
        if event.kind not in WORKER_KINDS:
            raise Forbidden(
                f"a worker may not write {event.kind}", hint="workers write: " + ", ".join(sorted(WORKER_KINDS))
            )
        if event.kind == "tool.probed":
            _check_probed(fold, event, lost)
        if event.kind in OUTCOMES and (unanswered.pop(event.call or "", None) != "started" or event.call in lost):
            raise Conflict(
                f"call {event.call} is not under way", hint="only an admitted call without outcome can get one"
            )
        if event.kind in effects.RESTS:
            if unanswered.get(event.call or "") != "started":
                raise Conflict(f"call {event.call} is not under way", hint="only an admitted call can rest")
            unanswered[event.call or ""] = "resting"
        effects.check(event, now)
        if event.kind == "context.compacted":
            if unanswered:
                raise Conflict("a call has no outcome yet", hint="shorten the conversation when it has one")
            if not isinstance(msgspec.json.decode(event.body).get("summary"), str):
                raise Invalid("context.compacted needs a summary", hint="text that stands for the older messages")
        if event.kind in ("run.succeeded", "model.reported") and unanswered:
            raise Conflict("a call has no outcome yet", hint="append the outcomes first")
        if event.kind == "model.reported":
            if reported:
                raise Conflict("an append holds one reply", hint="append the next one when this one is admitted")
            reported = True
            unanswered |= dict.fromkeys(_check_reported(fold, event), "asked")


def _check_probed(fold: Fold, event: NewEvent, lost: set[str]) -> None:
    call = fold.calls.get(event.call or "")
    if call is None or (call.open and (call.call not in lost or call.effect != "once")):
        raise Conflict(f"call {event.call} is none to ask a probe of", hint="those that `open` hands out as `probe`")
    if msgspec.json.decode(event.body).get("answer") not in ("happened", "not_happened", "unknown"):
        raise Invalid("tool.probed needs an answer", hint="happened (with its result), not_happened or unknown")


def left_in_doubt(fold: Fold, events: Iterable[NewEvent]) -> list[NewEvent]:
    """Return the doubts that stay where a probe could not end them; the run then waits for a person."""
    doubts: list[NewEvent] = []
    for event in events:
        if event.kind != "tool.probed" or (call := fold.calls[event.call or ""]).state != "started":
            continue
        said = msgspec.json.decode(event.body)
        why = said.get("reason") or "it does not know"
        if said["answer"] == "not_happened":
            why = "it has not happened, but the worker is only silent and may still be doing it"
        doubts.append(leases.doubt(call, f"the tool's probe was asked: {why}", call.proof))
    return doubts


def _check_reported(fold: Fold, event: NewEvent) -> list[str]:
    """Return the ids of a reported reply's calls. Raises Invalid."""
    said = msgspec.json.decode(event.body).get("message")
    try:
        asked = [
            AskedCall(c["function"]["name"], c["function"]["arguments"], c["id"])
            for c in (said.get("tool_calls") or [])
        ]
        if said["role"] != "assistant" or not isinstance(said.get("content") or "", str):
            raise KeyError
        wanted = admission.message(fold.steps, said.get("content") or "", asked)
    except (TypeError, KeyError, AttributeError):
        raise Invalid("model.reported needs a message of the assistant in OpenAI's form") from None
    if [c["id"] for c in wanted.get("tool_calls", [])] != [c.id for c in asked]:
        raise Invalid("the calls of a reported reply need our ids", hint=f"c{fold.steps}-0, c{fold.steps}-1, …")
    return [c.id for c in asked]

"""Recorded replies to today's code: what was recorded stays, what is pure is done again, what differs is said.

Tools that only read are called again, with the values that they got then (`ctx.now`, `ctx.random`, `ctx.uuid`); effects never
are: their recorded outcome stands. The model is not asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .errors import Divergence
from .fold import Call, Fold
from .protocol import Event, ToolSpec

Again = Callable[[Call, Sequence[Mapping[str, Any]]], Awaitable[Any]]


@dataclass(frozen=True)
class Replayed:
    """What a replay found equal: the model's replies, calls done again, and outcomes that were taken as recorded."""

    steps: int
    again: int
    kept: int
    result: Any = None


async def replay(events: Sequence[Event], prompt: str, tools: Mapping[str, ToolSpec], again: Again) -> Replayed:
    """Hold the events against today's prompt (rendered) and tools; `again(call, values)` calls a tool.

    Raises:
        Divergence: with what was recorded and what is now, in `recorded` and `today`.
    """
    fold, repeated, kept = Fold(), 0, 0
    system = next(
        (e.data().get("content") for e in events if e.kind == "message.added" and e.data().get("role") == "system"), ""
    )
    if system != prompt:
        raise _differs("the prompt is another one", system, prompt)
    for event in events:
        fold.apply(event)
        call = fold.calls.get(event.call or "")
        if event.kind in ("model.replied", "model.reported"):
            for asked in (event.data().get("message") or {}).get("tool_calls") or []:
                if (name := asked["function"]["name"]) not in tools and _was_made(events, asked["id"]):
                    raise _differs(f"the tool {name} is gone", name, sorted(tools))
        elif event.kind == "tool.succeeded" and call is not None:
            if tools[call.tool].effect != "read":
                kept += 1
                continue
            then, now = event.data().get("result"), await again(call, event.data().get("values") or [])
            if not _same(then, now):
                raise _differs(f"call {call.call} of {call.tool} gives another result", then, now)
            repeated += 1
    return Replayed(fold.steps, repeated, kept, fold.result)


def _same(then: Any, now: Any) -> bool:
    if isinstance(then, dict) and "$blob" in then:
        return bool(hashlib.sha256(msgspec.json.encode(now)).hexdigest() == then["$blob"])
    return bool(then == now)


def _was_made(events: Sequence[Event], call: str) -> bool:
    return any(event.kind == "tool.started" and event.call == call for event in events)


def _differs(what: str, recorded: Any, today: Any) -> Divergence:
    sides = (msgspec.json.encode(recorded).decode()[:300], msgspec.json.encode(today).decode()[:300])
    return Divergence(f"{what}: recorded {sides[0]}, today {sides[1]}", recorded=recorded, today=today)

"""Recorded replies to today's code: what was recorded stays, what is pure is done again, what differs is said.

Tools that only read are called again, with the values that they got then (`ctx.now`, `ctx.random`, `ctx.uuid`); effects never
are: their recorded outcome stands. The model is not asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from . import schemas
from .errors import Divergence, Invalid
from .farm import Farm
from .fold import Call, Fold
from .protocol import Definition, Event, ToolSpec
from .tools.context import Context
from .tools.registry import builtin

Again = Callable[[Call, Sequence[Mapping[str, Any]]], Awaitable[Any]]
Told = Callable[[str, Literal["same", "kept"]], None]  # what a call came to
KEPT = object()  # what `again` returns for a call that cannot be made here
COMPUTES = frozenset({"calculator"})  # built-in tools that need nothing but their arguments


@dataclass(frozen=True)
class Replayed:
    """What a replay found equal: the model's replies, calls done again, and outcomes that were taken as recorded."""

    steps: int
    again: int
    kept: int
    result: Any = None


async def replay(
    events: Sequence[Event], prompt: str, tools: Mapping[str, ToolSpec], again: Again, told: Told = lambda call, what: None
) -> Replayed:  # fmt: skip
    """Hold the events against today's prompt (rendered) and tools; `again(call, values)` calls a tool.

    `told(call, what)` hears of each outcome: the same today, or kept as it is on record.

    Raises:
        Divergence: with what was recorded and what is now, in `recorded` and `today`; `seq`: of the event that differs.
        Invalid: bodies of it were erased.
    """
    for event in events:
        if event.erased and event.kind in ("message.added", "model.replied", "model.reported", "tool.succeeded"):
            raise Invalid(f"event {event.seq} ({event.kind}) was erased: it cannot be held against anything")
    fold, repeated, kept = Fold(), 0, 0
    system = prompt_of(events)
    if system is not None and system != prompt:
        raise _differs("the prompt is another one", system, prompt, 1)
    for event in events:
        fold.apply(event)
        call = fold.calls.get(event.call or "")
        if event.kind in ("model.replied", "model.reported"):
            for asked in (event.data().get("message") or {}).get("tool_calls") or []:
                if (name := asked["function"]["name"]) not in tools and _was_made(events, asked["id"]):
                    raise _differs(f"the tool {name} is gone", name, sorted(tools), event.seq)
        elif event.kind == "tool.succeeded" and call is not None:
            spec = tools[call.tool]
            if flaw := schemas.check(spec.schema or {})(msgspec.json.decode(call.arguments or "{}")):
                raise _differs(f"call {call.call} of {call.tool}: {flaw}", call.arguments, spec.schema, event.seq)
            then, now = event.data().get("result"), KEPT
            if spec.effect == "read" and "simulated" not in event.data():
                now = await again(call, event.data().get("values") or [])
            if now is KEPT:
                kept += 1
                told(call.call, "kept")
                continue
            if not _same(then, now):
                raise _differs(f"call {call.call} of {call.tool} gives another result", then, now, event.seq)
            repeated += 1
            told(call.call, "same")
    return Replayed(fold.steps, repeated, kept, fold.result)


async def replay_run(farm: Farm, run_id: str, version: int | str | None = None) -> Replayed:
    """Hold a run of the farm against a version of its agent ("draft", a number; None: the published one).

    Raises:
        Divergence: the first thing that differs. NotFound: no such run or version.
    """
    run = farm.request("GET", f"/runs/{run_id}")
    agent = farm.agent(run["agent"])
    raw = agent["draft"]
    if version != "draft":
        number = agent["published"] if version is None else version
        raw = farm.request("GET", f"/agents/{run['agent']}/versions/{number}")["definition"]
    definition = msgspec.convert(raw, Definition)
    events = list(farm.events(run_id))
    prompt = (prompt_of(events) or "") if "{{" in definition.prompt else definition.prompt

    async def again(call: Call, values: Sequence[Mapping[str, Any]]) -> Any:
        spec = definition.tool(call.tool)
        if spec is None or spec.source != "builtin" or spec.name not in COMPUTES:
            return KEPT
        ctx = Context(run=run_id, call=call.call, key=call.key, recorded=values)
        return await builtin(spec.name).invoke(ctx, msgspec.json.decode(call.arguments or "{}"))

    return await replay(events, prompt, {spec.name: spec for spec in definition.tools}, again)


def prompt_of(events: Sequence[Event]) -> str | None:
    """Return the prompt that a run was begun with; None where it went on with the messages of another run."""
    for event in events:
        if event.kind == "thread.continued":
            return None
        if event.kind == "run.forked":
            prompt = event.data().get("prompt")
            return prompt if isinstance(prompt, str) else None
        if event.kind == "message.added" and event.data().get("role") == "system":
            return str(event.data().get("content", ""))
    return ""


def _same(then: Any, now: Any) -> bool:
    if isinstance(then, dict) and "$blob" in then:
        return bool(hashlib.sha256(msgspec.json.encode(now)).hexdigest() == then["$blob"])
    return bool(then == now)


def _was_made(events: Sequence[Event], call: str) -> bool:
    return any(event.kind == "tool.started" and event.call == call for event in events)


def _differs(what: str, recorded: Any, today: Any, seq: int) -> Divergence:
    sides = (msgspec.json.encode(recorded).decode()[:300], msgspec.json.encode(today).decode()[:300])
    return Divergence(f"{what}: recorded {sides[0]}, today {sides[1]}", recorded=recorded, today=today, seq=seq)

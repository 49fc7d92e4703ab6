"""Which of a reply's calls may start. Pure: no I/O, no clock; the same reply gets the same verdicts.

(In mode `simulate` by the count that `Answers` keeps: the second call of a kind gets the second recorded answer.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from agentfarm_sdk import conditions
from agentfarm_sdk.protocol import AdmittedCall, Definition, NewEvent, ToolSpec, call_id, call_key, canonical, new_event
from agentfarm_sdk.schemas import Check, check

from .asking import AskedCall

if TYPE_CHECKING:
    from .simulation import Answers

SIMULATED = "this run is simulated: nothing is really done"


@dataclass(frozen=True)
class Verdict:
    """What becomes of a call: what the worker is told, and the event that records it."""

    told: AdmittedCall
    event: NewEvent


def validators(definition: Definition) -> dict[str, Check]:
    """Compile the argument schemas of a definition's tools. What they refer to is never fetched from anywhere."""
    return {tool.name: check(tool.schema or {"type": "object"}) for tool in definition.tools}


def message(step: int, content: str, calls: list[AskedCall]) -> dict[str, Any]:
    """Return the assistant's message as it is recorded: OpenAI's form, with our own call ids."""
    said: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        said["tool_calls"] = [
            {
                "id": call_id(step, index),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(calls)
        ]
    return said


def admit(
    definition: Definition, compiled: Mapping[str, Check], said: Mapping[str, Any], *, mode: str, calls_before: int,
    cancelled: bool, epoch: str, run: str, fence: int, answers: Answers | None = None,
) -> list[Verdict]:  # fmt: skip
    """Return a verdict for each call of the message `said`, in call order. `answers`: of a run in mode `simulate`."""
    verdicts = []
    for index, asked in enumerate(said.get("tool_calls") or []):
        call, name, text = asked["id"], asked["function"]["name"], asked["function"]["arguments"]
        spec = definition.tool(name)
        arguments, flaw = parse(text)
        limit = definition.limits.calls
        why = ""
        if cancelled:
            why = "the run was cancelled"
        elif spec is None:
            why = f"there is no tool {name!r}; there are: {', '.join(tool.name for tool in definition.tools) or 'none'}"
        elif limit is not None and calls_before + index >= limit:
            why = f"this run may make {limit} calls and has made them: answer with what you have"
        else:
            why = flaw or disagreement(compiled[name], arguments)
        if why or spec is None:
            verdicts.append(_refused(call, name, arguments, why))
        elif mode == "simulate" and (
            simulated := _simulated(call, spec, arguments, answers, call_key(epoch, run, call))
        ):
            verdicts.append(simulated)
        elif (spec.approval != "never" or mode == "ask") and (asks := conditions.asks(spec, arguments, mode)):
            verdicts.append(_awaiting(call, spec, arguments, call_key(epoch, run, call), asks))
        else:
            verdicts.append(started(call, spec, arguments, epoch=epoch, run=run, fence=fence, attempt=1))
    return verdicts


def started(
    call: str, spec: ToolSpec, arguments: dict[str, Any], *, epoch: str, run: str, fence: int, attempt: int
) -> Verdict:
    """Admit a call: `tool.started` with its key, the same in every attempt."""
    key = call_key(epoch, run, call)
    body = {
        "tool": spec.name,
        "key": key,
        "effect": spec.effect,
        "attempt": attempt,
        "timeout": spec.timeout,
        "fence": fence,
    }
    return Verdict(
        AdmittedCall(call=call, tool=spec.name, arguments=arguments, key=key, attempt=attempt),
        new_event("tool.started", body, call),
    )


def parse(text: Any) -> tuple[dict[str, Any], str]:
    """Read a call's arguments strictly; JSON that was encoded twice is the one thing repaired. Return (arguments, flaw)."""
    value = text
    for _ in range(2):
        if not isinstance(value, str):
            break
        if not value.strip():
            return {}, ""
        try:
            value = msgspec.json.decode(value)  # strict: neither NaN nor half a character, which no event could hold
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return {}, f"the arguments are not JSON: {error}"
    if not isinstance(value, dict):
        return {}, "the arguments must be a JSON object"
    return value, ""


def alike(arguments: Any) -> bytes:
    """Return bytes that are the same for the same arguments, however they are written: in any order, 1 or 1.0."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return canonical(plain(arguments))


def disagreement(validator: Check, arguments: Any) -> str:
    """Say where the arguments stand against the schema; "" where they agree."""
    found = validator(arguments)
    return f"the arguments do not fit: {found}" if found else ""


def _refused(call: str, tool: str, arguments: dict[str, Any], why: str) -> Verdict:
    event = new_event("tool.failed", {"error": {"type": "not-admitted", "message": why}}, call)
    return Verdict(AdmittedCall(call=call, tool=tool, arguments=arguments, state="failed", error=why), event)


def _simulated(
    call: str, spec: ToolSpec, arguments: dict[str, Any], answers: Answers | None, key: str
) -> Verdict | None:
    """Answer a call instead of its tool; None for a read that nothing answers: it is really done."""
    found = answers.take(spec.name, arguments) if answers else None
    told = AdmittedCall(call=call, tool=spec.name, arguments=arguments, key=key, state="answered")
    if found is not None and "error" in found.body:
        error = str(found.body["error"].get("message", "failed"))
        event = new_event("tool.failed", {**found.body, "simulated": found.source}, call)
        return Verdict(msgspec.structs.replace(told, state="failed", error=error), event)
    if found is not None:
        event = new_event("tool.succeeded", {**found.body, "simulated": found.source}, call)
        return Verdict(msgspec.structs.replace(told, result=found.body["result"]), event)
    if spec.effect == "read":
        return None
    if answers is None or answers.given.otherwise == "refuse":
        return _refused(call, spec.name, arguments, f"{SIMULATED}, and there is no answer for this call")
    body = {"tool": spec.name, "effect": spec.effect, "key": key, "arguments": arguments, "why": SIMULATED}
    return Verdict(msgspec.structs.replace(told, state="awaiting"), new_event("simulation.requested", body, call))


def _awaiting(call: str, spec: ToolSpec, arguments: dict[str, Any], key: str, why: str) -> Verdict:
    """Ask a person. What the version says of approving stands in the event: who reads it needs no version."""
    body = {"tool": spec.name, "effect": spec.effect, "key": key, "arguments": arguments, "why": why}
    for name in ("approvers", "approval_expires", "escalate_after", "escalate_to"):
        if value := getattr(spec, name):
            body[name] = value
    told = AdmittedCall(call=call, tool=spec.name, arguments=arguments, state="awaiting", key=key)
    return Verdict(told, new_event("approval.requested", body, call))

"""Runs of mode `simulate`: what answers a call instead of the tool. Pure.

First the stub that the submission gives for the tool; then the recording, an earlier run: what it got for the same tool and
the same arguments, the first time for the first, the second for the second. Where neither has an answer, an effect is
answered by a person (or told that there is none), and a read is really done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentfarm_sdk.fold import CLOSED, Fold
from agentfarm_sdk.protocol import Event, Simulate

from .admission import alike, parse

Key = tuple[str, bytes]  # tool and canonical arguments


@dataclass(frozen=True)
class Answer:
    """`body`: of the outcome, {result} or {error}. `source`: stub or recording."""

    body: dict[str, Any]
    source: str


@dataclass
class Answers:
    """What a run was given to be answered with, and how often each call was asked for already."""

    given: Simulate = field(default_factory=Simulate)
    recorded: Mapping[Key, list[dict[str, Any]]] = field(default_factory=dict)
    asked: Counter[Key] = field(default_factory=Counter)

    def take(self, tool: str, arguments: Mapping[str, Any]) -> Answer | None:
        """Return the answer to the next such call, or None where there is none."""
        key = key_of(tool, arguments)
        nth = self.asked[key]
        self.asked[key] += 1
        if tool in self.given.stubs:
            return Answer({"result": self.given.stubs[tool]}, "stub")
        known = self.recorded.get(key, ())
        return Answer(known[nth], "recording") if nth < len(known) else None


def key_of(tool: str, arguments: Mapping[str, Any]) -> Key:
    return tool, alike(dict(arguments))


def asked_for(fold: Fold) -> Counter[Key]:
    """Count the calls that a run has asked for."""
    return Counter(key_of(call.tool, parse(call.arguments)[0]) for call in fold.calls.values())


def recorded(events: Iterable[Event], fold: Fold) -> dict[Key, list[dict[str, Any]]]:
    """Return what the calls of an earlier run got, in the order in which it asked for them.

    Calls that the farm or a person refused were never made: they have no answer.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    for event in events:
        call = fold.calls.get(event.call or "")
        if call is not None and call.state in CLOSED and (outcome := _outcome(event)):
            outcomes.setdefault(call.call, outcome)
    found: dict[Key, list[dict[str, Any]]] = {}
    for call in fold.calls.values():
        if call.call in outcomes:
            found.setdefault(key_of(call.tool, parse(call.arguments)[0]), []).append(outcomes[call.call])
    return found


def _outcome(event: Event) -> dict[str, Any] | None:
    body = event.data()
    error = body.get("error")
    if event.kind in ("tool.failed", "simulation.answered") and isinstance(error, dict):
        return None if error.get("type") in ("not-admitted", "cancelled") else {"error": error}
    known = event.kind in ("tool.probed", "tool.resolved") and "happened" in (body.get("answer"), body.get("decision"))
    return {"result": body.get("result")} if known or event.kind in ("tool.succeeded", "simulation.answered") else None

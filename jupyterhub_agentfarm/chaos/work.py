"""What the agents of a trial are given to do, and which work brings which kind of event. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

Call = dict[str, Any]
REACHING = ("look", "store", "charge", "pay")  # tools whose calls reach the world

# The work that surely brings an event of that kind into the ledger.
BRINGS = {
    "run.created": "effects", "message.added": "effects", "run.leased": "effects", "model.requested": "effects",
    "model.replied": "effects", "tool.started": "effects", "tool.succeeded": "effects", "run.succeeded": "effects",
    "tool.failed": "failing", "approval.requested": "approval", "run.parked": "approval", "approval.given": "approval",
    "run.requeued": "approval", "approval.refused": "refused", "child.submitted": "child", "child.finished": "child",
    "timer.set": "rest", "timer.fired": "rest", "question.asked": "rest", "question.answered": "rest",
    "memory.remembered": "memory", "run.paused": "pause", "run.resumed": "pause", "run.cancel_requested": "cancel",
    "run.cancelled": "cancel", "model.failed": "doomed", "run.failed": "doomed", "tool.doubted": "doubt", "tool.resolved": "doubt",
}  # fmt: skip
SORTS = ("effects", "effects", "approval", "child", "rest", "memory", "pause", "cancel", "refused", "failing")


@dataclass(frozen=True)
class Work:
    """A task to be given. `sort` says also what a person does to it: pause, cancel; "doubt": its kernel is killed."""

    sort: str
    input: str


def make(random: Random, sort: str, name: str, world: str, other: str) -> Work:
    """Make work of that sort. `name` begins the names at the `world` (its URL), `other` is who can be delegated to."""
    asked: dict[str, Any] = {"trial": name, "steps": _Steps(random, name, world, other).of(sort)}
    if sort == "doomed":
        asked["refuse"] = True
    return Work(sort, json.dumps(asked))


class _Steps:
    def __init__(self, random: Random, name: str, world: str, other: str) -> None:
        self.random, self.name, self.world, self.other, self.made = random, name, world, other, 0

    def of(self, sort: str) -> list[list[Call]]:
        chosen: dict[str, list[list[Call]]] = {
            "approval": [[self.reach("pay")], self.side_by_side("look", "pay", "charge")],
            "refused": [[self.reach("pay", say="refuse")], [self.reach("charge")]],
            "child": [[self.child(), self.reach("store")], [self.reach("charge")]],
            "rest": [
                [_call("wait_until", seconds=0.3)],
                [_call("ask_person", question="Go on?")],
                [self.reach("charge")],
            ],
            "memory": [[_call("remember", key=self.name, value=1), self.reach("charge")]],
            "pause": [[self.reach("charge", delay=0.5)], [self.reach("store", delay=0.5)], [self.reach("charge")]],
            "cancel": [self.side_by_side("charge", "store", delay=1.5), [self.reach("charge", delay=1.5)]],
            "doubt": [[self.reach("charge", delay=5.0), self.reach("look")], [self.reach("store")]],
            "failing": [[_call("look", where="http://127.0.0.1:9/nobody")], [self.reach("charge")]],
            "doomed": [[self.reach("look")]],
        }
        return chosen[sort] if sort in chosen else self.effects()

    def effects(self) -> list[list[Call]]:
        ways = (("charge",), ("store", "charge"), ("look", "store", "charge"))
        return [self.side_by_side(*self.random.choice(ways)) for _ in range(self.random.randint(1, 3))]

    def side_by_side(self, *tools: str, delay: float | None = None) -> list[Call]:
        return [self.reach(tool, delay) for tool in tools]

    def reach(self, tool: str, delay: float | None = None, say: str = "approve") -> Call:
        self.made += 1
        waits = self.random.choice([0.0, 0.1, 0.5, 1.5]) if delay is None else delay
        return _call(tool, where=f"{self.world}/effect/{tool}-{self.name}-{self.made}?delay={waits}&say={say}")

    def child(self) -> Call:
        steps = _Steps(self.random, f"{self.name}-child", self.world, self.other).effects()
        return _call("delegate", target=self.other, input=json.dumps({"trial": self.name, "steps": steps}))


def _call(tool: str, **arguments: Any) -> Call:
    return {"tool": tool, "arguments": arguments}


def names(given: str) -> list[str]:
    """Return the names under which the calls of an input reach the world; not those of its children."""
    calls = [call for step in json.loads(given)["steps"] for call in step if call["tool"] in REACHING]
    return [urlsplit(call["arguments"]["where"]).path.rpartition("/")[2] for call in calls]


def wish(item: Mapping[str, Any], happened: bool) -> dict[str, Any]:
    """Return what a person decides of an item of the inbox. `happened`: whether the world has seen the call."""
    if item["kind"] == "question":
        return {"decision": "answer", "result": "yes", "reason": "a trial"}
    if item["kind"] == "approval":
        refused = "say=refuse" in json.dumps(item["detail"])
        return {"decision": "refuse" if refused else "approve", "reason": "a trial"}
    if happened:
        return {"decision": "happened", "result": "it did", "reason": "the world says so"}
    if item["detail"].get("proof"):
        return {"decision": "not_happened", "reason": "the world has nothing, and the worker is dead"}
    return {"decision": "give_up", "reason": "the world has nothing yet, and the worker may live"}

"""The walk through faults of a fleet: each strikes at a moment that is aimed at, stands, is healed, and is judged by itself.

By the record and by what reached the outside world, as `agentfarm chaos` does; by what an operator is shown, and by what goes on elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx
from faultkit import GIVE_SECONDS, Rig, Work
from wirekit import Wires

from agentfarm_sdk.protocol import ENDED
from jupyterhub_agentfarm.chaos import checks, work
from jupyterhub_agentfarm.chaos.judge import Judge

TRUE_SECONDS = 30.0  # within which an operator sees what is
# Times as long as in calm, and so many seconds besides: so long may the tasks of others take on one machine.
SLOWER = 3.0
GIVEN_UP = frozenset({"given-up"})  # what a run of ours may fail of: we have said so


class NotHeld(Exception):
    """Something did not come true in its time."""


@dataclass(frozen=True)
class Fault:
    """What is done. strike: does it, and returns what heals it. hosts: whose servers it concerns.

    seen: what an operator must be shown of these while it stands. leases: for how many it stands, at least; seconds: besides.
    """

    name: str
    strike: Callable[[Rig], Callable[[], None]]
    hosts: tuple[int, ...] = ()
    seen: Callable[[dict[str, Any]], bool] | None = None
    leases: float = 0.0
    seconds: float = 0.0
    works: bool = False  # agents there go on while it stands
    ends: bool = False  # servers there
    waits: bool = False  # runs there are taken from their workers while it stands, and wait for their microserver
    brief: bool = False  # it is over before a lease is: no run is taken from its worker


@dataclass
class Line:
    """What came of a fault. tasks: in flight when it struck. once: effects of that kind that it let happen, each counted by the world.

    seen, back: after how many seconds an operator saw it, and saw that it was over. took, calm: median seconds of a task of others
    while it stood, and in calm.
    """

    fault: str
    tasks: int = 0
    runs: int = 0
    once: int = 0
    doubts: int = 0
    failed: int = 0  # calls, of a cause that is told to the model
    seen: float | None = None
    back: float | None = None
    took: float | None = None
    calm: float | None = None
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def after(what: str, seconds: float | None) -> str:
            return "" if seconds is None else f"{what} {seconds:.1f} s, "

        judged = f"{self.tasks} in flight, {self.runs} runs and {self.once} once effects judged, {self.doubts} in doubt, {self.failed} calls failed, "
        times = (
            after("seen after", self.seen)
            + after("over after", self.back)
            + after("others' tasks", self.took)
            + after("in calm", self.calm)
        )
        held = "held" if not self.broken else "BROKEN: " + "; ".join(self.broken)
        return f"{self.fault:<12} {judged}{times}{self.seconds:.0f} s: {held}"


class Walk:
    """Walks through faults, one after the other, on one farm."""

    def __init__(self, rig: Rig, seed: int = 1) -> None:
        self.rig, self.work, self.wires, self.judge = (
            rig,
            Work(rig, seed),
            Wires(rig.farm, rig.alice, rig.homes),
            Judge(rig),
        )  # type: ignore[arg-type]
        self.judged: set[str] = set()
        self.calm: float | None = None

    def begin(self) -> None:
        """Let each agent do a first task, so that its server is there; listen to a kernel on each microserver."""
        self.until(lambda: len(self.work.ended) == len(self.rig.agents), 180, "each agent has done a task")
        self.work.homes = self.rig.homes()
        assert set(self.work.homes.values()) == {f"micro{host}" for host in self.rig.hosts}, self.work.homes

    def until(self, look: Callable[[], Any], seconds: float, what: str) -> float:
        """Let the work go on until something holds; return after how many seconds. Raises NotHeld."""
        began = time.monotonic()
        while True:
            self.work.pump()
            with contextlib.suppress(httpx.HTTPError):
                if look():
                    return time.monotonic() - began
            if time.monotonic() - began > self.rig.patience * seconds:
                raise NotHeld(f"not within {self.rig.patience * seconds:.0f} s: {what}")
            time.sleep(0.3)

    def walk(self, fault: Fault) -> Line:
        """Aim, strike, look, heal, look, judge."""
        self.wires.mend()
        names = {f"micro{host}" for host in fault.hosts}
        others = [agent for agent in self.rig.agents if self.work.homes[agent] not in names]
        aimed = self._aim(names)
        struck = [one["task_id"] for one in self.work.flying()]
        line, began, pids = Line(fault.name, len(struck), calm=self.calm), time.monotonic(), self.rig.pids()
        heal = fault.strike(self.rig)
        self.work.gate.touch()
        stood = time.monotonic()
        try:
            self._stand(fault, line, others, began)
        except NotHeld as error:
            line.broken.append(f"while it stood: {error}")
        finally:
            self._pace(line, others, stood)
            heal()
        try:
            self._return(line, struck)
        except NotHeld as error:
            line.broken.append(f"behind it: {error}")
        self._servers(line, fault, pids, others)
        self._wires(line, names)
        self._judge(line, struck)
        came = Counter(one["name"] for one in self.rig.requests())
        line.broken += [
            f"the call of {agent} at which it was aimed came {came[call]} times"
            for agent, call in aimed.items()
            if came[call] != 1
        ]
        if fault.brief:
            line.broken += self._taken(aimed)
        if not line.once:
            line.broken.append("no call with effect once reached the world: nothing could be broken")
        line.seconds = time.monotonic() - began
        return line

    def _taken(self, aimed: dict[str, str]) -> list[str]:
        """Return which of the runs with these calls were taken from their workers."""
        mine = [
            one["run_id"] for one in self.work.tasks.values() if set(work.names(one["input"])) & set(aimed.values())
        ]
        leased = {run: sum(event["kind"] == "run.leased" for event in self.judge.events[run]) for run in mine}
        return [f"{run} had {times} workers" for run, times in leased.items() if times > 1]

    def _aim(self, names: set[str]) -> dict[str, str]:
        """Let a call with effect once be under way on each of these microservers (none named: on all), its effect done and nobody told."""
        agents = {micro: agent for agent, micro in sorted(self.work.homes.items()) if micro in names or not names}
        self.work.aim(list(agents.values()))
        self.until(self.work.hit, 60, f"calls of {agents} have reached the world, and every agent is at work")
        self.work.pause = GIVE_SECONDS
        return self.work.aimed

    def _stand(self, fault: Fault, line: Line, others: list[str], began: float) -> None:
        """While it stands: an operator sees it, and the other agents finish what they are given."""
        since, agents = self.work.given, self.rig.agents if fault.works else others
        end = time.monotonic() + fault.leases * self.rig.lease + fault.seconds
        if fault.seen:
            what = f"an operator sees what is with micro{fault.hosts[0]}"
            self.until(lambda: all(fault.seen(self.rig.micro(host)) for host in fault.hosts), TRUE_SECONDS, what)  # type: ignore[misc]
            line.seen = time.monotonic() - began
            self._in_time(line, "seen", line.seen)
        self.until(lambda: time.monotonic() > end, 60, "time passes")
        if fault.waits:
            gone = [agent for agent in self.rig.agents if agent not in others]
            self.until(
                lambda: not self._nameless(gone), 60, "each task that waits there is told to wait for its microserver"
            )
        if fault.hosts and not fault.brief:
            self.until(lambda: not self._behind(agents, since), 60, "the other agents finish their tasks")

    def _in_time(self, line: Line, what: str, seconds: float) -> None:
        if self.rig.strict and seconds > TRUE_SECONDS:
            line.broken.append(f"{what} by an operator after {seconds:.0f} s")

    def _pace(self, line: Line, others: list[str], since: float) -> None:
        """Compare how long the tasks of others took with how long they take in calm."""
        took = self.work.took(others, since, time.monotonic())
        if len(took) < len(others):
            return  # too few to say anything
        line.took = median(took)
        if self.rig.strict and self.calm and line.took > SLOWER * self.calm + SLOWER:
            line.broken.append(f"tasks of others took {line.took:.1f} s, in calm {self.calm:.1f} s")

    def _nameless(self, agents: list[str]) -> list[str]:
        """Return the tasks of these agents that nobody works on, and of which the farm does not say for which microserver they wait."""
        begins = [("queued", None), ("assigned", None), ("waiting", "place")]
        waiting = [
            one for one in self.work.flying() if one["agent"] in agents and (one["status"], one["waiting"]) in begins
        ]
        told = {
            one["task_id"]: self.rig.ask("GET", f"/placements/explain?task={one['task_id']}")["queue"]
            for one in waiting
        }
        return [
            one["task_id"] for one in waiting
            if not any(self.work.homes[one["agent"]] in why or "its run goes on" in why for why in told[one["task_id"]])
        ]  # fmt: skip

    def _behind(self, agents: list[str], since: int) -> list[str]:
        """Return those of the agents that have not finished a task that was given since."""
        return [agent for agent in agents if self.work.ended.get(agent, 0) <= since]

    def _return(self, line: Line, struck: list[str]) -> None:
        """Behind it: all parts answer, every task ends, each agent works again, and what runs is what the Hub knows."""
        try:
            line.back = self.until(self.rig.answers, TRUE_SECONDS, "every part answers, and no microserver is away")
            self._in_time(line, "seen to be over", line.back)
        except NotHeld as error:
            raise NotHeld(f"{error}: {self.rig.missing}") from None
        since = self.work.given
        self.until(lambda: all(self.work.tasks[one]["status"] in ENDED for one in struck), 90, "the tasks have ended")
        behind: list[str] = []

        def all_work() -> bool:
            behind[:] = self._behind(self.rig.agents, since)
            return not behind

        try:
            self.until(all_work, 90, "each agent works again")
        except NotHeld as error:
            raise NotHeld(f"{error}: not {', '.join(behind)}") from None
        found: list[str] = []

        def in_order() -> bool:
            found[:] = self.rig.disorder()
            return not found

        try:
            self.until(in_order, 30, "")
        except NotHeld:
            raise NotHeld("; ".join(found)) from None

    def _servers(self, line: Line, fault: Fault, before: dict[str, int], others: list[str]) -> None:
        """The servers that could live on are those from before; the others are new ones."""
        now = self.rig.pids()
        for agent in self.rig.agents:
            ends = fault.ends and agent not in others
            if (now.get(agent) == before.get(agent)) == ends:
                line.broken.append(f"the server of {agent} was {before.get(agent)}, and is {now.get(agent)}")

    def _wires(self, line: Line, struck: set[str]) -> None:
        """No WebSocket to a kernel elsewhere was cut, and something comes on it."""
        since = time.monotonic()
        for micro in self.wires.agents.keys() - struck:
            try:
                self.until(lambda micro=micro: micro in self.wires.cuts or self.wires.heard[micro] > since, 20, "")  # type: ignore[misc]
            except NotHeld:
                line.broken.append(f"nothing comes on the WebSocket to {micro} any more")
            if micro in self.wires.cuts:
                line.broken.append(f"the WebSocket to a kernel on {micro} was cut: {self.wires.cuts[micro]}")

    def _judge(self, line: Line, struck: list[str]) -> None:
        """Judge what was in flight, and every run that has ended since the fault before."""
        ended = [
            one for one in self.work.tasks.values() if one["status"] in ENDED and one["task_id"] not in self.judged
        ]
        for task_id in struck:
            line.broken += checks.unfinished(self.work.tasks[task_id])
        for task in ended:
            self.judged.add(task["task_id"])
            if task["run_id"]:
                line.runs += 1
                line.broken += self.judge.of_run(task["run_id"], GIVEN_UP)
                kinds = Counter(event["kind"] for event in self.judge.events[task["run_id"]])
                line.doubts += kinds["tool.doubted"]
                line.failed += kinds["tool.failed"]
        line.broken += self.judge.of_world(ended)
        mine = {name for task in ended for name in work.names(task["input"]) if name.startswith(("charge-", "pay-"))}
        line.once = len(mine & {one["name"] for one in self.rig.requests()})

    def end(self) -> Line:
        """Give nothing more; judge what is left, and that nothing else reached the world."""
        line, began = Line("the end"), time.monotonic()
        self.wires.close()
        line.tasks = len(self.work.flying())
        end = time.monotonic() + self.rig.patience * 60
        while self.work.flying() and time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                self.work._look()
                self.work._decide()
            time.sleep(0.3)
        self._judge(line, [one["task_id"] for one in self.work.flying()])
        line.broken += self.judge.of_world(self.work.tasks.values(), self.work.begun)
        line.seconds = time.monotonic() - began
        return line

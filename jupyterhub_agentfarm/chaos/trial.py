"""One trial: tasks are given to a scratch farm without a pause while fault after fault strikes it; then the record is judged.

Everything random comes from the seed; what the machine's own timing adds is the point.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from agentfarm_sdk.protocol import ENDED

from . import checks
from .faults import BY_NAME, Fault
from .scratch import AGENTS, Scratch, until

IN_FLIGHT = 4  # tasks
HEAL_SECONDS = 90.0
REST_SECONDS = 120.0  # at the end, for everything to come to rest
LOOK_SECONDS = 0.2


@dataclass
class Verdict:
    """What came of a trial. `violations` is empty where every promise held."""

    seed: int
    database: str
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    requeued: int = 0
    doubts: int = 0
    effects: int = 0
    violations: list[str] = field(default_factory=list)


@dataclass
class Silence:
    """A run that is running under a lease that nobody renews, since when."""

    lease: Any
    since: float


class Trial:
    """Gives tasks, decides as a person would, strikes, heals, judges. `say` tells what happens."""

    def __init__(self, farm: Scratch, seed: int, faults: Sequence[Fault], say: Callable[[str], None]) -> None:
        self.farm, self.random, self.faults, self.say = farm, Random(seed), list(faults), say
        self.tasks: dict[str, dict[str, Any]] = {}  # by id, as last seen
        self.named: dict[str, str] = {}  # name at the world -> task
        self.verdict = Verdict(seed, "postgresql" if farm.postgres else "sqlite")
        self.silences: dict[str, Silence] = {}
        self.begun = f"{seed}-{int(time.time())}"  # in keys and names: a directory may see several trials
        self.given = 0
        self.struck: Counter[str] = Counter()

    def run(self, duration: float) -> Verdict:
        """Strike for so many seconds, let everything come to rest, judge. Raises TimeoutError: the farm does not heal."""
        plan = self._plan()
        until(lambda: self._pump() and self.farm.requests(), HEAL_SECONDS, "the first call has reached the world")
        began = time.monotonic()
        while time.monotonic() - began < duration or not self.struck:
            self._strike(next(plan))
        self._rest()
        self._judge()
        self.verdict.faults = dict(sorted(self.struck.items()))
        self.verdict.seconds = round(time.monotonic() - began, 1)
        return self.verdict

    def _plan(self) -> Any:
        while True:
            order = list(self.faults)
            self.random.shuffle(order)
            yield from order

    # -- one fault -----------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        """Wait until something is in flight, strike, go on giving tasks, heal, and wait until the farm answers."""
        before = len(self.farm.requests())
        until(lambda: self._pump() and len(self.farm.requests()) > before, HEAL_SECONDS, "a call has reached the world")
        self._pump_for(self.random.uniform(0.0, 0.6))
        self.say(f"{fault.name}: {sum(one['status'] not in ENDED for one in self.tasks.values())} tasks in flight")
        heal = fault.strike(self.farm, self.random)
        self.struck[fault.name] += 1
        self._pump_for(fault.seconds + fault.leases * self.farm.lease)
        heal()
        until(lambda: self.farm.answers() and self._pump(), HEAL_SECONDS, f"the farm answers again after {fault.name}")
        self.silences.clear()  # service was interrupted: periods are counted anew

    def _pump_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._pump()
            time.sleep(LOOK_SECONDS)

    # -- what a person does meanwhile ----------------------------------------------------------------------------

    def _pump(self, give: bool = True) -> bool:
        """Look at every task, decide what waits, give new tasks; False where the farm did not answer."""
        try:
            for task_id, task in list(self.tasks.items()):
                if task["status"] not in ENDED:
                    self.tasks[task_id] = self.farm.ask("GET", f"/tasks/{task_id}")
                    self._watch(self.tasks[task_id])
            self._decide()
            while give and sum(one["status"] not in ENDED for one in self.tasks.values()) < IN_FLIGHT:
                self._give()
        except (httpx.HTTPError, OSError, ValueError):
            self.silences.clear()
            return False
        return True

    def _give(self) -> None:
        """Give a task; its key makes it harmless to ask again when the answer was lost."""
        random = Random(f"{self.begun}/{self.given}")
        steps, names = [], []
        for step in range(random.randint(1, 3)):
            tools = random.choice(
                [["charge"], ["store", "charge"], ["look", "store", "charge"], ["pay"], ["look", "pay", "charge"]]
            )
            calls = []
            for number, tool in enumerate(tools):
                names.append(f"{tool}-{self.begun}-{self.given}-{step}-{number}")
                delay = random.choice([0.0, 0.1, 0.5, 1.5])
                where = f"http://127.0.0.1:{self.farm.world_port}/effect/{names[-1]}?delay={delay}"
                calls.append({"tool": tool, "arguments": {"where": where}})
            steps.append(calls)
        asked = {
            "target": AGENTS[self.given % len(AGENTS)], "input": json.dumps({"steps": steps}),
            "key": f"chaos-{self.begun}-{self.given}",
        }  # fmt: skip
        task = self.farm.ask("POST", "/tasks", asked)
        self.given += 1
        self.tasks[task["task_id"]] = task
        self.named |= dict.fromkeys(names, task["task_id"])

    def _decide(self) -> None:
        """Answer what waits: approve; of a doubt say what the world knows, and give up where the worker is only silent."""
        for item in self.farm.ask("GET", "/inbox?limit=100")["items"]:
            if item["kind"] == "approval":
                wish: dict[str, Any] = {"decision": "approve", "reason": "a trial"}
            elif any(one["key"] == item["detail"].get("key") for one in self.farm.requests()):
                wish = {"decision": "happened", "result": "it did", "reason": "the world says so"}
            elif item["detail"].get("proof"):
                wish = {"decision": "not_happened", "reason": "the world has nothing, and the worker is dead"}
            else:
                wish = {"decision": "give_up", "reason": "the world has nothing yet, and the worker may live"}
            try:
                self.farm.ask("POST", f"/inbox/{item['inbox_id']}", wish)
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in (404, 409, 422):  # decided, or overtaken, meanwhile
                    raise

    def _watch(self, task: dict[str, Any]) -> None:
        """No run stays with a dead worker for longer than two lease periods of uninterrupted service."""
        run_id = task["run_id"]
        if task["status"] not in ("running", "cancelling") or not run_id:
            self.silences.pop(run_id, None)
            return
        run = self.farm.ask("GET", f"/runs/{run_id}")
        lease, now = (run["fence"], run["lease_until"]), time.monotonic()
        known = self.silences.get(run_id)
        if known is None or known.lease != lease:
            self.silences[run_id] = Silence(lease, now)
        elif now - known.since > 2 * self.farm.lease + 3.0:
            self.silences[run_id] = Silence(lease, now)
            self.verdict.violations.append(
                f"{run_id}: is running for {now - known.since:.1f} s with a lease of {self.farm.lease:.0f} s that nobody renews"
            )

    # -- the end -------------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Give nothing new, and wait until every task has ended."""
        self.say("nothing new is given; what is under way ends")

        def resting() -> bool:
            return self._pump(give=False) and all(one["status"] in ENDED for one in self.tasks.values())

        try:
            until(resting, REST_SECONDS, "every task has ended", every=0.3)
        except TimeoutError:
            for task in self.tasks.values():
                self.verdict.violations += checks.unfinished(task)

    def _judge(self) -> None:
        events, verdict = {}, self.verdict
        for task in self.tasks.values():
            run = task["run_id"]
            events[run] = self._events(run)
            verdict.violations += checks.of_record(run, events[run])
            if not (verified := self.farm.asked_until("GET", f"/runs/{run}/verify"))["ok"]:
                verdict.violations.append(f"{run}: event {verified['bad_seq']}: {verified['why']}")
        mine = [one for one in self.farm.requests() if self.begun in one["name"]]
        calls = {name: self.tasks[task]["run_id"] for name, task in self.named.items()}
        verdict.violations += checks.of_world(mine, events, calls)
        kinds = Counter(event["kind"] for told in events.values() for event in told)
        verdict.requeued, verdict.doubts, verdict.effects = kinds["run.requeued"], kinds["tool.doubted"], len(mine)
        verdict.runs = dict(Counter(one["status"] for one in self.tasks.values()))

    def _events(self, run: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["seq"] if found else 0
            page = self.farm.asked_until("GET", f"/runs/{run}/events?limit=500&after={after}")
            found += page["items"]
            if page["next"] is None:
                return found


def chosen(names: str, database: str) -> list[Fault]:
    """Return the faults of these names (separated by commas; empty: all) that the database knows. Raises KeyError."""
    asked = [BY_NAME[name.strip()] for name in names.split(",")] if names else list(BY_NAME.values())
    return [fault for fault in asked if fault.only in ("", database)]

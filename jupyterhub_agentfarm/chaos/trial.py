"""One trial: tasks are given to a scratch farm without a pause while fault after fault strikes it; then the record is judged.

Everything random comes from the seed; what the machine's own timing adds is the point.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from agentfarm_sdk.protocol import CANCEL_GRACE_SECONDS, ENDED, Event

from . import checks, work
from .aim import Aim
from .faults import BY_NAME, Fault, kill
from .judge import Judge
from .scratch import AGENTS, Scratch, until

IN_FLIGHT = 4  # tasks
HEAL_SECONDS = 90.0
REST_SECONDS = 120.0  # at the end, for everything to come to rest
LOOK_SECONDS = 0.2
AIM_SECONDS = 150.0  # for a kind of event to come: where servers die, one must start before
OURS = frozenset({"given-up"})  # what a run of ours may fail of: we have said so
OF_SORT = {"doomed": frozenset({"bad-request"}), "notebook": frozenset({"kernel-gone"})}
OF_FAULT = {"model": frozenset({"model-failed", "unavailable"})}


@dataclass
class Struck:
    """A fault that struck: behind which kind of event ("" = anywhen), and the tasks that were in flight.

    run: whose event it was. seconds: since the one before. broken: what was not held, once `judged`.
    """

    fault: str
    kind: str
    tasks: list[str]
    run: str = ""
    seconds: float = 0.0
    runs: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    judged: bool = False


@dataclass
class Verdict:
    """What came of a trial. `violations` is empty where every promise held."""

    seed: int
    database: str
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    strikes: list[Struck] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
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
    """Gives tasks, decides as a person would, strikes, heals, judges. `say` tells what happens, `judged` what came of a strike."""

    def __init__(
        self, farm: Scratch, seed: int, faults: Sequence[Fault], say: Callable[[str], None],
        judged: Callable[[Struck], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.farm, self.random, self.faults, self.say, self.judged = farm, Random(seed), list(faults), say, judged
        self.judge = Judge(farm)
        self.struck_at = 0.0
        self.tasks: dict[str, dict[str, Any]] = {}  # by id, as last seen
        self.sorts: dict[str, str] = {}  # by id: what a person does to it
        self.verdict = Verdict(seed, "postgresql" if farm.postgres else "sqlite")
        self.silences: dict[str, Silence] = {}
        self.stopping: dict[str, float] = {}  # tasks that were asked to stop, since when
        self.done: set[str] = set()  # tasks to which the person has done what its sort says
        self.begun = f"{seed}-{int(time.time())}"  # in keys and names: a directory may see several trials
        self.given = 0
        self.notebooks = 0

    def run(self, duration: float) -> Verdict:
        """Strike for so many seconds, let everything come to rest, judge. Raises TimeoutError: the farm does not heal."""
        return self._during(self._plan(), duration)

    def walk(self, pairs: Iterable[tuple[Fault, str]]) -> Verdict:
        """Strike with each fault when the ledger has just got an event of that kind. Raises TimeoutError."""
        return self._during(iter(pairs), float("inf"))

    def _during(self, plan: Iterator[tuple[Fault, str]], duration: float) -> Verdict:
        until(lambda: self._pump() and self.farm.requests(), HEAL_SECONDS, "the first call has reached the world")
        began = self.struck_at = time.monotonic()
        for fault, kind in plan:
            self._strike(fault, kind)
            self._settle()
            if time.monotonic() - began >= duration:
                break
        self._rest()
        self._judge()
        self.verdict.faults = dict(sorted(Counter(one.fault for one in self.verdict.strikes).items()))
        self.verdict.seconds = round(time.monotonic() - began, 1)
        return self.verdict

    def _plan(self) -> Iterator[tuple[Fault, str]]:
        """Every fault once before any comes again, each behind another kind of event; the next seed begins one further on."""
        kinds = list(work.BRINGS)
        self.random.shuffle(kinds)
        place = self.verdict.seed
        while True:
            yield self.faults[place % len(self.faults)], kinds[place % len(kinds)]
            place += 1

    # -- one fault -----------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault, kind: str) -> None:
        """Strike when the ledger has just got an event of that kind ("": anywhen), heal, and wait until the farm answers."""
        if fault.name == "notebook" or self.random.random() < 0.3:
            self._give_notebook(wait=fault.name == "notebook")
        heal = self._aimed(fault, kind) if kind else self._anywhen(fault)
        self._pump_for(fault.seconds + fault.leases * self.farm.lease)
        heal()
        self.farm.aim()
        until(self._healed, HEAL_SECONDS, f"the farm answers again after {fault.name}")
        self._forget_times()

    def _healed(self) -> bool:
        if not self.farm.answers():
            self._forget_times()
            return False
        return self._pump()

    def _aimed(self, fault: Fault, kind: str) -> Callable[[], None]:
        def strike(agent: str, event: Event) -> Callable[[], None] | None:
            if agent not in AGENTS and fault.name != "notebook":
                return None  # a notebook drives it: nothing of the farm's but the service has a part in it
            self.farm.aim(agent, event.run)
            return fault.strike(self.farm, self.random)

        def struck() -> bool:
            self._pump()
            return aim.done.is_set()

        aim = Aim(self.farm.database, kind, strike)
        try:
            until(  # it may come of what is under way already
                lambda: aim.done.is_set() or self._pump(sort=work.BRINGS[kind]),
                HEAL_SECONDS,
                f"work for {kind} is given",
            )
            with contextlib.suppress(TimeoutError):
                until(struck, AIM_SECONDS, f"an event {kind} comes", every=0.02)
        finally:
            aim.stop()
        if aim.error:
            raise aim.error
        self._note(fault, kind, aim.event.run if aim.event else "")
        if aim.event is None:
            missed = f"{fault.name} behind {kind}: within {AIM_SECONDS:.0f} s no such event came to strike at"
            self.verdict.strikes[-1].broken.append(missed)
            self.verdict.violations.append(missed)
        return aim.heal

    def _anywhen(self, fault: Fault) -> Callable[[], None]:
        before = len(self.farm.requests())
        until(lambda: self._pump() and len(self.farm.requests()) > before, HEAL_SECONDS, "a call has reached the world")
        self._pump_for(self.random.uniform(0.0, 0.6))
        heal = fault.strike(self.farm, self.random)
        self._note(fault, "")
        return heal

    def _note(self, fault: Fault, kind: str, run: str = "") -> None:
        flying = [task_id for task_id, one in self.tasks.items() if one["status"] not in ENDED]
        since, self.struck_at = self.struck_at, time.monotonic()
        self.say(f"{fault.name}{' behind ' + kind if kind else ''}: {len(flying)} tasks in flight")
        self.verdict.strikes.append(Struck(fault.name, kind, flying, run, round(self.struck_at - since, 1)))

    def _pump_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._pump()
            time.sleep(LOOK_SECONDS)

    def _forget_times(self) -> None:
        """Count periods anew: service was interrupted."""
        self.silences.clear()
        self.stopping = dict.fromkeys(self.stopping, time.monotonic())

    # -- what a person does meanwhile ----------------------------------------------------------------------------

    def _pump(self, give: bool = True, sort: str = "") -> bool:
        """Look at every task, decide what waits, give new tasks (`sort`: one of that sort); False where the farm did not answer."""
        try:
            self._look()
            for task in self._flying():
                self._meddle(task)
                self._watch(task)
            self._decide()
            if sort:
                self._give(sort)
            while give and len(self._flying()) < IN_FLIGHT:
                self._give(self.random.choice(work.SORTS))
        except (httpx.HTTPError, OSError, ValueError):
            self._forget_times()
            return False
        return True

    def _flying(self) -> list[dict[str, Any]]:
        return [one for one in self.tasks.values() if one["status"] not in ENDED]

    def _look(self) -> None:
        """See how every task of this trial stands, with those that agents have delegated."""
        missing, cursor = {one["task_id"] for one in self._flying()}, ""
        while True:
            page = self.farm.ask("GET", f"/tasks?limit=100{cursor}")
            for task in page["items"]:
                if f'"{self.begun}' in str(task["input"]):
                    self.tasks[task["task_id"]] = task
                    missing.discard(task["task_id"])
            if not missing or page["next"] is None:
                return
            cursor = f"&cursor={page['next']}"

    def _give(self, sort: str) -> None:
        """Give a task; its key makes it harmless to ask again when the answer was lost."""
        name = f"{self.begun}-{self.given}"
        target, other = AGENTS[self.given % 2], AGENTS[1 - self.given % 2]
        made = work.make(Random(name), sort, name, f"http://127.0.0.1:{self.farm.world_port}", other)
        task = self.farm.ask("POST", "/tasks", {"target": target, "input": made.input, "key": f"chaos-{name}"})
        self.given += 1
        self.tasks[task["task_id"]], self.sorts[task["task_id"]] = task, sort

    def _give_notebook(self, wait: bool) -> None:
        """Let a notebook's kernel begin a run of its own, where none drives one; `wait` until its calls reach the world."""
        if self.farm.notebook and self.farm.notebook.poll() is None:
            return
        name = f"{self.begun}-n{self.notebooks}"
        self.notebooks += 1
        made = work.make(Random(name), "pause", name, f"http://127.0.0.1:{self.farm.world_port}", AGENTS[0])
        self.farm.drive_notebook(made.input)
        if not wait:
            return
        until(
            lambda: self._pump() is not None and any(name in one["name"] for one in self.farm.requests()),
            HEAL_SECONDS, "a notebook's call has reached the world",
        )  # fmt: skip

    def _meddle(self, task: dict[str, Any]) -> None:
        """Do to a task what its sort says: pause it and let it go on, cancel it, kill its kernel in the middle of a call."""
        task_id, sort = task["task_id"], self.sorts.get(task["task_id"], "")
        if task["waiting"] == "paused":
            self._tell(task_id, "resume")
        if task_id in self.done or task["status"] != "running":
            return
        mine = set(work.names(task["input"]))
        if sort in ("pause", "cancel", "doubt") and any(one["name"] in mine for one in self.farm.requests()):
            self.done.add(task_id)
            if sort == "doubt":
                self._kill_kernels(task["agent"])
                return
            if self._tell(task_id, sort) and sort == "cancel":
                self.stopping[task_id] = time.monotonic()

    def _kill_kernels(self, agent: str) -> None:
        was, self.farm.aimed = self.farm.aimed, agent
        kill(*self.farm.kernels())
        self.farm.aimed = was

    def _tell(self, task_id: str, verb: str) -> bool:
        return self._said(f"/tasks/{task_id}/{verb}", {"reason": "a trial"} if verb != "resume" else {})

    def _said(self, path: str, body: dict[str, Any]) -> bool:
        """Say it; False where it was overtaken: it is decided, or has ended, meanwhile."""
        try:
            self.farm.ask("POST", path, body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (404, 409, 422):
                raise
            return False
        return True

    def _decide(self) -> None:
        """Answer what waits: approve or refuse; of a doubt say what the world knows."""
        for item in self.farm.ask("GET", "/inbox?limit=100")["items"]:
            happened = any(one["key"] == item["detail"].get("key") for one in self.farm.requests())
            self._said(f"/inbox/{item['inbox_id']}", work.wish(item, happened))

    def _watch(self, task: dict[str, Any]) -> None:
        """No run stays with a dead worker for longer than two lease periods of uninterrupted service; none asked to stop goes on."""
        run_id, task_id, now = task["run_id"], task["task_id"], time.monotonic()
        longest = CANCEL_GRACE_SECONDS + 2 * self.farm.lease + 5.0
        if task_id in self.stopping and task["waiting"] == "in_doubt":
            self.stopping[task_id] = now  # a person's word is waited for
        elif task_id in self.stopping and now - self.stopping[task_id] > longest:
            self.stopping.pop(task_id)
            self.verdict.violations.append(f"{run_id}: was cancelled and is {task['status']} after {longest:.0f} s")
        if task["status"] not in ("running", "cancelling") or not run_id:
            self.silences.pop(run_id, None)
            return
        run = self.farm.ask("GET", f"/runs/{run_id}")
        lease = (run["fence"], run["lease_until"])
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
            return self._pump(give=False) and not self._flying()

        with contextlib.suppress(TimeoutError):  # what waits for nobody is said by its judge
            until(resting, REST_SECONDS, "every task has ended", every=0.3)

    def _settle(self, last: bool = False) -> None:
        """Judge each strike whose tasks have all ended; the `last` time each that is left."""
        by_run = {one["run_id"]: one for one in self.tasks.values() if one["run_id"]}
        for struck in self.verdict.strikes:
            mine = [self.tasks[one] for one in struck.tasks]
            if struck.run in by_run and by_run[struck.run]["task_id"] not in struck.tasks:
                mine.append(by_run[struck.run])
            if struck.judged or not (last or all(one["status"] in ENDED for one in mine)):
                continue
            struck.judged, struck.runs = True, [one["run_id"] for one in mine if one["run_id"]]
            seen = [said for said in self.verdict.violations if any(run in said for run in struck.runs)]
            said = [*seen, *self._of_tasks(mine), *self.judge.of_world(mine)]
            struck.broken = list(dict.fromkeys([*struck.broken, *said]))
            self.judged(struck)

    def _of_tasks(self, tasks: Iterable[dict[str, Any]]) -> list[str]:
        found = []
        for task in tasks:
            found += checks.unfinished(task) if task["status"] not in ENDED else []
            found += self.judge.of_run(task["run_id"], self._may_fail_of(task)) if task["run_id"] else []
        return found

    def _judge(self) -> None:
        verdict = self.verdict
        said = [*self._of_tasks(self.tasks.values()), *self.judge.of_world(self.tasks.values(), self.begun)]
        verdict.violations = list(dict.fromkeys([*verdict.violations, *said]))
        self._settle(last=True)
        kinds = self.judge.kinds()
        verdict.kinds = dict(sorted(kinds.items()))
        verdict.requeued, verdict.doubts = kinds["run.requeued"], kinds["tool.doubted"]
        verdict.effects = sum(self.begun in one["name"] for one in self.farm.requests())
        verdict.runs = dict(Counter(one["status"] for one in self.tasks.values()))

    def _may_fail_of(self, task: dict[str, Any]) -> frozenset[str]:
        sort = self.sorts.get(task["task_id"], "" if task["parent_run"] else "notebook")
        struck = {
            one.fault for one in self.verdict.strikes if task["task_id"] in one.tasks or task["run_id"] == one.run
        }
        return OURS.union(OF_SORT.get(sort, ()), *(OF_FAULT.get(one, ()) for one in struck))


def chosen(names: str, database: str, processes: bool = False) -> list[Fault]:
    """Return the faults of these names (separated by commas; empty: all, or all `processes`) that the database knows.

    Raises KeyError.
    """
    every = [fault for fault in BY_NAME.values() if fault.process or not processes]
    asked = [BY_NAME[name.strip()] for name in names.split(",")] if names else every
    return [fault for fault in asked if fault.only in ("", database)]


def matrix(faults: Sequence[Fault], kinds: Sequence[str]) -> list[tuple[Fault, str]]:
    """Return each of these faults behind each of these kinds of events (none named: every kind)."""
    return [(fault, kind) for fault in faults for kind in (kinds or work.BRINGS)]

"""The service dies at each commit, right before it or behind it and before anybody is told: nothing is lost or repeated.

Tasks with parallel calls of each effect, an approval, a child, a memory, a pause, a timer, a question; one that is cancelled
in the middle of a call, one whose worker dies with a `once` call under way, one that its model refuses. Whoever gets no
answer asks the next service the same again. The record must then be that of a task that nothing disturbed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from test_gateway import Script, calls, says, tool

from agentfarm_sdk.protocol import AppendRequest, Definition, ModelRequest, NewEvent, ToolSpec, new_event, timestamp
from jupyterhub_agentfarm.chaos.work import BRINGS
from jupyterhub_agentfarm.errors import Conflict, Transient, UserError
from jupyterhub_agentfarm.gateway.asking import Ask, OnToken, Reply, UpstreamError
from jupyterhub_agentfarm.gateway.live import LiveRuns
from jupyterhub_agentfarm.gateway.models import Models
from jupyterhub_agentfarm.gateway.proxy import Route, Upstreams
from jupyterhub_agentfarm.records import Run
from jupyterhub_agentfarm.store import agents, effects, inbox, leases, ledger, tasks
from jupyterhub_agentfarm.store.db import Database

FAR = {"schema": {"type": "object"}, "effect": "read"}
DRAFT = Definition(
    prompt="p",
    tools=[
        tool("charge"), tool("store", "idempotent"), tool("look", "read"), tool("pay", approval="always"),
        *(ToolSpec(name=name, **FAR) for name in ("delegate", "wait_until", "ask_person", "remember")),  # type: ignore[arg-type]
    ],
)  # fmt: skip
N = '{"n": 1}'
SAYS: dict[str, list[Reply]] = {  # by what was asked: the replies, step by step
    "approval": [calls(("charge", N), ("store", N), ("look", N), ("pay", N)), says("done")],
    "parent": [calls(("delegate", "{}"), ("remember", "{}")), says("done")],
    "rest": [calls(("wait_until", "{}"), ("ask_person", "{}")), says("done")],
    "child": [calls(("charge", N)), says("the child's")],
    "cancel": [calls(("charge", N), ("look", N))],
    "doubt": [calls(("charge", N)), says("done")],
    "refused": [calls(("pay", N)), says("done")],
}  # fmt: skip
ASIDE = {"model.requested", "model.failed"}  # the model is asked again where nobody knows what it said


class Scripted(Script):
    """A model that keeps nothing: the same messages get the same reply."""

    async def complete(self, ask: Ask, on_token: OnToken | None) -> Reply:
        said = [message["content"] for message in ask.messages if message["role"] == "user"][-1]
        if said == "doomed":
            raise UpstreamError("bad-request", "this is refused", retry=False)
        return SAYS[said][sum(message["role"] == "assistant" for message in ask.messages)]


@dataclass
class Farm:
    """A ledger and the service over it, which dies at commit number `at` (0: never); then the next one takes over."""

    db: Database
    at: int = 0
    behind: bool = False  # the commit is on disk, and nobody is told
    commits: int = 0
    every: list[list[str]] = field(default_factory=list)  # kinds of events of each commit
    attempt: Callable[[list[Any]], None] = print

    def begin(self) -> None:
        """Begin a service's life: it knows what is on disk, and nothing else."""
        self.db._heads.clear()
        self.db._listeners.clear()
        self.lives = LiveRuns(self.db, b"k" * 32, _no_secrets)
        self.models = Models(self.lives, Upstreams([Route(Scripted([]), ("m",))]))
        self.dead, self._told, self._loop = False, asyncio.Event(), asyncio.get_running_loop()

    def dying(self, batch: list[Any]) -> None:
        if not self.dead:
            self.commits += 1
            self.dead = self.commits == self.at and not self.behind
        if not self.dead:
            self.attempt(batch)
            self.every.append([event.kind for write in batch for one in write.committed for event in one.events])
            self.dead = self.commits == self.at
        if self.dead:
            self._loop.call_soon_threadsafe(self._told.set)
            raise Transient("the service is dead")

    async def tried(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask; where the service dies over it ask the next one the same."""
        asking, told = asyncio.ensure_future(ask()), asyncio.ensure_future(self._told.wait())
        await asyncio.wait([asking, told], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not self.dead:
            return await asking
        left = [asking, *(task for _, task in self.models._under_way.values())]
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self.at = 0
        self.begin()
        try:
            return await ask()
        except Conflict:  # it was done: a person reloads the page
            return None

    async def write(self, fn: Callable[[Any], Any]) -> Any:
        return await self.tried(lambda: self.db.write(fn))


async def _no_secrets(_owner: str, _names: list[str]) -> dict[str, str]:
    return {}


@dataclass
class Story:
    """What people and workers do with a task, for agents of its own; `task`, `run`: the ones in hand."""

    farm: Farm
    name: str
    runs: list[str] = field(default_factory=list)
    claims: int = 0
    n: int = 0
    run: Run | None = None
    task: str = ""

    async def submit(self, given: str) -> None:
        asked = tasks.Submission(
            owner="ann", submitted_by="ann", target=f"{self.name}-a", input=given, key=f"{self.name}-{given}"
        )
        choice = tasks.Choice(asked.target, DRAFT, 1)
        task, _ = await self.farm.write(lambda tx: tasks.submit(tx, self.farm.db.epoch, asked, choice))
        self.task = task.task_id

    async def claim(self, agent: str = "a") -> None:
        self.claims += 1
        claim_id = f"{self.name}-{self.claims}"
        self.run = await self.farm.write(lambda tx: leases.claim(tx, f"{self.name}-{agent}", "w", claim_id, 30.0))
        assert self.run is not None, f"nothing to claim for {agent}"
        self.n = 0
        if self.run.run_id not in self.runs:
            self.runs.append(self.run.run_id)
        held = self.run
        await self.farm.tried(lambda: self.farm.lives.open(held.run_id, held.fence, lambda _: []))

    @property
    def held(self) -> Run:
        assert self.run is not None
        return self.run

    async def model(self, request: str) -> None:
        asked = ModelRequest(run=self.held.run_id, fence=self.held.fence, request=request, n=self.n)
        await self.farm.tried(lambda: self.farm.models.model(asked))

    async def append(self, kind: str, body: Any = None, call: str | None = None, *also: NewEvent) -> None:
        self.n += 1
        raw = msgspec.Raw(msgspec.json.encode([*also, new_event(kind, body or {"result": "ok"}, call)]))
        request, run = AppendRequest(fence=self.held.fence, n=self.n, events=raw), self.held
        await self.farm.tried(lambda: self.farm.lives.append(run.run_id, run.fence, request))

    async def park(self, reason: str) -> None:
        await self.append("run.parked", {"reason": reason})

    async def decide(self, decision: str, **more: Any) -> None:
        run_id = self.held.run_id
        items = await self.farm.db.read(lambda c: inbox.waiting_of(c, run_id))
        for item in items:
            await self.farm.tried(
                lambda i=item: self.farm.lives.decide(i["inbox_id"], decision, "ann", reason="r", **more)
            )

    # -- the stories ----------------------------------------------------------------------------------------------

    async def approval(self) -> None:
        await self.submit("approval")
        await self.claim()
        await self.model("m0")
        for call in ("c0-2", "c0-0", "c0-1"):
            await self.append("tool.succeeded", None, call)
        await self.park("approval")
        await self.decide("approve")
        await self.claim()
        await self.append("tool.failed", {"error": {"type": "E", "message": "declined"}}, "c0-3")
        await self.model("m1")
        await self.append("run.succeeded", {"result": "done"})

    async def parent(self) -> None:
        await self.submit("parent")
        await self.claim()
        await self.model("m0")
        await self.append("child.submitted", {"target": f"{self.name}-b", "input": "child"}, "c0-0")
        remembered = new_event("memory.remembered", {"key": "k", "value": 1}, "c0-1")
        await self.append("tool.succeeded", None, "c0-1", remembered)
        await self.park("child")
        await self.claim("b")
        await self.model("m0")
        await self.append("tool.succeeded", None, "c0-0")
        await self.model("m1")
        await self.append("run.succeeded", {"result": "the child's"})
        await self.farm.write(lambda tx: tasks.pause(tx, self.task, "user:ann", "a while"))
        await self.farm.write(lambda tx: tasks.resume(tx, self.task, "user:ann"))
        await self.claim()
        await self.model("m1")
        await self.append("run.succeeded", {"result": "done"})

    async def rest(self) -> None:
        await self.submit("rest")
        await self.claim()
        await self.model("m0")
        await self.append("timer.set", {"until": timestamp(self.farm.db.now() + 3600)}, "c0-0")
        await self.append("question.asked", {"question": "Go on?"}, "c0-1")
        await self.park("question")
        run = self.held
        await self.farm.write(lambda tx: _fire(tx, run.run_id))
        await self.decide("answer", result="yes")
        await self.claim()
        await self.model("m1")
        await self.append("run.succeeded", {"result": "done"})

    async def cancelled(self) -> None:
        await self.submit("cancel")
        await self.claim()
        await self.model("m0")
        await self.farm.write(lambda tx: tasks.cancel(tx, self.task, "user:ann", "enough"))
        for call in ("c0-0", "c0-1"):
            await self.append("tool.succeeded", None, call)
        await self.append("run.cancelled", {"reason": "enough"})

    async def doubted(self) -> None:
        await self.submit("doubt")
        await self.claim()
        await self.model("m0")
        run = self.held
        await self.farm.write(lambda tx: leases.died(tx, run.run_id, run.fence, "the kernel ended"))
        await self.decide("happened", result="charged")
        await self.claim()
        await self.model("m1")
        await self.append("run.succeeded", {"result": "done"})

    async def refused(self) -> None:
        await self.submit("refused")
        await self.claim()
        await self.model("m0")
        await self.park("approval")
        await self.decide("refuse")
        await self.claim()
        await self.model("m1")
        await self.append("run.succeeded", {"result": "done"})

    async def doomed(self) -> None:
        await self.submit("doomed")
        await self.claim()
        with pytest.raises(UserError):
            await self.model("m0")
        await self.append("run.failed", {"error": {"type": "user-error", "message": "this is refused"}})

    # -- what came of it -----------------------------------------------------------------------------------------

    async def record(self) -> list[list[str]]:
        """Return the kinds of each run; its chain is whole."""
        told = []
        for run in self.runs:
            events = await self.farm.db.read(lambda c, run=run: ledger.read_events(c, run))
            assert (await self.farm.db.read(lambda c, run=run: ledger.verify(c, run))).ok
            starts = Counter(event.call for event in events if event.kind == "tool.started")
            assert set(starts.values()) <= {1}, f"a call was started twice: {starts}"
            told.append([event.kind for event in events if event.kind not in ASIDE])
        return told


def _agent(tx: Any, name: str) -> None:
    agents.create(tx, name=name, owner="ann", owner_since=None, pool=None, draft=DRAFT, by="user:ann")
    agents.publish(tx, name, DRAFT, "", "user:ann")


def _fire(tx: Any, run_id: str) -> None:
    """Do as the reaper does an hour later."""
    for run, call in effects.due(tx.connection, tx.now + 7200):
        if run == run_id:
            leases.fire(tx, run, call)


@pytest.fixture
async def farm(database_url: str) -> AsyncIterator[Farm]:
    db = Database.open(database_url)
    made = Farm(db)
    made.attempt, db._attempt = db._attempt, made.dying  # type: ignore[method-assign]
    yield made
    await db.close()


STORIES = ("approval", "parent", "rest", "cancelled", "doubted", "refused", "doomed")


async def told(farm: Farm, part: str, at: int, behind: bool) -> list[list[str]]:
    story = Story(farm, f"{part}-{at}-{behind}".lower())
    farm.at = 0
    farm.begin()
    for agent in ("a", "b"):
        await farm.db.write(lambda tx, name=f"{story.name}-{agent}": _agent(tx, name))
    farm.commits, farm.every, farm.at, farm.behind = 0, [], at, behind
    await getattr(story, part)()
    return await story.record()


async def test_the_service_dies_at_each_commit_and_the_record_is_that_of_an_undisturbed_task(farm: Farm) -> None:
    survived = set[str]()
    for part in STORIES:
        expected, length = await told(farm, part, 0, False), farm.commits
        for at, behind in itertools.product(range(1, length + 1), (False, True) if farm.db.sqlite else (True,)):
            assert await told(farm, part, at, behind) == expected, f"{part}: {at} {behind}: {farm.every[at - 1 : at]}"
            survived.update(*farm.every[at - 1 : at] if behind and not farm.at else ())
    assert survived >= set(BRINGS), f"the service has not died behind {set(BRINGS) - survived}"

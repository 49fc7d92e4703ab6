"""The clock jumps an hour, ahead or back: what lasts so many seconds lasts as long as before, what is a moment is a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from test_gateway import Farm, Script, calls, says, tool

from agentfarm_sdk import effects, testing
from agentfarm_sdk.agent import Agent
from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import Definition, Limits, new_event, timestamp
from agentfarm_sdk.testing import FakeFarm, ScriptedModel
from agentfarm_sdk.tools.registry import tool as own
from jupyterhub_agentfarm.errors import Invalid
from jupyterhub_agentfarm.records import Committed
from jupyterhub_agentfarm.scheduling.reaper import Reaper
from jupyterhub_agentfarm.store import db as store
from jupyterhub_agentfarm.store import effects as rows
from jupyterhub_agentfarm.store import inbox, leases, ledger, queue, tasks
from jupyterhub_agentfarm.store.db import Database

HOUR = 3600.0
BRIEF = Definition(
    prompt="p",
    tools=[tool("look", "read"), tool("pay", approval="always", approval_expires=600.0)],
    limits=Limits(seconds=60),
)


@dataclass
class Shifted:
    """A farm whose outer clock (the machine's, PostgreSQL's) a test moves."""

    farm: Farm
    reaper: Reaper
    ahead: float = 0.0

    async def jump(self, seconds: float) -> None:
        self.ahead += seconds
        await self.reaper.look()


@pytest.fixture
async def shifted(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shifted]:
    made: list[Shifted] = []
    wall = Database._wall
    monkeypatch.setattr(Database, "_wall", lambda self, c: wall(self, c) + sum(one.ahead for one in made))
    monkeypatch.setattr(store, "MEASURE_SECONDS", 0.0)
    db = Database.open(database_url)
    script = Script([calls(("look", '{"n": 1}')), calls(("pay", '{"n": 1}')), says("done")])
    made.append(Shifted(Farm(db, script), Reaper(db, 30.0)))
    yield made[0]
    await db.close()


async def folded(farm: Farm) -> Fold:
    events = await farm.db.read(lambda c: ledger.read_events(c, farm.run.run_id))
    return Fold().apply_all(events)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_no_limit_lease_or_approval_ends_because_the_clock_jumps(shifted: Shifted, jump: float) -> None:
    farm, before = shifted.farm, shifted.farm.db.now()
    await farm.begin(BRIEF)
    await farm.model()
    await shifted.jump(jump)
    assert abs(farm.db.now() - before - jump) < 30, "the farm goes by the new time"
    await farm.done("c0-0", 1)
    await farm.model("q2")  # limits.seconds is 60
    run = await farm.db.read(lambda c: ledger.read_run(c, farm.run.run_id))
    assert run.status == "running" and run.lease_until and 0 < run.lease_until - farm.db.now() <= 30
    await farm.append(new_event("run.parked", {"reason": "approval"}))
    await shifted.jump(jump)
    (item,) = await farm.db.read(lambda c: inbox.waiting_of(c, farm.run.run_id))
    shown = await farm.db.read(lambda c: inbox.show(c, item["inbox_id"]))
    assert timestamp(farm.db.now() + 500) < shown["expires_at"] <= timestamp(farm.db.now() + 600)
    await farm.lives.decide(item["inbox_id"], "approve", "ann")
    await farm.claim("c2")
    await farm.lives.open(farm.run.run_id, farm.run.fence, lambda _: [])
    await farm.done("c1-0", 1)
    assert (await farm.model("q3")).message["content"] == "done"
    fold = await folded(farm)
    assert fold.used(farm.db.now()) < 30, "an hour that nobody lived is not counted"
    assert "clock.jumped" in await farm.kinds()
    assert (await farm.db.read(lambda c: ledger.verify(c, farm.run.run_id))).ok


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_no_run_is_an_hour_old_at_any_moment_around_a_jump(shifted: Shifted, jump: float) -> None:
    """Runs begin before it, in its transaction and right behind it; whoever looks sees the jump with its time."""
    db, folds, ages = shifted.farm.db, dict[str, Fold](), list[float]()

    def hear(committed: list[Committed]) -> None:
        for one in committed:
            folds.setdefault(one.run_id, Fold()).apply_all(one.events)
        ages.extend(fold.used(db.now()) for run, fold in folds.items() if run != "farm")

    async def begin(number: int) -> None:
        task = tasks.Submission(owner="ann", submitted_by="ann", target="many", input="x")
        await db.write(lambda tx: tasks.submit(tx, db.epoch, task, tasks.Choice("many", BRIEF, 1)))
        await db.write(lambda tx: leases.claim(tx, "many", "w", f"c{number}", 30.0))

    db.on_commit(hear)
    for number in range(8):
        await begin(number)
    await asyncio.gather(*(begin(number) for number in range(8, 24)), shifted.jump(jump), *(begin(number) for number in range(24, 40)))  # fmt: skip
    ages.extend(fold.used(db.now()) for run, fold in folds.items() if run != "farm")
    assert len(folds) == 41 and max(ages) < 30, max(ages)


@pytest.mark.parametrize(("jump", "come"), [(HOUR, True), (-HOUR, False)])
async def test_a_deadline_and_a_time_to_wait_for_are_moments(shifted: Shifted, jump: float, come: bool) -> None:
    farm, db = shifted.farm, shifted.farm.db
    await farm.begin(BRIEF)
    await farm.model()
    await farm.append(new_event("timer.set", {"until": timestamp(db.now() + 600)}, "c0-0"))
    await farm.append(new_event("run.parked", {"reason": "timer"}))
    late = tasks.Submission(owner="alice", submitted_by="alice", target="b", input="x", deadline=db.now() + 600)
    await db.write(lambda tx: tasks.submit(tx, db.epoch, late, tasks.Choice("b", BRIEF, 1)))
    await shifted.jump(jump)
    await shifted.reaper.look()
    assert ("timer.fired" in await farm.kinds()) is come
    overdue, soonest = await db.read(lambda c: queue.deadlines(c, db.now()))
    assert bool(overdue) is come and bool(soonest) is not come
    await shifted.jump(HOUR - jump)  # an hour ahead at last: whatever had not come comes now, and once
    await shifted.reaper.look()
    assert (await farm.kinds()).count("timer.fired") == 1


async def test_seconds_to_wait_are_counted_by_the_farm_whose_worker_s_clock_goes_otherwise(shifted: Shifted) -> None:
    farm = shifted.farm
    await farm.begin(BRIEF)
    await farm.model()
    event = effects.timer(600.0, farm.db.now() - 7 * HOUR, None, "c0-0")
    await farm.append(event)
    await farm.append(new_event("run.parked", {"reason": "timer"}))
    await shifted.reaper.look()
    assert "timer.fired" not in await farm.kinds()
    due = await farm.db.read(lambda c: rows.next_due(c, farm.db.now()))
    assert due is not None and 500 < due - farm.db.now() <= 600
    forged = new_event("timer.set", {"until": timestamp(farm.db.now()), "after": "soon"}, "c0-0")
    with pytest.raises(Invalid, match="after"):
        effects.check(forged, farm.db.now())


def test_a_run_outside_a_farm_does_not_end_because_the_clock_jumps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = time.time

    @own(effect="read")
    def sleepwalk() -> str:
        """Move the clock."""
        monkeypatch.setattr(time, "time", lambda: real() + HOUR)
        return "an hour later"

    model = ScriptedModel(testing.calls("sleepwalk"), testing.says("an hour later, all the same"))
    with FakeFarm() as here:
        run = here.run(Agent("a", tools=[sleepwalk], limits={"seconds": 60}, mode="live"), "go", model)
        assert run.status == "succeeded", run.fold().error

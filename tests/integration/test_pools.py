"""Pools: who of them takes a task, and whose; and what the end of a run frees for others, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from servicekit import Service, service

from jupyterhub_agentfarm.scheduling import scheduler
from jupyterhub_agentfarm.scheduling.idling import Idling

NAMES = ("analyst", "boss", "other")


@pytest.fixture
async def farm(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 3600.0)  # nothing here may need the look that comes in any case
    async with service(tmp_path, database_url, monkeypatch) as running:
        for name in NAMES:
            await running.ok("ann", "POST", "/agents", {"name": name, "pool": "all", "draft": {"prompt": "p"}})
            await running.ok("ann", "POST", f"/agents/{name}/publish", {})
            await running.ok("ann", "POST", f"/agents/{name}/shares", {"person": "bob", "rights": "chat"})
        yield running


async def finish(farm: Service, claim: dict[str, Any]) -> None:
    end = {"kind": "run.succeeded", "body": {"result": "done"}}
    body = {"fence": claim["fence"], "n": 1, "events": [end]}
    await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", body)


async def worked(
    farm: Service, agent: str, taken: list[str], over: Callable[[], bool], slow: asyncio.Event | None = None
) -> None:
    """Take one run after the other until it is over; a slow member keeps its first one until it may go on."""
    while not over():
        claim = await farm.claim(agent, wait=0.2)
        if claim is None:
            continue
        taken.append(claim["run"])
        if slow is not None:
            await slow.wait()
        await finish(farm, claim)


async def batch(farm: Service, token: str, count: int, **task: Any) -> list[str]:
    many = [{"target": "pool:all", "input": str(number), **task} for number in range(count)]
    return [one["task_id"] for one in (await farm.ok(token, "POST", "/tasks", {"tasks": many}))["items"]]


async def task_of(farm: Service, run: str) -> str:
    return str((await farm.ok("operator", "GET", f"/runs/{run}"))["task_id"])


@asynccontextmanager
async def working(
    farm: Service, over: Callable[[], bool], **slow: asyncio.Event
) -> AsyncIterator[dict[str, list[str]]]:
    """Let all members work, in the block and until it is over; give the runs that each has taken."""
    taken: dict[str, list[str]] = {name: [] for name in NAMES}
    workers = [asyncio.create_task(worked(farm, name, taken[name], over, slow.get(name))) for name in NAMES]
    for name in NAMES:
        await farm.listens(name)
    yield taken
    await asyncio.wait_for(asyncio.gather(*workers), 120)


async def test_who_asks_a_pool_for_little_does_not_wait_for_all_that_another_one_asked_before(farm: Service) -> None:
    order: list[str] = []

    def over() -> bool:
        return len(order) >= 31

    async with working(farm, over) as taken:
        many = await batch(farm, "ann", 30)
        (one,) = await batch(farm, "bob", 1)
        before = sum(map(len, taken.values()))
        for _ in range(6000):
            order[:] = [run for runs in taken.values() for run in runs]
            if over():
                break
            await asyncio.sleep(0.01)
    rows = {run: await task_of(farm, run) for run in order}
    assert sorted(rows.values()) == sorted([*many, one]), "each once"
    ((member, place),) = [(name, runs.index(run)) for name, runs in taken.items() for run in runs if rows[run] == one]
    assert place < before + 8, f"its turn came next, but for what {member} had in hand"


async def test_a_slow_member_holds_up_only_what_it_has_in_hand(farm: Service) -> None:
    go_on, over = asyncio.Event(), asyncio.Event()
    async with working(farm, over.is_set, boss=go_on) as taken:
        await batch(farm, "ann", 30)
        for _ in range(3000):
            if len(taken["analyst"]) + len(taken["other"]) >= 27:
                break
            await asyncio.sleep(0.02)
        assert sum(map(len, taken.values())) >= 27 and len(taken["boss"]) <= 1, "others did what it had no time for"
        over.set()
        go_on.set()


async def test_members_are_started_for_what_those_that_listen_have_no_room_for(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PATIENCE", 0.0)
    listening = asyncio.create_task(farm.claim("other", wait=20))
    await farm.listens("other")
    await batch(farm, "ann", 2)
    assert (await listening)["agent"] == "other"  # type: ignore[index]
    assert not farm.hub.started.is_set(), "it had room for both"
    await batch(farm, "ann", 3)
    await asyncio.wait_for(farm.hub.started.wait(), 10)
    started = {path for method, path, _ in farm.hub.asked if method == "POST" and path.endswith("/server")}
    assert started and started <= {"users/agent-analyst/server", "users/agent-boss/server"}


async def test_a_pool_whose_members_cannot_be_started_fails_its_task_with_all_their_reasons(farm: Service) -> None:
    farm.hub.refuses_start = "no room"
    farm.scheduler.deadline = 0.0
    (task,) = await batch(farm, "ann", 1)
    for _ in range(1000):
        farm.scheduler.wake()
        found = await farm.ok("ann", "GET", f"/tasks/{task}")
        if found["status"] == "failed":
            break
        await asyncio.sleep(0.02)
    assert found["error"]["type"] == "unplaceable" and found["error"]["message"].count("no room") == len(NAMES)


async def test_the_end_of_a_run_lets_another_agent_s_run_with_its_key_go_on_at_once(farm: Service) -> None:
    key = {"concurrency_key": "account-1"}
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x", **key})
    first = await farm.claim("analyst", wait=5)
    assert first
    waits = asyncio.create_task(farm.claim("other", wait=15))
    await farm.listens("other")
    await farm.ok("ann", "POST", "/tasks", {"target": "other", "input": "x", **key})
    await finish(farm, first)
    second = await asyncio.wait_for(waits, 20)
    assert second and second["agent"] == "other"


async def test_a_pool_s_task_that_comes_after_another_is_given_away_when_that_has_ended(farm: Service) -> None:
    before = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"})
    (later,) = await batch(farm, "ann", 1, after=[before["task_id"]])
    first = await farm.claim("analyst", wait=5)
    assert first
    await finish(farm, first)
    second = await farm.claim("analyst", wait=15)  # it listened a moment ago, so it is a member that may take it
    assert second and await task_of(farm, second["run"]) == later


async def test_a_pool_starts_no_more_servers_than_its_rules_say_keeps_some_up_and_stops_who_is_idle(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.1)  # a supervisor comes behind the tasks: no commit tells it
    assert (await farm.ask("bob", "PUT", "/pools/all", {"max_servers": 1})).status_code == 403
    assert (await farm.ask("ann", "PUT", "/pools/none", {})).status_code == 404
    assert (await farm.ask("ann", "PUT", "/pools/all", {"min_servers": 3, "max_servers": 1})).status_code == 422
    await farm.ok("ann", "PUT", "/pools/all", {"max_servers": 1, "idle_seconds": 60})
    given = await batch(farm, "ann", 6)
    for _ in range(1000):
        farm.scheduler.wake()
        if farm.hub.running:
            break
        await asyncio.sleep(0.02)
    for _ in range(20):
        farm.scheduler.wake()
        await asyncio.sleep(0.02)
    assert len(farm.hub.running) == 1, "six tasks wait, and one server is enough by the rules"
    (member,) = farm.hub.running
    agent = member.removeprefix("agent-")
    idling = Idling(farm.db, farm.parts.hub, farm.parts.resources)
    idling._began -= 3600  # this service has been up for an hour, and nobody used the server
    first = await farm.claim(agent, wait=15)
    assert first is not None
    monkeypatch.setattr(idling, "_worked", {})
    await idling.look()
    assert farm.hub.running == {member}, "it has a lease: however silent it is, it stays"
    taken: list[str] = [first["run"]]
    await finish(farm, first)
    await worked(farm, agent, taken, lambda: len(taken) == len(given))
    monkeypatch.setattr(idling, "_worked", {})
    await idling.look()
    assert farm.hub.running == set(), "it neither works nor is used"
    await farm.ok("ann", "PUT", "/pools/all", {"min_servers": 2})
    await idling.look()
    assert len(farm.hub.running) == 2, "a minimum is kept up, with or without work"
    (pool,) = (await farm.ok("ann", "GET", "/pools"))["items"]
    assert pool["min_servers"] == 2 and len(pool["members"]) == 3 and pool["may_change"]
    told = (await farm.ok("operator", "GET", "/runs/farm/events?limit=1000"))["items"]
    assert [one["body"]["max_servers"] for one in told if one["kind"] == "pool.changed"] == [1, None]


async def test_a_server_that_neither_stops_nor_starts_holds_up_no_other(farm: Service) -> None:
    await farm.ok("ann", "PUT", "/pools/all", {"idle_seconds": 60})
    idling = Idling(farm.db, farm.parts.hub, farm.parts.resources)
    idling._began -= 3600  # this service has been up for an hour, and nobody used a server
    farm.hub.running, farm.hub.stuck = {"agent-analyst", "agent-boss"}, {"agent-analyst"}
    await idling.look()
    assert farm.hub.running == {"agent-analyst"}
    farm.hub.running = set()
    await farm.ok("ann", "PUT", "/pools/all", {"min_servers": 1})
    await idling.look()
    assert farm.hub.running == set(), "the first one does not come"
    await idling.look()
    assert farm.hub.running == {"agent-boss"}

"""Emptying a microserver, as the service does it: on both databases; the daemon's part is tried on real microservers (tests/lab)."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from servicekit import GIB, FakeMachine, Service, service
from test_placement_api import command

from jupyterhub_agentfarm.errors import Transient
from jupyterhub_agentfarm.records import hub_user, unit_name
from jupyterhub_agentfarm.scheduling.draining import Act
from jupyterhub_agentfarm.store.tables import FARM_RUN


@pytest.fixture
async def farm(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        running.fleet.machines["micro1"] = FakeMachine(memory=16 * GIB, memory_free=16 * GIB)
        yield running


async def until(true: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until it holds, whether it is asked at once or has to ask others."""
    deadline = time.monotonic() + seconds
    while not (found := await asked if inspect.isawaitable(asked := true()) else asked):
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.02)
    return found


async def working(farm: Service, name: str = "analyst") -> tuple[dict[str, Any], dict[str, Any]]:
    """Have an agent at home on micro1 with a run under way; return its task and claim."""
    await farm.agent(name)
    settle(farm, name)
    task = await farm.ok("ann", "POST", "/tasks", {"target": name, "input": "a"})
    claim = await farm.claim(name)
    assert claim
    return task, claim


def settle(farm: Service, name: str) -> None:
    user = hub_user(name)
    farm.fleet.placing.state.units[unit_name(user)] = {
        "microserver": "micro1",
        "home": "micro1",
        "user": user,
        "port": 0,
    }
    farm.hub.running.add(user)


async def append(farm: Service, claim: dict[str, Any], n: int, kind: str, body: dict[str, Any]) -> None:
    batch = {"fence": claim["fence"], "n": n, "events": [{"kind": kind, "body": body}]}
    await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", batch)


def arrive(farm: Service, user: str) -> None:
    """Do what the daemon does when a copy stands whole."""
    moving = farm.fleet.moving
    moving.state.moves[user]["to"] = "local"
    moving._switch(user, moving.state.moves[user], "local", {"digest": "d" * 64, "bytes": 7})


async def told(farm: Service, kind: str) -> list[dict[str, Any]]:
    events = (await farm.ok("operator", "GET", f"/runs/{FARM_RUN}/events?limit=500"))["items"]
    return [one["body"] for one in events if one["kind"] == kind]


async def test_a_run_is_put_aside_at_its_step_its_agent_moves_and_it_goes_on_there(farm: Service, capsys: Any) -> None:
    task, claim = await working(farm)
    user = hub_user("analyst")
    assert (await farm.ask("ann", "POST", "/microservers/micro1/drain", {})).status_code == 403
    plan = await farm.ok("operator", "POST", "/microservers/micro1/drain", {"dry_run": True})
    assert plan["drain"] is None and [
        (one["agent"], one["to"], one["bytes"], one["runs"]) for one in plan["items"]
    ] == [("analyst", "local", 7, 1)]
    assert (await farm.ok("operator", "GET", "/microservers/micro1"))["state"] == "ready"
    code, said = await command(farm, "operator", capsys, "microserver", "drain", "micro1", "--reason", "a new disk")
    assert code == 2 and "--yes" in said and "local" in said
    code, said = await command(
        farm,
        "operator",
        capsys,
        "microserver",
        "drain",
        "micro1",
        "--reason",
        "a new disk",
        "--deadline",
        "2h",
        "--yes",
    )
    assert code == 0, said
    shown = await farm.ok("operator", "GET", "/microservers/micro1")
    assert (shown["state"], shown["drain"]["left"], shown["drain"]["until"]) == (
        "draining",
        1,
        "finish-step",
    ) and shown["drain"]["deadline"]

    async def paused() -> bool:
        return bool((await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"))["waiting"] == "paused")

    await until(paused)
    assert user in farm.hub.running, "its step goes on"
    code, said = await command(farm, "operator", capsys, "microserver", "progress", "micro1")
    assert code == 0 and "to the end of a step" in said and "1 of 1" in said
    await append(farm, claim, 1, "run.parked", {"reason": "paused"})
    await until(lambda: user not in farm.hub.running)
    await until(lambda: farm.fleet.moving.told(user))
    assert await farm.claim() is None, "it is held while its workspace moves"
    held = await farm.ok("ann", "GET", "/placements/explain?agent=analyst")
    assert "micro1 is drained" in held["why"] or "moves" in held["why"]
    hub, refused = farm.parts.draining.hub, list[str]()
    start_server = hub.start_server

    async def away_at_first(name: str) -> None:
        refused.append(name)
        if len(refused) < 3:
            asyncio.get_running_loop().call_later(0.05, farm.parts.draining.wake)
            raise Transient("the Hub does not answer")
        await start_server(name)

    hub.start_server = away_at_first  # type: ignore[method-assign]
    arrive(farm, user)
    await until(lambda: user in farm.hub.running)
    await until(lambda: not farm.fleet.moving.state.moves)
    again = await farm.claim(wait=20)
    assert again and again["run"] == claim["run"] and again["fence"] == claim["fence"] + 1
    await until(lambda: farm.fleet.machines["micro1"].state == "cordoned")
    shown = await farm.ok("operator", "GET", "/microservers/micro1")
    assert shown["drain"] is None and "a new disk" in shown["reason"]
    over = await farm.ok("operator", "GET", "/microservers/micro1/drain")  # the page may still look at it
    assert over == {"microserver": "micro1", "drain": None, "items": []}
    code, said = await command(farm, "operator", capsys, "microserver", "progress", "micro1")
    assert code == 0 and "micro1 is not being drained" in said
    assert (await farm.ask("operator", "GET", "/microservers/nowhere/drain")).status_code == 404
    assert [one["microserver"] for one in await told(farm, "microserver.draining")] == ["micro1"]
    assert [(one["from"], one["to"], one["user"]) for one in await told(farm, "workspace.moved")] == [
        ("micro1", "local", user)
    ]
    assert [one["workspaces"] for one in await told(farm, "microserver.drained")] == [1]


async def test_uncordon_ends_a_drain_and_what_was_put_aside_goes_on_where_it_was(farm: Service) -> None:
    _, claim = await working(farm)
    await farm.ok("operator", "POST", "/microservers/micro1/drain", {"reason": "a mistake"})
    run = f"/runs/{claim['run']}"

    async def waiting() -> Any:
        return (await farm.ok("ann", "GET", run))["waiting"] == "paused"

    await until(waiting)
    now = await farm.ok("operator", "POST", "/microservers/micro1/uncordon", {})
    assert now["state"] == "ready" and now["drain"] is None

    async def runs_on() -> Any:
        return (await farm.ok("ann", "GET", run))["status"] == "running"

    await until(runs_on)
    assert hub_user("analyst") in farm.hub.running and not farm.fleet.moving.state.moves
    assert await farm.fleet.move(hub_user("analyst"), away="micro1") == {}, "asked for by a look from before"
    moving, states = farm.fleet.moving, farm.fleet.states

    async def another_is_removed_meanwhile(name: str) -> dict[str, str]:
        farm.fleet.machines.pop("micro2", None)
        return await states(name)

    async def ended_meanwhile(name: str) -> dict[str, str]:
        moving.undrain(name, False)
        return await states(name)

    farm.fleet.machines["micro2"] = FakeMachine()
    moving.drain("micro1", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(farm.fleet, "states", another_is_removed_meanwhile)
        assert [one["microserver"] for one in (await farm.fleet.drains())["drains"]] == ["micro1"]
        patch.setattr(farm.fleet, "states", ended_meanwhile)
        assert (await farm.fleet.drains())["drains"] == []


async def test_whole_runs_end_there_where_that_was_asked_and_nothing_new_begins(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, claim = await working(farm)
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "b"})
    await farm.ok("operator", "POST", "/microservers/micro1/drain", {"reason": "r", "until": "finish-run"})
    await until(lambda: "analyst" in farm.parts.claims.held)
    assert await farm.claim() is None and hub_user("analyst") in farm.hub.running
    user = hub_user("analyst")

    async def states(_: str) -> dict[str, str]:
        return {unit_name(user): "running"}

    monkeypatch.setattr(farm.fleet, "states", states)  # the Hub has stopped it while the daemon was away: it runs on
    await append(farm, claim, 1, "run.succeeded", {"result": "4"})
    await until(lambda: user not in farm.hub.running)
    await until(lambda: farm.fleet.moving.state.moves[user]["stop"] == "stop")  # the daemon ends it
    assert farm.fleet.moving.told(user)["up"] is True
    arrive(farm, user)  # however old a look is: who has moved is not stopped
    farm.hub.running.add(user)
    old = {"user": user, "agent": "analyst", "state": "running", "to": "local", "why": "", "move": None, "units": []}
    await farm.parts.draining._sent("micro1", old, Act("move", "an old look"))
    assert user in farm.hub.running


async def test_until_kill_ends_a_server_in_the_middle_of_a_step_without_grace_and_its_run_goes_on_elsewhere(
    farm: Service,
) -> None:
    task, claim = await working(farm)
    user = hub_user("analyst")
    plan = await farm.ok("operator", "POST", "/microservers/micro1/drain", {"dry_run": True, "until": "kill"})
    assert plan["items"][0]["waits"] == "its workspace moves to local" and farm.fleet.moving.told(user) == {}
    await farm.ok("operator", "POST", "/microservers/micro1/drain", {"reason": "now", "until": "kill"})
    await until(lambda: user not in farm.hub.running)
    assert farm.fleet.moving.state.moves[user]["stop"] == "kill", "the daemon ends it so"
    kinds = [one["kind"] for one in (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"]]
    assert "run.paused" not in kinds, "nobody asked it to come to rest"
    arrive(farm, user)
    await until(lambda: user in farm.hub.running and not farm.fleet.moving.state.moves)
    assert (await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"))["status"] in ("running", "queued")


async def test_what_has_nowhere_to_go_works_on_and_the_reason_is_named(farm: Service) -> None:
    _, _ = await working(farm)
    await farm.ok("operator", "POST", "/microservers/local/cordon", {})
    await farm.ok("operator", "POST", "/microservers/micro1/drain", {"reason": "r"})
    await until(lambda: "nowhere to go" in farm.parts.draining.notes.get(hub_user("analyst"), ""))
    shown = await farm.ok("operator", "GET", "/microservers/micro1/drain")
    assert shown["items"][0]["to"] is None and "cordoned" in shown["items"][0]["waits"]
    assert "analyst" not in farm.parts.claims.held and hub_user("analyst") in farm.hub.running
    late = await farm.ask("operator", "POST", "/microservers/micro1/drain", {"deadline": "2020-01-01T00:00:00Z"})
    assert late.status_code == 422 and "passed" in late.json()["detail"], late.text
    for wrong in ({"until": "now"}, {"deadline": -1}, {"deadline": "2040-01-01T00:00:00"}, {"colour": "red"}):
        assert (await farm.ask("operator", "POST", "/microservers/micro1/drain", wrong)).status_code == 422
    assert (await farm.ask("operator", "POST", "/microservers/nowhere/drain", {})).status_code == 404
    assert json.dumps(shown)
    farm.fleet.placing.state.units[unit_name("petra")] = {
        "microserver": "micro1",
        "home": "micro1",
        "user": "petra",
        "port": 0,
    }
    farm.hub.running.add("petra")
    await farm.ok("operator", "POST", "/microservers/local/uncordon", {})
    for besides, hers, to in ((["local"], "it has nowhere to go", None), ([], "a person's own server", "local")):
        wish = {"dry_run": True, "besides": besides}
        plan = await farm.ok("operator", "POST", "/microservers/micro1/drain", wish)
        [petra] = [one for one in plan["items"] if one["user"] == "petra"]
        assert petra["waits"].startswith(hers) and petra["to"] == to, petra

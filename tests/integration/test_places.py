"""Tasks whose agents have no place wait with the reason and begin by themselves; on both databases, by the real rules of placement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from servicekit import GIB, FakeMachine, Service, service
from test_drains import append, settle, until
from test_placement_api import command

from jupyterhub_agentfarm.errors import FleetError
from jupyterhub_agentfarm.handlers import waiting
from jupyterhub_agentfarm.records import hub_user, unit_name
from jupyterhub_agentfarm.scheduling import astray, draining, places, priority, scheduler


@pytest.fixture
async def farm(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    for module in (astray, draining, places, scheduler):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(priority, "BACKOFF", (0.05,))
    monkeypatch.setattr(waiting, "SEEN_SECONDS", 0.5)
    async with service(tmp_path, database_url, monkeypatch) as running:
        running.hub.spawn = running.fleet.start
        running.scheduler.deadline = 0.0  # what may be tried for so long has failed at once
        yield running


async def waits(farm: Service, task: str) -> dict[str, Any]:
    """Wait until the task waits for a place; return it."""

    async def placeless() -> Any:
        shown = await farm.ok("ann", "GET", f"/tasks/{task}")
        assert shown["status"] in ("queued", "assigned", "waiting"), shown
        return shown if (shown["status"], shown["waiting"]) == ("waiting", "place") else None

    found: dict[str, Any] = await until(placeless)
    return found


async def told_the_same(farm: Service, task: str, status: str) -> None:
    """Filters find the only open task by what it is shown as, and by nothing else; counts say the same."""
    for asked in ("queued,assigned", "waiting", "running"):
        found = (await farm.ok("ann", "GET", f"/tasks?status={asked}"))["items"]
        assert [(one["task_id"], one["status"]) for one in found] == [(task, status)] * (asked == status)
        assert (await farm.ok("ann", "GET", f"/tasks/counts?status={asked}"))["total"] == (asked == status)
    assert (await farm.ok("ann", "GET", "/tasks/counts"))["counts"] == {status: 1}


async def test_a_task_without_a_place_says_so_everywhere_and_begins_once_a_microserver_is_added_uncordoned_or_freed(
    farm: Service, capsys: Any
) -> None:
    machines, state = farm.fleet.machines, farm.fleet.placing.state
    await farm.ok("operator", "POST", "/microservers/local/cordon", {"reason": "a new disk"})
    await farm.agent()
    user, unit = hub_user("analyst"), unit_name(hub_user("analyst"))
    task = (await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"}))["task_id"]
    shown = await waits(farm, task)
    assert "it is cordoned (a new disk): uncordon it" in shown["note"], shown
    [listed] = (await farm.ok("ann", "GET", "/tasks?agent=analyst"))["items"]
    assert listed == shown
    await told_the_same(farm, task, "waiting")
    for words in (("task", "show", task), ("task", "list", "--status", "waiting"), ("placement", "explain", task)):
        code, said = await command(farm, "ann", capsys, *words)
        assert code == 0 and "place" in said and (words[1] == "list" or "a new disk" in said), said
    assert (await farm.ok("ann", "GET", "/agents/analyst"))["server"]["reasons"] == shown["note"]

    machines["micro1"] = FakeMachine(memory_free=0)  # added, and full
    assert "of its" not in (await waits(farm, task))["note"]
    assert user not in farm.hub.running
    farm.scheduler.deadline = 300.0
    machines["micro1"].told["memory_free"] = 4 * GIB  # freed
    await until(lambda: user in farm.hub.running)
    assert state.units[unit]["microserver"] == "micro1"
    claim = await farm.claim(wait=15)
    assert claim
    begun = await farm.ok("ann", "GET", f"/tasks/{task}")
    assert begun["status"] == "running" and begun["waiting"] is None and begun["note"] == ""
    await told_the_same(farm, task, "running")

    await farm.agent("other")  # another one waits for the same room, and then for its own
    machines["micro1"].state = "cordoned"
    await waits(farm, (await farm.ok("ann", "POST", "/tasks", {"target": "other", "input": "x"}))["task_id"])
    await farm.ok("operator", "POST", "/microservers/local/uncordon", {})
    await until(lambda: hub_user("other") in farm.hub.running)


async def test_what_never_has_a_place_fails_with_the_reasons_also_where_it_waited_until_then(farm: Service) -> None:
    machines = farm.fleet.machines
    machines["micro1"] = FakeMachine(memory=16 * GIB, memory_free=0)
    await farm.agent()
    await farm.ok("ann", "PUT", "/agents/analyst/resources", {"memory": 12 * GIB})
    task = (await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"}))["task_id"]
    await waits(farm, task)
    del machines["micro1"]

    async def failed() -> Any:
        return (await farm.ok("ann", "GET", f"/tasks/{task}"))["error"]

    error = await until(failed)
    assert error["type"] == "unplaceable" and "12288 MiB are asked for" in error["message"], error


async def test_a_pool_s_task_waits_as_long_as_a_member_may_get_a_place(farm: Service) -> None:
    for name in ("analyst", "other"):
        await farm.ok("ann", "POST", "/agents", {"name": name, "pool": "all", "draft": {"prompt": "p"}})
        await farm.ok("ann", "POST", f"/agents/{name}/publish", {})
    farm.fleet.machines["local"].told["memory_free"] = 0
    task = (await farm.ok("ann", "POST", "/tasks", {"target": "pool:all", "input": "x"}))["task_id"]
    shown = await waits(farm, task)
    assert "analyst: no microserver takes" in shown["note"] and "other: no microserver takes" in shown["note"]
    await told_the_same(farm, task, "waiting")
    farm.scheduler.deadline = 300.0
    farm.fleet.machines["local"].told["memory_free"] = 4 * GIB
    await until(lambda: farm.hub.running)


async def test_while_the_daemon_does_not_answer_nothing_is_given_up(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> Any:
        raise FleetError("the fleet daemon does not answer")

    await farm.agent()
    with monkeypatch.context() as patch:
        for name in ("put_demand", "explain", "plan"):
            patch.setattr(farm.fleet, name, away)
        task = (await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"}))["task_id"]
        assert "does not answer" in (await waits(farm, task))["note"]
    farm.scheduler.deadline = 300.0
    await until(lambda: hub_user("analyst") in farm.hub.running)


async def test_a_run_that_needs_no_files_goes_on_elsewhere_and_the_server_comes_home_for_the_others(
    farm: Service,
) -> None:
    farm.scheduler.deadline = 300.0
    machines, state, moving = farm.fleet.machines, farm.fleet.placing.state, farm.fleet.moving
    machines["micro1"] = FakeMachine()
    await farm.agent()
    settle(farm, "analyst")
    user, unit = hub_user("analyst"), state.units[unit_name(hub_user("analyst"))]
    unit["promise"] = {"memory": GIB, "cpu": 0.0, "at": 0.0}
    machines["micro1"].silent = "micro1 does not answer"
    first = (await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"}))["task_id"]
    shown = await waits(farm, first)
    assert "its workspace is on micro1, which cannot be reached" in shown["note"]
    free = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "y", "workspace": "none"})
    await until(lambda: "analyst" in farm.scheduler.astray.wanted)
    moving._patience = 0.0
    moving._forsake()
    moving._forsake()
    assert "given_up" in unit
    farm.hub.running.discard(user)  # as the Hub sees it
    await until(lambda: user in farm.hub.running)
    assert (unit["microserver"], unit["home"], unit["scratch"]) == ("local", "micro1", True)
    moved = farm.fleet.placing.demand(unit_name(user), moves=True)
    assert (farm.fleet.placing.demand(unit_name(user)).home, moved.home) == ("", "micro1"), "a drain moves its files"
    claim = await farm.claim(wait=15, scratch=True)
    assert claim and claim["run"] == free["run_id"], "the one before it needs its files"
    assert await farm.claim(scratch=True) is None
    assert "cannot be reached" in (await waits(farm, first))["note"]
    machines["micro2"] = (
        FakeMachine()
    )  # what is there is drained: the server goes on at another one, away from its files still
    await farm.ok("operator", "POST", "/microservers/local/drain", {"reason": "a new disk"})
    await until(lambda: "step" in farm.parts.draining.notes.get(user, ""))
    [there] = (await farm.ok("operator", "GET", "/microservers/local/drain"))["items"]
    assert (there["agent"], there["to"], there["runs"]) == ("analyst", "micro2", 1)
    await append(farm, claim, 1, "run.parked", {"reason": "paused"})
    await until(lambda: machines["local"].state == "cordoned")
    await until(lambda: user in farm.hub.running and unit["microserver"] == "micro2")
    assert (unit["home"], unit["scratch"]) == ("micro1", True)
    claim = await farm.claim(wait=15, scratch=True)
    assert claim and claim["run"] == free["run_id"]
    machines["micro1"].silent = ""
    await append(farm, claim, 1, "run.succeeded", {"result": "1"})
    await until(lambda: user in farm.hub.running and unit["microserver"] == "micro1")
    assert (unit["home"], unit["scratch"], state.leftovers) == ("micro1", False, {"local": [user], "micro2": [user]})
    claim = await farm.claim(wait=15)
    assert claim and (await farm.ok("ann", "GET", f"/tasks/{first}"))["run_id"] == claim["run"]

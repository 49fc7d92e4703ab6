"""What operators see of microservers that are ill, silent or lost; what servers wrote; on both databases, by API and command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from servicekit import GIB, FakeMachine, Service, service
from test_placement_api import command

from jupyterhub_agentfarm.cli import logs
from jupyterhub_agentfarm.fleet.remotes import Remotes
from jupyterhub_agentfarm.fleet.state import FleetState
from jupyterhub_agentfarm.hubconfig import troubles_of
from jupyterhub_agentfarm.records import unit_name
from jupyterhub_agentfarm.scheduling.fleetwatch import FleetWatch, why_lost


@pytest.fixture
async def farm(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        running.fleet.machines["micro1"] = FakeMachine(
            disk=100 * GIB, disk_free=3 * GIB, clock_offset=-3600.0, clock_unsure=0.1, pressure={"memory": {"some": 0.02, "full": 0.01}},
            gpus=[{"index": 0, "name": "H200", "memory": 140 * GIB, "memory_used": 70 * GIB, "utilisation": 37, "temperature": 40}],
            disks=[{"device": "/dev/sda", "model": "Old", "healthy": False, "temperature": 51}],
        )  # fmt: skip
        yield running


def watch(farm: Service, listens: bool = False) -> FleetWatch:
    """A service's look at the fleet, as one that starts anew has it."""
    return FleetWatch(farm.db, farm.fleet, lambda agent: listens, farm.parts.lease)


async def noted(farm: Service) -> list[tuple[str, str, str]]:
    events = (await farm.ok("operator", "GET", "/runs/farm/events?limit=1000"))["items"]
    ours = [one for one in events if one["kind"].startswith("microserver.")]
    return [(one["kind"], one["by"], one["body"].get("taint", one["body"]["microserver"])) for one in ours]


async def test_a_microserver_taints_itself_says_so_everywhere_and_heals_by_itself(farm: Service, capsys: Any) -> None:
    await farm.ok(
        "operator", "PATCH", "/microservers/micro1", {"taints": {"kept": "for the desk", "clock-off": "mine"}}
    )
    shown = await farm.ok("ann", "GET", "/microservers/micro1")
    assert shown["taints"] == {"disk-full": "3% of its disk is free", "clock-off": "mine", "kept": "for the desk"}
    assert (
        shown["health"]["clock-off"]["reason"] == "its clock is 3600 s behind the farm's" and shown["state"] == "ready"
    )
    code, said = await command(farm, "operator", capsys, "microserver", "show", "micro1")
    for told in (
        "tainted disk-full  3% of its disk is free (since 2",
        "some 2.0%",
        "-3600.000 s",
        "70 GiB of 140 GiB, 37 % busy, 40 °C",
        "about to fail",
    ):
        assert code == 0 and told in said, said
    code, said = await command(farm, "ann", capsys, "status")
    assert "tainted disk-full  2" in said and "3% of its disk is free" in said, said
    code, said = await command(farm, "operator", capsys, "microserver", "taint", "micro1", "disk-full-")
    assert code == 2 and "by itself" in said and "placement settings" in said
    await farm.ok(
        "operator", "PATCH", "/microservers/micro1", {"taints": {"clock-off": None}}
    )  # ours goes, its own stays
    for one in (watch(farm), watch(farm)):
        await one.look()
    text = (await farm.ask("", "GET", "/metrics")).text
    assert 'agentfarm_microserver_tainted{microserver="micro1",taint="disk-full"} 1.0' in text
    assert 'agentfarm_microserver_gpu_utilisation_ratio{gpu="0",microserver="micro1"} 0.37' in text
    assert 'agentfarm_microserver_disk_healthy{device="/dev/sda",microserver="micro1"} 0.0' in text
    code, said = await command(
        farm, "operator", capsys, "placement", "settings", "--calm-seconds", "0", "--clock-off", "0"
    )
    assert code == 0
    farm.fleet.machines["micro1"].told["disk_free"] = 7 * GIB  # in the band
    assert list((await farm.ok("ann", "GET", "/microservers/micro1"))["health"]) == ["disk-full"]
    farm.fleet.machines["micro1"].told["disk_free"] = 50 * GIB
    assert (await farm.ok("ann", "GET", "/microservers/micro1"))["taints"] == {"kept": "for the desk"}
    await watch(farm).look()
    assert [one for one in await noted(farm) if one[1] == "service"] == [
        ("microserver.tainted", "service", "clock-off"), ("microserver.tainted", "service", "disk-full"),
        ("microserver.untainted", "service", "clock-off"), ("microserver.untainted", "service", "disk-full"),
    ]  # fmt: skip


async def test_machines_are_recorded_as_added_and_removed_once_that_is_done_also_where_the_service_dies_in_between(
    farm: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, key = farm.fleet, "ssh-ed25519 " + "A" * 40
    remotes = Remotes(tmp_path, fleet.placing.state, {})

    async def register(name: str, registration: dict[str, Any], by: str = "") -> None:
        await remotes.register(name, {**registration, "by": by})
        fleet.machines[name] = FakeMachine()

    monkeypatch.setattr(fleet, "register", register)
    monkeypatch.setattr(fleet, "remove", remotes.remove)
    wish = {"ssh": "root@127.0.0.1:1", "host_keys": [key]}  # nothing listens there
    await farm.ok("operator", "PUT", "/microservers/micro2", wish)
    refused = await farm.ask("operator", "PUT", "/microservers/micro3", wish)
    assert refused.status_code == 409 and "the microserver micro2 already" in refused.text
    assert (await farm.ask("operator", "DELETE", "/microservers/micro1")).status_code == 404, "not one of these"
    await fleet.register("micro4", {"ssh": "root@127.0.0.2:1"}, "user:root")  # the service dies behind it
    for one in (watch(farm), watch(farm)):
        await one.look()
    await farm.ok("operator", "DELETE", "/microservers/micro2?force=true")
    done = [one for one in await noted(farm) if not one[0].endswith("tainted")]
    assert done == [
        ("microserver.added", "user:root", "micro2"), ("microserver.added", "user:root", "micro4"),
        ("microserver.removed", "user:root", "micro2"),
    ]  # fmt: skip
    again = FleetState(tmp_path / "fleet.json")
    kept = [one["microserver"] for one in again.notices if "by" in one]
    assert kept == ["micro2", "micro4", "micro2"], "on the disk with what it tells of"
    await remotes.let_go()


async def test_a_silent_microserver_is_lost_only_when_no_run_there_renews_its_lease(farm: Service, capsys: Any) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    assert await farm.claim()
    farm.hub.running |= {"agent-analyst"}
    local = farm.fleet.machines["local"]
    local.silent = "it does not answer"
    shown = await farm.ok("ann", "GET", "/microservers/local")
    assert (shown["state"], shown["silent"], shown["reason"]) == ("silent", "it does not answer", "it does not answer")
    code, said = await command(farm, "operator", capsys, "microserver", "list")
    assert code == 0 and "silent" in said and shown["since"][:16] in said
    assert 'agentfarm_microserver_up{microserver="local"} 0.0' in (await farm.ask("", "GET", "/metrics")).text
    local.state = "cordoned"
    assert (await farm.ok("operator", "GET", "/microservers/local"))["verbs"] == ["uncordon", "drain"], "as turned"
    farm.fleet.placing.state.microservers["local"]["silent"]["since"] -= 3 * farm.parts.lease
    await watch(farm).look()
    assert (await farm.ok("ann", "GET", "/microservers/local"))["state"] == "silent", "a run there has just its lease"
    farm.db.move(2 * farm.parts.lease)
    await watch(farm, listens=True).look()
    assert (await farm.ok("ann", "GET", "/microservers/local"))["state"] == "silent", "a supervisor there listens"
    await watch(farm).look()
    assert (await farm.ok("ann", "GET", "/microservers/local"))["state"] == "lost"
    (trouble,) = troubles_of(next(one for one in await farm.fleet.microservers() if one["name"] == "local"))
    assert (trouble["state"], trouble["why"]) == ("lost", "it does not answer") and trouble["since"].endswith("UTC")
    await watch(farm, listens=True).look()
    assert (await farm.ok("ann", "GET", "/microservers/local"))["state"] == "silent"
    await watch(farm).look()
    local.silent = ""
    assert (await farm.ok("ann", "GET", "/microservers/local"))["since"] is None
    await watch(farm).look()
    kinds = [kind for kind, _, name in await noted(farm) if name == "local"]
    assert kinds == ["microserver.lost", "microserver.returned"] * 2


@pytest.mark.parametrize(
    ("silent_for", "renewed", "listens", "lost"),
    [
        (100.0, [], False, True), (29.0, [], False, False), (100.0, [40.0, 31.0], False, True), (100.0, [40.0, 29.0], False, False),
        (100.0, [], True, False),
    ],
)  # fmt: skip
def test_one_sign_of_life_is_enough_not_to_be_lost(
    silent_for: float, renewed: list[float], listens: bool, lost: bool
) -> None:
    assert bool(why_lost(silent_for, renewed, listens, 30.0)) is lost


async def test_who_may_see_an_agent_reads_and_follows_what_its_server_wrote(
    farm: Service, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await farm.agent()
    assert (await farm.ask("ann", "GET", "/agents/analyst/logs")).status_code == 404
    written = farm.fleet.logs[unit_name("agent-analyst")] = ["one", "two", "\x1b[2Jthree\tok"]
    told = await farm.ok("ann", "GET", "/agents/analyst/logs?lines=2")
    assert told["lines"] == written[1:] and told["microserver"] == "local"
    assert (await farm.ask("bob", "GET", "/agents/analyst/logs")).status_code == 404
    for wrong in ("lines=0", "wait=11", "after=--flush", "follow=1"):
        assert (await farm.ask("ann", "GET", f"/agents/analyst/logs?{wrong}")).status_code == 422
    code, said = await command(farm, "ann", capsys, "agent", "logs", "analyst", "-n", "1")
    assert (code, said) == (0, "\\x1b[2Jthree\tok\n"), "a terminal is not told what to do"
    monkeypatch.setattr(logs, "PAUSE_SECONDS", 0.01)
    following = asyncio.create_task(command(farm, "ann", capsys, "agent", "logs", "analyst", "-n", "1", "--follow"))
    for cursor in ("3", "4"):
        while cursor not in farm.fleet.read_behind:
            assert not following.done()
            await asyncio.sleep(0.01)
        if cursor == "3":
            written.append("four")
        else:
            farm.fleet.logs.clear()
    code, said = await following
    assert code == 2 and "three\tok\nfour\n" in said

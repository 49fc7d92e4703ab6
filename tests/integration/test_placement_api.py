"""Where servers go: explained, set and marked by API and command line, on both databases; who may do what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from servicekit import GIB, FakeMachine, Service, service

from jupyterhub_agentfarm.cli.main import main
from jupyterhub_agentfarm.records import unit_name

POOL = ("analyst", "other")


@pytest.fixture
async def farm(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        gpu = FakeMachine(
            memory=16 * GIB, memory_free=16 * GIB, cpu_flags=["avx2"], gpus=[{"name": "H200", "memory": 140 * GIB}]
        )
        running.fleet.machines["micro1"] = gpu
        yield running


async def command(farm: Service, token: str, capsys: Any, *words: str) -> tuple[int, str]:
    """Run the command line as somebody; return its exit code and what it printed."""
    environment = {"AGENTFARM_URL": farm.url, "AGENTFARM_TOKEN": token}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        capsys.readouterr()
        code = await asyncio.to_thread(main, list(words))
    told = capsys.readouterr()
    return code, told.out + told.err


async def test_an_operator_labels_taints_and_keeps_room_and_the_farm_s_chain_says_who(
    farm: Service, capsys: Any
) -> None:
    assert (await farm.ask("ann", "PATCH", "/microservers/micro1", {"labels": {"zone": "a"}})).status_code == 403
    shown = await farm.ask("operator", "GET", "/microservers/micro1")
    assert shown.headers["ETag"] == '"0"' and shown.json()["labels"]["gpu"] == "H200"
    now = await farm.ok("operator", "PATCH", "/microservers/micro1", {"labels": {"zone": "a"}}, **{"If-Match": '"0"'})
    assert now["labels"]["zone"] == "a" and now["rev"] == 1 and now["by"] == "root"
    late = await farm.ask("operator", "PATCH", "/microservers/micro1", {"taints": {"x": ""}}, **{"If-Match": '"0"'})
    assert late.status_code == 409 and late.json()["rev"] == 1 and "root changed micro1" in late.json()["detail"]
    assert (
        await farm.ask("operator", "POST", "/microservers/micro1/cordon", {}, **{"If-Match": '"0"'})
    ).status_code == 409
    for wrong in ({"labels": {"a b": "c"}}, {"reserve_memory": -1}, {"colour": "red"}):
        assert (await farm.ask("operator", "PATCH", "/microservers/micro1", wrong)).status_code == 422
    code, said = await command(farm, "operator", capsys, "microserver", "taint", "micro1", "kept=for the trading desk")
    assert code == 0 and "taints kept" in said
    await command(farm, "operator", capsys, "microserver", "label", "micro1", "zone-", "disk=ssd")
    await command(farm, "operator", capsys, "microserver", "reserve", "micro1", "--memory", "2GiB", "--cpu", "0.5")
    code, said = await command(farm, "operator", capsys, "microserver", "show", "micro1", "--json")
    told = json.loads(said)
    assert (told["labels"], told["taints"]) == ({"gpu": "H200", "disk": "ssd"}, {"kept": "for the trading desk"})
    assert (told["reserve_memory"], told["reserve_cpu"]) == (2 * GIB, 0.5)
    code, said = await command(farm, "ann", capsys, "microserver", "list")
    assert code == 0 and "disk=ssd gpu=H200" in said and "kept" in said
    assert (await command(farm, "ann", capsys, "microserver", "cordon", "micro1"))[0] == 4
    events = (await farm.ok("operator", "GET", "/runs/farm/events?limit=1000"))["items"]
    changes = [one for one in events if one["kind"] == "microserver.changed"]
    assert [one["body"].get("labels") for one in changes] == [{"zone": "a"}, None, {"zone": None, "disk": "ssd"}, None]
    assert {one["by"] for one in changes} == {"user:root"}


async def test_what_an_agent_s_server_is_promised_is_set_by_who_manages_it_within_the_farm_s_limits(
    farm: Service, capsys: Any
) -> None:
    await farm.agent()
    code, said = await command(
        farm, "ann", capsys, "agent", "resources", "analyst", "--memory", "2GiB", "--gpus", "1", "--flag", "avx2"
    )
    assert code == 0 and "2 GiB" in said
    found = await farm.ok("ann", "GET", "/agents/analyst/resources")
    assert found["resources"] == {"memory": 2 * GIB, "gpus": 1, "flags": ["avx2"]} and found["feasible"] == "now"
    told = farm.fleet.placing.demand(unit_name("agent-analyst"))
    assert (told.memory, told.gpus, told.flags) == (2 * GIB, 1, ("avx2",))
    assert (await farm.ask("ann", "PUT", "/agents/analyst/resources", {"pin": "micro1"})).status_code == 403
    code, said = await command(
        farm, "operator", capsys, "placement", "settings", "--most-memory", "1GiB", "--rank", "binpack"
    )
    assert code == 0 and "binpack" in said
    refused = await farm.ask("ann", "PUT", "/agents/analyst/resources", {"memory": 3 * GIB})
    assert refused.status_code == 422 and "the most that you may" in refused.json()["detail"]
    await farm.ok("operator", "PUT", "/agents/analyst/resources", {"memory": 100 * GIB, "pin": "micro1"})
    code, said = await command(farm, "ann", capsys, "placement", "explain", "analyst")
    assert "micro1: it has 16384 MiB" in said and "pinned to micro1" in said and "feasible: never" in said
    await farm.ok("ann", "POST", "/agents/analyst/start", {})
    assert farm.fleet.placing.demand(unit_name("agent-analyst")).memory == 100 * GIB
    kinds = [one["kind"] for one in (await farm.ok("operator", "GET", "/runs/farm/events?limit=1000"))["items"]]
    assert kinds.count("agent.resourced") == 2 and "placement.changed" in kinds


async def test_where_an_agent_s_server_may_go_is_listed_by_operators_and_shown_to_its_owner(
    farm: Service, capsys: Any
) -> None:
    await farm.agent()
    unit, path = unit_name("agent-analyst"), "/agents/analyst/resources"

    def reaches() -> list[str] | None:
        return farm.fleet.placing.egress(unit, {}, "agent-analyst")

    assert reaches() == [] and farm.fleet.placing.egress("af-ann", {}, "ann") is None
    assert (await farm.ask("ann", "PUT", path, {"egress": ["*:443"]})).status_code == 403
    wrong = await farm.ask("operator", "PUT", path, {"egress": ["https://api.example.com"]})
    assert wrong.status_code == 422 and "no place to go" in wrong.json()["detail"]
    wrong = await farm.ask("operator", "PUT", "/placements/settings", {"servers": {"egress": ["10.0.0.1/8:443"]}})
    assert wrong.status_code == 422 and "host bits" in wrong.json()["detail"]
    code, said = await command(farm, "operator", capsys, "placement", "settings", "--egress", "*:443")
    assert code == 0 and "*:443" in said and reaches() == ["*:443"]
    words = ("agent", "resources", "analyst", "--egress")
    code, said = await command(farm, "operator", capsys, *words, "api.example.com:443", "--egress", "10.0.0.5:5432")
    assert code == 0 and reaches() == ["api.example.com:443", "10.0.0.5:5432"]
    code, said = await command(farm, "ann", capsys, "agent", "resources", "analyst", "--memory", "1GiB")
    assert code == 0 and "api.example.com:443, 10.0.0.5:5432" in said  # she keeps what the operator has set
    code, said = await command(farm, "operator", capsys, *words, "none")
    assert code == 0 and "nowhere but to the farm" in said and reaches() == []
    await command(farm, "operator", capsys, *words, "farm")
    assert reaches() == ["*:443"] and (await farm.ok("ann", "GET", path))["resources"] == {"memory": GIB}


async def test_why_here_names_what_was_promised_and_a_rebalance_is_only_told(farm: Service, capsys: Any) -> None:
    placing = farm.fleet.placing
    for name in ("one", "two", "three"):
        await farm.agent(name)
        unit = unit_name(f"agent-{name}")
        await farm.ok("ann", "PUT", f"/agents/{name}/resources", {"memory": GIB, "workspace": "none"})
        placing.choose(placing.demand(unit), {"local": await farm.fleet.machines["local"].facts()})
        placing.started(unit)
    farm.hub.running |= {"agent-one"}
    code, said = await command(farm, "ann", capsys, "placement", "explain", "one")
    assert code == 0 and "the server of one is on local: the only one that fits" in said and "micro1: fits" in said
    code, said = await command(farm, "operator", capsys, "placement", "rebalance")
    assert code == 2 and "--dry-run" in said
    code, said = await command(farm, "operator", capsys, "placement", "rebalance", "--dry-run")
    assert code == 0 and "agent-" in said and "micro1" in said and "by spread" in said
    assert (await farm.ask("ann", "GET", "/placements/rebalance")).status_code == 403
    code, said = await command(farm, "ann", capsys, "status")
    assert "one" in said and "local" in said


async def test_a_task_s_requirements_narrow_a_pool_to_members_that_have_what_it_needs(
    farm: Service, capsys: Any
) -> None:
    for name in POOL:
        await farm.ok("ann", "POST", "/agents", {"name": name, "pool": "all", "draft": {"prompt": "p"}})
        await farm.ok("ann", "POST", f"/agents/{name}/publish", {})
    await farm.ok("ann", "PUT", "/agents/other/resources", {"memory": 4 * GIB, "labels": {"gpu": "H200"}})
    refused = await farm.ask(
        "ann", "POST", "/tasks", {"target": "analyst", "input": "x", "requirements": {"memory": 4 * GIB}}
    )
    assert (
        refused.status_code == 422
        and "its server is promised 1024 MiB, the task needs 4096" in refused.json()["detail"]
    )
    assert (
        await farm.ask("ann", "POST", "/tasks", {"target": "analyst", "input": "x", "requirements": {"colour": 1}})
    ).status_code == 422
    impossible = await farm.ok(
        "ann", "POST", "/tasks", {"target": "pool:all", "input": "x", "requirements": {"gpus": 8}}
    )
    farm.hub.refuses_start = "no room"
    code, said = await command(
        farm, "ann", capsys, "task", "submit", "pool:all", "x", "--memory", "4GiB", "--label", "gpu=H200", "--json"
    )
    wanted = json.loads(said)
    assert code == 0 and wanted["requirements"] == {"memory": 4 * GIB, "labels": {"gpu": "H200"}}
    for _ in range(500):
        failed = await farm.ok("ann", "GET", f"/tasks/{impossible['task_id']}")
        if failed["status"] == "failed":
            break
        farm.scheduler.wake()
        await asyncio.sleep(0.02)
    assert (
        failed["error"]["type"] == "unplaceable"
        and "analyst: its server is promised 0 GPUs, the task needs 8" in failed["error"]["message"]
    )
    explained = await farm.ok("ann", "GET", f"/placements/explain?task={wanted['task_id']}")
    assert explained["members"]["analyst"].startswith("its server is promised 1024 MiB")
    assert any("its owner's next at pool:all" in sentence for sentence in explained["queue"])
    claim = await farm.claim("other", wait=15)
    assert claim is not None
    taken = await farm.ok("ann", "GET", f"/tasks/{wanted['task_id']}")
    assert taken["agent"] == "other"


async def test_a_task_whose_agent_has_its_files_where_nobody_can_ask_waits_for_that_microserver_by_name(
    farm: Service,
) -> None:
    """The Hub does not know that the server is away: to it, it runs."""
    await farm.agent()
    farm.hub.running.add("agent-analyst")
    unit = {"user": "agent-analyst", "microserver": "micro1", "home": "micro1", "promise": {"memory": GIB}}
    farm.fleet.placing.state.units[unit_name("agent-analyst")] = unit
    farm.fleet.machines["micro1"].silent = "it does not answer"
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"})
    for _ in range(1500):
        told = (await farm.ok("ann", "GET", f"/placements/explain?task={task['task_id']}"))["queue"]
        if any("micro1" in why for why in told):
            break
        await asyncio.sleep(0.02)
    assert any("on micro1, which cannot be reached" in why for why in told), told


async def test_why_a_task_waits_is_said_sentence_by_sentence(farm: Service, capsys: Any) -> None:
    await farm.agent()
    farm.hub.refuses_start = "no room at all"
    keyed = {"target": "analyst", "input": "x", "concurrency_key": "account"}
    first = await farm.ok("ann", "POST", "/tasks", keyed)
    claim = await farm.claim("analyst", wait=5)
    assert claim is not None
    held = await farm.ok("ann", "POST", "/tasks", keyed)
    behind = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "y"})
    after = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "z", "after": [first["task_id"]]})

    async def told(task: dict[str, Any]) -> str:
        code, said = await command(farm, "ann", capsys, "placement", "explain", task["task_id"])
        assert code == 0
        return said

    assert "its run goes on: w" in await told(first)
    assert f"its concurrency key account is held by {claim['run']}" in await told(held)
    assert "1 of its owner's tasks stand before it at analyst" in await told(behind)
    assert f"it comes after {first['task_id']}, which has not ended" in await told(after)
    assert (await farm.ask("bob", "GET", f"/placements/explain?task={held['task_id']}")).status_code == 404


async def test_people_s_own_servers_are_told_to_operators_with_their_microserver_and_why(
    farm: Service, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hers = {"user": "petra", "server": "", "state": "running", "why": "it is pinned there"}

    async def units() -> list[dict[str, Any]]:
        return [{**hers, "unit": unit_name("petra"), "microserver": "local"}]

    monkeypatch.setattr(farm.fleet, "units", units)
    told = {
        asker: {
            one["name"]: one["people"]
            for one in (await farm.ok(asker, "GET", "/microservers"))["items"]
            if one["people"]
        }
        for asker in ("operator", "ann")
    }
    here = {"person": "petra", "server": "", "state": "running", "why": "it is pinned there"}
    assert told == {"operator": {"local": [here]}, "ann": {}}
    _, said = await command(farm, "operator", capsys, "status")
    assert "petra, a person" in said and "it is pinned there" in said

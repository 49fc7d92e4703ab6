"""Runs in mode `simulate`, on both databases: nothing is really done, whatever the worker would do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from servicekit import Service
from test_inbox import FILES, PAY, append, ask_model, decide, farm, kinds, opened, paying, shown, until

from agentfarm_sdk.ledger import FarmLedger
from agentfarm_sdk.loop import Loop
from agentfarm_sdk.model import GatewayModel

__all__ = ["farm"]
LOOK = {"name": "look", "source": "file:tools.py", "effect": "read", "schema": PAY["schema"]}
LOOKS = (
    FILES["tools.py"]
    + '\n\n@tool(effect="read")\ndef look(to: str = "", size: float = 0) -> str:\n    return "looked"\n'
)


async def with_tools(farm: Service) -> None:
    draft = {"prompt": "You pay.", "tools": [PAY, LOOK], "limits": {"calls": None}}
    await farm.ok("ann", "POST", "/agents", {"name": "analyst", "draft": draft, "files": {"tools.py": LOOKS}})
    await farm.ok("ann", "POST", "/agents/analyst/publish", {})


async def driven(farm: Service, tmp_path: Path, *script: Any, **task: Any) -> dict[str, Any]:
    """Submit a task and let the real loop lead its run, where the model says what is written; return the task."""
    submitted = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "pay", **task})
    farm.model.script[:] = script
    await lead(farm, tmp_path)
    found: dict[str, Any] = await farm.ok("ann", "GET", f"/tasks/{submitted['task_id']}")
    return found


async def lead(farm: Service, workspace: Path) -> None:
    claim = await farm.claim(wait=5)
    assert claim
    ledger = FarmLedger(farm.url, claim["run"], claim["fence"], claim["token"])
    loop = Loop(ledger, GatewayModel(claim["run"], claim["fence"], ledger.request), workspace=workspace)
    try:
        await asyncio.wait_for(loop.run(), 30)
    finally:
        await ledger.close()


def told(farm: Service) -> list[str]:
    return [one["content"] for one in farm.model.asked[-1].messages if one["role"] == "tool"]


async def test_an_effect_is_answered_by_its_stub_and_a_read_is_really_done(farm: Service, tmp_path: Path) -> None:
    await with_tools(farm)
    script = [("pay", {"to": "bob", "size": 1}), ("look", {}), "done"]
    task = await driven(farm, tmp_path, *script, simulate={"stubs": {"pay": {"id": 7}}})
    assert (task["mode"], task["status"], task["result"]) == ("simulate", "succeeded", "done")
    assert told(farm) == ['{"id":7}', "looked"]
    events = (await farm.ok("ann", "GET", f"/runs/{task['run_id']}/events"))["items"]
    assert [event["body"]["tool"] for event in events if event["kind"] == "tool.started"] == ["look"]
    (answered,) = [event for event in events if event["body"].get("simulated")]
    assert (answered["kind"], answered["by"], answered["body"]["simulated"]) == ("tool.succeeded", "gateway", "stub")
    assert events[0]["body"]["simulate"] == {"stubs": {"pay": {"id": 7}}}
    again = await farm.ok("ann", "POST", f"/tasks/{task['task_id']}/rerun", {})
    assert again["mode"] == "simulate"


async def test_a_recording_answers_the_same_calls_in_order_and_a_person_what_it_does_not_know(
    farm: Service, tmp_path: Path
) -> None:
    await with_tools(farm)
    pay = ("pay", {"to": "bob", "size": 1})
    claim, first = await paying(farm)
    await append(farm, claim, 1, "tool.succeeded", {"result": "one"}, first["call"])
    (second,) = (await ask_model(farm, claim, pay, n=1))["calls"]
    await append(farm, claim, 2, "tool.failed", {"error": {"type": "x", "message": "no money"}}, second["call"])
    await append(farm, claim, 3, "run.failed", {"error": {"type": "x", "message": "no money"}})

    asked = [pay, ("pay", {"to": "eve"}), pay, ("look", {"to": "bob"}), "done"]
    task = await driven(farm, tmp_path, *asked, mode="simulate", simulate={"recording": claim["run"]})
    assert (task["status"], task["waiting"]) == ("waiting", "approval"), "nobody recorded a payment to eve"
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    assert item["kind"] == "simulation" and item["detail"]["arguments"] == {"to": "eve"}
    assert "simulated call cannot" in (await decide(farm, "ann", item, "approve", 422))["detail"]
    for token in ("agent-analyst", "approving-agent", "ann-server"):
        await decide(farm, token, item, "answer", 403, result="mine")
    farm.model.script[:] = asked[2:]
    done = await decide(farm, "ann", item, "answer", result={"paid": "eve"}, reason="let it be so")
    assert (done["decision"], done["decided_by"]) == ("answered", "user:ann")
    await lead(farm, tmp_path)
    assert told(farm) == ["one", '{"paid":"eve"}', "Error: no money", "looked"]
    assert (await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"))["status"] == "succeeded"
    started = [kind for kind in await kinds(farm, task["run_id"]) if kind == "tool.started"]
    assert len(started) == 1, "the read alone"


async def test_a_call_without_an_answer_is_refused_where_nobody_is_to_be_asked(farm: Service, tmp_path: Path) -> None:
    await with_tools(farm)
    script = [("pay", {"to": "bob"}), "well"]
    task = await driven(farm, tmp_path, *script, mode="simulate", simulate={"otherwise": "refuse"})
    assert task["status"] == "succeeded" and "there is no answer for this call" in told(farm)[0]
    assert (await farm.ok("ann", "GET", "/inbox"))["items"] == []


async def test_a_person_may_refuse_to_answer_and_the_worker_cannot_answer_itself(farm: Service) -> None:
    await with_tools(farm)
    claim, call = await paying(farm, mode="simulate")
    assert call["state"] == "awaiting"
    for kind in ("tool.succeeded", "tool.failed"):
        body = {
            "fence": claim["fence"],
            "n": 1,
            "events": [{"kind": kind, "body": {"result": 1}, "call": call["call"]}],
        }
        assert (await farm.ask(claim["token"], "POST", f"/runs/{claim['run']}/events", body)).status_code == 409
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    await append(farm, claim, 1, "run.parked", {"reason": "approval"})
    await decide(farm, "ann", item, "refuse", reason="the bank would not")
    await until(lambda: queued(farm, claim["run"]))
    taken = await opened(farm)
    assert "calls" not in taken
    await ask_model(farm, taken, "well")
    assert shown(farm) == "Error: the bank would not"


async def queued(farm: Service, run: str) -> bool:
    return bool((await farm.ok("ann", "GET", f"/runs/{run}"))["status"] == "queued")


async def test_what_cannot_answer_is_refused_at_the_door(farm: Service) -> None:
    await with_tools(farm)
    for given, status, says in (
        ({"mode": "live", "simulate": {}}, 422, "mode live is not simulated"),
        ({"simulate": {"stubs": {"pai": 1}}}, 422, "there is no tool 'pai'"),
        ({"simulate": {"stubs": {"pay": "x" * 20000}}}, 422, "stubs of that size"),
        ({"simulate": {"recording": "run-none"}}, 404, "there is no run run-none"),
        ({"simulate": {"recording": "farm"}}, 404, "there is no run farm"),
        ({"simulate": {"record": "x"}}, 422, "unknown field `record`"),
    ):
        answer = await farm.ask("ann", "POST", "/tasks", {"target": "analyst", "input": "x", **given})
        assert answer.status_code == status and says in answer.json()["detail"], answer.text


async def test_a_stranger_s_run_is_no_recording(farm: Service) -> None:
    await with_tools(farm)
    claim, _ = await paying(farm)
    await farm.agent("other", owner="bob")
    task = {"target": "other", "input": "x", "simulate": {"recording": claim["run"]}}
    assert (await farm.ask("bob", "POST", "/tasks", task)).status_code == 404


@pytest.mark.parametrize(("mode", "livelier"), [("ask", ["live"]), ("simulate", ["live", "ask"])])
async def test_what_an_agent_submits_by_itself_is_not_livelier_than_its_run_under_way(
    farm: Service, mode: str, livelier: list[str]
) -> None:
    """A kernel that submits in its agent's name would else do live what its run may only ask for."""
    await with_tools(farm)
    await farm.agent("helper")
    task, tried = {"target": "helper", "input": "x"}, {"definition": {"prompt": "p"}, "input": "x"}
    mine = await farm.ok("agent-analyst", "POST", "/tasks", {**task, "key": "k"})
    assert mine["mode"] == "live", "nothing is under way"
    await farm.ok("agent-analyst", "POST", f"/tasks/{mine['task_id']}/cancel", {})

    claim, _ = await paying(farm, mode=mode)
    for wanted in livelier:
        for path, body in (
            ("/tasks", {**task, "mode": wanted}),
            ("/tasks", {"tasks": [task, {**task, "mode": wanted}]}),
            ("/runs", {**tried, "mode": wanted}),
            (f"/runs/{claim['run']}/fork", {"mode": wanted}),
        ):
            answer = await farm.ask("agent-analyst", "POST", path, body)
            assert answer.status_code == 403 and f"mode {mode} under way" in answer.json()["detail"], answer.text
    held = await farm.ok("agent-analyst", "POST", "/tasks", task)
    again = await farm.ok("agent-analyst", "POST", f"/tasks/{mine['task_id']}/rerun", {})
    fork = await farm.ok("agent-analyst", "POST", f"/runs/{claim['run']}/fork", {})
    assert [one["mode"] for one in (held, again, fork)] == [mode] * 3
    known = await farm.ok("agent-analyst", "POST", "/tasks", {**task, "key": "k"})
    assert known["task_id"] == mine["task_id"], "the same key is the same task, whatever goes on meanwhile"
    assert (await farm.ok("ann", "POST", "/tasks", task))["mode"] == "live", "a person may"

    await append(farm, claim, 1, "run.failed", {"error": {"type": "x", "message": "over"}})
    assert (await farm.ok("agent-analyst", "POST", "/tasks", task))["mode"] == "live"

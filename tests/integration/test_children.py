"""Agents that delegate: each child exactly once, the parent without a kernel meanwhile. Real service, store and kernels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from servicekit import ACCESS, TOKENS, Service, service
from workerkit import Kernel

from agentfarm_sdk import Agent
from agentfarm_sdk.testing import FakeFarm, ScriptedModel, calls, says
from jupyterhub_agentfarm.gateway.asking import Ask, AskedCall, OnToken, Reply
from jupyterhub_agentfarm.gateway.families import Families


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as farm:
        for name in ("boss", "analyst"):
            await farm.ok(
                "ann", "POST", "/agents", {"name": name, "draft": {"prompt": "p", "tools": [{"name": "delegate"}]}}
            )
            await farm.ok("ann", "POST", f"/agents/{name}/publish", {})
        yield farm


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[Kernel]:
    folder = tmp_path / "workspace"
    folder.mkdir()
    kernel = Kernel(folder)
    await kernel.start()
    yield kernel
    await kernel.stop()


async def claimed(farm: Service, agent: str, wait: float = 10) -> dict[str, Any] | None:
    body = {"worker": "w", "claim_id": f"d{next(farm.counter)}", "wait": wait}
    claim: dict[str, Any] | None = await farm.ok(f"agent-{agent}", "POST", "/claims", body)
    return claim


async def delegated(
    farm: Service, target: str, agent: str = "boss", **more: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Submit a task, and let its run delegate a part, as a worker would; return the task and the claim."""
    task = await farm.ok("ann", "POST", "/tasks", {"target": agent, "input": "Do it.", **more})
    claim = await claimed(farm, agent)
    assert claim
    await call_delegate(farm, claim, target)
    return task, claim


async def call_delegate(farm: Service, claim: dict[str, Any], target: str) -> None:
    farm.model.script.append(("delegate", {"target": target, "input": "What is 2+2?"}))
    asked = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}}
    await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", asked)
    body = {"target": target, "input": "What is 2+2?"}
    for n, event in enumerate(
        (
            {"kind": "child.submitted", "call": "c0-0", "body": body},
            {"kind": "run.parked", "body": {"reason": "child"}},
        ),
        1,
    ):
        for _ in range(2):  # the answer was lost: it is sent again
            sent = {"fence": claim["fence"], "n": n, "events": [event]}
            await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", sent)


async def test_a_worker_gets_at_no_file_of_others_by_naming_it_for_a_child(farm: Service) -> None:
    content = b"of bob alone"
    async with farm.client("bob") as client:
        named = (await client.post("/blobs", content=content)).json()["sha256"]
    await farm.ok("ann", "POST", "/tasks", {"target": "boss", "input": "Do it."})
    claim = await claimed(farm, "boss")
    assert claim
    farm.model.script.append(("delegate", {"target": "analyst", "input": "Read it."}))
    asked = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}}
    await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", asked)
    given = [{"type": "file", "blob": named, "media_type": "text/plain"}]
    event = {"kind": "child.submitted", "call": "c0-0", "body": {"target": "analyst", "input": given}}
    sent = {"fence": claim["fence"], "n": 1, "events": [event]}
    await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", sent)
    told = (await events(farm, claim["run"]))[-1]
    assert told["kind"] == "child.finished" and told["body"]["status"] == "refused"
    assert "no blob" in told["body"]["error"]["message"] and await children(farm, claim["run"]) == []


async def children(farm: Service, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await farm.ok("ann", "GET", f"/tasks?parent={run}"))["items"]
    return found


async def shown(farm: Service, task: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = await farm.ok("ann", "GET", f"/tasks/{task['task_id']}")
    return found


async def events(farm: Service, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await farm.ok("ann", "GET", f"/runs/{run}/events"))["items"]
    return found


async def test_a_real_worker_delegates_parks_and_goes_on_with_the_result(farm: Service, kernel: Kernel) -> None:
    async def hand(agent: str) -> str:
        claim = await claimed(farm, agent)
        assert claim
        kernel.told.clear()
        kernel.tell(url=farm.url, run=claim["run"], fence=claim["fence"], token=claim["token"])
        return str((await kernel.says(lambda one: one.get("finished")))["outcome"])

    task = await farm.ok(
        "ann", "POST", "/tasks", {"target": "boss", "input": "Do it.", "priority": 7, "deadline": 3600}
    )
    farm.model.script += [("delegate", {"target": "analyst", "input": "2+2"}), "4", "The analyst says 4."]
    assert await hand("boss") == "parked"
    waiting = await shown(farm, task)
    assert (waiting["status"], waiting["waiting"]) == ("waiting", "child")
    (child,) = await children(farm, waiting["run_id"])
    assert (child["target"], child["input"], child["priority"]) == ("analyst", "2+2", 7)
    assert child["deadline"] == waiting["deadline"] and child["submitted_by"] == "agent-boss"
    assert await hand("analyst") == "succeeded"
    assert await hand("boss") == "succeeded"
    assert (await shown(farm, task))["result"] == "The analyst says 4."
    assert farm.model.asked[-1].messages[-2]["content"] == "4"
    assert (await farm.ok("ann", "GET", f"/runs/{waiting['run_id']}/verify"))["ok"]


async def test_what_was_delegated_is_submitted_once_and_its_failure_told_to_the_model(farm: Service) -> None:
    task, claim = await delegated(farm, "analyst")
    (child,) = await children(farm, claim["run"])
    await farm.ok("ann", "POST", f"/tasks/{child['task_id']}/cancel", {"reason": "no need"})
    assert (await shown(farm, task))["status"] == "queued"
    told = (await events(farm, claim["run"]))[-2]
    assert told["kind"] == "child.finished" and told["body"]["status"] == "cancelled"
    assert "no need" in told["body"]["error"]["message"]


@pytest.mark.parametrize(
    ("target", "why"), [("boss", "circle"), ("nobody", "no agent nobody"), ("pool:none", "no pool none")]
)
async def test_what_cannot_be_delegated_is_told_to_the_model_at_once(farm: Service, target: str, why: str) -> None:
    task, claim = await delegated(farm, target)
    assert (await shown(farm, task))["status"] == "queued" and await children(farm, claim["run"]) == []
    told = next(one for one in await events(farm, claim["run"]) if one["kind"] == "child.finished")
    assert told["body"]["status"] == "refused" and why in told["body"]["error"]["message"]


async def test_a_child_cannot_delegate_back_nor_may_its_owner_be_another(farm: Service) -> None:
    await delegated(farm, "analyst")
    claim = await claimed(farm, "analyst")
    assert claim
    await call_delegate(farm, claim, "boss")
    told = next(one for one in await events(farm, claim["run"]) if one["kind"] == "child.finished")
    assert "circle" in told["body"]["error"]["message"]
    await farm.ok("ann", "POST", "/agents/boss/shares", {"person": "cho", "rights": "chat"})
    await farm.ok("chatter", "POST", "/tasks", {"target": "boss", "input": "Do it."})
    lent = await claimed(farm, "boss")
    assert lent
    await call_delegate(farm, lent, "analyst")
    told = next(one for one in await events(farm, lent["run"]) if one["kind"] == "child.finished")
    assert "no agent analyst that cho may use" in told["body"]["error"]["message"]


async def test_tasks_are_delegated_eight_deep_and_no_deeper(farm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"deep{number}" for number in range(9)]
    for name in names:
        monkeypatch.setitem(
            TOKENS, f"agent-{name}", (f"agent-{name}", [ACCESS, f"custom:agentfarm:act!user=agent-{name}"])
        )
        await farm.ok(
            "ann", "POST", "/agents", {"name": name, "draft": {"prompt": "p", "tools": [{"name": "delegate"}]}}
        )
        await farm.ok("ann", "POST", f"/agents/{name}/publish", {})
    await farm.ok("ann", "POST", "/tasks", {"target": names[0], "input": "Do it."})
    for name, following in zip(names, [*names[1:], "boss"], strict=True):
        claim = await claimed(farm, name, wait=0)
        if claim is None:
            break
        await call_delegate(farm, claim, following)
        last = claim
    assert name == "deep8", "deep7 is the eighth"
    told = next(one for one in await events(farm, last["run"]) if one["kind"] == "child.finished")
    assert "8 deep at most" in told["body"]["error"]["message"]


async def test_cancelling_the_parent_cancels_its_children_and_so_does_its_deadline(farm: Service) -> None:
    task, claim = await delegated(farm, "analyst")
    (child,) = await children(farm, claim["run"])
    await farm.ok("ann", "POST", f"/tasks/{task['task_id']}/cancel", {"reason": "enough"})
    assert (await shown(farm, task))["status"] == "cancelled"
    assert (await shown(farm, child))["status"] == "cancelled"
    hurried, claim = await delegated(farm, "analyst", deadline=1.0)
    (child,) = await children(farm, claim["run"])
    for _ in range(400):
        if (await shown(farm, hurried))["status"] == "cancelled":
            break
        await asyncio.sleep(0.01)
    assert "deadline" in (await shown(farm, hurried))["error"]["message"]
    assert (await shown(farm, child))["status"] == "cancelled"


def test_outside_a_farm_the_model_is_told_that_there_is_nobody() -> None:
    model = ScriptedModel(calls("delegate", target="analyst", input="2+2"), says("Then I do it: 4."))
    with FakeFarm() as alone:
        run = alone.run(Agent("alone", tools=["delegate"], model=model, mode="live"), "What is 2+2?")
        assert run.result == "Then I do it: 4." and "outside a farm" in model.shown[-1][-1]["content"]


async def say(farm: Service, claim: dict[str, Any], request: str, n: int, said: Any = "4") -> str:
    """Let a run's model say something; return "" or why it was not asked."""
    farm.model.script[:] = [said]
    asked = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": request, "n": n}}
    answer = await farm.ask(claim["token"], "POST", "/model/v1/chat/completions", asked)
    assert answer.is_success or answer.json()["type"].endswith("limit-reached"), answer.text
    return "" if answer.is_success else str(answer.json()["detail"])


@pytest.mark.parametrize("restart", [False, True])
async def test_a_child_draws_on_the_limits_of_those_that_it_works_for(farm: Service, restart: bool) -> None:
    """Each reply costs five tokens, and the parent may use 20 with all that it delegates."""
    draft = {"draft": {"prompt": "p", "tools": [{"name": "delegate"}], "limits": {"tokens": 20}}}
    await farm.ok("ann", "PATCH", "/agents/boss", draft)
    await farm.ok("ann", "POST", "/agents/boss/publish", {})
    task, boss = await delegated(farm, "analyst")
    child = await claimed(farm, "analyst")
    assert child
    farm.model.script.append(("delegate", {"target": "boss", "input": "Do it yourself."}))
    asked = {"agentfarm": {"run": child["run"], "fence": child["fence"], "request": "q0", "n": 0}}
    await farm.ok(child["token"], "POST", "/model/v1/chat/completions", asked)
    back = {"kind": "child.submitted", "call": "c0-0", "body": {"target": "boss", "input": "Do it yourself."}}
    body = {"fence": child["fence"], "n": 1, "events": [back]}
    await farm.ok(child["token"], "POST", f"/runs/{child['run']}/events", body)  # a circle: told at once
    if restart:  # what was used is read from the ledger, in place of memory
        farm.parts.models.families = Families(farm.db)
        farm.parts.live.drop(child["run"])
    said = ("delegate", {"target": "boss", "input": "Please."})
    assert await say(farm, child, "q1", 1, said) == ""
    body = {"fence": child["fence"], "n": 2, "events": [{**back, "call": "c1-0"}]}
    await farm.ok(child["token"], "POST", f"/runs/{child['run']}/events", body)
    assert await say(farm, child, "q2", 2, said) == "", "15 are used before it"
    body = {"fence": child["fence"], "n": 3, "events": [{**back, "call": "c2-0"}]}
    await farm.ok(child["token"], "POST", f"/runs/{child['run']}/events", body)
    assert f"run {boss['run']} of boss, which delegated this, may use 20 tokens" in await say(farm, child, "q3", 3)
    failed = {"kind": "run.failed", "body": {"error": {"type": "limit-reached", "message": "no more"}}}
    body = {"fence": child["fence"], "n": 4, "events": [failed]}
    await farm.ok(child["token"], "POST", f"/runs/{child['run']}/events", body)
    again = await claimed(farm, "boss")
    assert again and again["run"] == boss["run"]
    assert "this run may use 20 tokens with all that it delegates" in await say(farm, again, "r1", 0)
    assert (await shown(farm, task))["status"] == "running"


@pytest.mark.parametrize(("limit", "together"), [(20, 1), (100_000, 2)])
async def test_children_ask_side_by_side_only_while_what_they_may_use_fits_their_parents_limit(
    farm: Service, monkeypatch: pytest.MonkeyPatch, limit: int, together: int
) -> None:
    draft = {"draft": {"prompt": "p", "tools": [{"name": "delegate"}], "limits": {"tokens": limit}}}
    await farm.ok("ann", "PATCH", "/agents/boss", draft)
    await farm.ok("ann", "POST", "/agents/boss/publish", {})
    part = {"target": "analyst", "input": "What is 2+2?"}
    asking, go = list[int](), asyncio.Event()

    async def complete(ask: Ask, _on_token: OnToken | None) -> Reply:
        if not asking:
            asking.append(0)
            return Reply("", [AskedCall("delegate", json.dumps(part))] * 2, tokens_in=3, tokens_out=2, model="scripted")
        asking[0] += 1
        asking.append(asking[0])
        await go.wait()
        asking[0] -= 1
        return Reply("4", tokens_in=3, tokens_out=2, model="scripted")

    monkeypatch.setattr(farm.model, "complete", complete)
    await farm.ok("ann", "POST", "/tasks", {"target": "boss", "input": "Do it."})
    boss = await claimed(farm, "boss")
    assert boss
    asked = {"agentfarm": {"run": boss["run"], "fence": boss["fence"], "request": "r", "n": 0}}
    await farm.ok(boss["token"], "POST", "/model/v1/chat/completions", asked)
    events = [*({"kind": "child.submitted", "call": f"c0-{i}", "body": part} for i in range(2)), {"kind": "run.parked", "body": {"reason": "child"}}]  # fmt: skip
    await farm.ok(
        boss["token"], "POST", f"/runs/{boss['run']}/events", {"fence": boss["fence"], "n": 1, "events": events}
    )
    both = [await claimed(farm, "analyst"), await claimed(farm, "analyst")]
    replies = [asyncio.create_task(say(farm, child, "q", 0)) for child in both if child]
    while len(farm.parts.models._under_way) < 2 or len(asking) < 1 + together:  # noqa: ASYNC110 (others move it)
        await asyncio.sleep(0.01)
    for _ in range(500):  # whoever may ask has asked by then
        await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*replies) == ["", ""], "who waits asks when the other has its reply"
    assert max(asking[1:]) == together

"""What the farm itself does for a call: memory, timers, questions. Real service, both databases, real worker kernels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from servicekit import Service, service
from workerkit import Kernel

from agentfarm_sdk.ledger import FarmLedger
from agentfarm_sdk.protocol import moment, new_event
from jupyterhub_agentfarm.cli.main import main

CODE = """
from agentfarm_sdk import tool

@tool(effect="once")
def order(ctx, symbol: str) -> str:
    with open("orders", "a") as file:
        file.write(symbol + chr(10))
    ctx.remember("last/" + symbol, {"order": symbol, "before": ctx.recall("last/" + symbol)})
    ctx.wait_until(1.0, then="filled " + symbol)
"""
TOOLS = [
    *({"name": name} for name in ("remember", "forget", "recall", "wait_until", "ask_person")),
    {"name": "order", "schema": {"type": "object", "properties": {"symbol": {"type": "string"}}}, "source": "file:order.py", "effect": "once"},
]  # fmt: skip


@asynccontextmanager
async def running(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """The service with its reaper, which looks for what time alone decides."""
    async with service(tmp_path, url, monkeypatch) as farm:
        looking = asyncio.create_task(farm.reaper.run())
        try:
            yield farm
            assert not looking.done(), looking
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with running(tmp_path, database_url, monkeypatch) as farm:
        yield farm


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[Kernel]:
    folder = tmp_path / "workspace"
    folder.mkdir()
    kernel = Kernel(folder)
    await kernel.start()
    yield kernel
    await kernel.stop()


async def made(farm: Service) -> None:
    draft = {"prompt": "p", "tools": TOOLS}
    await farm.ok("ann", "POST", "/agents", {"name": "analyst", "draft": draft, "files": {"order.py": CODE}})
    await farm.ok("ann", "POST", "/agents/analyst/publish", {})


async def hand(farm: Service, kernel: Kernel) -> str:
    """Claim a run as the supervisor does, hand it to the kernel; return how it rests or ends."""
    claim = None
    while claim is None:
        claim = await farm.claim(wait=10)
    kernel.told.clear()
    kernel.tell(url=farm.url, run=claim["run"], fence=claim["fence"], token=claim["token"])
    return str((await kernel.says(lambda one: one.get("finished")))["outcome"])


async def run(farm: Service, kernel: Kernel, *script: Any) -> tuple[dict[str, Any], str]:
    """Submit a task and lead it to its next rest; return it, and what its worker said."""
    farm.model.script[:] = script
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "go"})
    outcome = await hand(farm, kernel)
    return await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"), outcome


async def events(farm: Service, task: dict[str, Any]) -> list[dict[str, Any]]:
    return list((await farm.ok("ann", "GET", f"/runs/{task['run_id']}/events"))["items"])


async def command(farm: Service, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Give the command line what ann types."""
    monkeypatch.setenv("AGENTFARM_URL", farm.url)
    monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
    return await asyncio.to_thread(main, list(words))


def told(farm: Service) -> list[Any]:
    """What the model was last told of its calls."""
    return [one["content"] for one in farm.model.asked[-1].messages if one["role"] == "tool"]


async def test_an_agent_remembers_from_one_run_to_the_next_and_a_person_lets_it_forget(
    farm: Service, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await made(farm)
    town = ("remember", {"key": "customer/town", "value": {"name": "Zürich"}})
    await run(farm, kernel, town, ("remember", {"key": "customer/vat", "value": "CHE-1"}), "Noted.")
    await run(farm, kernel, ("recall", {"key": "customer/town"}), ("recall", {"query": "zürich CUSTOMER"}), "Zürich.")
    first, second = told(farm)
    assert first == '{"name":"Zürich"}' and '"customer/town"' in second and "vat" not in second
    shown = (await farm.ok("ann", "GET", "/agents/analyst/memory"))["items"]
    assert [(one["key"], one["value"]) for one in shown] == [
        ("customer/town", {"name": "Zürich"}),
        ("customer/vat", "CHE-1"),
    ]
    (found,) = (await farm.ok("ann", "GET", "/agents/analyst/memory?query=che"))["items"]
    assert found["key"] == "customer/vat"

    assert await command(farm, monkeypatch, "agent", "memory", "analyst", "customer/vat", "--forget") == 0
    assert await command(farm, monkeypatch, "agent", "memory", "analyst") == 0
    assert '{"name": "Zürich"}' in capsys.readouterr().out
    gone = await farm.ask("ann", "DELETE", "/agents/analyst/memory?key=customer/vat")
    assert gone.status_code == 404 and "agentfarm agent memory analyst" in gone.json()["hint"]
    task, _ = await run(farm, kernel, ("recall", {"key": "customer/vat"}), "Gone.")
    assert told(farm)[0].startswith("Error: nothing is remembered as customer/vat")
    assert (await farm.ok("ann", "GET", f"/runs/{task['run_id']}/verify"))["ok"]


async def test_what_is_remembered_stands_with_the_calls_outcome_or_not_at_all(farm: Service) -> None:
    """A worker that is fenced off remembers nothing; an append sent twice remembers once; no room is said at the door."""
    await made(farm)
    farm.model.script[:] = [("remember", {"key": "k", "value": 1})]
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "go"})
    claim = await farm.claim(wait=5)
    assert claim
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "m0", "n": 0}}
    await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
    both = [
        {"kind": "memory.remembered", "call": "c0-0", "body": {"key": "k", "value": 1}},
        {"kind": "tool.succeeded", "call": "c0-0", "body": {"result": "ok"}},
    ]
    path = f"/runs/{claim['run']}/events"
    for key, hint in (("", "printable"), ("x" * 201, "printable")):
        wrong = [{**both[0], "body": {"key": key, "value": 1}}, both[1]]
        refused = await farm.ask(claim["token"], "POST", path, {"fence": claim["fence"], "n": 1, "events": wrong})
        assert refused.status_code == 422 and hint in refused.json()["hint"]
    for _ in range(2):
        await farm.ok(claim["token"], "POST", path, {"fence": claim["fence"], "n": 1, "events": both})
    await farm.ok("agent-analyst", "POST", f"/runs/{claim['run']}/heartbeat", {"fence": claim["fence"], "dead": "gone"})
    late = [{**both[0], "body": {"key": "late", "value": 1}}]
    fenced = await farm.ask(claim["token"], "POST", path, {"fence": claim["fence"], "n": 2, "events": late})
    assert fenced.status_code == 409
    assert [one["key"] for one in (await farm.ok("ann", "GET", "/agents/analyst/memory"))["items"]] == ["k"]
    others = await farm.ask(claim["token"], "GET", "/runs/run-x/memory?key=k")
    assert others.status_code == 403


async def test_a_run_rests_until_its_time_without_a_kernel_and_nothing_is_done_again(
    farm: Service, kernel: Kernel, tmp_path: Path
) -> None:
    await made(farm)
    task, outcome = await run(farm, kernel, ("order", {"symbol": "BTC"}), "Bought.")
    assert (outcome, task["status"], task["waiting"]) == ("parked", "waiting", "timer")
    assert await hand(farm, kernel) == "succeeded"  # claimed anew, under the next fence
    recorded = await events(farm, task)
    due = moment(next(one for one in recorded if one["kind"] == "timer.set")["body"]["until"])
    leased = [moment(one["at"]) for one in recorded if one["kind"] == "run.leased"]
    assert due and leased[1] and 0 <= leased[1] - due < 1.0
    assert told(farm) == ["filled BTC"]
    assert (tmp_path / "workspace" / "orders").read_text() == "BTC\n"
    kinds = [one["kind"] for one in recorded]
    place = kinds.index("timer.set")
    assert kinds[place - 1 : place + 5] == [
        "memory.remembered", "timer.set", "run.parked", "timer.fired", "run.requeued", "run.leased",
    ]  # fmt: skip
    (kept,) = (await farm.ok("ann", "GET", "/agents/analyst/memory"))["items"]
    assert kept["value"] == {"order": "BTC", "before": None}


async def test_a_timer_outlives_the_service_and_a_deadline_ends_the_wait(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, kernel: Kernel
) -> None:
    async with running(tmp_path, database_url, monkeypatch) as farm:
        await made(farm)
        task, outcome = await run(farm, kernel, ("wait_until", {"seconds": 1.5}))
        assert outcome == "parked"
        farm.model.script[:] = [("wait_until", {"seconds": 3600})]
        late = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "go", "deadline": 2})
        await hand(farm, kernel)
    async with running(tmp_path, database_url, monkeypatch) as farm:
        farm.model.script[:] = ["Awake."]
        assert await hand(farm, kernel) == "succeeded"
        assert told(farm)[0].startswith("the time has come: it is 20")
        until = time.monotonic() + 10
        while (ended := await farm.ok("ann", "GET", f"/tasks/{late['task_id']}"))["status"] != "cancelled":
            assert time.monotonic() < until, ended
        assert (await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"))["result"] == "Awake."


async def test_a_person_is_asked_and_their_answer_is_the_calls_result(
    farm: Service, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(farm)
    await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "vic", "rights": "view"})
    asked = ("ask_person", {"question": "Which colour?", "choices": ["red", "blue"]})
    task, outcome = await run(farm, kernel, asked, "Blue it is.")
    assert (outcome, task["waiting"]) == ("parked", "question")
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    assert (item["kind"], item["detail"]["question"]) == ("question", "Which colour?")
    path = f"/inbox/{item['inbox_id']}"
    for decision, status in (({"decision": "answer", "result": "green"}, 422), ({"decision": "approve"}, 422)):
        assert (await farm.ask("ann", "POST", path, decision)).status_code == status
    answer = {"decision": "answer", "result": "blue"}
    assert (await farm.ask("viewer", "POST", path, answer)).status_code == 403
    assert (await farm.ask("agent-analyst", "POST", path, answer)).status_code == 403
    assert await command(farm, monkeypatch, "inbox", "resolve", item["inbox_id"], "--answer", "blue") == 0
    decided = await farm.ok("ann", "GET", path)
    assert (decided["decision"], decided["decided_by"]) == ("answered", "user:ann")
    assert await hand(farm, kernel) == "succeeded"
    assert told(farm) == ["blue"] and (await farm.ask("ann", "POST", path, answer)).status_code == 409


async def test_a_question_that_nobody_answers_expires_and_the_model_is_told(farm: Service) -> None:
    await made(farm)
    farm.model.script[:] = [("ask_person", {"question": "Well?"})]
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "go"})
    claim = await farm.claim(wait=5)
    assert claim
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "m0", "n": 0}}
    await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
    ledger = FarmLedger(farm.url, claim["run"], claim["fence"], claim["token"])
    await ledger.open()
    await ledger.append([new_event("question.asked", {"question": "Well?", "expires": 0.2}, "c0-0")])
    await ledger.append([new_event("run.parked", {"reason": "question"})])
    await ledger.drain()
    await ledger.close()
    again = await farm.claim(wait=10)
    assert again and again["run"] == claim["run"]
    kinds = [one["kind"] for one in (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"]]
    assert kinds[-3:] == ["question.expired", "run.requeued", "run.leased"]
    (item,) = (await farm.ok("ann", "GET", "/inbox?all=true"))["items"]
    assert item["decision"] == "expired" and datetime.fromisoformat(item["expires_at"].replace("Z", "+00:00"))

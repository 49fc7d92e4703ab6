"""The worker as the supervisor sees it: a real process with a real IPython shell, lines over an inherited socket pair."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from servicekit import Service, service
from workerkit import Kernel

CODE = """
import pathlib, time
from agentfarm_sdk import tool

@tool(effect="once", timeout=30)
def mark(ctx, name: str) -> str:
    with open("marks", "a") as file:
        file.write(name + " " + ctx.key + chr(10))
    while pathlib.Path("hold").exists() and not ctx.cancelled.wait(0.02):
        pass
    return "cancelled" if ctx.cancelled.is_set() else "marked " + name
"""
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
DRAFT = {
    "prompt": "p",
    "tools": [{"name": "mark", "schema": SCHEMA, "source": "file:mark.py", "effect": "once", "timeout": 30}],
}


@pytest.fixture
async def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as farm:
        await farm.ok("ann", "POST", "/agents", {"name": "analyst", "draft": DRAFT, "files": {"mark.py": CODE}})
        await farm.ok("ann", "POST", "/agents/analyst/publish", {})
        yield farm


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[Kernel]:
    folder = tmp_path / "workspace"
    folder.mkdir()
    kernel = Kernel(folder)
    await kernel.start()
    yield kernel
    await kernel.stop()


def _until(true: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


async def begin(farm: Service, kernel: Kernel, *script: Any) -> str:
    """Submit a task, claim its run as the supervisor does, hand it to the kernel; return the run."""
    farm.model.script[:] = script
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "go", "mode": "live"})
    claim = None
    while claim is None:
        claim = await farm.claim(wait=5)
    kernel.tell(url=farm.url, run=claim["run"], fence=claim["fence"], token=claim["token"])
    return str(claim["run"])


async def events(farm: Service, run: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await farm.ok("ann", "GET", f"/runs/{run}/events"))["items"]
    return items


async def test_a_run_is_done_with_the_tools_that_its_version_pins(
    farm: Service, kernel: Kernel, tmp_path: Path
) -> None:
    run = await begin(farm, kernel, ("mark", {"name": "a"}), "Done.")
    assert (await kernel.says(lambda one: one.get("finished")))["outcome"] == "succeeded"
    assert kernel.told[0] == {"started": run} and any(one.get("progress") == 30 for one in kernel.told)
    recorded = await events(farm, run)
    assert [one["kind"] for one in recorded][-4:] == [
        "tool.succeeded",
        "model.requested",
        "model.replied",
        "run.succeeded",
    ]
    key = next(one["body"]["key"] for one in recorded if one["kind"] == "tool.started")
    assert (tmp_path / "workspace" / "marks").read_text() == f"a {key}\n"
    (connection,) = farm.parts.workers.open
    second = await begin(farm, kernel, "Again.")
    assert (await kernel.says(lambda one: one.get("finished") == second))["outcome"] == "succeeded"
    assert farm.parts.workers.open == {connection}, "the kernel keeps its connection"
    connection.wire.close()
    third = await begin(farm, kernel, "And again.")
    assert (await kernel.says(lambda one: one.get("finished") == third))["outcome"] == "succeeded", "or opens another"


async def test_a_visitor_sees_the_run_and_what_they_execute_is_recorded(
    farm: Service, kernel: Kernel, tmp_path: Path
) -> None:
    hold = tmp_path / "workspace" / "hold"
    hold.touch()
    assert (
        await kernel.execute("import agentfarm_sdk, os; print(agentfarm_sdk.current(), 'AGENTFARM_FD' in os.environ)")
        == "None False"
    )
    run = await begin(farm, kernel, ("mark", {"name": "a"}), "Done.")
    await kernel.says(lambda one: one.get("progress") == 30)
    shown = await kernel.execute("now = agentfarm_sdk.current(); print(now.run, now.status, now.open_calls, now.steps)")
    assert shown == f"{run} running ['mark (c0-0)'] 1"
    hold.unlink()
    await kernel.says(lambda one: one.get("finished"))
    assert await kernel.execute("print(agentfarm_sdk.current())") == "None"
    visited = [one["body"] for one in await events(farm, run) if one["kind"] == "person.executed"]
    assert [one["code"].strip() for one in visited] == [
        "now = agentfarm_sdk.current(); print(now.run, now.status, now.open_calls, now.steps)"
    ]


async def test_a_cancel_is_heard_by_the_tool_and_ends_the_run(farm: Service, kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "workspace" / "hold").touch()
    run = await begin(farm, kernel, ("mark", {"name": "a"}))
    await kernel.says(lambda one: one.get("progress") == 30)
    task = (await farm.ok("ann", "GET", f"/runs/{run}"))["task_id"]
    await farm.ok("ann", "POST", f"/tasks/{task}/cancel", {"reason": "enough"})
    kernel.tell(cancel="enough")
    assert (await kernel.says(lambda one: one.get("finished")))["outcome"] == "cancelled"
    assert [one["kind"] for one in await events(farm, run)][-2:] == ["tool.succeeded", "run.cancelled"]
    assert (await farm.ok("ann", "GET", f"/tasks/{task}"))["status"] == "cancelled"


async def test_a_killed_workers_effect_is_in_doubt_and_the_next_worker_does_not_make_it_again(
    farm: Service, kernel: Kernel, tmp_path: Path
) -> None:
    folder = tmp_path / "workspace"
    (folder / "hold").touch()
    run = await begin(farm, kernel, ("mark", {"name": "a"}))
    await kernel.says(lambda one: one.get("progress") == 30)
    marked = await asyncio.to_thread(_until, (folder / "marks").exists)
    assert marked
    os.kill(kernel.process.pid, signal.SIGKILL)
    await farm.ok("agent-analyst", "POST", f"/runs/{run}/heartbeat", {"fence": 1, "dead": "kernel exited with -9"})
    assert [one["kind"] for one in await events(farm, run)][-1] == "tool.doubted" or "tool.doubted" in str(
        await events(farm, run)
    )
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    await farm.ok(
        "ann", "POST", f"/inbox/{item['inbox_id']}", {"decision": "happened", "result": "marked a", "reason": "seen"}
    )
    successor = Kernel(folder)
    try:
        await successor.start()
        farm.model.script[:] = ["Done."]
        claim = await farm.claim(wait=5)
        assert claim is not None and claim["run"] == run
        successor.tell(url=farm.url, run=run, fence=claim["fence"], token=claim["token"])
        assert (await successor.says(lambda one: one.get("finished")))["outcome"] == "succeeded"
    finally:
        await successor.stop()
    assert len((folder / "marks").read_text().splitlines()) == 1


async def test_a_worker_without_a_supervisor_ends_itself(kernel: Kernel) -> None:
    kernel.writer.close()
    assert await asyncio.wait_for(asyncio.to_thread(kernel.process.wait), 20) == 1


async def test_a_run_that_meets_a_budget_is_put_aside_and_the_next_worker_goes_on_when_it_is_raised(
    farm: Service, kernel: Kernel
) -> None:
    budget = {"scope": "agent", "name": "analyst", "unit": "tokens", "period": "day", "action": "ask"}
    await farm.ok("ann", "PUT", "/budgets", {**budget, "amount": 10})
    run = await begin(farm, kernel, "Done.")
    assert (await kernel.says(lambda one: one.get("finished") == run))["outcome"] == "parked"
    await farm.ok("ann", "PUT", "/budgets", {**budget, "amount": 100_000})
    claim = await farm.claim(wait=5)
    assert claim
    kernel.tell(url=farm.url, run=claim["run"], fence=claim["fence"], token=claim["token"])
    await kernel.says(lambda one: one.get("outcome") == "succeeded")
    await farm.ok("ann", "PUT", "/budgets", {**budget, "amount": 1, "action": "stop"})
    run = await begin(farm, kernel, "Never said.")
    assert (await kernel.says(lambda one: one.get("finished") == run))["outcome"] == "failed"
    assert (await events(farm, run))[-1]["body"]["error"]["type"] == "budget"


async def test_a_structured_answer_that_does_not_fit_is_mended_in_the_same_run(farm: Service, kernel: Kernel) -> None:
    schema = {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}
    await farm.ok("ann", "PATCH", "/agents/analyst", {"draft": {**DRAFT, "answer": schema}, "files": {"mark.py": CODE}})
    await farm.ok("ann", "POST", "/agents/analyst/publish", {})
    run = await begin(farm, kernel, ("mark", {"name": "a"}), "It is good.", '{"mood": "good"}')
    await kernel.says(lambda one: one.get("finished") == run)
    assert (await events(farm, run))[-1]["body"] == {"result": {"mood": "good"}}
    run = await begin(farm, kernel, ("mark", {"name": "a"}), "no", "no, again")
    assert (await kernel.says(lambda one: one.get("finished") == run))["outcome"] == "failed"
    assert "does not fit the schema" in (await events(farm, run))[-1]["body"]["error"]["message"]


PROBED = """
import pathlib
from agentfarm_sdk import happened, not_happened, tool

def was_it_marked(ctx, name: str):
    lines = pathlib.Path("marks").read_text().splitlines()
    return happened("found " + name) if name + " " + ctx.key in lines else not_happened()

@tool(effect="once", timeout=30, probe=was_it_marked, approval='startswith(name, "big")')
def mark(ctx, name: str) -> str:
    with open("marks", "a") as file:
        file.write(name + " " + ctx.key + chr(10))
    while pathlib.Path("hold").exists() and not ctx.cancelled.wait(0.02):
        pass
    return "marked " + name
"""


async def probed(farm: Service) -> None:
    """Give the agent a tool that asks a person about big names, and that has a probe."""
    rules = {"probe": True, "approval": 'startswith(name, "big")'}
    draft = {"prompt": "p", "tools": [{**DRAFT["tools"][0], **rules}]}  # type: ignore[dict-item]
    await farm.ok("ann", "PATCH", "/agents/analyst", {"draft": draft, "files": {"mark.py": PROBED}})
    await farm.ok("ann", "POST", "/agents/analyst/publish", {})


async def test_a_run_that_waits_for_a_person_frees_its_kernel_and_goes_on_within_a_second_of_the_decision(
    farm: Service, kernel: Kernel, tmp_path: Path
) -> None:
    await probed(farm)
    run = await begin(farm, kernel, ("mark", {"name": "small"}), ("mark", {"name": "big"}), "Done.")
    assert (await kernel.says(lambda one: one.get("finished")))["outcome"] == "parked"
    kernel.told.clear()
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    waiting = asyncio.create_task(farm.claim(wait=20))
    await farm.listens("analyst")
    decided = time.monotonic()
    await farm.ok("ann", "POST", f"/inbox/{item['inbox_id']}", {"decision": "approve"})
    claim = await waiting
    assert claim is not None and claim["run"] == run
    kernel.tell(url=farm.url, run=run, fence=claim["fence"], token=claim["token"])
    await kernel.says(lambda one: one.get("progress") == 30)
    assert time.monotonic() - decided < 15, "within a second where nothing else runs"
    assert (await kernel.says(lambda one: one.get("finished")))["outcome"] == "succeeded"
    marks = (tmp_path / "workspace" / "marks").read_text().splitlines()
    assert [line.split()[0] for line in marks] == ["small", "big"], "each once"


async def test_the_next_worker_asks_the_tool_s_probe_what_became_of_a_killed_worker_s_effect(
    farm: Service, kernel: Kernel, tmp_path: Path
) -> None:
    await probed(farm)
    folder = tmp_path / "workspace"
    (folder / "hold").touch()
    run = await begin(farm, kernel, ("mark", {"name": "a"}), "Done.")
    await kernel.says(lambda one: one.get("progress") == 30)
    marked = await asyncio.to_thread(_until, (folder / "marks").exists)
    assert marked
    os.kill(kernel.process.pid, signal.SIGKILL)
    await farm.ok("agent-analyst", "POST", f"/runs/{run}/heartbeat", {"fence": 1, "dead": "kernel exited with -9"})
    successor = Kernel(folder)
    try:
        await successor.start()
        claim = await farm.claim(wait=5)
        assert claim is not None and claim["run"] == run
        successor.tell(url=farm.url, run=run, fence=claim["fence"], token=claim["token"])
        assert (await successor.says(lambda one: one.get("finished")))["outcome"] == "succeeded"
    finally:
        await successor.stop()
    (said,) = [one["body"] for one in await events(farm, run) if one["kind"] == "tool.probed"]
    assert said == {"answer": "happened", "result": "found a"}
    assert len((folder / "marks").read_text().splitlines()) == 1

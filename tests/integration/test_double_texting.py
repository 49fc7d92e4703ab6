"""A message that meets an active run of its thread: refused, queued, or the run ends at its next step boundary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from servicekit import Service, service
from workerkit import Kernel

HOLD = """
import pathlib, time
from agentfarm_sdk import tool

@tool(effect="once")
def hold() -> str:
    pathlib.Path("begun").touch()
    for _ in range(3000):
        if pathlib.Path("go").exists():
            return "held"
        time.sleep(0.01)
    raise TimeoutError
"""


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as farm:
        tools = [
            {"name": "hold", "source": "file:hold.py", "effect": "once", "schema": {"type": "object"}},
            {"name": "calculator", "approval": "always"},
        ]
        body = {"name": "analyst", "draft": {"prompt": "p", "tools": tools}, "files": {"hold.py": HOLD}}
        await farm.ok("ann", "POST", "/agents", body)
        await farm.ok("ann", "POST", "/agents/analyst/publish", {})
        yield farm


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[Kernel]:
    (tmp_path / "workspace").mkdir()
    kernel = Kernel(tmp_path / "workspace")
    await kernel.start()
    yield kernel
    await kernel.stop()


async def hand(farm: Service, kernel: Kernel, claim: dict[str, Any] | None = None) -> str:
    """Hand the agent's next run to the kernel, as the supervisor does; return how it rests or ends."""
    while claim is None:
        claim = await farm.claim(wait=10)
    kernel.told.clear()
    kernel.tell(url=farm.url, run=claim["run"], fence=claim["fence"], token=claim["token"])
    return str((await kernel.says(lambda one: one.get("finished")))["outcome"])


async def say(farm: Service, thread: str, text: str) -> dict[str, Any]:
    body = {"target": "analyst", "input": text, "thread": thread}
    task: dict[str, Any] = await farm.ok("ann", "POST", "/tasks", body)
    return task


async def begun(farm: Service, policy: str) -> str:
    thread = await farm.ok("ann", "POST", "/threads", {"agent": "analyst", "policy": policy})
    return str(thread["thread_id"])


async def shown(farm: Service, task: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = await farm.ok("ann", "GET", f"/tasks/{task['task_id']}")
    return found


def told(farm: Service) -> list[str]:
    """Return what the model was shown last, without its own answer."""
    return [f"{one['role']}: {one['content']}" for one in farm.model.asked[-1].messages]


async def test_an_interrupted_run_ends_at_its_step_boundary_and_the_thread_goes_on_from_what_it_did(
    farm: Service, kernel: Kernel, tmp_path: Path
) -> None:
    thread = await begun(farm, "interrupt")
    first = await say(farm, thread, "Begin.")
    farm.model.script += [("hold", {}), "Never mind then."]
    working = asyncio.create_task(hand(farm, kernel))
    for _ in range(2000):
        if (tmp_path / "workspace" / "begun").exists():
            break
        await asyncio.sleep(0.01)
    second, third = await say(farm, thread, "No: stop."), await say(farm, thread, "And tea.")
    assert (await shown(farm, first))["status"] == "running", "the call under way is not torn"
    (tmp_path / "workspace" / "go").touch()
    assert await working == "parked"
    ended = await shown(farm, first)
    assert ended["status"] == "cancelled" and ended["error"]["message"] == f"interrupted by {second['task_id']}"
    assert await hand(farm, kernel) == "parked", "interrupted before it began: its message stays in the thread"
    assert await hand(farm, kernel) == "succeeded"
    assert (await shown(farm, second))["status"] == "cancelled"
    assert (await shown(farm, third))["result"] == "Never mind then."
    assert [one for one in told(farm) if not one.startswith("assistant")] == [
        "system: p", "user: Begin.", "tool: held", "user: No: stop.", "user: And tea."
    ]  # fmt: skip
    assert (await farm.ok("ann", "GET", f"/runs/{ended['run_id']}/verify"))["ok"]


async def test_an_interrupted_run_that_waits_ends_at_once_and_its_open_call_is_told_as_not_made(
    farm: Service, kernel: Kernel
) -> None:
    thread = await begun(farm, "interrupt")
    first = await say(farm, thread, "Count.")
    farm.model.script += [("calculator", {"expression": "1+1"}), "Better."]
    assert await hand(farm, kernel) == "parked"
    assert (await shown(farm, first))["waiting"] == "approval"
    second = await say(farm, thread, "Do not.")
    assert (await shown(farm, first))["status"] == "cancelled"
    assert (await farm.ok("ann", "GET", "/inbox"))["items"] == []
    assert await hand(farm, kernel) == "succeeded" and (await shown(farm, second))["result"] == "Better."
    assert "tool: Error: the run was cancelled: interrupted by" in "\n".join(told(farm))


async def test_reject_refuses_and_enqueue_lets_the_second_message_wait_its_turn(farm: Service, kernel: Kernel) -> None:
    strict = await begun(farm, "reject")
    await say(farm, strict, "One.")
    refused = await farm.ask("ann", "POST", "/tasks", {"target": "analyst", "input": "Two.", "thread": strict})
    assert refused.status_code == 409 and "interrupt" in refused.json()["hint"]
    farm.model.script += ["1", "A", "B"]
    assert await hand(farm, kernel) == "succeeded"
    patient = await begun(farm, "enqueue")
    await say(farm, patient, "First.")
    second = await say(farm, patient, "Second.")
    claim = await farm.claim()
    assert claim and await farm.claim() is None
    assert await hand(farm, kernel, claim) == "succeeded"
    assert await hand(farm, kernel) == "succeeded" and (await shown(farm, second))["result"] == "B"
    assert told(farm)[1:4] == ["user: First.", "assistant: A", "user: Second."]

"""kill -9 of a kernel around what it remembers: real service, both databases, real kernels. Exactly once, and no doubt."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from servicekit import Service
from test_farm_effects import farm
from workerkit import Kernel

__all__ = ["farm"]
CODE = """
from agentfarm_sdk import tool

@tool(effect="idempotent")
def count(ctx) -> int:
    with open("asked", "a") as file:
        file.write("x")
    times = (ctx.recall("times") or 0) + 1
    ctx.remember("times", times)
    return times
"""
COUNT = {"name": "count", "schema": {"type": "object"}, "source": "file:count.py", "effect": "idempotent"}


async def kernel_of(folder: Path) -> Kernel:
    folder.mkdir(exist_ok=True)
    kernel = Kernel(folder)
    await kernel.start()
    return kernel


async def handed(farm: Service, kernel: Kernel) -> dict[str, Any]:
    claim = await farm.claim(wait=15)
    assert claim
    kernel.told.clear()
    kernel.tell(url=farm.url, run=claim["run"], fence=claim["fence"], token=claim["token"])
    return claim


@pytest.mark.parametrize("kind", ["tool.started", "memory.remembered", "model.replied"])
async def test_what_a_killed_kernel_remembered_is_remembered_once(farm: Service, tmp_path: Path, kind: str) -> None:
    """It dies in the very commit that holds an event of this kind: before the answer to it can have left."""
    draft = {"prompt": "p", "tools": [COUNT, {"name": "remember"}]}
    await farm.ok("ann", "POST", "/agents", {"name": "analyst", "draft": draft, "files": {"count.py": CODE}})
    await farm.ok("ann", "POST", "/agents/analyst/publish", {})
    farm.model.script[:] = [("count", {}), ("remember", {"key": "animal", "value": "wombat"}), "done"]
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "go"})
    killed = asyncio.Event()
    first = await kernel_of(tmp_path / "workspace")

    def commit(committed: Any) -> None:
        if not killed.is_set() and any(event.kind == kind for one in committed for event in one.events):
            os.kill(first.process.pid, signal.SIGKILL)
            killed.set()

    farm.db.on_commit(commit)
    claim = await handed(farm, first)
    await asyncio.wait_for(killed.wait(), 60)
    await first.stop()
    dead = {"fence": claim["fence"], "dead": "kernel exited with -9"}
    assert (await farm.ok("agent-analyst", "POST", f"/runs/{claim['run']}/heartbeat", dead))["lease"] == 0
    second = await kernel_of(tmp_path / "workspace")
    try:
        await handed(farm, second)
        assert (await second.says(lambda one: one.get("finished"), 60))["outcome"] == "succeeded"
    finally:
        await second.stop()
    events = (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"]
    remembered = [(event["call"], event["body"]["key"]) for event in events if event["kind"] == "memory.remembered"]
    assert remembered == [("c0-0", "times"), ("c1-0", "animal")], "each in one event, whatever was done twice"
    kept = (await farm.ok("ann", "GET", "/agents/analyst/memory"))["items"]
    assert {one["key"]: one["value"] for one in kept} == {"times": 1, "animal": "wombat"}
    assert not [event for event in events if event["kind"] == "tool.doubted"]
    assert (tmp_path / "workspace" / "asked").read_text() == "x", "a call whose outcome is on record is not made again"
    assert (await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"))["result"] == "done"
    assert (await farm.ok("ann", "GET", f"/runs/{claim['run']}/verify"))["ok"]

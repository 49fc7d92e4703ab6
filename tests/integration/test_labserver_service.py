"""An agent's server and the real service together: claims, leases and deaths in the real ledger."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from labserverkit import Server, until
from servicekit import Service, service


@pytest.fixture
async def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as farm:
        await farm.agent()
        yield farm


@pytest.fixture
async def server(tmp_path: Path, farm: Service) -> AsyncIterator[Server]:
    server = Server(tmp_path / "s", farm, agent="analyst", hub_token="agent-analyst")
    try:
        await server.ready()
        yield server
    finally:
        await server.stop()


async def submit(farm: Service) -> str:
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "What is 17*23?"})
    return str(task["task_id"])


async def kinds(farm: Service, run: str) -> list[tuple[str, dict]]:
    items = (await farm.ok("ann", "GET", f"/runs/{run}/events"))["items"]
    return [(one["kind"], one["body"]) for one in items]


async def test_a_run_whose_kernel_is_killed_goes_on_within_a_second_in_another(server: Server, farm: Service) -> None:
    await until(lambda: server.log.read_text().count("connected to the farm"), 20, "the supervisor connects")
    await submit(farm)
    first = await until(lambda: next((one for one in server.lines() if one.get("began")), None), 30, "the run begins")
    os.kill(first["pid"], signal.SIGKILL)
    killed = time.monotonic()
    again = await until(lambda: next((one for one in server.lines() if one.get("fence", 0) > first["fence"]), None), 30)
    assert again["began"] == first["began"] and again["pid"] != first["pid"]
    recorded = await kinds(farm, first["began"])
    assert ("run.requeued", {"reason": "the worker died", "proof": "kernel exited with -9"}) in recorded
    assert [kind for kind, _ in recorded].count("run.leased") == 2
    print(f"killed to begun again: {again['at'] - killed:.2f} s")


async def test_a_cancelled_run_that_does_not_listen_ends_after_the_grace(server: Server, farm: Service) -> None:
    task = await submit(farm)
    first = await until(lambda: next((one for one in server.lines() if one.get("began")), None), 30, "the run begins")
    await farm.ok("ann", "POST", f"/tasks/{task}/cancel", {"reason": "enough"})
    await until(lambda: any(one.get("cancel") == "enough" for one in server.lines()), 15, "a heartbeat brings it")
    await until(lambda: not os.path.exists(f"/proc/{first['pid']}") or None, 15, "its kernel is killed")
    end = time.monotonic() + 10
    while (shown := await farm.ok("ann", "GET", f"/tasks/{task}"))["status"] != "cancelled":
        assert time.monotonic() < end, shown


async def test_a_stopped_server_gives_its_run_back_at_once(server: Server, farm: Service) -> None:
    await submit(farm)
    first = await until(lambda: next((one for one in server.lines() if one.get("began")), None), 30, "the run begins")
    await server.stop()
    proof = "kernel exited with -9 (the server was stopped)"
    assert ("run.requeued", {"reason": "the worker died", "proof": proof}) in await kinds(farm, first["began"])


async def test_the_real_worker_does_a_run_in_a_kernel_of_the_supervisor(tmp_path: Path, farm: Service) -> None:
    server = Server(tmp_path / "s", farm, agent="analyst", worker="agentfarm_sdk.worker", hub_token="agent-analyst")
    try:
        await server.ready()
        spent = []
        for _ in range(4):
            farm.model.script.append("391")
            began = time.monotonic()
            task = await submit(farm)
            shown = await farm.ok("ann", "GET", f"/tasks/{task}")
            while shown["status"] not in ("succeeded", "failed"):
                assert time.monotonic() < began + 30, (shown, server.log.read_text()[-3000:])
                shown = await farm.ok("ann", "GET", f"/tasks/{task}")
            assert (shown["status"], shown["result"]) == ("succeeded", "391"), shown
            spent.append(time.monotonic() - began)
        print("submit to result, ms:", [round(1000 * one) for one in spent])
        went = re.findall(r"goes to worker kernel (\d+)", server.log.read_text())
        assert len(went) == 4 and len(set(went)) == 1, "one warm kernel did them all"
        assert [kind for kind, _ in await kinds(farm, shown["run_id"])].count("run.leased") == 1
    finally:
        await server.stop()

"""A server is started anew only while no run is on it, and its agent takes none meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from servicekit import service


async def test_a_server_is_started_anew_once_no_run_is_on_it_and_none_begins_meanwhile(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, database_url, monkeypatch) as farm:
        await farm.agent()
        farm.hub.running.add("agent-analyst")
        await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
        claim = await farm.claim()
        assert claim
        refused = await farm.ask("ann", "POST", "/agents/analyst/restart", {})
        assert refused.status_code == 409 and "1 runs are on its server" in refused.text
        assert ("DELETE", "users/agent-analyst/server", None) not in farm.hub.asked
        end = {"fence": claim["fence"], "n": 1, "events": [{"kind": "run.succeeded", "body": {"result": 1}}]}
        await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", end)
        # while it is started anew its supervisor gets nothing, though there is work
        stopping, go_on, stop = asyncio.Event(), asyncio.Event(), farm.parts.hub.stop_server

        async def slowly(user: str) -> None:
            await stop(user)
            stopping.set()
            await go_on.wait()

        monkeypatch.setattr(farm.parts.hub, "stop_server", slowly)
        restarting = asyncio.create_task(farm.ok("ann", "POST", "/agents/analyst/restart", {}))
        await asyncio.wait_for(stopping.wait(), 30)
        await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "b"})
        assert await farm.claim() is None
        again = await farm.ask("ann", "POST", "/agents/analyst/restart", {})
        assert again.status_code == 409 and "being started anew" in again.text
        go_on.set()
        await asyncio.wait_for(restarting, 30)
        servers = [method for method, path, _ in farm.hub.asked if path == "users/agent-analyst/server"]
        assert servers[-2:] == ["DELETE", "POST"]
        assert await farm.claim()

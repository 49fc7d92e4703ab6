"""Moves of workspaces as the daemon leads them: who holds one back. Real moves: tests/lab/test_lab_moves.py."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_agentfarm.errors import FleetError
from jupyterhub_agentfarm.fleet.moving import Moving
from jupyterhub_agentfarm.fleet.placing import Placing
from jupyterhub_agentfarm.fleet.state import FleetState

USER = "agent-smith"


class Units:
    """Servers that never end; `asked`: somebody looked."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def show(self, _unit: str) -> dict[str, Any]:
        self.asked.set()
        return {"state": "running"}

    async def states(self, _microserver: str) -> dict[str, str]:
        return {}

    async def stop(self, _unit: str, now: bool) -> dict[str, Any]:
        return {}

    async def take_back(self, _unit: str) -> None:
        return


async def test_a_workspace_stays_where_it_is_while_a_server_starts_there(tmp_path: Path) -> None:
    state, units = FleetState(tmp_path / "fleet.json"), Units()
    state.units["af-smith"] = {"user": USER, "microserver": "micro1", "home": "micro1", "port": 0}
    moving = Moving(state, {}, Placing(state, {}), units)
    leading = asyncio.create_task(moving.run())
    try:
        async with moving.held_back(USER):
            moving.begin(USER)
            until = time.monotonic() + 20
            while moving.told(USER)["why"] != "its server is being started":
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
            assert not units.asked.is_set()  # who looked now would find no server, and take the files from under it
            with pytest.raises(FleetError, match="is being moved"):
                async with moving.held_back(USER):
                    raise AssertionError("a second server started meanwhile")
        await asyncio.wait_for(units.asked.wait(), 20)
    finally:
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        await moving.stop()

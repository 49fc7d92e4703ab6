"""Takes the agents' and people's servers down when the farm is stopped, by way of the fleet daemon that started them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..errors import AgentFarmError, FleetError, NotFound
from ..fleet.client import FleetClient
from .state import State

STOP_SECONDS = 12.0  # for a server to end by itself, its kernels with it


async def stop_all(state: State, say: Callable[[str], None]) -> None:
    """Stop every server, then end the connections to microservers. What cannot be stopped is said: the next start finds it again."""
    fleet = FleetClient(state.directory / "fleet.sock", timeout=STOP_SECONDS)
    try:
        units = await _running(fleet)
        if units:
            say(f"stopping {len(units)} server{'s' * (len(units) > 1)}")
        await asyncio.gather(*(_stop(fleet, unit) for unit in units))
        if left := await _running(fleet):
            say(f"these servers did not stop: {', '.join(left)}")
        await fleet.disconnect()
    except AgentFarmError as error:
        say(f"{error.detail}: servers may still run, the next start finds them")


async def _running(fleet: FleetClient) -> list[str]:
    return [unit["unit"] for unit in await fleet.units() if unit.get("state") != "exited"]


async def _stop(fleet: FleetClient, unit: str) -> None:
    try:
        try:
            await fleet.stop(unit)
        except FleetError:  # it takes too long
            await fleet.stop(unit, now=True)
    except (FleetError, NotFound):  # its microserver is away: it is stopped there when it returns
        pass

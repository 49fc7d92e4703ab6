"""Takes the agents' and people's servers down when the farm is stopped, by way of the fleet daemon that started them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx

from .state import State

STOP_SECONDS = 12.0  # for a server to end by itself, its kernels with it


async def stop_all(state: State, say: Callable[[str], None]) -> None:
    """Stop every server. What cannot be stopped is said: the next start finds it again."""
    transport = httpx.AsyncHTTPTransport(uds=str(state.directory / "fleet.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://fleet", timeout=STOP_SECONDS) as fleet:
        try:
            units = await _running(fleet)
            if units:
                say(f"stopping {len(units)} server{'s' * (len(units) > 1)}")
            await asyncio.gather(*(_stop(fleet, unit) for unit in units))
            if left := await _running(fleet):
                say(f"these servers did not stop: {', '.join(left)}")
        except httpx.HTTPError as error:
            say(f"the fleet daemon does not answer ({error}): servers may still run, the next start finds them")


async def _running(fleet: httpx.AsyncClient) -> list[str]:
    answer = await fleet.get("/servers")
    answer.raise_for_status()
    listed = answer.json()
    units = listed["items"] if isinstance(listed, dict) else listed
    return [unit["unit"] for unit in units if unit.get("state") != "exited"]


async def _stop(fleet: httpx.AsyncClient, unit: str) -> None:
    try:
        await fleet.delete(f"/servers/{unit}")
    except httpx.TimeoutException:
        await fleet.delete(f"/servers/{unit}", params={"now": "1"}, timeout=2 * STOP_SECONDS)

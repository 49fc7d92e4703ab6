"""Hub users that are no more: what the daemon knows of their servers is forgotten once their workspace is gone. Called by the daemon.

As long as there is one it moves like any other, and its system user's id is never given to another.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..errors import AgentFarmError
from .microserver import AnyMicroserver
from .state import FleetState, workspace_of

log = logging.getLogger("agentfarm.fleet")


class Retired:
    """show: how a unit is, as Fleet.show tells it. Saying it twice is harmless."""

    def __init__(
        self,
        state: FleetState,
        microservers: Mapping[str, AnyMicroserver],
        show: Callable[[str], Awaitable[dict[str, Any]]],
    ) -> None:
        self.state, self.microservers, self.show = state, microservers, show

    async def retire(self, user: str) -> None:
        """Note that the hub user is no more, and forget what can be forgotten now."""
        for unit, known in self.state.units.items():
            if known.get("user") == user:
                known["retired"] = True
                self.state.demands.pop(unit, None)
        self.state.save()
        await self.forget()

    async def forget(self) -> None:
        """Forget the units of retired users whose workspace is gone, or was never there; what cannot be asked is kept."""
        for unit, known in list(self.state.units.items()):
            if _is_retired(known) and known["user"] not in self.state.moves:
                try:
                    if await self._is_over(unit, known):
                        await self._forget(unit, known)
                except AgentFarmError as error:
                    log.info("what is known of %s is kept: %s", unit, error.detail)

    async def _is_over(self, unit: str, known: Mapping[str, Any]) -> bool:
        if known["microserver"] in self.microservers and (await self.show(unit))["state"] != "exited":
            return False
        home = self.microservers.get(known.get("home") or "")  # None: it never had one, or that was removed
        if home is None:
            return True
        told = await home.ask("measure", workspace=workspace_of(known["user"]), brief=True)
        return not told["there"]

    async def _forget(self, unit: str, known: Mapping[str, Any]) -> None:
        if (micro := self.microservers.get(known["microserver"])) is not None:
            await micro.ask("forget", unit=unit)
        if self.state.units.get(unit) is known and _is_retired(known):  # a user made anew may have begun meanwhile
            self.state.ports.let_go(known.get("port") or 0)
            del self.state.units[unit]
            self.state.save()
            log.info("unit %s is forgotten: its user was retired, its workspace is gone", unit)


def _is_retired(known: Mapping[str, Any]) -> bool:
    """Say whether its user is no more, and none of that name has a place for a server by now. Pure."""
    return bool(known.get("retired") and not known.get("promise"))

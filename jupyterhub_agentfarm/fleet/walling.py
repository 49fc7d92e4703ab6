"""Keeps the walls around servers in step: names that lists name move, and somebody may flush a machine's rules. The daemon's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from ..errors import AgentFarmError, StartError
from .helper.egress import parse
from .microserver import AnyMicroserver

log = logging.getLogger("agentfarm.fleet")
LOOK_SECONDS = 30.0


def usual_of(text: str) -> list[str]:
    """Return the list that AGENTFARM_EGRESS names, entries with spaces between. Raises StartError."""
    listed = text.split()
    try:
        for one in listed:
            parse(one)
    except ValueError as error:
        raise StartError(
            f"AGENTFARM_EGRESS: {error}", hint="entries with spaces between, e.g. api.example.com:443 10.0.0.0/8:5432"
        ) from error
    return listed


class Walling:
    """Asks each microserver that has walls to look after them."""

    def __init__(self, farm: Mapping[str, AnyMicroserver]) -> None:
        self.farm = farm

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.gather(*(self.look(micro) for micro in list(self.farm.values())))

    async def look(self, micro: AnyMicroserver) -> None:
        """Look after one; what is wrong is said with its isolation."""
        if micro.silent or micro.last_facts().get("walls") != "nft":
            return
        try:
            unknown = (await micro.ask("walls"))["unknown"]
            found = "".join(
                f"{name} of a list of places to go leads nowhere: {why}" for name, why in sorted(unknown.items())[:1]
            )
        except AgentFarmError as error:
            found = error.detail
        if found and found != micro.unwalled:
            log.warning("walls of %s: %s", micro.name, found)
        micro.unwalled = found

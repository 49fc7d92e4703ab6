"""Tells the fleet daemon what agents' servers are promised, and says which agents have what a task needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..demands import Requirements, Settings, as_layer, given, lacks, merged
from ..records import hub_user, unit_name
from ..store import resources
from ..store.db import Database

NOT_NEEDS = ("variables", "simulate")  # kept beside a task's requirements


class Fleet(Protocol):
    async def put_demand(
        self, unit: str, user: str, resources: dict[str, Any], group: str | None, scratch: bool = False
    ) -> Any: ...
    async def settings(self) -> Any: ...
    async def units(self) -> Any: ...
    async def microservers(self) -> Any: ...


class Resourcing:
    """What is set is in the ledger's database; the daemon is told before each start, so that it may forget."""

    def __init__(self, db: Database, fleet: Fleet) -> None:
        self.db, self.fleet = db, fleet

    async def tell(self, agent: str, scratch: bool = False) -> None:
        """Have the agent's next start use what is set now; `scratch`: wherever there is room, away from its files. Raises FleetError, NotFound."""
        own, pool = await self.db.read(lambda c: resources.told(c, agent))
        user = hub_user(agent)
        await self.fleet.put_demand(unit_name(user), user, own, pool, scratch)

    async def lacking(self, requirements: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
        """Return what each of these agents' servers lacks for a task, "" where it lacks nothing. Raises FleetError, Invalid."""
        wanted = needs(requirements)
        if not wanted or not names:
            return dict.fromkeys(names, "")
        asked = given(Requirements, wanted, "requirements")
        farm = given(Settings, await self.fleet.settings(), "the farm's settings")
        units = {one["unit"]: one for one in await self.fleet.units()}
        machines = {one["name"]: one for one in await self.fleet.microservers()}
        own = await self.db.read(lambda c: resources.of(c, names))
        found = {}
        for name in names:
            unit = units.get(unit_name(hub_user(name))) or {}
            here = machines.get(unit.get("microserver", "")) if unit.get("state") == "running" else None
            has = merged([as_layer(farm.servers), own.get(name, {})])
            flags = (here or {}).get("cpu_flags") or (["avx2"] if (here or {}).get("avx2") else [])
            found[name] = lacks(asked, has, None if here is None else here.get("labels", {}), flags)
        return found


def needs(requirements: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a task needs of a server, of what is kept with it."""
    return {name: value for name, value in requirements.items() if name not in NOT_NEEDS}

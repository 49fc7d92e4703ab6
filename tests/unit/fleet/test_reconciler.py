"""What the reconciler ends: units that the Hub was seen twice to lack, and never for want of an answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.errors import FleetError
from jupyterhub_agentfarm.fleet.reconciler import LOOKS, Reconciler, orphans

NAMES = st.sets(st.sampled_from(["af-a", "af-b", "af-c"]))


@given(st.lists(st.tuples(NAMES, NAMES), max_size=6))
def test_a_unit_counts_as_missing_only_as_often_as_it_was_missing_in_a_row(
    looks: list[tuple[set[str], set[str]]],
) -> None:
    seen: dict[str, int] = {}
    for units, servers in looks:
        seen = orphans(units, servers, seen)
    for unit, times in seen.items():
        assert all(unit in units and unit not in servers for units, servers in looks[-times:])
    assert not set(seen) & (looks[-1][1] if looks else set())


class Farm:
    """Units and servers as they are told, and what was ended."""

    def __init__(self, units: list[dict[str, Any]]) -> None:
        self.units, self.known, self.ended = units, set[str](), list[tuple[str, int]]()
        self.away = False

    async def listed(self) -> list[dict[str, Any]]:
        return self.units

    async def end(self, unit: str, pid: int) -> None:
        self.ended.append((unit, pid))

    async def servers(self) -> set[str]:
        if self.away:
            raise FleetError("the Hub cannot be reached")
        return self.known


async def test_the_second_look_ends_what_the_hub_does_not_have_and_a_silent_hub_ends_nothing() -> None:
    farm = Farm([{"unit": unit, "state": "running", "pid": 7} for unit in ("af-a", "af-b", "ingest-1")])
    farm.known, farm.away = {"af-b"}, True
    looking = Reconciler(farm, farm)
    for _ in range(LOOKS):
        with pytest.raises(FleetError):
            await looking.look()
    farm.away = False
    await looking.look()
    assert farm.ended == []
    await looking.look()
    assert farm.ended == [("af-a", 7)]


async def test_what_a_killed_keeper_left_is_ended_once() -> None:
    farm = Farm([{"unit": "af-a", "state": "exited", "pid": 7, "started_at": 1.0, "reason": "its keeper was killed"}])
    looking = Reconciler(farm, farm)
    for _ in range(3):
        await looking.look()
    assert farm.ended == [("af-a", 7)]
    # its microserver is silent now, and it was given up
    farm.units = [{"unit": "af-a", "state": "exited", "reason": "it does not answer"}]
    await looking.look()
    assert farm.ended == [("af-a", 7)]

"""The reaper's patience: what interrupts the service is not held against workers."""

from __future__ import annotations

import pytest

from jupyterhub_agentfarm.scheduling.reaper import Steadiness


def test_steady_seconds_add_up() -> None:
    steady = Steadiness(since=0, mono=0, wall=1000)
    assert [steady.tick(s, 1000 + s, True) for s in (1, 2, 3.5)] == [1, 2, 3.5]


@pytest.mark.parametrize(
    ("mono", "wall", "healthy"),
    [(2, 1002, False), (2, 1003.5, True), (2, 998, True), (4, 1004, True)],
    ids=["the database was away", "the clock jumped ahead", "the clock jumped back", "the process stood still"],
)
def test_an_interruption_begins_the_count_anew(mono: float, wall: float, healthy: bool) -> None:
    steady = Steadiness(since=-100, mono=1, wall=1001)
    assert steady.tick(mono, wall, healthy) == 0
    assert steady.tick(mono + 1, wall + 1, True) == 1

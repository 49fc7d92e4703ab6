"""The reaper's patience: what interrupts the service is not held against workers."""

from __future__ import annotations

import asyncio

import pytest

from jupyterhub_agentfarm.scheduling import reaper
from jupyterhub_agentfarm.scheduling.reaper import Steadiness, proof_of_death


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


@pytest.mark.parametrize(
    ("unit", "proof"),
    [
        ({"state": "exited", "exit_code": -9, "reason": ""}, "its server has ended with exit code -9"),
        ({"state": "exited", "exit_code": -9, "reason": "the machine was restarted"}, "the machine was restarted"),
        ({"state": "exited", "exit_code": -9, "reason": "its keeper was killed"}, None),  # kernels may run on
        ({"state": "running", "exit_code": None}, None),
        ({"state": "unknown", "reason": "no contact"}, None),
        ({}, None),
    ],
)
def test_a_server_is_proven_dead_by_its_keeper_s_word_or_by_a_restarted_machine(
    unit: dict[str, object], proof: str | None
) -> None:
    assert proof_of_death(unit) == proof


def test_waiting_for_a_slow_microserver_is_no_interruption_and_a_late_look_behind_it_is_one() -> None:
    steady = Steadiness(since=0, mono=10, wall=1010)
    steady.waited(5)
    assert steady.tick(mono=16, wall=1016, healthy=True) == 16
    assert steady.tick(mono=22, wall=1022, healthy=True) == 0


async def test_a_microserver_that_does_not_answer_holds_up_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def never(agent: str) -> dict[str, str]:
        asked.set()
        await asyncio.Event().wait()
        return {}

    class Db:
        last_error = None

        def now(self) -> float:
            return 1000.0

        async def read(self, _fn: object) -> tuple[object, ...]:
            return 1000.0, 0.0, [Run("run-1")], [], [], [], None

    class Run:
        agent, bound = "a", False

        def __init__(self, run_id: str) -> None:
            self.run_id = run_id

    monkeypatch.setattr(reaper, "AT_ONCE", 0.01)
    monkeypatch.setattr(reaper, "PROOF_SECONDS", 3600.0)
    looking = reaper.Reaper(Db(), 30.0, never)  # type: ignore[arg-type]
    for _ in range(3):
        await asyncio.wait_for(looking.look(), 60)
    assert asked.is_set()

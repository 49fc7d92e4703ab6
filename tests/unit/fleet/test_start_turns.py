"""Starts take turns: how many go together, in which order, and what becomes of one that is stopped, stuck or asked for twice."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.fleet import turns
from jupyterhub_agentfarm.fleet.turns import Turns, whose_turn


@given(st.lists(st.text(), unique=True), st.integers(0, 20), st.integers(0, 8))
def test_as_many_start_together_as_there_are_cores_and_who_came_first_is_first(
    waiting: list[str], starting: int, cores: int
) -> None:
    now = whose_turn(waiting, starting, cores)
    assert now == waiting[: len(now)]
    assert len(now) == min(len(waiting), max(0, max(1, cores) - starting))


class Starts:
    """Units that ask for their turn on one microserver of two cores; those in `up` answer."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self.turns = Turns(self.is_up)
        self.asked: dict[str, asyncio.Task[None]] = {}
        self.gone = asyncio.Event()  # who asks for those in `asked`

    async def is_up(self, unit: str) -> bool:
        return unit in self.up

    async def ask(self, *units: str, there: str = "micro1") -> None:
        for unit in units:
            self.asked[unit] = asyncio.create_task(self.turns.take(unit, there, 2, self.gone))
            await asyncio.sleep(0)

    def started(self) -> list[str]:
        return [unit for unit, task in self.asked.items() if task.done()]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.01)
    return Starts()


async def test_the_next_starts_when_one_is_up_or_was_stopped_and_other_microservers_do_not_wait(starts: Starts) -> None:
    await starts.ask("a", "b", "c", "d", "e")
    await starts.ask("x", there="micro2")
    assert starts.started() == ["a", "b", "x"]
    assert [starts.turns.before(unit) for unit in "abcde"] == [None, None, 2, 3, 4]
    starts.up.add("b")
    await asyncio.wait_for(starts.asked["c"], 10)
    assert not starts.asked["d"].done() and starts.turns.before("d") == 2
    starts.turns.end("d")  # it is stopped while it waits
    with pytest.raises(StartError, match="was stopped while it waited"):
        await asyncio.wait_for(starts.asked["d"], 10)
    starts.turns.end("a")  # it could not be started
    await asyncio.wait_for(starts.asked["e"], 10)
    assert starts.turns.before("e") is None


async def test_a_start_that_is_asked_for_twice_waits_once_and_one_that_is_stuck_does_not_hold_up_all(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await starts.ask("a", "b", "c", "d")
    again = asyncio.create_task(starts.turns.take("c", "micro1", 2, asyncio.Event()))
    await asyncio.sleep(0)
    assert starts.turns.before("c") == 2 and starts.turns.before("d") == 3
    starts.up.add("a")
    await asyncio.wait_for(asyncio.gather(starts.asked["c"], again), 10)
    monkeypatch.setattr(turns, "LONGEST_SECONDS", 0.0)
    await asyncio.wait_for(starts.asked["d"], 10)


async def test_a_start_leaves_the_line_when_who_asked_for_it_goes_away_unless_another_one_asks_too(
    starts: Starts,
) -> None:
    await starts.ask("a", "b", "c", "d")
    again = asyncio.create_task(starts.turns.take("d", "micro1", 2, asyncio.Event()))
    await asyncio.sleep(0)
    starts.gone.set()
    for unit in "cd":
        with pytest.raises(StartError, match="went away"):
            await asyncio.wait_for(starts.asked[unit], 10)
    assert (starts.turns.before("c"), starts.turns.before("d")) == (None, 2) and not again.done()
    again.cancel()  # as the daemon's own end does it
    await asyncio.gather(again, return_exceptions=True)
    assert starts.turns.before("d") is None

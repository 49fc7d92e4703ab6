"""Answers that are kept: asked for once, waited for with patience, told with their age."""

from __future__ import annotations

import asyncio

import pytest

from jupyterhub_agentfarm.errors import FleetError
from jupyterhub_agentfarm.fleet.daemon import _too_early
from jupyterhub_agentfarm.fleet.kept import Kept


class Source:
    """Answers 1, 2, 3 … when it is let to; `fails`: not at all."""

    def __init__(self) -> None:
        self.asked, self.fails = 0, False
        self.may = asyncio.Event()
        self.may.set()

    async def __call__(self) -> int:
        self.asked += 1
        number = self.asked
        await self.may.wait()
        if self.fails:
            raise FleetError("it does not answer")
        return number


async def test_it_is_asked_once_for_all_who_wait_and_not_again_while_it_is_fresh() -> None:
    source = Source()
    kept = Kept(source)
    assert await asyncio.gather(*(kept.get(60) for _ in range(5))) == [1] * 5
    assert await kept.get(60) == 1 and await kept.get(0) == 2


async def test_who_has_no_patience_gets_the_last_answer_and_the_question_goes_on() -> None:
    source = Source()
    kept = Kept(source)
    assert await kept.get(0) == 1
    source.may.clear()
    assert await kept.get(0, patience=0.01) == 1
    assert await kept.get(0, patience=0.01, oldest=60) == 1
    waiting = asyncio.create_task(kept.get(0, patience=0.01, oldest=0))
    await asyncio.sleep(0.05)
    assert not waiting.done(), "so old an answer is none"
    source.may.set()
    assert await waiting == 2 and source.asked == 2 and kept.age < 60


async def test_one_that_never_answered_is_said_to_be_so_in_time() -> None:
    source = Source()
    kept = Kept(source)
    source.may.clear()
    with pytest.raises(FleetError, match="not answered yet"):
        await kept.get(0, patience=0.01)
    source.may.set()
    assert await kept.get(60) == 1


async def test_one_that_failed_does_not_seem_well_while_it_is_asked_again() -> None:
    source = Source()
    kept = Kept(source)
    assert await kept.get(0) == 1
    source.fails = True
    with pytest.raises(FleetError):
        await kept.get(0)
    source.may.clear()
    with pytest.raises(FleetError, match="it does not answer"):
        await kept.get(0, patience=0.01)
    source.fails = False
    source.may.set()
    assert await kept.get(0) > 1 and kept.problem == ""


async def test_an_answer_to_a_question_from_before_a_change_is_not_kept() -> None:
    source = Source()
    kept = Kept(source)
    source.may.clear()
    before = asyncio.create_task(kept.get(60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    kept.stale()
    source.may.set()
    after = await kept.get(60)
    assert (await before, after) == (1, 2) and await kept.get(60) == 2


async def test_an_old_answer_that_is_told_after_a_change_is_known_to_be_from_before_it() -> None:
    source = Source()
    kept = Kept(source)
    assert await kept.get(0) == 1
    before = kept.asked_at
    kept.stale()
    source.may.clear()
    assert await kept.get(60, patience=0.01) == 1 and kept.asked_at == before
    source.may.set()
    assert await kept.get(60) == 2 and kept.asked_at > before


@pytest.mark.parametrize(
    ("asked", "told", "said"),
    [(99.0, {}, "unknown"), (99.0, {"state": "exited"}, "unknown"), (99.0, {"state": "running"}, ""), (101.0, {}, "")],
    ids=["before its start", "of its former life", "it runs", "since its start"],
)
def test_a_unit_that_a_slow_microserver_has_not_told_of_since_its_start_has_not_ended(
    asked: float, told: dict[str, str], said: str
) -> None:
    known = {"microserver": "micro1", "promise": {"started": 100.0}}
    assert _too_early(known, told, {"micro1": asked}).get("state", "") == said
    assert _too_early({"microserver": "micro1"}, told, {"micro1": asked}) == {}

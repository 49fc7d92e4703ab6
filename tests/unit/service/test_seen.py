"""The farm around the service, asked once for all who look."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jupyterhub_agentfarm.handlers import surroundings
from jupyterhub_agentfarm.handlers.surroundings import Surroundings


class Around:
    """Fleet daemon and Hub in one. `held`: an answer that is under way waits for it."""

    def __init__(self) -> None:
        self.asked, self.up = 0, False
        self.held: asyncio.Event | None = None
        self.being_asked, self.woken = asyncio.Event(), asyncio.Event()

    async def microservers(self) -> list[dict[str, Any]]:
        return []

    async def units(self) -> list[dict[str, Any]]:
        return []

    async def agents_servers(self) -> dict[str, dict[str, Any]]:
        self.asked += 1
        answer = {"agent-a": {"ready": True}} if self.up else {}
        self.being_asked.set()
        if self.held is not None:
            await self.held.wait()
        return answer

    def wake(self, _readers: str) -> None:
        self.woken.set()


def around() -> tuple[Around, Surroundings]:
    there = Around()
    return there, Surroundings(there, there, there)  # type: ignore[arg-type]


async def test_many_who_look_ask_once() -> None:
    there, seen = around()
    await asyncio.gather(*(seen.look() for _ in range(5)))
    await seen.look()
    assert there.asked == 1


async def test_an_answer_from_before_a_start_does_not_pass_for_one_from_behind_it() -> None:
    there, seen = around()
    there.held = asyncio.Event()
    before = asyncio.ensure_future(seen.look())
    await there.being_asked.wait()
    there.being_asked.clear()
    there.up = True
    seen.stale()
    behind = asyncio.ensure_future(seen.look())
    await asyncio.wait_for(there.being_asked.wait(), 10)
    there.held.set()
    assert not (await before).server("a").ready and (await behind).server("a").ready
    assert (await seen.look()).server("a").ready and there.asked == 2


async def test_who_begins_to_watch_in_the_moment_in_which_the_last_one_leaves_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(surroundings, "WATCH_SECONDS", 0.001)
    there, seen = around()
    with seen.watched():
        await asyncio.sleep(0)
    with seen.watched():  # no turn of the event loop in between
        there.woken.clear()
        await asyncio.wait_for(there.woken.wait(), 10)

"""What `within` keeps of asyncio.wait_for, and what it adds."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from agentfarm_sdk.waiting import within


async def test_it_returns_what_the_work_comes_to_and_raises_what_it_raises() -> None:
    async def fails() -> None:
        raise ValueError("no")

    assert await within(asyncio.sleep(0, "done"), 20) == "done"
    assert await within(asyncio.sleep(0, "done"), None) == "done"
    with pytest.raises(ValueError, match="no"):
        await within(fails(), 20)


@pytest.mark.parametrize("seconds", [0.01, 0.0, -1.0])
async def test_what_takes_too_long_is_cancelled_and_has_ended(seconds: float) -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            ended = True

    with pytest.raises(asyncio.TimeoutError):
        await within(work(), seconds)
    assert ended or seconds <= 0


async def test_work_that_ends_all_the_same_when_its_time_is_up_is_not_lost() -> None:
    async def work() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return "done"

    assert await within(work(), 0.01) == "done"


async def test_who_waits_is_cancelled_with_what_it_waits_for() -> None:
    work = asyncio.ensure_future(asyncio.sleep(3600))
    waiting = asyncio.ensure_future(within(work, None))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.cancelled()


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_in_the_moment_in_which_the_work_ends_is_not_lost(turns: int) -> None:
    """asyncio.wait_for loses it before Python 3.12, in the first three of these moments."""
    news, rounds = asyncio.Event(), 0

    async def loop() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            news.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(news.wait(), 3600)

    looping = asyncio.ensure_future(loop())
    await asyncio.sleep(0.01)
    news.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    looping.cancel()
    await asyncio.wait({looping}, timeout=5)
    assert looping.cancelled() and rounds <= 2

"""Work beside a loop: one thing at a time for each name, and no mistake in it stays quiet."""

from __future__ import annotations

import asyncio

import pytest

from jupyterhub_agentfarm.scheduling.beside import Beside


async def test_what_is_under_way_is_not_begun_again_and_a_mistake_reaches_who_looks() -> None:
    beside, go, begun = Beside(), asyncio.Event(), list[str]()

    async def work(said: str) -> None:
        begun.append(said)
        await go.wait()
        raise ZeroDivisionError(said)

    beside.begin("one", work, "first")
    beside.begin("one", work, "second")
    await asyncio.sleep(0)
    assert begun == ["first"] and "one" in beside
    beside.check()
    go.set()
    for _ in range(3):  # turns of the loop: it goes on, it ends, who waits is told
        await asyncio.sleep(0)
    assert "one" not in beside
    with pytest.raises(ZeroDivisionError, match="first"):
        beside.check()


async def test_what_is_broken_off_is_no_mistake() -> None:
    beside = Beside()
    beside.begin("one", asyncio.Event().wait)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await beside.stop()
    beside.check()
    assert "one" not in beside

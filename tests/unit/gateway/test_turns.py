"""Turns at an upstream: never more than its limit, fair between owners, nobody forgotten."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.gateway.turns import Turns, next_owner

OWNERS = st.sampled_from(["ann", "bob", "cy"])


@given(st.lists(OWNERS), st.dictionaries(OWNERS, st.integers(0, 5)), st.none() | OWNERS)
def test_the_next_owner_waits_and_has_the_fewest_in_flight(
    waiting: list[str], in_flight: dict[str, int], last: str | None
) -> None:
    chosen = next_owner(waiting, in_flight, last)
    assert (chosen is None) == (not waiting)
    if chosen is not None:
        assert chosen in waiting and all(in_flight.get(chosen, 0) <= in_flight.get(owner, 0) for owner in waiting)


async def test_an_owner_with_many_requests_does_not_hold_up_another() -> None:
    turns, order, gate = Turns(1), list[str](), asyncio.Event()

    async def one(owner: str) -> None:
        async with turns.turn(owner):
            await gate.wait()
            order.append(owner)

    tasks = [asyncio.create_task(one("ann")) for _ in range(5)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(one("bob")))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*tasks)
    assert order.index("bob") <= 2 and len(order) == 6


async def test_whoever_gives_up_waiting_leaves_the_turn_to_the_next() -> None:
    turns, done = Turns(1), asyncio.Event()

    async def hold() -> None:
        async with turns.turn("ann"):
            await done.wait()

    first, second = asyncio.create_task(hold()), asyncio.create_task(hold())
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    done.set()
    await first

    async def free() -> bool:
        async with turns.turn("bob"):
            return True

    assert await asyncio.wait_for(free(), 20)

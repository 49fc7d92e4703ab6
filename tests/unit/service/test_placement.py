"""Laws of placement, and what the scheduler's pure parts decide."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jupyterhub_agentfarm.errors import NoMicroserverFits
from jupyterhub_agentfarm.records import Demand, Microserver
from jupyterhub_agentfarm.scheduling.lifecycle import Attempts, next_move
from jupyterhub_agentfarm.scheduling.placement import binpack, choose_microserver, refusal, spread
from jupyterhub_agentfarm.scheduling.priority import AHEAD, BACKOFF, choose_member, next_try, to_start
from jupyterhub_agentfarm.store.pools import Busy

GIB = 2**30
labels = st.dictionaries(st.sampled_from(["gpu", "zone"]), st.sampled_from(["a", "b"]))
demands = st.builds(
    Demand, server=st.just("s"), memory=st.integers(0, 8 * GIB), cpu=st.floats(0, 8), labels=labels
)  # fmt: skip
microservers = st.builds(
    Microserver, name=st.text("abcdef", min_size=1, max_size=4), state=st.sampled_from(["ready", "cordoned", "lost"]),
    memory=st.just(8 * GIB), memory_free=st.integers(0, 8 * GIB), cpus=st.integers(1, 8), load=st.floats(0, 9), labels=labels,
    taints=st.sampled_from([(), ("gpu",)]),
)  # fmt: skip
farms = st.lists(microservers, unique_by=lambda micro: micro.name, max_size=6)


@given(demands, farms)
def test_the_chosen_microserver_fits_whatever_the_order(demand: Demand, farm: list[Microserver]) -> None:
    farm = [
        *farm,
        Microserver(name="roomy", memory=64 * GIB, memory_free=32 * GIB, cpus=8, load=5, labels=demand.labels),
    ]
    for rank in (spread, binpack):
        placed = choose_microserver(demand, farm, rank)
        micro = next(one for one in farm if one.name == placed.microserver)
        assert refusal(demand, micro) is None and placed == choose_microserver(demand, farm[::-1], rank)
        assert set(placed.refusals) == {one.name for one in farm}


@given(demands, farms)
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_where_nothing_fits_each_microserver_says_why(demand: Demand, farm: list[Microserver]) -> None:
    assume(all(refusal(demand, micro) is not None for micro in farm))
    with pytest.raises(NoMicroserverFits) as caught:
        choose_microserver(demand, farm)
    assert set(caught.value.refusals) == {one.name for one in farm} and all(caught.value.refusals.values())


def test_spread_takes_the_emptier_and_binpack_the_fuller_microserver() -> None:
    full = Microserver(name="full", memory=8 * GIB, memory_free=2 * GIB, cpus=4)
    empty = Microserver(name="empty", memory=8 * GIB, memory_free=7 * GIB, cpus=4)
    demand = Demand(server="s", memory=GIB)
    assert choose_microserver(demand, [full, empty]).microserver == "empty"
    assert choose_microserver(demand, [full, empty], binpack).microserver == "full"


def test_a_pool_s_task_goes_to_the_least_busy_member_that_has_room() -> None:
    assert choose_member(["b", "c"], {"b": Busy(0, 2), "c": Busy(1, 1)}) == "c"
    assert choose_member(["b", "c"], {"b": Busy(0, 9), "c": Busy(AHEAD, 2)}) == "b", (
        "one whose runs nobody claims is full"
    )
    assert choose_member(["b"], {"b": Busy(AHEAD, AHEAD)}) is None and choose_member([], {}) is None


def test_so_many_members_are_started_as_have_work_and_one_that_does_not_come_is_not_waited_for() -> None:
    assert to_start(["a", "b", "c"], {}, 2) == ["a", "b"]
    coming = {"a": Attempts(0, 0, tries=1)}
    assert to_start(["a", "b", "c"], coming, 1) == ["a"] and to_start(["a", "b", "c"], coming, 2) == ["a", "b"]
    refused = {"a": Attempts(0, 0, tries=1, why="no room", refused=True)}
    assert to_start(["a", "b"], refused, 1) == ["b"]
    assert to_start(["a", "b"], {"a": Attempts(0, 0, tries=9), "b": Attempts(0, 0, tries=9)}, 1) == ["a"]


def test_a_server_is_asked_for_with_growing_pauses_until_the_deadline() -> None:
    assert next_move(True, None, 0) == "none" and next_move(False, None, 0) == "start"
    tried = Attempts(first=0, last=0, tries=1)
    assert next_move(False, tried, BACKOFF[0] - 0.1) == "none" and next_move(False, tried, BACKOFF[0]) == "start"
    assert next_move(False, Attempts(first=0, last=299, tries=9), 300) == "fail"
    assert [next_try(n) for n in (1, 5, 50)] == [BACKOFF[0], BACKOFF[-1], BACKOFF[-1]]

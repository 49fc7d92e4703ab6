"""Laws of placement: one server, many at once, and which had better move."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jupyterhub_agentfarm.demands import Requirements, Resources, demand_of, lacks, merged
from jupyterhub_agentfarm.errors import Invalid, NoMicroserverFits
from jupyterhub_agentfarm.records import Demand, Microserver
from jupyterhub_agentfarm.scheduling.placement import (
    RANKS,
    Rank,
    Standing,
    choose_microserver,
    feasible,
    place_all,
    rebalance,
    refusal,
    refusals,
    why_not,
)

GIB = 2**30
labels = st.dictionaries(st.sampled_from(["zone", "ticks"]), st.sampled_from(["a", "b"]))
names = st.text("abcdef", min_size=1, max_size=4)
some = st.sampled_from
demands = st.builds(
    Demand, server=st.just("s"), memory=some([0, GIB // 2, GIB, 2 * GIB, 9 * GIB]), cpu=some([0.0, 0.1, 0.5, 2.0, 9.0]),
    gpus=some([0, 0, 0, 1, 2]), gpu_memory=some([0, GIB]), labels=some([{}, {}, {"zone": "a"}]), without=some([{}, {}, {"zone": ""}, {"zone": "b"}]),
    flags=some([(), (), ("avx2",)]), tolerates=some([(), ("kept",)]), ticks=some(["", "", "a"]), ticks_only=st.booleans(),
    group=some(["", "p", "q"]), apart=some(["no", "soft", "hard"]), rank=some(["", "", *RANKS]), pin=some(["", "", "", "", "a"]), home=some(["", "", "", "", "b"]),
)  # fmt: skip
microservers = st.builds(
    Microserver, name=names, state=some(["ready", "ready", "ready", "cordoned", "lost"]), memory=some([4 * GIB, 8 * GIB]),
    memory_free=st.integers(0, 8 * GIB), cpus=st.integers(1, 8), load=st.floats(0, 9), labels=labels, taints=some([{}, {}, {"kept": "for tests"}]),
    flags=some([frozenset(), frozenset({"avx2"})]), gpus=some([(), (), (GIB, 2 * GIB)]), servers=st.integers(0, 5), reserve_memory=some([0, GIB]),
    reserve_cpu=some([0.0, 1.0]), promised_memory=st.integers(0, 4 * GIB), promised_cpu=some([0.0, 0.3, 1.0]), groups=some([{}, {"p": 1}]),
)  # fmt: skip
farms = st.lists(microservers, unique_by=lambda micro: micro.name, max_size=6)


def numbered(found: list[Demand]) -> list[Demand]:
    return [replace(one, server=f"s{at}") for at, one in enumerate(found)]


def taken(micro: Microserver, demand: Demand, gpus: tuple[int, ...]) -> Microserver:
    """Return the snapshot after the server was promised its place there."""
    groups = dict(micro.groups)
    if demand.group:
        groups[demand.group] = groups.get(demand.group, 0) + 1
    return replace(
        micro, promised_memory=micro.promised_memory + demand.memory, promised_cpu=micro.promised_cpu + demand.cpu,
        unused=micro.unused + demand.memory, servers=micro.servers + 1, groups=groups, gpus_taken=micro.gpus_taken | set(gpus),
    )  # fmt: skip


@given(demands, farms, some(RANKS))
def test_the_chosen_microserver_fits_each_has_its_reason_and_the_order_does_not_matter(
    demand: Demand, farm: list[Microserver], rank: Rank
) -> None:
    against = refusals(demand, farm)
    assert set(against) == {one.name for one in farm}
    if feasible(against) != "now":
        with pytest.raises(NoMicroserverFits) as caught:
            choose_microserver(demand, farm, rank)
        assert set(caught.value.refusals) == set(against) and all(caught.value.refusals.values())
        assert why_not(against)
        return
    placed = choose_microserver(demand, farm, rank)
    assert against[placed.microserver] is None and placed.why and not why_not(against)
    assert placed == choose_microserver(demand, farm[::-1], rank)
    assert {name for name, why in placed.refusals.items() if why is None} == {
        n for n, one in against.items() if one is None
    }
    chosen = next(one for one in farm if one.name == placed.microserver)
    assert len(placed.gpus) == demand.gpus and not chosen.gpus_taken & set(placed.gpus)
    assert all(chosen.gpus[at] >= demand.gpu_memory for at in placed.gpus)


@given(demands, microservers)
def test_never_is_said_exactly_where_an_empty_and_uncordoned_microserver_would_refuse_too(
    demand: Demand, micro: Microserver
) -> None:
    found = refusal(demand, micro)
    assume(found is not None)
    empty = replace(
        micro, state="ready", taints={}, memory_free=micro.memory, promised_memory=0, promised_cpu=0.0, gpus_taken=frozenset(),
        servers=0, groups={}, load=0.0, unused=0,
    )  # fmt: skip
    assert found is not None
    if found.never:
        assert refusal(demand, empty) is not None
    later = refusal(demand, empty)
    if later is None:
        assert not found.never


@given(st.lists(demands, max_size=25), farms, some(RANKS))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_many_at_once_are_placed_as_one_after_the_other_and_never_beyond_capacity_less_reserve(
    found: list[Demand], farm: list[Microserver], rank: Rank
) -> None:
    wanted = numbered(found)
    planned = place_all(wanted, farm, rank)
    now = {micro.name: micro for micro in farm}
    for demand in wanted:
        try:
            placed = choose_microserver(demand, list(now.values()), rank)
        except NoMicroserverFits:
            assert planned.where[demand.server] is None
            assert planned.why(demand.server)
            continue
        assert planned.where[demand.server] == placed.microserver and planned.why(demand.server) == ""
        now[placed.microserver] = taken(now[placed.microserver], demand, placed.gpus)
    for before, after in zip(farm, now.values(), strict=True):
        if after.promised_memory > before.promised_memory:
            assert after.promised_memory <= after.memory - after.reserve_memory and after.unused <= after.memory_free
        if after.promised_cpu > before.promised_cpu:
            assert after.promised_cpu <= after.cpus - after.reserve_cpu + 1e-6


@given(st.lists(demands, max_size=12), farms, some(RANKS))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_rebalanced_farm_has_nothing_more_to_move_and_a_move_is_worth_its_gain(
    found: list[Demand], farm: list[Microserver], rank: Rank
) -> None:
    now, standing = {micro.name: micro for micro in farm}, {}
    for demand in numbered(found):
        here = [one for one in now.values() if refusal(demand, one) is None]
        if here:  # where it happens to stand: by no rank at all
            placed = choose_microserver(demand, here[:1], rank)
            standing[demand.server] = Standing(demand, placed.microserver, placed.gpus)
            now[placed.microserver] = taken(now[placed.microserver], demand, placed.gpus)
    moves = rebalance(list(standing.values()), list(now.values()), rank, gain=0.3)
    assert all(move.to != move.microserver and move.gain >= 0.3 for move in moves)
    assert len({move.server for move in moves}) == len(moves)


def test_thirty_servers_started_together_are_not_all_put_on_one_microserver() -> None:
    farm = [Microserver(name=f"micro{n}", memory=16 * GIB, memory_free=15 * GIB, cpus=4, load=n / 10) for n in range(3)]
    planned = place_all([Demand(f"s{n}", memory=GIB // 2) for n in range(30)], farm)
    assert sorted(list(planned.where.values()).count(micro.name) for micro in farm) == [9, 10, 11]


def test_spread_takes_the_emptier_and_binpack_the_fuller_microserver_and_the_agent_s_own_rank_goes_before_the_farm_s() -> (
    None
):
    full = Microserver(name="full", memory=8 * GIB, memory_free=2 * GIB, cpus=4)
    empty = Microserver(name="empty", memory=8 * GIB, memory_free=7 * GIB, cpus=4)
    demand = Demand(server="s", memory=GIB)
    assert choose_microserver(demand, [full, empty]).microserver == "empty"
    assert choose_microserver(demand, [full, empty], "binpack").microserver == "full"
    assert choose_microserver(replace(demand, rank="binpack"), [full, empty], "spread").microserver == "full"


def test_members_of_a_pool_stand_apart_ticks_are_near_and_a_gpu_is_kept_for_who_asks_for_it() -> None:
    first = Microserver(name="a", memory=8 * GIB, memory_free=7 * GIB, cpus=4, groups={"p": 1})
    second = Microserver(name="b", memory=8 * GIB, memory_free=5 * GIB, cpus=4)
    member = Demand("s", memory=GIB, group="p")
    assert choose_microserver(member, [first, second]).microserver == "b"
    assert choose_microserver(replace(member, apart="no"), [first, second]).microserver == "a"
    with pytest.raises(NoMicroserverFits, match="must stand apart"):
        choose_microserver(replace(member, apart="hard"), [first])
    streams = replace(second, labels={"ticks": "questdb"})
    reader = Demand("s", memory=GIB, ticks="questdb")
    assert choose_microserver(reader, [first, streams]).microserver == "b"
    assert "are not kept there" in str(refusal(replace(reader, ticks_only=True), first))
    assert choose_microserver(reader, [first]).microserver == "a", "only preferred"
    big = replace(first, name="g", gpus=(24 * GIB,), memory_free=8 * GIB, groups={})
    assert choose_microserver(Demand("s"), [big, first]).microserver == "a"
    assert choose_microserver(Demand("s", gpus=1, gpu_memory=20 * GIB), [big, first]).gpus == (0,)


def test_a_refusal_says_what_would_have_to_change() -> None:
    micro = Microserver(
        name="m", memory=4 * GIB, memory_free=3 * GIB, cpus=2, reserve_memory=GIB, promised_memory=2 * GIB
    )
    told = refusal(Demand("s", memory=2 * GIB), micro)
    assert told is not None and not told.never
    assert (
        str(told)
        == "2048 MiB of 3072 MiB are promised to other servers; 2048 MiB are asked for: wait until one ends, or promise them less"
    )
    told = refusal(Demand("s", memory=4 * GIB), micro)
    assert told is not None and told.never and "4096 MiB, 1024 MiB of them kept for the system" in told.text
    assert feasible(refusals(Demand("s", flags=("avx512f",)), [micro])) == "never"
    assert feasible(refusals(Demand("s"), [replace(micro, state="cordoned", reason="new disk")])) == "later"
    whole = [micro, replace(micro, name="n", state="cordoned")]
    assert why_not(refusals(Demand("s", memory=2 * GIB), whole)).startswith(
        "2 microservers refuse (1 memory, 1 state); nearest:"
    )


def test_a_server_goes_back_to_where_its_workspace_is_and_a_rebalance_moves_it_only_where_that_is_worth_it() -> None:
    a = Microserver(name="a", memory=8 * GIB, memory_free=8 * GIB, cpus=4, promised_memory=4 * GIB, servers=4)
    b = replace(a, name="b", promised_memory=0, servers=0)
    home = Demand("s0", memory=GIB, home="a")
    assert choose_microserver(home, [a, b]).microserver == "a"
    assert str(refusal(home, b)) == "its workspace is on a: move the workspace"
    standing = [Standing(Demand(f"s{n}", memory=GIB, home="a"), "a") for n in range(4)]
    moves = rebalance(standing, [a, b])
    assert [(move.to, move.server) for move in moves] == [("b", "s0"), ("b", "s1")] or len(moves) in (1, 2)
    after = [replace(a, promised_memory=2 * GIB, servers=2), replace(b, promised_memory=2 * GIB, servers=2)]
    even = [Standing(one.demand, "a" if at < 2 else "b") for at, one in enumerate(standing)]
    assert rebalance(even, after) == []
    pinned = Standing(replace(standing[0].demand, labels={"zone": "x"}), "a")
    assert rebalance([pinned], [a, b])[0].to is None, "it may not stand there, and nobody else may have it"


def test_settings_come_in_layers_and_what_is_wrong_is_said() -> None:
    whole = merged([{"memory": GIB, "labels": {"zone": "a"}}, {"labels": {"disk": "ssd"}, "cpu": 1}])
    assert (whole.memory, whole.cpu, whole.labels) == (GIB, 1.0, {"zone": "a", "disk": "ssd"})
    assert (
        demand_of("u", Resources(workspace="none"), home="a").home == ""
        and demand_of("u", Resources(), home="a").home == "a"
    )
    for wrong in ({"memory": -1}, {"memory": "1GiB"}, {"labels": {"": "x"}}, {"colour": "red"}, {"apart": "maybe"}):
        with pytest.raises(Invalid):
            merged([wrong])


def test_a_task_goes_where_the_server_s_settings_or_its_microserver_give_what_it_needs() -> None:
    has = Resources(memory=GIB, labels={"zone": "a"}, gpus=1)
    assert lacks(Requirements(memory=GIB, labels={"zone": "a"}, gpus=1), has) == ""
    assert lacks(Requirements(memory=2 * GIB), has) == "its server is promised 1024 MiB, the task needs 2048"
    assert lacks(Requirements(flags=["avx2"]), has) and not lacks(Requirements(flags=["avx2"]), has, {}, ["avx2"])
    assert lacks(Requirements(labels={"disk": "ssd"}), has) and not lacks(
        Requirements(labels={"disk": "ssd"}), has, {"disk": "ssd"}
    )
    assert lacks(Requirements(without={"zone": ""}), has) and not lacks(
        Requirements(without={"gpu": ""}), has, {"zone": "a"}
    )

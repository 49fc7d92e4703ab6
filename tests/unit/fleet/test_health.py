"""Taints by health come, stay inside the band, and go: the same looks give the same taints, and none flaps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.demands import HealthLimits
from jupyterhub_agentfarm.fleet.health import CLOCK, DISK, MEMORY, Health, Standing, judged, offset_of
from jupyterhub_agentfarm.fleet.state import FleetState

GIB = 1 << 30
LIMITS = HealthLimits(calm_seconds=60.0)
shares = st.floats(0, 1)
offsets = st.none() | st.floats(-7200, 7200)


def facts(free: float = 0.5, offset: float | None = 0.0, unsure: float = 0.0, full: float = 0.0) -> dict[str, Any]:
    clock = {} if offset is None else {"clock_offset": offset, "clock_unsure": unsure}
    return {"disk": 100 * GIB, "disk_free": int(free * 100 * GIB), "pressure": {"memory": {"full": full}}, **clock}


looks = st.lists(
    st.builds(facts, free=shares, offset=offsets, unsure=st.floats(0, 5), full=shares), min_size=1, max_size=40
)


def told(seen: list[dict[str, Any]], step: float = 10.0) -> list[dict[str, Standing]]:
    """Return the taints after each of these looks, `step` seconds apart."""
    state: dict[str, Standing] = {}
    states = []
    for number, one in enumerate(seen):
        state = judged(state, one, 1000.0 + number * step, LIMITS)
        states.append(state)
    return states


@given(looks)
def test_the_same_looks_give_the_same_taints(seen: list[dict[str, Any]]) -> None:
    assert told(seen) == told(seen)


@given(st.lists(st.floats(0.0501, 0.0749), min_size=1, max_size=30), st.booleans())
def test_inside_the_band_nothing_changes(free: list[float], full_before: bool) -> None:
    before = [facts(free=0.04)] if full_before else [facts(free=0.5)]
    states = told([*before, *(facts(free=one) for one in free)], step=100.0)
    assert {DISK in state for state in states} == {full_before}


@given(looks)
def test_a_taint_stands_wherever_its_limit_is_surely_passed(seen: list[dict[str, Any]]) -> None:
    for one, state in zip(seen, told(seen), strict=True):
        assert (one["disk_free"] / one["disk"] >= 0.05) or DISK in state
        assert (one["pressure"]["memory"]["full"] < 0.1) or MEMORY in state
        sure = abs(one.get("clock_offset", 0.0)) - one.get("clock_unsure", 0.0)
        assert sure <= 1.0 or CLOCK in state


@given(looks)
def test_a_taint_goes_only_after_a_whole_calm_time(seen: list[dict[str, Any]]) -> None:
    states = [{}, *told(seen)]
    for at in range(1, len(states)):
        for taint in states[at - 1].keys() - states[at].keys():
            calm = states[at - 1][taint].calm
            assert calm is not None and 1000.0 + (at - 1) * 10.0 - calm >= LIMITS.calm_seconds


@given(looks, st.lists(shares, min_size=2, max_size=40))
def test_no_figure_makes_a_taint_come_more_often_than_once_in_a_calm_time(
    seen: list[dict[str, Any]], noise: list[float]
) -> None:
    states = [{}, *told([*seen, *(facts(free=one) for one in noise)])]
    for taint in (DISK, CLOCK, MEMORY):
        came = [at for at in range(1, len(states)) if taint in states[at] and taint not in states[at - 1]]
        assert all(later - sooner > LIMITS.calm_seconds / 10 for sooner, later in itertools.pairwise(came))


@given(st.floats(-30, 30), st.floats(0, 20), st.floats(0, 20), st.floats(0, 5))
def test_a_clock_is_not_blamed_for_the_way(true: float, there: float, back: float, took: float) -> None:
    """Whatever part of the way each direction takes, the offset is wrong by no more than what is said."""
    offset, unsure = offset_of(1e9, there + took + back, {"time": 1e9 + there + true, "took": took})
    assert abs(offset - true) <= unsure + 1e-6
    if abs(true) <= 1.0:
        assert CLOCK not in judged({}, facts(offset=offset, unsure=unsure + 1e-6), 0.0, LIMITS)


def test_a_clock_that_is_right_again_is_not_held_for_wrong_by_a_machine_that_begins_to_answer_slowly() -> None:
    state = judged({}, facts(offset=3600.0), 0.0, LIMITS)
    offset, unsure = offset_of(1e9, 1.9, {"time": 1e9 + 1.8, "took": 0.1})  # all of the way was there
    assert offset > 0.5
    for now in (100.0, 100.0 + LIMITS.calm_seconds):
        state = judged(state, facts(offset=offset, unsure=unsure), now, LIMITS)
    assert state == {}


def test_what_is_said_names_the_figure_and_what_is_not_told_leaves_things_as_they_are() -> None:
    full = {**facts(free=0.03, offset=-3600.2, full=0.4), "inodes": 100, "inodes_free": 2}
    state = judged({}, full, 5.0, LIMITS)
    assert {taint: one.reason for taint, one in state.items()} == {
        DISK: "2% of the inodes of its disk is free",
        CLOCK: "its clock is 3600 s behind the farm's",
        MEMORY: "all its work waited for memory for 40% of a minute",
    }
    assert judged(state, {}, 500.0, LIMITS) == state
    off = HealthLimits(disk_free=0, clock_off=0, memory_pressure=0)
    assert judged(state, full, 500.0, off) == {}


def test_a_clock_that_is_set_back_keeps_no_taint_for_longer() -> None:
    state = judged({}, facts(free=0.01), 10_000.0, LIMITS)
    state = judged(state, facts(free=0.5), 10_010.0, LIMITS)
    state = judged(state, facts(free=0.5), 100.0, LIMITS)
    assert DISK in state and judged(state, facts(free=0.5), 161.0, LIMITS) == {}


@pytest.fixture
def health(tmp_path: Path) -> Health:
    return Health(FleetState(tmp_path / "fleet.json"), lambda: HealthLimits(calm_seconds=0))


def test_changes_are_noted_once_and_outlive_the_daemon(health: Health, tmp_path: Path) -> None:
    for _ in range(3):
        health.judge("micro1", facts(free=0.01))
    again = FleetState(tmp_path / "fleet.json")
    assert again.microservers["micro1"]["health"][DISK]["reason"] == "1% of its disk is free"
    anew = Health(again, health.limits)
    anew.judge("micro1", facts(free=0.02))
    anew.judge("micro1", facts(free=0.9))
    assert [(one["kind"], one["taint"]) for one in again.notices] == [
        ("microserver.tainted", DISK),
        ("microserver.untainted", DISK),
    ]
    assert again.notices[0]["id"] < again.notices[1]["id"] and anew.taints("micro1") == {}


def test_silence_has_a_beginning_and_a_lost_one_returns_on_record(health: Health) -> None:
    health.missed("micro1", "it does not answer", 500.0)
    health.missed("micro1", "nothing listens on its SSH port")
    assert health.silence("micro1") == {"since": 500.0, "why": "nothing listens on its SSH port", "lost": False}
    health.lose("micro1", True, "no run there renews its lease")
    health.lose("micro1", True, "again")
    health.heard("micro1")
    health.heard("micro1")
    health.lose("micro1", True, "too late")
    assert health.silence("micro1") is None
    assert [one["kind"] for one in health.state.notices] == ["microserver.lost", "microserver.returned"]

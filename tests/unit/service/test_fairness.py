"""Nothing starves, by the farm's own queue in simulated time; and the plot in the docs is what the simulation draws."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyterhub_agentfarm.store.turns import AGE_SECONDS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def fairness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fairness", ROOT / "benchmarks" / "fairness.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fairness"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tasks = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cho"]), st.integers(0, 3000), st.sampled_from([-100, -5, 0, 1, 5, 100]), st.integers(1, 900)
    ),
    min_size=1,
    max_size=30,
)  # fmt: skip


@given(tasks, st.integers(1, 3))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_task_starves(fairness: ModuleType, found: list[Any], kernels: int) -> None:
    """Each begins; whoever waits is overtaken by an owner's later task only as far as priorities are worth, by other owners in turns."""
    asked = [fairness.Asked(owner, float(at), priority, float(takes)) for owner, at, priority, takes in found]
    begun = fairness.simulate(fairness.Turns(), asked, kernels)
    assert len(begun) == len(asked)
    for place, late in enumerate(begun):
        for before in begun[:place]:
            if (
                before.asked.owner == late.asked.owner and before.at > late.asked.at
            ):  # it overtook, while this one waited
                assert before.asked.at - late.asked.at <= AGE_SECONDS * (
                    before.asked.priority - late.asked.priority
                ) or (before.asked.at <= late.asked.at)
        since: dict[str, int] = {}
        for before in begun[:place]:
            if before.at >= late.asked.at and before.asked.owner != late.asked.owner:
                since[before.asked.owner] = since.get(before.asked.owner, 0) + 1
            elif before.at >= late.asked.at:  # it was this owner's turn, for another of their tasks
                since = {}
        assert all(count <= 2 for count in since.values()), "others had two turns before this owner had one"


def test_the_plot_in_the_docs_is_what_the_simulation_draws(fairness: ModuleType) -> None:
    assert (ROOT / "docs" / "fairness.svg").read_text() == fairness.picture(), "run: python benchmarks/fairness.py"


def test_who_comes_now_and_then_waits_for_minutes_beside_a_flood_and_an_old_task_goes_before_new_urgent_ones(
    fairness: ModuleType,
) -> None:
    farm, others = fairness.waits(fairness.FLOOD, fairness.flood(), lambda task: task.owner != "ann").values()
    assert max(waited for _, waited in farm) <= 3 and max(waited for _, waited in others) > 100
    aged, strict = fairness.waits(fairness.STREAM, fairness.stream(), lambda task: task.priority == 0).values()
    assert max(waited for _, waited in strict) > 4 * max(waited for _, waited in aged)

"""Importing the SDK: the public names, quickly, and nothing of a farm with it."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FARM = ("jupyterhub", "sqlalchemy", "tornado", "jupyterhub_agentfarm", "alembic", "aiohttp")
HEAVY = ("httpx", "websockets", "jsonschema_rs", "sqlite3", "asyncio")


def imported(statement: str) -> set[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_public_names_are_there() -> None:
    from agentfarm_sdk import Agent, Farm, current, tool

    assert callable(Agent) and callable(Farm) and callable(tool) and current() is None
    with pytest.raises(ImportError):
        from agentfarm_sdk import Nothing  # type: ignore[attr-defined]  # noqa: F401


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not imported("import agentfarm_sdk") & {*FARM, *HEAVY}


@pytest.mark.parametrize("name", ["Farm", "Agent", "tool", "current", "Context", "OpenAIModel"])
def test_no_public_name_brings_a_part_of_the_farm(name: str) -> None:
    assert not imported(f"from agentfarm_sdk import {name}") & set(FARM)


def test_a_tool_is_declared_without_a_network_library() -> None:
    assert not imported("from agentfarm_sdk import tool") & {"httpx", "websockets", "jsonschema_rs"}


def test_a_step_of_the_loop_costs_the_same_late_as_early() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from loop import measure
    finally:
        sys.path.pop(0)
    taken = measure(2000)
    early, late = statistics.median(taken[:200]), statistics.median(taken[-200:])
    assert late < 1.5 * early + 0.05, (early, late)

"""Whose units they are: farms may share a microserver. To one farm another's units are not there; they only take room.

A unit that a helper before version 3 started has no farm in its record: every farm is told of it, and the one that knows it takes it over.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .checks import UNIT, Refused, Start
from .processes import read_json


def of(asked: dict[str, Any]) -> str:
    """Return the id of the farm that asks; "" where it does not say."""
    return str(asked.get("farm", ""))


def are_others(kept: dict[str, Any], farm: str) -> bool:
    """Say whether the unit of this record is another farm's."""
    return kept.get("farm", "") not in ("", farm)


def records(root: Path) -> dict[str, dict[str, Any]]:
    """Return what is kept of each unit, whosever it is."""
    names = sorted(entry for entry in os.listdir(root) if UNIT.fullmatch(entry)) if root.is_dir() else []
    return {name: read_json(root / name / "unit.json") for name in names}


def record(spec: Start, farm: str) -> dict[str, Any]:
    """Return what is kept of a unit that is started, for its farm and for others."""
    limits = spec.limits
    return {
        "farm": farm, "uid": spec.uid, "workspace": spec.workspace, "memory": limits.memory or 0, "cpu": limits.cpu or 0.0, "about": spec.about,
    }  # fmt: skip


def of_others(farm: str, lib: Path, runs: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """Return the records of other farms' units that still hold something here: they run, or their workspace is there."""
    others = {unit: kept for unit, kept in records(lib / "units").items() if are_others(kept, farm)}
    there = lib / "workspaces"
    return {
        unit: kept
        for unit, kept in others.items()
        if runs(unit) or (kept.get("workspace") and (there / kept["workspace"]).exists())
    }


def refuse_what_is_others(spec: Start, others: dict[str, dict[str, Any]]) -> None:
    """Raises Refused where another farm has a unit of that name here, or its files or its user would become this unit's."""
    for unit, kept in others.items():
        same = {
            f"unit {spec.unit}": unit == spec.unit, f"workspace {spec.workspace}": kept.get("workspace") == spec.workspace,
            f"user id {spec.uid}": kept.get("uid") == spec.uid,
        }  # fmt: skip
        for name, is_same in same.items():
            if is_same:
                hint = (
                    "give the agent another name, or, where that farm is gone, remove the workspace that it left there"
                )
                raise Refused("start", f"another farm has the {name} on this microserver", hint)


def refuse_workspace_of_others(name: str, others: dict[str, dict[str, Any]]) -> None:
    """Raises Refused where the workspace of that name is another farm's."""
    if any(kept.get("workspace") == name for kept in others.values()):
        raise Refused("start", f"another farm has the workspace {name} on this microserver", "it is not yours to move")


def room_of_others(others: dict[str, dict[str, Any]], runs: Callable[[str], bool]) -> dict[str, Any]:
    """Return {units: names, memory: bytes, cpu: cores}: what other farms have here, and what those that run may take."""
    running = [kept for unit, kept in others.items() if runs(unit)]
    return {
        "units": sorted(others), "memory": sum(int(kept.get("memory", 0)) for kept in running),
        "cpu": sum(float(kept.get("cpu", 0.0)) for kept in running),
    }  # fmt: skip

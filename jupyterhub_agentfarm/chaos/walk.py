"""The crash matrix, point by point: what has held is kept in a file, so that a walk which was interrupted goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import Invalid
from .faults import Fault
from .trial import Struck

Pair = tuple[Fault, str]


class Walked:
    """The points walked on one database. A line of the file is one of them, as it was judged; a later line replaces an earlier one."""

    def __init__(self, file: Path | None, database: str) -> None:
        self.file, self.database = file, database
        self.points: dict[tuple[str, str], dict[str, Any]] = {}
        for number, line in enumerate(_lines(file) if file and file.exists() else (), 1):
            try:
                told = json.loads(line)
                if told["database"] == database:
                    self.points[told["fault"], told["kind"]] = told
            except (ValueError, KeyError, TypeError) as error:
                raise Invalid(f"{file}, line {number} is no point of a walk", hint="name another file") from error

    def left(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Return the points that have not been walked, or were broken."""
        return [(fault, kind) for fault, kind in pairs if not self.points.get((fault.name, kind), {}).get("held")]

    def add(self, struck: Struck) -> None:
        told = {
            "database": self.database, "fault": struck.fault, "kind": struck.kind, "held": not struck.broken, "tasks": len(struck.runs),
            "seconds": struck.seconds, "broken": struck.broken,
        }  # fmt: skip
        self.points[struck.fault, struck.kind] = told
        if self.file:
            with self.file.open("a") as file:
                file.write(json.dumps(told) + "\n")


def _lines(file: Path) -> list[bytes]:
    """Return the file's whole lines; half a one, of a walk that was killed, is cut off: that point is walked again."""
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    return whole.splitlines()


def grid(points: Mapping[tuple[str, str], Mapping[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Return the matrix as rows of cells, and the names of its columns: a cell tells how many tasks were in flight."""
    faults = list(dict.fromkeys(fault for fault, _ in points))
    kinds = list(dict.fromkeys(kind for _, kind in points))
    rows = [[kind or "anywhen", *(_cell(points.get((fault, kind))) for fault in faults)] for kind in kinds]
    return rows, ["in flight behind", *faults]


def _cell(told: Mapping[str, Any] | None) -> str:
    return "" if told is None else str(told["tasks"]) if told["held"] else "BROKEN"

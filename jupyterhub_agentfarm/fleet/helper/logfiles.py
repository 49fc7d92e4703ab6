"""Lines of a unit's log file, read on from where somebody was, also where the log was cut meanwhile (keeper.rotate)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from .checks import LONGEST_LINE

TAIL_BYTES = 200_000
PIECE_BYTES = 1 << 20
STILL_SECONDS = 1.0  # a last line without an end is told when nothing was added to it for so long
LOOK_SECONDS = 0.1


def read(folder: Path, count: int, after: str, wait: float) -> dict[str, Any]:
    """Return {lines, cursor}: the last `count` lines; or, behind a cursor, the next ones, for which it waits up to `wait` seconds."""
    until = time.monotonic() + wait
    while True:
        lines, cursor = _next(folder, count, after) if after else _last(folder, count)
        if lines or not after or time.monotonic() >= until:
            return {"lines": lines, "cursor": cursor}
        time.sleep(LOOK_SECONDS)


def _mark(folder: Path) -> int:
    """Return which log it is: another one each time that it was cut."""
    try:
        return (folder / "log.1").stat().st_mtime_ns
    except OSError:
        return 0


def _last(folder: Path, count: int) -> tuple[list[str], str]:
    mark, size = _mark(folder), _size(folder / "log")
    start = max(0, size - TAIL_BYTES)
    lines, offset = _lines(folder / "log", start, 10**9)
    return lines[1 if start else 0 :][-count:], f"{mark}.{offset}"


def _next(folder: Path, count: int, after: str) -> tuple[list[str], str]:
    known, _, place = after.partition(".")
    mark, offset = _mark(folder), int(place) if place.isdigit() else 0
    if known != str(mark):  # what was not read yet is in the older one, at the same place
        lines, offset = _lines(folder / "log.1", offset, count)
        if lines:
            return lines, f"{known}.{offset}"
        offset = 0
    if offset > _size(folder / "log"):
        offset = 0  # another log than it was
    lines, offset = _lines(folder / "log", offset, count)
    return lines, f"{mark}.{offset}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _lines(path: Path, offset: int, count: int) -> tuple[list[str], int]:
    """Return up to so many whole lines from there on, and where the next one begins."""
    try:
        with open(path, "rb") as source:
            found = os.fstat(source.fileno())
            source.seek(offset)
            text = source.read(PIECE_BYTES)
    except OSError:
        return [], offset
    whole = text.split(b"\n")
    rest = whole.pop()
    still = time.time() - found.st_mtime > STILL_SECONDS
    if rest and (still or (len(text) == PIECE_BYTES and not whole)):
        whole.append(rest)
    whole = whole[:count]
    taken = sum(len(line) + 1 for line in whole)
    return [line.decode("utf-8", "replace")[:LONGEST_LINE] for line in whole], offset + min(taken, len(text))

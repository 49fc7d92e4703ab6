"""Is an export of the farm (`agentfarm audit export`) whole? Checked without a farm, in as little memory as it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from .audit import BundledEvent, Leaf, Link, check_chain, link_of
from .errors import Invalid
from .protocol import Header, header_hash

FARM = "farm"


class ExportedEvent(BundledEvent, frozen=True, kw_only=True):
    """A line of an export: an event as it is kept. `hash`: that of its header; `id` counts all events of the farm."""

    id: int
    run: str
    hash: str


@dataclass
class Export:
    """What a file turned out to hold: how many runs and events, and all that is wrong with them."""

    runs: int = 0
    events: int = 0
    erased: int = 0
    anchors: int = 0  # heads that a kept copy of the anchors holds, and that were found here
    flaws: list[str] = field(default_factory=list)


def is_export(path: Path) -> bool:
    """Say whether a file may be an export: JSON by lines, where a bundle is a zip."""
    with path.open("rb") as file:
        return file.read(1) == b"{"


def verify_export(path: Path, anchored: Mapping[str, tuple[Leaf, int]] | None = None) -> Export:
    """Check every run of an export from its first event to its last; `anchored`: each run's latest head, and its anchor.

    Raises:
        Invalid: the file is no export, or it holds only later events of a run.
    """
    with path.open("rb") as file:
        places, found = _places(file, path), Export()
        told = {FARM: places.pop(FARM)} if FARM in places else {}
        for run, lines in {**told, **places}.items():
            _check(run, file, lines, found)
            if anchored and (held := anchored.get(run)) is not None:
                _check_anchor(run, file, lines, *held, found)
        deleted = _deleted(file, told.get(FARM, {}))
    for run, (_, number) in (anchored or {}).items():
        if run not in places and run not in told and run not in deleted:
            found.flaws.append(f"{run}: anchor {number} holds this run, and it is not here")
    return found


def _places(file: BinaryIO, path: Path) -> dict[str, dict[int, int]]:
    """Return where the line of each event begins, by run and number. Raises Invalid."""
    found: dict[str, dict[int, int]] = {}
    at = 0
    for number, line in enumerate(file, 1):
        try:
            one = msgspec.json.decode(line, type=ExportedEvent)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Invalid(
                f"line {number} of {path} is no event: {error}", hint="it was changed, or is no export"
            ) from None
        found.setdefault(one.run, {}).setdefault(one.seq, at)
        at += len(line)
    for run, lines in found.items():
        if (first := min(lines)) > 1:
            raise Invalid(
                f"{path} holds {run} from event {first} on",
                hint="put it behind the export that came before it, in one file",
            )
    return found


def _read(file: BinaryIO, at: int) -> ExportedEvent:
    file.seek(at)
    return msgspec.json.decode(file.readline(), type=ExportedEvent)


def _check(run: str, file: BinaryIO, lines: Mapping[int, int], found: Export) -> None:
    last = _read(file, lines[max(lines)])
    head = last.header.encode()
    try:
        epoch = msgspec.json.decode(head, type=Header).epoch
    except msgspec.MsgspecError:
        epoch = ""
    checked = check_chain(epoch, run, _links(file, lines, found), last.seq, header_hash(head))
    found.runs, found.events = found.runs + 1, found.events + checked.events
    if not checked.ok:
        found.flaws.append(f"{run}: event {checked.bad_seq} is not what was recorded: {checked.why}")


def _links(file: BinaryIO, lines: Mapping[int, int], found: Export) -> Iterator[Link]:
    for seq in sorted(lines):
        one = _read(file, lines[seq])
        if header_hash(one.header.encode()) != one.hash:
            found.flaws.append(f"{one.run}: event {seq} has another hash than its line says: it was changed")
        found.erased += one.body is None
        yield link_of(one)


def _check_anchor(run: str, file: BinaryIO, lines: Mapping[int, int], leaf: Leaf, number: int, found: Export) -> None:
    if leaf.seq not in lines:
        found.flaws.append(f"{run}: anchor {number} holds event {leaf.seq}, and the export ends before it")
    elif header_hash(_read(file, lines[leaf.seq]).header.encode()) != leaf.head:
        found.flaws.append(f"{run}: event {leaf.seq} is not the one that anchor {number} holds")
    else:
        found.anchors += 1


def _deleted(file: BinaryIO, farm: Mapping[int, int]) -> set[str]:
    """Return the runs that the farm's own chain says were deleted."""
    return {run for one in _bodies(file, farm.values()) if (run := one.get("run")) and "head" in one}


def _bodies(file: BinaryIO, places: Iterable[int]) -> Iterator[dict[str, Any]]:
    for at in places:
        one = _read(file, at)
        try:
            if one.body is not None and msgspec.json.decode(one.header, type=Header).kind == "run.deleted":
                yield msgspec.json.decode(one.body, type=dict[str, Any])
        except msgspec.MsgspecError:
            continue  # it was changed: the chain has said so

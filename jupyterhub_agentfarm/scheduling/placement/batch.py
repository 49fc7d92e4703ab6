"""Many servers at once: the same answers as one after the other, without asking every microserver for every server. Pure.

Servers that differ only in size stand in one line with a heap of the microservers that are open to them. Promises only grow while
a batch is placed, so what was too full stays so, and a size that found nothing need not be tried again.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from ...records import Demand, Microserver
from .choice import Feasible, feasible, why_not
from .rooms import Rank, Refusal, Room, filtered, refusal

TOLD_APART = 4  # the last parts of a kind: they decide which microserver is best, not which are open


class Planned:
    """Where each server goes (None: nowhere now); `why` and `feasible` tell of one that goes nowhere."""

    def __init__(
        self, where: dict[str, str | None], demands: dict[str, Demand], rooms: Sequence[Room], rank: str
    ) -> None:
        self.where = where
        self._demands, self._rooms, self._rank = demands, rooms, rank
        self._told: dict[Any, dict[str, Refusal | None]] = {}  # once for all that are alike: every microserver is asked

    def why(self, server: str) -> str:
        """Say why the server goes nowhere, with all the others where they were placed; "" where it does."""
        if self.where[server] is not None:
            return ""
        return why_not(self._against(server))

    def feasible(self, server: str) -> Feasible:
        """Say whether a server that goes nowhere gets a place when others have left, or never as things are."""
        return "now" if self.where[server] is not None else feasible(self._against(server))

    def _against(self, server: str) -> dict[str, Refusal | None]:
        demand = self._demands[server]
        alike = (_kind(demand, self._rank), _size(demand))
        if alike not in self._told:
            self._told[alike] = {room.micro.name: refusal(demand, room) for room in self._rooms}
        return self._told[alike]


def place_all(demands: Sequence[Demand], farm: Sequence[Microserver], rank: Rank = "spread") -> Planned:
    """Place servers in this order, each as if those before it were there already."""
    rooms = [Room(micro) for micro in farm]
    changed: list[Room] = []  # each time one is promised to somebody
    open_to: dict[Any, list[Room]] = {}
    lines: dict[Any, _Line] = {}
    kinds = []
    for demand in demands:
        kinds.append(kind := _kind(demand, rank))
        if kind in lines:
            lines[kind].expect(demand)
        else:
            who = kind[:-TOLD_APART]
            if who not in open_to:
                open_to[who] = [room for room in rooms if filtered(demand, room.micro) is None]
            lines[kind] = _Line(demand, open_to[who], demand.rank or rank, changed)
    where: dict[str, str | None] = {}
    for demand, kind in zip(demands, kinds, strict=True):
        room = lines[kind].place(demand)
        where[demand.server] = None if room is None else room.micro.name
        if room is not None:
            room.take(demand)
            changed.append(room)
    return Planned(where, {demand.server: demand for demand in demands}, rooms, rank)


class _Line:
    """Servers that differ only in size. Keys in the heap are never too high: a microserver that got better is put in again."""

    def __init__(self, first: Demand, rooms: Sequence[Room], rank: str, changed: Sequence[Room]) -> None:
        self.rank, self.first, self.changed, self.seen = rank, first, changed, 0
        self.rooms = {room.micro.name: room for room in rooms}
        self.heap = [(room.key(first, rank), name) for name, room in self.rooms.items()]
        heapq.heapify(self.heap)
        # The least that any of the line asks for.
        self.memory, self.cpu, self.gpus = first.memory, first.cpu, first.gpus
        self.failed: list[Demand] = []
        self.parked: list[
            tuple[int, float, str]
        ] = []  # out of the heap until somebody asks for no more than is left there

    def expect(self, demand: Demand) -> None:
        self.memory, self.cpu = min(self.memory, demand.memory), min(self.cpu, demand.cpu)
        self.gpus = min(self.gpus, demand.gpus)

    def _look(self) -> None:
        """Put in again what was promised to others since: by binpack it got better."""
        if self.rank == "binpack":
            for room in dict.fromkeys(self.changed[self.seen :]):
                if room.micro.name in self.rooms and not self._full(room):
                    heapq.heappush(self.heap, (room.key(self.first, self.rank), room.micro.name))
        self.seen = len(self.changed)

    def place(self, demand: Demand) -> Room | None:
        if any(_at_least(demand, one) for one in self.failed):
            return None
        self._look()
        while self.parked and -self.parked[0][0] >= demand.memory:
            heapq.heappush(self.heap, heapq.heappop(self.parked)[1:])
        found, aside = None, set()
        while self.heap:
            key, name = self.heap[0]
            room = self.rooms[name]
            if self._full(room):
                heapq.heappop(self.heap)
                continue
            now = room.key(self.first, self.rank)
            if now > key:
                heapq.heapreplace(self.heap, (now, name))
            elif now < key:
                heapq.heappop(self.heap)  # it got better: it stands further up too
            elif room.fits(demand):
                found = room
                break
            elif demand.memory > room.left:
                heapq.heappush(self.parked, (-room.left, *heapq.heappop(self.heap)))
            else:
                aside.add(heapq.heappop(self.heap))
        for entry in aside:
            heapq.heappush(self.heap, entry)
        if found is None:
            self.failed = [one for one in self.failed if not _at_least(one, demand)] + [demand]
        return found

    def _full(self, room: Room) -> bool:
        """Say whether nobody of the line will ever fit there."""
        if room.memory < self.memory or room.free < self.memory or len(room.gpus) < self.gpus:
            return True
        return self.first.apart == "hard" and bool(self.first.group) and room.groups.get(self.first.group, 0) > 0


def _kind(demand: Demand, rank: str) -> tuple[Any, ...]:
    """Return what two servers of one line have in common: all but their size."""
    return (
        tuple(sorted(demand.labels.items())), tuple(sorted(demand.without.items())), demand.flags, demand.tolerates, demand.ticks,
        demand.ticks_only, demand.pin, demand.home,
        demand.group, demand.apart, demand.rank or rank, bool(demand.gpus),
    )  # fmt: skip


def _size(demand: Demand) -> tuple[float, ...]:
    return (demand.memory, demand.cpu, demand.gpus, demand.gpu_memory)


def _at_least(one: Demand, other: Demand) -> bool:
    return all(mine >= theirs for mine, theirs in zip(_size(one), _size(other), strict=True))

"""Which servers had better stand elsewhere. A move costs an interruption: only where the gain is worth it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...records import Demand, Microserver
from .rooms import Rank, Room, filtered, refusal

GAIN = 0.2  # parts of a whole microserver by which the new place must be better
PASSES = 3


@dataclass(frozen=True)
class Standing:
    """A server and where it stands. `stays`: why it cannot be moved now, "" where it can."""

    demand: Demand
    microserver: str
    gpus: tuple[int, ...] = ()
    stays: str = ""


@dataclass(frozen=True)
class Move:
    """A server that had better stand elsewhere. `to` None: it may not stand where it does, and nobody else has room."""

    server: str
    microserver: str
    to: str | None
    gain: float
    why: str
    stays: str = ""


def rebalance(
    standing: Sequence[Standing], farm: Sequence[Microserver], rank: Rank = "spread", gain: float = GAIN
) -> list[Move]:
    """Return the moves worth making, in their order; made, there are no more of them.

    A server moves where its new place suits it by more than `gain` better, compared as if it stood in neither; or where it
    may not stand any longer (a label, a taint, a pin has changed). The load that was measured a moment ago moves nothing.
    """
    rooms = {micro.name: Room(micro) for micro in farm}
    here = {one.demand.server: one.microserver for one in standing if one.microserver in rooms}
    moves: dict[str, Move] = {}
    for _ in range(PASSES):
        moved = False
        fullest = sorted(
            standing,
            key=lambda one: (
                -rooms[here[one.demand.server]].share if one.demand.server in here else 0.0,
                one.demand.server,
            ),
        )
        for one in fullest:
            if one.demand.server not in here or one.demand.server in moves:
                continue
            found = _better(one, rooms, rank, gain)
            if found is None:
                continue
            moves[one.demand.server] = found
            if found.to is not None and not found.stays:
                rooms[found.to].take(one.demand)
                here[one.demand.server] = found.to
                moved = True
            else:
                rooms[one.microserver].take(one.demand)
        if not moved:
            break
    return list(moves.values())


def _better(one: Standing, rooms: dict[str, Room], rank: str, gain: float) -> Move | None:
    """Return the move that is worth it, the server taken out of its room; None, with it where it was."""
    demand = replace(one.demand, home="")  # its workspace would move with it
    room = rooms[one.microserver]
    room.give_back(demand, one.gpus)
    used = demand.rank or rank
    must = filtered(demand, replace(room.micro, state="ready"))  # who cordons does not ask for moves; who drains does
    others = [other for other in rooms.values() if other is not room and refusal(demand, other) is None]
    best = min(others, key=lambda other: (other.key(demand, used, load=False), other.micro.name), default=None)
    better = 0.0 if best is None else room.key(demand, used, load=False) - best.key(demand, used, load=False)
    if must is not None:
        return Move(demand.server, one.microserver, best.micro.name if best else None, better, must.text, one.stays)
    if best is None or better < gain:
        room.take(demand)
        return None
    before, after = (f"{100 * max(0.0, each.share):.0f} %" for each in (room, best))
    why = f"without it {one.microserver} is {before} full and {best.micro.name} {after}, by {used}"
    return Move(demand.server, one.microserver, best.micro.name, better, why, one.stays)

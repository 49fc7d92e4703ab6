"""One server's place. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import NoMicroserverFits
from ...records import Demand, Microserver
from .rooms import Rank, Refusal, Room, near, refusal

Feasible = Literal["now", "later", "never"]


@dataclass(frozen=True)
class Placement:
    """The chosen microserver, its GPUs, why it was chosen, and for each of the farm why it does not fit (None: it would)."""

    microserver: str
    refusals: dict[str, str | None]
    why: str = ""
    gpus: tuple[int, ...] = ()


def choose_microserver(demand: Demand, farm: Sequence[Microserver], rank: Rank = "spread") -> Placement:
    """Return the best-ranked microserver that fits, and the reason against each that does not.

    Args:
        rank: the farm's; that of the demand goes before it.

    Raises:
        NoMicroserverFits: with the reason for each microserver, in words for the asker.
    """
    rooms = [Room(micro) for micro in farm]
    against = {room.micro.name: refusal(demand, room) for room in rooms}
    told = {name: None if one is None else str(one) for name, one in against.items()}
    used = demand.rank or rank
    fitting = sorted(
        (room.key(demand, used), room.micro.name, at)
        for at, room in enumerate(rooms)
        if against[room.micro.name] is None
    )
    if not fitting:
        raise NoMicroserverFits(told)
    best = [rooms[at] for _, _, at in fitting[:2]]
    return Placement(best[0].micro.name, told, _why(demand, best, len(fitting), used), best[0].take(demand))


def refusals(demand: Demand, farm: Sequence[Microserver]) -> dict[str, Refusal | None]:
    """Return what each microserver says to the server."""
    return {micro.name: refusal(demand, micro) for micro in farm}


def feasible(against: Mapping[str, Refusal | None]) -> Feasible:
    """Return whether a server with these refusals has a place now, gets one when others have left, or never as things are."""
    if any(one is None for one in against.values()):
        return "now"
    return "later" if any(one is not None and not one.never for one in against.values()) else "never"


def why_not(against: Mapping[str, Refusal | None]) -> str:
    """Return in one sentence how many microservers refuse, by what, and what would have to change; "" where one does not."""
    found = [one for one in against.values() if one is not None]
    if len(found) < len(against):
        return ""
    if not found:
        return "the farm has no microserver: add one"
    kinds = Counter(one.kind for one in found)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda one: (-one[1], one[0])))
    elsewhere = ("home", "pin")  # says no more than that another one is meant
    nearest = min(found, key=lambda one: (one.never, one.kind in elsewhere, one.kind, one.text))
    of = f"{len(found)} microservers refuse" if len(found) > 1 else "the only microserver refuses"
    return f"{of} ({counted}); nearest: {nearest}"


def _why(demand: Demand, best: Sequence[Room], fitting: int, rank: str) -> str:
    room = best[0]
    if demand.pin:
        why = "it is pinned there"
    elif demand.home:
        why = "its workspace is there"
    elif fitting == 1:
        why = "the only one that fits"
    else:
        why = f"the {'fullest' if rank == 'binpack' else 'emptiest'} of {fitting} that fit, by {rank}"
    if demand.ticks and near(demand, room.micro):
        why += f"; the streams of {demand.ticks} are kept there"
    if demand.group and demand.apart != "no" and not room.groups.get(demand.group, 0) and fitting > 1:
        why += f"; no other server of the pool {demand.group} is there"
    shares = " and ".join(f"{one.micro.name} {_percent(one)}" for one in best)
    return f"{why} (promised or in use before: {shares})"


def _percent(room: Room) -> str:
    return f"{100 * min(1.0, max(0.0, room.share)):.0f} %"

"""Which microserver takes a server. A pure decision: no I/O, no clock, no randomness.

The fleet daemon calls it with a snapshot of the farm; the same snapshot gives the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import NoMicroserverFits
from ..records import Demand, Microserver

TOLERATES = "tolerates:"  # a demand with the label tolerates:<taint> may go where that taint is
Rank = Callable[[Demand, Microserver], float]  # the lowest takes it


@dataclass(frozen=True)
class Placement:
    """The chosen microserver, and for each of the farm why it does not fit (None: it would)."""

    microserver: str
    refusals: dict[str, str | None]


def choose_microserver(demand: Demand, farm: Sequence[Microserver], rank: Rank | None = None) -> Placement:
    """Return the best-ranked microserver that fits (default rank: spread), and the reason against each that does not.

    Raises:
        NoMicroserverFits: with the reason for each microserver, in words for the asker.
    """
    ranked = rank or spread
    refusals = {micro.name: refusal(demand, micro) for micro in farm}
    fitting = [micro for micro in farm if refusals[micro.name] is None]
    if not fitting:
        raise NoMicroserverFits(refusals)
    return Placement(min(fitting, key=lambda micro: (ranked(demand, micro), micro.name)).name, refusals)


def refusal(demand: Demand, micro: Microserver) -> str | None:
    """Return why the microserver does not take the server, or None."""
    if micro.state != "ready":
        return f"it is {micro.state}"
    for name, value in sorted(demand.labels.items()):
        if not name.startswith(TOLERATES) and micro.labels.get(name) != value:
            return f"it lacks the label {name}={value}"
    for taint in micro.taints:
        if TOLERATES + taint not in demand.labels:
            return f"it is kept for {taint}"
    if demand.memory > micro.memory_free:
        return f"{micro.memory_free >> 20} MiB are free, {demand.memory >> 20} MiB are asked for"
    if demand.cpu > micro.cpus:
        return f"it has {micro.cpus} CPUs, {demand.cpu:g} are asked for"
    return None


def spread(demand: Demand, micro: Microserver) -> float:
    """Rank the emptiest first: by the memory in use, the load and the servers that it has."""
    used = 1 - micro.memory_free / micro.memory if micro.memory else 1.0
    return used + micro.load / max(1, micro.cpus) + 0.01 * micro.servers


def binpack(demand: Demand, micro: Microserver) -> float:
    """Rank the fullest that still fits first, so that whole microservers stay free."""
    return float(micro.memory_free - demand.memory)

"""What a microserver has left, why it refuses a server, and how well it would suit one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...records import Demand, Microserver

Rank = Literal["spread", "binpack"]
RANKS: tuple[Rank, ...] = ("spread", "binpack")
TICKS = "ticks"  # the label of microservers that keep streams: its value names the store
MIB = 1 << 20

# What a wish weighs, in parts of a whole microserver: who would have to be so much fuller to be worse all the same.
SERVER = 0.01  # each server that is there already
TOGETHER = 0.5  # each member of the same pool that is there already
FAR = 0.5  # its ticks are elsewhere
GPU = 0.25  # it has GPUs, and none is asked for
CORES = 1e-9  # of a rounding error


@dataclass(frozen=True)
class Refusal:
    """Why a microserver does not take a server, for the asker, and what would have to change.

    never: not while microserver and demand are as they are; else later, when others have left or the operator lets it.
    """

    kind: str
    text: str
    change: str
    never: bool = False

    def __str__(self) -> str:
        return f"{self.text}: {self.change}"


class Room:
    """A microserver while it is decided what goes there: what is left of it, as servers are added and taken away."""

    __slots__ = (
        "cpus",
        "free",
        "fullness",
        "gpus",
        "groups",
        "load",
        "memory",
        "micro",
        "promised_cpu",
        "servers",
        "share",
        "whole",
    )

    def __init__(self, micro: Microserver) -> None:
        self.micro = micro
        self.whole = max(0, micro.memory - micro.reserve_memory)
        self.cpus = max(0.0, micro.cpus - micro.reserve_cpu)
        self.memory = self.whole - micro.promised_memory  # that nobody was promised
        self.free = micro.memory_free - micro.unused  # as measured, when all have taken what they were promised
        self.promised_cpu = micro.promised_cpu
        self.gpus = sorted((size, at) for at, size in enumerate(micro.gpus) if at not in micro.gpus_taken)
        self.groups = dict(micro.groups)
        self.servers = micro.servers
        self.load = micro.load / max(1, micro.cpus)
        self._weigh()

    @property
    def left(self) -> int:
        """Bytes that a server may be promised."""
        return min(self.memory, self.free)

    def _weigh(self) -> None:
        memory = 1 - self.left / self.whole if self.whole > 0 else 1.0
        cpu = self.promised_cpu / self.cpus if self.cpus > 0 else 0.0
        self.share = max(memory, cpu)
        self.fullness = self.share + SERVER * self.servers

    def take(self, demand: Demand) -> tuple[int, ...]:
        """Promise the server what it asks for; return its GPUs: the smallest that do."""
        fitting = [one for one in self.gpus if one[0] >= demand.gpu_memory][: demand.gpus]
        self.gpus = [one for one in self.gpus if one not in fitting]
        self._change(demand, 1)
        return tuple(sorted(at for _, at in fitting))

    def give_back(self, demand: Demand, gpus: tuple[int, ...] = ()) -> None:
        """Undo what was promised to the server."""
        self.gpus = sorted([*self.gpus, *((self.micro.gpus[at], at) for at in gpus if at < len(self.micro.gpus))])
        self._change(demand, -1)

    def _change(self, demand: Demand, sign: int) -> None:
        self.memory -= sign * demand.memory
        self.free -= sign * demand.memory
        self.promised_cpu += sign * demand.cpu
        self.servers += sign
        if demand.group:
            self.groups[demand.group] = self.groups.get(demand.group, 0) + sign
        self._weigh()

    def fits(self, demand: Demand) -> bool:
        """Say whether it has room now; the fast half of `exhausted`."""
        if demand.memory > self.memory or demand.memory > self.free:
            return False
        if demand.cpu and demand.cpu > self.cpus - self.promised_cpu + CORES:
            return False
        if demand.gpus and sum(1 for size, _ in self.gpus if size >= demand.gpu_memory) < demand.gpus:
            return False
        return not (demand.apart == "hard" and demand.group and self.groups.get(demand.group, 0))

    def key(self, demand: Demand, rank: str, load: bool = True) -> float:
        """Return how ill it would suit, the lowest is the best; in parts of a whole microserver. `load`: count the measured one."""
        value = -self.share if rank == "binpack" else self.fullness + self.load if load else self.fullness
        if demand.apart == "soft" and demand.group:
            value += TOGETHER * self.groups.get(demand.group, 0)
        if demand.ticks and not near(demand, self.micro):
            value += FAR
        if self.micro.gpus and not demand.gpus:
            value += GPU
        return value


def near(demand: Demand, micro: Microserver) -> bool:
    """Say whether the streams that the server reads are kept there."""
    return micro.labels.get(TICKS) == demand.ticks


def refusal(demand: Demand, room: Microserver | Room) -> Refusal | None:
    """Return why the microserver does not take the server, or None."""
    known = room if isinstance(room, Room) else Room(room)
    return filtered(demand, known.micro) or too_small(demand, known) or exhausted(demand, known)


def filtered(demand: Demand, micro: Microserver) -> Refusal | None:
    """Return why it is out of the question, however empty it is: where the server belongs, state, labels, taints, CPU."""
    if demand.pin and demand.pin != micro.name:
        return Refusal("pin", f"the server is pinned to {demand.pin}", "change its pin", True)
    if demand.home and demand.home != micro.name:
        return Refusal("home", f"its workspace is on {demand.home}", "move the workspace", True)
    if demand.server in micro.others:
        return Refusal("farm", "another farm has a server of this name there", "give the agent another name", True)
    if micro.state != "ready":
        why = f" ({micro.reason})" if micro.reason else ""
        change = {"cordoned": "uncordon it", "draining": "uncordon it when it is drained"}
        return Refusal("state", f"it is {micro.state}{why}", change.get(micro.state, "it must be reached again"))
    for name, value in sorted(demand.labels.items()):
        if micro.labels.get(name) != value:
            return Refusal("label", f"it lacks the label {name}={value}", "label it, or ask without", True)
    for name, value in sorted(demand.without.items()):
        if name in micro.labels and value in ("", micro.labels[name]):
            has = f"{name}={micro.labels[name]}"
            return Refusal(
                "label", f"it has the label {has}, which is not wanted", "take the label away, or allow it", True
            )
    for taint, reason in sorted(micro.taints.items()):
        if taint not in demand.tolerates:
            why = f" ({reason})" if reason else ""
            return Refusal("taint", f"it is tainted {taint}{why}", "take the taint away, or tolerate it")
    if lacking := [flag for flag in demand.flags if flag not in micro.flags]:
        return Refusal("cpu flags", f"its CPU lacks {', '.join(lacking)}", "take another microserver", True)
    if demand.ticks_only and demand.ticks and not near(demand, micro):
        what = f"the streams of {demand.ticks} are not kept there"
        return Refusal("ticks", what, "keep them there, or only prefer to be near", True)
    return None


def too_small(demand: Demand, room: Room) -> Refusal | None:
    """Return why it would not do if it were empty."""
    micro = room.micro
    if demand.memory > room.whole:
        kept = f", {_mib(micro.reserve_memory)} of them kept for the system" if micro.reserve_memory else ""
        text = f"it has {_mib(micro.memory)}{kept}; {_mib(demand.memory)} are asked for"
        return Refusal("memory", text, "ask for less, or add memory", True)
    if demand.cpu > room.cpus + CORES:
        kept = f", {micro.reserve_cpu:g} of them kept for the system" if micro.reserve_cpu else ""
        text = f"it has {micro.cpus} CPUs{kept}; {demand.cpu:g} are asked for"
        return Refusal("cpu", text, "ask for less, or take another microserver", True)
    if demand.gpus:
        fitting = sum(1 for size in micro.gpus if size >= demand.gpu_memory)
        if fitting < demand.gpus:
            size = f" with {_mib(demand.gpu_memory)}" if demand.gpu_memory else ""
            text = f"it has {fitting} GPUs{size}; {demand.gpus} are asked for"
            return Refusal("gpu", text, "ask for less, or take another microserver", True)
    return None


def exhausted(demand: Demand, room: Room) -> Refusal | None:
    """Return why it has no room now, though it would if it were empty."""
    if demand.apart == "hard" and demand.group and room.groups.get(demand.group, 0):
        text = f"another server of the pool {demand.group} is there, and they must stand apart"
        return Refusal("apart", text, "add a microserver, or let them stand together")
    asked = f"{_mib(demand.memory)} are asked for"
    if demand.memory > room.memory:
        text = f"{_mib(room.whole - room.memory)} of {_mib(room.whole)} are promised to other servers; {asked}"
        return Refusal("memory", text, "wait until one ends, or promise them less")
    if demand.memory > room.free:
        text = f"{_mib(max(0, room.free))} are free, with what its servers may still take set aside; {asked}"
        return Refusal("memory", text, "wait, or end what uses its memory")
    if demand.cpu and demand.cpu > room.cpus - room.promised_cpu + CORES:
        text = (
            f"{room.promised_cpu:g} of {room.cpus:g} CPUs are promised to other servers; {demand.cpu:g} are asked for"
        )
        return Refusal("cpu", text, "wait until one ends, or promise them less")
    if demand.gpus and sum(1 for size, _ in room.gpus if size >= demand.gpu_memory) < demand.gpus:
        text = f"{len(room.gpus)} of {len(room.micro.gpus)} GPUs are not taken; {demand.gpus} are asked for"
        return Refusal("gpu", text, "wait until a server that has one ends")
    return None


def _mib(size: int) -> str:
    return f"{size // MIB} MiB"

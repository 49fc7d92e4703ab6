"""What a microserver's own figures say against it: taints that come and go by themselves, with a band in between.

`judged` is pure: the same state, facts, time and limits give the same taints. Operators' taints are others, and not touched here.
`Health` keeps them in fleet.json, with since when a microserver is silent, and notes changes for the service to record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..demands import HealthLimits
from .state import FleetState

log = logging.getLogger("agentfarm.fleet")

DISK, CLOCK, MEMORY = "disk-full", "clock-off", "memory-pressure"
ROOM_AGAIN = 1.5  # times the limit must be free before a disk counts as having room again
CALM_AGAIN = 0.5  # of the limit: below it a clock is right again, and memory is free of pressure


@dataclass(frozen=True)
class Standing:
    """A taint that stands. `calm`: since when what it says is over (epoch seconds), None while it is not."""

    since: float
    reason: str
    calm: float | None = None


@dataclass(frozen=True)
class Measured:
    """One look at one thing. Neither `bad` nor `calm`: in the band, where things stay as they are."""

    bad: bool
    calm: bool
    reason: str = ""


def disk(facts: Mapping[str, Any], limits: HealthLimits) -> Measured | None:
    """Judge the file system of the workspaces: bytes, and inodes where it counts them."""
    if not facts.get("disk"):
        return None
    shares = [(facts["disk_free"] / facts["disk"], "its disk")]
    if facts.get("inodes"):
        shares.append((facts["inodes_free"] / facts["inodes"], "the inodes of its disk"))
    share, what = min(shares)
    return Measured(share < limits.disk_free, share >= limits.disk_free * ROOM_AGAIN, f"{share:.0%} of {what} is free")


def clock(facts: Mapping[str, Any], limits: HealthLimits) -> Measured | None:
    """Judge the clock by its offset from the farm's. What the way there may account for is not held against it."""
    offset, unsure = facts.get("clock_offset"), facts.get("clock_unsure", 0.0)
    if offset is None:
        return None
    size, way = abs(offset), "ahead of" if offset > 0 else "behind"
    surely = size - unsure  # a busy helper starts slowly, which makes a right clock look wrong by about that much
    if unsure > limits.clock_off and surely <= limits.clock_off:
        return None  # so slow a line tells nothing
    reason = f"its clock is {_seconds(size)} s {way} the farm's"
    return Measured(surely > limits.clock_off, surely <= limits.clock_off * CALM_AGAIN, reason)


def memory(facts: Mapping[str, Any], limits: HealthLimits) -> Measured | None:
    """Judge by the kernel's pressure stall information: which part of the last minute all that would work waited for memory."""
    full = facts.get("pressure", {}).get("memory", {}).get("full")
    if full is None:
        return None
    reason = f"all its work waited for memory for {full:.0%} of a minute"
    return Measured(full >= limits.memory_pressure, full <= limits.memory_pressure * CALM_AGAIN, reason)


Rule = Callable[[Mapping[str, Any], HealthLimits], Measured | None]
RULES: dict[str, tuple[str, Rule]] = {  # taint -> the limit that switches it off where it is 0, and who judges
    DISK: ("disk_free", disk),
    CLOCK: ("clock_off", clock),
    MEMORY: ("memory_pressure", memory),
}


def judged(
    state: Mapping[str, Standing], facts: Mapping[str, Any], now: float, limits: HealthLimits
) -> dict[str, Standing]:
    """Return the taints that stand now. Pure.

    One comes when its limit is passed, stays inside the band, and goes when the figure has been beyond the band for
    `limits.calm_seconds` at each look; what the facts do not tell leaves it as it is.
    """
    found = {}
    for taint, (limit, rule) in RULES.items():
        old = state.get(taint)
        if not getattr(limits, limit):
            continue
        new = _next(old, rule(facts, limits), now, limits.calm_seconds)
        if new is not None:
            found[taint] = new
    return found


def _next(old: Standing | None, seen: Measured | None, now: float, calm_seconds: float) -> Standing | None:
    if seen is None:
        return old
    if seen.bad:
        return Standing(now if old is None else old.since, seen.reason)
    if old is None:
        return None
    if not seen.calm:
        return replace(old, calm=None)
    since = now if old.calm is None else min(old.calm, now)  # a clock that was set back must not keep it for long
    return None if now - since >= calm_seconds else replace(old, calm=since)


def _seconds(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"


def offset_of(asked_at: float, way: float, told: Mapping[str, Any]) -> tuple[float, float]:
    """Return by how much a microserver's clock is ahead of ours, and by how much that may be wrong: half the way. Seconds. Pure.

    asked_at: our clock when it was asked; way: seconds until its answer was here; told: its `time` when it began, and how long it `took`.
    """
    alone = max(0.0, way - float(told.get("took", 0.0)))
    return float(told["time"]) - (asked_at + alone / 2), alone / 2


class Health:
    """What is known of each microserver's health, in its entry of fleet.json: `health` {taint: Standing}, `silent` {since, why, lost}."""

    def __init__(self, state: FleetState, limits: Callable[[], HealthLimits]) -> None:
        self.state, self.limits = state, limits

    def _entry(self, name: str) -> dict[str, Any]:
        return self.state.microservers.setdefault(name, {"state": "ready", "reason": ""})

    def taints(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the taints of its health: {name: {since, reason, calm}}."""
        return dict(self.state.microservers.get(name, {}).get("health", {}))

    def shown(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the same for people: {name: {reason, since}}."""
        return {taint: {"reason": one["reason"], "since": one["since"]} for taint, one in self.taints(name).items()}

    def judge(self, name: str, facts: Mapping[str, Any]) -> None:
        """Take a look at fresh facts: taints come and go, each change is logged, noted and kept."""
        old = {taint: Standing(**one) for taint, one in self.taints(name).items()}
        new = judged(old, facts, time.time(), self.limits())
        if new == old:
            return
        self._entry(name)["health"] = {taint: asdict(one) for taint, one in new.items()}
        for taint in sorted(new.keys() - old.keys()):
            log.warning("microserver %s is tainted %s: %s", name, taint, new[taint].reason)
            self.state.note("microserver.tainted", microserver=name, taint=taint, reason=new[taint].reason)
        for taint in sorted(old.keys() - new.keys()):
            log.warning("microserver %s is not tainted %s any more", name, taint)
            self.state.note("microserver.untainted", microserver=name, taint=taint, reason=old[taint].reason)
        if new.keys() != old.keys():
            self.state.save()

    # -- silence -------------------------------------------------------------------------------------------------

    def silence(self, name: str) -> dict[str, Any] | None:
        """Return {since, why, lost} of a microserver that cannot be asked, None of one that can."""
        return self.state.microservers.get(name, {}).get("silent")

    def heard(self, name: str) -> None:
        """Note that it answered."""
        silent = self.state.microservers.get(name, {}).pop("silent", None)
        if silent is None:
            return
        away = time.time() - silent["since"]
        log.warning("microserver %s answers again, after %.0f s", name, away)
        if silent["lost"]:
            self.state.note("microserver.returned", microserver=name, away=round(away, 1))
        self.state.save()

    def missed(self, name: str, why: str, since: float | None = None) -> None:
        """Note that it cannot be asked, and why; since when, where that is known."""
        entry, now = self._entry(name), time.time()
        silent = entry.get("silent")
        if silent is None:
            entry["silent"] = {"since": min(now, since or now), "why": why, "lost": False}
            log.warning("microserver %s is silent: %s", name, why)
            self.state.save()
        elif silent["why"] != why:
            silent["why"] = why

    def lose(self, name: str, lost: bool, why: str) -> None:
        """Take the service's word whether a silent one counts as lost: it knows whether runs there renew their leases."""
        silent = self.silence(name)
        if silent is None or silent["lost"] == lost:
            return
        silent["lost"] = lost
        log.warning("microserver %s: %s", name, why)
        if lost:
            self.state.note("microserver.lost", microserver=name, reason=why, silent_since=silent["since"])
        else:
            self.state.note("microserver.returned", microserver=name, away=round(time.time() - silent["since"], 1))
        self.state.save()

"""What was promised to which server, and the farm as placement sees it. The daemon's; kept in fleet.json.

A promise is made when a server is placed and holds until it has ended: what is measured tells only what is used by now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ..demands import Settings, as_layer, demand_of, given, merged, with_changes
from ..errors import Conflict, FleetError
from ..records import Demand, Microserver
from ..scheduling.placement import (
    Placement,
    Standing,
    choose_microserver,
    feasible,
    place_all,
    rebalance,
    refusals,
    why_not,
)
from .health import Health
from .kept import OLDEST_SECONDS, PATIENCE
from .state import FleetState

# For which a place is held for a server that has not been started yet: a Hub waits 180 for its turn.
START_SECONDS = 200.0
# After which a server uses what it will use: until then its promise counts beside what is measured.
SETTLE_SECONDS = 60.0
MOST_RESERVED = 1 << 30
SHOWN_LABELS = ("arch", "os")  # facts that are labels by themselves
AGENT = "agent-"


class Machine(Protocol):
    """A microserver, as far as placing asks it."""

    state: str

    @property
    def silent_since(self) -> float | None: ...

    async def facts(self, patience: float | None = None, oldest: float | None = None) -> dict[str, Any]: ...


class Placing:
    """Chooses microservers, keeps what was promised there, and what operators said of them."""

    def __init__(self, state: FleetState, microservers: Mapping[str, Machine], egress: Sequence[str] = ()) -> None:
        self.state, self.microservers = state, microservers
        self.health = Health(state, lambda: self.settings.health)
        self.usual = list(egress)  # where agents may go while nobody has set anything for the farm

    # -- settings ------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        found: Settings = given(Settings, self.state.placement, "the farm's placement settings")
        if self.usual and found.servers.egress is None:
            return msgspec.structs.replace(found, servers=msgspec.structs.replace(found.servers, egress=self.usual))
        return found

    def set_settings(self, raw: Mapping[str, Any]) -> Settings:
        """Change what is given, as demands.with_changes says. Raises Invalid."""
        now = with_changes(self.settings, raw)
        self.state.placement = msgspec.to_builtins(now)
        self.state.save()
        return now

    def set_demand(self, unit: str, raw: Mapping[str, Any]) -> None:
        """Keep what a unit's owner set: {user, resources, group, scratch: it starts away from its files}. Raises Invalid."""
        resources = merged([raw.get("resources") or {}])
        kept = {
            "user": str(raw.get("user", "")),
            "resources": as_layer(resources),
            "group": str(raw.get("group") or ""),
            **({"scratch": True} if raw.get("scratch") else {}),
        }
        if self.state.demands.get(unit) != kept:
            self.state.demands[unit] = kept
            self.state.save()

    def demand(self, unit: str, asked: Mapping[str, Any] | None = None, user: str = "", moves: bool = False) -> Demand:
        """Return what the unit's server gets: the farm's settings, those of the Hub (`asked`), its own. Raises Invalid.

        One that starts away from its files is at home nowhere, unless they are what is asked about: they move.
        """
        known, own = self.state.units.get(unit, {}), self.state.demands.get(unit, {})
        user = user or self._user(unit)
        whole = merged(self._layers(unit, asked, user))
        home = "" if own.get("scratch") and not moves else str(known.get("home") or self.home(user))
        return demand_of(unit, whole, own.get("group", ""), home)

    def _layers(self, unit: str, asked: Mapping[str, Any] | None, user: str) -> list[dict[str, Any]]:
        known, own, settings = self.state.units.get(unit, {}), self.state.demands.get(unit, {}), self.settings
        people = [] if user.startswith(AGENT) or not user else [as_layer(settings.people)]
        hub = dict(known.get("asked") or {}) if asked is None else dict(asked)
        return [as_layer(settings.servers), *people, hub, own.get("resources", {})]

    def egress(self, unit: str, asked: Mapping[str, Any] | None, user: str) -> list[str] | None:
        """Return where the unit's server may go besides the farm; None: wherever it likes, a person's for whom nothing is set."""
        layers = self._layers(unit, asked, user)
        return merged(layers).egress or [] if user.startswith(AGENT) else merged(layers[1:]).egress

    def home(self, user: str) -> str:
        """Return where the user's workspace is: all servers of a user share it."""
        mine = (known for known in self.state.units.values() if user and known.get("user") == user)
        return next((str(known["home"]) for known in mine if known.get("home")), "")

    def _user(self, unit: str) -> str:
        return str(self.state.units.get(unit, {}).get("user") or self.state.demands.get(unit, {}).get("user") or "")

    # -- the farm ------------------------------------------------------------------------------------------------

    async def facts(
        self, patience: float = PATIENCE, oldest: float | None = OLDEST_SECONDS
    ) -> dict[str, dict[str, Any] | FleetError]:
        """Ask all microservers at once, and judge their health; one that cannot be asked is told as its error.

        One that does not answer within `patience` seconds is told as it was, where that is at most `oldest` seconds ago (None: ever).
        """
        asked = dict(self.microservers)
        answers = await asyncio.gather(*(_told(micro, patience, oldest) for micro in asked.values()))
        found = dict(zip(asked, answers, strict=True))
        for name, told in found.items():
            if self.microservers.get(name) is not asked[name]:
                continue  # it was removed, or registered anew, meanwhile
            if isinstance(told, FleetError):
                self.health.missed(name, told.detail, asked[name].silent_since)
            else:
                self.health.heard(name)
                self.health.judge(name, told)
        return {name: told for name, told in found.items() if name in self.microservers}

    def farm(self, facts: Mapping[str, dict[str, Any] | FleetError], but: str = "") -> list[Microserver]:
        """Return the farm as placement sees it, without what was promised to one unit: it is to be placed.

        A microserver that was removed since it told its facts is none any more.
        """
        promises: dict[str, list[dict[str, Any]]] = {}
        for unit, known in self.state.units.items():
            if unit != but and known.get("promise"):
                promises.setdefault(known["microserver"], []).append(known["promise"])
        for move in self.state.moves.values():  # what is on its way needs room when it arrives
            if move.get("promise") and move["to"]:
                promises.setdefault(move["to"], []).append(move["promise"])
        there = {name: told for name, told in facts.items() if name in self.microservers}
        return [self._snapshot(name, told, promises.get(name, [])) for name, told in there.items()]

    def _snapshot(
        self, name: str, told: dict[str, Any] | FleetError, promises: Sequence[Mapping[str, Any]]
    ) -> Microserver:
        micro, entry, settings, now = (
            self.microservers[name],
            self.state.microservers.get(name, {}),
            self.settings,
            time.time(),
        )
        if isinstance(told, FleetError):
            silent = self.health.silence(name) or {}
            return Microserver(name=name, state="lost" if silent.get("lost") else "silent", reason=told.detail)
        reserve = entry.get("reserve_memory", settings.reserve_memory)
        cpu = entry.get("reserve_cpu")
        groups: dict[str, int] = {}
        others = told.get("others") or {"units": [], "memory": 0, "cpu": 0.0}  # other farms'
        for one in promises:
            if one.get("group"):
                groups[one["group"]] = groups.get(one["group"], 0) + 1
        return Microserver(
            name=name, state=micro.state, reason=entry.get("reason", ""), memory=told["memory"], memory_free=told["memory_free"],
            cpus=told["cpus"], load=told["load"], servers=len(promises), labels=self.labels(name, told), taints=self.taints(name),
            flags=flags_of(told), gpus=tuple(int(one["memory"]) for one in told.get("gpus") or ()),
            gpus_taken=frozenset(at for one in promises for at in one.get("gpus", ())),
            promised_memory=sum(one["memory"] for one in promises) + others["memory"],
            promised_cpu=sum(one["cpu"] for one in promises) + others["cpu"], others=frozenset(others["units"]),
            unused=sum(one["memory"] for one in promises if now - one["at"] < SETTLE_SECONDS),
            reserve_memory=min(MOST_RESERVED, told["memory"] // 10) if reserve is None else int(reserve),
            reserve_cpu=settings.reserve_cpu if cpu is None else float(cpu), groups=groups,
        )  # fmt: skip

    def labels(self, name: str, facts: Mapping[str, Any]) -> dict[str, str]:
        """Return the microserver's labels: those that its facts give it, and over them those of the operators."""
        shown = {label: str(facts[label]) for label in SHOWN_LABELS if facts.get(label)}
        if facts.get("gpus"):
            shown["gpu"] = str(facts["gpus"][0].get("name") or "yes")
        return {**shown, **self.state.microservers.get(name, {}).get("labels", {})}

    def taints(self, name: str) -> dict[str, str]:
        """Return the microserver's taints, each with its reason: those of its health, and those of the operators."""
        health = {taint: one["reason"] for taint, one in self.health.taints(name).items()}
        operators = self.state.microservers.get(name, {}).get("taints", {})
        return {**health, **{taint: one.get("reason", "") for taint, one in operators.items()}}

    def shown(self, name: str, facts: Mapping[str, dict[str, Any] | FleetError], servers: int) -> dict[str, Any]:
        """Return the microserver as people see it."""
        told, entry = facts[name], self.state.microservers.get(name, {})
        known = next(one for one in self.farm({name: told}))
        return {
            **({} if isinstance(told, FleetError) else told),
            "name": name, "silent": told.detail if isinstance(told, FleetError) else "", "state": known.state, "reason": known.reason, "by": entry.get("by", ""), "at": entry.get("at"),
            "turned": self.microservers[name].state, "since": (self.health.silence(name) or {}).get("since"), "health": self.health.shown(name),
            "rev": entry.get("rev", 0), "labels": self.labels(name, {} if isinstance(told, FleetError) else told),
            "taints": self.taints(name), "servers": servers, "promised_memory": known.promised_memory,
            "promised_cpu": known.promised_cpu, "reserve_memory": known.reserve_memory, "reserve_cpu": known.reserve_cpu,
            "gpus_taken": sorted(known.gpus_taken),
        }  # fmt: skip

    # -- places --------------------------------------------------------------------------------------------------

    def choose(self, demand: Demand, facts: Mapping[str, dict[str, Any] | FleetError]) -> Placement:
        """Choose the unit's microserver and promise it there, before anybody else is asked. Raises NoMicroserverFits."""
        placed = choose_microserver(demand, self.farm(facts, demand.server), self.settings.rank)
        known = self.state.units.setdefault(demand.server, {})
        scratch = bool(self.state.demands.get(demand.server, {}).get("scratch"))
        if known.get("scratch") and (placed.microserver, True) != (known["microserver"], scratch):
            self.state.leave(known["user"], known["microserver"])
        known["scratch"] = scratch  # its files are elsewhere: what it writes goes with it
        known |= {"microserver": placed.microserver, "promise": promise_of(demand, placed.gpus), "why": placed.why}
        known.pop("given_up", None)
        return placed

    def started(self, unit: str) -> None:
        """Note that the unit's server stands where it was placed: its workspace is there from now on, unless it is away from it."""
        known = self.state.units[unit]
        if not known.get("scratch"):
            known["home"] = known["microserver"]
        if known.get("promise"):
            known["promise"]["started"] = time.time()

    def surroundings(self, unit: str, facts: Mapping[str, Any]) -> dict[str, str]:
        """Return the environment by which the unit's server finds its GPUs, and none of the others', and knows whether it is away from its files.

        GPUs go by their own ids: where a server sees none but its own, CUDA numbers them anew.
        """
        scratch = {"AGENTFARM_SCRATCH": "1"} if self.state.units[unit].get("scratch") else {}
        if not facts.get("gpus"):
            return scratch
        mine = [str(one.get("uuid") or one["index"]) for one in self.gpus(unit, facts)]
        return {**scratch, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(mine)}

    def gpus(self, unit: str, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the GPUs of its microserver that the unit's server was promised, as the facts tell them."""
        there = facts.get("gpus") or []
        mine = (self.state.units[unit].get("promise") or {}).get("gpus", ())
        return [{"index": at, **there[at]} for at in mine if at < len(there)]

    def ended(self, unit: str, asked: float) -> None:
        """Take back what was promised to a unit that had ended when its microserver was asked (epoch seconds).

        A place that waits for its start is kept a while; one that was started since is not what the answer is about.
        """
        promise = self.state.units.get(unit, {}).get("promise")
        if not promise:
            return
        began = float(promise.get("started") or 0.0)
        if 0.0 < began < asked or (not began and time.time() - promise["at"] > START_SECONDS):
            self.release(unit)

    def compare(self, found: Mapping[str, Mapping[str, Any]], asked: Mapping[str, float]) -> None:
        """Bring promises in line with what microservers, asked then (epoch seconds), say of their units: of those not in `found` they know nothing."""
        for unit, known in self.state.units.items():
            state = found.get(unit, {}).get("state", "exited")
            if state == "exited":
                self.ended(unit, asked.get(known.get("microserver", ""), 0.0))
            elif state == "running" and not known.get("promise"):  # fleet.json was lost, or is older than promises
                demand = self.demand(unit)
                known["promise"] = {**promise_of(demand, ()), "at": 0.0}
                self.started(unit)
                self.state.save()

    def release(self, unit: str) -> None:
        """Take back what was promised to a unit."""
        if self.state.units.get(unit, {}).pop("promise", None) is not None:
            self.state.save()

    async def explain(self, unit: str) -> dict[str, Any]:
        """Return why a unit is where it is, or what each microserver says to it, and what would have to change."""
        known = self.state.units.get(unit, {})
        facts = await self.facts()
        farm = self.farm(facts, unit)
        demand = self.demand(unit)
        against = refusals(demand, farm)
        stands = known.get("promise") is not None
        home = demand.home or self.home(self._user(unit))
        where = str(known.get("microserver", "")) if stands else demand.home
        places = [where] if where else [name for name, one in against.items() if one is None]
        return {
            "unit": unit, "microserver": known.get("microserver"), "stands": stands, "why": known.get("why", "") if stands else "",
            "reasons": {name: None if one is None else str(one) for name, one in against.items()},
            "feasible": feasible(against), "change": why_not(against), "rank": demand.rank or self.settings.rank,
            "away": home if isinstance(facts.get(home), FleetError) else "",
            "unheld": unheld({name: told for name in places if isinstance(told := facts.get(name), dict)}),
            "demand": as_demand(demand), "gpus": (known.get("promise") or {}).get("gpus", []),
        }  # fmt: skip

    async def plan(self, units: Sequence[str]) -> dict[str, Any]:
        """Return where these units would go now, one after the other, and of those that go nowhere why, and whether ever.

        `away`: the homes of those that cannot be reached. Nothing is promised.
        """
        facts = await self.facts()
        demands = {unit: self.demand(unit) for unit in units}
        planned = place_all([*demands.values()], self.farm(facts), self.settings.rank)
        nowhere = [unit for unit in units if planned.where[unit] is None]
        return {
            "where": planned.where, "why": {unit: planned.why(unit) for unit in nowhere}, "feasible": {unit: planned.feasible(unit) for unit in nowhere},
            "away": {unit: demands[unit].home for unit in nowhere if isinstance(facts.get(demands[unit].home), FleetError)},
        }  # fmt: skip

    async def rebalance(self, gain: float | None = None) -> dict[str, Any]:
        """Return which servers had better stand elsewhere; nothing is moved."""
        settings, facts = self.settings, await self.facts()
        used = settings.gain if gain is None else gain
        standing = [
            Standing(self.demand(unit), known["microserver"], tuple(known["promise"].get("gpus", ())))
            for unit, known in sorted(self.state.units.items())
            if known.get("promise")
        ]
        moves = rebalance(standing, self.farm(facts), settings.rank, used)
        shown = [
            {"unit": one.server, "user": self._user(one.server), "microserver": one.microserver, "to": one.to, "gain": round(one.gain, 3), "why": one.why}
            for one in moves
        ]  # fmt: skip
        return {"moves": shown, "servers": len(standing), "rank": settings.rank, "gain": used}

    # -- what operators say of microservers ----------------------------------------------------------------------

    def mark(self, name: str, rev: int | None, by: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """Change what operators said of a microserver: labels and taints one by one (null takes one away), the rest as given.

        Raises Conflict: somebody changed it since `rev`.
        """
        entry = self.state.microservers.get(name, {})
        known = int(entry.get("rev", 0))
        if rev is not None and rev != known:
            raise Conflict(
                f"{entry.get('by') or 'somebody'} changed {name}: it is at revision {known}, not {rev}",
                hint="look at it again, then send what you want with the new revision", rev=known,
            )  # fmt: skip
        changed = {**entry, "rev": known + 1, "by": by, "at": time.time()}
        for field, value in change.items():
            if field in ("labels", "taints"):
                both = {**entry.get(field, {}), **value}
                changed[field] = {key: one for key, one in both.items() if one is not None}
            elif value is None:
                changed.pop(field, None)
            else:
                changed[field] = value
        self.state.microservers[name] = changed
        self.state.save()
        return changed


def promise_of(demand: Demand, gpus: Sequence[int]) -> dict[str, Any]:
    """Return what a server is promised, as it is kept."""
    return {
        "memory": demand.memory, "cpu": demand.cpu, "tasks": demand.tasks, "gpus": list(gpus), "group": demand.group, "at": time.time(),
    }  # fmt: skip


def unheld(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return on which of these microservers it is not held where servers may go, in words; "" where it is."""
    kinds = {"": "not held on", "addresses": "held by address alone, not by port, on"}
    found = {kind: [name for name, told in facts.items() if told.get("walls") == kind] for kind in kinds}
    return "; ".join(f"{words} {', '.join(found[kind])}" for kind, words in kinds.items() if found[kind])


async def _told(micro: Machine, patience: float, oldest: float | None) -> dict[str, Any] | FleetError:
    try:
        return await micro.facts(patience, oldest)
    except FleetError as error:
        return error


def flags_of(facts: Mapping[str, Any]) -> frozenset[str]:
    """Return the flags of the CPU that the facts tell."""
    return frozenset(facts.get("cpu_flags") or (["avx2"] if facts.get("avx2") else []))


def as_demand(demand: Demand) -> dict[str, Any]:
    """Return what is asked for, without what was left at its default."""
    plain = Demand(demand.server)
    values: dict[str, Any] = msgspec.to_builtins(demand)
    return {name: value for name, value in values.items() if value != msgspec.to_builtins(plain)[name]}

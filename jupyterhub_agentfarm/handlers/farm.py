"""The fleet and its people: microservers, and what operators say of them; who owns and shares what. Places: placements.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from agentfarm_sdk.protocol import new_event

from ..demands import Bytes, Cores, Name, Value
from ..errors import Conflict, Forbidden, NotFound
from ..store import agents, ledger
from ..store.tables import FARM_RUN
from .asking import Asker
from .routes import Call, Page, Route
from .views import Listed, when

KINDS = {
    "cordon": "microserver.cordoned",
    "uncordon": "microserver.uncordoned",
    "change": "microserver.changed",
    "drain": "microserver.draining",
    "give up": "microserver.given_up",
}  # joining.py has those of coming and going


class DrainView(msgspec.Struct, frozen=True, kw_only=True):
    """How far a drain is: of so many workspaces `left` are there still, `moving` of them on their way. deadline: null: none."""

    until: str
    deadline: Any = None
    reason: str = ""
    by: str = ""
    began: Any = None
    of: int = 0
    left: int = 0
    moving: int = 0
    moved: int = 0


class HealthTaint(msgspec.Struct, frozen=True):
    """A taint that comes and goes by itself."""

    reason: str
    since: str | None


class PersonsServer(msgspec.Struct, frozen=True, kw_only=True):
    """A person's own server that runs on a microserver. `server`: its name, "" for the default one; `why` it is there."""

    person: str
    server: str = ""
    state: str
    why: str = ""


class MicroserverView(msgspec.Struct, frozen=True, kw_only=True):
    """`state`: ready, cordoned, draining; silent: the farm cannot reach it; lost: nor is any run there heard of. `silent`: why, `since` when. Memory and disk in bytes, `load` of the last minute. `agents`: whose servers run there, `people`: people's own (for operators).

    `by`, `at`: who changed what operators say of it last; `rev` is its ETag. `taints`: name and reason. `promised_…`: to the servers
    there, `reserve_…`: kept for the system. `health`: the taints that its own figures gave it, by name. `seen_at`: when it told its figures.
    `pressure`: which part of a minute some, or all, work waited for memory, io, cpu. `clock_offset`: seconds ahead of the farm, give or take
    `clock_unsure`. `cpu_ratio`: of its CPUs, busy. `gpus`: bytes, percent, °C; `disks`: by SMART; `ecc`: errors of its memory. `ssh`: how the farm reaches it, `login`: how operators do (both for operators);
    `current`: whether its helper is this release's; `measured`: when it was added: disk_write (bytes/s), fsync, cpu (seconds). `drain`: how far it is emptied, null where it is not.
    `verbs`: what an operator can do with it now.
    """

    name: str
    state: str
    reason: str = ""
    silent: str = ""
    since: str | None = None
    seen_at: str | None = None
    by: str = ""
    at: Any = None
    rev: int = 0
    labels: dict[str, str] = {}
    taints: dict[str, str] = {}
    health: dict[str, HealthTaint] = {}
    promised_memory: int = 0
    promised_cpu: float = 0.0
    reserve_memory: int = 0
    reserve_cpu: float = 0.0
    gpus: list[dict[str, Any]] = []
    gpus_taken: list[int] = []
    gpus_problem: str = ""
    cpu_flags: list[str] = []
    servers: int = 0
    agents: list[str] = []
    people: list[PersonsServer] = []
    drain: DrainView | None = None
    verbs: list[str] = []
    cpus: int = 0
    load: float = 0.0
    cpu_ratio: float | None = None
    pressure: dict[str, dict[str, float]] = {}
    clock_offset: float | None = None
    clock_unsure: float | None = None
    memory: int = 0
    memory_free: int = 0
    disk: int = 0
    disk_free: int = 0
    disks: list[dict[str, Any]] = []
    disks_problem: str = ""
    ecc: dict[str, int] | None = None
    uptime: float = 0.0
    own_users: bool | None = None
    isolation: str = ""
    avx2: bool | None = None
    backend: str = ""
    ssh: str = ""
    os: str = ""
    arch: str = ""
    kernel: str = ""
    version: Any = None
    login: str = ""
    current: bool | None = None
    measured: dict[str, float] = {}


VERBS = {"cordoned": ["uncordon", "drain"], "draining": ["uncordon", "drain"]}  # in other states: cordon, drain


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class Marks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Labels and taints one by one: null takes one away, what is left out stays. A taint's value is its reason.

    `reserve_…`: kept free for the system there, bytes and cores; null: as the farm's settings say.
    """

    labels: Annotated[dict[Name, Value | None], msgspec.Meta(max_length=50)] = {}
    taints: Annotated[dict[Name, Annotated[str, msgspec.Meta(max_length=500)] | None], msgspec.Meta(max_length=50)] = {}
    reserve_memory: Bytes | msgspec.UnsetType | None = msgspec.UNSET
    reserve_cpu: Cores | msgspec.UnsetType | None = msgspec.UNSET


class Owned(msgspec.Struct, frozen=True):
    """An agent that a person owns, or has been given rights on."""

    agent: str
    rights: str


class PersonView(msgspec.Struct, frozen=True):
    person: str
    agents: list[Owned]


async def listed(call: Call) -> Listed[MicroserverView]:
    """The farm's machines. Who is no operator sees of the agents there only those that they may see."""
    found = list(await call.parts.fleet.microservers())
    seen = await call.parts.surroundings.look()
    there: dict[str | None, list[str]] = {}
    for one in await call.read(lambda c: agents.brief(c, _names(c, call))):
        there.setdefault(seen.server(one["name"]).microserver, []).append(one["name"])
    people = _peoples(seen.units.values()) if call.asker.operator else {}
    return Listed([_view(call, one, there.get(one["name"], []), people.get(one["name"], [])) for one in found])


def _peoples(units: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the servers of people that run, or may run, by microserver."""
    found: dict[str, list[dict[str, Any]]] = {}
    for unit in units:
        if unit.get("user") and not unit["user"].startswith("agent-") and unit["state"] != "exited":
            about = {name: unit.get(name) or "" for name in ("server", "state", "why")}
            found.setdefault(unit["microserver"], []).append({"person": unit["user"], **about})
    return found


def _names(connection: Any, call: Call) -> list[str] | None:
    if call.asker.operator:
        return None
    return [call.asker.name] if call.asker.kind == "agent" else list(agents.reachable(connection, call.asker.name))


def admitted(asker: Asker, row: dict[str, Any]) -> dict[str, Any]:
    """Return of a microserver what the asker may know: how one signs in there is for operators."""
    return row if asker.operator else {name: value for name, value in row.items() if name not in ("ssh", "login")}


def _view(call: Call, row: dict[str, Any], there: list[str], people: Sequence[dict[str, Any]] = ()) -> MicroserverView:
    verbs = VERBS.get(str(row.get("turned", row.get("state"))), ["cordon", "drain"]) if call.asker.operator else []
    timed = {name: when(row.get(name)) for name in ("at", "since", "seen_at")}
    health = {taint: {**one, "since": when(one["since"])} for taint, one in row.get("health", {}).items()}
    return msgspec.convert(
        {
            **admitted(call.asker, row),
            **timed,
            "health": health,
            "agents": there,
            "people": people,
            "verbs": verbs,
            "drain": drain_view(row),
        },
        MicroserverView,
    )


def drain_view(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return a drain with its times as people read them."""
    drain = row.get("drain")
    if not drain:
        return None
    times = {name: None if drain.get(name) is None else when(drain[name]) for name in ("deadline", "began")}
    return {**drain, **times}


async def show(call: Call) -> MicroserverView:
    for one in (await listed(call)).items:
        if one.name == call.path["name"]:
            call.etag(one.rev)
            return one
    raise NotFound(f"there is no microserver {call.path['name']}", hint="list them by: agentfarm microserver list")


async def cordon(call: Call) -> MicroserverView:
    name, rev = await changing(call, "cordon", {"reason": call.body.reason})
    await call.parts.fleet.cordon(name, call.body.reason, call.asker.name, rev)
    return await changed(call)


async def uncordon(call: Call) -> MicroserverView:
    name, rev = await changing(call, "uncordon", {"reason": call.body.reason})
    await call.parts.fleet.uncordon(name, call.body.reason, call.asker.name, rev)
    return await changed(call)


async def mark(call: Call) -> MicroserverView:
    change = {field: value for field, value in msgspec.to_builtins(call.body).items() if value != {}}
    name, rev = await changing(call, "change", change)
    taints = {taint: None if why is None else {"reason": why} for taint, why in change.get("taints", {}).items()}
    await call.parts.fleet.mark(name, {**change, **({"taints": taints} if taints else {})}, call.asker.name, rev)
    return await changed(call)


async def changing(call: Call, verb: str, body: dict[str, Any]) -> tuple[str, int | None]:
    """Record in the farm's chain what an operator is about to do; return the microserver and the revision that they saw.

    Raises Forbidden, NotFound, Conflict: it has been changed since.
    """
    if not call.asker.operator:
        raise Forbidden(f"to {verb} is for operators", hint="ask an operator of the farm")
    known, rev = await show(call), call.if_match()
    if rev is not None and rev != known.rev:
        raise Conflict(
            f"{known.by or 'somebody'} changed {known.name}: it is at revision {known.rev}, not {rev}",
            hint="look at it again, then send what you want with the new revision", rev=known.rev,
        )  # fmt: skip
    for taint in (taint for taint, why in body.get("taints", {}).items() if why is None and taint in known.health):
        if known.taints[taint] == known.health[taint].reason:
            raise Conflict(
                f"{known.name} is tainted {taint} by itself: {known.health[taint].reason}",
                hint="it goes when that is over; the limits are set by: agentfarm placement settings",
            )
    event = new_event(KINDS[verb], {"microserver": known.name, **body})
    await call.write(lambda tx: ledger.record(tx, FARM_RUN, call.asker.by, [event]))
    return known.name, rev


async def changed(call: Call) -> MicroserverView:
    call.parts.surroundings.stale()
    call.parts.wake()  # what waited for a place may have one
    return await show(call)


async def people(call: Call) -> Listed[PersonView]:
    """Who owns which agents and has which rights: an operator sees all, a person themselves and those whom their agents concern."""
    owns, shared = await call.read(agents.people)
    asker = call.asker
    if not asker.operator:
        mine = {agent for owner, agent in owns if owner == asker.name}
        mine |= {agent for person, agent, rights in shared if person == asker.name and rights == "manage"}
        given = {agent for person, agent, _ in shared if person == asker.name}
        owns = [(owner, agent) for owner, agent in owns if agent in mine | given]
        shared = [one for one in shared if one[1] in mine or one[0] == asker.name]
    found: dict[str, list[Owned]] = {asker.name: []}
    for owner, agent in owns:
        found.setdefault(owner, []).append(Owned(agent, "owner"))
    for person, agent, rights in shared:
        found.setdefault(person, []).append(Owned(agent, rights))
    return Listed([PersonView(person, has) for person, has in sorted(found.items())])


ROUTES = [
    Route("GET", "/microservers", listed, "The farm's machines", query=Page, answer=Listed[MicroserverView]),
    Route("GET", "/microservers/{name}", show, "One of them", answer=MicroserverView),
    Route("POST", "/microservers/{name}/cordon", cordon, "Let it take nothing new", who="person", body=Why, answer=MicroserverView),
    Route("POST", "/microservers/{name}/uncordon", uncordon, "Let it take servers again", who="person", body=Why, answer=MicroserverView),
    Route("PATCH", "/microservers/{name}", mark, "Label it, taint it, keep some of it for the system", who="person", body=Marks, answer=MicroserverView),
    Route("GET", "/people", people, "Who owns and shares which agents", who="person", answer=Listed[PersonView]),
]  # fmt: skip

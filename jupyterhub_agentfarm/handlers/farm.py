"""The fleet and its people: microservers, cordoned and uncordoned by operators; where servers go; who owns and shares what."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from agentfarm_sdk.protocol import new_event

from ..errors import Conflict, Forbidden, Invalid, NotFound
from ..records import hub_user, unit_name
from ..store import agents, ledger
from ..store.tables import FARM_RUN
from .asking import reach_agent
from .routes import Call, Page, Route
from .tasks import reach_task
from .views import Listed

CANNOT = {
    "drain": "this farm cannot move servers yet: cordon the microserver, then stop its agents' servers one by one"
}


class MicroserverView(msgspec.Struct, frozen=True, kw_only=True):
    """`state`: ready, cordoned, draining or lost. Memory and disk in bytes, `load` of the last minute. `agents`: whose servers run there.

    `verbs`: what an operator can do with it now; `cannot`: what this farm cannot do, and what to do instead.
    """

    name: str
    state: str
    reason: str = ""
    labels: dict[str, str] = {}
    servers: int = 0
    agents: list[str] = []
    verbs: list[str] = []
    cannot: dict[str, str] = {}
    cpus: int = 0
    load: float = 0.0
    memory: int = 0
    memory_free: int = 0
    disk: int = 0
    disk_free: int = 0
    uptime: float = 0.0
    own_users: bool | None = None
    isolation: str = ""
    avx2: bool | None = None
    backend: str = ""
    version: Any = None


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class Explained(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`agent`: whose server; or `task`: the server of the agent that has it."""

    agent: str = ""
    task: str = ""


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
    names = await call.read(lambda c: [one["name"] for one in agents.brief(c, _names(c, call))])
    return Listed([_view(call, one, [n for n in names if seen.server(n).microserver == one["name"]]) for one in found])


def _names(connection: Any, call: Call) -> list[str] | None:
    if call.asker.operator:
        return None
    return [call.asker.name] if call.asker.kind == "agent" else list(agents.reachable(connection, call.asker.name))


def _view(call: Call, row: dict[str, Any], there: list[str]) -> MicroserverView:
    verbs = ["uncordon" if row.get("state") == "cordoned" else "cordon"] if call.asker.operator else []
    return msgspec.convert({**row, "agents": there, "verbs": verbs, "cannot": CANNOT}, MicroserverView)


async def show(call: Call) -> MicroserverView:
    for one in (await listed(call)).items:
        if one.name == call.path["name"]:
            return one
    raise NotFound(f"there is no microserver {call.path['name']}", hint="list them by: agentfarm microserver list")


async def cordon(call: Call) -> MicroserverView:
    return await _turn(call, "cordon")


async def uncordon(call: Call) -> MicroserverView:
    return await _turn(call, "uncordon")


async def _turn(call: Call, verb: str) -> MicroserverView:
    """Record it in the farm's chain, then have the daemon do it. What runs there runs on."""
    if not call.asker.operator:
        raise Forbidden(f"to {verb} is for operators", hint="ask an operator of the farm")
    name, reason = (await show(call)).name, call.body.reason
    event = new_event(f"microserver.{verb}ed", {"microserver": name, "reason": reason})
    await call.write(lambda tx: ledger.record(tx, FARM_RUN, call.asker.by, [event]))
    await (call.parts.fleet.cordon if verb == "cordon" else call.parts.fleet.uncordon)(name, reason)
    call.parts.surroundings.stale()
    call.parts.wake()  # what waited for a place may have one
    return await show(call)


async def explain(call: Call) -> dict[str, Any]:
    """Say where the agent's server goes, and of each other microserver why not."""
    query: Explained = call.query
    if bool(query.agent) == bool(query.task):
        raise Invalid("an agent, or a task - at `$.agent`", hint="?agent=analyst or ?task=task-…")

    def name(connection: Any) -> str:
        if query.agent:
            return reach_agent(connection, call.asker, query.agent, "view")[0].name
        task = reach_task(connection, call.asker, query.task, "view")
        if not task.agent or task.agent.startswith("~"):
            raise Conflict(
                f"task {query.task} has no agent of the farm yet", hint="the scheduler gives it to a member of its pool"
            )
        return task.agent

    agent = await call.read(name)
    answer: dict[str, Any] = await call.parts.fleet.explain(unit_name(hub_user(agent)))
    return {**answer, "agent": agent, "why": call.parts.why(agent)}


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
    Route("GET", "/placements/explain", explain, "Where a server goes, and why", query=Explained, answer=dict[str, Any]),
    Route("GET", "/people", people, "Who owns and shares which agents", who="person", answer=Listed[PersonView]),
]  # fmt: skip

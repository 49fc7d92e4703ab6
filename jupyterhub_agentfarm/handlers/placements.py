"""Where servers go and why: explained for an agent or a task, settings of the farm and of agents, what had better move."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import ENDED, new_event

from ..demands import FOR_OPERATORS, Resources, Settings, as_layer, given, merged, with_changes
from ..errors import AgentFarmError, Forbidden, Invalid
from ..records import Task, hub_user, unit_name
from ..store import ledger, queue, resources, standing
from ..store.tables import FARM_RUN
from .asking import reach_agent
from .routes import Call, Route
from .tasks import POOL, reach_task

LIMITED = ("memory", "cpu", "gpus")  # by the settings' most_…


class Explained(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`agent`: whose server; or `task`: the server of the agent that has it, and why the task waits."""

    agent: str = ""
    task: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`microserver`: where the server is, or belongs; `stands`: it has its place there now, and `why_here` says why.

    `reasons`: of each microserver why it would not take the server, null where it would. `feasible`: now, later or never;
    `change`: what would have to change. `why`: what the latest try to start it was answered. Of a task: `queue`, why it waits,
    sentence by sentence; `members` of its pool, and why none of them takes it (null: it may).
    """

    unit: str = ""
    agent: str = ""
    microserver: str | None = None
    stands: bool = False
    why_here: str = ""
    reasons: dict[str, str | None] = {}
    feasible: str = ""
    change: str = ""
    why: str = ""
    rank: str = ""
    demand: dict[str, Any] = {}
    gpus: list[int] = []
    queue: list[str] = []
    members: dict[str, str | None] = {}


class ResourcesView(msgspec.Struct, frozen=True, kw_only=True):
    """`resources`: what was set for the agent; `effective`: what its server gets, with what the farm gives to all.

    `unheld`: on which microserver it is not held where the server may go; empty where it is.
    """

    agent: str
    resources: dict[str, Any]
    effective: dict[str, Any]
    feasible: str = ""
    change: str = ""
    unheld: str = ""


class Gain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gain: Annotated[float, msgspec.Meta(ge=0.05, le=1)] | None = None


class Rebalanced(msgspec.Struct, frozen=True):
    """Moves worth making, in their order; nothing is moved. `to` null: it may not stand there, and nobody else has room."""

    moves: list[dict[str, Any]]
    servers: int
    rank: str
    gain: float


class SettingsChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays; of `servers`, `people` and `health` field by field, null takes one away."""

    rank: str | msgspec.UnsetType = msgspec.UNSET
    reserve_memory: int | msgspec.UnsetType | None = msgspec.UNSET
    reserve_cpu: float | msgspec.UnsetType = msgspec.UNSET
    gain: float | msgspec.UnsetType = msgspec.UNSET
    most_memory: int | msgspec.UnsetType | None = msgspec.UNSET
    most_cpu: float | msgspec.UnsetType | None = msgspec.UNSET
    most_gpus: int | msgspec.UnsetType | None = msgspec.UNSET
    servers: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    people: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    health: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


# -- why here, why not yet -----------------------------------------------------------------------------------------


async def explain(call: Call) -> Explanation:
    query: Explained = call.query
    if bool(query.agent) == bool(query.task):
        raise Invalid("an agent, or a task - at `$.agent`", hint="?agent=analyst or ?task=task-…")
    if query.agent:
        agent, _ = await call.read(lambda c: reach_agent(c, call.asker, query.agent, "view"))
        return await _of_agent(call, agent.name)
    task = await call.read(lambda c: reach_task(c, call.asker, query.task, "view"))
    if not task.agent and task.target.startswith(POOL):
        return await _of_pool(call, task)
    waits = await _waits(call, task)
    if not task.agent or task.agent.startswith("~"):
        return Explanation(queue=[*waits, "a person's own kernel does it: it has no server of the farm's"])
    return msgspec.structs.replace(await _of_agent(call, task.agent), queue=waits)


async def _of_agent(call: Call, agent: str) -> Explanation:
    unit = unit_name(hub_user(agent))
    answer: dict[str, Any] = await call.parts.fleet.explain(unit)
    told = {**answer, "why_here": answer.get("why", ""), "why": call.parts.why(agent), "agent": agent}
    return msgspec.convert(told, Explanation)


async def _of_pool(call: Call, task: Task) -> Explanation:
    """Say of each member of the pool why it does not take the task now."""
    pool = task.target.removeprefix(POOL)
    names, load = await call.read(lambda c: _members(c, pool, task))
    lacking = await call.parts.resources.lacking(task.requirements, names)
    asked = await call.parts.fleet.plan([unit_name(hub_user(name)) for name in names])
    members = {
        name: lacking[name] or standing.why_busy(load.get(name), call.parts.claims.seen(name))
        or asked["why"].get(unit_name(hub_user(name)), "") or call.parts.why(name) or None
        for name in names
    }  # fmt: skip
    return Explanation(queue=await _waits(call, task), members=members)


def _members(connection: Connection, pool: str, task: Task) -> tuple[list[str], dict[str, Any]]:
    names = queue.members(connection, pool, task.owner)
    return names, standing.busy(connection, names)


async def _waits(call: Call, task: Task) -> list[str]:
    if task.status in ENDED:
        return [f"it has {task.status}"]
    waits = await call.read(lambda c: standing.waits(c, task, call.parts.db.now()))
    if task.status in ("queued", "assigned") and (why := call.parts.claims.full()):
        waits.append(f"the ledger's disk is nearly full: {why}")
    if placeless := call.parts.placeless().why(task):
        waits.append(f"it waits for a place: {placeless}; it begins by itself when there is one")
    elif task.agent and task.status in ("queued", "assigned") and not call.parts.claims.seen(task.agent):
        waits.append(
            f"the server of {task.agent} is not up" + (f": {why}" if (why := call.parts.why(task.agent)) else "")
        )
    return waits


# -- what servers are promised -------------------------------------------------------------------------------------


async def show_resources(call: Call) -> ResourcesView:
    agent, _ = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], "view"))
    return await _resources(call, agent.name)


async def put_resources(call: Call) -> ResourcesView:
    """Set what the agent's server is promised; it holds from its next start."""
    agent, _ = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], "manage"))
    own, _ = await call.read(lambda c: resources.told(c, agent.name))
    wanted = as_layer(call.body)
    await _may_have(call, own, wanted)
    await call.write(lambda tx: resources.put(tx, agent.name, wanted, call.asker.by))
    await call.parts.resources.tell(agent.name)
    call.parts.wake()
    return await _resources(call, agent.name)


async def _may_have(call: Call, own: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises Forbidden: what is for operators; Invalid: more than who manages an agent may ask for."""
    if call.asker.operator:
        return
    for name in FOR_OPERATORS:
        if own.get(name) != wanted.get(name):
            raise Forbidden(f"{name} of a server is for operators", hint="ask an operator of the farm")
    settings: Settings = given(Settings, await call.parts.fleet.settings(), "the farm's settings")
    for name in LIMITED:
        most = getattr(settings, f"most_{name}")
        if most is not None and wanted.get(name, 0) > max(most, own.get(name, 0)):
            raise Invalid(
                f"{name}: {wanted[name]:g} are asked for, {most:g} are the most that you may - at `$.{name}`",
                hint="operators may give more",
            )


async def _resources(call: Call, agent: str) -> ResourcesView:
    own, _ = await call.read(lambda c: resources.told(c, agent))
    settings: Settings = given(Settings, await call.parts.fleet.settings(), "the farm's settings")
    effective = as_layer(merged([as_layer(settings.servers), own]))
    try:
        told = await call.parts.fleet.explain(unit_name(hub_user(agent)))
    except AgentFarmError:
        told = {}
    return ResourcesView(
        agent=agent,
        resources=own,
        effective=effective,
        feasible=told.get("feasible", ""),
        change=told.get("change", ""),
        unheld=told.get("unheld", ""),
    )


# -- the farm's settings; moves ------------------------------------------------------------------------------------


async def show_settings(call: Call) -> Settings:
    found: Settings = given(Settings, await call.parts.fleet.settings(), "the farm's settings")
    return found


async def put_settings(call: Call) -> Settings:
    if not call.asker.operator:
        raise Forbidden("the farm's settings are for operators", hint="ask an operator of the farm")
    change = msgspec.to_builtins(call.body)
    now = with_changes(await show_settings(call), change)
    event = new_event("placement.changed", {"settings": msgspec.to_builtins(now)})
    await call.write(lambda tx: ledger.record(tx, FARM_RUN, call.asker.by, [event]))  # before it is done, as all else
    found: Settings = given(Settings, await call.parts.fleet.set_settings(change), "settings")
    call.parts.wake()
    return found


async def rebalance(call: Call) -> Rebalanced:
    """Say what had better move. Moving is an operator's."""
    if not call.asker.operator:
        raise Forbidden(
            "this tells of everybody's servers: it is for operators", hint="agentfarm placement explain AGENT"
        )
    return msgspec.convert(await call.parts.fleet.rebalance(call.query.gain), Rebalanced)


ROUTES = [
    Route("GET", "/placements/explain", explain, "Where a server goes and why, why a task waits", query=Explained, answer=Explanation),
    Route("GET", "/placements/settings", show_settings, "How places are chosen, and what all servers get", answer=Settings),
    Route("PUT", "/placements/settings", put_settings, "Change that", who="person", body=SettingsChange, answer=Settings),
    Route("GET", "/placements/rebalance", rebalance, "Which servers had better stand elsewhere; nothing is moved", who="person", query=Gain, answer=Rebalanced),
    Route("GET", "/agents/{name}/resources", show_resources, "What its server is promised", answer=ResourcesView),
    Route("PUT", "/agents/{name}/resources", put_resources, "Set that; it holds from its next start", who="person", body=Resources, answer=ResourcesView),
]  # fmt: skip

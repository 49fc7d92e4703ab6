"""Emptying a microserver: what would go where, and doing it. How it is done: scheduling/draining.py."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from ..errors import Conflict, Forbidden, Invalid
from ..records import hub_user
from ..store import draining
from .farm import DrainView, changed, changing, drain_view
from .farm import show as show_microserver
from .routes import Call, Route
from .views import Listed

Until = Literal["finish-step", "finish-run", "move", "kill"]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=366 * 86400)]


class Drain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """until: what a server may finish before it is stopped: the step in hand, whole runs; `move`: nothing, `kill`: without grace.

    deadline: seconds from now, or a time with its zone; what has not come to rest by then is killed. dry_run: only say what would go
    where, as if those named in `besides` were drained with it.
    """

    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    until: Until = "finish-step"
    deadline: Seconds | datetime | None = None
    dry_run: bool = False
    besides: Annotated[list[str], msgspec.Meta(max_length=1000)] = []


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A workspace on a microserver that is drained. `server`: of its server, running, exited or unknown; `runs`: that are under way.

    `to`: where it goes, null: nowhere, and `why`. `part`: how much of it is copied, 0 to 1. `waits`: what is done, or waited for, now.
    `scratch`: no workspace, but a server that is there away from its files.
    """

    user: str
    agent: str
    server: str
    to: str | None
    why: str = ""
    bytes: int | None = None
    runs: int = 0
    moving: bool = False
    part: float = 0.0
    waits: str = ""
    scratch: bool = False


class Draining(msgspec.Struct, frozen=True, kw_only=True):
    """`drain`: null where none was begun, or it has ended. `items`: what is still there of it, or would leave by it."""

    microserver: str
    drain: DrainView | None
    items: list[Resident]


async def drain(call: Call) -> Draining:
    """Begin to empty it, or change how; with `dry_run` only say what would go where."""
    body: Drain = call.body
    deadline = _deadline(body.deadline, call.parts.db.now())
    name = call.path["name"]
    if body.dry_run:
        _operators(call)
        told = await call.parts.fleet.drain(name, preview=True, besides=body.besides)
        return await _view(call, told, body.until)
    words = {"reason": body.reason, "until": body.until, **({} if deadline is None else {"deadline": deadline})}
    name, rev = await changing(call, "drain", words)
    told = await call.parts.fleet.drain(name, body.until, deadline, body.reason, call.asker.name, rev)
    call.parts.draining.wake()
    await changed(call)
    return await _view(call, told)


async def show(call: Call) -> Draining:
    """What is still there of a microserver that is drained, and what each workspace waits for; nothing where it is not, or no more."""
    _operators(call)
    name = call.path["name"]
    for told in (await call.parts.fleet.drains())["drains"]:
        if told["microserver"] == name:
            return await _view(call, told)
    await show_microserver(call)
    return Draining(microserver=name, drain=None, items=[])


def _operators(call: Call) -> None:
    if not call.asker.operator:
        raise Forbidden("this tells of everybody's servers: it is for operators", hint="ask an operator of the farm")


def _deadline(wanted: float | datetime | None, now: float) -> float | None:
    """Return when it passes (epoch seconds). Raises Invalid."""
    if isinstance(wanted, datetime):
        if wanted.tzinfo is None:
            raise Invalid(
                "the deadline has no zone - at `$.deadline`", hint="e.g. 2030-01-01T12:00:00Z, or seconds from now"
            )
        wanted = wanted.timestamp() - now
        if wanted <= 0:
            raise Invalid("the deadline has passed already - at `$.deadline`", hint="name a later one, or none")
    return None if wanted is None else now + wanted


async def _view(call: Call, told: dict[str, Any], until: Until | None = None) -> Draining:
    """until: of a drain that nobody has begun."""
    names = [one["agent"] for one in told["workspaces"] if one["agent"]]
    held = await call.read(lambda c: draining.held(c, names))
    notes = call.parts.draining.notes if until is None else call.parts.draining.plan(told["workspaces"], held, until)
    items = [
        Resident(
            user=one["user"], agent=one["agent"], server=one["state"], to=(one["move"] or {}).get("to") or one["to"], why=one["why"], bytes=one["bytes"],
            runs=sum(1 for run in held if run.agent == one["agent"]), moving=bool(one["move"]), part=(one["move"] or {}).get("part", 0.0),
            waits=(one["move"] or {}).get("why") or notes.get(one["user"], ""), scratch=one["scratch"],
        )
        for one in told["workspaces"]
    ]  # fmt: skip
    view = drain_view({"drain": told}) if told.get("until") else None
    return Draining(
        microserver=told["microserver"], drain=None if view is None else msgspec.convert(view, DrainView), items=items
    )


# -- what is lost ------------------------------------------------------------------------------------------------


class Lost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """restore: a snapshot by its name, or `latest`; without_workspace: they begin without files. agents: only these."""

    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""
    restore: Annotated[str, msgspec.Meta(max_length=40)] = ""
    without_workspace: bool = False
    agents: Annotated[list[str], msgspec.Meta(max_length=1000)] = []


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A workspace: the snapshot that was taken, or is restored (null: none), and why. changed: files written meanwhile."""

    user: str
    snapshot: str | None
    bytes: int = 0
    changed: int = 0
    why: str = ""


async def lost(call: Call) -> Listed[Kept]:
    """Decide for agents whose microserver is gone: with a snapshot or without their files they go on elsewhere."""
    body: Lost = call.body
    _operators(call)
    if bool(body.restore) == body.without_workspace:
        raise Invalid("say restore or without_workspace", hint="restore: latest, or a snapshot's name")
    words = {"reason": body.reason, "restore": body.restore or None, "agents": body.agents}
    found = await show_microserver(call)
    if not await _is_silent(call, found.name):
        raise Conflict(f"{found.name} answers: it is not lost", hint="drain it: its workspaces move then")
    name, _ = await changing(call, "give up", words)
    given = await call.parts.fleet.lost(name, body.restore, [hub_user(agent) for agent in body.agents], call.asker.name)
    call.parts.draining.wake()
    await changed(call)
    return Listed([msgspec.convert(one, Kept) for one in given])


async def _is_silent(call: Call, name: str) -> bool:
    return any(one["name"] == name and one.get("silent") for one in await call.parts.fleet.microservers())


async def snapshot(call: Call) -> Listed[Kept]:
    """Keep every workspace of it at the hub machine. A server may run meanwhile: each file is as it was when it was read."""
    _operators(call)
    await show_microserver(call)
    return Listed([msgspec.convert(one, Kept) for one in await call.parts.fleet.snapshot(call.path["name"])])


ROUTES = [
    Route("POST", "/microservers/{name}/snapshot", snapshot, "Keep its workspaces at the hub machine", who="person", answer=Listed[Kept]),
    Route("POST", "/microservers/{name}/lost", lost, "It is gone for good: let its agents go on elsewhere", who="person", body=Lost, answer=Listed[Kept]),
    Route("POST", "/microservers/{name}/drain", drain, "Empty it: its agents go on elsewhere; or only say what would go where", who="person", body=Drain, answer=Draining),
    Route("GET", "/microservers/{name}/drain", show, "How far that is, workspace by workspace", who="person", answer=Draining),
]  # fmt: skip

"""`/events`: one stream of all changes that its asker may see; lists are kept up to date by it without another request.

Events of the ledger carry the farm's numbers as ids, so that none is missed. What is no event (drafts, servers, microservers,
the inbox's count, verdicts on test cases, the farm's health) is told as it is now: once at the beginning, then whenever it is
otherwise. So nothing is missed there either. While the database is away the stream stands, and says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ..errors import Transient
from ..store import agents, changes
from ..store import cases as store_cases
from ..store.changes import Change
from .asking import visible
from .cases import standing
from .farm import admitted
from .feed import AGENTS, CASES, FARM, INBOX, Sse, resume_from
from .operations import health_of
from .routes import Call, Place, Route
from .views import when

LOAD_SECONDS = 10.0  # how often loads and free memory are told where nothing else has changed
AWAY_SECONDS = 2.0  # until the database is asked again


class Changes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`after`: the last number that is known; 0: from now on. `bodies` false: events come without their bodies.

    `state`: also how things are that are no events: agents, servers, microservers, the inbox's count, case runs, health.
    """

    after: Place = 0
    bodies: bool = True
    state: bool = False


class _Told:
    """What one stream has told so far, and what it tells next."""

    def __init__(self, call: Call, last: int) -> None:
        self.call, self.last = call, last
        self.agents: dict[str, dict[str, Any]] = {}
        self.servers: dict[str, Any] = {}
        self.microservers: list[dict[str, Any]] | None = None
        self.loads_at = 0.0
        self.inbox: dict[str, int] | None = None
        self.cases: dict[str, dict[str, Any]] = {}  # by batch, those that wait for verdicts
        self.newest_cases: str | None = None
        self.health: dict[str, Any] | None = None

    async def events(self, sse: Sse) -> None:
        """Send what has been committed since, up to the latest."""
        while True:
            found, upto = await self.call.read(self._look)
            for one in found:
                task = one.task
                data = {
                    "agent": one.run["agent"],
                    "owner": one.run["owner"],
                    "run": one.run,
                    "task": task,
                    "event": one.event,
                }
                await sse.send(data, one.event.kind, one.number)
            if upto == self.last:
                return
            self.last = upto

    def _look(self, connection: Any) -> tuple[list[Change], int]:
        asker, bodies = self.call.asker, self.call.query.bodies
        owners, names = visible(connection, asker)
        owner = None if owners is None else owners[0] if owners else ""
        return changes.after(connection, self.last, owner=owner, agents=names or (), bodies=bodies)

    async def of_agents(self, sse: Sse) -> None:
        """Send the agents whose rows are others than were told: `gone` are those that may not be seen any more."""

        def read(connection: Any) -> list[dict[str, Any]]:
            asker = self.call.asker
            has = {} if asker.kind == "agent" else agents.reachable(connection, asker.name)
            names = None if asker.operator else [asker.name] if asker.kind == "agent" else list(has)
            usual = "operator" if asker.operator else "view"
            return [{**one, "rights": has.get(one["name"], usual)} for one in agents.brief(connection, names)]

        now = {one["name"]: _agent(one) for one in await self.call.read(read)}
        changed = [one for name, one in now.items() if self.agents.get(name) != one]
        gone = sorted(self.agents.keys() - now.keys())
        self.agents = now
        if changed or gone:
            await sse.send({"items": changed, "gone": gone}, "agents")
            await self.of_farm(sse)

    async def of_farm(self, sse: Sse) -> None:
        """Send servers and microservers where they are others than were told."""
        seen = await self.call.parts.surroundings.look()
        in_use = [name for name, one in self.agents.items() if one["retired_at"] is None]
        now = {name: seen.server(name, self.call.parts.why(name)) for name in in_use}
        changed = [
            {"agent": name, **msgspec.structs.asdict(one)} for name, one in now.items() if self.servers.get(name) != one
        ]
        self.servers = now
        if changed:
            await sse.send({"items": changed}, "servers")
        if self.microservers != seen.steady or time.monotonic() - self.loads_at > LOAD_SECONDS:
            self.microservers, self.loads_at = seen.steady, time.monotonic()
            await sse.send({"items": [admitted(self.call.asker, one) for one in seen.microservers]}, "microservers")

    async def of_inbox(self, sse: Sse) -> None:
        def read(connection: Any) -> dict[str, int]:
            owners, names = visible(connection, self.call.asker)
            return changes.inbox_counts(connection, owners=owners, agents=names, groups=self.call.asker.groups)

        counts = await self.call.read(read)
        if counts != self.inbox:
            self.inbox = counts
            await sse.send({"count": sum(counts.values()), "kinds": counts}, "inbox")

    async def of_cases(self, sse: Sse) -> None:
        """Send how the case runs stand that wait for verdicts, and those that did when they were told last."""

        def read(connection: Any) -> tuple[str, list[dict[str, Any]]]:
            newest = store_cases.newest(connection)
            names = visible(connection, self.call.asker)[1]
            since = newest if self.newest_cases is None else self.newest_cases
            return newest, standing(connection, names, list(self.cases), since)

        first = self.newest_cases is None
        self.newest_cases, now = await self.call.read(read)
        changed = [one for one in now if self.cases.get(one["batch_id"]) != one]
        self.cases = {one["batch_id"]: one for one in now if any(total.pending for total in one["totals"])}
        if changed or first:
            await sse.send({"items": changed}, "cases")

    async def of_health(self, sse: Sse, problem: str = "") -> None:
        """Send whether the farm is well. `problem`: why the database did not answer just now."""
        self.call.parts.models.upstreams.look_again()
        health = health_of(self.call.parts, problem)
        now = {"status": health.status, "problems": health.problems}
        if now != self.health:
            self.health = now
            await sse.send(now, "health")


def _agent(row: Mapping[str, Any]) -> dict[str, Any]:
    timed = {name: when(row[name]) for name in ("edited_at", "created_at", "retired_at")}
    return {**{name: value for name, value in row.items() if name != "owner_since"}, **timed}


async def events(call: Call) -> None:
    """Stream every change that the asker may see, from now on or from where they were; ids number the whole farm's events."""
    start = resume_from(call.handler, call.query.after)
    told = _Told(call, start or await call.read(changes.latest))
    feed, sse = call.parts.feed, Sse(call.handler)
    if not call.query.state:
        with feed.reader(None) as committed:
            await sse.comment("here")
            await _tell(sse, {committed: told.events})
        return
    with (
        feed.reader(None) as committed, feed.reader(AGENTS) as drafts, feed.reader(FARM) as around, feed.reader(INBOX) as inbox,
        feed.reader(CASES) as cases, feed.reader(FARM) as well, call.parts.surroundings.watched(),
    ):  # fmt: skip
        await sse.send({"after": told.last}, "here", told.last)  # an id to come back with, before anything happens
        tells: dict[asyncio.Event, Tell] = {
            committed: told.events, drafts: told.of_agents, around: told.of_farm, inbox: told.of_inbox, cases: told.of_cases,
            well: told.of_health,  # behind all that reads: so it says that the database is there
        }  # fmt: skip
        await _tell(sse, tells, told.of_health)


Tell = Callable[[Sse], Awaitable[None]]


async def _tell(
    sse: Sse, tells: Mapping[asyncio.Event, Tell], away: Callable[[Sse, str], Awaitable[None]] | None = None
) -> None:
    """Tell everything once, and then whatever was woken, until the reader goes. Raises Transient, where nobody hears of it by `away`."""
    for wake in tells:
        wake.set()
    while sse.open:
        for wake, tell in tells.items():
            if not wake.is_set():
                continue
            wake.clear()  # before reading: what comes behind it wakes again
            try:
                await tell(sse)
            except Transient as error:
                if away is None:
                    raise
                for one in tells:
                    one.set()
                await away(sse, error.detail)
                await sse.rest(AWAY_SECONDS)
                break
        if not any(wake.is_set() for wake in tells):
            await sse.pause(*tells)


ROUTES = [
    Route("GET", "/events", events, "Stream of all changes that the asker may see", query=Changes, streams=True),
]  # fmt: skip

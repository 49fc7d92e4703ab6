"""Stops agents' servers that neither work nor are used, and keeps up so many of a pool as its rules say.

Whoever has a lease, or runs to take up, is at work: however silent it is, it stays. The Hub knows who else uses a server (pages,
editors, kernels); the supervisor tells it of work by its own (labserver/activity.py), so any other culler spares it too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from ..errors import AgentFarmError
from ..hub import Hub
from ..records import Committed, hub_user
from ..store import poolrules
from ..store.db import Database
from ..store.poolrules import Rules
from .resources import Resourcing

log = logging.getLogger(__name__)
IDLE_SECONDS = 3600.0
LOOK_SECONDS = 30.0
AGENT = "agent-"


@dataclass(frozen=True)
class Up:
    """An agent's server that is up, or on its way; `idle`: seconds since it was last used or worked."""

    agent: str
    pool: str | None
    idle: float
    works: bool


def to_stop(up: Sequence[Up], rules: Mapping[str, Rules], usual: float) -> list[str]:
    """Return the agents whose servers are stopped, the longest idle first; never one that works, nor below a pool's min. Pure."""
    left: dict[str | None, int] = {}
    for one in up:
        left[one.pool] = left.get(one.pool, 0) + 1
    found = []
    for one in sorted(up, key=lambda one: (-one.idle, one.agent)):
        rule = rules.get(one.pool or "", Rules())
        patience = usual if rule.idle_seconds is None else rule.idle_seconds
        few = one.pool is not None and left[one.pool] <= rule.min_servers
        if not one.works and not few and 0 < patience <= one.idle:
            found.append(one.agent)
            left[one.pool] -= 1
    return found


def to_keep_up(members: Sequence[str], up: Collection[str], rule: Rules) -> list[str]:
    """Return the members of a pool that are started so that its min are up. Pure."""
    here = sum(1 for name in members if name in up)
    return [name for name in members if name not in up][: max(0, rule.min_servers - here)]


class Idling:
    """Looks every half a minute. While the Hub is away nothing is concluded."""

    def __init__(
        self, db: Database, hub: Hub, resources: Resourcing, usual: float = IDLE_SECONDS, seconds: float = LOOK_SECONDS
    ) -> None:
        self.db, self.hub, self.resources, self.usual, self.seconds = db, hub, resources, usual, seconds
        self._began = time.monotonic()
        self._worked: dict[str, float] = {}  # when an agent's runs last had an event
        self._tried: dict[
            str, int
        ] = {}  # how often a server was started that is not up since: another one's turn is before it
        db.on_commit(self._heard)

    def _heard(self, committed: list[Committed]) -> None:
        now = time.monotonic()
        for one in committed:
            self._worked[one.agent] = now

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self.seconds)
            try:
                await self.look()
            except AgentFarmError as error:
                log.info("idle servers were not looked for: %s", error.detail)

    async def look(self) -> None:
        """Look once. Raises Transient, UserError: the Hub cannot be asked."""
        servers = await self.hub.agents_servers()
        pools, rules, busy = await self.db.read(lambda c: (poolrules.members(c), poolrules.of(c), poolrules.at_work(c)))
        names = {user.removeprefix(AGENT): server for user, server in servers.items()}
        up = [
            Up(name, pools[name], self._idle(name, server), name in busy or bool(server.get("pending")))
            for name, server in names.items()
            if name in pools
        ]
        for name in to_stop(up, rules, self.usual):
            await self._stop(name)
        self._tried = {name: times for name, times in self._tried.items() if name not in names}
        for pool, rule in rules.items():
            if rule.min_servers:
                members = await self.db.read(partial(poolrules.startable, pool=pool))
                for name in to_keep_up(sorted(members, key=lambda one: self._tried.get(one, 0)), names, rule):
                    await self._start(name)

    def _idle(self, agent: str, server: Mapping[str, Any]) -> float:
        """Return the seconds since the agent worked, or somebody used its server; no more than this service is up."""
        worked = time.monotonic() - self._worked.get(agent, self._began)
        stamps = [_seconds_ago(server.get(name)) for name in ("last_activity", "started")]
        return min([worked, *(one for one in stamps if one is not None)])

    async def _stop(self, agent: str) -> None:
        """Stop a server that is idle still: work may have come to it while others were stopped."""
        if agent in await self.db.read(poolrules.at_work):
            return
        try:
            await self.hub.stop_server(hub_user(agent))
            log.info("the server of %s has been idle: it is stopped", agent)
        except AgentFarmError as error:  # the others are stopped all the same
            log.warning("the server of %s has been idle, and does not stop: %s", agent, error.detail)

    async def _start(self, agent: str) -> None:
        self._tried[agent] = self._tried.get(agent, 0) + 1
        try:
            await self.resources.tell(agent)
            await self.hub.start_server(hub_user(agent))
        except AgentFarmError as error:
            log.warning("the server of %s, one of its pool's minimum, does not start: %s", agent, error.detail)


def _seconds_ago(text: Any) -> float | None:
    try:
        return time.time() - datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None

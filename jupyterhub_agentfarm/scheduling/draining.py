"""Empties microservers: brings runs there to rest, has workspaces moved, starts servers where they have arrived.

What is to be done for a workspace is decided in `next_act` (pure). What is wanted, and how far each move is, the fleet daemon keeps
(fleet/moving.py), so that this may die at any moment: it looks again and goes on from what is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from agentfarm_sdk.protocol import new_event

from ..errors import AgentFarmError, Transient
from ..hub import Hub
from ..records import hub_user
from ..store import draining, ledger
from ..store.db import Database
from ..store.draining import Held
from ..store.tables import FARM_RUN
from .beside import Beside
from .resources import Resourcing

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # while something is drained
IDLE_SECONDS = 5.0
Until = Literal["finish-step", "finish-run", "move", "kill"]
PATIENT = ("finish-step", "finish-run")


@dataclass(frozen=True)
class There:
    """A workspace on a microserver that is drained. agent: "" for a person's; state: of its server, as the daemon says.

    scratch: no workspace, but a server that is there away from its files.

    to: where it would go, None: nowhere, and why. working: runs that a worker holds; going: those of them that were not asked to rest.
    """

    agent: str
    state: str
    to: str | None
    why: str = ""
    moving: bool = False
    working: int = 0
    going: tuple[str, ...] = ()
    scratch: bool = False


@dataclass(frozen=True)
class Act:
    """What is done next. hold: its agent takes no run meanwhile. how: stop, or kill (without grace)."""

    do: Literal["wait", "rest", "stop", "move"]
    why: str
    hold: bool = False
    how: Literal["stop", "kill"] = "stop"
    runs: tuple[str, ...] = ()


def next_act(one: There, until: Until, overdue: bool) -> Act:
    """Return what is to be done for a workspace. Pure.

    Until the deadline a server is stopped only when what it works on has come to rest (`until`: the step in hand, or whole runs);
    then it is killed. One that has nowhere to go works on until then.
    """
    up, patient = one.state != "exited", until in PATIENT and not overdue
    how: Literal["stop", "kill"] = "kill" if overdue or until == "kill" else "stop"
    if one.state == "unknown":
        return Act("wait", "its microserver cannot be asked", hold=one.moving)
    if one.moving:
        return Act("stop" if up else "wait", "its server ends" if up else "its workspace is being moved", True, how)
    if one.to is None and not overdue:
        return Act("wait", f"it has nowhere to go: {one.why}")
    if up and patient and not one.agent:
        return Act("wait", "a person's own server: it moves once its owner has stopped it")
    if up and patient and one.working:
        words = "1 run goes on" if one.working == 1 else f"{one.working} runs go on"
        if until == "finish-run":
            return Act("wait", f"{words} to the end", True)
        return Act("rest", f"{words} to the end of a step", True, runs=one.going)
    if one.to is None:
        why = f"it has nowhere to go: {one.why}; its tasks wait for its microserver"
        return Act("stop" if up else "wait", why, True, how)
    if one.scratch:
        return Act("stop", "its server, which is away from its files, ends, and goes on elsewhere", True, how)
    return Act("move", f"its workspace moves to {one.to}", True, how)


class Fleet(Protocol):
    """What is asked of the fleet daemon (fleet/client.py)."""

    async def drains(self) -> dict[str, Any]: ...
    async def drained(self, name: str) -> None: ...
    async def move(self, user: str, up: bool = False, stop: str = "", away: str = "") -> Any: ...
    async def end_move(self, user: str) -> None: ...
    async def stop(self, unit: str, now: bool = False) -> Any: ...


class Holding(Protocol):
    """Which agents take no run for now, and why (handlers/waiting.py)."""

    def hold(self, agents: Mapping[str, str]) -> None: ...


class Draining:
    """Looks each second while something is drained. `notes`: what each workspace there waits for, by user."""

    def __init__(
        self, db: Database, hub: Hub, fleet: Fleet, claims: Holding, resources: Resourcing, changed: Callable[[], None]
    ) -> None:
        self.db, self.hub, self.fleet, self.claims, self.resources = db, hub, fleet, claims, resources
        self._changed = changed  # the farm is otherwise: who watches looks again
        self.notes: dict[str, str] = {}
        self._open = True  # something may be left of a former life
        self._beside = Beside()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    @staticmethod
    def plan(workspaces: Sequence[Mapping[str, Any]], held: list[Held], until: Until) -> dict[str, str]:
        """Return what a drain would do first for each workspace, in words, by user."""
        return {one["user"]: next_act(there(one, held), until, False).why for one in workspaces}

    async def run(self) -> None:
        """Look for ever; end what was begun when cancelled."""
        try:
            while True:
                try:
                    await self.look()
                except AgentFarmError as error:
                    log.info("drains were not looked at: %s", error.detail)
                woken = asyncio.ensure_future(self._woken.wait())
                try:
                    await asyncio.wait({woken}, timeout=LOOK_SECONDS if self._open else IDLE_SECONDS)
                finally:
                    woken.cancel()
                self._woken.clear()
        finally:
            await self._beside.stop()

    async def look(self) -> None:
        """Do what is due now. Raises FleetError, Transient: somebody cannot be asked."""
        self._beside.check()
        told = await self.fleet.drains()
        drains, moves = told["drains"], told["moves"]
        if not (drains or moves or self._open):
            return
        names = {one["agent"] for drain in drains for one in drain["workspaces"] if one["agent"]}
        held = await self.db.read(lambda c: draining.held(c, names))
        before, self.notes = self.notes, {}
        holds = {agent_of(m["user"]): _moving(m) for m in moves if m["phase"] != "moved" and agent_of(m["user"])}
        for drain in drains:
            overdue = drain["deadline"] is not None and self.db.now() >= drain["deadline"]
            for one in drain["workspaces"]:
                act = next_act(there(one, held), drain["until"], overdue)
                self.notes[one["user"]] = act.why
                if act.hold and one["agent"]:
                    holds[one["agent"]] = f"{drain['microserver']} is drained: {act.why}"
                await self._do(drain, one, act)
        self.claims.hold(holds)
        await self._take_up({drain["microserver"] for drain in drains})
        for move in moves:
            if move["phase"] == "moved":
                self._beside.begin(move["user"], self._logged, move["user"], self._arrived, move)
        for drain in drains:
            if not drain["workspaces"]:
                await self._emptied(drain)
        self._open = bool(drains or moves)
        if self.notes != before:
            self._changed()

    async def _do(self, drain: Mapping[str, Any], one: Mapping[str, Any], act: Act) -> None:
        if act.do == "rest":
            reason = f"{drain['microserver']} is drained: it goes on elsewhere"
            for run_id in act.runs:
                aside = partial(draining.put_aside, run_id=run_id, microserver=drain["microserver"], reason=reason)
                await self.db.write(aside)
        elif act.do in ("move", "stop"):
            self._beside.begin(one["user"], self._logged, one["user"], self._sent, drain["microserver"], one, act)

    async def _logged(self, user: str, work: Callable[..., Awaitable[None]], *given: Any) -> None:
        try:
            await work(*given)
        except AgentFarmError as error:
            log.warning("%s: %s; it is tried again", user, error.detail)

    async def _sent(self, microserver: str, one: Mapping[str, Any], act: Act) -> None:
        """Have the workspace moved, and its server stopped: by the Hub, so that it knows; by the daemon a person's, without grace, or one
        that the Hub thinks it has stopped: it asked while the daemon was away.

        A move ends no server that started where it arrived, however old the look is that asked for it.
        """
        user, up = one["user"], one["state"] != "exited"
        agent, moves = bool(one["agent"]), act.do == "move" or there(one, []).moving
        how = act.how if not agent or act.how == "kill" else ""
        if moves:
            move = await self.fleet.move(user, up and agent, how, microserver)
            if move.get("phase") in (None, "moved"):  # who has moved meanwhile stays where it is
                return
        elif up and how:
            await self._stop_units(one, how)
        if up and agent:
            await self.hub.stop_server(user)
            if act.how == "stop" and await self.hub.server(user) is None:
                await (self.fleet.move(user, stop="stop", away=microserver) if moves else self._stop_units(one, "stop"))

    async def _stop_units(self, one: Mapping[str, Any], how: str) -> None:
        for unit in one["units"]:
            await self.fleet.stop(unit, now=how == "kill")

    async def _arrived(self, move: Mapping[str, Any]) -> None:
        """Start the server where its workspace is now; then the move is forgotten."""
        agent = agent_of(move["user"])
        if move["up"] and agent:
            try:
                await self.resources.tell(agent)
                await self.hub.start_server(hub_user(agent))
            except Transient:
                raise
            except AgentFarmError as error:  # where it has work, the scheduler tries again and says why
                log.warning("the server of %s does not start at %s: %s", agent, move["to"], error.detail)
        if move["from"] != move["to"]:  # recorded last: while the Hub is away all this is tried each second
            body = {name: move[name] for name in ("user", "from", "to", "bytes", "digest")}
            event = new_event("workspace.moved", body)
            if move.get("snapshot"):
                event = new_event("workspace.restored", {**body, "snapshot": move["snapshot"]})
            await self.db.write(lambda tx: ledger.record(tx, FARM_RUN, "service", [event]))
        await self.fleet.end_move(move["user"])
        self.wake()
        self._changed()

    async def _take_up(self, drained: set[str]) -> None:
        """Queue the runs again that a drain put aside, once nobody holds them, or the drain is over."""
        for run, drain in await self.db.read(draining.resting):
            if run.lease_until is None or drain not in drained:
                await self.db.write(partial(draining.take_up, run_id=run.run_id))

    async def _emptied(self, drain: Mapping[str, Any]) -> None:
        name = drain["microserver"]
        body = {"microserver": name, "workspaces": drain["of"], "seconds": round(self.db.now() - drain["began"], 1)}
        await self.db.write(lambda tx: ledger.record(tx, FARM_RUN, "service", [new_event("microserver.drained", body)]))
        await self.fleet.drained(name)
        log.info("microserver %s is drained: nothing is left there", name)
        self._changed()


def there(one: Mapping[str, Any], held: list[Held]) -> There:
    """Return a workspace as the decision sees it."""
    mine = [run for run in held if one["agent"] and run.agent == one["agent"]]
    return There(
        agent=one["agent"], state=one["state"], to=one["to"], why=one["why"],
        moving=bool(one["move"]) and one["move"]["phase"] != "moved", working=len(mine),
        going=tuple(run.run_id for run in mine if not run.aside), scratch=one["scratch"],
    )  # fmt: skip


def agent_of(user: str) -> str:
    """Return the agent whose hub user it is, "" for a person."""
    return user.removeprefix("agent-") if user.startswith("agent-") else ""


def _moving(move: Mapping[str, Any]) -> str:
    return f"its workspace moves from {move['from']}" + (f" to {move['to']}" if move["to"] else "")

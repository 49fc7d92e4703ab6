"""Workspaces that move to another microserver: copied, compared, and only then at home there. The daemon's; kept in fleet.json.

A move survives everything: the old copy is the only true one until the new one stands whole on the other disk and `home` names it; then
the old one is removed. What breaks off begins anew; nobody starts a server of that user meanwhile. Drains ask for moves (scheduling/draining.py).
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

from agentfarm_sdk.waiting import within

from ..errors import AgentFarmError, Conflict, FleetError, Invalid, NotFound
from ..records import unit_name
from ..scheduling.placement import choose_microserver, place_all
from . import copying
from .microserver import AnyMicroserver
from .placing import Placing, promise_of
from .settings import seconds_of
from .snapshots import Snapshots
from .state import AGENT_USER, FleetState, workspace_of

log = logging.getLogger("agentfarm.fleet")
AT_ONCE = 2  # copies
LOOK_SECONDS = 5.0
# That a look at a drain waits for the size of each workspace: many files on an old disk take longer.
SIZE_SECONDS = 15.0
LONGEST_PAUSE = 15.0  # between tries
DONE = "moved"
FORSAKE_SECONDS = 90.0  # three leases
UNTIL = ("finish-step", "finish-run", "move", "kill")


class Units(Protocol):
    async def show(self, unit: str) -> dict[str, Any]: ...
    async def states(self, microserver: str) -> dict[str, str]: ...
    async def stop(self, unit: str, now: bool) -> dict[str, Any]: ...
    async def take_back(self, unit: str) -> None: ...


class Moving:
    """All moves. state.moves: user → {from, to, phase: waiting, copying, moved, up: its server ran, stop: "", stop or kill, why, at, bytes, digest}."""

    def __init__(
        self, state: FleetState, microservers: Mapping[str, AnyMicroserver], placing: Placing, units: Units
    ) -> None:
        self.state, self.microservers, self.placing, self.units = state, microservers, placing, units
        self.snapshots = Snapshots(state.path.parent / "snapshots")
        self._patience = seconds_of("AGENTFARM_FORSAKE_SECONDS", FORSAKE_SECONDS)
        self._silent: dict[str, float] = {}  # since when microservers cannot be asked (monotonic seconds)
        self._going: dict[str, asyncio.Task[None]] = {}
        self._so_far: dict[str, tuple[int, int]] = {}  # bytes of a copy under way, and of all files
        self._starting: collections.Counter[str] = collections.Counter()  # servers that are being started, by user
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._locks: dict[str, asyncio.Lock] = {}  # of a user's workspace
        self._woken = asyncio.Event()

    # -- what is asked -------------------------------------------------------------------------------------------

    def begin(self, user: str, up: bool = False, stop: str = "", away: str = "") -> dict[str, Any]:
        """Move the user's workspace away from where it is; asked again only `up` and `stop` are added. Raises NotFound.

        `up`: its server is to be started when it has arrived; `stop`: end servers that still run, `kill` without grace; "" waits for it.
        `away`: from there, while it is drained, and from nowhere else: who has moved meanwhile stays where it is.
        """
        known = self.state.moves.get(user)
        if known is None or known["phase"] == DONE:
            if not (home := self.placing.home(user)):
                raise NotFound(f"{user} has no workspace on any microserver")
            if away and (home != away or not self.state.microservers.get(away, {}).get("drain")):
                return self.told(user)
            known = self.state.moves[user] = {
                "from": home, "to": "", "phase": "waiting", "up": False, "stop": "", "why": "", "at": time.time(),
            }  # fmt: skip
        known |= {"up": known["up"] or up, "stop": stop or known["stop"]}
        self.state.save()
        self._woken.set()
        return self.told(user)

    def end(self, user: str) -> None:
        """Forget a move: one that is done, or one that is given up; the workspace is where `home` says. Again is harmless."""
        if (task := self._going.get(user)) is not None:
            task.cancel()
        if self.state.moves.pop(user, None) is not None:
            self._so_far.pop(user, None)
            self.state.save()

    def give_up(self, microserver: str) -> None:
        """Let what is not gone yet stay: servers that were stopped for it start there again."""
        for user, one in list(self.state.moves.items()):
            if one["from"] == microserver and one["phase"] != DONE:
                if (task := self._going.get(user)) is not None:
                    task.cancel()
                self.state.leave(user, one["to"])
                one |= {"phase": DONE, "to": microserver, "why": "the drain was ended"}
                one.pop("promise", None)
        self.state.save()

    def check(self, user: str) -> None:
        """Raise FleetError while the user's workspace moves: nothing is started from it."""
        one = self.state.moves.get(user)
        if one is not None and one["phase"] != DONE:
            where = f"from {one['from']} to {one['to']}" if one["to"] else f"away from {one['from']}"
            raise FleetError(f"its workspace is being moved {where}", hint="it starts when it is there", retry_after=5)

    @asynccontextmanager
    async def held_back(self, user: str) -> AsyncIterator[None]:
        """Let the user's workspace stay while a server of theirs starts: until that is over no look shows it. Raises as `check`."""
        self.check(user)
        self._starting[user] += 1
        try:
            yield
        finally:
            self._starting[user] -= 1
            if not self._starting[user]:
                del self._starting[user]

    def told(self, user: str) -> dict[str, Any]:
        """Return how a move stands; {} where there is none. `part`: how much of it is copied, 0 to 1."""
        one = self.state.moves.get(user)
        if one is None:
            return {}
        so_far, whole = self._so_far.get(user, (0, 0))
        return {
            **{name: one.get(name) for name in ("from", "to", "phase", "up", "why", "at", "bytes", "digest", "snapshot")},
            "user": user, "part": min(1.0, so_far / whole) if whole and one["phase"] == "copying" else 0.0,
        }  # fmt: skip

    # -- a microserver that is drained -----------------------------------------------------------------------------

    async def do(self, verb: str, name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked of a microserver: drain, drained, snapshot, lost. Raises Conflict, Invalid."""
        if verb == "drain":
            return await self.drain_or_tell(name, asked)
        if verb == "drained":
            self.undrain(name, True)
            return {}
        return {"items": await self.snapshot(name) if verb == "snapshot" else self.give_up_lost(name, asked)}

    async def drains(self) -> dict[str, Any]:
        """Return the microservers that are drained, with all that is still there, and every move."""
        named = [name for name in self.microservers if self.state.microservers.get(name, {}).get("drain")]
        there = await asyncio.gather(*(self.drained(name) for name in named))
        drains = [
            {**told, "microserver": name, "workspaces": found}
            for name, found in zip(named, there, strict=True)
            if (told := self.progress(name)) is not None  # else it was ended meanwhile
        ]
        return {"drains": drains, "moves": [self.told(user) for user in self.state.moves]}

    async def drain_or_tell(self, name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Begin a drain, or only say what would go where (`preview`, with those named in `besides` drained too). Raises Conflict, Invalid."""
        if not asked.get("preview"):
            self.drain(name, asked)
        return {
            **(self.progress(name) or {}),
            "microserver": name,
            "workspaces": await self.drained(name, size=True, besides=asked.get("besides") or ()),
        }

    def drain(self, name: str, asked: Mapping[str, Any]) -> None:
        """Let a microserver take nothing new and be emptied, from now on; again changes how. Raises Conflict, Invalid."""
        until, deadline = str(asked.get("until", "finish-step")), asked.get("deadline")
        if until not in UNTIL or not (deadline is None or isinstance(deadline, int | float)):
            raise Invalid("until is one of " + ", ".join(UNTIL), hint="deadline: seconds since 1970, or none")
        by, reason = str(asked.get("by", "")), str(asked.get("reason", ""))
        before = self.state.microservers.get(name, {}).get("drain") or {
            "of": len(self.residents(name)),
            "began": time.time(),
        }
        drain = {**before, "until": until, "deadline": deadline, "by": by, "reason": reason}
        change = {"state": "draining", "reason": f"drained by {by}: {reason}" if by else reason, "drain": drain}
        self.placing.mark(name, asked.get("rev"), by, change)
        self.microservers[name].state = "draining"

    def undrain(self, name: str, emptied: bool) -> None:
        """End a drain: the microserver is empty and takes nothing, or the drain is given up."""
        entry = self.state.microservers.get(name, {})
        if entry.pop("drain", None) is None:
            return
        if emptied:
            entry |= {"state": "cordoned", "reason": entry.get("reason", ""), "rev": int(entry.get("rev", 0)) + 1}
            self.microservers[name].state = "cordoned"
            self.state.save()
        else:
            self.give_up(name)

    def residents(self, microserver: str) -> dict[str, list[str]]:
        """Return who lives there: user → units, the default server's first."""
        found: dict[str, list[str]] = {}
        for unit, known in sorted(self.state.units.items()):
            if known.get("user") and (known.get("home") or "") == microserver:
                found.setdefault(known["user"], []).append(unit)
        return {
            user: sorted(units, key=lambda unit, user=user: (unit != unit_name(user), unit))  # type: ignore[misc]
            for user, units in sorted(found.items())
        }

    def progress(self, microserver: str) -> dict[str, Any] | None:
        """Return how far its drain is, without asking anybody; None where it is not drained."""
        drain = self.state.microservers.get(microserver, {}).get("drain")
        if drain is None:
            return None
        moving = [one for one in self.state.moves.values() if one["from"] == microserver and one["phase"] != DONE]
        left = len(self.residents(microserver))
        return {**drain, "left": left, "moving": len(moving), "moved": max(0, drain["of"] - left)}

    async def drained(
        self, microserver: str, size: bool = False, besides: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        """Return each workspace there: its server, where it would go (or why nowhere), how its move stands; `size`: bytes too.

        `scratch`: it is no workspace, but a server that is there away from its files.
        """
        facts, states = await self.placing.facts(), await self.units.states(microserver)
        residents = self.residents(microserver)  # behind the questions: who has moved meanwhile is not told
        there = {**residents, **self._astray(microserver, states)}
        units = {user: mine[0] for user, mine in there.items()}
        demands = [replace(self.placing.demand(unit), home="") for unit in units.values()]
        farm = [one for one in self.placing.farm(facts) if one.name != microserver and one.name not in besides]
        plan = place_all(demands, farm, self.placing.settings.rank)
        shown = [_worst(states.get(unit, "exited") for unit in mine) for mine in there.values()]
        sizes = (
            await asyncio.gather(*(self._size(user, microserver) for user in there)) if size else [None] * len(there)
        )
        return [
            {
                "user": user, "agent": user.removeprefix("agent-") if AGENT_USER.fullmatch(user) else "", "units": there[user], "state": state,
                "to": plan.where[unit], "why": plan.why(unit) if farm else "there is no other microserver", "bytes": bytes_, "move": self.told(user) or None, "scratch": user not in residents,
            }
            for (user, unit), state, bytes_ in zip(units.items(), shown, sizes, strict=True)
        ]  # fmt: skip

    def _astray(self, microserver: str, states: Mapping[str, str]) -> dict[str, list[str]]:
        """Return whose servers are there away from their files, and may run: user → units."""
        return {
            known["user"]: [unit]
            for unit, known in sorted(self.state.units.items())
            if known.get("scratch") and known["microserver"] == microserver and states.get(unit, "exited") != "exited"
        }

    async def _size(self, user: str, there: str) -> int | None:
        try:
            told = await within(self.microservers[there].ask("measure", workspace=workspace_of(user)), SIZE_SECONDS)
            return int(told["bytes"])
        except (AgentFarmError, KeyError, asyncio.TimeoutError):
            return None

    # -- one that is lost ------------------------------------------------------------------------------------------

    async def snapshot(self, microserver: str) -> list[dict[str, Any]]:
        """Keep each workspace there on this machine: {user, snapshot, bytes, changed}, or `why` there is none now."""
        found = []
        for user in self.residents(microserver):
            try:
                kept = await self.snapshots.save(self.microservers[microserver], workspace_of(user))
                found.append(
                    {
                        "user": user,
                        "snapshot": kept["name"],
                        "bytes": kept["bytes"],
                        "changed": kept["changed"],
                        "why": "",
                    }
                )
            except AgentFarmError as error:
                found.append({"user": user, "snapshot": None, "bytes": 0, "changed": 0, "why": error.detail})
        return found

    def give_up_lost(self, name: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Let agents of a microserver that is lost go on elsewhere, with a snapshot, or without their files. Raises Conflict, Invalid.

        asked: {restore: a snapshot's name, latest, or "": without files; users: none: all; by}. What is there stays there; should it come
        back, servers that still run there are stopped before anything else.
        """
        restore, wanted = str(asked.get("restore") or ""), asked.get("users") or None
        if not self.microservers[name].silent:
            raise Conflict(
                f"{name} answers: it is not lost", hint=f"agentfarm microserver drain {name} moves what is there"
            )
        done = []
        for user, units in self.residents(name).items():
            if wanted is not None and user not in wanted:
                continue
            try:
                kept = self.snapshots.find(workspace_of(user), restore)["name"] if restore else ""
            except NotFound as error:
                done.append({"user": user, "snapshot": None, "why": f"{error.detail}: its tasks wait for {name}"})
                continue
            away = [unit for unit in units if self.state.units[unit].get("scratch")]
            for unit in [unit for unit in units if unit not in away]:
                known = self.state.units[unit]
                known |= {"unwanted": True, "given_up": str(asked.get("by", "")), "home": name if kept else ""}
                known.pop("promise", None)
            for unit in away:  # what it does there needs no files: it goes on until they have come
                self.state.units[unit]["home"] = name if kept else ""
            if kept:
                self.state.moves[user] = {
                    "from": name, "to": "", "phase": "waiting", "up": False, "stop": "stop" if away else "", "why": "", "at": time.time(), "snapshot": kept,
                }  # fmt: skip
            done.append({"user": user, "snapshot": kept or None, "why": "" if kept else "it goes on without its files"})
        self.state.save()
        self._woken.set()
        return done

    # -- the moves themselves ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Lead all moves, for ever; those of a daemon that died are begun anew."""
        while True:
            self._woken.clear()
            for user, one in self.state.moves.items():
                if one["phase"] != DONE and user not in self._going:
                    self._going[user] = asyncio.create_task(self._lead(user, one), name=f"move of {user}")
            self._forsake()
            await self._tidy()
            waiting = asyncio.create_task(self._woken.wait())
            await asyncio.wait(
                [waiting, *self._going.values()], timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            waiting.cancel()
            for user, task in list(self._going.items()):
                if task.done():
                    del self._going[user]
                    if not task.cancelled():
                        task.result()  # a mistake of ours ends the daemon, loudly

    def _forsake(self) -> None:
        """Let go of servers that keep no files where nobody has answered for long: they may start elsewhere."""
        now = time.monotonic()
        for name, micro in self.microservers.items():
            if not micro.silent:
                self._silent.pop(name, None)
            elif now - self._silent.setdefault(name, now) > self._patience:
                for unit, known in self.state.units.items():
                    up = known.get("microserver") == name and known.get("promise")
                    if up and not self.placing.demand(unit).home:
                        log.warning(
                            "unit %s on %s, which is silent, keeps no files: it may start elsewhere", unit, name
                        )
                        known |= {"unwanted": True, "given_up": "the farm: it keeps no files", "promise": None}
                        self.state.save()

    async def stop(self) -> None:
        """Break off what is under way; the next daemon begins it anew."""
        for task in self._going.values():
            task.cancel()
        await asyncio.gather(*self._going.values(), return_exceptions=True)

    async def _lead(self, user: str, one: dict[str, Any]) -> None:
        """Try until the workspace has moved."""
        pause = 1.0
        while self.state.moves.get(user) is one and one["phase"] != DONE:
            if user not in self.residents(one["from"]):  # that microserver was removed from the farm
                self.end(user)
                return
            try:
                if not one.get("snapshot") or one["stop"]:
                    await self._ended(user, one)
                async with self._turns, self._locks.setdefault(user, asyncio.Lock()):
                    await self._move(user, one)
                return
            except (AgentFarmError, OSError) as error:  # OSError: of this machine, e.g. no process can be started
                one["why"] = error.detail if isinstance(error, AgentFarmError) else str(error)
                log.warning("the workspace of %s has not moved yet: %s", user, one["why"])
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)

    async def _ended(self, user: str, one: dict[str, Any]) -> None:
        """Return when no server of the user's runs; end what runs where that is asked. Raises FleetError: nobody can say."""
        while self._starting[user]:  # none begins behind it: `check` refuses
            one["why"] = "its server is being started"
            await asyncio.sleep(0.2)
        for unit in [unit for unit, known in self.state.units.items() if known.get("user") == user]:
            while (shown := await self.units.show(unit))["state"] != "exited":
                if shown["state"] == "unknown":
                    raise FleetError(f"{one['from']} cannot be asked: {shown.get('reason')}")
                if one["stop"]:
                    await self.units.stop(unit, one["stop"] == "kill")
                else:
                    one["why"] = "its server has not ended yet"
                    await asyncio.sleep(1.0)

    async def _move(self, user: str, one: dict[str, Any]) -> None:
        unit = self.residents(one["from"])[user][0]
        demand = self.placing.demand(unit, moves=True)
        to = await self._choose(user, one, unit)
        copied: Mapping[str, Any] = {"digest": "", "bytes": 0}
        if demand.home:  # else it keeps no files
            one |= {"phase": "copying", "why": ""}
            self.state.save()
            uid = self.state.uid(user) if (await to.facts()).get("own_users") else None
            try:
                copied = await self._copy(user, one, to, uid)
            finally:
                self._so_far.pop(user, None)
        log.info("the workspace of %s is on %s: %d bytes, %s", user, to.name, copied["bytes"], copied["digest"][:12])
        for mine in [name for name, known in self.state.units.items() if known.get("user") == user]:
            await self.units.take_back(mine)
        self._switch(user, one, to.name, copied)

    async def _copy(self, user: str, one: Mapping[str, Any], to: AnyMicroserver, uid: int | None) -> dict[str, Any]:
        workspace = workspace_of(user)
        if not one.get("snapshot"):
            return await copying.copy(
                self._from(one), to, workspace, uid, lambda *part: self._so_far.update({user: part})
            )
        kept = self.snapshots.find(workspace, one["snapshot"])
        async with aclosing(self.snapshots.read(workspace, kept["name"])) as stream:
            return await copying.put(
                to, workspace, uid, kept, stream, lambda part: self._so_far.update({user: (part, kept["bytes"])})
            )

    def _from(self, one: Mapping[str, Any]) -> AnyMicroserver:
        if (found := self.microservers.get(one["from"])) is None:
            raise FleetError(f"{one['from']} is no microserver of the farm any more")
        return found

    async def _choose(self, user: str, one: dict[str, Any], unit: str) -> AnyMicroserver:
        """Return where it goes: where it was to go before, as long as that one answers. Raises NoMicroserverFits."""
        before = self.microservers.get(one["to"])
        if before is not None and before.state == "ready" and not before.silent:
            return before
        self.state.leave(user, one["to"])
        one |= {"to": "", "promise": None}
        demand = replace(self.placing.demand(unit), home="")
        farm = [micro for micro in self.placing.farm(await self.placing.facts(), unit) if micro.name != one["from"]]
        chosen = choose_microserver(demand, farm, self.placing.settings.rank)
        one |= {"to": chosen.microserver, "promise": promise_of(demand, chosen.gpus)}
        self.state.save()
        return self.microservers[chosen.microserver]

    def _switch(self, user: str, one: dict[str, Any], to: str, copied: Mapping[str, Any]) -> None:
        """From here on its home is there: in one write with what is left behind."""
        for known in self.state.units.values():
            if known.get("user") == user:
                if known.pop("scratch", None):
                    self.state.leave(user, known["microserver"])
                known |= {"home": to, "microserver": to, "port": 0}
                known.pop("promise", None)
        one |= {"phase": DONE, "why": "", "digest": copied["digest"], "bytes": copied["bytes"], "ended_at": time.time()}
        one.pop("promise", None)
        if not one.get("snapshot"):  # else what is there is newer than what was restored: it is kept
            self.state.leave(user, one["from"])
        self.state.save()
        self._woken.set()

    # -- what is left behind ---------------------------------------------------------------------------------------

    async def _tidy(self) -> None:
        for name, users in list(self.state.leftovers.items()):
            micro = self.microservers.get(name)
            for user in list(users):
                if micro is not None and not micro.silent:
                    await self._remove(micro, user, users)
            if not users or micro is None:
                del self.state.leftovers[name]
                self.state.save()

    async def _remove(self, micro: AnyMicroserver, user: str, users: list[str]) -> None:
        lock = self._locks.setdefault(user, asyncio.Lock())
        if lock.locked():  # it moves: later
            return
        async with lock:
            mine = [known for known in self.state.units.values() if known.get("user") == user]
            there = any(known.get("scratch") and known["microserver"] == micro.name for known in mine)
            here = (self.placing.home(user), self.state.moves.get(user, {}).get("to"))
            wanted = there or micro.name in here
            try:
                if not wanted:
                    await micro.ask("discard", workspace=workspace_of(user))
            except AgentFarmError as error:
                log.info("what is left of %s on %s stays for now: %s", user, micro.name, error.detail)
                return
            users.remove(user)
            self.state.save()


def _worst(states: Iterable[str]) -> str:
    """Return running where one of a user's servers runs, unknown where nobody can say of one, else exited."""
    found = set(states)
    return next((state for state in ("running", "starting", "unknown") if state in found), "exited")

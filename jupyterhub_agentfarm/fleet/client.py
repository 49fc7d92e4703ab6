"""Asks the fleet daemon over its unix socket: for the hub (spawner) and for the service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from agentfarm_sdk.errors import AgentFarmError, from_problem

from ..errors import FleetError, NoMicroserverFits, StartError


class FleetClient:
    """One daemon. Every method raises FleetError when it cannot be reached, else what it answers."""

    def __init__(self, socket_path: str | Path, *, timeout: float = 60.0) -> None:
        self.socket_path, self.timeout = str(socket_path), timeout

    async def place(self, unit: str, demand: dict[str, Any] | None = None, user: str = "") -> dict[str, Any]:
        """Choose microserver, ip and port of a unit. Raises NoMicroserverFits."""
        return await self._call("PUT", f"/servers/{quote(unit)}/place", {"demand": demand or {}, "user": user})

    async def start(
        self, unit: str, *, user: str, server: str, args: list[str], env: dict[str, str], agent: str | None = None,
        demand: dict[str, Any] | None = None, limits: dict[str, Any] | None = None, turn: float = 0.0,
    ) -> dict[str, Any]:  # fmt: skip
        """Start a unit; one that runs is left as it is. Raises NoMicroserverFits, UserError.

        turn: for so many seconds at most it waits for its turn on the microserver where it was placed (0: it does not).
        """
        body = {
            "user": user,
            "server": server,
            "args": args,
            "env": env,
            "agent": agent,
            "demand": demand or {},
            "limits": limits or {},
            "turn": turn > 0,
        }
        patient = FleetClient(self.socket_path, timeout=max(self.timeout, turn))
        return await patient._call("PUT", f"/servers/{quote(unit)}", body)

    async def before(self, unit: str) -> int | None:
        """Return how many start before a unit that waits for its turn to start; None: it does not wait."""
        found: int | None = (await self._call("GET", f"/servers/{quote(unit)}/turn"))["before"]
        return found

    async def show(self, unit: str) -> dict[str, Any]:
        """Return {state: running, exited or unknown, exit_code, microserver, ip, port …}. Raises NotFound."""
        return await self._call("GET", f"/servers/{quote(unit)}")

    async def stop(self, unit: str, now: bool = False) -> dict[str, Any]:
        """Stop a unit; returns when it is gone. Raises NotFound."""
        return await self._call("DELETE", f"/servers/{quote(unit)}" + ("?now=1" if now else ""))

    async def logs(self, unit: str) -> list[str]:
        """Return the last lines of the unit's log. Raises NotFound."""
        return list((await self._call("GET", f"/servers/{quote(unit)}/logs"))["lines"])

    async def log(self, unit: str, lines: int = 50, after: str = "", wait: float = 0.0) -> dict[str, Any]:
        """Return {lines, cursor, microserver}: the last lines, or those behind a cursor, for which it waits up to `wait` seconds.

        Raises NotFound, Invalid.
        """
        asked = urlencode({"lines": lines, "after": after, "wait": wait})
        return await self._call("GET", f"/servers/{quote(unit)}/logs?{asked}")

    async def notices(self, after: int) -> dict[str, Any]:
        """Return {items: [{id, kind, at, microserver …}] behind that number, silent: {name: {since, why, lost}}}."""
        return await self._call("GET", f"/notices?after={after}")

    async def set_lost(self, name: str, lost: bool, why: str) -> None:
        """Say whether a silent microserver counts as lost. Raises NotFound."""
        await self._call("PUT", f"/microservers/{quote(name)}/silence", {"lost": lost, "why": why})

    async def units(self) -> list[dict[str, Any]]:
        return list((await self._call("GET", "/servers"))["items"])

    async def microservers(self) -> list[dict[str, Any]]:
        return list((await self._call("GET", "/microservers"))["items"])

    async def register(self, name: str, registration: dict[str, Any], by: str = "") -> dict[str, Any]:
        """Take a microserver in: {ssh, host_keys, labels, taints, login, measured}; returns it, `silent` saying why it cannot be asked yet."""
        return await self._call("PUT", f"/microservers/{quote(name)}", {**registration, "by": by})

    async def remove(self, name: str, force: bool = False, by: str = "") -> None:
        """Forget a microserver. Raises NotFound, Conflict."""
        words = {**({"force": "1"} if force else {}), "by": by}
        await self._call("DELETE", f"/microservers/{quote(name)}?{urlencode(words)}")

    async def joining(self) -> dict[str, Any]:
        """Return {public_key, farm: its id, helper: SHA-256 of its release's, microservers: {name: {ssh, login, host_keys}}}."""
        return await self._call("GET", "/ssh/key")

    async def examine(self, name: str) -> dict[str, Any]:
        """Return {seen, offset} for findings.judge. Raises NotFound, Invalid: its helper is of another release."""
        return await self._call("GET", f"/microservers/{quote(name)}/examination")

    async def disconnect(self) -> None:
        """End the connections to all microservers: the farm is being stopped."""
        await self._call("DELETE", "/connections")

    async def explain(self, unit: str) -> dict[str, Any]:
        """Return {unit, microserver, reasons: {name: why not, or null}, why, feasible, change, demand …}."""
        return await self._call("GET", f"/placements/explain?unit={quote(unit)}")

    async def plan(self, units: list[str]) -> dict[str, Any]:
        """Return {where: {unit: microserver or null}, why, feasible (later or never), away: by unit that goes nowhere}; nothing is promised."""
        return await self._call("POST", "/placements/plan", {"units": units})

    async def rebalance(self, gain: float | None = None) -> dict[str, Any]:
        """Return {moves: [{unit, user, microserver, to, gain, why}], servers, rank, gain}; nothing is moved."""
        return await self._call("GET", "/placements/rebalance" + ("" if gain is None else f"?gain={gain}"))

    async def settings(self) -> dict[str, Any]:
        """Return the farm's settings of placement."""
        return await self._call("GET", "/placements/settings")

    async def set_settings(self, change: dict[str, Any]) -> dict[str, Any]:
        """Change what is given. Raises Invalid."""
        return await self._call("PUT", "/placements/settings", change)

    async def put_demand(
        self, unit: str, user: str, resources: dict[str, Any], group: str | None, scratch: bool = False
    ) -> None:
        """Tell what a unit's owner set; holds from its next start, `scratch` away from its files. Raises Invalid."""
        body = {"user": user, "resources": resources, "group": group, "scratch": scratch}
        await self._call("PUT", f"/demands/{quote(unit)}", body)

    async def cordon(self, name: str, reason: str = "", by: str = "", rev: int | None = None) -> dict[str, Any]:
        """Raises NotFound, Conflict."""
        return await self._call("POST", f"/microservers/{quote(name)}/cordon", {"reason": reason, "by": by, "rev": rev})

    async def uncordon(self, name: str, reason: str = "", by: str = "", rev: int | None = None) -> dict[str, Any]:
        """Raises NotFound, Conflict."""
        return await self._call(
            "POST", f"/microservers/{quote(name)}/uncordon", {"reason": reason, "by": by, "rev": rev}
        )

    async def drain(
        self, name: str, until: str = "finish-step", deadline: float | None = None, reason: str = "", by: str = "", rev: int | None = None,
        preview: bool = False, besides: Sequence[str] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """Begin a drain, or with `preview` only tell what would go where, with `besides` drained too. Raises NotFound, Conflict."""
        body: dict[str, Any] = {"until": until, "deadline": deadline, "reason": reason, "by": by, "rev": rev}
        body |= {"preview": preview, "besides": list(besides)}
        return await self._call("POST", f"/microservers/{quote(name)}/drain", body)

    async def drains(self) -> dict[str, Any]:
        """Return {drains: [{microserver, until, deadline, of, left, moved, workspaces}], moves: [{user, from, to, phase, up, why}]}."""
        return await self._call("GET", "/drains")

    async def snapshot(self, name: str) -> list[dict[str, Any]]:
        """Keep the workspaces of a microserver on this machine; takes as long as reading them."""
        patient = FleetClient(self.socket_path, timeout=24 * 3600)
        return list((await patient._call("POST", f"/microservers/{quote(name)}/snapshot"))["items"])

    async def lost(self, name: str, restore: str, users: list[str], by: str) -> list[dict[str, Any]]:
        """Let what lives on a silent microserver go on elsewhere, with a snapshot or (restore "") without files. Raises Conflict."""
        body = {"restore": restore, "users": users, "by": by}
        return list((await self._call("POST", f"/microservers/{quote(name)}/lost", body))["items"])

    async def drained(self, name: str) -> None:
        """Say that nothing is left there: it stays cordoned."""
        await self._call("POST", f"/microservers/{quote(name)}/drained")

    async def move(self, user: str, up: bool = False, stop: str = "", away: str = "") -> dict[str, Any]:
        """Move a user's workspace away from where it is (`away`: only from there), once its servers have ended (`stop`, `kill`: end them)."""
        return await self._call("PUT", f"/moves/{quote(user, safe='')}", {"up": up, "stop": stop, "away": away})

    async def end_move(self, user: str) -> None:
        """Forget a move; again is harmless."""
        await self._call("DELETE", f"/moves/{quote(user, safe='')}")

    async def mark(self, name: str, change: dict[str, Any], by: str = "", rev: int | None = None) -> dict[str, Any]:
        """Change labels and taints (null takes one away) and what is kept for the system. Raises NotFound, Conflict."""
        return await self._call("PATCH", f"/microservers/{quote(name)}", {**change, "by": by, "rev": rev})

    async def put_user(self, name: str) -> dict[str, Any]:
        """Make the hub user `agent-…`; again is harmless. Raises Forbidden."""
        return await self._call("PUT", f"/users/{quote(name)}")

    async def delete_user(self, name: str) -> None:
        """Retire the hub user `agent-…`; again is harmless. Raises Forbidden."""
        await self._call("DELETE", f"/users/{quote(name)}")

    async def _call(self, verb: str, path: str, body: Any = None) -> dict[str, Any]:
        # a connection for each call: rare, on this machine, and right on whatever event loop asks
        connector = aiohttp.UnixConnector(path=self.socket_path)
        timeout = aiohttp.ClientTimeout(total=self.timeout)
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                async with session.request(verb, f"http://fleet{path}", json=body) as answer:
                    value = json.loads(await answer.read() or b"{}")
                    status = answer.status
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise FleetError(
                "the fleet daemon cannot be reached", hint="it is started by agentfarm up; see its log", retry_after=2
            ) from error
        if status >= 400:
            raise _as_ours(value)
        return value  # type: ignore[no-any-return]


def _as_ours(problem: dict[str, Any]) -> AgentFarmError:
    """Turn the daemon's problem document into the error that it stands for."""
    if problem.get("type") == NoMicroserverFits.type:
        return NoMicroserverFits(problem.get("refusals", {}))
    kind = {FleetError.type: FleetError, StartError.type: StartError}.get(str(problem.get("type")))
    return kind(problem["detail"], hint=problem.get("hint", "")) if kind else from_problem(problem)

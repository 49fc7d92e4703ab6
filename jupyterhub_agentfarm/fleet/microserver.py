"""One microserver: asks its helper, keeps its last facts. The local one's helper is a subprocess, another's is reached over SSH.

What cannot be asked is `unknown`, never dead: only a helper's answer says that a unit has ended.
"""

from __future__ import annotations

import abc
import asyncio
import json
import logging
import sys
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from agentfarm_sdk.waiting import within

from ..errors import FleetError, Invalid, StartError
from .connection import Connection, piped
from .health import offset_of
from .helper.checks import VERSION
from .kept import Kept
from .zipped import unpack

log = logging.getLogger("agentfarm.fleet")
FACTS_SECONDS = 10.0  # for which facts are good
WAITING = 2  # questions at a time that wait for lines of a log: the others need the connection too
SECONDS = {
    "show": 10.0,
    "list": 15.0,
    "facts": 10.0,
    "logs": 20.0,
    "disks": 40.0,
    "measure": 120.0,
    "discard": 120.0,
}  # how long an answer may take; others: HELPER_SECONDS
HELPER_SECONDS = 45.0
FIGURES = ("memory", "memory_free", "cpus", "load", "disk", "disk_free", "uptime")  # that every microserver has
CHANGING = ("start", "stop", "forget")  # what it has units of
HELPER_AT = "/opt/agentfarm/helper.pyz"
VENV_AT = "/opt/agentfarm/venv"
COMMAND = f"/usr/bin/python3 -I {HELPER_AT}"


class _Told(dict[str, Any]):
    """An object of a helper's answer: a machine that says less than it must is one that cannot be asked, and no mistake of the daemon's."""

    def __missing__(self, name: str) -> Any:
        raise FleetError(f"the helper of a microserver told no {name}", hint="agentfarm doctor names the microserver")


class AnyMicroserver(abc.ABC):
    """A machine of the farm."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "ready"  # as the operator turned it: ready, cordoned, draining
        self.farm = ""  # whose units are asked about, where farms share the machine
        self.unwalled = ""  # what is wrong with the walls around its servers
        self.told_at: float | None = None  # when its last facts came, epoch seconds
        self.disks: dict[str, Any] = {}  # how its disks are, as it was told last
        self._kept_facts: Kept[dict[str, Any]] = Kept(self._look_at_facts)
        self._kept_units: Kept[list[dict[str, Any]]] = Kept(self._look_at_units)
        self._waiting = asyncio.Semaphore(WAITING)

    @abc.abstractmethod
    async def _exchange(self, request: bytes, seconds: float) -> bytes:
        """Hand the helper a request, return what it wrote. Raises FleetError."""

    @abc.abstractmethod
    def running(self) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """Run a helper whose input and output are streams, while the block lasts. Raises FleetError."""

    @abc.abstractmethod
    def program(self, name: str) -> str:
        """Return where the microserver has a program of the farm, e.g. jupyterhub-singleuser."""

    @property
    def silent(self) -> str:
        """Why it cannot be asked now; "" where it can."""
        return ""

    @property
    def silent_since(self) -> float | None:
        """Since when, epoch seconds, where the connection knows."""
        return None

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send the helper one request.

        Raises:
            FleetError: it cannot be reached, started, or does not answer.  Invalid: it refuses what is asked.  StartError.
        """
        try:
            return self.answer(await self._exchange(self.request(op, **fields), SECONDS.get(op, HELPER_SECONDS)))
        finally:
            if op in CHANGING:
                self._kept_units.stale()

    def request(self, op: str, **fields: Any) -> bytes:
        """Return a request as the helper reads it: one line, in the farm's name."""
        return json.dumps({"v": VERSION, **({"farm": self.farm} if self.farm else {}), "op": op, **fields}).encode()

    def answer(self, out: bytes) -> dict[str, Any]:
        """Return what a helper's answer says. Raises as `ask`."""
        try:
            answer = json.loads(out, object_hook=_Told)
        except (ValueError, RecursionError):
            last = out.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
            raise FleetError(f"the helper on {self.name} failed: {last[0][:300]}") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("error", {}), dict):
            raise FleetError(f"the helper on {self.name} gave an answer that is none")
        if "error" in answer:
            error = answer["error"]
            kind = {"invalid": Invalid, "start": StartError}.get(error["type"], FleetError)
            raise kind(f"{self.name}: {error['detail']}" if kind is FleetError else error["detail"], hint=error["hint"])
        return answer["ok"]  # type: ignore[no-any-return]

    async def facts(self, patience: float | None = None, oldest: float | None = None) -> dict[str, Any]:
        """Return what the machine has, at most FACTS_SECONDS old, or as Kept.get tells. Raises FleetError."""
        if self.silent:
            raise FleetError(self.silent, hint="see its power and network", retry_after=2)
        return await self._kept_facts.get(FACTS_SECONDS, patience, oldest)

    async def look(self) -> dict[str, Any]:
        """Return what it has now, also while it does not count as reachable. Raises FleetError."""
        return await self._kept_facts.get(0.0)

    async def units(self, fresh: float = 0.0, patience: float | None = None) -> list[dict[str, Any]]:
        """Return its units, at most so old, or as Kept.get tells. Raises FleetError."""
        if self.silent:
            raise FleetError(self.silent, hint="see its power and network", retry_after=2)
        return await self._kept_units.get(fresh, patience)

    @property
    def units_asked_at(self) -> float:
        """When it was asked for the units that `units` gave last (monotonic)."""
        return self._kept_units.asked_at

    async def log(self, unit: str, lines: int, after: str, wait: float) -> dict[str, Any]:
        """Return {lines, cursor} of a unit's log. Too many wait: it is answered at once. Raises as `ask`."""
        if not wait or self._waiting.locked():
            return await self.ask("logs", unit=unit, lines=lines, after=after)
        async with self._waiting:
            return await self.ask("logs", unit=unit, lines=lines, after=after, wait=wait)

    async def look_at_disks(self) -> None:
        """Ask how its disks are, which takes its time. Raises FleetError."""
        self.disks = await self.ask("disks")

    async def _look_at_units(self) -> list[dict[str, Any]]:
        return list((await self.ask("list"))["items"])

    async def _look_at_facts(self) -> dict[str, Any]:
        """Ask for facts, and tell what follows from two looks: how busy it was in between."""
        old = self.last_facts()
        try:
            new = await self._ask_facts()
        except Invalid as error:
            raise FleetError(
                f"its helper is of another release: {error.detail}", hint="agentfarm microserver add"
            ) from error
        if not isinstance(new, dict) or not all(isinstance(new.get(name), int | float) for name in FIGURES):
            raise FleetError(f"the helper on {self.name} told figures that are none")
        self.told_at = time.time()
        if new.get("gpus") is None:  # they did not answer: that is not to have none
            new["gpus"] = old.get("gpus") or []
        busy, was = new.get("cpu_time"), old.get("cpu_time")
        if busy and was and new.get("boot_id") == old.get("boot_id") and busy["all"] > was["all"]:
            new["cpu_ratio"] = round((busy["busy"] - was["busy"]) / (busy["all"] - was["all"]), 4)
        return new

    async def _ask_facts(self) -> dict[str, Any]:
        return await self.ask("facts")

    def outdated(self) -> None:
        """Have it asked anew: it may have been restarted."""
        self._kept_facts.stale()

    def last_facts(self) -> dict[str, Any]:
        """Return what it said last, however long ago; {} where it never answered."""
        return self._kept_facts.value or {}


class LocalMicroserver(AnyMicroserver):
    """The machine that the daemon runs on: units are processes, its helper a copy in the state directory, so that it stays the daemon's release."""

    def __init__(self, name: str, state: Path) -> None:
        super().__init__(name)
        folder = str(unpack(state / "helper"))
        self._words = [sys.executable, "-I", folder, "--process", str(state)]
        self._asking = asyncio.Semaphore(8)

    def program(self, name: str) -> str:
        beside = Path(sys.executable).parent / name
        return str(beside) if beside.exists() else name

    async def _exchange(self, request: bytes, seconds: float) -> bytes:
        async with self._asking:
            process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                out, err = await within(process.communicate(request), seconds)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
                raise FleetError(
                    f"the helper on {self.name} does not answer", hint="see the load of that machine"
                ) from None
        return out or err

    def running(self) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        return piped(*self._words)

    async def _ask_facts(self) -> dict[str, Any]:
        known = self.last_facts().get("own_users")
        if known is None:  # whether servers get users of their own is tried once
            return await self.ask("facts", python=sys.executable)
        fresh = await self.ask("facts")
        first = {name: self.last_facts()[name] for name in ("own_users", "isolation", "walls")} if not known else {}
        return fresh | first


class SshMicroserver(AnyMicroserver):
    """A machine that answers SSH. Its units listen on sockets; the daemon brings each to a port of its own."""

    def __init__(self, name: str, connection: Connection) -> None:
        super().__init__(name)
        self.connection = connection

    @property
    def silent(self) -> str:
        return "" if self.connection.up else self.connection.reason

    @property
    def silent_since(self) -> float | None:
        return self.connection.since

    async def _ask_facts(self) -> dict[str, Any]:
        """Ask for facts, and hold its clock against ours."""
        asked_at, began = time.time(), time.monotonic()
        told = await self.ask("facts")
        offset, unsure = offset_of(asked_at, time.monotonic() - began, told)
        told.update(clock_offset=round(offset, 3), clock_unsure=round(unsure, 3))
        return told

    def program(self, name: str) -> str:
        return f"{VENV_AT}/bin/{name}"

    async def _exchange(self, request: bytes, seconds: float) -> bytes:
        return await self.connection.execute(COMMAND, request, seconds)

    def running(self) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        return self.connection.running(COMMAND)

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
from pathlib import Path
from typing import Any

from ..errors import FleetError, Invalid, StartError
from . import helper
from .connection import Connection
from .helper.checks import VERSION

log = logging.getLogger("agentfarm.fleet")
FACTS_SECONDS = 10.0
SECONDS = {
    "show": 10.0,
    "list": 15.0,
    "facts": 10.0,
    "logs": 15.0,
}  # how long an answer may take; others: HELPER_SECONDS
HELPER_SECONDS = 45.0
HELPER_AT = "/opt/agentfarm/helper.pyz"
VENV_AT = "/opt/agentfarm/venv"


class AnyMicroserver(abc.ABC):
    """A machine of the farm."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "ready"  # as the operator turned it: ready, cordoned, draining
        self.taints: dict[str, str] = {}  # of its health: name -> reason
        self.farm = ""  # whose units are asked about, where farms share the machine
        self._facts: dict[str, Any] = {}
        self._facts_at = -1e9
        self._fresh = asyncio.Lock()  # facts are asked for once, not by everybody at the same time

    @abc.abstractmethod
    async def _exchange(self, request: bytes, seconds: float) -> bytes:
        """Hand the helper a request, return what it wrote. Raises FleetError."""

    @abc.abstractmethod
    def program(self, name: str) -> str:
        """Return where the microserver has a program of the farm, e.g. jupyterhub-singleuser."""

    @property
    def silent(self) -> str:
        """Why it cannot be asked now; "" where it can."""
        return ""

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send the helper one request.

        Raises:
            FleetError: it cannot be reached, started, or does not answer.  Invalid: it refuses what is asked.  StartError.
        """
        whose = {"farm": self.farm} if self.farm else {}
        request = json.dumps({"v": VERSION, **whose, "op": op, **fields}).encode()
        out = await self._exchange(request, SECONDS.get(op, HELPER_SECONDS))
        try:
            answer = json.loads(out)
        except ValueError:
            last = out.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
            raise FleetError(f"the helper on {self.name} failed: {last[0][:300]}") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("error", {}), dict):
            raise FleetError(f"the helper on {self.name} gave an answer that is none")
        if "error" in answer:
            error = answer["error"]
            kind = {"invalid": Invalid, "start": StartError}.get(error["type"], FleetError)
            raise kind(f"{self.name}: {error['detail']}" if kind is FleetError else error["detail"], hint=error["hint"])
        return answer["ok"]  # type: ignore[no-any-return]

    async def facts(self) -> dict[str, Any]:
        """Return what the machine has, at most FACTS_SECONDS old. Raises FleetError."""
        if self.silent:
            raise FleetError(self.silent, hint="see its power and network", retry_after=2)
        return await self.look()

    async def look(self) -> dict[str, Any]:
        """Return the same also while it does not count as reachable. Raises FleetError."""
        async with self._fresh:
            if time.monotonic() - self._facts_at > FACTS_SECONDS:
                self._facts, self._facts_at = await self._ask_facts(), time.monotonic()
        return self._facts

    async def _ask_facts(self) -> dict[str, Any]:
        return await self.ask("facts")

    def outdated(self) -> None:
        """Have it asked anew: it may have been restarted."""
        self._facts_at = -1e9

    def last_facts(self) -> dict[str, Any]:
        """Return what it said last, however long ago; {} where it never answered."""
        return self._facts


class LocalMicroserver(AnyMicroserver):
    """The machine that the daemon runs on: units are processes, its helper is this package's folder."""

    def __init__(self, name: str, state: Path) -> None:
        super().__init__(name)
        self.state_directory = state
        self._asking = asyncio.Semaphore(8)

    def program(self, name: str) -> str:
        beside = Path(sys.executable).parent / name
        return str(beside) if beside.exists() else name

    async def _exchange(self, request: bytes, seconds: float) -> bytes:
        folder = str(Path(helper.__file__).parent)
        async with self._asking:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", folder, "--process", str(self.state_directory),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                out, err = await asyncio.wait_for(process.communicate(request), seconds)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
                raise FleetError(
                    f"the helper on {self.name} does not answer", hint="see the load of that machine"
                ) from None
        return out or err

    async def _ask_facts(self) -> dict[str, Any]:
        known = self._facts.get("own_users")
        if known is None:  # whether servers get users of their own is tried once
            return await self.ask("facts", python=sys.executable)
        fresh = await self.ask("facts")
        return fresh if known else fresh | {"own_users": False, "isolation": self._facts["isolation"]}


class SshMicroserver(AnyMicroserver):
    """A machine that answers SSH. Its units listen on sockets; the daemon brings each to a port of its own."""

    def __init__(self, name: str, connection: Connection) -> None:
        super().__init__(name)
        self.connection = connection

    @property
    def silent(self) -> str:
        return "" if self.connection.up else self.connection.reason

    def program(self, name: str) -> str:
        return f"{VENV_AT}/bin/{name}"

    async def _exchange(self, request: bytes, seconds: float) -> bytes:
        return await self.connection.execute(f"/usr/bin/python3 -I {HELPER_AT}", request, seconds)

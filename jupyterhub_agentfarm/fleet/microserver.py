"""One microserver: asks its helper, keeps its last facts. The local one's helper is a subprocess; SSH comes beside it here."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import FleetError, Invalid, StartError
from . import helper

FACTS_SECONDS = 10.0
HELPER_SECONDS = 30.0


class LocalMicroserver:
    """The machine that the daemon runs on."""

    def __init__(self, name: str, units: Path) -> None:
        self.name, self.units = name, units
        self.state = "ready"
        self.taints: dict[str, str] = {}  # of its health: name -> reason
        self._facts: dict[str, Any] = {}
        self._facts_at = -1e9
        self._asking = asyncio.Semaphore(8)

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send the helper one request.

        Raises:
            FleetError: it cannot be started or does not answer.  Invalid: it refuses what is asked.  StartError.
        """
        request = json.dumps({"v": helper.VERSION, "op": op, "root": str(self.units), **fields}).encode()
        async with self._asking:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", helper.__file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )  # fmt: skip
            try:
                out, err = await asyncio.wait_for(process.communicate(request), HELPER_SECONDS)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
                raise FleetError(
                    f"the helper on {self.name} does not answer", hint="see the load of that machine"
                ) from None
        try:
            answer = json.loads(out)
        except ValueError:
            last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
            raise FleetError(f"the helper on {self.name} failed: {last[0]}") from None
        if "error" in answer:
            error = answer["error"]
            kind = {"invalid": Invalid, "start": StartError}.get(error["type"], FleetError)
            raise kind(error["detail"], hint=error["hint"])
        return answer["ok"]  # type: ignore[no-any-return]

    async def facts(self) -> dict[str, Any]:
        """Return what the machine has, at most FACTS_SECONDS old."""
        if time.monotonic() - self._facts_at > FACTS_SECONDS:
            known = self._facts.get("own_users")
            asked = (
                {} if known is not None else {"python": sys.executable}
            )  # whether servers get users of their own is tried once
            fresh = await self.ask("facts", **asked)
            if known is False:
                fresh |= {"own_users": False, "isolation": self._facts["isolation"]}
            self._facts, self._facts_at = fresh, time.monotonic()
        return self._facts

"""WebSockets to kernels on microservers, through the Hub's proxy: whether one was cut, and when something came on it last."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import websockets

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from farmkit import PATIENCE, Farm, Kernel, Person, until

COUNTS = "import time\nwhile True:\n    print('.', flush=True)\n    time.sleep(0.5)"


class Wires:
    """A WebSocket to a kernel of one agent on each microserver, on which something comes twice a second; in a thread of its own."""

    def __init__(self, farm: Farm, person: Person, homes: Callable[[], Mapping[str, str]]) -> None:
        self.farm, self.person, self.homes = farm, person, homes  # homes: agent -> microserver
        self.agents: dict[str, str] = {}  # microserver -> agent
        self.heard: dict[str, float] = {}  # microserver -> when something came last
        self.cuts: dict[str, str] = {}  # microserver -> why its wire is cut
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[str, Any] = {}
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def mend(self) -> None:
        """Open those that are cut; wait until something has come on each."""
        for agent, micro in sorted(self.homes().items()):
            self.agents.setdefault(micro, agent)
        for micro, agent in self.agents.items():
            if micro not in self._tasks or self._tasks[micro].done():
                self.heard.pop(micro, None)
                self.cuts.pop(micro, None)
                self._tasks[micro] = asyncio.run_coroutine_threadsafe(self._keep(micro, agent), self._loop)
        until(lambda: set(self.heard) >= set(self.agents), 60, f"kernels are heard, of {self.agents}: {self.cuts}")

    async def _keep(self, micro: str, agent: str) -> None:
        kernels = self.farm.kernels(f"agent-{agent}", self.person.token)
        try:
            await self._listen(micro, kernels)
        except Exception as error:
            self.cuts[micro] = f"{type(error).__name__}: {error}"

    async def _listen(self, micro: str, kernels: Kernel) -> None:
        headers = {"Authorization": f"token {kernels.token}", "Host": kernels.host}
        async with httpx.AsyncClient(base_url=kernels.base, headers=headers, timeout=30 * PATIENCE) as http:
            made = await http.post("api/kernels", json={"name": "python3"})
            while made.status_code != 201:  # it was told of the share a moment ago, or has just been started
                await asyncio.sleep(0.5)
                made = await http.post("api/kernels", json={"name": "python3"})
        where = httpx.URL(kernels.base)
        url = f"ws://{kernels.host}{where.path}api/kernels/{made.json()['id']}/channels?session_id={uuid.uuid4().hex}"
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": "execute_request",
            "username": "",
            "session": "",
            "version": "5.3",
        }
        content = {
            "code": COUNTS,
            "silent": False,
            "store_history": False,
            "allow_stdin": False,
            "user_expressions": {},
        }
        message = {
            "header": header,
            "parent_header": {},
            "metadata": {},
            "channel": "shell",
            "buffers": [],
            "content": content,
        }
        async with websockets.connect(
            url, host=where.host, port=where.port, additional_headers={"Authorization": headers["Authorization"]},
            ping_interval=None,
        ) as wire:  # fmt: skip
            await wire.send(json.dumps(message))
            async for frame in wire:
                if json.loads(frame)["header"]["msg_type"] == "stream":
                    self.heard[micro] = time.monotonic()
        raise ConnectionError("it was closed")

    def close(self) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for one in others:
                one.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)

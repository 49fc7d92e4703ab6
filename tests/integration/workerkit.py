"""A worker kernel as the supervisor has it: a real process with a real IPython shell, lines over an inherited socket pair."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agentfarm_sdk

SHELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.extension_manager.load_extension("agentfarm_sdk.worker")
print("ready", flush=True)
for line in sys.stdin:
    shell.run_cell(line, store_history=True)
    print("done", flush=True)
"""


class Kernel:
    """A process with the worker in it; `told` are the lines that it said."""

    def __init__(self, folder: Path) -> None:
        self.ours, theirs = socket.socketpair()
        env = {"PATH": os.environ["PATH"], "HOME": str(folder), "AGENTFARM_FD": str(theirs.fileno()), "PYTHONUNBUFFERED": "1",
               "PYTHONPATH": str(Path(agentfarm_sdk.__file__).parents[1]), "IPYTHONDIR": str(folder / "ipython")}  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
            env=env, pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        self.told: list[dict[str, Any]] = []
        self.news = asyncio.Event()

    async def start(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(sock=self.ours)
        self.listening = asyncio.create_task(self.listen())
        assert await asyncio.to_thread(self.line) == "ready"

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    async def listen(self) -> None:
        while line := await self.reader.readline():
            self.told.append(json.loads(line))
            self.news.set()

    async def says(self, wanted: Callable[[dict[str, Any]], Any], seconds: float = 30) -> dict[str, Any]:
        async def wait() -> dict[str, Any]:
            while True:
                for one in self.told:
                    if wanted(one):
                        return one
                self.news.clear()
                await self.news.wait()

        return await asyncio.wait_for(wait(), seconds)

    def tell(self, **message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")

    async def execute(self, code: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(code + "\n")
        self.process.stdin.flush()
        said = []
        while (line := await asyncio.wait_for(asyncio.to_thread(self.line), 30)) != "done":
            said.append(line)
        return "\n".join(said)

    async def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        await asyncio.to_thread(self.process.wait)
        self.listening.cancel()
        self.writer.close()

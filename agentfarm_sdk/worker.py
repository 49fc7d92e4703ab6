"""The worker: an IPython extension in a kernel that the supervisor started. Takes runs from it, one after the other.

The loop has a thread and an event loop of its own: the kernel's main thread is a visitor's. What the visitor executes while
a run is going is recorded. Run, fence and token come over the inherited socket pair, never by environment or argv.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import traceback
from dataclasses import dataclass
from typing import Any

from . import settings
from .errors import AgentFarmError, Fenced
from .ledger import FarmLedger
from .loop import Loop
from .model import GatewayModel
from .protocol import LEASE_SECONDS, new_event
from .sockets import Sockets

FD = "AGENTFARM_FD"
_worker: Worker | None = None


def load_ipython_extension(shell: Any) -> None:
    """Start the worker. Does nothing in a kernel that no supervisor started."""
    global _worker
    number = os.environ.pop(FD, "")  # not for what the kernel itself starts
    if not number or _worker is not None:
        return
    connection = socket.socket(fileno=int(number))
    os.set_inheritable(connection.fileno(), False)
    _worker = Worker(connection)
    shell.events.register("pre_run_cell", _worker.visited)
    _worker.start()


@dataclass(frozen=True)
class Current:
    """What a visitor of a worker's kernel sees of the run that it works on, as of the moment of asking."""

    run: str
    status: str
    steps: int
    messages: list[dict[str, Any]]
    open_calls: list[str]

    def __repr__(self) -> str:
        doing = f", doing {', '.join(self.open_calls)}" if self.open_calls else ""
        return f"<run {self.run}: {self.status}, {self.steps} steps{doing}>"


def current() -> Current | None:
    """Return the run that this kernel works on; None between runs and outside a worker."""
    run, driving = (_worker.current, _worker.driving) if _worker else (None, None)
    if run is None or driving is None:
        return None
    fold = driving.fold
    open_calls = [f"{call.tool} ({call.call})" for call in fold.open_calls]
    return Current(run, fold.status, fold.steps, [dict(message) for message in fold.messages], open_calls)


class Worker:
    """Serves one supervisor over its socket. Ends the process when the supervisor is gone: it holds no lease then."""

    def __init__(self, connection: socket.socket) -> None:
        self.current: str | None = None
        self._connection = connection
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ledger: FarmLedger | None = None
        self._sockets: Sockets | None = None
        self.driving: Loop | None = None
        self._renewed = 0.0

    def start(self) -> None:
        threading.Thread(target=self._thread, name="agentfarm-worker", daemon=True).start()

    def _thread(self) -> None:
        """Serve; without the thread the kernel is of no use, so its end is the kernel's, and the supervisor sees it."""
        try:
            asyncio.run(self._serve())
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    def visited(self, info: Any) -> None:
        """Record what a visitor executes in the kernel of a run. (IPython's pre_run_cell; the visitor's thread)"""
        run, loop = self.driving, self._loop
        if run is None or loop is None or not getattr(info, "store_history", True):
            return
        event = new_event("person.executed", {"code": info.raw_cell})
        asyncio.run_coroutine_threadsafe(run.record(event), loop).add_done_callback(_told)

    async def _serve(self) -> None:
        import websockets.asyncio.client  # noqa: F401 - now, while the kernel is idle: the first run need not wait for it

        self._loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection(sock=self._connection)
        self._writer = writer
        work: asyncio.Task[None] | None = None
        while line := await reader.readline():
            message = json.loads(line)
            if "run" in message:
                if work is not None:
                    await work
                work = asyncio.create_task(self._work(message))
            if "token" in message and "run" not in message and self._ledger is not None:
                self._ledger.use_token(str(message["token"]))
            if "renewed" in message:
                self._renewed = float(message["renewed"])
                if self._ledger is not None:
                    self._ledger.renewed_at(self._renewed)
            if "cancel" in message and self.driving is not None:
                self.driving.cancel(str(message["cancel"]))
        os._exit(1)  # the supervisor is gone, and with it the lease: what runs here must not go on

    async def _work(self, message: dict[str, Any]) -> None:
        run = str(message["run"])
        self.current = run
        lease = float(message.get("lease", LEASE_SECONDS))
        url = str(message["url"])
        sockets = self._sockets
        if sockets is None or sockets.url != settings.api_url(url):  # the farm may have moved since the last run
            self._sockets = sockets = Sockets(settings.api_url(url), keeps=True)
        self._ledger = ledger = FarmLedger(
            url, run, int(message["fence"]), str(message["token"]), lease=lease, sockets=sockets
        )
        ledger.renewed_at(self._renewed)
        model = GatewayModel(run, ledger.fence, ledger.request)
        self.driving = Loop(
            ledger, model, workspace=settings.workspace(), progress=lambda seconds: self._say(progress=seconds)
        )
        self._say(started=run)
        outcome = "failed"
        try:
            outcome = await self.driving.run()
        except Fenced:
            outcome = "fenced"
        except AgentFarmError as error:
            print(f"run {run}: {error.detail}", flush=True)
        finally:
            self.driving = self._ledger = self.current = None
            await ledger.close()
            self._say(finished=run, outcome=outcome)

    def _say(self, **what: Any) -> None:
        self._writer.write(json.dumps(what).encode() + b"\n")


def _told(future: Any) -> None:
    error = future.exception()
    if error is not None:
        print(f"what was executed could not be recorded: {error}", flush=True)

"""Keeps the lease of a run that a notebook's kernel drives, from a thread of its own.

A tool that blocks the loop is slow, and not dead: only the end of the process may end the lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from .errors import AgentFarmError, from_problem
from .protocol import PROTOCOL, HeartbeatAnswer, HeartbeatRequest

Renewed = Callable[[float, HeartbeatAnswer], object]


class Heartbeats:
    """Asks each `beat` seconds over HTTP. `token` is read for each; `renewed` and `refused` are called in the thread.

    renewed: with the monotonic time at which it was asked. refused: the lease is gone; nothing more is asked.
    """

    def __init__(
        self, url: str, run: str, fence: int, *, socket: str, beat: float, token: Callable[[], str], renewed: Renewed,
        refused: Callable[[AgentFarmError], object],
    ) -> None:  # fmt: skip
        self._address, self._socket, self._beat = f"{url}/runs/{run}/heartbeat", socket, beat
        self._body = msgspec.json.encode(HeartbeatRequest(fence=fence))
        self._token, self._renewed, self._refused = token, renewed, refused
        self._stop = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._keep, name="agentfarm-lease", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _keep(self) -> None:
        import httpx

        transport = httpx.HTTPTransport(uds=self._socket) if self._socket else None
        with httpx.Client(transport=transport, trust_env=False, timeout=self._beat) as http:
            while not self._stop.wait(self._beat):
                asked = time.monotonic()
                try:
                    if not self._answered(asked, self._ask(http)):
                        return
                except (httpx.TransportError, msgspec.DecodeError):
                    continue  # the service is away, or something else answers in its place: it may be back in time
                except RuntimeError:
                    return  # the loop that drives the run is closed

    def _ask(self, http: Any) -> Any:
        headers = {"Authorization": f"token {self._token()}", "Agentfarm-Protocol": str(PROTOCOL)}
        return http.post(self._address, content=self._body, headers=headers)

    def _answered(self, asked: float, response: Any) -> bool:
        """Take an answer; return whether to ask again."""
        if response.is_success:
            self._renewed(asked, msgspec.json.decode(response.content, type=HeartbeatAnswer))
            return True
        if response.status_code in (401, 403, 429) or response.status_code >= 500:
            return True  # a renewed token may be on its way; the connection gives up where it is not
        self._refused(from_problem(msgspec.json.decode(response.content)))
        return False

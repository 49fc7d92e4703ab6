"""Connections of workers to the farm: a kernel keeps its own from one run to the next, for opening one costs milliseconds."""

from __future__ import annotations

from typing import Any

from .errors import Transient, Unauthenticated
from .protocol import PROTOCOL


class Sockets:
    """Opens WebSockets to the service at `url` (with /api/v1), through the unix socket `path` where one is given.

    `keeps`: one that is given back open is taken again by the next run, which signs in with its own token as it opens.
    """

    def __init__(self, url: str, path: str = "", *, keeps: bool = False) -> None:
        self.url, self._path, self._keeps = url, path, keeps
        self._kept: Any = None

    async def take(self, token: str) -> Any:
        """Return an open connection. Raises Unauthenticated; Transient: the service is away."""
        from websockets.asyncio.client import connect, unix_connect
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.protocol import State

        kept, self._kept = self._kept, None
        if kept is not None and kept.state is State.OPEN:
            return kept
        headers = {"Authorization": f"token {token}", "Agentfarm-Protocol": str(PROTOCOL)}
        address = "ws" + self.url.removeprefix("http") + "/worker"
        options: dict[str, Any] = {"additional_headers": headers, "max_size": None, "compression": None}
        opening = (
            unix_connect(self._path, address, **options) if self._path else connect(address, proxy=None, **options)
        )
        try:
            return await opening
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise Unauthenticated("the farm refused the run's token") from error
            raise Transient(f"the farm answered {status}") from error
        except WebSocketException as error:
            raise Transient(f"the farm could not be connected to: {error}") from error

    async def give(self, socket: Any) -> None:
        """Take a connection back: it is kept, or closed."""
        if self._keeps and self._kept is None:
            self._kept = socket  # whether it still stands is seen when it is taken
        else:
            await socket.close()

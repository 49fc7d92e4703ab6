"""Closes open WebSockets (kernels, terminals, editors) whose token is worth nothing any more.

Jupyter asks who comes when a connection is opened, and never again: a token that was revoked, or a share that was ended,
would keep its kernels for as long as nobody hangs up.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from tornado.websocket import WebSocketHandler, WebSocketProtocol13

LOOK_SECONDS = 5.0  # the Hub itself is asked once in HubOAuth.cache_max_age
POLICY_VIOLATION = 1008  # RFC 6455 §7.4.1


class OpenSockets:
    """The WebSockets of this server, looked at until the server ends. `hub_auth`: JupyterHub's, which knows tokens."""

    def __init__(self, hub_auth: Any, log: logging.Logger) -> None:
        self._hub_auth, self._log = hub_auth, log
        self._open: set[WebSocketHandler] = set()
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; for every handler, whichever extension it is of, because all are tornado's."""
        accept, opened = WebSocketProtocol13.accept_connection, self._open

        async def accept_and_know(protocol: WebSocketProtocol13, handler: WebSocketHandler) -> None:
            opened.add(handler)
            try:
                await accept(protocol, handler)  # until it is closed
            finally:
                opened.discard(handler)

        WebSocketProtocol13.accept_connection = accept_and_know  # type: ignore[method-assign,assignment]
        self._looking = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for handler in list(self._open):
                if not await self.may_stay(handler):
                    self._log.warning("a connection to %s is closed: its token was revoked", handler.request.path)
                    handler.close(POLICY_VIOLATION, "the token was revoked")

    async def may_stay(self, handler: WebSocketHandler) -> bool:
        """Say whether its token still opens this server. While the Hub is away everybody stays."""
        try:
            token = self._hub_auth.get_token(handler)
            if not token:
                return True  # not by the Hub's token that it came in
            user = await self._hub_auth.user_for_token(token, sync=False)
        except Exception as error:  # whatever its client meets: asked again at the next look
            self._log.warning("the Hub could not be asked for a token of an open connection: %s", error)
            return True
        return bool(user and self._hub_auth.check_scopes(self._hub_auth.access_scopes, user))

"""Passes calls on the list to the service, in the name of the person whose server this is; streams pass unbuffered.

Two doors use it: the panel's (<base_url>agentfarm/…, behind the server's own login) and the kernels' (kernelsocket.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web
from tornado.iostream import StreamClosedError
from yarl import URL

from jupyterhub_agentfarm.errors import AgentFarmError, Forbidden, Transient
from jupyterhub_agentfarm.runtokens import PREFIX

from . import routes

SILENCE_SECONDS = 90.0  # a stream of the service sends at least a byte every 15 s
CONNECT_SECONDS = 5.0
TO_SERVICE = (
    "Accept",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "Idempotency-Key",
    "Last-Event-ID",
    "Agentfarm-Protocol",
)
TO_ASKER = ("Content-Type", "Content-Disposition", "ETag", "Retry-After", "Cache-Control", "Agentfarm-Protocol")


@dataclass
class Service:
    """The farm as this server reaches it. The HTTP session is opened when first used, on the server's event loop."""

    url: str
    token: str = field(repr=False)
    log: logging.Logger
    _session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
            self._session = aiohttp.ClientSession(
                timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def address(self, path: str, query: str) -> URL:
        return URL(f"{self.url.rstrip('/')}/api/v1/{path}" + (f"?{query}" if query else ""), encoded=True)

    def headers(self, asked: Mapping[str, str], *, run_tokens: bool) -> dict[str, str]:
        """Return the headers for the service: named ones, and the token. A run token of the asker's own is kept."""
        named = {name: asked[name] for name in TO_SERVICE if name in asked}
        own = asked.get("Authorization", "")
        keep = run_tokens and own.partition(" ")[2].strip().startswith(PREFIX)
        return {**named, "Accept-Encoding": "identity", "Authorization": own if keep else f"token {self.token}"}


def answer_problem(handler: web.RequestHandler, error: AgentFarmError) -> None:
    """Answer with the error's problem document (RFC 9457)."""
    handler.set_status(error.status)
    handler.set_header("Content-Type", "application/problem+json")
    if isinstance(error, Transient):
        handler.set_header("Retry-After", str(max(1, round(error.retry_after))))
    handler.write(json.dumps(error.problem()))


def refusal(method: str, path: str) -> Forbidden:
    return Forbidden(
        f"{method} {path} does not go through a server",
        hint="use the farm's own page (/services/agentfarm/), or a personal token made for it",
    )


async def forward(handler: web.RequestHandler, service: Service, path: str, query: str, *, run_tokens: bool) -> None:
    """Make the handler's request at the service and stream the answer back as it comes."""
    asked = handler.request
    body = asked.body if asked.method in ("POST", "PUT", "PATCH") else None
    try:
        answer = await service.session().request(
            asked.method or "GET", service.address(path, query), data=body, allow_redirects=False,
            headers=service.headers(asked.headers, run_tokens=run_tokens), skip_auto_headers=("Content-Type", "User-Agent"),
        )  # fmt: skip
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        service.log.warning("the farm's service cannot be reached for %s %s: %s", asked.method, path, error)
        answer_problem(
            handler,
            Transient("the farm's service cannot be reached", hint="try again shortly; operators: agentfarm status"),
        )
        return
    async with answer:
        handler.set_status(answer.status)
        handler.clear_header("Content-Type")
        for name in TO_ASKER:
            if name in answer.headers:
                handler.set_header(name, answer.headers[name])
        try:
            async for chunk in answer.content.iter_any():
                handler.write(chunk)
                await handler.flush()
        except StreamClosedError:
            return  # the asker has gone; leaving the block ends the request at the service too
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:  # half an answer must not look like a whole one
            service.log.warning("the answer to %s %s was cut: %s", asked.method, path, error)
            handler.request.connection.stream.close()  # type: ignore[union-attr]
            return
    handler.finish()


class Ends:
    """Ends the request at the service when its asker goes away in the middle of a silence."""

    _forwarding: asyncio.Task[None] | None = None

    async def run_until_closed(self, work: Any) -> None:
        self._forwarding = asyncio.ensure_future(work)
        try:
            await self._forwarding
        except asyncio.CancelledError:
            if not self._forwarding.cancelled():
                raise  # it is we who are cancelled

    def on_connection_close(self) -> None:
        if self._forwarding is not None:
            self._forwarding.cancel()


class PanelHandler(Ends, APIHandler):
    """The panel's back end. Login and XSRF are jupyter_server's."""

    auth_resource = "agentfarm"

    def initialize(self, service: Service) -> None:
        self.service = service

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.clear_header("Content-Type")

    @web.authenticated
    @authorized
    async def get(self, path: str) -> None:
        await self._pass(path)

    @web.authenticated
    @authorized
    async def post(self, path: str) -> None:
        await self._pass(path)

    @web.authenticated
    @authorized
    async def patch(self, path: str) -> None:
        await self._pass(path)

    @web.authenticated
    @authorized
    async def delete(self, path: str) -> None:
        await self._pass(path)

    async def _pass(self, path: str) -> None:
        if not routes.passes(self.request.method or "", path, routes.PANEL):
            answer_problem(self, refusal(self.request.method or "", path))
            return
        query = "&".join(part for part in self.request.query.split("&") if not part.startswith("token="))
        await self.run_until_closed(forward(self, self.service, path, query, run_tokens=False))

    def finish(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the service's content type: APIHandler sets its own when finishing."""
        kind = self._headers.get("Content-Type")
        if kind:
            kwargs.setdefault("set_content_type", kind)
        return super().finish(*args, **kwargs)

"""One handler for every route: who asks, is it well-formed, call one function, answer. Errors become problems here alone."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from jupyterhub.services.auth import HubOAuthenticated
from sqlalchemy.exc import DataError
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, stream_request_body

from ..errors import AgentFarmError, Conflict, Invalid, NotFound, TooLarge, Transient, Unauthenticated, UserError
from ..store import idempotency
from .asking import NOBODY, Asker
from .routes import Call, Parts, Route, decode, decode_query

log = logging.getLogger(__name__)
TOKEN = re.compile(r"(?:token|bearer)\s+(\S+)\s*$", re.IGNORECASE)
WRITES = ("POST", "PUT", "PATCH", "DELETE")
DRAINED_BYTES = 64 * 1024 * 1024
PROBLEM = "application/problem+json"
PARAMETER = re.compile(r"\{(\w+)\}")


_KNOWN: dict[int, type[AgentFarmError]] = {404: NotFound, 409: Conflict, 413: TooLarge, 422: Invalid, 503: Transient}


def as_problem(error: BaseException) -> AgentFarmError:
    """Turn whatever was raised into an error of ours; a bug says nothing of what it held."""
    if isinstance(error, AgentFarmError):
        return error
    if isinstance(error, DataError | OverflowError):  # each database has its own limits, and says so when it is asked
        return Invalid(
            "a value is outside of what the ledger's database can hold",
            hint="numbers of versions and rows have 31 bits, others 63; texts have no NUL",
        )
    if isinstance(error, msgspec.ValidationError):
        return Invalid(str(error), hint="see /openapi.json for what this route takes")
    if isinstance(error, HTTPError):
        known: type[AgentFarmError] | None = _KNOWN.get(error.status_code)
        if known is not None:
            return known(error.reason or error.log_message or f"HTTP {error.status_code}")
        made = UserError(error.reason or error.log_message or f"HTTP {error.status_code}")
        made.status = error.status_code
        return made
    return AgentFarmError(
        "the farm made a mistake; its log says more", hint="try again; if it stays, show the log to the operator"
    )


@stream_request_body
class ApiHandler(HubOAuthenticated, RequestHandler):  # type: ignore[misc]
    """Serves the routes of one path."""

    parts: Parts
    routes: Mapping[str, Route]

    def initialize(self, parts: Parts, routes: Mapping[str, Route], cookies: bool) -> None:
        self.parts, self.routes, self.paged = parts, routes, cookies
        self.chunks: list[bytes] = []
        self.size = 0
        self.route: Route | None = None
        self.asker: Asker = NOBODY
        self.hub_auth = parts.door.auth
        self.gone = asyncio.Event()

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.clear_header("Server")

    def check_xsrf_cookie(self) -> None:
        """Tornado asks before `prepare`: a token, and a path without cookies, cannot be abused by another site's page."""
        if self.paged and not TOKEN.match(self.request.headers.get("Authorization", "")):
            super().check_xsrf_cookie()

    async def prepare(self) -> None:
        """Say who asks, before the body is read. Nothing raised here: `_answer` raises it, when the body is through."""
        self.refused: BaseException | None = None
        try:
            self.route = self.routes.get(self.request.method or "")
            if self.route is None:
                error = UserError(f"{self.request.method} is not possible here", hint=", ".join(self.routes))
                error.status, error.title = 405, "This method is not possible here"
                self.set_header("Allow", ", ".join(self.routes))
                raise error
            self.asker = await self._who()
            self.route.admit(self.asker)
            length = self.request.headers.get("Content-Length", "0")
            self._check_size(int(length) if length.isdigit() else 0)
        except Exception as error:
            self.refused = error
            length = self.request.headers.get("Content-Length", "0")
            if not length.isdigit() or int(length) > DRAINED_BYTES:
                self._fail(error)  # answered at once; a smaller body is read first, so that the asker sees the answer
                self.finish()

    async def _who(self) -> Asker:
        header = self.request.headers.get("Authorization", "")
        if found := TOKEN.match(header):
            self._token_authenticated = True
            return await self.parts.door.by_token(found[1])
        if self.paged:
            return await self.parts.door.by_cookie(self)
        return NOBODY

    async def still(self) -> None:
        """Ask again whose stream this is: it may be open for days. While the Hub is away everybody stays.

        Raises Unauthenticated, Forbidden: that token or session is worth nothing any more, or other things than it was.
        """
        if self.asker.kind == "run":  # its token goes on with its lease, and is renewed elsewhere
            return
        self.__dict__.pop("_cached_hub_user", None)  # HubOAuth keeps whom a request came from
        try:
            now = await self._who()
        except Transient:
            return
        assert self.route is not None
        self.route.admit(now)
        if now != self.asker:
            raise Unauthenticated("who asks has other rights by now", hint="connect again")

    def _check_size(self, size: int) -> None:
        limit = self.route.limit if self.route else 0
        if size > limit:
            raise TooLarge(f"this body has {size} bytes, {limit} are accepted here", hint="send less, or as a blob")

    def data_received(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.refused is not None:
            if self.size > DRAINED_BYTES:
                self.request.connection.stream.close()  # type: ignore[union-attr]
            return
        try:
            self._check_size(self.size)
        except TooLarge as error:
            self.refused = error
            self.chunks.clear()
        else:
            self.chunks.append(chunk)

    async def _answer(self, **path: str) -> None:
        try:
            if self.refused is not None:
                raise self.refused
            await self._serve(path)
        except (StreamClosedError, asyncio.CancelledError):
            raise
        except Exception as error:
            self._fail(await self.parts.db.certain(error))

    get = post = put = patch = delete = head = options = _answer

    async def _serve(self, path: dict[str, str]) -> None:
        assert self.route is not None
        raw = b"".join(self.chunks)
        self.chunks.clear()
        query = decode_query(self.request.query_arguments, self.route.query)
        body = raw if self.route.raw else decode(raw, self.route.body) if self.route.body is not None else None
        call = Call(self.parts, self.asker, path, query, body, self)
        call.status = self.route.status
        if self.route.streams:
            await self.route.fn(call)
            return
        known = await self._known(call, raw)
        answer = known if known is not None else await self.route.fn(call)
        if isinstance(answer, idempotency.Stored):
            self.set_header("Idempotent-Replay", "true")
            self._send(answer.status, answer.answer, call)
            return
        content = answer if isinstance(answer, bytes) else b"" if answer is None else msgspec.json.encode(answer)
        status = 204 if answer is None else call.status
        if call.key and not call.stored:
            await self.parts.db.write(
                lambda tx: idempotency.put(tx, self.asker.hub_name, call.key, call.digest, status, content)
            )
        self._send(status, content, call)

    async def _known(self, call: Call, raw: bytes) -> idempotency.Stored | None:
        """Look the Idempotency-Key up. Raises Conflict: it came with another request."""
        key = self.request.headers.get("Idempotency-Key", "")
        if (
            not key
            or not self.route
            or not self.route.keeps
            or self.request.method not in WRITES
            or self.asker.kind not in ("person", "agent")
        ):
            return None
        if len(key) > 255 or not key.isprintable():
            raise Invalid("this Idempotency-Key is not usable", hint="at most 255 printable characters")
        call.key = key
        call.digest = hashlib.sha256(f"{self.request.method} {self.request.path}\n".encode() + raw).hexdigest()
        return await call.read(lambda c: idempotency.find(c, self.asker.hub_name, call.key, call.digest))

    def _send(self, status: int, content: bytes, call: Call) -> None:
        self.set_status(status)
        if content:
            self.set_header("Content-Type", "application/json; charset=utf-8")
        for name, value in call.headers.items():
            self.set_header(name, value)
        if content:
            self.write(content)

    def _fail(self, error: BaseException) -> None:
        problem = as_problem(error)
        if problem.status >= 500 and not isinstance(problem, Transient):
            log.error("%s %s failed", self.request.method, self.request.path, exc_info=error)
        if self._headers_written:  # in the middle of a stream: the asker comes again
            self.request.connection.stream.close()  # type: ignore[union-attr]
            return
        allow = self._headers.get("Allow") or (", ".join(self.routes) if problem.status == 405 else "")
        self.clear()
        if allow:
            self.set_header("Allow", allow)
        self.set_status(problem.status)
        self.set_header("Content-Type", PROBLEM)
        if isinstance(problem, Transient):
            self.set_header("Retry-After", str(max(1, round(problem.retry_after))))
        if problem.status == 401:
            self.set_header("WWW-Authenticate", 'token realm="agentfarm"')
        self.write(msgspec.json.encode(problem.problem()))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        info = kwargs.get("exc_info")
        self._fail(info[1] if info else HTTPError(status_code))
        self.finish()

    def on_connection_close(self) -> None:
        self.gone.set()

    def log_exception(self, *info: Any) -> None:
        """Errors are logged in `_fail`, without what they held."""


class Nowhere(ApiHandler):
    """Answers for paths that are none."""

    async def prepare(self) -> None:
        self.refused = NotFound(f"there is nothing at {self.request.path}", hint="see /openapi.json for the routes")


def url_specs(routes: Sequence[Route], parts: Parts, base: str, cookies: bool) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return tornado's handlers for the routes under a base path; fixed paths before those with parameters."""
    grouped: dict[str, dict[str, Route]] = {}
    for route in routes:
        grouped.setdefault(route.path, {})[route.method] = route
    specs: list[tuple[str, Any, dict[str, Any]]] = []
    for path in sorted(grouped, key=lambda path: (path.count("{"), path)):
        handler: Callable[..., Any] = next((r.socket for r in grouped[path].values() if r.socket), ApiHandler)
        pattern = re.escape(base) + PARAMETER.sub(r"(?P<\1>[^/]+)", path) + "/?"
        specs.append((pattern, handler, {"parts": parts, "routes": grouped[path], "cookies": cookies}))
    specs.append((re.escape(base) + ".*", Nowhere, {"parts": parts, "routes": {}, "cookies": cookies}))
    return specs

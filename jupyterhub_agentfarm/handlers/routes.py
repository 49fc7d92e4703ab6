"""The table of routes: what each takes and answers is declared once, decoded by it and described by it."""

from __future__ import annotations

import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import LEASE_SECONDS

from ..errors import Forbidden, Invalid, Unauthenticated
from ..gateway.live import LiveRuns
from ..gateway.models import Models
from ..hub import Hub
from ..records import Placeless
from ..store import idempotency
from ..store.db import Database, Tx
from .asking import Asker, Door
from .feed import Feed
from .waiting import Claims

T = TypeVar("T")
KIB = 1024
BODY_BYTES = 1024 * KIB


Place = typing.Annotated[int, msgspec.Meta(ge=-1, le=2**53)]  # behind which a list or stream goes on


class Empty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body without fields."""


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every list takes."""

    limit: typing.Annotated[int, msgspec.Meta(ge=1, le=500)] = 50
    cursor: str = ""


class Fleet(Protocol):
    """What the service asks of the fleet daemon (fleet/client.py)."""

    async def put_user(self, name: str) -> Any: ...
    async def delete_user(self, name: str) -> Any: ...
    async def microservers(self) -> Any: ...
    async def units(self) -> Any: ...
    async def log(self, unit: str, lines: int = 50, after: str = "", wait: float = 0.0) -> Any: ...
    async def explain(self, unit: str) -> Any: ...
    async def plan(self, units: list[str]) -> Any: ...
    async def rebalance(self, gain: float | None = None) -> Any: ...
    async def settings(self) -> Any: ...
    async def set_settings(self, change: dict[str, Any]) -> Any: ...
    async def cordon(self, name: str, reason: str = "", by: str = "", rev: int | None = None) -> Any: ...
    async def uncordon(self, name: str, reason: str = "", by: str = "", rev: int | None = None) -> Any: ...
    async def joining(self) -> Any: ...
    async def register(self, name: str, registration: dict[str, Any], by: str = "") -> Any: ...
    async def remove(self, name: str, force: bool = False, by: str = "") -> Any: ...
    async def notices(self, after: int) -> Any: ...
    async def drain(
        self, name: str, until: str = "finish-step", deadline: float | None = None, reason: str = "", by: str = "", rev: int | None = None,
        preview: bool = False, besides: Sequence[str] = (),
    ) -> Any: ...  # fmt: skip
    async def drains(self) -> Any: ...
    async def snapshot(self, name: str) -> Any: ...
    async def lost(self, name: str, restore: str, users: list[str], by: str) -> Any: ...
    async def mark(self, name: str, change: dict[str, Any], by: str = "", rev: int | None = None) -> Any: ...


@dataclass
class Parts:
    """What the application hands to every handler."""

    db: Database
    live: LiveRuns
    models: Models
    hub: Hub
    fleet: Fleet
    door: Door
    key: bytes
    encrypt: Callable[[bytes], bytes]
    wake: Callable[[], None]  # the scheduler looks again
    why: Callable[[str], str]  # agent -> why its server is not up yet, "" where nothing is known
    placeless: Callable[[], Placeless]  # which tasks wait for a place for a server, and why
    metrics: Callable[[], Awaitable[bytes]]
    claims: Claims
    feed: Feed
    workers: Any  # connections of workers (worker.py)
    judging: Any  # of test cases (scheduling/judging.py)
    surroundings: Any  # the farm around (surroundings.py, which the views stand below)
    resources: Any  # what servers are promised (scheduling/resources.py)
    draining: Any  # of microservers (scheduling/draining.py)
    routes: Sequence[Route] = ()
    lease: float = LEASE_SECONDS
    prefix: str = "/services/agentfarm/"
    public_hub: str = "/hub/"  # for people's browsers
    public_page: str = ""  # the farm's page, for them


@dataclass
class Call:
    """One request as a route's function gets it: who asks, and what came, already checked."""

    parts: Parts
    asker: Asker
    path: Mapping[str, str]
    query: Any
    body: Any
    handler: Any
    headers: dict[str, str] = field(default_factory=dict)  # of the answer
    status: int = 200  # of the answer; the route's, unless the function changes it before it commits
    key: str = ""  # Idempotency-Key
    digest: str = ""
    stored: bool = False

    async def read(self, fn: Callable[[Connection], T]) -> T:
        return await self.parts.db.read(fn)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Write without an answer of its own."""
        return await self.parts.db.write(fn)

    async def commit(self, fn: Callable[[Tx], Any]) -> Any:
        """Write, and keep the answer under the Idempotency-Key in the same transaction. `fn` returns the answer."""

        def write(tx: Tx) -> Any:
            if self.key:
                known = idempotency.find(tx.connection, self.asker.hub_name, self.key, self.digest)
                if known is not None:
                    return known
            answer = fn(tx)
            if self.key:
                status = self.status
                idempotency.put(tx, self.asker.hub_name, self.key, self.digest, status, msgspec.json.encode(answer))
            return answer

        answer = await self.parts.db.write(write)
        self.stored = bool(self.key)
        return answer

    def etag(self, rev: int) -> None:
        self.headers["ETag"] = f'"{rev}"'

    def if_match(self) -> int | None:
        """Return the revision that the asker edited. Raises Invalid."""
        text = self.handler.request.headers.get("If-Match", "").strip()
        if text in ("", "*"):
            return None
        try:
            return int(text.removeprefix("W/").strip('"'))
        except ValueError as error:
            raise Invalid(f"If-Match {text!r}", hint='send the ETag of the draft as you read it: "3"') from error


WHO = {
    "anyone": frozenset({"person", "agent", "run", "nobody"}),
    "person": frozenset({"person"}),
    "user": frozenset({"person", "agent"}),
    "agent": frozenset({"agent"}),
    "run": frozenset({"run"}),
    "worker": frozenset({"agent", "run"}),
    "reader": frozenset({"person", "agent", "run"}),
    "approver": frozenset({"person"}),
    "metrics": frozenset({"person", "nobody"}),
}


@dataclass(frozen=True)
class Route:
    """`who`: a key of WHO. `streams`: the function writes its answer itself. `limit`: bytes of the body."""

    method: str
    path: str
    fn: Callable[[Call], Awaitable[Any]]
    summary: str
    who: str = "user"
    body: Any = None
    answer: Any = None
    also: Any = None  # another form of the answer
    query: Any = Empty
    status: int = 200
    limit: int = BODY_BYTES
    streams: bool = False
    raw: bool = False  # the body is bytes, not JSON
    keeps: bool = True  # the answer may be kept under an Idempotency-Key (not where it holds a token)
    socket: Any = None  # the WebSocket handler that serves it

    def admit(self, asker: Asker) -> None:
        """Raise Unauthenticated or Forbidden where such an asker has no business here at all."""
        if asker.kind in WHO[self.who]:
            if self.who == "approver" and not asker.may_approve:
                raise Forbidden(
                    "deciding needs a person's session at a farm page, or a token with custom:agentfarm:approve",
                    hint="open the farm page and decide there",
                )
            return
        if asker.kind == "nobody":
            raise Unauthenticated(
                "who asks is not known",
                hint="send the header Authorization: token <token>, or sign in at the farm page",
            )
        raise Forbidden(f"this is not for a token of kind {asker.kind}", hint=f"it is for: {self.who}")


def decode(raw: bytes, kind: Any) -> Any:
    """Read a JSON body into its type. Raises Invalid: where, and what was expected."""
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise Invalid(str(error), hint="see /openapi.json for what this route takes") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}", hint="send one JSON object") from error


def decode_query(arguments: Mapping[str, list[bytes]], kind: Any) -> Any:
    """Read the query string. Raises Invalid."""
    values = {name: given[-1].decode("utf-8", "replace") for name, given in arguments.items()}
    try:
        return msgspec.convert(values, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"query: {error}", hint="see /openapi.json for what this route takes") from error

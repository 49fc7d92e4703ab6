"""The built-in tools, sources of pinned ones, and the secrets that tools get: written, never read back."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from agentfarm_sdk.protocol import ToolSpec
from agentfarm_sdk.tools.registry import builtin_specs, unavailable

from ..errors import Forbidden, Invalid, NotFound
from ..store import agents, secrets
from .asking import APPROVE, OPERATOR
from .drafts import SECRET_NAME
from .routes import Call, Empty, Route
from .views import Listed, when

MANAGE = "custom:agentfarm:manage"


class ToolView(msgspec.Struct, frozen=True):
    name: str
    description: str
    schema: dict[str, Any]
    effect: str
    approval: str
    timeout: float
    source: str
    schema_hash: str
    available: bool
    reason: str


class NewSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    value: Annotated[str, msgspec.Meta(min_length=1, max_length=16384)]


class SecretView(msgspec.Struct, frozen=True):
    name: str
    updated_at: str | None


async def listed(call: Call) -> Listed[ToolView]:
    missing = unavailable()
    return Listed([_view(spec, missing.get(name, "")) for name, spec in builtin_specs().items()])


def _view(spec: ToolSpec, reason: str) -> ToolView:
    return ToolView(
        spec.name, spec.description, spec.schema, spec.effect, spec.approval, spec.timeout, spec.source, spec.schema_hash,
        not reason, reason,
    )  # fmt: skip


async def file(call: Call) -> None:
    """Give a tool's source. Whoever knows its hash has read it, or a version that pins it."""
    _, content = await call.read(lambda c: agents.get_file(c, call.path["sha256"]))
    call.handler.set_header("Content-Type", "application/octet-stream")
    call.handler.finish(content)


def _not_from_a_server(call: Call) -> None:
    """Raise Forbidden for a server's own token: whatever runs there would write secrets."""
    if call.asker.via == "token" and not call.asker.scopes & {APPROVE, MANAGE, OPERATOR}:
        raise Forbidden(
            "a server's token does not touch secrets", hint=f"use the farm page, or a token of yours with {MANAGE}"
        )


async def put_secret(call: Call) -> SecretView:
    _not_from_a_server(call)
    new: NewSecret = call.body
    if not SECRET_NAME.match(new.name):
        raise Invalid("this cannot name a secret - at `$.name`", hint="letters, digits, _, . and -; e.g. API_KEY")
    sealed = call.parts.encrypt(new.value.encode())

    def write(tx: Any) -> SecretView:
        secrets.put(tx, call.asker.name, new.name, sealed)
        return SecretView(new.name, when(tx.now))

    return await call.commit(write)  # type: ignore[no-any-return]


async def list_secrets(call: Call) -> Listed[SecretView]:
    _not_from_a_server(call)
    found = await call.read(lambda c: secrets.names(c, call.asker.name))
    return Listed([SecretView(name, when(at)) for name, at in found])


async def drop_secret(call: Call) -> Empty:
    _not_from_a_server(call)
    name = call.path["name"]
    if not await call.write(lambda tx: secrets.drop(tx, call.asker.name, name)):
        raise NotFound(f"you have no secret {name}", hint="list them at /secrets")
    return Empty()


ROUTES = [
    Route("GET", "/tools", listed, "The built-in tools", answer=Listed[ToolView]),
    Route("GET", "/tools/files/{sha256}", file, "The source of a pinned tool", who="reader", streams=True),
    Route("PUT", "/secrets", put_secret, "Keep a secret for your agents' tools", who="person", body=NewSecret, answer=SecretView),
    Route("GET", "/secrets", list_secrets, "The names of your secrets", who="person", answer=Listed[SecretView]),
    Route("DELETE", "/secrets/{name}", drop_secret, "Forget a secret", who="person", answer=Empty),
]  # fmt: skip

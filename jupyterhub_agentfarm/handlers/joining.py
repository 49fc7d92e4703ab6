"""Machines that join the farm and leave it. Signing in there is the operator's own affair (cli/joining.py); here it is only told."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..demands import Name, Value
from ..errors import Conflict, Forbidden, Invalid
from ..records import microserver_name
from ..store import notices
from .farm import MicroserverView, show
from .routes import Call, Empty, Route

Target = Annotated[
    str, msgspec.Meta(max_length=300, pattern=r"^[a-z_][a-z0-9_-]{0,31}@[A-Za-z0-9\[][A-Za-z0-9.:\]-]*$")
]
HostKey = Annotated[str, msgspec.Meta(max_length=2100, pattern=r"^[a-z0-9-]+ [A-Za-z0-9+/=]+$")]


class Known(msgspec.Struct, frozen=True):
    """A machine that has joined. `ssh`: how the farm reaches it, `login`: how operators sign in there."""

    ssh: str
    login: str
    host_keys: list[str]


class Joining(msgspec.Struct, frozen=True):
    """What a machine needs that joins: the farm's public key, its id, the SHA-256 of the helper of its release."""

    public_key: str
    farm: str
    helper: str
    microservers: dict[str, Known]


class Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`host_keys`: as the operator has confirmed them ("ssh-ed25519 AAAA…"); none: those that are known stay. `measured`: what and how much."""

    ssh: Target
    host_keys: Annotated[list[HostKey], msgspec.Meta(max_length=10)] = []
    login: Target | None = None
    labels: Annotated[dict[Name, Value], msgspec.Meta(max_length=50)] | msgspec.UnsetType = msgspec.UNSET
    measured: Annotated[dict[Name, float], msgspec.Meta(max_length=20)] = {}


class Removing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`force`: also where servers run there, or where nobody can know."""

    force: bool = False


def _operators_only(call: Call) -> None:
    if not call.asker.operator:
        raise Forbidden("machines are added and removed by operators", hint="ask an operator of the farm")


async def joining(call: Call) -> Joining:
    _operators_only(call)
    return msgspec.convert(await call.parts.fleet.joining(), Joining)


async def register(call: Call) -> MicroserverView:
    _operators_only(call)
    name, asked = microserver_name(call.path["name"]), msgspec.to_builtins(call.body)
    await call.parts.fleet.register(name, asked, call.asker.by)
    await _noted(call)
    call.parts.surroundings.stale()
    call.parts.wake()  # what waited for a place may have one
    return await show(call)


async def remove(call: Call) -> Empty:
    _operators_only(call)
    name, force = call.path["name"], call.query.force
    if name == "local":
        raise Invalid("the farm's own machine cannot be removed", hint="agentfarm microserver cordon local")
    known = await show(call)
    if known.servers and not force:
        raise Conflict(f"servers run on {name} ({known.servers})", hint="drain it, or stop them, first")
    await call.parts.fleet.remove(name, force, call.asker.by)
    await _noted(call)
    call.parts.surroundings.stale()
    return Empty()


async def _noted(call: Call) -> None:
    """Record what the daemon has noted as done: it may refuse what is asked. Where nobody comes so far the next look of FleetWatch does it."""
    after = await call.read(notices.last)
    items = (await call.parts.fleet.notices(after))["items"]
    await call.write(lambda tx: notices.record(tx, items))


ROUTES = [
    Route("GET", "/joining", joining, "What a machine needs that joins", who="person", answer=Joining),
    Route("PUT", "/microservers/{name}", register, "Take a machine in, or tell how it is reached now", who="person", body=Registration, answer=MicroserverView),
    Route("DELETE", "/microservers/{name}", remove, "Forget a machine", who="person", query=Removing, answer=Empty),
]  # fmt: skip

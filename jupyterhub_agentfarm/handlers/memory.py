"""What agents remember: looked into by their runs, shown to people, forgotten at a person's word."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.effects import KEY_CHARACTERS, RECALLED
from agentfarm_sdk.protocol import new_event

from ..store import effects, ledger
from ..store.db import Tx
from ..store.tables import FARM_RUN
from .asking import reach_agent
from .routes import Call, Empty, Page, Route
from .runs import own_run
from .views import Listed, page

Key = Annotated[str, msgspec.Meta(max_length=KEY_CHARACTERS)]


class Entry(msgspec.Struct, frozen=True):
    """`value`: JSON. `run_id`: the run that remembered it."""

    key: str
    value: Any
    run_id: str
    changed_at: str


class Recalled(msgspec.Struct, frozen=True):
    """`keys`: how many the agent remembers in all."""

    items: list[Entry]
    keys: int


class Look(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`key`, or words that all must stand in key or value."""

    key: Key = ""
    query: str = ""
    limit: Annotated[int, msgspec.Meta(ge=0, le=RECALLED)] = RECALLED


class MemoryPage(Page, frozen=True, forbid_unknown_fields=True):
    """`query`: words that all must stand in key or value; then the latest come first, on one page."""

    query: str = ""


class Which(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: Key = ""


async def recall(call: Call) -> Recalled:
    """Look into the memory of the run's own agent."""
    own_run(call.asker, call.path["run"])
    query: Look = call.query

    def read(connection: Connection) -> Recalled:
        agent, owner = effects.whose(ledger.read_run(connection, call.path["run"]))
        found = effects.recalled(connection, agent, owner, key=query.key, query=query.query, limit=query.limit)
        return Recalled([Entry(**one) for one in found], effects.keys(connection, agent, owner))

    return await call.read(read)


async def listed(call: Call) -> Listed[Entry]:
    query: MemoryPage = call.query

    def read(connection: Connection) -> list[Entry]:
        agent, _ = reach_agent(connection, call.asker, call.path["name"], "view")
        if query.query:
            found = effects.recalled(connection, agent.name, query=query.query, limit=query.limit, most=2**20)
        else:
            found = effects.listed(connection, agent.name, after=query.cursor, limit=query.limit + 1)
        return [Entry(**one) for one in found]

    return page(await call.read(read), query.limit, lambda one: one.key)


async def forget(call: Call) -> Empty:
    """Forget a key; the farm's own chain says who did so. The events that remembered it stay until they are erased."""
    key, by = call.query.key, call.asker.by
    agent, _ = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], "manage"))

    def write(tx: Tx) -> None:
        effects.forget(tx, agent.name, key)
        ledger.record(tx, FARM_RUN, by, [new_event("memory.forgotten", {"agent": agent.name, "key": key})])

    await call.write(write)
    return Empty()


ROUTES = [
    Route("GET", "/agents/{name}/memory", listed, "What it remembers", query=MemoryPage, answer=Listed[Entry]),
    Route("DELETE", "/agents/{name}/memory", forget, "Let it forget a key", who="person", query=Which, answer=Empty),
    Route("GET", "/runs/{run}/memory", recall, "What the run's agent remembers", who="run", query=Look, answer=Recalled),
]  # fmt: skip

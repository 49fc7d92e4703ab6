"""What agents' servers are promised: their own settings, over the farm's. Changes are in the farm's own chain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import new_event

from . import ledger
from .agents import no_agent
from .db import Tx
from .tables import FARM_RUN, agents


def of(connection: Connection, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what was set for these agents, {} where nothing was."""
    rows = connection.execute(sa.select(agents.c.name, agents.c.resources).where(agents.c.name.in_(list(names))))
    return {name: msgspec.json.decode(text) for name, text in rows}


def told(connection: Connection, name: str) -> tuple[dict[str, Any], str | None]:
    """Return what was set for an agent, and its pool. Raises NotFound."""
    row = connection.execute(sa.select(agents.c.resources, agents.c.pool).where(agents.c.name == name)).one_or_none()
    if row is None:
        raise no_agent(name)
    return msgspec.json.decode(row.resources), row.pool


def put(tx: Tx, name: str, resources: dict[str, Any], by: str) -> None:
    """Set what the agent's server is promised from its next start on."""
    tx.execute(agents.update().where(agents.c.name == name).values(resources=msgspec.json.encode(resources).decode()))
    body = {"agent": name, "resources": resources}
    ledger.record(tx, FARM_RUN, by, [new_event("agent.resourced", body)])

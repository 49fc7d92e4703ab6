"""The log of an agent's server, wherever it runs: its end, and what comes behind a cursor."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..errors import NotFound
from ..records import hub_user, unit_name
from .asking import reach_agent
from .routes import Call, Route


class LogPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`lines`: at most so many. `after`: the cursor of the last answer; "": the log's end. `wait`: seconds for lines to come, behind a cursor."""

    lines: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    after: Annotated[str, msgspec.Meta(max_length=400, pattern=r"^[A-Za-z0-9=;.]*$")] = ""
    wait: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0


class LogView(msgspec.Struct, frozen=True):
    """`lines`: as the server, and what it started, wrote them: text of programs, to be shown as nothing else. `cursor`: for `after`."""

    agent: str
    microserver: str
    lines: list[str]
    cursor: str


async def logs(call: Call) -> LogView:
    """Read the log of the agent's server, also of one that has ended; behind a cursor nothing is left out and nothing told twice."""
    # whoever may open the server may: programs print what is nobody else's affair
    agent, _ = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], "manage"))
    query: LogPlace = call.query
    try:
        told = await call.parts.fleet.log(unit_name(hub_user(agent.name)), query.lines, query.after, query.wait)
    except NotFound:
        raise NotFound(f"the server of {agent.name} has not run yet", hint="it starts with its first task") from None
    return LogView(agent.name, told["microserver"], told["lines"], told["cursor"])


ROUTES = [
    Route("GET", "/agents/{name}/logs", logs, "The log of its server", who="person", query=LogPlace, answer=LogView),
]  # fmt: skip

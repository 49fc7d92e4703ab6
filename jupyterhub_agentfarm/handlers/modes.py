"""The mode that a submission asks for: `live`, `ask` or `simulate`, and what answers the calls of a simulated run.

What an agent submits by its server's token is never livelier than what that agent is doing: else a run in mode `ask` or
`simulate` would leave its mode by way of another task. (A child's mode is its parent's: store/children.py.)
"""

from __future__ import annotations

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import BLOB_OVER, Definition, Mode, Simulate

from ..errors import Forbidden, Invalid, NotFound
from ..store import ledger, queue
from ..store.tables import FARM_RUN
from .asking import Asker, may

LIVELINESS: dict[str, int] = {"simulate": 0, "ask": 1, "live": 2}


def settled(
    connection: Connection, asker: Asker, mode: Mode | None, given: Simulate | None, default: Mode, definition: Definition | None
) -> tuple[Mode, Simulate | None]:  # fmt: skip
    """Return the mode of a new run, and what answers its calls. `definition` None: a pool's, not known yet.

    Raises Invalid: answers for a run that is not simulated, or for a tool that there is not. NotFound: no such recording.
    Forbidden: an agent asks for more than its own run under way may do.
    """
    if given is None:
        return not_livelier(connection, asker, mode, default), None
    if mode not in (None, "simulate"):
        raise Invalid(
            f"a run in mode {mode} is not simulated - at `$.simulate`", hint='"mode": "simulate", or leave it out'
        )
    if definition is not None and (unknown := sorted(set(given.stubs) - {tool.name for tool in definition.tools})):
        has = ", ".join(tool.name for tool in definition.tools) or "none"
        raise Invalid(f"there is no tool {unknown[0]!r} - at `$.simulate.stubs`", hint=f"its tools: {has}")
    if len(msgspec.json.encode(given.stubs)) > BLOB_OVER:
        raise Invalid(
            "stubs of that size - at `$.simulate.stubs`", hint=f"at most {BLOB_OVER} bytes; or name a recording"
        )
    if given.recording is not None:
        run = ledger.read_run(connection, given.recording)
        if given.recording == FARM_RUN or not may(connection, asker, run, "view"):
            raise NotFound(f"there is no run {given.recording}", hint="list runs by: agentfarm task list")
    return "simulate", given


def not_livelier(connection: Connection, asker: Asker, mode: Mode | None, default: Mode) -> Mode:
    """Return the mode, held down to that of the asking agent's run under way. Raises Forbidden: it named a livelier one."""
    wanted = mode or default
    under_way = queue.under_way(connection, asker.name) if asker.kind == "agent" else []
    strictest = min(under_way, key=lambda one: LIVELINESS[one[1]], default=None)
    if strictest is None or LIVELINESS[wanted] <= LIVELINESS[strictest[1]]:
        return wanted
    run_id, held = strictest
    if mode is not None:
        raise Forbidden(
            f"agent {asker.name} has a run in mode {held} under way ({run_id}): it can submit nothing in mode {mode} meanwhile",
            hint="leave mode out, or let a person submit it",
        )
    return held

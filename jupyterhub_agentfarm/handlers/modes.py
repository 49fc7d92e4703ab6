"""The mode that a submission asks for: `live`, `ask` or `simulate`, and what answers the calls of a simulated run."""

from __future__ import annotations

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import BLOB_OVER, Definition, Mode, Simulate

from ..errors import Invalid, NotFound
from ..store import ledger
from ..store.tables import FARM_RUN
from .asking import Asker, may


def settled(
    connection: Connection, asker: Asker, mode: Mode | None, given: Simulate | None, default: Mode, definition: Definition | None
) -> tuple[Mode, Simulate | None]:  # fmt: skip
    """Return the mode of a new run, and what answers its calls. `definition` None: a pool's, not known yet.

    Raises Invalid: answers for a run that is not simulated, or for a tool that there is not. NotFound: no such recording.
    """
    if given is None:
        return mode or default, None
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

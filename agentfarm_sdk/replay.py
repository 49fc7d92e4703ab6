"""Recorded replies to today's code: where it now differs, Divergence says how. Nothing is done again that had an effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .errors import Divergence
from .fold import Fold
from .protocol import Definition, Event
from .tools.context import Context
from .tools.registry import Tool


@dataclass(frozen=True)
class Replay:
    """What was gone through: `called` reads were done again and agreed, `recorded` outcomes were taken as they stand."""

    steps: int
    called: int
    recorded: int


async def replay(
    events: Iterable[Event], definition: Definition, tools: Mapping[str, Tool], workspace: Path | None = None
) -> Replay:
    """Give the recorded replies to today's definition and tools, in order.

    A call of a tool with effect `read` is made again, with the values (time, random) that it drew then; any other gets its
    recorded outcome.

    Raises:
        Divergence: prompt, tool or result is another one today; `recorded` and `today` hold both sides.
    """
    fold, called, recorded = Fold(history=lambda _run, _seq: []), 0, 0
    for event in events:
        body = event.data()
        if event.kind == "tool.succeeded" and (call := fold.calls.get(event.call or "")) is not None:
            tool, spec = tools.get(call.tool), definition.tool(call.tool)
            if spec is None:
                raise _differs(
                    f"call {call.call}: there is no tool {call.tool} any more",
                    call.tool,
                    sorted(t.name for t in definition.tools),
                )
            if spec.effect == "read" and tool is not None:
                today = await _today(tool, event, call.arguments, body, workspace)
                if today != body.get("result"):
                    raise _differs(f"call {call.call} of {call.tool} returns something else", body.get("result"), today)
                called += 1
            else:
                recorded += 1
        fold.apply(event)
    first = next((message["content"] for message in fold.messages[:1] if message["role"] == "system"), None)
    if first is not None and "{{" not in definition.prompt and definition.prompt != first:
        raise _differs("the prompt is another one", first, definition.prompt)
    return Replay(fold.steps, called, recorded)


async def _today(tool: Tool, event: Event, arguments: str, body: dict[str, Any], workspace: Path | None) -> Any:
    ctx = Context(run=event.run, call=event.call or "", workspace=workspace, recorded=body.get("values") or [])
    try:
        return await tool.invoke(ctx, msgspec.json.decode(arguments or "{}"))
    except Divergence:
        raise
    except Exception as error:
        raise _differs(
            f"call {event.call} of {tool.name} fails today: {error}", body.get("result"), str(error)
        ) from error


def _differs(what: str, recorded: Any, today: Any) -> Divergence:
    return Divergence(what, hint="recorded and today's are both in this error", recorded=recorded, today=today)

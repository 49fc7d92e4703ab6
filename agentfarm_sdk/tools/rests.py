"""Calls that rest without a worker: until a time, until a person answers, until another agent has done its part."""

from __future__ import annotations

from datetime import datetime, timezone

from ..errors import ToolFailed
from .context import Context
from .registry import tool


@tool(effect="read")
def wait_until(ctx: Context, time: str = "", seconds: float = 0.0) -> str:
    """Wait until a time, or for some seconds; at most 30 days. Nothing else is done meanwhile.

    Args:
        time: in ISO 8601, for example 2026-11-21T15:30:00Z; without an offset it is UTC
        seconds: from now, in place of a time
    """
    if bool(time) == bool(seconds):
        raise ToolFailed("give a time or seconds")
    if not time:
        ctx.wait_until(seconds)
    try:
        when = datetime.fromisoformat(time.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise ToolFailed(f"{time!r} is no time: {error}; write 2026-11-21T15:30:00Z") from error
    ctx.wait_until(when if when.tzinfo else when.replace(tzinfo=timezone.utc))


@tool(effect="read")
def ask_person(ctx: Context, question: str, choices: list[str] | None = None) -> str:
    """Ask a person, and wait for the answer. For what only a person can know or decide.

    Args:
        question: all that the person needs to know to answer it
        choices: the possible answers, where there are only some
    """
    ctx.ask_person(question, choices=choices)


@tool(effect="read")
def delegate(ctx: Context, target: str, input: str) -> str:
    """Have another agent do a part of the work, and wait for its result.

    Args:
        target: the agent's name, or pool:NAME for any agent of a pool
        input: all that it needs to know: it sees nothing of this conversation
    """
    ctx.delegate(target, input)

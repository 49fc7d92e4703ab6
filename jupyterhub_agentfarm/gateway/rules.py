"""What a run may ask its model, how much of it, and what is recorded of a reply. Pure; models.py acts on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from agentfarm_sdk import compaction
from agentfarm_sdk.compaction import Plan
from agentfarm_sdk.protocol import ModelRequest, roll

from ..errors import AgentFarmError, Cancelled, Conflict, LimitReached, ModelFailed, NotFound, UserError
from .asking import Ask, Reply, UpstreamError
from .budgets import BYTES_A_TOKEN, LONGEST_OUTPUT, Taken
from .live import LiveRun
from .proxy import Route


def recorded(request: ModelRequest, route: Route, reply: Reply, said: dict[str, Any]) -> dict[str, Any]:
    """Return the body of `model.replied`."""
    body = {
        "request": request.request, "message": said, "finish": reply.finish,
        "usage": {"input": reply.tokens_in, "output": reply.tokens_out, "estimated": reply.estimated},
        "cost": route.upstream.cost(reply),
        "provenance": {"upstream": route.upstream.name, "model": reply.model, "provider": reply.provider, "id": reply.id},
    }  # fmt: skip
    return body | ({"reasoning": reply.reasoning} if reply.reasoning else {})


def shorter(live: LiveRun, context: int) -> Plan | None:
    """Say how the run's messages are made shorter for a model that can take so many tokens; None: they need not be."""
    fold = live.fold
    tokens, counted = fold.counted
    if tokens:
        tokens += compaction.size(fold.messages[counted:])
    else:
        live.roll_digest()
        tools = len(msgspec.json.encode(live.definition.tools)) if live.definition.tools else 0
        tokens = (live.size * BYTES_A_TOKEN + tools) // compaction.BYTES_A_TOKEN
    return compaction.plan(fold.messages, len(fold.messages) - fold.inherited, tokens, context)


def may_ask(live: LiveRun, now: float) -> None:
    """`now` by the farm's clock. Raises LimitReached, Cancelled; Conflict: there is nothing to ask now."""
    limits, fold = live.definition.limits, live.fold
    if fold.ended:
        raise Conflict(f"run {live.run.run_id} has {fold.status}", hint="submit a new task, or rerun this one")
    if fold.cancel:
        raise Cancelled(f"run {live.run.run_id} was cancelled: {fold.cancel}", reason=fold.cancel)
    if fold.open_calls:  # a reply's call without a result makes providers refuse the messages for ever
        raise Conflict("a call has no outcome yet", hint="append the outcomes before the next request")
    for name, limit, used in (
        ("steps", limits.steps, fold.steps),
        ("tokens", limits.tokens, fold.tokens_in + fold.tokens_out),
        ("seconds", limits.seconds, fold.used(now)),
        ("cost", limits.cost, fold.cost),
    ):
        if limit is not None and used >= limit:
            raise LimitReached(
                f"this run may use {limit} {name}",
                hint=f"raise limits.{name} of the agent, or give it less to do",
                limit=name,
            )


def most_output(ask: Ask, route: Route) -> int:
    """Return how many tokens the reply may have: what the version or the server's settings say, else LONGEST_OUTPUT."""
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(named := ask.parameters.get(name), int) and named > 0:
            return named
    return getattr(getattr(route.upstream, "settings", None), "max_tokens", None) or LONGEST_OUTPUT


def within(ask: Ask, taken: Taken) -> Ask:
    """Let the model say no more than was reserved."""
    name = "max_completion_tokens" if "max_completion_tokens" in ask.parameters else "max_tokens"
    return replace(ask, parameters={**ask.parameters, name: taken.hold.tokens_out})


def digest_of(messages: list[dict[str, Any]]) -> str:
    digest = ""
    for one in messages:
        digest = roll(digest, msgspec.json.encode(one))
    return digest


def as_ours(error: UpstreamError) -> AgentFarmError:
    if error.kind == "not-found":
        return NotFound(error.message, hint=error.hint)
    if error.retry:  # the attempts that the version allows are over: whoever asked does not begin anew
        return ModelFailed(error.message, hint=error.hint or "run it again later, or raise model.retry of the agent")
    return UserError(error.message, hint=error.hint)

"""The tools of the agents of a trial: each reaches the counting world, one with each effect, one that a person must allow."""

import urllib.request

from agentfarm_sdk import tool
from agentfarm_sdk.tools.context import Context


def reach(ctx: Context, where: str) -> str:
    request = urllib.request.Request(where, method="POST", headers={"Idempotency-Key": ctx.key})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(answer.read().decode())


@tool(effect="read", timeout=10)
def look(ctx: Context, where: str) -> str:
    """Look at something."""
    return reach(ctx, where)


@tool(effect="idempotent", timeout=10)
def store(ctx: Context, where: str) -> str:
    """Do something that may be done again with the same key."""
    return reach(ctx, where)


@tool(effect="once", timeout=10)
def charge(ctx: Context, where: str) -> str:
    """Do something that must not happen twice."""
    return reach(ctx, where)


@tool(effect="once", timeout=10, approval="always")
def pay(ctx: Context, where: str) -> str:
    """Do something that must not happen twice, and not without a person."""
    return reach(ctx, where)

"""Two tools with effects outside, published with the agents of the kill tests."""

import urllib.request

from agentfarm_sdk import tool


def effect(ctx, where: str) -> str:
    request = urllib.request.Request(where, method="POST", headers={"Idempotency-Key": ctx.key})
    with urllib.request.urlopen(request, timeout=110) as answer:
        return answer.read().decode()


@tool(effect="once", timeout=120)
def charge(ctx, where: str) -> str:
    """Do something that must not happen twice."""
    return effect(ctx, where)


@tool(effect="idempotent", timeout=40)
def store(ctx, where: str) -> str:
    """Do something that may be done again with the same key."""
    return effect(ctx, where)

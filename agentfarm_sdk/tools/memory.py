"""What the agent remembers from one run to the next, in the farm's own database."""

from __future__ import annotations

from typing import Any

from ..errors import ToolFailed
from .context import Context
from .registry import tool


@tool(effect="idempotent")
def remember(ctx: Context, key: str, value: Any) -> str:
    """Remember something for later, also for later conversations. What stood under the key before is replaced.

    Args:
        key: a short name to find it by, for example customer/ACME/contact
        value: text or any JSON, at most 16 kB
    """
    ctx.remember(key, value)
    return f"remembered as {key}"


@tool(effect="idempotent")
def forget(ctx: Context, key: str) -> str:
    """Forget what was remembered under a key.

    Args:
        key: as it was remembered
    """
    ctx.forget(key)
    return f"{key} is forgotten"


@tool(effect="read")
async def recall(ctx: Context, key: str = "", query: str = "") -> Any:
    """Recall what was remembered: by its key, or by words that stand in key or value.

    Args:
        key: as it was remembered
        query: words that all must stand in it; the latest entries that have them are returned
    """
    if bool(key) == bool(query):
        raise ToolFailed("give a key or a query")
    found = await ctx.arecall(key, query=query)
    if found is None:
        raise ToolFailed(f"nothing is remembered as {key}; look for it with a query")
    return found

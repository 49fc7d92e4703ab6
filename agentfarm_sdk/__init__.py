"""AgentFarm for programmers: submit tasks, try agents, write tools. Imports nothing of the farm's own processes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agent import Agent as Agent
    from .farm import Farm as Farm
    from .tools.registry import tool as tool
    from .worker import running as current

__version__ = "0.1.0"
__all__ = ["Agent", "Farm", "current", "tool"]

_FROM = {
    "Agent": ("agent", "Agent"),
    "Farm": ("farm", "Farm"),
    "tool": ("tools.registry", "tool"),
    "current": ("worker", "running"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: a tool's process needs no HTTP client."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _FROM[name]
    return getattr(importlib.import_module(f".{module}", __name__), attribute)

"""AgentFarm for programmers: `from agentfarm_sdk import Farm, Agent, tool, current`. Nothing heavy is imported before it is used."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agent import Agent as Agent
    from .agent import Run as Run
    from .errors import AgentFarmError as AgentFarmError
    from .farm import Farm as Farm
    from .model import OpenAIModel as OpenAIModel
    from .panel import FarmView as FarmView
    from .panel import RunView as RunView
    from .reopened import open_run as open_run
    from .task import Task as Task
    from .tools.context import Context as Context
    from .tools.registry import happened as happened
    from .tools.registry import not_happened as not_happened
    from .tools.registry import tool as tool
    from .watching import watch as watch
    from .worker import current as current

__version__ = "0.1.0"

_PLACES = {
    "Agent": "agent",
    "Run": "agent",
    "AgentFarmError": "errors",
    "Farm": "farm",
    "Task": "task",
    "OpenAIModel": "model",
    "FarmView": "panel",
    "RunView": "panel",
    "open_run": "reopened",
    "watch": "watching",
    "Context": "tools.context",
    "happened": "tools.registry",
    "not_happened": "tools.registry",
    "tool": "tools.registry",
    "current": "worker",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext agentfarm_sdk`: the magics %agentfarm and %%agent, which import what they need when they are used.

    In kernels of agents' workers there are none: what a visitor asks there would be asked as the agent.
    """
    if os.environ.get("AGENTFARM_AGENT"):
        return

    def agentfarm(line: str) -> Any:
        """Look at the farm and ask it, from a cell: `%agentfarm help` lists what there is."""
        return importlib.import_module(".magics", __name__).agentfarm(line)

    def agent(line: str, cell: str) -> Any:
        """Give an agent the cell's text, and show what it does: `%agentfarm help` says how."""
        return importlib.import_module(".magics", __name__).agent(shell, line, cell)

    shell.register_magic_function(agentfarm, "line")
    shell.register_magic_function(agent, "cell")

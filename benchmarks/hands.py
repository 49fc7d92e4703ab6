"""The tool of the agent of farm.py: a file of its own, for kernels load it."""

import time

from agentfarm_sdk import tool


@tool(effect="read", timeout=600)
def block() -> str:
    """Block the thread for ever."""
    while True:
        time.sleep(600)

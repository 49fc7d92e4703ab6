"""Tools for an agent of the lab: one takes for ever once, so that something can happen meanwhile, and is quick the second time; one takes all memory."""

import platform
import time
from pathlib import Path

from agentfarm_sdk import tool


@tool(effect="read", timeout=600)
def linger(ctx, mark: str) -> str:
    """Stay for ten minutes; where the mark is there already, leave at once."""
    there = Path.home() / mark
    if there.exists():
        return "the second time"
    there.touch()
    time.sleep(600)
    return "the first time"


@tool(effect="read", timeout=120)
def gorge(ctx) -> str:
    """Take memory until there is no more."""
    held = []
    while True:
        held.append(b"\1" * (16 << 20))


@tool(effect="once", timeout=600)
def hold(ctx, mark: str) -> str:
    """Count the call, and stay until somebody lets go; say on which machine it was."""
    home = Path.home()
    with open(home / f"{mark}-calls", "a") as sink:
        sink.write("x")
    (home / mark).touch()
    while not (home / f"{mark}-go").exists():
        time.sleep(0.05)
    return platform.node()

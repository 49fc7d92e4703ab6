"""A run in a process of its own that kills itself: after its k-th commit, or inside a tool. For test_sdk_crash.py.

    python sdk_child.py FOLDER RUN commit:3|inside:first|never
Each effect adds a line to FOLDER/effects: what an outside world would have seen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from agentfarm_sdk import Agent, Context, tool
from agentfarm_sdk.localfile import LocalFile
from agentfarm_sdk.testing import FakeFarm, ScriptedModel, calls, says

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 3 else Path()
WHEN, _, WHERE = sys.argv[3].partition(":") if len(sys.argv) > 3 else ("never", "", "")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def effect(name: str, key: str) -> str:
    with (FOLDER / "effects").open("a") as file:
        file.write(f"{name} {key}\n")
        file.flush()
        os.fsync(file.fileno())
    if WHEN == "inside" and name == WHERE:
        die()
    return f"{name} done"


@tool(effect="once")
def first(ctx: Context) -> str:
    return effect("first", ctx.key)


@tool(effect="once")
def second(ctx: Context) -> str:
    return effect("second", ctx.key)


@tool(effect="idempotent")
def third(ctx: Context) -> str:
    return effect("third", ctx.key)


AGENT = Agent("crash", prompt="p", tools=[first, second, third])  # LocalFile.create runs it live
SCRIPT = ScriptedModel(calls("first") & calls("second"), calls("third"), says("done"))


class Counted(LocalFile):
    """Dies after its k-th commit of this process."""

    commits = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        with super().writing():
            yield
        Counted.commits += 1
        if WHEN == "commit" and Counted.commits == int(WHERE):
            die()


if __name__ == "__main__":
    with FakeFarm(FOLDER) as farm:
        farm.ledger = Counted(farm.ledger.path)
        run = farm.take_up(AGENT, sys.argv[2], SCRIPT)
        print(run.status, flush=True)

"""`agentfarm agent logs`: what an agent's server wrote, wherever it runs."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any
from urllib.parse import quote

from agentfarm_sdk.errors import Transient
from agentfarm_sdk.farm import Farm

from .show import Adder, Out

WAIT_SECONDS = 10
PAUSE_SECONDS = 2.0  # where somebody else waits there already, or the microserver cannot be asked


def add(verb: Adder) -> None:
    parser = verb("logs", show_logs, "the log of the agent's server, also of one that has ended")
    parser.add_argument("name")
    parser.add_argument("-n", "--lines", type=int, default=100, help="the last lines (100, at most 1000)")
    parser.add_argument("--follow", action="store_true", help="go on with what it writes, until interrupted")


def show_logs(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    path, told = f"/agents/{quote(asked.name, safe='')}/logs", ""
    answer = farm.request("GET", path, params={"lines": asked.lines})
    if out.as_json and not asked.follow:
        out.value(answer)
        return
    while True:
        for line in answer["lines"]:
            out.line(plain(line), line)
        if not asked.follow:
            return
        began = time.monotonic()
        try:
            answer, told = farm.request("GET", path, params=_behind(answer)), ""
        except Transient as error:
            answer = {**answer, "lines": []}
            if told != error.detail:
                told = error.detail
                print(f"agentfarm: {told}", file=sys.stderr, flush=True)
        if not answer["lines"] and time.monotonic() - began < PAUSE_SECONDS:
            time.sleep(PAUSE_SECONDS)


def _behind(answer: dict[str, Any]) -> dict[str, Any]:
    return {"lines": 1000, "after": answer["cursor"], "wait": WAIT_SECONDS}


def plain(line: str) -> str:
    """Return a line that does nothing to a terminal: programs of agents wrote it."""
    return "".join(one if one.isprintable() or one == "\t" else repr(one)[1:-1] for one in line)

"""`agentfarm up`, `doctor`, `db`: what needs no running farm."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..dotenv import with_dotenv
from ..launcher.up import Wish, up
from ..store import schema
from . import doctor
from .show import Out, command, noun

STATE = ".farm"


def add(nouns: Any) -> None:
    start = command(nouns, "up", bring_up, "run a farm on this machine until Ctrl-C", alone=True)
    start.add_argument("--port", type=int, help="the public port; 0 takes any free one (8000, or the last one)")
    start.add_argument("--port-base", type=int, metavar="PORT", help="all ports, counted from this one")
    start.add_argument("--no-demo", action="store_true", help="without demo agents and their first task")
    command(nouns, "doctor", examine, "what this machine lacks, and the way out", alone=True)
    verb = noun(nouns, "db", "the ledger's database (DB_CONNECTION_STRING)")
    verb("upgrade", upgrade, "bring it to this release; make a backup first", alone=True)


def state_directory(asked: argparse.Namespace) -> Path:
    return Path(asked.state or os.environ.get("AGENTFARM_STATE") or STATE).absolute()


def bring_up(asked: argparse.Namespace, out: Out) -> int:
    return up(Wish(state_directory(asked), asked.port, asked.port_base, not asked.no_demo))


def examine(asked: argparse.Namespace, out: Out) -> int:
    """Print every check with its way out; 1 where one fails."""
    found = doctor.examine(state_directory(asked), with_dotenv(os.environ))
    if out.as_json:
        out.value([{"check": one.name, "state": one.state, "found": one.found, "hint": one.hint} for one in found])
    else:
        for one in found:
            print(f"{one.state:<5} {one.name:<11} {one.found}" + (f"\n{'':17} {one.hint}" if one.hint else ""))
    return 1 if any(one.state == "fail" for one in found) else 0


def upgrade(asked: argparse.Namespace, out: Out) -> None:
    url = with_dotenv(os.environ).get("DB_CONNECTION_STRING") or f"sqlite:///{state_directory(asked)}/farm.sqlite"
    before, now = schema.upgrade(url)
    done = {"before": before, "now": now}
    if before == now:
        out.line(f"the database has the schema of this release already ({now})", done)
    else:
        out.line(f"the database went from {before or 'empty'} to {now}", done)

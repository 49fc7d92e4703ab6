"""`agentfarm NOUN VERB`: the farm from a terminal, by the same API as everybody. docs/operate.md lists verbs and exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import agentfarm_sdk
from agentfarm_sdk.errors import AgentFarmError, Forbidden, Invalid, Transient, Unauthenticated, UserError
from agentfarm_sdk.farm import Farm

from . import agents, audit, budgets, cases, chaos, farm, inbox, local, microservers, placements, pools, tasks
from .show import Out

FAILED, USAGE, AWAY, NOT_PERMITTED, INTERRUPTED = 1, 2, 3, 4, 130
EPILOG = """exit codes: 0 done; 1 it failed (a task, a check); 2 the command or its input is wrong; 3 the farm is away;
4 not permitted; 130 interrupted. The farm is found by AGENTFARM_URL and AGENTFARM_TOKEN, --state DIR, or .farm/client.json."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="agentfarm", description="A farm of AI agents on JupyterHub.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"agentfarm {agentfarm_sdk.__version__}")
    nouns = top.add_subparsers(dest="noun", metavar="NOUN", required=True)
    modules = (local, agents, cases, tasks, inbox, budgets, audit, farm, microservers, placements, pools, chaos)
    for add in (module.add for module in modules):
        add(nouns)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Everything that can be told in a sentence is."""
    asked = parser().parse_args(argv)
    out = Out(as_json=getattr(asked, "json", False))
    try:
        if getattr(asked, "alone", False):  # needs no farm
            return int(asked.act(asked, out) or 0)
        if getattr(asked, "offline", lambda _: False)(asked):
            return int(asked.act(None, asked, out) or 0)
        with connect(asked) as found:
            return int(asked.act(found, asked, out) or 0)
    except AgentFarmError as error:
        return tell(error)
    except TimeoutError as error:
        print(f"agentfarm: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `agentfarm … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of this machine: its disk is full, a file may not be read
        print(f"agentfarm: {error}. See its disk and its rights; then the same command again", file=sys.stderr)
        return FAILED


def connect(asked: argparse.Namespace) -> Farm:
    """Return the farm that the asker means. Raises Invalid."""
    named = getattr(asked, "state", None) or os.environ.get("AGENTFARM_STATE")
    if not named:
        return Farm()
    file = Path(named) / "client.json"
    try:
        client = json.loads(file.read_text())
        return Farm(str(client["url"]), str(client["token"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Invalid(f"{file} cannot be read: is a farm up there?", hint="agentfarm up --state DIR") from error


def tell(error: AgentFarmError) -> int:
    """Print the sentence and the way out; return the exit code."""
    print(f"agentfarm: {error.detail}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
    if isinstance(error, Transient):
        return AWAY
    if isinstance(error, Forbidden | Unauthenticated):
        return NOT_PERMITTED
    return USAGE if isinstance(error, UserError) else FAILED

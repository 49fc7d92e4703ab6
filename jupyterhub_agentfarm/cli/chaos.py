"""`agentfarm chaos`: maltreats a scratch farm, and says whether every promise held."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path
from random import SystemRandom
from typing import Any

from agentfarm_sdk.errors import AgentFarmError, Invalid

from ..chaos.faults import BY_NAME
from ..chaos.scratch import Scratch, prepared
from ..chaos.trial import Trial, chosen
from .show import Out, command


def add(nouns: Any) -> None:
    verb = command(
        nouns, "chaos", maltreat, "kill, cut off and confuse a scratch farm, and judge its record", alone=True
    )
    verb.add_argument("--duration", type=float, default=60.0, metavar="SECONDS", help="how long faults strike (60)")
    verb.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="made for the trial")
    verb.add_argument("--seed", type=int, help="the same faults and tasks again")
    verb.add_argument("--faults", default="", help="only these, with commas: " + ", ".join(BY_NAME))
    verb.add_argument("--lease", type=float, default=4.0, metavar="SECONDS", help="of the scratch farm's leases (4)")
    verb.add_argument("--force", action="store_true", help="take a --state that is not a scratch farm's")


def maltreat(asked: argparse.Namespace, out: Out) -> int:
    """Run one trial; 1 where a promise was broken (the farm's directory then stays)."""
    try:
        faults = chosen(asked.faults, asked.database)
    except KeyError as error:
        raise Invalid(f"there is no fault {error.args[0]}", hint="there are: " + ", ".join(BY_NAME)) from None
    if not faults:
        raise Invalid("none of these faults is for this database", hint="leave --faults away")
    if not 2.0 <= asked.lease <= 60.0:
        raise Invalid("a lease is 2 to 60 seconds here", hint="leave --lease away")
    seed = asked.seed if asked.seed is not None else SystemRandom().randrange(1_000_000)
    directory = prepared(Path(asked.state) if asked.state else None, asked.force)
    say(f"a scratch farm in {directory}, seed {seed}")
    farm = Scratch(directory, asked.database, asked.lease)
    try:
        farm.start()
        verdict = Trial(farm, seed, faults, say).run(asked.duration)
    except TimeoutError as error:
        raise AgentFarmError(f"the farm did not come back: {error}", hint=f"its logs are in {directory}") from error
    finally:
        farm.stop()
    if out.as_json:
        out.value(dataclasses.asdict(verdict))
    else:
        for name, times in verdict.faults.items():
            print(f"{times:>4}  {name}")
        ended = ", ".join(f"{count} {status}" for status, count in sorted(verdict.runs.items()))
        print(f"runs: {ended}; {verdict.requeued} taken up again, {verdict.doubts} doubts, {verdict.effects} effects")
        for one in verdict.violations:
            print(f"BROKEN  {one}")
        print("every promise held" if not verdict.violations else f"look into {directory}, seed {seed}")
    if verdict.violations:
        return 1
    if not asked.state:
        shutil.rmtree(directory.parent, ignore_errors=True)
    return 0


def say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)

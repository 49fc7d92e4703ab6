"""`agentfarm chaos`: maltreats a scratch farm, and says whether every promise held."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import signal
import sys
from pathlib import Path
from random import SystemRandom
from typing import Any

from agentfarm_sdk.errors import AgentFarmError, Invalid

from ..chaos.faults import BY_NAME, Fault
from ..chaos.scratch import Scratch, prepared
from ..chaos.trial import Struck, Trial, Verdict, chosen, matrix
from ..chaos.walk import Walked, grid
from ..chaos.work import BRINGS
from .show import Out, command, table


def add(nouns: Any) -> None:
    verb = command(
        nouns, "chaos", maltreat, "kill, cut off and confuse a scratch farm, and judge its record", alone=True
    )
    verb.add_argument("--duration", type=float, default=60.0, metavar="SECONDS", help="how long faults strike (60)")
    verb.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="made for the trial")
    verb.add_argument(
        "--standby", action="store_true", help="with a second service: faults strike the one that leads (postgresql)"
    )
    verb.add_argument("--seed", type=int, help="the same faults and tasks again")
    verb.add_argument("--faults", default="", help="only these, with commas: " + ", ".join(BY_NAME))
    verb.add_argument(
        "--at",
        default="",
        metavar="KIND",
        help="strike when the ledger has just got an event of these kinds, with commas",
    )
    verb.add_argument("--strike", default="", metavar="PROCESS", help="the same as --faults")
    verb.add_argument(
        "--all", action="store_true", help="each process behind each kind of event, in order; --duration ends it not"
    )
    verb.add_argument(
        "--points",
        type=Path,
        metavar="FILE",
        help="where each point of a matrix is told: what has held there is not walked again",
    )
    verb.add_argument("--lease", type=float, default=4.0, metavar="SECONDS", help="of the scratch farm's leases (4)")
    verb.add_argument("--force", action="store_true", help="take a --state that is not a scratch farm's")


def maltreat(asked: argparse.Namespace, out: Out) -> int:
    """Run one trial; 1 where a promise was broken (the farm's directory then stays)."""
    faults, kinds = _wanted(asked)
    seed = asked.seed if asked.seed is not None else SystemRandom().randrange(1_000_000)
    walked = Walked(asked.points, asked.database)
    pairs = matrix(faults, kinds) if asked.all or kinds else []
    left = walked.left(pairs)
    if pairs and not left:
        out.line(
            f"each point of this matrix has held before: {asked.points}",
            dataclasses.asdict(Verdict(seed, asked.database)),
        )
        return 0
    directory = prepared(Path(asked.state) if asked.state else None, asked.force)
    say(f"a scratch farm in {directory}, seed {seed}")
    if len(left) < len(pairs):
        say(f"{len(pairs) - len(left)} points of {len(pairs)} have held before: {asked.points}")
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # then, too, the farm is stopped: agents' servers outlive us
    farm = Scratch(directory, asked.database, asked.lease, asked.standby)
    try:
        farm.start()
        if farm.postgres and not farm.room and not (asked.strike or asked.faults):
            faults = [fault for fault in faults if fault.name != "disk-full"]
            left = [(fault, kind) for fault, kind in left if fault.name != "disk-full"]
            say("disk-full is left away: PostgreSQL got no disk of its own, which takes root")
        trial = Trial(farm, seed, faults, say, lambda struck: _judged(struck, walked))
        verdict = trial.walk(left) if left else trial.run(asked.duration)
    except TimeoutError as error:
        raise AgentFarmError(f"the farm did not come back: {error}", hint=f"its logs are in {directory}") from error
    finally:
        farm.stop()
    _tell(verdict, walked if pairs else None, directory, out)
    if verdict.violations:
        return 1
    if not asked.state:
        shutil.rmtree(directory.parent, ignore_errors=True)
    return 0


def _wanted(asked: argparse.Namespace) -> tuple[list[Fault], list[str]]:
    """Return the faults and kinds of events that were asked for. Raises Invalid."""
    try:
        faults = chosen(asked.strike or asked.faults, asked.database, asked.all)
    except KeyError as error:
        raise Invalid(f"there is no fault {error.args[0]}", hint="there are: " + ", ".join(BY_NAME)) from None
    if not faults:
        raise Invalid("none of these faults is for this database", hint="leave --faults away")
    kinds = [kind.strip() for kind in asked.at.split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in BRINGS]:
        raise Invalid(f"no work of a trial brings {unknown[0]}", hint="there are: " + ", ".join(BRINGS))
    if asked.points and not (asked.all or kinds):
        raise Invalid("--points is for a matrix", hint="add --all, or --at with kinds of events")
    if asked.standby and asked.database == "sqlite":
        raise Invalid("SQLite cannot have a standby", hint="add --database postgresql")
    if not 2.0 <= asked.lease <= 60.0:
        raise Invalid("a lease is 2 to 60 seconds here", hint="leave --lease away")
    return faults, kinds


def _judged(struck: Struck, walked: Walked) -> None:
    """Tell what came of a strike, as soon as the tasks have ended that were in flight."""
    walked.add(struck)
    for one in struck.broken:
        say(f"BROKEN by {struck.fault}{' behind ' + struck.kind if struck.kind else ''}: {one}")


def _tell(verdict: Verdict, walked: Walked | None, directory: Path, out: Out) -> None:
    """Print what was struck behind which kind of event, how many tasks were in flight, and whether their promises held."""
    if out.as_json:
        out.value(dataclasses.asdict(verdict))
        return
    if walked:
        print(table(*grid(walked.points)))
    for one in verdict.strikes if not walked else ():
        held = "held" if not one.broken else f"BROKEN ({len(one.broken)})"
        print(f"{one.fault:<16}  {one.kind or 'anywhen':<22}  {len(one.tasks):>2} in flight  {held}")
    ended = ", ".join(f"{count} {status}" for status, count in sorted(verdict.runs.items()))
    print(f"runs: {ended}; {verdict.requeued} taken up again, {verdict.doubts} doubts, {verdict.effects} effects")
    print(f"{len(verdict.strikes)} strikes in {verdict.seconds:.0f} s")
    for said in verdict.violations:
        print(f"BROKEN  {said}")
    print("every promise held" if not verdict.violations else f"look into {directory}, seed {verdict.seed}")


def say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)

"""`agentfarm up`, `doctor`, `db`: what needs no running farm."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..dotenv import with_dotenv
from ..launcher.up import Wish, up
from ..store import restoring, schema
from . import audit, doctor
from .show import Out, command, noun

STATE = ".farm"


def add(nouns: Any) -> None:
    start = command(nouns, "up", bring_up, "run a farm on this machine until Ctrl-C", alone=True)
    start.add_argument("--port", type=int, help="the public port; 0 takes any free one (8000, or the last one)")
    start.add_argument("--port-base", type=int, metavar="PORT", help="all ports, counted from this one")
    start.add_argument("--no-demo", action="store_true", help="without demo agents and their first task")
    start.add_argument("--standby", action="store_true", help="with a second service that takes over (PostgreSQL)")
    command(nouns, "doctor", examine, "what this machine lacks, and the way out", alone=True)
    verb = noun(nouns, "db", "the ledger's database (DB_CONNECTION_STRING)")
    verb("upgrade", upgrade, "bring it to this release; make a backup first", alone=True)
    save = verb("backup", make_backup, "copy it to a file while it is in use", alone=True)
    save.add_argument("file")
    put_back = verb(
        "restore", restore_backup, "put a backup in its place: unfinished runs wait for a person", alone=True
    )
    put_back.add_argument("file")


def state_directory(asked: argparse.Namespace) -> Path:
    return Path(asked.state or os.environ.get("AGENTFARM_STATE") or STATE).absolute()


def bring_up(asked: argparse.Namespace, out: Out) -> int:
    standby = asked.standby or os.environ.get("AGENTFARM_STANDBY", "") not in ("", "0")
    return up(Wish(state_directory(asked), asked.port, asked.port_base, not asked.no_demo, standby))


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
    before, now = schema.upgrade(database_url(asked))
    done = {"before": before, "now": now}
    if before == now:
        out.line(f"the database has the schema of this release already ({now})", done)
    else:
        out.line(f"the database went from {before or 'empty'} to {now}", done)


def database_url(asked: argparse.Namespace) -> str:
    return with_dotenv(os.environ).get("DB_CONNECTION_STRING") or f"sqlite:///{state_directory(asked)}/farm.sqlite"


def make_backup(asked: argparse.Namespace, out: Out) -> None:
    file = Path(asked.file)
    restoring.backup(database_url(asked), file)
    out.line(f"{file}  {file.stat().st_size} bytes", {"file": str(file), "bytes": file.stat().st_size})


def restore_backup(asked: argparse.Namespace, out: Out) -> None:
    anchors = state_directory(asked) / "anchors.jsonl"
    done = restoring.restore(database_url(asked), Path(asked.file), audit.heads(anchors) if anchors.exists() else [])
    if anchors.exists():  # those of the former life; the file begins anew
        anchors.rename(anchors.with_name(f"anchors-{done.before}.jsonl"))
    lines = [
        f"restored: epoch {done.epoch} follows {done.before}"
        + (f"; the old ledger is {done.kept}" if done.kept else "")
    ]
    if done.waiting:
        lines.append(f"{len(done.waiting)} unfinished runs wait; let one go on by: agentfarm task resume TASK")
    if done.ahead:
        lines.append(
            f"{len(done.ahead)} runs were further than this backup; what they did since is not in it: {', '.join(done.ahead[:20])}"
        )
    out.line(
        "\n".join(lines),
        {"epoch": done.epoch, "before": done.before, "waiting": done.waiting, "ahead": done.ahead, "kept": done.kept},
    )

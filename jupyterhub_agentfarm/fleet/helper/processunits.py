"""Units without systemd: each server is a process with a keeper. What this backend cannot isolate it says in `facts`.

Of a unit in STATE/units/<unit>/: unit.json (who it is), exit.json (how it ended), log. Workspaces are in STATE/workspaces.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import checks, disks, facts, logfiles, walls, workspaces
from .checks import UNIT, Refused
from .keeper import STOP_GRACE, detach, keep
from .processes import (
    MARK,
    alive,
    boot_id,
    descendants,
    make_workspace,
    read_json,
    send,
    sweep,
    used,
)


def state_of(folder: Path) -> dict[str, Any]:
    """Return {unit, state: running | exited, exit_code, pid, started_at, boot_id, uid, about}; {} where there is none."""
    unit = read_json(folder / "unit.json")
    if not unit:
        return {}
    told = {
        "unit": folder.name,
        "pid": unit["pid"],
        "started_at": unit["started_at"],
        "uid": unit.get("uid"),
        "boot_id": unit["boot_id"],
        "about": unit.get("about", {}),
    }
    if unit["boot_id"] == boot_id() and alive(unit["pid"], unit["start"]):
        return {**told, "state": "running", "exit_code": None}
    ended = read_json(folder / "exit.json")
    same = ended.get("pid") == unit["pid"] and ended.get("start") == unit["start"]
    why = "" if same else ("the machine was restarted" if unit["boot_id"] != boot_id() else "its keeper was killed")
    return {**told, "state": "exited", "exit_code": ended.get("code", -9) if same else -9, "reason": why}


def start(state: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Start a unit; one that runs is left as it is."""
    spec = checks.start(asked)
    if spec.uid is not None and os.getuid() != 0:
        raise checks.invalid("only root gives a server a user of its own")
    folder, home = state / "units" / spec.unit, state / "workspaces" / spec.workspace
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = state_of(folder)
    if known.get("state") == "running":
        return known
    sweep(folder)
    spec.env.update({"HOME": str(home), MARK: str(folder)})
    for of_its_former_life in ("unit.json", "exit.json"):
        (folder / of_its_former_life).unlink(missing_ok=True)
    make_workspace(home, spec.uid)
    walls.guard(state / "units", table(state), spec, users=False)
    receive, ready = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        detach(receive, ready)
        try:
            keep(folder, spec, home, ready)
        except OSError as error:  # e.g. the disk is full: the server ends with its keeper
            os.write(ready, json.dumps({"error": str(error)}).encode())
        finally:
            os._exit(1)
    os.close(ready)
    os.wait()
    answer = read_answer(receive)
    if answer is None or "error" in answer:
        why = (answer or {}).get("error", "its keeper died")
        raise Refused("start", f"the server could not be started: {why}", "see the unit's log")
    return state_of(folder)


def read_answer(receive: int) -> dict[str, Any] | None:
    with os.fdopen(receive, "rb") as source:
        text = source.read()
    return json.loads(text) if text else None


def stop(state: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Stop a unit with all its descendants; `now`: without grace. Answers when it is gone."""
    folder = folder_of(state, asked)
    unit = read_json(folder / "unit.json")
    if not unit or unit["boot_id"] != boot_id():
        sweep(folder)
        walls.drop(state / "units", table(state), folder.name, users=False)
        return state_of(folder)
    if alive(unit["keeper"], unit["keeper_start"]):
        send(unit["keeper"], signal.SIGUSR1 if asked.get("now") else signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE + 6
        while alive(unit["keeper"], unit["keeper_start"]) and time.monotonic() < deadline:
            time.sleep(0.02)
    for pid, begun in ((unit["keeper"], unit["keeper_start"]), (unit["pid"], unit["start"])):
        if alive(pid, begun):
            for below in reversed(descendants(pid)):
                send(below, signal.SIGKILL)
            send(pid, signal.SIGKILL)
    while alive(unit["pid"], unit["start"]):
        time.sleep(0.02)
    sweep(folder)
    walls.drop(state / "units", table(state), folder.name, users=False)
    return state_of(folder)


def table(state: Path) -> str:
    """Return the name of this farm's table of nft: several farms may stand on one machine."""
    return f"agentfarm_{hashlib.sha256(str(state).encode()).hexdigest()[:8]}"


def keep_walls(state: Path, _asked: dict[str, Any]) -> dict[str, Any]:
    """Bring the walls in step: somebody may have flushed the machine's rules, and names move."""
    return {"unknown": {}} if walls.missing() else walls.sync(state / "units", table(state), users=False)


def folder_of(state: Path, asked: dict[str, Any]) -> Path:
    return state / "units" / checks.unit(asked)


def show(state: Path, asked: dict[str, Any]) -> dict[str, Any]:
    return state_of(folder_of(state, asked))


def listed(state: Path, _asked: dict[str, Any]) -> dict[str, Any]:
    root = state / "units"
    names = sorted(entry for entry in os.listdir(root) if UNIT.fullmatch(entry)) if root.is_dir() else []
    items = [told for name in names if (told := state_of(root / name))]
    running = [one for one in items if one["state"] == "running"]
    taken = used([one["pid"] for one in running]) if running else {}
    for one in running:
        one.update(taken[one["pid"]])
    return {"items": items}


def forget(state: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Remove what is kept of a unit that has ended."""
    folder = folder_of(state, asked)
    if state_of(folder).get("state") == "running":
        raise checks.invalid(f"{folder.name} runs", "stop it first")
    shutil.rmtree(folder, ignore_errors=True)
    return {}


def logs(state: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the last lines of a unit's log, or those behind a cursor."""
    return logfiles.read(folder_of(state, asked), checks.lines(asked), checks.after(asked), checks.wait(asked))


def about_here(state: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return facts of the machine; and what this backend cannot isolate, in words."""
    root = state / "units"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    python = asked.get("python")
    own_users = os.getuid() == 0 and (not python or can_use(str(python), str(state)))
    unwalled = "agents share one user" if not own_users else walls.missing()
    missing = (
        "memory and CPU of servers are not limited, and each sees what the others' command lines are (no systemd here)"
    )
    if unwalled:
        missing = f"where servers may go is not held ({unwalled}); {missing}"
    if not own_users:
        reach = (
            "all servers run as root: each can reach everything of the farm"
            if os.getuid() == 0
            else "all servers run as one user: each can reach the others' files and the farm's own"
        )
        missing = f"agents are not isolated ({reach}); {missing}"
    return {
        **facts.machine(root, state / "workspaces"),
        "backend": "process",
        "own_users": own_users,
        "isolation": missing,
        "walls": "" if unwalled else "nft",
    }


def about_disks(state: Path, _asked: dict[str, Any]) -> dict[str, Any]:
    return disks.told(state / "units")


def can_use(program: str, folder: str) -> bool:
    """Say whether another user could run the program and reach the folder: tried in a child that is one."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(61_000)
            os.setuid(61_000)
            done = subprocess.run(
                [program, "-c", "import jupyterhub, agentfarm_sdk"],
                cwd="/",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            os._exit(0 if done.returncode == 0 and os.access(folder, os.X_OK) else 1)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def operations(state: Path) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """Return what may be asked of the units in this state directory."""
    known = {
        "start": start,
        "stop": stop,
        "show": show,
        "list": listed,
        "logs": logs,
        "forget": forget,
        "facts": about_here,
        "disks": about_disks,
        "walls": keep_walls,
    }
    ops = {name: partial(op, state) for name, op in known.items()}
    return {**ops, **workspaces.operations(state / "workspaces", lambda _asked: None)}  # one farm's alone

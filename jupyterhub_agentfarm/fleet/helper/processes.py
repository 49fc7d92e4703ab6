"""Processes as /proc tells of them, and small files that survive a power cut. For both backends."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

SWEEP_SECONDS = 8.0
MARK = "AGENTFARM_UNIT"  # in the environment of everything that a unit of the process backend starts: its folder


def stat_of(pid: int) -> tuple[str, int, str] | None:
    """Return (state, parent, start time in ticks) of a process, or None. The start time tells a reused pid."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1]), fields[19]


def alive(pid: int | None, start: str | None) -> bool:
    """Say whether that very process runs (a zombie does not)."""
    found = stat_of(pid) if pid else None
    return found is not None and found[2] == start and found[0] not in "ZX"


def descendants(root: int) -> list[int]:
    """Return the pids below a process, nearest first."""
    below: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := stat_of(int(entry))):
            below.setdefault(found[1], []).append(int(entry))
    found_pids, queue = [], [root]
    while queue:
        children = below.get(queue.pop(0), [])
        found_pids += children
        queue += children
    return found_pids


def used(roots: list[int]) -> dict[int, dict[str, Any]]:
    """Return what each of these and all below it use: {memory in bytes, shared pages with each, cpu_seconds, tasks}; one look at all."""
    second, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    below: dict[int, list[int]] = {}
    known: dict[int, tuple[int, float, int]] = {}
    for entry in os.listdir("/proc"):
        try:
            text = Path(f"/proc/{int(entry)}/stat").read_text()
        except (OSError, ValueError):
            continue
        fields = text[text.rindex(")") + 2 :].split()
        below.setdefault(int(fields[1]), []).append(int(entry))
        ticks = sum(int(one) for one in fields[11:15])  # its own, and of those below it that have ended
        known[int(entry)] = (int(fields[21]) * page, ticks / second, int(fields[17]))
    found = {}
    for root in roots:
        queue, mine = [root], []
        while queue:
            pid = queue.pop()
            queue += below.get(pid, [])
            if pid in known:
                mine.append(known[pid])
        memory, seconds, tasks = (sum(one[at] for one in mine) for at in range(3))
        found[root] = {"memory": memory, "cpu_seconds": seconds, "tasks": tasks}
    return found


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def marked(folder: Path) -> list[int]:
    """Return the pids whose environment names this unit: also what lost its parents with a killed keeper."""
    mark, found = f"{MARK}={folder}".encode(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
            except OSError:  # it is gone, or another user's
                continue
    return found


def sweep(folder: Path) -> None:
    """End everything that still runs of a unit whose keeper is gone; what it starts meanwhile too."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while (left := [pid for pid in marked(folder) if (stat_of(pid) or ("Z",))[0] not in "ZX"]) and (
        time.monotonic() < deadline
    ):
        for pid in left:
            send(pid, signal.SIGKILL)
        time.sleep(0.02)


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_json(path: Path, value: Any) -> None:
    """Write atomically and durably."""
    temporary = path.with_suffix(".new")
    with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as sink:
        json.dump(value, sink)
        sink.flush()
        os.fsync(sink.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def make_workspace(path: Path, uid: int | None) -> None:
    """Make a folder that is its user's alone; one that came from elsewhere is given to him."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if uid is None or path.stat().st_uid == uid:
        return
    for folder, folders, files in os.walk(path, topdown=False):  # itself last: one that was cut short begins anew
        for name in (*folders, *files, "."):
            os.chown(os.path.join(folder, name), uid, uid, follow_symlinks=False)

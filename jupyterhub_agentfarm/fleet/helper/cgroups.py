"""Control groups, version 1 and 2: whether anything is left in a unit's, and how often it was out of memory."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from .processes import send

ROOT = Path("/sys/fs/cgroup")
HIERARCHIES = ("", "unified", "systemd")  # version 2; hybrid; version 1
END_SECONDS = 5.0


def pids(group: str) -> list[int]:
    """Return the processes in a group and in those below it, whichever version there is."""
    found: set[int] = set()
    for hierarchy in HIERARCHIES:
        for folder, _below, files in os.walk(ROOT / hierarchy / group):
            if "cgroup.procs" in files:
                try:
                    found |= {int(line) for line in Path(folder, "cgroup.procs").read_text().split()}
                except OSError:  # it went away, or holds threads only
                    continue
    return sorted(found)


def is_empty(group: str) -> bool:
    """Say whether nothing of it is left: a group that is not there holds nothing."""
    return not pids(group)


def end_all(group: str) -> bool:
    """Kill what is in a group until it is empty; say whether it is."""
    deadline = time.monotonic() + END_SECONDS
    while left := pids(group):
        for pid in left:
            send(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def cpu_seconds(group: str) -> float:
    """Return the CPU time of what runs in a group, and of what it has reaped: where systemd does not count it."""
    ticks = 0
    for pid in pids(group):
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # it is gone
            continue
        ticks += sum(int(one) for one in text[text.rindex(")") + 2 :].split()[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def oom_kills(group: str) -> int:
    """Return how many processes of the group were killed for memory since it began."""
    for path in (ROOT / group / "memory.events", ROOT / "memory" / group / "memory.oom_control"):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    return 0

"""Ends connections of the farm that nobody holds any more: sshd keeps their forwarded ports long after the line was cut.

A microserver whose line was cut still has the former connection's listening ports when the daemon comes back; sshd gives them up only when
it finds its peer gone, which may take hours.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from . import checks
from .processes import send, stat_of

NAMES = ("sshd", "sshd-session")
LOOPBACK = ("0100007F", "00000000000000000000000001000000")
LISTEN = "0A"
WAIT = 2.0


def release(asked: dict[str, Any]) -> dict[str, Any]:
    """End the sshd sessions that listen on these loopback ports, but not the one that asks. Returns {ended, busy: [ports of others]}."""
    wanted = checks.ports(asked)
    ours = ancestors(os.getpid())
    ended: list[int] = []
    deadline = time.monotonic() + WAIT
    while True:
        holders = {
            port: holder for port, inode in listening(wanted).items() if (holder := holder_of(inode)) not in ours
        }
        sessions = {pid for pid in holders.values() if pid and name_of(pid) in NAMES}
        if not sessions or time.monotonic() > deadline:
            return {"ended": sorted(ended), "busy": sorted(holders)}
        for pid in sessions - set(ended):
            send(pid, signal.SIGTERM)
            ended.append(pid)
        time.sleep(0.02)


def listening(ports: list[int]) -> dict[int, str]:
    """Return the inodes of the sockets that listen on these loopback ports."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == LISTEN and address in LOOPBACK and int(port, 16) in ports:
                found[int(port, 16)] = fields[9]
    return found


def holder_of(inode: str) -> int:
    """Return which process has the socket open, the youngest of several; 0 where none is found."""
    for entry in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True):
        try:
            for file in os.scandir(f"/proc/{entry}/fd"):
                if os.readlink(file.path) == f"socket:[{inode}]":
                    return entry
        except OSError:
            continue
    return 0


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def ancestors(pid: int) -> set[int]:
    """Return the process and those above it."""
    found: set[int] = set()
    while pid and pid not in found:
        found.add(pid)
        pid = (stat_of(pid) or ("", 0, ""))[1]
    return found

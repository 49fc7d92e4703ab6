"""Ends connections of the farm that nobody holds any more: sshd keeps their forwarded ports long after the line was cut.

A microserver whose line was cut still has the former connection's listening ports when the daemon comes back; sshd gives them up only when
it finds its peer gone, which may take hours. Another farm's connection, from another address, is left alone.
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
LISTEN, ESTABLISHED = "0A", "01"
WAIT = 2.0


def release(asked: dict[str, Any]) -> dict[str, Any]:
    """End the sshd sessions that listen on these loopback ports, but not the one that asks. Returns {ended, busy: [ports of others]}."""
    wanted = checks.ports(asked)
    ours = ancestors(os.getpid())
    door = int((os.environ.get("SSH_CONNECTION", "").split() or ["0"])[-1])  # sshd's own port
    here = {peer for pid in ours for peer in peers(pid, door)}
    ended: list[int] = []
    deadline = time.monotonic() + WAIT
    while True:
        holders = {
            port: holder for port, inode in listening(wanted).items() if (holder := holder_of(inode)) not in ours
        }
        sessions = {pid for pid in holders.values() if pid and name_of(pid) in NAMES and same_farm(pid, door, here)}
        if not sessions or time.monotonic() > deadline:
            return {"ended": sorted(ended), "busy": sorted(holders)}
        for pid in sessions - set(ended):
            send(pid, signal.SIGTERM)
            ended.append(pid)
        time.sleep(0.02)


def same_farm(pid: int, port: int, here: set[str]) -> bool:
    """Say whether a session comes from where the one that asks comes from, or from nowhere any more."""
    there = peers(pid, port)
    return not there or not here or bool(there & here)


def peers(pid: int, port: int) -> set[str]:
    """Return the addresses, as /proc writes them, of those whom the process speaks to at this port of its own."""
    inodes = sockets(pid)
    return {
        fields[2].partition(":")[0]
        for fields in rows()
        if fields[3] == ESTABLISHED and fields[9] in inodes and int(fields[1].partition(":")[2], 16) == port
    }


def rows() -> list[list[str]]:
    """Return the fields of this machine's TCP sockets."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            found += [row.split() for row in Path(table).read_text().splitlines()[1:]]
        except OSError:
            continue
    return found


def sockets(pid: int) -> set[str]:
    """Return the inodes of the sockets that the process has open."""
    found = set()
    try:
        for file in os.scandir(f"/proc/{pid}/fd"):
            if (leads := os.readlink(file.path)).startswith("socket:["):
                found.add(leads[len("socket:[") : -1])
    except OSError:  # it has ended
        return found
    return found


def listening(ports: list[int]) -> dict[int, str]:
    """Return the inodes of the sockets that listen on these loopback ports."""
    found = {}
    for fields in rows():
        address, _, port = fields[1].partition(":")
        if fields[3] == LISTEN and address in LOOPBACK and int(port, 16) in ports:
            found[int(port, 16)] = fields[9]
    return found


def holder_of(inode: str) -> int:
    """Return which process has the socket open, the youngest of several; 0 where none is found."""
    for entry in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True):
        if inode in sockets(entry):
            return entry
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

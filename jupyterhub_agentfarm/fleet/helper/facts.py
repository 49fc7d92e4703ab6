"""What the machine has: bytes, cores, load, kernel. Read anew at each question; nothing is kept."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from . import gpus, probe
from .checks import VERSION
from .processes import boot_id


def machine(folder: Path, workspaces: Path) -> dict[str, Any]:
    """Return facts that every backend tells. `folder`: the helper's own, for locks. `workspaces`: whose disk is told.

    `time` is the clock at the beginning, `took` the seconds from then to the end: so that the way can be told from the clock.
    """
    now, began = time.time(), time.monotonic()
    memory, flags = meminfo(), probe.flags()
    told = {
        **room(workspaces if workspaces.is_dir() else folder), **gpus.told(folder), "pressure": pressure(), "cpu_time": cpu_time(),
        "boot_id": boot_id(), "cpus": os.cpu_count() or 1, "load": os.getloadavg()[0], "memory": memory["MemTotal"],
        "memory_free": memory["MemAvailable"], "uptime": uptime(),
        "avx2": "avx2" in flags, "cpu_flags": flags, "os": system(), "time": now, "version": VERSION, "hostname": platform.node(),
        "arch": platform.machine(), "kernel": platform.release(), "python": platform.python_version(), "helper": helper_hash(),
    }  # fmt: skip
    return {**told, "took": time.monotonic() - began}


def room(folder: Path) -> dict[str, int]:
    """Return the size of the folder's file system and what is left of it: bytes, and inodes where it counts them (0: it does not)."""
    told = os.statvfs(folder)
    return {
        "disk": told.f_blocks * told.f_frsize, "disk_free": told.f_bavail * told.f_frsize,
        "inodes": told.f_files, "inodes_free": told.f_favail,
    }  # fmt: skip


def pressure() -> dict[str, dict[str, float]]:
    """Return which part of the last minute some, or all, that would work waited for memory, disks, CPUs. {} where the kernel does not tell."""
    found = {}
    for what in ("memory", "io", "cpu"):
        try:
            rows = [line.split() for line in Path(f"/proc/pressure/{what}").read_text().splitlines()]
        except OSError:
            continue
        found[what] = {kind: round(float(words[1].split("=")[1]) / 100, 4) for kind, *words in rows}
    return found


def cpu_time() -> dict[str, float]:
    """Return the seconds since the boot that CPUs were busy, and all that they had; of all CPUs together."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    whole = sum(ticks)  # user nice system idle iowait irq softirq steal: what guests take is in the first two
    second = os.sysconf("SC_CLK_TCK")
    return {"busy": (whole - ticks[3] - ticks[4]) / second, "all": whole / second}


def meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return found


def system() -> str:
    """Return which system runs, e.g. ubuntu-22.04."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return ""
    known = dict(line.split("=", 1) for line in lines if "=" in line)
    return "-".join(known[name].strip('"') for name in ("ID", "VERSION_ID") if name in known)


def uptime() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def helper_hash() -> str:
    """Return the SHA-256 of the file that this helper is; "" where it runs as a folder."""
    try:
        return hashlib.sha256(Path(sys.argv[0]).read_bytes()).hexdigest()
    except OSError:
        return ""

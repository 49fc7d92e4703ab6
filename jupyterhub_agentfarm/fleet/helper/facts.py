"""What the machine has: bytes, cores, load, kernel. Read anew at each question; nothing is kept."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from . import gpus
from .checks import VERSION
from .processes import boot_id


def machine(folder: Path) -> dict[str, Any]:
    """Return facts that every backend tells. `folder`: where units and workspaces are (its disk)."""
    memory = meminfo()
    disk, flags = shutil.disk_usage(folder), cpu_flags()
    return {
        "boot_id": boot_id(), "cpus": os.cpu_count() or 1, "load": os.getloadavg()[0], "memory": memory["MemTotal"],
        "memory_free": memory["MemAvailable"], "disk": disk.total, "disk_free": disk.free, "uptime": uptime(),
        "avx2": "avx2" in flags, "cpu_flags": flags, "os": system(), "time": time.time(), "version": VERSION, "hostname": platform.node(),
        "arch": platform.machine(), "kernel": platform.release(), "python": platform.python_version(), "helper": helper_hash(), "gpus": list(gpus.found()),
    }  # fmt: skip


def meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return found


def cpu_flags() -> list[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "").partition(":")[2].split()


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
        return hashlib.sha256(Path(sys.path[0]).read_bytes()).hexdigest()
    except OSError:
        return ""

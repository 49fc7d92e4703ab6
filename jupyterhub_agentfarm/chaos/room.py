"""A small disk of the trial's own that can really be full: a tmpfs, which only this process and its children see."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x20000
CHUNK = 1 << 20


def mounted(folder: Path, megabytes: int) -> bool:
    """Put a disk of that size at `folder`; False where this is not allowed (it takes root). It is gone when we end."""
    if os.getuid() != 0 or ctypes.CDLL(None).unshare(CLONE_NEWNS) != 0:
        return False
    folder.mkdir(mode=0o700, exist_ok=True)
    commands = (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "agentfarm-chaos", str(folder)],
    )
    try:
        return all(subprocess.run(one, capture_output=True, check=False).returncode == 0 for one in commands)
    except FileNotFoundError:
        return False


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def fill(folder: Path) -> Path:
    """Write a file until no byte more fits; return it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        size = CHUNK
        while size:
            with contextlib.suppress(OSError):
                if file.write(b"\0" * size) == size:
                    continue
            size //= 2
    return filler

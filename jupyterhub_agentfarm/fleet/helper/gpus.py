"""The GPUs of the machine, as NVIDIA's own program tells of them. A machine without it has none that the farm can give away."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import Any

PROGRAM = "nvidia-smi"
QUESTION = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
SECONDS = 10.0  # waking a driver that sleeps takes some
MIB = 1 << 20


@cache  # what a machine has does not change while the helper runs
def found() -> tuple[dict[str, Any], ...]:
    """Return {name, memory: bytes} of each, in the order of CUDA_VISIBLE_DEVICES' numbers; none where they cannot be asked."""
    program = shutil.which(PROGRAM)
    if program is None:
        return ()
    try:
        done = subprocess.run(
            [program, *QUESTION],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(read(done.stdout))


def read(text: str) -> list[dict[str, Any]]:
    """Read lines like `NVIDIA H200, 143771` (name, MiB). Raises nothing: what is no such line is left out."""
    gpus = []
    for line in text.splitlines():
        name, comma, size = line.rpartition(",")
        if comma and size.strip().isdigit():
            gpus.append({"name": name.strip(), "memory": int(size) * MIB})
    return gpus

"""The GPUs of the machine, as NVIDIA's own program tells of them. A machine without it has none that the farm can give away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .programs import Silent, found, said

PROGRAM = "nvidia-smi"
QUESTION = (
    "--query-gpu=index,name,memory.total,memory.used,utilization.gpu,temperature.gpu",
    "--format=csv,noheader,nounits",
)
SECONDS = 5.0  # waking a driver that sleeps takes some
MIB = 1 << 20


def told(folder: Path) -> dict[str, Any]:
    """Return {gpus, gpus_problem}; gpus is None where they cannot be told: they may be there all the same.

    Of each {index, name, memory and memory_used in bytes, utilisation in percent, temperature in °C}, in the order of their numbers.
    """
    program = found(PROGRAM)
    if program is None:
        return {"gpus": [], "gpus_problem": ""}
    try:
        code, text = said(program, *QUESTION, lock=folder / "gpus.lock", seconds=SECONDS)
    except Silent as problem:
        return {"gpus": None, "gpus_problem": str(problem)}
    if code != 0:
        words = text.strip().splitlines()[:1] or [f"{PROGRAM} ended with {code}"]
        return {"gpus": None, "gpus_problem": words[0][:300]}
    return {"gpus": read(text), "gpus_problem": ""}


def read(text: str) -> list[dict[str, Any]]:
    """Read lines like `0, NVIDIA H200, 143771, 4, 0, 31` (MiB, %, °C). Raises nothing: what is no such line is left out."""
    gpus = []
    for line in text.splitlines():
        index, _, rest = line.partition(",")
        name, *figures = [part.strip() for part in rest.rsplit(",", 4)]  # a name may have commas
        if len(figures) == 4 and index.strip().isdigit() and figures[0].isdigit():
            total, used, busy, heat = figures
            gpus.append({
                "index": int(index), "name": name, "memory": int(total) * MIB, "memory_used": _number(used, MIB),
                "utilisation": _number(busy), "temperature": _number(heat),
            })  # fmt: skip
    return gpus


def _number(text: str, unit: int = 1) -> int | None:
    return int(text) * unit if text.isdigit() else None  # [N/A] where the driver does not tell

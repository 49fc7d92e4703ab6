"""The GPUs of the machine, as NVIDIA's own program tells of them. A machine without it has none that the farm can give away.

A unit sees the device nodes of those that it was promised, and no others (`properties`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .checks import Refused
from .programs import Silent, found, said

PROGRAM = "nvidia-smi"
QUESTION = (
    "--query-gpu=index,uuid,pci.bus_id,name,memory.total,memory.used,utilization.gpu,temperature.gpu",
    "--format=csv,noheader,nounits",
)
SECONDS = 5.0  # waking a driver that sleeps takes some
MIB = 1 << 20
DEV, DRIVER = Path("/dev"), Path("/proc/driver/nvidia/gpus")
# Nodes that all GPUs share; CUDA needs the second ones.
CONTROL, MEMORY = "nvidiactl", ("nvidia-uvm", "nvidia-uvm-tools")


def told(folder: Path) -> dict[str, Any]:
    """Return {gpus, gpus_problem}; gpus is None where they cannot be told: they may be there all the same.

    Of each {index, uuid, minor: the number of its device node, name, memory and memory_used in bytes, utilisation in percent, temperature in °C}, in the order of their numbers.
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
    """Read lines like `0, GPU-1f…, 00000000:19:00.0, NVIDIA H200, 143771, 4, 0, 31` (MiB, %, °C). Raises nothing: what is no such line is left out."""
    gpus = []
    for line in text.splitlines():
        index, uuid, bus, rest = [part.strip() for part in (line + ",,,").split(",", 3)]
        name, *figures = [part.strip() for part in rest.rstrip(",").rsplit(",", 4)]  # a name may have commas
        if len(figures) == 4 and index.isdigit() and figures[0].isdigit():
            total, used, busy, heat = figures
            gpus.append({
                "index": int(index), "uuid": uuid, "minor": minor(bus, int(index)), "name": name, "memory": int(total) * MIB, "memory_used": _number(used, MIB),
                "utilisation": _number(busy), "temperature": _number(heat),
            })  # fmt: skip
    return gpus


def minor(bus: str, index: int) -> int:
    """Return the number of a GPU's device node, as the driver tells it by its place on the bus; its index where the driver does not."""
    domain, _, place = bus.lower().partition(":")
    try:
        lines = (DRIVER / f"{domain[-4:]}:{place}" / "information").read_text().splitlines()
    except OSError:
        return index
    told = [line.partition(":")[2].strip() for line in lines if line.startswith("Device Minor")]
    return int(told[0]) if told and told[0].isdigit() else index


def properties(minors: Sequence[int], lock: Path) -> list[str]:
    """Return the properties by which a unit has the device nodes of these GPUs beside the few that every unit has. Raises Refused."""
    if not minors:
        return []
    modprobe = found("nvidia-modprobe")
    if modprobe and not (DEV / MEMORY[0]).exists():  # no unit may make it
        try:
            said(modprobe, "-u", "-c", "0", lock=lock, seconds=SECONDS)
        except Silent as problem:
            raise Refused("start", str(problem), "see the driver of that machine: nvidia-smi") from None
    needed = [DEV / name for name in (*(f"nvidia{number}" for number in minors), CONTROL)]
    if missing := [str(node) for node in needed if not node.exists()]:
        raise Refused(
            "start",
            f"its GPU has no device node there: {', '.join(missing)}",
            "see the driver of that machine: nvidia-smi",
        )
    nodes = [*needed, *(DEV / name for name in MEMORY if (DEV / name).exists())]
    return [word for node in nodes for word in (f"BindPaths={node}", f"DeviceAllow={node} rw")]


def _number(text: str, unit: int = 1) -> int | None:
    return int(text) * unit if text.isdigit() else None  # [N/A] where the driver does not tell

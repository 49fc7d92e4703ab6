"""How well the machine's disks and memory are, where the kernel or smartctl can be asked. Looked at seldom: it may touch each disk."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from .programs import Silent, found, said

PROGRAM = "smartctl"
SECONDS = 5.0  # for one disk
ALL_SECONDS = 20.0
MOST = 24
EDAC = Path("/sys/devices/system/edac/mc")


def told(folder: Path) -> dict[str, Any]:
    """Return {disks: [{device, model, healthy: None where it does not say, temperature in °C}], disks_problem, ecc}."""
    return {**smart(folder), "ecc": ecc()}


def smart(folder: Path) -> dict[str, Any]:
    """Return what SMART says of each disk; one that sleeps is not woken."""
    program = found(PROGRAM)
    if program is None:
        return {"disks": [], "disks_problem": "smartctl is not installed there (package smartmontools)"}
    lock, until = folder / "disks.lock", time.monotonic() + ALL_SECONDS
    disks = []
    try:
        scanned = _read(said(program, "--scan", "-j", lock=lock, seconds=SECONDS)[1])
        for one in scanned.get("devices", [])[:MOST]:
            if time.monotonic() > until:
                raise Silent("the disks take too long to answer")
            name, kind = str(one.get("name", "")), str(one.get("type", "auto"))
            words = ("-n", "standby", "-i", "-H", "-A", "-j", "-d", kind, name)
            disks.append(disk(name, _read(said(program, *words, lock=lock, seconds=SECONDS)[1])))
    except Silent as problem:
        return {"disks": disks, "disks_problem": str(problem)}
    return {"disks": disks, "disks_problem": ""}


def disk(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Read smartctl's answer on one disk."""
    healthy = answer.get("smart_status", {}).get("passed")
    return {
        "device": name, "model": str(answer.get("model_name", ""))[:100], "healthy": healthy if isinstance(healthy, bool) else None,
        "temperature": answer.get("temperature", {}).get("current"),
    }  # fmt: skip


def _read(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def ecc() -> dict[str, int] | None:
    """Return errors of the memory since the boot, {corrected, uncorrected}; None where the kernel does not watch it."""
    found: dict[str, int] = {}
    for kind, file in (("corrected", "ce_count"), ("uncorrected", "ue_count")):
        for path in EDAC.glob(f"mc[0-9]*/{file}"):
            try:
                found[kind] = found.get(kind, 0) + int(path.read_text())
            except (OSError, ValueError):
                continue
    return found or None

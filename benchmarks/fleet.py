"""Figures of the fleet.

    python benchmarks/fleet.py [--only placement,idle,starts,messages,together] [--json FILE]

placement: 1,000 microservers and 10,000 waiting tasks placed in one go, on one core.
idle: the daemon with 50 microservers on which nothing happens; their masters are stand-ins (standins.py).
starts: an agent's server on a microserver, by Hub, spawner and daemon, and the same by hand over ssh.
messages: a kernel asked by the daemon's forward, by a plain `ssh -L`, through the Hub's proxy.
together: 30 servers started in the same moment on three microservers.

The last three run on the lab's microservers (tests/lab), which need root; else they are skipped, with the reason.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import idle
import lab
import placing
from common import fsync_floor, machine, spread, table, write_json

PARTS = ["placement", "idle", "starts", "messages", "together"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--json", help="a file for the figures")
    asked = parser.parse_args()
    parts = [part for part in PARTS if part in asked.only.split(",")]
    if unknown := set(asked.only.split(",")) - set(PARTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    directory = Path(tempfile.mkdtemp(prefix="fleet-benchmark-", dir="/tmp"))
    found: dict[str, Any] = {"machine": machine(), "floors": {"fdatasync": spread(fsync_floor(directory))}}
    try:
        if "placement" in parts:
            found["placement"] = placing.measure()
        if "idle" in parts:
            found["idle"] = idle.measure(directory)
        if elsewhere := [part for part in parts if part in lab.PARTS]:
            why = lab.why_not()
            found["lab"] = [{"what": part, "skipped": why} for part in elsewhere] if why else lab.measure(elsewhere)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(table([{"floor, ms": name, **figures} for name, figures in found["floors"].items()]))
    for name in ("placement", "idle", "lab"):
        if name in found:
            print("\n" + table(found[name]))
    write_json(asked.json, found)


if __name__ == "__main__":
    main()

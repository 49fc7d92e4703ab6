"""Figures of the fleet.

    python benchmarks/fleet.py [--json FILE]

placement: 1,000 microservers and 10,000 waiting tasks placed in one go, on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import placing
from common import machine, table


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--json", type=Path, metavar="FILE")
    options = asked.parse_args()
    found = {"machine": machine(), "placement": placing.measure()}
    print(table(found["placement"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""What servers ask for, as options of a command: sizes, labels, flags."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any

from agentfarm_sdk.errors import Invalid

SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?$", re.IGNORECASE)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text: str) -> int:
    """Return bytes: 512MiB, 2G (the same as 2GiB), 1048576. Raises Invalid."""
    found = SIZE.match(text)
    if found is None:
        raise Invalid(f"{text!r} is no size", hint="e.g. 512MiB, 2GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def shown_size(value: int) -> str:
    """Return bytes for eyes."""
    for name, unit in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value} B"


def pairs(named: Iterable[str], option: str) -> dict[str, str]:
    """Read NAME=VALUE, or NAME alone: an empty value."""
    return {name: value for name, _, value in (one.partition("=") for one in named if _named(one, option))}


def _named(text: str, option: str) -> bool:
    if text.startswith("=") or not text:
        raise Invalid(f"{option} {text!r}: it has no name", hint=f"{option} NAME=VALUE")
    return True


def changes(words: Iterable[str], what: str) -> dict[str, str | None]:
    """Read NAME=VALUE to set and NAME- to take away. Raises Invalid."""
    found: dict[str, str | None] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if sign:
            found[name] = value
        elif name.endswith("-") and len(name) > 1:
            found[name[:-1]] = None
        else:
            raise Invalid(f"{word!r} is no {what}", hint=f"NAME=VALUE sets a {what}, NAME- takes it away")
    return found


def add_needs(parser: argparse.ArgumentParser) -> None:
    """Add the options of what a server must have."""
    parser.add_argument("--memory", metavar="SIZE", help="that it is promised, e.g. 2GiB")
    parser.add_argument("--cpu", type=float, metavar="CORES", help="that it is promised")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of its own")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="that each of them must have")
    parser.add_argument(
        "--label", action="append", default=[], metavar="NAME=VALUE", help="that the microserver must have"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME[=VALUE]", help="a label that it must not have"
    )
    parser.add_argument("--flag", action="append", default=[], metavar="NAME", help="that its CPU must have, e.g. avx2")
    parser.add_argument("--ticks", metavar="STORE", help="be near this tick store")


def needs(asked: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for by those options, as the API takes it. Raises Invalid."""
    given = {
        "memory": asked.memory and size(asked.memory), "cpu": asked.cpu, "gpus": asked.gpus,
        "gpu_memory": asked.gpu_memory and size(asked.gpu_memory), "labels": pairs(asked.label, "--label") or None,
        "without": pairs(asked.without, "--without") or None, "flags": asked.flag or None, "ticks": asked.ticks,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}

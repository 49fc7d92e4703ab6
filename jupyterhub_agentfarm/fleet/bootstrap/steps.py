"""How a machine joins, step by step; each one is looked for first, so the same command goes on where the last one was broken off.

Called by the command line (cli/joining.py), which asks the farm; here only the machine is spoken to.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import StartError
from ..findings import Finding, ahead, judge
from ..zipped import helper_file, helper_version
from . import machine
from .environment import Environment, kind_of, prepared
from .login import Machine

Say = Callable[[str], None]
TELL_SECONDS = 2.0


@dataclass(frozen=True)
class Joined:
    """What a machine was before, and has now. environment: id of what new servers start from."""

    before: dict[str, Any]
    environment: str
    measured: dict[str, float]

    @property
    def changed(self) -> bool:
        return bool(self.before["helper"] != helper_version() or self.before["environment"] != self.environment)


def look(there: Machine) -> tuple[dict[str, Any], list[Finding]]:
    """Return what is found on a machine, and what it means. Raises StartError."""
    seen = there.examine()
    before = time.time()
    theirs = there.call(machine, "now")["time"]
    return seen, judge(seen, ahead(before, theirs, time.time()))


def join(there: Machine, seen: dict[str, Any], public_key: str, say: Say) -> Joined:
    """Put all that a microserver needs on a machine that the checks have passed. Raises StartError."""
    packed = prepared(kind_of(seen["python"], seen["arch"], seen["libc"]), say)
    deliver(there, packed, say)
    before = switch(there, packed.id, public_key, say)
    there.call(machine, "settle")
    say("measuring disk and CPU")
    return Joined(before, packed.id, there.call(machine, "measure"))


def deliver(there: Machine, packed: Environment, say: Say) -> None:
    """Bring an environment there, beside those that are there. Raises StartError."""
    if packed.id in there.call(machine, "state")["complete"]:
        say(f"the servers' programs are there ({packed.id})")
        return
    size = packed.archive.stat().st_size
    progress = Progress(size, say)
    say(f"sending the servers' programs, {size >> 20} MiB")
    with open(packed.archive, "rb") as data:
        there.call(machine, "unpack", data=data, sent=progress, environment=packed.id, size=size)


class Progress:
    """Says now and then how much of it is under way."""

    def __init__(self, size: int, say: Say) -> None:
        self.size, self.say, self.done, self.told = size, say, 0, time.monotonic()

    def __call__(self, sent: int) -> None:
        self.done += sent
        if self.done >= self.size:
            self.say("all sent; it is unpacked and compiled there")
        elif time.monotonic() - self.told > TELL_SECONDS:
            self.told = time.monotonic()
            self.say(f"{self.done >> 20} of {self.size >> 20} MiB")


def switch(there: Machine, environment: str, public_key: str, say: Say) -> dict[str, Any]:
    """Let new servers start from an environment, by this release's helper. Returns what was there before. Raises StartError."""
    helper = helper_file()
    say("installing the helper and the farm's key")
    return there.call(
        machine, "install", data=io.BytesIO(helper), environment=environment, key=public_key, size=len(helper)
    )


def stop_at(findings: list[Finding]) -> None:
    """Raises StartError where something does not let the machine be a microserver."""
    if wrong := [one.name for one in findings if one.state == "fail"]:
        raise StartError(
            f"it cannot be a microserver as it is: {', '.join(wrong)}",
            hint="put right what the checks say, then the same command again",
        )

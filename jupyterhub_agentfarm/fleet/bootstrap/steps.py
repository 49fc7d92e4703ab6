"""How a machine joins, step by step; each one is looked for first, so the same command goes on where the last one was broken off.

Called by the command line (cli/joining.py), which asks the farm; here only the machine is spoken to.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...errors import StartError
from ..findings import Finding, ahead, judge
from ..zipped import helper_file, helper_release, helper_version
from . import machine
from .environment import Environment, kind_of, outlook, prepared
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
    findings = judge(seen, ahead(before, theirs, time.time()))
    kind = kind_of(seen["python"], seen["arch"], seen["libc"])
    return seen, findings if any(one.state == "fail" for one in findings) else [*findings, outlook(kind)]


def join(there: Machine, seen: dict[str, Any], public_key: str, say: Say) -> Joined:
    """Put all that a microserver needs on a machine that the checks have passed. Raises StartError."""
    packed = prepared(kind_of(seen["python"], seen["arch"], seen["libc"]), say)
    deliver(there, packed, say)
    before = switch(there, packed.id, public_key, say)
    there.call(machine, "settle")
    say("measuring disk and CPU")
    return Joined(before, packed.id, there.call(machine, "measure"))


def deliver(there: Machine, packed: Environment, say: Say) -> None:
    """Bring an environment there, beside those that are there; its packages only where none of those has them. Raises StartError."""
    complete = there.call(machine, "state")["complete"]
    if packed.id in complete:
        say(f"the servers' programs are there ({packed.id})")
        return
    base = next((made for made, packages in complete.items() if packages == packed.packages), "")
    archives = packed.archives[1:] if base else packed.archives
    sizes = [archive.stat().st_size for archive in archives]
    progress = Progress(sum(sizes), say)
    say(f"sending {'what has changed of ' if base else ''}the servers' programs, {sum(sizes) / 2**20:.1f} MiB")
    with Chain(archives) as data:
        there.call(
            machine, "unpack", data=data, sent=progress, environment=packed.id, packages=packed.packages, base=base, sizes=sizes
        )  # fmt: skip


class Chain(io.RawIOBase):
    """Files that are read one behind the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[IO[bytes]] = [open(path, "rb") for path in paths]  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = b""
        while self._files and not (data := self._files[0].read(size)):
            self._files.pop(0).close()
        return data

    def close(self) -> None:
        while self._files:
            self._files.pop().close()
        super().close()


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
        machine, "install", data=io.BytesIO(helper), environment=environment, release=helper_release(), key=public_key, size=len(helper)
    )  # fmt: skip


def stop_at(findings: list[Finding]) -> None:
    """Raises StartError where something does not let the machine be a microserver."""
    if wrong := [one.name for one in findings if one.state == "fail"]:
        raise StartError(
            f"it cannot be a microserver as it is: {', '.join(wrong)}",
            hint="put right what the checks say, then the same command again",
        )

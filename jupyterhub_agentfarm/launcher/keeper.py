"""Keeps processes alive: starts them, starts again what dies, stops all that it started. Knows nothing of the farm."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import StartError

LONGEST_PAUSE = 30.0  # seconds
STEADY_SECONDS = 60.0  # one that lived so long starts again at once when it dies
LOG_BYTES = 10 * 1024 * 1024
LOG_LOOK_SECONDS = 10.0
LOGS_KEPT = 3
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Part:
    """A process of the farm. `answers` asks itself, on its own address, whether it works; secrets are in `env` or files."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    answers: Callable[[], Awaitable[bool]]
    start_seconds: float = 60.0
    sockets: Sequence[int] = ()  # numbers of files that it inherits


@dataclass
class Kept:
    part: Part
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0  # in a row
    watcher: asyncio.Task[None] | None = None


def pause(deaths: int, longest: float = LONGEST_PAUSE) -> float:
    """Return the seconds before the next start after so many deaths in a row: 0.2, 0.4 … the longest."""
    return min(longest, 0.1 * 2.0 ** min(deaths, 10))


_TELLING = re.compile(r"error|refus|cannot|denied|in use|no space|not found|\[[CE] |fatal", re.IGNORECASE)
_PREFIX = re.compile(r"^\[[A-Z] [^\]]*\]\s*|^\d\d:\d\d:\d\d\.\d+ \[ConfigProxy\] \S+ ")


def reason(log: str) -> str:
    """Return the line of a log that best says why its process ended, or "" for an empty one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines[-40:] if _TELLING.search(line) and not line.startswith(("File ", "at "))]
    best = (telling or lines)[-1:]
    return _PREFIX.sub("", best[0])[:300] if best else ""


class Keeper:
    """The owner of the farm's processes. `say` tells the person at the terminal what happens.

    longest: seconds before one that dies again and again is started again.
    """

    def __init__(
        self, logs: Path, say: Callable[[str], None], changed: Callable[[], None] = lambda: None, longest: float = LONGEST_PAUSE
    ) -> None:  # fmt: skip
        self.logs, self.say, self.changed, self.longest = logs, say, changed, longest
        self.kept: dict[str, Kept] = {}
        self.on_restart: dict[str, Callable[[], Awaitable[None]]] = {}

    @property
    def pids(self) -> dict[str, int]:
        return {name: one.process.pid for name, one in self.kept.items() if one.process}

    async def start(self, *parts: Part) -> None:
        """Start parts side by side and return when all answer.

        Raises:
            StartError: one ended, or did not answer in its time; the sentence has the reason from its log.
        """
        for part in parts:
            kept = self.kept[part.name] = Kept(part, self.logs / f"{part.name}.log")
            rotate(kept.log, at_start=True)
            self._launch(kept)
        await asyncio.gather(*(self._until_it_answers(self.kept[part.name]) for part in parts))
        for part in parts:
            self.kept[part.name].watcher = asyncio.create_task(self._watch(self.kept[part.name]), name=part.name)

    async def stop(self, name: str, seconds: float = 10.0) -> None:
        """End one part for good, with every process of its group."""
        kept = self.kept.get(name)
        if kept is None:
            return
        if kept.watcher:
            kept.watcher.cancel()
            await asyncio.gather(kept.watcher, return_exceptions=True)
        if kept.process:
            await end(kept.process, seconds)
            kept.process = None

    async def failed(self) -> None:
        """Return never; raise what ended a watcher, which is a bug."""
        await asyncio.gather(*(kept.watcher for kept in self.kept.values() if kept.watcher))

    def _launch(self, kept: Kept) -> None:
        part = kept.part
        try:
            with open(kept.log, "ab") as log:
                kept.process = subprocess.Popen(
                    list(part.argv), cwd=part.cwd, env=dict(part.env), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, preexec_fn=_die_with_parent(os.getpid()), pass_fds=part.sockets,
                )  # fmt: skip
        except OSError as error:
            raise StartError(f"{part.name} cannot be started: {error}", hint="run: agentfarm doctor") from error
        kept.started = time.monotonic()
        self.changed()

    async def _until_it_answers(self, kept: Kept) -> None:
        part, end_at = kept.part, time.monotonic() + kept.part.start_seconds
        while True:
            answered = await part.answers()
            assert kept.process
            code = kept.process.poll()
            if code is not None:  # whoever answered, it was not this one
                why = reason(tail(kept.log)) or f"it ended with {code} and said nothing"
                raise StartError(f"{part.name} does not start: {why}", hint=f"its whole log is {kept.log}")
            if answered:
                return
            if time.monotonic() > end_at:
                why = reason(tail(kept.log))
                raise StartError(
                    f"{part.name} did not answer within {part.start_seconds:.0f} s" + (f": {why}" if why else ""),
                    hint=f"its whole log is {kept.log}",
                )
            await asyncio.sleep(0.05)

    async def _watch(self, kept: Kept) -> None:
        """Start the part again whenever it ends."""
        while True:
            assert kept.process
            looked = time.monotonic()
            while (code := kept.process.poll()) is None:
                await asyncio.sleep(0.1)
                if time.monotonic() - looked > LOG_LOOK_SECONDS:
                    rotate(kept.log)
                    looked = time.monotonic()
            kill_group(kept.process.pid)  # what it may have left behind
            kept.deaths = 1 if time.monotonic() - kept.started > STEADY_SECONDS else kept.deaths + 1
            how = f"killed by signal {-code}" if code < 0 else f"ended with {code}"
            wait = pause(kept.deaths, self.longest)
            self.say(f"{kept.part.name} {how}; starting it again in {wait:.1f} s ({kept.log})")
            await asyncio.sleep(wait)
            await self._again(kept)

    async def _again(self, kept: Kept) -> None:
        try:
            self._launch(kept)
            await self._until_it_answers(kept)
        except StartError as error:
            self.say(error.detail)
            if kept.process and kept.process.poll() is None:
                await end(kept.process, 5)  # it lives and never answered
            return
        self.say(f"{kept.part.name} is up again")
        if kept.part.name in self.on_restart:
            await self.on_restart[kept.part.name]()


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Return what a child runs before exec: it is asked to end when the launcher is gone, however that went."""

    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


async def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask a process to end, wait, then kill its whole group."""
    if process.poll() is None:
        process.terminate()
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until:  # noqa: ASYNC110 (a process sends no event)
            await asyncio.sleep(0.02)
    kill_group(process.pid)
    process.wait()


def kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def tail(path: Path, size: int = 8000) -> str:
    """Return the end of a log."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")


def rotate(path: Path, *, at_start: bool = False) -> None:
    """Move a grown log aside. The writer keeps its open file (O_APPEND): so the text is copied and the file cut."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        path.touch(mode=0o600)
        return
    if size < LOG_BYTES and not (at_start and size):
        return
    for number in range(LOGS_KEPT - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    aside = path.with_name(f"{path.name}.1")
    try:
        shutil.copyfile(path, aside)
    except OSError:  # the disk is full: what is lost is the oldest part of a log, never the farm
        aside.unlink(missing_ok=True)
        if at_start:
            return
    os.truncate(path, 0)

"""One OpenSSH connection to a microserver: a ControlMaster that outlives the daemon, and is taken over again by `-O check`.

Requests are a command each over it, with JSON on stdin; unix sockets there become loopback ports here, and a few loopback ports there lead back.
The program `ssh` is started for the master alone: requests go over its control socket (mux.py), without a process each.
Nothing but the farm's own files says whom to trust: no configuration of a user, no agent, no question to anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from agentfarm_sdk.waiting import within

from ..errors import AgentFarmError, Conflict, FleetError, Invalid, StartError
from . import mux, nodelay

T = TypeVar("T")
log = logging.getLogger("agentfarm.fleet")
SESSIONS = 8  # at a time: sshd takes 10 a connection
CONNECT_SECONDS = 10
OPEN_SECONDS = 25.0  # to reach, check the key, sign in, go to the background
MUX_SECONDS = 10.0  # for what the master alone answers
LONGEST_WAIT = 15.0  # so that one which is back is seen within half a minute
CONTROL_BYTES = 107 - 17  # ssh binds a socket with 17 more characters, and moves it
TARGET = re.compile(
    r"(?P<user>[a-z_][a-z0-9_-]{0,31})@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9a-fA-F:.]{2,45}\])(?::(?P<port>\d{1,5}))?"
)
# What ssh writes, and what it means for whoever looks after the farm. The first that fits.
MEANINGS = [
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is not the one that the farm knows: it was installed anew, or something stands between. "
     "Compare the key at the machine itself, then add it again"),
    ("Host key verification failed", "its host key is not known to the farm: add it again"),
    ("Permission denied", "it refuses the farm's key: add it again"),
    ("Connection refused", "nothing listens on its SSH port"),
    ("Could not resolve", "its name is not known to DNS"),
    ("timed out", "it does not answer"),
    ("No route to host", "it does not answer"),
    ("Network is unreachable", "it does not answer"),
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Whom to ask: user@host, port 22 where none is said."""

    user: str
    host: str
    port: int = 22

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + (f":{self.port}" if self.port != 22 else "")

    @property
    def bare(self) -> str:
        """The host as ssh takes it on its command line."""
        return self.host.strip("[]")

    @property
    def known_as(self) -> str:
        """How known_hosts names it."""
        return self.bare if self.port == 22 else f"[{self.bare}]:{self.port}"


def target(text: str) -> Target:
    """Return the target that a text names. Raises Invalid; nothing that ssh takes for an option passes."""
    found = TARGET.fullmatch(text)
    port = int(found["port"] or 22) if found else 0
    if found is None or not 0 < port < 65536:
        raise Invalid(
            f"{text!r} is no address of a microserver", hint="user@host or user@host:port, e.g. root@10.0.0.11"
        )
    return Target(found["user"], found["host"], port)


def once_only(name: str, to: Target, host_keys: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises Conflict: the machine has joined by another name. By a second one its servers would be strangers there, and be ended.

    known: {name: {ssh, host_keys}} of the farm's microservers.
    """
    for other, one in known.items():
        at_once = target(one["ssh"]).known_as == to.known_as
        if other != name and (at_once or any(key in one["host_keys"] for key in host_keys)):
            raise Conflict(
                f"this machine is the microserver {other} already: it has the same {'address' if at_once else 'host key'}",
                hint=f"agentfarm microserver remove {other} first; a machine copied from another needs host keys of its own",
            )


def backoff(tries: int, luck: float) -> float:
    """Return the seconds to wait before the next try: 1, 2, 4 … at most LONGEST_WAIT, each between half and whole by luck (0 … 1)."""
    return float(min(LONGEST_WAIT, 2.0 ** min(tries, 10))) * (0.5 + 0.5 * luck)


def meaning(said: str) -> str:
    """Return what ssh's complaint means, in words for an operator."""
    for sign, words in MEANINGS:
        if sign in said:
            return words
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("@")]
    return lines[-1][-300:] if lines else "ssh did not say why"


@dataclass(frozen=True)
class Files:
    """The farm's own SSH files, in a 0700 directory: key, key.pub, known_hosts, and a control socket for each microserver."""

    folder: Path
    alive_seconds: int = 5  # between questions whether the other side is there; three unanswered ones end a connection
    key: Path = field(init=False)
    known_hosts: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.folder / "key")
        object.__setattr__(self, "known_hosts", self.folder / "known_hosts")

    def control(self, name: str) -> Path:
        """Return the control socket's path. Raises StartError: it would be too long."""
        path = self.folder / hashlib.sha256(name.encode()).hexdigest()[:8]
        if len(str(path).encode()) > CONTROL_BYTES:
            raise StartError(f"{path} is too long for ssh's control socket", hint="choose a shorter state directory")
        return path


@asynccontextmanager
async def piped(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program while the block lasts, its standard streams in our hands; what still runs behind it is killed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 20)
    try:
        yield process
    finally:
        process._transport.close()  # type: ignore[attr-defined]  # kills; `wait` would wait for the end of pipes that nobody reads any more
        await process.wait()


class Connection:
    """The master of one microserver. `keep` opens it again for as long as it runs; `on_up` is awaited before it counts as up,
    `on_down` called whenever the master is not there."""

    def __init__(
        self, name: str, to: Target, files: Files, on_up: Callable[[], Awaitable[None]], on_down: Callable[[], None]
    ) -> None:
        self.name, self.to, self.files, self.on_up, self.on_down = name, to, files, on_up, on_down
        self.control = files.control(name)
        self.open = False  # the master is there
        self.up = False  # and what is to be done first is done
        self.reason = "it was not reached yet"  # why it is not up
        self.since: float | None = time.time()  # since when it is not up (epoch seconds); None while it is
        self.tries = 0  # that failed, in a row
        self.tried = asyncio.Event()  # it was reached, or is known not to be
        self._sessions = asyncio.Semaphore(SESSIONS)

    # -- the master ----------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Open the master, or take over the one that is there; wait for its end; again, for ever."""
        while True:
            try:
                if not await self.is_there():
                    self.on_down()
                    await self._open()
                self.open = True
                await self.on_up()
                self.up, self.reason, self.tries, self.since = True, "", 0, None
                self.tried.set()
                log.info("microserver %s is connected", self.name)
                await self._gone()
                self.on_down()
                self.reason = "the connection broke off"
            except (AgentFarmError, OSError) as error:
                self.reason = (
                    error.detail if isinstance(error, AgentFarmError) else f"the connection broke off ({error})"
                )
            finally:
                self.up = self.open = False
                self.since = self.since or time.time()
            wait = backoff(self.tries, random.random())
            self.tries += 1
            self.tried.set()
            log.warning("microserver %s: %s; next try in %.1f s", self.name, self.reason, wait)
            await asyncio.sleep(wait)

    async def is_there(self) -> bool:
        """Say whether a master runs. It may have been started by a daemon that is dead."""
        if not self.control.exists():
            return False
        try:
            await self._asked(mux.master(self.control), MUX_SECONDS)
        except (OSError, mux.Refused):
            return False
        return True

    async def close(self) -> None:
        """End the master and with it all forwards. Again is harmless."""
        if self.control.exists():
            with contextlib.suppress(OSError, mux.Refused):  # it ended by itself
                await self._asked(mux.ask(self.control, mux.TERMINATE), MUX_SECONDS)
        self.up = self.open = False

    async def _open(self) -> None:
        """Start the master in a session of its own. Raises FleetError with what to do."""
        self.control.unlink(missing_ok=True)
        said = self.control.with_suffix(".log")  # a file: the master keeps it open, a pipe would never end
        sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                "ssh", *self._options(), "-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-f", "-N", self.to.bare,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=sink, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(sink)
        try:
            code = await within(process.wait(), OPEN_SECONDS)
        except asyncio.TimeoutError:
            raise FleetError("it does not answer", hint="see its power and network") from None
        finally:
            if process.returncode is None:  # also where this task is cancelled
                process.kill()
                await process.wait()
        if code != 0:
            raise FleetError(meaning(said.read_text(errors="replace")), hint="agentfarm doctor repeats the checks")

    async def _gone(self) -> None:
        """Return when the master has ended: it closes the sockets that it listens on. Costs nothing while it lives."""
        reader, writer = await asyncio.open_unix_connection(str(self.control))
        try:
            while await reader.read(4096):
                continue
        except ConnectionError:
            return
        finally:
            writer.close()

    def _options(self) -> list[str]:
        return [
            "-F", "none", "-i", str(self.files.key), "-p", str(self.to.port), "-l", self.to.user,
            "-o", f"UserKnownHostsFile={self.files.known_hosts}", "-o", "GlobalKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes",
            "-o", "UpdateHostKeys=no", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
            "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", f"ServerAliveInterval={self.files.alive_seconds}", "-o", "ServerAliveCountMax=3",
            "-o", "ExitOnForwardFailure=yes", "-o", "ForwardAgent=no", "-o", "ForwardX11=no", "-o", f"ControlPath={self.control}",
        ]  # fmt: skip

    async def _asked(self, answer: Coroutine[Any, Any, T], seconds: float) -> T:
        """Wait for what the master answers. Raises FleetError: it does not; OSError: no master is there; mux.Refused."""
        try:
            return await within(answer, seconds)
        except asyncio.TimeoutError:
            raise FleetError(
                f"{self.name} does not answer", hint="see its load, its power and its network", retry_after=2
            ) from None

    def _away(self, why: str) -> FleetError:
        return FleetError(f"{self.name} cannot be asked: {why}", hint="see its power and network", retry_after=2)

    # -- what goes over it ---------------------------------------------------------------------------------------

    async def execute(self, command: str, stdin: bytes, seconds: float) -> bytes:
        """Run a command there and return what it wrote. A key with a forced command runs that. Raises FleetError."""
        if not self.open:
            raise self._away(self.reason)
        async with self._sessions:
            try:
                code, out, err = await self._asked(mux.run(self.control, command, stdin), seconds)
            except OSError:
                raise self._away("the connection broke off") from None
            except mux.Refused as refused:
                raise self._away(str(refused)) from None
        if code != 0 and not out:
            why = meaning(err.decode("utf-8", "replace"))
            raise FleetError(f"the helper on {self.name} failed: {why}", hint="agentfarm doctor repeats the checks")
        return out

    @asynccontextmanager
    async def running(self, command: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a command there while the block lasts, whose input and output are streams. Raises FleetError."""
        if not self.open:
            raise FleetError(
                f"{self.name} cannot be asked: {self.reason}", hint="see its power and network", retry_after=2
            )
        async with self._sessions:
            words = ["ssh", *self._options(), "-o", "ControlMaster=no", "-o", "ProxyCommand=false"]
            async with piped(*words, self.to.bare, command) as process:
                yield process

    async def forward(self, port: int, socket: str) -> bool:
        """Let a loopback port here lead to a unix socket there; again is harmless. False: the port is taken."""
        if not await self._forwarding(mux.OPEN_FORWARD, mux.LOCAL, port, socket, mux.UNIX):
            return False
        try:
            nodelay.turn_off(await self._asked(mux.master(self.control), MUX_SECONDS), port)
        except (OSError, FleetError, mux.Refused) as error:
            log.info("microserver %s: small frames may come 40 ms late by port %d: %s", self.name, port, error)
        return True

    async def cancel(self, port: int, socket: str) -> None:
        await self._forwarding(mux.CLOSE_FORWARD, mux.LOCAL, port, socket, mux.UNIX)

    async def lead_back(self, port: int, host: str, to: int) -> bool:
        """Let a loopback port there lead to an address here. False: the port is taken there."""
        return await self._forwarding(mux.OPEN_FORWARD, mux.REMOTE, port, host, to)

    async def _forwarding(self, kind: int, way: int, listen: int, host: str, port: int) -> bool:
        try:
            await self._asked(mux.forward(self.control, kind, way, listen, host, port), MUX_SECONDS)
        except OSError:
            raise self._away(self.reason or "the connection broke off") from None
        except mux.Refused:
            return False
        return True

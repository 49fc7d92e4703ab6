"""Worker kernels: started by the server's own kernel manager, so that people see them and can attach; watched by pid.

The supervisor calls it. A kernel gets its runs over an inherited socket pair (AGENTFARM_FD), never by argument or
environment, and its environment is made of named variables only: no token of the server reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tornado.web import HTTPError

from agentfarm_sdk.waiting import within

from . import memory

EXTENSION = "agentfarm_sdk.worker"
WARM_SECONDS = 60.0  # within which a started kernel answers
SHOW_SECONDS = 0.25  # after which a run is shown to who looks at the list of kernels
CLOSE_SECONDS = 5.0  # within which a closed one is gone; then it is killed
MAX_LINE = 1024 * 1024
PASSED_ON = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "XDG_*", "VIRTUAL_ENV",
    "CONDA_PREFIX", "LD_LIBRARY_PATH", "PYTHON*", "IPYTHONDIR", "JUPYTER_*_DIR", "JUPYTER_PATH", "JUPYTER_CONFIG_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_*",
    "AGENTFARM_AGENT", "AGENTFARM_WORKSPACE", "AGENTFARM_UNIT",
)  # fmt: skip


def kernel_environment(env: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
    """Return what of the server's environment a worker kernel gets: named variables (shell patterns), nothing else."""
    patterns = (*PASSED_ON, *more)
    return {name: value for name, value in env.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}


@dataclass
class _Running:
    kernel_id: str
    session_id: str
    process: Any  # subprocess.Popen
    writer: asyncio.StreamWriter
    child_end: socket.socket  # kept open: a restart by a visitor must not hand another descriptor to the new process
    listening: asyncio.Task[None]
    doing: str = ""  # the run, and the one that people are told of
    shown: str = ""
    forgetting: asyncio.Lock = field(default_factory=asyncio.Lock)


class WorkerKernels:
    """The worker kernels of one server. `said(name, message)` and `gone(name, proof)` are called on the event loop."""

    def __init__(
        self,
        manager: Any,
        sessions: Any,
        *,
        agent: str,
        env: Mapping[str, str],
        said: Callable[[str, dict[str, Any]], None],
        gone: Callable[[str, str], None],
        log: logging.Logger,
        kernel_name: str = "",
    ) -> None:
        self._manager, self._sessions, self._agent, self._env = manager, sessions, agent, dict(env)
        self._said, self._gone, self._log = said, gone, log
        self._kernel_name = kernel_name
        self._running: dict[str, _Running] = {}
        self._watching: set[asyncio.Task[None]] = set()
        self._kills = memory.Kills()

    async def start(self, name: str) -> None:
        """Start a kernel and return when it answers. One that cannot start is `gone`, with the reason."""
        ours, theirs = socket.socketpair()
        try:
            kernel_id = await self._manager.start_kernel(
                kernel_name=self._kernel_name or self._manager.default_kernel_name,
                path="",
                env={**self._env, "AGENTFARM_FD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                extra_arguments=[f"--ext={EXTENSION}"],
            )
        except Exception as error:  # a kernel spec can fail in any way: the loop waits and tries again, visibly
            ours.close()
            theirs.close()
            self._log.exception("worker kernel %s cannot be started", name)
            self._gone(name, f"the kernel could not be started: {error}")
            return
        kernel = self._manager.get_kernel(kernel_id)
        kernel.stop_restarter()  # the dead are reported and replaced, not revived in place
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE)
        listening = asyncio.create_task(self._listen(name, reader))
        running = _Running(kernel_id, "", kernel.provisioner.process, writer, theirs, listening)
        self._running[name] = running
        watching = asyncio.create_task(self._watch(name, running))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        title = self._title(name, "")
        session = await self._sessions.create_session(path=title, name=title, type="console", kernel_id=kernel_id)
        running.session_id = session["id"]
        if trouble := await _trouble(kernel.client()):
            self._log.error("worker kernel %s is of no use: %s", name, trouble)
            self.kill(name)
            await asyncio.wait([watching])

    def alive(self, name: str) -> bool:
        return name in self._running

    def pid(self, name: str) -> int | None:
        """Return the kernel's process; None: it has ended."""
        return self._running[name].process.pid if name in self._running else None

    def tell(self, name: str, message: Mapping[str, Any]) -> None:
        """Send one line to the worker; to one that just died nothing (its death is under way to the supervisor)."""
        if running := self._running.get(name):
            running.writer.write(json.dumps(message).encode() + b"\n")

    def kill(self, name: str) -> None:
        """End the kernel and what it started in its process group, at once."""
        if running := self._running.get(name):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)

    async def close(self, name: str) -> None:
        """Shut an idle kernel down: asked first, killed after 5 s."""
        running = self._running.get(name)
        if running is None:
            return
        asked = asyncio.create_task(self._forget(running, now=False))
        with contextlib.suppress(asyncio.TimeoutError):
            await within(asyncio.shield(asked), CLOSE_SECONDS)
        self.kill(name)
        await asked

    async def finished(self) -> None:
        """Return when every kernel has ended and is cleaned up behind: the server's own cleaning must not meet ours."""
        if self._watching:
            await asyncio.wait(self._watching)

    async def show(self, name: str, run: str) -> None:
        """Name the kernel for the people who look at the server's list of kernels: a little later, and not for what is over then."""
        if (running := self._running.get(name)) is None:
            return
        running.doing = run
        await asyncio.sleep(SHOW_SECONDS)  # the run's first request is on its way meanwhile
        if running.doing != run or running.shown == run or not running.session_id:
            return
        running.shown, title = run, self._title(name, run)
        with contextlib.suppress(HTTPError):  # a visitor has just shut it down
            await self._sessions.update_session(running.session_id, path=title, name=title)

    def touch(self) -> None:
        """Mark the kernels as active, for a culler of kernels that cannot see the loop's thread."""
        from jupyter_server._tz import utcnow

        for running in self._running.values():
            if running.kernel_id in self._manager:
                self._manager.get_kernel(running.kernel_id).last_activity = utcnow()

    def _title(self, name: str, run: str) -> str:
        return f"{self._agent}: {run}" if run else f"{self._agent}: idle worker {name}"

    async def _listen(self, name: str, reader: asyncio.StreamReader) -> None:
        try:
            async for line in reader:
                message = json.loads(line)
                if isinstance(message, dict):
                    self._said(name, message)
        except (ValueError, OSError) as error:  # the kernel is untrusted: what it cannot say properly ends it
            self._log.error("worker kernel %s does not speak the protocol (%s); it is killed", name, error)
            self.kill(name)

    async def _watch(self, name: str, running: _Running) -> None:
        """Wait for the process's end, say it at once, then clean up behind it."""
        await _ended(running.process)
        self._running.pop(name, None)
        code = running.process.returncode
        self._log.info("worker kernel %s (pid %d) exited with %s", name, running.process.pid, code)
        starved = self._kills.fresh() and code == -signal.SIGKILL
        self._gone(name, f"kernel exited with {code}" + (f": {memory.SAID}" if starved else ""))
        running.listening.cancel()
        running.writer.close()
        running.child_end.close()
        await self._forget(running, now=True)

    async def _forget(self, running: _Running, *, now: bool) -> None:
        """Take the kernel out of the server's lists, whoever ended it; twice at once would wait for ever."""
        async with running.forgetting:
            if running.kernel_id in self._manager:
                try:
                    await self._manager.shutdown_kernel(running.kernel_id, now=now)
                except (KeyError, HTTPError, RuntimeError) as error:  # another one was faster
                    self._log.debug("kernel %s was already gone: %s", running.kernel_id, error)
            if running.session_id:
                with contextlib.suppress(HTTPError, KeyError):  # the list drops sessions without a kernel by itself
                    await self._sessions.delete_session(running.session_id)


async def _trouble(client: Any) -> str:
    """Wait until the kernel answers; return "" when it is one that can work, else what is wrong with it."""
    loaded = f"{EXTENSION!r} in get_ipython().extension_manager.loaded"
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=WARM_SECONDS)
        reply = await client.execute(
            "", silent=True, user_expressions={"loaded": loaded}, reply=True, timeout=WARM_SECONDS
        )
    except (RuntimeError, TimeoutError, asyncio.TimeoutError) as error:  # dead (then _watch says so too), or mute
        return f"it does not answer: {error}"
    finally:
        client.stop_channels()
    answer = reply["content"].get("user_expressions", {}).get("loaded", {}).get("data", {}).get("text/plain")
    return (
        "" if answer == "True" else f"{EXTENSION} cannot be loaded in it: is agentfarm_sdk installed for this kernel?"
    )


async def _ended(process: Any) -> None:
    """Return when the process has exited, and its code is known.

    By pidfd (Linux >= 5.3): at once, whatever the event loop's child watcher does.
    """
    with contextlib.suppress(OSError, AttributeError):  # an old kernel of the OS, or the process is gone already
        descriptor = os.pidfd_open(process.pid)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    while process.poll() is None:  # noqa: ASYNC110 - the descriptor is readable a moment before the code is there
        await asyncio.sleep(0.02)

"""`agentfarm up`: brings a farm of one machine up, keeps it up, and takes all of it down again. Called by the command line."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

import agentfarm_sdk
from agentfarm_sdk.errors import AgentFarmError

from ..dotenv import with_dotenv
from ..errors import StartError
from ..gateway.embedded import why_not
from . import bootstrap, servers, story
from .keeper import LONGEST_PAUSE, Keeper, Part, kill_group, reason, tail
from .parts import CHECKOUT, TURNS, leads, model_directory, parts
from .state import State, any_free_port, choose_ports, held, is_free, prepare, write_atomically

LEFTOVER_SECONDS = 15.0
# Of each process: a page, a worker and a kernel hold one or two each; many machines begin with 1,024.
OPEN_FILES = 65_536
LEAD_SECONDS = 90.0


@dataclass(frozen=True)
class Wish:
    """What the asker said. `port` 0 = any free one, None = as before, or 8000."""

    directory: Path
    port: int | None = None
    port_base: int | None = None
    demo: bool = True
    standby: bool = False  # a second service that takes over


def up(wish: Wish) -> int:
    """Run a farm until it is told to stop; return the exit code.

    Raises:
        StartError: it cannot start; what had started is stopped again.
    """
    directory = wish.directory.absolute()
    os.umask(0o077)
    open_many_files()
    with held(directory):
        clear_leftovers(directory)
        state = prepare(directory, lambda kept: choose_ports(kept, wish.port, wish.port_base, is_free, any_free_port))
        return asyncio.run(Launcher(state, wish).run())


def open_many_files() -> None:
    """Let this process and those that it starts have as many files open as the machine allows, up to OPEN_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def longest_pause(env: Mapping[str, str]) -> float:
    """Return the longest pause in seconds before a process that dies again and again is started again. Raises StartError."""
    given = env.get("AGENTFARM_RESTART_SECONDS", str(LONGEST_PAUSE))
    try:
        return max(0.1, float(given))
    except ValueError:
        raise StartError(f"AGENTFARM_RESTART_SECONDS is {given!r}", hint="give it seconds, or leave it away") from None


class Launcher:
    def __init__(self, state: State, wish: Wish) -> None:
        self.state, self.wish = state, wish
        self.keeper = Keeper(state.directory / "logs", say, self._remember, longest_pause(os.environ))
        self.is_ready = False
        self.model = choose_model(state, with_dotenv(os.environ, CHECKOUT / ".env"))
        self.address = share(state.ports["service"]) if wish.standby else None

    async def run(self) -> int:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._asked_to_stop, stop)
        waiting = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.wait({waiting, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                kept = asyncio.create_task(self.keeper.failed())
                if self.wish.demo and not self.model.missing:
                    # A thread that nobody waits for: it may be in the middle of a stream when the farm is stopped.
                    threading.Thread(target=self._show_demo, args=(stop,), daemon=True).start()
                await asyncio.wait({waiting, kept}, return_when=asyncio.FIRST_COMPLETED)
                if kept.done():
                    kept.result()
        finally:
            waiting.cancel()
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._stop()
        return 0

    async def _start(self) -> None:
        began = time.monotonic()
        made = parts(
            self.state, os.environ, model=self.model.embedded, address=self.address.fileno() if self.address else None
        )
        say(f"starting {', '.join(made)}")
        await gather_or_first_error(
            self.keeper.start(*(made[name] for name in (*TURNS, "model") if name in made)),
            self._start_hub(made),
        )
        if self.address:
            await self._until_one_leads()
        self.keeper.on_restart["proxy"] = self._fill_proxy
        await asyncio.to_thread(bootstrap.client_file, self.state)
        with bootstrap.farm(self.state) as farm:
            if self.wish.demo:
                await asyncio.to_thread(bootstrap.demo_agents, farm)
            isolation = "; ".join({one["isolation"] for one in await asyncio.to_thread(farm.microservers)})
        self.is_ready = True
        self._remember()
        seconds = time.monotonic() - began
        print(story.welcome(self.state, agentfarm_sdk.__version__, self.model, isolation, seconds), flush=True)

    async def _start_hub(self, made: dict[str, Part]) -> None:
        """After proxy and daemon: at its start it fills the one and asks the other for the servers that it knows."""
        await self.keeper.start(made["proxy"], made["daemon"])
        await self.keeper.start(made["hub"])

    async def _until_one_leads(self) -> None:
        """Wait for one that leads: where a farm was killed just now, PostgreSQL takes it for alive for a while."""
        until, answers = time.monotonic() + LEAD_SECONDS, leads(self.state)
        while not await answers():
            if time.monotonic() > until:
                why = reason(tail(self.state.directory / "logs" / "service.log"))
                raise StartError(
                    f"no service leads after {LEAD_SECONDS:.0f} s: {why}",
                    hint="another farm may use this database, or it is away: agentfarm doctor",
                )
            await asyncio.sleep(0.05)

    def _show_demo(self, stop: asyncio.Event) -> None:
        """Have the first demo task done, and its steps shown as they come."""
        try:
            with bootstrap.farm(self.state) as farm:
                task = bootstrap.demo_task(farm)
                if task is not None:
                    story.tell(task)
        except (AgentFarmError, TimeoutError) as error:
            if not stop.is_set():
                say(f"the demo task did not end: {error}")

    async def _fill_proxy(self) -> None:
        try:
            await asyncio.to_thread(bootstrap.fill_proxy, self.state)
        except Exception as error:  # the Hub may be away too: it fills the proxy when it comes back
            say(f"the proxy is not filled yet: {error}")

    def _asked_to_stop(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            say("stopping at once")
            for pid in self.keeper.pids.values():
                kill_group(pid)
            return
        stop.set()
        say("stopping")

    async def _stop(self) -> None:
        """The Hub first, so that it takes no server for lost; agents' servers while the service can still hear them."""
        (self.state.directory / "ready.json").unlink(missing_ok=True)
        await self.keeper.stop("hub")
        if "daemon" in self.keeper.pids:
            await servers.stop_all(self.state, say)
        await asyncio.gather(*(self.keeper.stop(name) for name in (*TURNS, "daemon")))
        await asyncio.gather(*(self.keeper.stop(name) for name in ("model", "proxy")))
        (self.state.directory / "processes.json").unlink(missing_ok=True)
        if self.is_ready:
            say("stopped; the ledger and the workspaces are as they were")

    def _remember(self) -> None:
        """Write which processes there are: for whoever asks, and for the next start, should this one be killed."""
        try:
            self._write_down()
        except OSError as error:
            why = f"which processes there are cannot be written to {self.state.directory}: {error.strerror}"
            if not self.is_ready:
                raise StartError(why, hint="free some space there, then start again") from error
            say(why)  # a full disk ends no farm: it is written with the next change

    def _write_down(self) -> None:
        pids = self.keeper.pids
        known = {name: [pid, started_at(pid)] for name, pid in pids.items()}
        write_atomically(self.state.directory / "processes.json", json.dumps(known) + "\n")
        if self.is_ready:
            ready = {
                "public_url": self.state.public_url, "service_url": self.state.url("service"),
                "hub_url": self.state.url("hub", "/hub/"), "state": str(self.state.directory),
                "pid": os.getpid(), "pids": pids,
            }  # fmt: skip
            write_atomically(self.state.directory / "ready.json", json.dumps(ready) + "\n")


def share(port: int) -> socket.socket:
    """Listen at the farm's address for two services. Raises StartError: it is taken."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=1024)
    except OSError as error:
        raise StartError(f"port {port} is taken by another program", hint="stop it, or start again") from error


async def gather_or_first_error(*doing: Coroutine[None, None, None]) -> None:
    """Await all; the first error ends the others."""
    tasks = [asyncio.create_task(one) for one in doing]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def choose_model(state: State, env: Mapping[str, str]) -> story.Model:
    """Say which model the farm will ask: a named one stands before the embedded one, which costs memory."""
    if named := env.get("HF_API_URL") or (env.get("HUGGING_FACE_AUTH_TOKEN") and "Hugging Face"):
        return story.Model(named=named)
    if why := why_not():
        return story.Model(missing=why)
    if not any(model_directory(state).glob("*.gguf")):
        return story.Model(missing="the embedded one's file is not here (make farm fetches it)")
    return story.Model(embedded=True)


def started_at(pid: int) -> float:
    """Return when a process was started, by which its number is told from a later process with the same; 0 if gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:  # it has gone in this very moment
        return False


def clear_leftovers(
    directory: Path, now: Callable[[], float] = time.monotonic, seconds: float = LEFTOVER_SECONDS
) -> None:
    """End the parts of a launcher that was killed. They were told to end with it: mostly this only waits a moment."""
    try:
        known = json.loads((directory / "processes.json").read_text())
    except (OSError, ValueError):
        return
    left = {pid for pid, when in known.values() if when and started_at(pid) == when}
    until = now() + seconds
    while left and now() < until:
        time.sleep(0.05)
        left = {pid for pid in left if runs(pid)}
    for pid in left:
        kill_group(pid)
    (directory / "processes.json").unlink(missing_ok=True)
    (directory / "ready.json").unlink(missing_ok=True)


def say(text: str) -> None:
    print(f"agentfarm: {text}", file=sys.stderr, flush=True)


__all__ = ["StartError", "Wish", "up"]

"""AgentFarmSpawner: asks the fleet daemon, and is otherwise thin.

`poll()` and `get_url()` never raise, and never say "dead" for lack of contact: a Hub that restarts while the daemon is
away would forget its servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from jupyterhub.spawner import Spawner, SpawnException
from traitlets import Bool, Dict, Unicode, default

from agentfarm_sdk.waiting import within

from .errors import AgentFarmError, FleetError, NotFound, StartError
from .fleet.client import FleetClient
from .hubconfig import forget_tokens
from .records import unit_name

AGENT = "agent-"
AWAY_SECONDS = 2.0  # between two looks whether a microserver has returned
LOOK_SECONDS = (0.1, 1.0)  # between two looks whether a server answers: a twentieth of its time so far, within these
ASK_SECONDS = 5.0  # between two questions whether it has ended
WHOLE_START = 180  # seconds: many that start together on old machines take turns


class AgentFarmSpawner(Spawner):  # type: ignore[misc]
    """Servers on the farm's microservers."""

    fleet_socket = Unicode(help="Path of the fleet daemon's socket; default: fleet.sock in AGENTFARM_STATE.").tag(
        config=True
    )
    service_url = Unicode(
        help="Where servers reach the farm's service, e.g. http://127.0.0.1:8003; default: AGENTFARM_URL in Spawner.environment."
    ).tag(config=True)
    demand = Dict(
        help="What servers ask of a microserver beyond the farm's settings (agentfarm placement settings) and before those of an "
        "agent: {memory: bytes, cpu: cores, labels: {…}}, fields as in demands.Resources."
    ).tag(config=True)

    show_microserver = Bool(
        True,
        help="Whether the Hub's admin page names a server's microserver, and why it is there, in its column Profile (user option `profile`). "
        "False where that option is yours.",
    ).tag(config=True)

    microserver = ""  # where it was placed
    why = ""  # there
    _asked = False  # the daemon has answered this start: what poll() sees is its unit, not the one before

    @default("fleet_socket")
    def _fleet_socket(self) -> str:
        return os.path.join(os.environ.get("AGENTFARM_STATE", ".farm"), "fleet.sock")

    @default("start_timeout")
    def _start_timeout(self) -> int:
        return WHOLE_START

    @default("ip")
    def _ip(self) -> str:
        return "127.0.0.1"

    @default("apply_user_options")
    def _apply(self) -> Any:
        return refuse_placement

    @property
    def fleet(self) -> FleetClient:
        return FleetClient(self.fleet_socket)

    @property
    def unit(self) -> str:
        return unit_name(self.user.name, self.name)

    # -- state ---------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        if self.microserver:
            state |= {"microserver": self.microserver, "unit": self.unit}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.microserver = state.get("microserver", "")

    def clear_state(self) -> None:
        super().clear_state()
        self.microserver = self.why = ""
        self._show_place()
        self._asked = False

    # -- environment and command ---------------------------------------------------------------------------------

    def get_env(self) -> dict[str, str]:
        env: dict[str, str] = super().get_env()
        if self.service_url:
            env.setdefault("AGENTFARM_URL", self.service_url)
        env.pop("AGENTFARM_AGENT", None)
        if self.user.name.startswith(AGENT):
            env["AGENTFARM_AGENT"] = self.user.name.removeprefix(AGENT)
        env["JUPYTER_CONFIG_PATH"] = str(Path(__file__).parent / "labserver" / "config")
        return {name: str(value) for name, value in env.items() if value is not None}

    def command(self) -> list[str]:
        """Return the server's command; its program by its name, which each microserver finds next to its own Python."""
        words: list[str] = [*self.cmd, *self.get_args()]
        if os.getuid() == 0 and not any(part.startswith("--allow-root") for part in words):
            words.append("--allow-root")  # harmless where the server gets a user of its own
        return words

    def limits(self) -> dict[str, Any]:
        """Return what the server may take at most, as the Hub's own settings say: bytes and cores."""
        return {k: v for k, v in (("memory", self.mem_limit), ("cpu", self.cpu_limit)) if v}

    # -- the life of a server ------------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Place, start, wait until it answers. Raises SpawnException with the reasons."""
        began = time.monotonic()
        try:
            placed = await self.fleet.place(self.unit, dict(self.demand), self.user.name)
            if placed["state"] == "running":  # a Hub that died left it, with tokens that are not those of this start
                await self.fleet.stop(self.unit)
                placed = await self.fleet.place(self.unit, dict(self.demand), self.user.name)
            self.microserver = placed[
                "microserver"
            ]  # fixed before anything runs: a start that is cancelled can be stopped
            self.why = placed.get("why", "")
            self._show_place()
            self.ip, self.port = placed["ip"], placed["port"]
            agent = self.user.name.removeprefix(AGENT) if self.user.name.startswith(AGENT) else None
            started = await self.fleet.start(
                self.unit,
                user=self.user.name,
                server=self.name,
                args=self.command(),
                env=self.get_env(),
                agent=agent,
                demand=dict(self.demand),
                limits=self.limits(),
                turn=self.start_timeout,
            )
            self._asked = True
            until = min(began + self.start_timeout, time.monotonic() + self.start_timeout / 2)
            await self._come_up(started["ip"], started["port"], until)
        except AgentFarmError as error:
            raise SpawnException(f"{error.detail}. {error.hint}", reason=error.type) from error
        self.log.info("%s runs on %s, port %d", self.unit, self.microserver, started["port"])
        return started["ip"], started["port"]

    async def _come_up(self, ip: str, port: int, until: float) -> None:
        """Wait until the server answers: the Hub, which looks ever more seldom, then finds it up at once, and has twice the time.

        Raises StartError: it has ended. At `until` (monotonic) the Hub is left to wait by itself.
        """
        if self.server is None or self.internal_ssl:
            return
        # What the Hub keeps when a start is over: one that dies in between takes the server over.
        self.server.ip, self.server.port = ip, port
        self.orm_spawner.state = self.get_state()
        self.db.commit()
        try:
            await within(self._answers(f"http://{ip}:{port}{self.server.base_url}api"), until - time.monotonic())
        except asyncio.TimeoutError:
            self.log.info("%s does not answer yet", self.unit)

    async def _answers(self, url: str) -> None:
        """Return when the server answers. Raises StartError: it has ended."""
        began = asked = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)) as http:
            while True:
                with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):  # not yet
                    async with http.get(url, allow_redirects=False) as answer:
                        if answer.status < 500:
                            return
                if (now := time.monotonic()) - asked > ASK_SECONDS:
                    await self._lives()
                    asked = time.monotonic()
                await asyncio.sleep(min(max((now - began) / 20, LOOK_SECONDS[0]), LOOK_SECONDS[1]))

    async def _lives(self) -> None:
        """Raises StartError where the server has ended; where nobody can say it may live. Its log is for who may open it."""
        try:
            shown = await self.fleet.show(self.unit)
            if shown["state"] != "exited":
                return
        except AgentFarmError:
            return
        why = shown.get("reason") or f"with exit code {shown.get('exit_code')}"
        raise StartError(
            f"the server ended while it started: {why}", hint="agentfarm agent logs AGENT says what it wrote"
        )

    def _show_place(self) -> None:
        """Have the Hub's own list of servers name the microserver: its admin page prints the option `profile`."""
        if not self.show_microserver:
            return
        given: dict[str, Any] = dict(self.user_options)  # type: ignore[has-type]
        options = {name: value for name, value in given.items() if name != "profile"}
        if self.microserver:
            options["profile"] = f"{self.microserver}: {self.why}" if self.why else self.microserver
        if options != given:
            self.user_options = options
            if self.orm_spawner is not None:  # so that a Hub that is started anew knows it too
                self.orm_spawner.user_options = options
                self.db.commit()  # the end of any request of the Hub's rolls back what is not

    async def stop(self, now: bool = False) -> None:
        """Return when the unit is gone. Stopping twice is harmless."""
        try:
            await self.fleet.stop(self.unit, now=now)
        except NotFound:
            self.log.debug("%s was not there", self.unit)

    async def poll(self) -> int | None:
        """Return None while it runs, or while nobody can say; else the exit code.

        A Hub that has just started looks whether a server answers, and stops one that does not. One whose microserver is away
        is not asked for before that is there again: until then the Hub has it as pending, and keeps its route.
        """
        away = False
        while True:
            try:
                shown = await self.fleet.show(self.unit)
            except NotFound:
                return None if self._starting else 0
            except Exception as error:
                self.log.warning("cannot ask for %s: %s", self.unit, error)
                if not away:
                    return None
            else:
                if shown["state"] != "unknown" or not self._check_pending:
                    break
                away = True
            await asyncio.sleep(AWAY_SECONDS)
        if shown["state"] != "exited" or self._starting:
            await self._follow(shown)
            return None
        code = shown.get("exit_code")
        return code if isinstance(code, int) else 0

    async def _follow(self, shown: dict[str, Any]) -> None:
        """Lead the Hub's proxy to where the server is reached by now: a program may have taken its port while nobody held it."""
        at, server = (shown.get("ip"), shown.get("port")), self.server
        known = (server.ip, server.port) if server is not None else at
        if shown["state"] != "running" or not all(at) or self.pending or at == known:
            return
        self.log.warning("%s is reached at port %d now, not at %d", self.unit, at[1], server.port)
        try:
            server.ip, server.port = at
            self.db.commit()
            await self.user.settings["proxy"].add_user(self.user, self.name)
        except Exception as error:  # the Hub's own look at all routes mends it later
            self.log.warning("the proxy was not told where %s is: %s", self.unit, error)

    @property
    def _starting(self) -> bool:
        return bool(self._start_pending) and not self._asked

    def run_post_stop_hook(self) -> Any:
        """Called by the Hub whenever a server has ended, also one whose token it no longer remembers."""
        if not self.will_resume:
            forget_tokens(self.db, self.user.orm_user)
        return super().run_post_stop_hook()

    async def get_url(self) -> str:
        """Return the server's URL, as the daemon knows it; the stored one where it cannot be asked."""
        try:
            shown = await self.fleet.show(self.unit)
            if shown["port"]:
                return f"http://{shown['ip']}:{shown['port']}"
        except Exception as error:
            self.log.warning("cannot ask for the address of %s: %s", self.unit, error)
        server = self.server
        return str(server.url) if server is not None else ""

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        yield {"progress": 10, "message": "Choosing a microserver"}
        told: dict[str, Any] = {}
        while self._start_pending:
            if (now := await self._stage()) and now != told:
                told = now
                yield now
            await asyncio.sleep(0.5)

    async def _stage(self) -> dict[str, Any]:
        """Return how far the start has come, as the Hub's page shows it; {} where there is nothing to say yet."""
        if not self.microserver:
            return {}
        before = None
        if not self._asked:
            with contextlib.suppress(AgentFarmError):
                before = await self.fleet.before(self.unit)
        if before is not None:
            servers = "server starts" if before == 1 else "servers start"
            said = f"Waiting for its turn: {before} {servers} on microserver {self.microserver} before it"
            return {"progress": 30, "message": said}
        verb, why = ("Starting", f": {self.why}") if self._asked else ("Placed", f": {self.why}")
        said = f"{verb} on microserver {self.microserver}{why if self.why else ''}"
        return {"progress": 50 if self._asked else 20, "message": said}

    async def delete_forever(self) -> None:
        if not self.microserver:  # stopped, or never started
            return
        try:
            await self.fleet.stop(self.unit, now=True)
        except (NotFound, FleetError) as error:
            self.log.info("%s: %s", self.unit, error)


def refuse_placement(spawner: Spawner, user_options: dict[str, Any]) -> None:
    """Refuse a microserver that a user names: the farm chooses. (apply_user_options)"""
    if "microserver" in user_options:
        raise SpawnException("the farm chooses the microserver", reason="invalid", status_code=400)

"""The extension as jupyter_server sees it: loaded in every server of the farm, started when the event loop runs.

In a person's server it is the panel's back end and the kernels' way to the farm; where AGENTFARM_AGENT is set, it is
the supervisor. Outside a farm (no AGENTFARM_URL) it does nothing.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
from collections.abc import Iterable
from typing import Any

from jupyter_server.extension.application import ExtensionApp
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager
from traitlets import Integer, List, Unicode

from . import activity, hubtoken, memory
from .forward import PanelHandler, Service
from .kernels import kernel_environment
from .kernelsocket import LONGEST_PATH, KernelSocket, private_folder
from .revoked import OpenSockets
from .supervisor import Supervisor

IPC_NAME_BYTES = len("kernel-01234567-89ab-cdef-0123-456789abcdef-ipc-5")


class AgentFarmExtension(ExtensionApp):
    """Options are set as c.AgentFarmExtension.… in the server's configuration."""

    name = "agentfarm"
    extension_url = "/lab"

    slots = Integer(
        2, min=1, config=True, help="Runs at once in an agent's server (default 2). Each takes a kernel: raise it where RAM allows."
    )  # fmt: skip
    kernel_name = Unicode(
        "", config=True,
        help='Kernel spec of worker kernels (default "": the server\'s own). It must be a Python in which agentfarm_sdk is installed.',
    )  # fmt: skip
    kernel_variables = List(
        Unicode(), config=True,
        help="Further environment variables of worker kernels, as shell patterns (default none). Agents' code reads them: no secrets.",
    )  # fmt: skip

    def initialize_settings(self) -> None:
        """Before handlers: nothing here needs the event loop."""
        self.farm_url = os.environ.get("AGENTFARM_URL", "")
        self.agent = os.environ.get("AGENTFARM_AGENT", "")
        self.supervisor: Supervisor | None = None
        self.socket: KernelSocket | None = None
        self.open_sockets: OpenSockets | None = None
        self.service = Service(self.farm_url, "", self.log)

    def initialize_handlers(self) -> None:
        if self.farm_url and not self.agent:
            self.handlers.append((r"/agentfarm/(.*)", PanelHandler, {"service": self.service}))
            self._tell_panel()

    def _tell_panel(self) -> None:
        """Say on Lab's page whose panel this is, and where the farm pages are; without it the panel shows nothing."""
        assert self.serverapp is not None
        told = self.serverapp.web_app.settings.setdefault("page_config_data", {})
        told["agentfarmPerson"] = os.environ.get("JUPYTERHUB_USER", "")
        told["agentfarmPages"] = os.environ.get("AGENTFARM_PAGES", "")

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        """Run in the first turn of the event loop, before any kernel or terminal can be asked for."""
        if not self.farm_url:
            return
        self._stop_between_two_turns()
        self._hide_token()
        self._kernels_off_the_network()
        self._kernels_die_first()
        self._without_delay()
        if hub_auth := getattr(serverapp.identity_provider, "hub_auth", None):
            self.open_sockets = OpenSockets(hub_auth, self.log)
            self.open_sockets.start()
        if not self.service.token:
            self.log.error("AgentFarm: no JUPYTERHUB_API_TOKEN here; start this server from the hub")
        elif self.agent:
            self._supervise()
        else:
            settings = serverapp.web_app.settings
            self.socket = KernelSocket(self.service, serverapp.runtime_dir, lambda: activity.mark(settings))
            os.environ["AGENTFARM_SOCKET"] = self.socket.start()

    async def stop_extension(self) -> None:
        if self.open_sockets:
            await self.open_sockets.stop()
        if self.supervisor:
            await self.supervisor.stop()
        if self.socket:
            await self.socket.stop()
        await self.service.close()

    # -- parts ---------------------------------------------------------------------------------------------------

    def _stop_between_two_turns(self) -> None:
        """Have the event loop call what stops the server, not the signal's handler.

        Jupyter Server logs in its handler; where that meets a line that is just being written, the handler fails and the
        signal is lost: the server goes on until it is killed.
        """
        assert self.serverapp is not None
        stop = self.serverapp._signal_stop
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) == stop:
                asyncio.get_running_loop().add_signal_handler(number, stop, number, None)

    def _readers_of_token(self) -> Iterable[Any]:
        """Who reads the Hub's token from the environment, when first asked."""
        assert self.serverapp is not None
        yield self.serverapp
        yield self.serverapp.identity_provider
        for apps in self.serverapp.extension_manager.extension_apps.values():
            yield from apps

    def _hide_token(self) -> None:
        self.service.token = hubtoken.take_token(self._readers_of_token())
        hubtoken.erase_first_environment()
        hubtoken.forbid_reading()

    def _supervise(self) -> None:
        assert self.serverapp is not None
        os.environ.setdefault("AGENTFARM_WORKSPACE", self.serverapp.root_dir)  # for what the server starts
        web_app, env = self.serverapp.web_app, dict(os.environ)
        self.supervisor = Supervisor(
            url=self.farm_url, token=self.service.token, agent=self.agent, slots=self.slots, log=self.log,
            manager=self.serverapp.kernel_manager, sessions=self.serverapp.session_manager, kernel_name=self.kernel_name,
            kernel_env=kernel_environment(env, self.kernel_variables),
            active=lambda: activity.mark(web_app.settings), broken=self._broken, scratch=bool(env.get("AGENTFARM_SCRATCH")),
        )  # fmt: skip
        self.supervisor.start()

    def _broken(self, error: BaseException) -> None:
        """A supervisor with a dead loop would hold leases and do nothing: the server ends, the hub starts another."""
        self.log.critical("AgentFarm: the supervisor is broken, this server ends", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)

    def _without_delay(self) -> None:
        """Let kernels' WebSockets send small frames at once; with Nagle's algorithm a tiny cell takes 48 ms instead of 7."""
        assert self.serverapp is not None
        settings = self.serverapp.web_app.settings
        base = settings["kernel_websocket_connection_class"]

        class WithoutDelay(base):  # type: ignore[misc, valid-type]
            def connect(self) -> Any:
                self.websocket_handler.set_nodelay(True)
                return super().connect()

        WithoutDelay.__name__ = base.__name__  # its configuration is found by name
        settings["kernel_websocket_connection_class"] = WithoutDelay

    def _kernels_die_first(self) -> None:
        """Where memory is short a kernel is killed, and not the server with all of them. An operator's own class is kept."""
        assert self.serverapp is not None
        manager = self.serverapp.kernel_manager
        if manager.kernel_manager_class == f"{ServerKernelManager.__module__}.{ServerKernelManager.__name__}":
            manager.kernel_manager_class = f"{memory.__name__}.{memory.DiesFirst.__name__}"

    def _kernels_off_the_network(self) -> None:
        """Kernels speak over unix sockets: TCP ports are open to every local user. An operator's own choice is kept."""
        assert self.serverapp is not None
        manager = self.serverapp.kernel_manager
        section = manager.config.KernelManager
        if "transport" in section:
            return
        section.transport = "ipc"
        if len(manager.connection_dir.encode()) + 1 + IPC_NAME_BYTES > LONGEST_PATH:
            folder = private_folder(self.serverapp.runtime_dir, IPC_NAME_BYTES)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)  # kernels end after the extensions
            manager.connection_dir = str(folder)

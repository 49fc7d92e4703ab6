"""The state directory: who holds it, its ports, its secrets. What each file is stands in docs/architecture.md."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StartError

# Of ports.json. `service`: the farm's address for programs; where two services share it, each has one of its own besides.
COUNTED = ("public", "proxy_api", "hub", "service", "model")  # from --port-base
NAMES = (*COUNTED, "service_own", "standby_own")
FREE_BYTES = 500 * 1024 * 1024  # below this a farm does not start: its ledger could soon not be written
TOKENS = ("proxy.token", "hub-service.token", "hub-fleet.token", "hub-launcher.token", "cookie_secret", "model.key")


@dataclass(frozen=True)
class State:
    """A farm's directory with everything that its processes read there."""

    directory: Path
    ports: dict[str, int]

    @property
    def secrets(self) -> Path:
        return self.directory / "secrets"

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    def url(self, port: str, path: str = "") -> str:
        return f"http://127.0.0.1:{self.ports[port]}{path}"

    @property
    def public_url(self) -> str:
        """Where browsers go. Only they resolve the name: programs use `url`."""
        return f"http://farm.localhost:{self.ports['public']}"


def prepare(directory: Path, choose: Callable[[dict[str, int]], dict[str, int]]) -> State:
    """Make the directory and what is missing in it; `choose` says which ports, from those kept.

    Raises:
        StartError: it cannot be written, or the disk is nearly full.
    """
    try:
        for path in (directory, directory / "secrets", directory / "logs"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (
                path.stat().st_mode & 0o066
            ):  # passing through is the daemon's to allow: to agents with users of their own
                path.chmod(0o700)
        free = shutil.disk_usage(directory).free
        if free < FREE_BYTES:
            raise StartError(
                f"the disk of {directory} has {free // 2**20} MB left, the farm needs {FREE_BYTES // 2**20}",
                hint="free some space, or put the state on another disk with --state DIR",
            )
        for name in TOKENS:
            write_secret(directory / "secrets" / name, secrets.token_hex(32), keep=True)
        passwords = {"admin": {"admin": secrets.token_urlsafe(27)}, "people": secrets.token_urlsafe(12)}
        write_secret(directory / "secrets" / "passwords.json", json.dumps(passwords, indent=2) + "\n", keep=True)
        ports = choose(kept_ports(directory))
        write_atomically(directory / "ports.json", json.dumps(ports) + "\n")
    except OSError as error:
        raise StartError(
            f"{directory} cannot be used: {error.strerror or error}",
            hint="make it writable for this user, free some space, or choose another with --state DIR",
        ) from error
    return State(directory, ports)


def kept_ports(directory: Path) -> dict[str, int]:
    """Return the ports of the last start, as far as they can be read."""
    try:
        kept = json.loads((directory / "ports.json").read_text())
        return {name: int(kept[name]) for name in NAMES if name in kept}
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def choose_ports(
    kept: dict[str, int], public: int | None, base: int | None, free: Callable[[int], bool], any_free: Callable[[], int]
) -> dict[str, int]:
    """Return a port for each name: kept ones stay where they can, servers remember them. `public` 0 = any.

    Raises:
        StartError: the public port, or one counted from `base`, is another program's.
    """
    wanted = {**kept, **({name: base + number for number, name in enumerate(COUNTED)} if base else {})}
    if public:
        wanted["public"] = public
    elif public is None:
        wanted.setdefault("public", 8000)
    ports: dict[str, int] = {}
    for name in NAMES:
        port = wanted.get(name)
        if port is not None and port not in ports.values() and free(port):
            ports[name] = port
        elif port is not None and ((base and name in COUNTED) or name == "public"):
            raise StartError(
                f"port {port} is taken by another program",
                hint="stop that program, or choose another port: agentfarm up --port 8001 (make farm PORT=8001)",
            )
        else:
            ports[name] = next(p for p in iter(any_free, None) if p not in {*ports.values(), *wanted.values()})
    return ports


def is_free(port: int) -> bool:
    """Say whether a server could listen on the loopback port now. Raises StartError for a number that is no port."""
    if not 0 < port < 65536:
        raise StartError(f"{port} is no port", hint="a port is a number from 1 to 65535; 0 takes any free one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError as error:
            raise StartError(f"port {port} is reserved for root", hint="choose one above 1023 with --port") from error
        except OSError:
            return False
        return True


def any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the directory as its one launcher. Raises StartError with the address where another one does."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartError(f"{directory} cannot be used: {error.strerror}", hint="choose another with --state") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        where = read_ready(directory).get("public_url")
        raise StartError(
            f"a farm already runs here: {where}" if where else "a farm is just starting here",
            hint="stop it with Ctrl-C in its terminal, or start another with --state DIR --port N",
        ) from error
    try:
        yield
    finally:
        os.close(handle)


def read_ready(directory: Path) -> dict[str, Any]:
    """Return what the running launcher last wrote to ready.json, {} where none runs."""
    try:
        ready = json.loads((directory / "ready.json").read_text())
        return ready if isinstance(ready, dict) else {}
    except (OSError, ValueError):
        return {}


def write_secret(path: Path, text: str, *, keep: bool = False) -> None:
    """Write a file that only this user reads, whole or not at all; with `keep` one that is there stays."""
    if keep and path.exists() and path.stat().st_size:
        path.chmod(0o600)
        return
    write_atomically(path, text)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file (0600) so that no reader and no crash sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

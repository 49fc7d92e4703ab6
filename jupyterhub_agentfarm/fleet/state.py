"""What the daemon must remember over its restarts: where each unit is, what was promised to it, its port, users' ids, what
operators said of microservers. Written atomically."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ..errors import StartError
from .ports import FORWARDS, Ports, is_free

FARM = re.compile(r"[0-9a-f]{12}")
NOTICES = 500  # that are kept: the service takes them within seconds
AGENT_USER = re.compile(r"^agent-[a-z][a-z0-9-]{0,40}$")
FIRST_UID = 200_000  # above people's and systemd's ranges
# Each farm begins at one of so many places: farms that share a microserver do not share users there.
UIDS, PLACES = 1_000, 300


class FleetState:
    """`fleet.json` in memory. Every change is on disk before the method returns.

    farm: the farm's own id, by which microservers know its units; made once, kept in `farm.id` beside, so that it outlives `fleet.json`.
    units: {microserver, ip, port, user, server, agent, home, promise, unwanted: it could not be told to stop}; microservers: {state, reason,
    ssh: user@host:port (none: this machine), login: how operators sign in there, measured: {what: figure}, labels, taints, health, silent (health.py),
    boot_id, helper_version, back: {address here: the port there that leads to it}, drain}.
    moves: user → how the move of a workspace stands; leftovers: microserver → users whose workspace there is an old copy (moving.py).
    """

    def __init__(self, path: Path, forwards: range = FORWARDS) -> None:
        self.path, self.forwards, self.ports = path, forwards, Ports()
        self.units: dict[str, dict[str, Any]] = {}
        self.uids: dict[str, int] = {}
        self.microservers: dict[str, dict[str, Any]] = {}
        self.placement: dict[str, Any] = {}  # the farm's settings (demands.Settings)
        self.demands: dict[str, dict[str, Any]] = {}  # unit -> what its owner set: user, resources, group
        self.moves: dict[str, dict[str, Any]] = {}
        self.leftovers: dict[str, list[str]] = {}
        self.last_forward = 0
        self.notices: list[dict[str, Any]] = []  # what the service is to record in the farm's chain: {id, kind, at, …}
        known: dict[str, Any] = {}
        if path.exists():
            try:
                known = json.loads(path.read_text())
                self.units, self.uids, self.microservers = known["units"], known["uids"], known["microservers"]
                self.placement, self.demands = known.get("placement", {}), known.get("demands", {})
                self.moves, self.leftovers = known.get("moves", {}), known.get("leftovers", {})
                self.last_forward, self.notices = known.get("last_forward", 0), known.get("notices", [])
            except (ValueError, KeyError) as error:
                raise StartError(
                    f"{path} cannot be read",
                    hint="restore it from a backup: it holds the ports and users of running servers",
                ) from error
        self.farm = _farm_id(path.with_name("farm.id"), known.get("farm", ""))

    def save(self) -> None:
        temporary = self.path.with_suffix(".new")
        with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as sink:
            names = (
                "farm",
                "units",
                "uids",
                "microservers",
                "placement",
                "demands",
                "moves",
                "leftovers",
                "last_forward",
                "notices",
            )
            json.dump({name: getattr(self, name) for name in names}, sink, indent=1)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # a power cut would bring the former file back, and with it ids that were given since
        finally:
            os.close(folder)

    def leave(self, user: str, microserver: str) -> None:
        """Have what is there of the user's workspace removed, when that microserver can be asked. The caller saves."""
        left = self.leftovers.setdefault(microserver, []) if microserver else []
        if microserver and user not in left:
            left.append(user)

    def note(self, kind: str, **body: Any) -> None:
        """Note what happened, for the service; ids grow, also where the file was lost. The caller saves."""
        now = time.time()
        last = self.notices[-1]["id"] if self.notices else 0
        self.notices = [*self.notices, {"id": max(last + 1, int(now * 1000)), "kind": kind, "at": now, **body}][
            -NOTICES:
        ]

    def uid(self, user: str) -> int:
        """Return the user id that servers of this hub user run under; a new one is never one that was given before."""
        if user not in self.uids:
            first = FIRST_UID + UIDS * (int(self.farm, 16) % PLACES)
            self.uids[user] = max(self.uids.values(), default=first - 1) + 1
            self.save()
        return self.uids[user]

    def remember_users(self, workspaces: Path) -> None:
        """Take the ids of users whom the state does not know from who owns their workspaces."""
        for folder in workspaces.iterdir():
            user, owner = user_of(folder.name), folder.stat().st_uid
            if owner >= FIRST_UID and user not in self.uids:
                self.uids[user] = owner
                self.save()

    def forward(self) -> int:
        """Return a loopback port of the reserved range that is free and no unit's, and hold it; not one that was given lately.

        A route of the Hub's proxy that is still there must not lead to another server. Raises StartError.
        """
        taken = {other.get("port") for other in self.units.values()}
        after = self.last_forward + 1 - self.forwards.start if self.last_forward in self.forwards else 0
        for step in range(len(self.forwards)):
            port = self.forwards[(after + step) % len(self.forwards)]
            if port not in taken and is_free(port, reused=False):
                self.last_forward = port
                self.ports.hold(port)
                return port
        raise StartError(
            "no loopback port is left for a server", hint="widen AGENTFARM_FORWARD_PORTS, e.g. 21000-24999"
        )

    def port(self, unit: str) -> int:
        """Return the unit's loopback port: the one it had, where it is free, else a new one that no other unit has."""
        known = self.units.get(unit, {}).get("port")
        if known and is_free(known):
            return int(known)
        taken = {other.get("port") for name, other in self.units.items() if name != unit}
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in taken:
                return port


def _farm_id(path: Path, known: str) -> str:
    """Return the farm's id; it is made where there is none. Raises StartError."""
    if path.exists():
        known = path.read_text().strip()
    elif not known:
        known = secrets.token_hex(6)
    if not FARM.fullmatch(known):
        raise StartError(f"{path} cannot be read", hint="restore it from a backup: microservers know the farm by it")
    if not path.exists():
        path.write_text(known + "\n")
        path.chmod(0o600)
    return known


def workspace_of(user: str) -> str:
    """Return the name of a hub user's workspace: an agent's is its own name, a person's begins with ~."""
    return user.removeprefix("agent-") if AGENT_USER.fullmatch(user) else "~" + quote(user, safe="@+")


def user_of(workspace: str) -> str:
    """Return whose workspace it is, by its name."""
    return unquote(workspace[1:]) if workspace.startswith("~") else f"agent-{workspace}"

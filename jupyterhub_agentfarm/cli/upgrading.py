"""`agentfarm microserver upgrade`: this release on every microserver, one after the other, without a run lost.

A new environment is put beside the old one, and servers that run keep theirs. What fails on one is undone there, and the others are left
as they are. Broken off, the same command goes on: it starts anew what still runs from another release.
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from urllib.parse import quote

from agentfarm_sdk.errors import AgentFarmError, Conflict, NotFound
from agentfarm_sdk.farm import Farm

from ..errors import StartError
from ..fleet.bootstrap import machine, steps
from ..fleet.bootstrap.environment import kind_of, prepared
from ..fleet.bootstrap.login import Machine
from ..records import hub_user, unit_name
from . import joining
from .agents import RESTART_SECONDS
from .joining import say
from .show import Adder, Out

PAUSE_SECONDS = 2.0  # between looks at agents that work


def add(verb: Adder) -> None:
    parser = verb(
        "upgrade", upgrade_microservers, "bring microservers to this release, one after the other; runs go on"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all that are reached over SSH)")
    parser.add_argument(
        "--no-restart",
        action="store_true",
        help="let servers that run be; each gets the new release when it starts next",
    )
    joining.signing_in(parser)


def upgrade_microservers(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    needs = joining.joining(farm)
    known = needs["microservers"]
    if unknown := [name for name in asked.names if name not in known]:
        raise NotFound(
            f"there is no microserver {unknown[0]} that is reached over SSH", hint="agentfarm microserver list"
        )
    names = asked.names or sorted(known)
    done: list[dict[str, Any]] = []
    for name in names:
        say(f"{name} ({len(done) + 1} of {len(names)})")
        try:
            done.append(_upgrade(farm, asked, name, known[name], needs["public_key"]))
        except AgentFarmError as error:
            rest = names[len(done) + 1 :]
            left = f"; left as they are: {', '.join(rest)}" if rest else ""
            error.detail = f"{name}: {error.detail}{left}"
            raise
    if out.as_json:
        out.value(done)
        return 0
    for one in done:
        restarted = f"; servers started anew: {', '.join(one['restarted'])}" if one["restarted"] else ""
        out.line(f"{one['name']} {'is upgraded' if one['changed'] else 'had this release already'}{restarted}")
    return 0


def _upgrade(
    farm: Farm, asked: argparse.Namespace, name: str, known: dict[str, Any], public_key: str
) -> dict[str, Any]:
    """Bring one microserver to this release. Raises StartError: it could not be, and is as it was."""
    to = joining.login_of(asked, name, known)
    host_key = joining.host_key_of(asked, to, known)
    entry = {"ssh": known["ssh"], "login": str(to)}
    with joining.going_on(), Machine(to, host_key, asked.key) as there:
        seen, findings = steps.look(there)
        joining.show([one for one in findings if one.state != "ok"])
        steps.stop_at(findings)
        packed = prepared(kind_of(seen["python"], seen["arch"], seen["libc"]), say)
        steps.deliver(there, packed, say)
        try:
            before = steps.switch(there, packed.id, public_key, say)
            now = _told(farm, name, entry)
            if now["silent"] or not now["current"]:
                raise StartError(
                    f"the farm does not reach its new helper: {now['silent'] or 'it answers as the old one'}",
                    hint="agentfarm doctor",
                )
        except AgentFarmError as error:
            there.call(machine, "back")
            _told(farm, name, entry)
            error.detail += "; it is as it was"
            raise
        outdated = there.call(machine, "settle")["outdated"]
        agents = [one for one in now["agents"] if f"agentfarm-{unit_name(hub_user(one))}.service" in outdated]
        if not asked.no_restart:
            _restart(farm, agents)
        there.call(machine, "prune")
    changed = steps.Joined(before, packed.id, {}).changed
    return {"name": name, "changed": changed, "environment": packed.id, "restarted": [] if asked.no_restart else agents}


def _told(farm: Farm, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Have the farm look at a microserver anew."""
    now: dict[str, Any] = farm.request("PUT", f"/microservers/{quote(name, safe='')}", entry)
    return now


def _restart(farm: Farm, agents: list[str]) -> None:
    """Restart agents' servers, each once no run is on it; its agent takes none meanwhile."""
    waiting, told = list(agents), ""
    while waiting:
        for agent in [*waiting]:
            try:
                farm.request("POST", f"/agents/{quote(agent, safe='')}/restart", timeout=RESTART_SECONDS)
            except Conflict:
                continue  # it works
            except NotFound:
                say(f"{agent} was retired meanwhile")
            waiting.remove(agent)
        if waiting and told != (told := ", ".join(waiting)):
            say(
                f"waiting for runs of: {told} (Ctrl-C leaves their servers on the old release; the same command goes on)"
            )
        if waiting:
            time.sleep(PAUSE_SECONDS)

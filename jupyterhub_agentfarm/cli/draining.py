"""`agentfarm microserver drain`: shows what goes where, asks, empties microservers, and tells how far it is."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from typing import Any
from urllib.parse import quote

from agentfarm_sdk.errors import Invalid, NotFound, Transient
from agentfarm_sdk.farm import Farm

from .show import Adder, Out
from .sizes import shown_size

FAILED = 1
UNTIL = ("finish-step", "finish-run", "move", "kill")
SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LOOK_SECONDS, DAY = 2.0, 86400.0


def add(verb: Adder) -> None:
    drain = verb("drain", drain_microservers, "empty it: its agents and their workspaces go on elsewhere")
    drain.add_argument("names", nargs="+", metavar="NAME", help="several: nothing new goes to any of them first")
    drain.add_argument("--reason", required=True, help="on record with your name")
    drain.add_argument(
        "--until", choices=UNTIL, default="finish-step", help="what a server may finish first: the step in hand (default), "
        "whole runs; move: nothing; kill: it is killed",
    )  # fmt: skip
    drain.add_argument(
        "--deadline",
        metavar="TIME",
        help="what has not come to rest by then is killed: 30m, 2h, or 2030-01-31T18:00:00Z",
    )
    drain.add_argument("--dry-run", action="store_true", help="only say what would go where")
    drain.add_argument("--yes", action="store_true", help="do not ask")
    drain.add_argument("--wait", action="store_true", help="tell how far it is until it is empty")
    keep = verb("snapshot", snapshot_microserver, "keep its workspaces at the hub machine, for the day that it is lost")
    keep.add_argument("name")
    lost = verb(
        "lost", lose_microserver, "it is gone for good: let its agents go on elsewhere; on record with your name"
    )
    lost.add_argument("name")
    how = lost.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--restore", metavar="SNAPSHOT", default="", help="a snapshot's name, or latest; who has none waits on"
    )
    how.add_argument("--without-workspace", action="store_true", help="they begin without their files")
    lost.add_argument("--agent", action="append", default=[], metavar="NAME", help="only this one; may be said again")
    lost.add_argument("--reason", required=True)
    verb("progress", show_drain, "how far a drain is, and what each workspace waits for").add_argument("name")


def drain_microservers(farm: Farm, asked: argparse.Namespace, out: Out) -> int | None:
    wish = {
        "reason": asked.reason,
        "until": asked.until,
        **({"deadline": when(asked.deadline)} if asked.deadline else {}),
    }
    preview = {**wish, "dry_run": True, "besides": asked.names}
    plans = [farm.request("POST", _path(name), preview) for name in asked.names]
    if asked.dry_run:
        _show(plans, out)
        return None
    if not asked.yes:
        _show(plans, Out())
        _confirm(asked.names)
    if len(asked.names) > 1:  # or work hops onto the next victim
        for name in asked.names:
            farm.request("POST", f"/microservers/{quote(name, safe='')}/cordon", {"reason": asked.reason})
    begun = [farm.request("POST", _path(name), wish) for name in asked.names]
    if not asked.wait:
        if out.as_json:
            out.value(begun)
        for one in begun if not out.as_json else []:
            leaving = sum(not item.get("scratch") for item in one["items"])
            out.line(
                f"{one['microserver']} is being drained; workspaces that leave it: {leaving}; how far it is: agentfarm microserver progress {one['microserver']}"
            )
        return None
    return _wait(farm, asked.names, out)


def _path(name: str) -> str:
    return f"/microservers/{quote(name, safe='')}/drain"


def when(text: str) -> float | str:
    """Return what the API takes: seconds from now, or a time. Raises Invalid."""
    if (found := SPAN.fullmatch(text)) is not None:
        return float(found[1]) * SECONDS[found[2]]
    if not text[:1].isdigit():
        raise Invalid(f"{text!r} is no deadline", hint="30m, 2h, or 2030-01-31T18:00:00Z")
    return text


def _show(plans: list[dict[str, Any]], out: Out) -> None:
    rows = [row_of(plan["microserver"], one) for plan in plans for one in plan["items"]]
    if out.as_json:
        out.value(plans)
    else:
        out.rows(
            rows,
            ("microserver", "user", "server", "runs", "size", "to", "waits"),
            "nothing lives there: it is empty already",
            "waits",
        )


def row_of(microserver: str, one: dict[str, Any]) -> dict[str, Any]:
    """Return a workspace as a line of the table."""
    size = "" if one.get("bytes") is None else shown_size(one["bytes"])
    return {**one, "microserver": microserver, "to": one["to"] or "stays", "size": size}


def _confirm(names: list[str]) -> None:
    if not sys.stdin.isatty():
        raise Invalid("nobody can be asked here", hint="look at --dry-run, then say --yes")
    print(f"drain {', '.join(names)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Invalid("nothing was done", hint="say y, or --yes")


def show_drain(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    """Print what is still there, and what each workspace waits for."""
    told = farm.request("GET", _path(asked.name))
    if out.as_json:
        out.value(told)
        return
    if (drain := told["drain"]) is None:
        print(f"{asked.name} is not being drained: agentfarm microserver show {asked.name}")
        return
    deadline = f"; deadline {drain['deadline']}" if drain["deadline"] else ""
    print(
        f"{asked.name}: {drain['left']} of {drain['of']} workspaces are still there{deadline} ({drain['by']}: {drain['reason']})"
    )
    rows = [row_of(asked.name, one) for one in told["items"]]
    out.rows(rows, ("user", "server", "runs", "to", "waits"), "nothing is left there", "waits")


def snapshot_microserver(farm: Farm, asked: argparse.Namespace, out: Out) -> int | None:
    path = f"/microservers/{quote(asked.name, safe='')}/snapshot"
    return _kept(farm.request("POST", path, {}, timeout=DAY), out)  # as long as it takes to read all files


def lose_microserver(farm: Farm, asked: argparse.Namespace, out: Out) -> int | None:
    body = {
        "reason": asked.reason,
        "restore": asked.restore,
        "without_workspace": asked.without_workspace,
        "agents": asked.agent,
    }
    return _kept(farm.request("POST", f"/microservers/{quote(asked.name, safe='')}/lost", body), out)


def _kept(told: dict[str, Any], out: Out) -> int | None:
    rows = told["items"]
    shown = rows if out.as_json else [{**one, "size": shown_size(one["bytes"]) if one["bytes"] else ""} for one in rows]
    out.rows(shown, ("user", "snapshot", "size", "changed", "why"), "nothing lives there", "why")
    return None


def _say_what_is_waited_for(farm: Farm, names: list[str], said: dict[str, str]) -> None:
    """Tell of each workspace that stays for a reason, when that is another one than was told."""
    for name in names:
        with contextlib.suppress(Transient, NotFound):  # NotFound: that drain has just ended
            for one in farm.request("GET", _path(name))["items"]:
                about = f"{name} {one['user']}"
                if one["waits"] and not one["moving"] and said.get(about) != one["waits"]:
                    print(f"  {one['user']}: {one['waits']}", flush=True)
                    said[about] = one["waits"]


def _wait(farm: Farm, names: list[str], out: Out) -> int | None:
    """Tell how far it is until all are empty; exit code 1 where somebody ended a drain. A farm that is away is waited for: the drain goes on."""
    said: dict[str, str] = {}
    while True:
        try:
            found = {one["name"]: one for one in farm.microservers()}
        except Transient as error:
            if said.get("") != error.detail:
                print(f"agentfarm: {error.detail}; it is asked again", file=sys.stderr, flush=True)
            said[""] = error.detail
            time.sleep(LOOK_SECONDS)
            continue
        said.pop("", None)
        if gone := [name for name in names if name not in found]:
            raise NotFound(f"{gone[0]} was removed from the farm meanwhile", hint="agentfarm microserver list")
        for name in names:
            drain = found[name].get("drain")
            words = (
                f"{name}: {drain['left']} of {drain['of']} left, {drain['moving']} on their way"
                if drain
                else f"{name} is empty, and cordoned: agentfarm microserver uncordon {name} lets it take servers again"
                if found[name]["state"] == "cordoned"
                else f"{name} is {found[name]['state']}"
            )
            if said.get(name) != words and not out.as_json:
                out.line(words)
            said[name] = words
        if not out.as_json:
            _say_what_is_waited_for(farm, [name for name in names if found[name].get("drain")], said)
        if not any(found[name].get("drain") for name in names):
            ended = [name for name in names if found[name]["state"] != "cordoned"]
            if out.as_json:
                out.value([found[name] for name in names])
            return FAILED if ended else None
        time.sleep(LOOK_SECONDS)

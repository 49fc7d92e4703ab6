"""`agentfarm placement …`: where servers go and why; and what agents' servers are promised."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.farm import Farm

from .show import Out, noun
from .sizes import add_needs, needs, shown_size, size

SIZES = ("memory", "gpu_memory", "reserve_memory", "most_memory")

HEALTH = (
    ("disk_free", "SHARE", "taint a microserver disk-full where less of its disk is free (0.05; 0: never)"),
    ("clock_off", "SECONDS", "clock-off where its clock is further from the farm's (1; 0: never)"),
    (
        "memory_pressure",
        "SHARE",
        "memory-pressure where all its work waited so much of a minute for memory (0.1; 0: never)",
    ),
    ("calm_seconds", "SECONDS", "after which such a taint goes, once the figure is well beyond its limit again (60)"),
)


def add(nouns: Any) -> None:
    verb = noun(nouns, "placement", "where servers go, and why")
    explain = verb(
        "explain",
        explain_placement,
        "why here, or why not yet: the reason for every microserver, and of a task the queue's",
    )
    explain.add_argument("what", metavar="AGENT|TASK")
    moves = verb("rebalance", rebalance, "which servers had better stand elsewhere")
    moves.add_argument("--dry-run", action="store_true", help="only say it: the farm moves nothing by itself")
    moves.add_argument("--gain", type=float, help="by how much of a microserver a move must be better (0.05 to 1)")
    settings = verb(
        "settings", placement_settings, "how places are chosen and what all servers get; with options, change it"
    )
    settings.add_argument("--rank", choices=("spread", "binpack"), help="the emptiest first, or the fullest that fits")
    settings.add_argument(
        "--reserve-memory", metavar="SIZE", help="kept free on each microserver; default: a tenth, 1 GiB at most"
    )
    settings.add_argument("--reserve-cpu", type=float, metavar="CORES")
    settings.add_argument("--gain", type=float, help="by how much of a microserver a move must be better")
    settings.add_argument(
        "--memory", metavar="SIZE", help="that each server is promised, where its agent says nothing else"
    )
    settings.add_argument("--cpu", type=float, metavar="CORES", help="the same")
    settings.add_argument("--tasks", type=int, metavar="N", help="the same: processes and threads at most")
    settings.add_argument(
        "--people-on", metavar="NAME", help="the microserver of people's own servers; any: wherever there is room"
    )
    settings.add_argument("--most-memory", metavar="SIZE", help="that who manages an agent may ask for; any: no limit")
    settings.add_argument("--most-cpu", metavar="CORES", help="the same")
    settings.add_argument("--most-gpus", metavar="N", help="the same")
    for name, metavar, what in HEALTH:
        settings.add_argument(f"--{name.replace('_', '-')}", type=float, metavar=metavar, help=what)
    settings.add_argument(
        "--egress", action="append", metavar="HOST:PORT",
        help="where agents' servers may go besides the farm, e.g. api.example.com:443, 10.0.0.0/8:5432, *:443 (any public address); none: nowhere",
    )  # fmt: skip


def add_resources(verb: Any) -> None:
    """Add `agentfarm agent resources`."""
    parser = verb(
        "resources",
        agent_resources,
        "what an agent's server is promised; with options, change it (from its next start)",
    )
    parser.add_argument("name")
    add_needs(parser)
    parser.add_argument("--tasks", type=int, metavar="N", help="processes and threads at most")
    parser.add_argument("--ticks-only", action="store_true", default=None, help="nowhere but near that tick store")
    parser.add_argument("--apart", choices=("no", "soft", "hard"), help="from other members of its pool")
    parser.add_argument("--workspace", choices=("home", "none"), help="none: it keeps no files, and starts anywhere")
    parser.add_argument("--tolerate", action="append", default=[], metavar="TAINT", help="(operators)")
    parser.add_argument("--pin", metavar="NAME", help="the only microserver for it (operators)")
    parser.add_argument("--rank", choices=("spread", "binpack"), help="other than the farm's (operators)")
    parser.add_argument(
        "--egress", action="append", metavar="HOST:PORT",
        help="where it may go besides the farm, in place of the farm's list; none: nowhere, farm: the farm's list again (operators)",
    )  # fmt: skip
    parser.add_argument("--reset", action="store_true", help="what is not named goes back to the farm's")


def explain_placement(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    kind = "task" if asked.what.startswith("task-") else "agent"
    answer = farm.request("GET", "/placements/explain", params={kind: asked.what})
    if out.as_json:
        out.value(answer)
        return
    for sentence in answer["queue"]:
        print(sentence)
    for name, why in sorted(answer["members"].items()):
        print(f"{name}: {why or 'may take it'}")
    if not answer["agent"]:
        return
    if answer["stands"]:
        print(f"the server of {answer['agent']} is on {answer['microserver']}: {answer['why_here']}")
    for name, why in sorted(answer["reasons"].items()):
        here = "  <- here" if answer["stands"] and name == answer["microserver"] else ""
        print(f"{name}: {why or 'fits'}{here}")
    if answer["feasible"] != "now":
        print(f"feasible: {answer['feasible']}; {answer['change']}")
    if answer["why"]:
        print(f"latest try: {answer['why']}")


def rebalance(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    if not asked.dry_run:
        raise Invalid(
            "the farm moves no server by itself: a move interrupts its work",
            hint="agentfarm placement rebalance --dry-run says what had better stand elsewhere; agentfarm microserver drain takes servers there, with their files",
        )
    answer = farm.request("GET", "/placements/rebalance", params={"gain": asked.gain})
    if out.as_json:
        out.value(answer)
        return
    out.rows(
        answer["moves"], ("user", "microserver", "to", "gain", "why"),
        f"none of {answer['servers']} servers had better stand elsewhere, by {answer['rank']} and a gain of {answer['gain']:g}", "why",
    )  # fmt: skip


def placement_settings(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    change: dict[str, Any] = {
        name: value for name in ("rank", "reserve_cpu", "gain") if (value := getattr(asked, name)) is not None
    }
    if asked.reserve_memory is not None:
        change["reserve_memory"] = None if asked.reserve_memory == "default" else size(asked.reserve_memory)
    for name, read in (("most_memory", size), ("most_cpu", float), ("most_gpus", int)):
        if (text := getattr(asked, name)) is not None:
            change[name] = None if text == "any" else _number(read, text, name)
    servers = {
        "memory": asked.memory and size(asked.memory), "cpu": asked.cpu, "tasks": asked.tasks, "egress": _places(asked.egress),
    }  # fmt: skip
    if servers := {name: value for name, value in servers.items() if value is not None}:
        change["servers"] = servers
    if health := {name: value for name, _, _ in HEALTH if (value := getattr(asked, name)) is not None}:
        change["health"] = health
    if asked.people_on is not None:
        change["people"] = {"pin": None if asked.people_on == "any" else asked.people_on}
    answer = (
        farm.request("PUT", "/placements/settings", change) if change else farm.request("GET", "/placements/settings")
    )
    out.record(answer if out.as_json else _readable(answer))


def _number(read: Any, text: str, name: str) -> Any:
    try:
        return read(text)
    except ValueError:
        raise Invalid(f"{text!r} is no number", hint=f"--{name.replace('_', '-')} N, or any") from None


def _places(listed: list[str] | None) -> list[str] | None:
    """Return what --egress lists: none is a list without a place."""
    return [] if listed == ["none"] else listed


def agent_resources(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    path = f"/agents/{quote(asked.name, safe='')}/resources"
    more = {
        "tasks": asked.tasks, "ticks_only": asked.ticks_only, "apart": asked.apart, "workspace": asked.workspace,
        "tolerates": asked.tolerate or None, "pin": asked.pin, "rank": asked.rank,
        "egress": _places(asked.egress),
    }  # fmt: skip
    change = {**needs(asked), **{name: value for name, value in more.items() if value is not None}}
    known = farm.request("GET", path)
    if change.get("egress") == ["farm"]:
        change["egress"] = None
    if change or asked.reset:
        known = farm.request("PUT", path, {**({} if asked.reset else known["resources"]), **change})
    if out.as_json:
        out.value(known)
        return
    out.record(
        _readable(
            {
                **known["effective"],
                "egress": (", ".join(known["effective"].get("egress") or []) or "nowhere but to the farm")
                + (f" ({known['unheld']})" if known.get("unheld") else ""),
            }
        )
    )
    if known["feasible"] not in ("now", ""):
        print(f"no microserver takes it now (feasible: {known['feasible']}): {known['change']}")


def _readable(values: dict[str, Any]) -> dict[str, Any]:
    """Return sizes as text, those in what is nested too."""
    return {
        name: _readable(value) if isinstance(value, dict) else shown_size(value) if name in SIZES and isinstance(value, int) else value
        for name, value in values.items()
    }  # fmt: skip

"""`agentfarm microserver …`: the machines of the farm, and what operators say of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.farm import Farm

from . import draining, joining, upgrading
from .show import Out, noun
from .sizes import changes, shown_size, size

COLUMNS = (
    "name",
    "state",
    "since",
    "why",
    "servers",
    "cpus",
    "load",
    "memory",
    "free",
    "disk",
    "promised",
    "labels",
    "taints",
    "backend",
)

ILL = ("microserver", "state", "since", "why")
SIZES = ("memory", "memory_free", "disk", "disk_free", "promised_memory", "reserve_memory")
NESTED = ("health", "pressure", "gpus", "disks", "cpu_ratio", "clock_offset", "clock_unsure", "verbs")


def add(nouns: Any) -> None:
    verb = noun(nouns, "microserver", "the machines of the farm")
    verb("list", list_microservers, "all of them, their load, labels and taints")
    verb(
        "show", show_microserver, "one of them: what it has, what is promised there, who said what of it"
    ).add_argument("name")
    joining.add(verb)
    upgrading.add(verb)
    label = verb("label", label_microserver, "what servers can ask for: NAME=VALUE sets a label, NAME- takes it away")
    taint = verb(
        "taint", taint_microserver, "keep servers away that do not tolerate it: NAME=REASON, NAME- takes it away"
    )
    for parser, what in ((label, "NAME=VALUE or NAME-"), (taint, "NAME=REASON or NAME-")):
        parser.add_argument("name", help="the microserver")
        parser.add_argument("change", nargs="+", metavar=what)
    reserve = verb("reserve", reserve_microserver, "keep memory and CPUs of it free for the system")
    reserve.add_argument("name")
    reserve.add_argument("--memory", metavar="SIZE", help="e.g. 1GiB; default: as the farm's settings say")
    reserve.add_argument("--cpu", metavar="CORES", help="e.g. 0.5; default: as the farm's settings say")
    for name, what in (
        ("cordon", "let it take nothing new; what runs there runs on"),
        ("uncordon", "let it take servers again"),
    ):
        turn = verb(name, turn_microserver, what)
        turn.add_argument("name")
        turn.add_argument("--reason", default="", help="on record with your name")
    draining.add(verb)


def list_microservers(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    rows = farm.microservers()
    out.rows(rows if out.as_json else [row_of(one) for one in rows], COLUMNS)


def row_of(one: dict[str, Any]) -> dict[str, Any]:
    """Return a microserver as a line of the table."""
    return {
        **one, "memory": shown_size(one.get("memory") or 0), "free": shown_size(one.get("memory_free") or 0),
        "promised": shown_size(one.get("promised_memory") or 0), "disk": shown_size(one.get("disk_free") or 0), "why": why(one), "load": f"{one.get('load') or 0:.1f}",
        "labels": " ".join(f"{name}={value}" for name, value in sorted((one.get("labels") or {}).items())),
        "taints": " ".join(sorted(one.get("taints") or {})),
    }  # fmt: skip


def why(one: dict[str, Any]) -> str:
    """Return what is the matter with a microserver, "" where nothing is."""
    said = [one["reason"]] if one.get("reason") and one["state"] != "ready" else []
    return "; ".join(
        [*said, *(f"{taint}: {told['reason']}" for taint, told in sorted((one.get("health") or {}).items()))]
    )


def ill(microservers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return {microserver, state, since, why} of what is the matter with microservers: one that is not ready, each taint by itself."""
    found = []
    for one in microservers:
        if one["state"] != "ready":
            found.append((one["name"], one["state"], one.get("since") or one.get("at"), one.get("reason", "")))
        for taint, told in sorted((one.get("health") or {}).items()):
            found.append((one["name"], f"tainted {taint}", told["since"], told["reason"]))
    return [dict(zip(ILL, row, strict=True)) for row in found]


def _path(name: str) -> str:
    return f"/microservers/{quote(name, safe='')}"


def show_microserver(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    one = farm.request("GET", _path(asked.name))
    out.record(one if out.as_json else shown(one))


def shown(one: dict[str, Any]) -> dict[str, Any]:
    """Return a microserver for eyes: sizes as sizes, shares in percent, one line for each GPU and disk."""
    told = {name: value for name, value in one.items() if name not in NESTED}
    for name in SIZES:
        told[name] = shown_size(told[name]) if told.get(name) else None
    told["labels"], told["taints"] = (_named(one.get(what) or {}) for what in ("labels", "taints"))
    told["uptime"] = f"{one['uptime'] / 3600:.1f} h" if one.get("uptime") else None
    told["load"] = f"{one.get('load') or 0:.1f} of {one.get('cpus') or 0} CPUs"
    told["measured"] = joining.measured(one.get("measured") or {})
    told["agents"] = ", ".join(one.get("agents") or ())
    told["people"] = ", ".join(own["person"] for own in one.get("people") or ())
    for taint, health in sorted((one.get("health") or {}).items()):
        told[f"tainted {taint}"] = f"{health['reason']} (since {health['since']})"
    for what, kinds in sorted((one.get("pressure") or {}).items()):
        told[f"pressure {what}"] = ", ".join(f"{kind} {share:.1%}" for kind, share in sorted(kinds.items()))
    if one.get("cpu_ratio") is not None:
        told["cpu_ratio"] = f"{one['cpu_ratio']:.0%} busy"
    if one.get("clock_offset") is not None:
        told["clock_offset"] = f"{one['clock_offset']:+.3f} s, give or take {one.get('clock_unsure') or 0:.3f}"
    for at, gpu in enumerate(one.get("gpus") or []):
        told[f"gpu {gpu.get('index', at)}"] = _gpu(gpu)
    for disk in one.get("disks") or []:
        well = {True: "well", False: "about to fail, says SMART", None: "does not say how it is"}[disk.get("healthy")]
        told[f"disk {disk['device']}"] = " ".join(filter(None, (disk.get("model"), well, _heat(disk))))
    return told


def _named(values: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" if value else name for name, value in sorted(values.items()))


def _gpu(gpu: dict[str, Any]) -> str:
    used = f"{shown_size(gpu['memory_used'])} of " if gpu.get("memory_used") is not None else ""
    busy = f"{gpu['utilisation']} % busy" if gpu.get("utilisation") is not None else ""
    return ", ".join(filter(None, (gpu.get("name"), f"{used}{shown_size(gpu.get('memory') or 0)}", busy, _heat(gpu))))


def _heat(one: dict[str, Any]) -> str:
    return f"{one['temperature']} °C" if one.get("temperature") is not None else ""


def label_microserver(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    _mark(farm, asked, out, {"labels": changes(asked.change, "label")})


def taint_microserver(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    _mark(farm, asked, out, {"taints": changes(asked.change, "taint")})


def reserve_microserver(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    change: dict[str, Any] = {}
    if asked.memory is not None:
        change["reserve_memory"] = None if asked.memory == "default" else size(asked.memory)
    if asked.cpu is not None:
        try:
            change["reserve_cpu"] = None if asked.cpu == "default" else float(asked.cpu)
        except ValueError:
            raise Invalid(f"{asked.cpu!r} is no number of CPUs", hint="--cpu 0.5, or --cpu default") from None
    if not change:
        raise Invalid("nothing to keep", hint="--memory SIZE, --cpu CORES, or default")
    _mark(farm, asked, out, change)


def _mark(farm: Farm, asked: argparse.Namespace, out: Out, change: dict[str, Any]) -> None:
    now = farm.request("PATCH", _path(asked.name), change)
    row = row_of(now)
    said = ", ".join(f"{what} {row[what]}" for what in ("labels", "taints") if row[what])
    kept = f"{shown_size(now['reserve_memory'])} and {now['reserve_cpu']:g} CPUs are kept for the system"
    out.line(f"{now['name']}: {said or 'no label, no taint'}; {kept}", now)


def turn_microserver(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    now = farm.request("POST", f"{_path(asked.name)}/{asked.verb}", {"reason": asked.reason})
    out.line(f"{now['name']} is {now['state']}; servers that run there: {now['servers']}", now)

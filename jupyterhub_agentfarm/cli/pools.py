"""`agentfarm pool …`: agents that stand in for each other, and how many of their servers are up."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from agentfarm_sdk.errors import Invalid, NotFound
from agentfarm_sdk.farm import Farm

from .show import Out, noun

COLUMNS = ("name", "up", "min_servers", "max_servers", "idle_seconds", "members")
SPANS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def add(nouns: Any) -> None:
    verb = noun(nouns, "pool", "agents that stand in for each other, and how many of their servers are up")
    verb("list", list_pools, "all that you see")
    change = verb("set", set_pool, "how many servers a pool has; what is not named stays")
    change.add_argument("name")
    change.add_argument("--min", type=int, metavar="N", help="keep so many up")
    change.add_argument("--max", metavar="N", help="start no more; any: no limit")
    change.add_argument(
        "--idle", metavar="TIME", help="stop an idle one after, e.g. 15m; never; default: as the farm does"
    )


def list_pools(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    rows = list(farm.items("/pools"))
    shown = rows if out.as_json else [{**one, "members": " ".join(m["agent"] for m in one["members"])} for one in rows]
    out.rows(shown, COLUMNS, "there is no pool: agentfarm agent create NAME --pool POOL")


def set_pool(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    known = next((one for one in farm.items("/pools") if one["name"] == asked.name), None)
    if known is None:
        raise NotFound(f"there is no pool {asked.name}", hint="agentfarm pool list")
    rules = {name: known[name] for name in ("min_servers", "max_servers", "idle_seconds")}
    if asked.min is not None:
        rules["min_servers"] = asked.min
    if asked.max is not None:
        rules["max_servers"] = None if asked.max == "any" else _number(asked.max)
    if asked.idle is not None:
        rules["idle_seconds"] = None if asked.idle == "default" else 0 if asked.idle == "never" else seconds(asked.idle)
    now = farm.request("PUT", f"/pools/{quote(asked.name, safe='')}", rules)
    most = "any number" if now["max_servers"] is None else now["max_servers"]
    out.line(f"{now['name']}: servers that are up: {now['up']}; at least {now['min_servers']}, at most {most}", now)


def _number(text: str) -> int:
    if not text.isdigit():
        raise Invalid(f"{text!r} is no number of servers", hint="--max 4, or --max any")
    return int(text)


def seconds(text: str) -> float:
    """Return seconds: 90, 15m, 2h, 1d. Raises Invalid."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in SPANS else (text, "s")
    try:
        return float(number) * SPANS[unit]
    except ValueError:
        raise Invalid(f"{text!r} is no time", hint="e.g. 90s, 15m, 2h, 1d, never or default") from None

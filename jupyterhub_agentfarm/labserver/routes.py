"""Which calls of the farm's API a person's server passes on, to the panel and to kernels. Pure; nothing else passes.

Never: deciding in the inbox, secrets, farm administration (those need a page of the farm, or a token made for it).
"""

from __future__ import annotations

import re

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._:@+-]*"  # no percent sign and no leading dot: nothing that could mean another path

_PANEL = """
GET health|tools|inbox|usage|budgets|events|microservers|microservers/*|placements/explain|model/v1/models|templates|people|pools
GET streams|streams/*/gaps|ticks/latest|ticks/ohlcv|ticks/trades
GET,POST agents|threads|tasks
GET,PATCH,DELETE agents/*
GET agents/*/logs|agents/*/versions|agents/*/versions/*|agents/*/diff|agents/*/export
GET,POST agents/*/shares
GET agents/*/resources
POST agents/import|agents/*/publish|agents/*/restore|agents/*/start|agents/*/stop|agents/*/connect
GET,DELETE agents/*/connections
DELETE agents/*/connections/*
GET,DELETE agents/*/memory
GET threads/*|tasks/*|inbox/*|batches/*|batches/*/results
GET tools/files/*
POST blobs|preview|tools/read|batches/*/cancel|tasks/*/cancel|tasks/*/pause|tasks/*/resume|tasks/*/rerun
GET runs|runs/*|runs/*/events|runs/*/tokens|runs/*/verify|runs/*/bundle|runs/*/replay|runs/*/effects
GET runs/*/steps|runs/*/requests/*|runs/*/blobs/*
POST runs/*/fork
GET,POST agents/*/cases
PATCH,DELETE agents/*/cases/*
GET agents/*/cases/runs|agents/*/cases/runs/*
POST agents/*/cases/run
"""

_KERNEL = """
POST runs|runs/*/open|runs/*/events|runs/*/heartbeat|runs/*/calls/*/outcome|model/v1/chat/completions
GET,PUT runs/*/blobs/*
GET worker
POST ticks/sql
"""


def _table(text: str) -> dict[str, list[re.Pattern[str]]]:
    table: dict[str, list[re.Pattern[str]]] = {}
    for line in text.strip().splitlines():
        methods, paths = line.split()
        for method in methods.split(","):
            patterns = (re.compile(re.escape(path).replace(r"\*", _SEGMENT)) for path in paths.split("|"))
            table.setdefault(method, []).extend(patterns)
    return table


PANEL = _table(_PANEL)
KERNEL = _table(_PANEL + _KERNEL.strip())


def passes(method: str, path: str, table: dict[str, list[re.Pattern[str]]]) -> bool:
    """Say whether this call is on the list; `path` is what stands behind /api/v1/, as it came."""
    return any(pattern.fullmatch(path) for pattern in table.get(method, ()))

"""Reads a farm's database from outside and says what is wrong with its ledger: a second opinion, not the farm's own code.

Hashes are computed here anew from the bytes in the tables; only the fold is shared, to compare what the events say with
what the rows of runs and tasks say.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from typing import Any

import sqlalchemy as sa

from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import GENESIS, read_event
from jupyterhub_agentfarm.store.tables import events, runs, tasks


def engine_url(url: str) -> str:
    """Name the driver that we have for a URL as people write it."""
    return url.replace("postgresql://", "postgresql+psycopg://", 1) if url.startswith("postgresql://") else url


def faults(url: str) -> list[str]:
    """Return everything that does not hold in the ledger, in words; an empty list is a whole ledger."""
    engine = sa.create_engine(engine_url(url))
    with engine.connect() as db:
        run_rows = db.execute(sa.select(runs)).mappings().all()
        task_rows = {row["task_id"]: row for row in db.execute(sa.select(tasks)).mappings()}
        by_run: dict[int, list[Any]] = defaultdict(list)
        for row in db.execute(sa.select(events).order_by(events.c.run_no, events.c.seq)).mappings():
            by_run[row["run_no"]].append(row)
    engine.dispose()
    found = [f"events of run_no {no}, which has no row" for no in by_run.keys() - {row["run_no"] for row in run_rows}]
    for run in run_rows:
        where = f"run {run['run_id']}"
        found += [f"{where}: {fault}" for fault in chain_faults(run, by_run[run["run_no"]])]
        if run["status"] != "chain":
            found += [
                f"{where}: {fault}"
                for fault in meaning_faults(run, task_rows.get(run["task_id"]), by_run[run["run_no"]])
            ]
    return found


def chain_faults(run: Any, rows: list[Any]) -> list[str]:
    found, prev = [], GENESIS
    for seq, row in enumerate(rows, 1):
        header = json.loads(row["header"])
        if (row["seq"], header["seq"], header["run"]) != (seq, seq, run["run_id"]):
            found.append(f"event {seq} is numbered {row['seq']}, {header['seq']} of {header['run']}")
        if header["prev"] != prev:
            found.append(f"event {seq} does not follow the one before it")
        if row["body"] is not None and hashlib.sha256(row["salt"] + row["body"]).hexdigest() != header["body"]:
            found.append(f"the body of event {seq} is not the one that was hashed")
        prev = hashlib.sha256(row["header"]).hexdigest()
    if (run["seq"], run["head"]) != (len(rows), prev):
        found.append(f"its row says seq {run['seq']}, head {run['head'][:8]}; its events {len(rows)}, {prev[:8]}")
    return found


def meaning_faults(run: Any, task: Any, rows: list[Any]) -> list[str]:
    found, fold, may_start = [], Fold(history=lambda run, seq: []), {}
    for row in rows:
        event = read_event(row["header"], row["body"])
        fold.apply(event)
        body = event.data()
        if event.kind == "tool.started" and body.get("effect") == "once":
            if not may_start.get(event.call, True):
                found.append(
                    f"event {event.seq} starts the once call {event.call} a second time, and nobody allowed it"
                )
            may_start[event.call] = False
        if event.kind == "tool.resolved" and body.get("decision") == "not_happened":
            may_start[event.call] = True
        if (fence := event.fence) is not None and fence > fold.fence:
            found.append(f"event {event.seq} was written by worker {fence} before it held the run")
    row_says = (run["status"], run["waiting"])
    if row_says[0] != "assigned" and row_says != (fold.status, fold.waiting):
        found.append(f"its row says {row_says}; its events say {(fold.status, fold.waiting)}")
    if run["fence"] != fold.fence:
        found.append(f"its row has fence {run['fence']}, its events {fold.fence}")
    if task is not None and task["run_id"] == run["run_id"] and task["status"] != run["status"]:
        found.append(f"its task says {task['status']}, its row {run['status']}")
    return found

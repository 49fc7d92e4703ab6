"""`agentfarm task map …`, `task batch …`: many tasks at once."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from agentfarm_sdk.batches import Batch
from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.farm import Farm
from agentfarm_sdk.shown.live import progress_of

from .show import Out


def add(verb: Any) -> None:
    """Add the verbs of `agentfarm task` that are about many tasks."""
    many = verb("map", map_tasks, "ask the same of every line of a file, and print the results as JSON lines")
    many.add_argument("target", help="an agent's name, or pool:NAME")
    many.add_argument("file", help="a .csv with a header, or a .jsonl; - reads JSON lines from standard input")
    many.add_argument("--input", metavar="TEXT", help="what is asked of each; {{NAME}} is a column, or a field")
    many.add_argument("--key", help="asking again with the same key and file asks nothing twice")
    many.add_argument("--unordered", action="store_true", help="print results as they come")
    many.add_argument("--priority", type=int)
    many.add_argument("--retries", type=int, metavar="N")
    many.add_argument("--concurrency-key", metavar="KEY")
    many.add_argument("--concurrency", type=int, metavar="N")
    many.add_argument("--timeout", type=float, metavar="SECONDS", help="wait no longer than this for all")
    batch = verb("batch", show_batch, "how far a batch is")
    batch.add_argument("batch")
    batch.add_argument("--cancel", action="store_true", help="stop all of it that has not ended")


def map_tasks(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    """Print a JSON line for each result; return 1 where one failed."""
    inputs = [filled(asked.input, one) for one in lines_of(asked.file)]
    batch = farm.submit_many(
        asked.target, inputs, key=asked.key or "", priority=asked.priority, concurrency_key=asked.concurrency_key,
        concurrency=asked.concurrency, retry=asked.retries + 1 if asked.retries else None,
    )  # fmt: skip
    print(f"{batch.id}  {batch.size} tasks", file=sys.stderr)
    failed = 0
    with progress_of(batch, wanted=not sys.stdout.isatty()):  # else the results themselves say how far it is
        for result in batch.results(ordered=not asked.unordered, timeout=asked.timeout):
            told: dict[str, Any] = {"place": result.place, "input": inputs[result.place], "task": result.task_id}
            if result.error is None:
                told["result"] = result.value
            else:
                told |= {"status": result.status, "error": result.error.detail}
                failed += 1
            print(json.dumps(told, ensure_ascii=False), flush=True)
    return 1 if failed else 0


def lines_of(name: str) -> list[Any]:
    """Read the rows of a CSV file as objects, or the values of JSON lines. Raises Invalid."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{name} cannot be read: {error}", hint="a .csv or .jsonl file in UTF-8") from error
    if name.lower().endswith(".csv"):
        return [dict(row) for row in csv.DictReader(io.StringIO(text))]
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise Invalid(
                    f"line {number} of {name} is no JSON: {error}", hint='e.g. "text", or {"a": 1}'
                ) from error
    return found


def filled(text: str | None, value: Any) -> Any:
    """Return what is asked of one line: its own value, or the text with the line's fields in it. Raises Invalid."""
    if text is None:
        return next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value
    fields = value if isinstance(value, dict) else {"line": value}
    wanted = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text))
    if missing := sorted(wanted - set(fields)):
        raise Invalid(f"a line has no {', '.join(missing)}", hint="there are: " + ", ".join(map(str, fields)))
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: str(fields[found[1]]), text)


def show_batch(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    batch = Batch(farm, asked.batch, 0)
    out.record(batch.cancel() if asked.cancel else batch.progress())

"""`agentfarm case …`: what an agent is tried with, and what comes of it with the draft and versions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.farm import Farm

from .show import Out, noun

COLUMNS = ("name", "input", "expect", "mode", "created_by", "case_id")
FAILED = 1


def add(nouns: Any) -> None:
    verb = noun(nouns, "case", "test cases: what an agent is tried with, and what has to come of it")
    verb("list", list_cases, "the cases of an agent").add_argument("agent")
    new = verb("add", add_case, 'keep one: agentfarm case add analyst "a sum" --input "What is 17*23?" --contains 391')
    new.add_argument("agent")
    new.add_argument("name")
    new.add_argument("--input", help="what the agent is asked; text, or with --json-input JSON")
    new.add_argument("--json-input", action="store_true", help="--input is JSON")
    new.add_argument(
        "--from-run", metavar="RUN", help="take the input of this run, and let its recording answer the calls"
    )
    new.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE", help="for {{NAME}} in the prompt")
    new.add_argument(
        "--exact", action="append", default=[], metavar="RESULT", help="it passes where the result is this"
    )
    new.add_argument("--contains", action="append", default=[], metavar="TEXT", help="… where this stands in it")
    new.add_argument("--schema", action="append", default=[], metavar="FILE", help="… where it fits this JSON Schema")
    new.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="CODE",
        help="… where CODE raises nothing, over result, text and input",
    )
    new.add_argument(
        "--judge", action="append", default=[], metavar="QUESTION", help="… where a model answers this with yes"
    )
    trial = verb(
        "run", run_cases, "try the cases with the draft or versions, and wait; exit status 1 where one does not pass"
    )
    trial.add_argument("agent")
    trial.add_argument(
        "--version", action="append", default=[], metavar="N", help="a number, or draft; may be repeated (draft)"
    )
    trial.add_argument("--case", action="append", default=[], metavar="NAME", help="this one only; may be repeated")
    trial.add_argument("--timeout", type=float, metavar="SECONDS", help="wait no longer")
    gone = verb("delete", delete_case, "end a case; what it came to before stays")
    gone.add_argument("agent")
    gone.add_argument("case", help="its name or id")


def list_cases(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    found = list(farm.cases(asked.agent))
    rows = found if out.as_json else [{**one, "expect": "; ".join(map(_said, one["expect"]))} for one in found]
    out.rows(
        rows, COLUMNS, f"{asked.agent} has no case: agentfarm case add {asked.agent} NAME --input TEXT --contains TEXT"
    )


def _said(check: dict[str, Any]) -> str:
    what = next((check[part] for part in ("value", "text", "question", "code", "schema") if part in check), "")
    return f"{check['kind']} {what if isinstance(what, str) else json.dumps(what)}"


def add_case(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    checks: list[dict[str, Any]] = [
        *({"kind": "exact", "value": _json_or_text(one)} for one in asked.exact), *({"kind": "contains", "text": one} for one in asked.contains),
        *({"kind": "schema", "schema": _schema(one)} for one in asked.schema), *({"kind": "python", "code": one} for one in asked.python),
        *({"kind": "judge", "question": one} for one in asked.judge),
    ]  # fmt: skip
    if not checks:
        raise Invalid("a case needs a check", hint="--exact, --contains, --schema, --python or --judge")
    if asked.input is None and not asked.from_run:
        raise Invalid("a case needs an input", hint="--input TEXT, or --from-run RUN")
    variables = dict(one.partition("=")[::2] for one in asked.variable)
    given = _read(asked.input, "--input") if asked.json_input else asked.input
    made = farm.cases(asked.agent).add(
        asked.name, checks, input=given, from_run=asked.from_run, variables=variables or None
    )
    out.line(f"{made['name']} is kept: agentfarm case run {asked.agent}", made)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(text: str | None, what: str) -> Any:
    try:
        return json.loads(text or "")
    except ValueError as error:
        raise Invalid(f"{what} is no JSON: {error}") from error


def _schema(file: str) -> Any:
    try:
        return _read(Path(file).read_text(), file)
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def run_cases(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    """Print what came of each, and how each version did."""
    versions = [int(one) if one.isdecimal() else one for one in asked.version]
    done = farm.cases(asked.agent).run(*versions, cases=asked.case, timeout=asked.timeout)
    if out.as_json:
        out.value(done)
    else:
        rows = [{**one, "why": _why(one)} for one in done["items"]]
        out.rows(rows, ("name", "version", "verdict", "why", "run_id"))
        for total in done["totals"]:
            rest = ", ".join(f"{total[word]} {word}" for word in ("failed", "errors") if total[word])
            print(f"{total['version']}: {total['passed']} passed{', ' + rest if rest else ''}")
    return 0 if all(total["failed"] == total["errors"] == 0 for total in done["totals"]) else FAILED


def _why(one: dict[str, Any]) -> str:
    return "; ".join(str(check["why"]) for check in one["checks"] or [] if not check["passed"] and check.get("why"))


def delete_case(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    farm.cases(asked.agent).delete(asked.case)
    out.line(f"{asked.case} is gone; what it came to before stays")

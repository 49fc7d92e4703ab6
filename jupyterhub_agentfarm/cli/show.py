"""How the command line prints: plain tables for eyes, JSON for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Out:
    """Where answers go. Lists print as a table, or one JSON document; errors go to stderr elsewhere."""

    as_json: bool = False

    def rows(self, rows: Iterable[Row], columns: Sequence[str], empty: str = "none", whole: str = "") -> None:
        """Print a line for each; `whole`: the column that is not cut, the last one."""
        found = list(rows)
        if self.as_json:
            self.value(found)
        elif found:
            print(
                table(
                    [[cell(row.get(name), None if name == whole else 60) for name in columns] for row in found], columns
                )
            )
        else:
            print(empty, file=sys.stderr)

    def record(self, record: Row, fields: Sequence[str] = ()) -> None:
        """Print one thing, a field a line."""
        if self.as_json:
            self.value(record)
            return
        named = [(name, record.get(name)) for name in fields or record]
        shown = [(name, cell(value, None)) for name, value in named if value not in (None, "", [], {})]
        width = max((len(name) for name, _ in shown), default=0)
        for name, text in shown:
            print(f"{name.ljust(width)}  {text}")

    def value(self, value: Any) -> None:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))

    def line(self, text: str, value: Any = None) -> None:
        """Print a sentence; as JSON the value that it tells of."""
        if self.as_json:
            self.value(value)
        else:
            print(text, flush=True)


def cell(value: Any, length: int | None = 60) -> str:
    """Return a value as one line of text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split()) if length else text
    return text if length is None or len(text) <= length else text[: length - 1] + "…"


def table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    """Align cells in columns, under their names."""
    lines = [[name.upper().replace("_", " ") for name in columns], *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


# --- for the modules that declare verbs ---------------------------------------------------------------------------

Act = Callable[..., int | None]
Adder = Callable[..., argparse.ArgumentParser]


def noun(nouns: Any, name: str, help: str) -> Adder:
    """Add a noun; return what adds a verb to it: verb(name, act, help) -> its parser."""
    parser = nouns.add_parser(name, help=help, description=help)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, act: Act, help: str, *, alone: bool = False) -> argparse.ArgumentParser:
        return command(verbs, name, act, help, alone=alone)

    return verb


def command(commands: Any, name: str, act: Act, help: str, *, alone: bool = False) -> argparse.ArgumentParser:
    """Add a command. `alone`: it needs no running farm, and is called without one."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--state", metavar="DIR", help="the farm whose state is here (else AGENTFARM_URL, or .farm)")
    parser.set_defaults(act=act, alone=alone)
    return parser

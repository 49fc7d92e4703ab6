"""A run as a notebook: facts, then a cell for each step that replays it. Pure. The form is nbformat 4.5's.

What was said stands in outputs, escaped; in the cells' own text only names that the farm gave.
"""

from __future__ import annotations

import re
from typing import Any

from .markup import page, plain
from .runs import measures, run_text, step_html
from .story import Step, Story

CELLS = 100  # steps with a cell of their own; the last cell replays all of them


def notebook_of(story: Story, source: str) -> dict[str, Any]:
    """Return the notebook. `source`: what the cells read the run from, its id or a bundle's file name."""
    cells = [_markdown("facts", _facts(story, source)), _code("open", _opening(source))]
    cells += [
        _code(f"step-{step.number}", f"replay.step({step.number})", _output(story, step))
        for step in story.steps[:CELLS]
    ]
    cells.append(_code("check", "replay.check()  # everything at once, and the first difference"))
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "agentfarm": {"run": story.run_id, "seq": story.fold.seq, "head": story.head},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _opening(source: str) -> str:
    return (
        "from agentfarm_sdk import open_run\n\n"
        f"replay = open_run({source!r})  # tools=[my_tool] holds it against your own code, version=… against another version\n"
        "replay"
    )


def _facts(story: Story, source: str) -> str:
    facts = story.facts
    rows = [
        ("agent", facts.get("agent")), ("version", facts.get("version") or "draft"), ("mode", facts.get("mode")),
        ("owner", facts.get("owner")), ("status", story.status), ("began", story.began), ("took", measures(story)),
        ("definition", facts.get("definition")), ("events", story.fold.seq), ("last hash", story.head),
    ]  # fmt: skip
    lines = [f"# Run {_escaped(story.run_id)}", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {_escaped(str(value))} |" for name, value in rows if value not in (None, "")]
    lines += [
        "",
        "Run the cells to replay it: the model's replies are the recorded ones, calls that only read and need nothing but "
        "their arguments are made again with today's code, and the first difference is shown. Effects are never made: "
        "what came of them is taken from the record.",
    ]
    if len(story.steps) > CELLS:
        lines += ["", f"The first {CELLS} of {len(story.steps)} steps have cells; `replay.step(n)` shows any other."]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Return text that Markdown shows letter by letter."""
    return re.sub(r"([^\w\s])", r"\\\1", " ".join(plain(text).split()))


def _output(story: Story, step: Step) -> dict[str, Any]:
    one = Story(story.run_id)
    one.fold, one.steps = story.fold, [step]
    lines = run_text(one).splitlines()[1:]
    text = "\n".join(line for line in lines if not line.startswith(("  input:", "  result:", "  error:")))
    data = {"text/html": page(step_html(story, step, opened=True)), "text/plain": text}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def _code(name: str, text: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "cell_type": "code", "id": name, "metadata": {}, "execution_count": None, "source": text, "outputs": list(outputs),
    }  # fmt: skip

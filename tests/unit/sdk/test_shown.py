"""What things look like in a notebook: steps from events, texts that do nothing, a notebook of the right form."""

from __future__ import annotations

import html.parser
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest

from agentfarm_sdk import Agent, tool, watch
from agentfarm_sdk.agent import Run
from agentfarm_sdk.batches import Batch
from agentfarm_sdk.protocol import Event
from agentfarm_sdk.shown import live, things
from agentfarm_sdk.shown.document import notebook_of
from agentfarm_sdk.shown.markup import STYLE, link, plain
from agentfarm_sdk.shown.runs import run_bundle
from agentfarm_sdk.shown.story import Story
from agentfarm_sdk.testing import ScriptedModel, calls, says

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script> [x](javascript:alert(3)) \x1b[31mred\x1b]8;;http://evil\x07 \u202egnp"
TAGS = {"div", "style", "span", "b", "code", "details", "summary", "pre", "ol", "li", "p", "a", "i",
        "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip


class Markup(html.parser.HTMLParser):
    """Which elements and attributes a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]
        assert not [name for name, _ in attrs if name.startswith("on")]


def harmless(bundle: dict[str, str]) -> None:
    found = Markup(bundle["text/html"])
    assert found.seen <= TAGS, found.seen - TAGS
    assert all(one.startswith(("http://", "https://")) for one in found.links), found.links
    for text in bundle.values():
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


@tool(effect="read")
def look(what: str) -> str:
    """Look something up."""
    return HOSTILE


@tool(effect="once")
def order(symbol: str) -> str:
    """Buy."""
    return "bought"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    model = ScriptedModel(calls("look", what=HOSTILE), calls("order", symbol="BTC"), says(HOSTILE))
    agent = Agent("trader", prompt=HOSTILE, tools=[look, order], model=model, mode="live", ledger=tmp_path / "l.sqlite")
    return agent.run(HOSTILE)


def test_a_run_is_told_step_by_step_with_what_was_called_and_what_came_of_it(run: Run) -> None:
    story = Story().apply_all(run.events())
    assert [[call.tool for call in step.calls] for step in story.steps] == [["look"], ["order"], []]
    assert story.steps[1].calls[0].result == "bought" and story.steps[1].calls[0].effect == "once"
    assert [story.state_of(call) for step in story.steps for call in step.calls] == ["done", "done"]
    assert story.status == "succeeded" and story.facts["agent"] == "trader" and story.asked == [HOSTILE]
    text = run_bundle(story)["text/plain"]
    assert "order" in text and "bought" in text and "3 steps" in text


def test_nothing_that_a_model_a_tool_or_a_person_says_becomes_markup_a_link_or_a_control_sequence(run: Run) -> None:
    story = Story().apply_all(run.events())
    shown = run_bundle(story, "http://farm.test/services/agentfarm/")
    harmless(shown)
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown["text/html"] and "\\x1b[31mred" in shown["text/html"]
    row: dict[str, Any] = {name: HOSTILE for name in (
        "task_id", "agent", "target", "input", "result", "note", "mode", "inbox_id", "name", "owner", "scope", "unit", "period",
        "warning", "worker", "call", "kind", "waiting", "run_id",
    )}  # fmt: skip
    row |= {"detail": {"tool": HOSTILE, "arguments": {HOSTILE: HOSTILE}, "why": HOSTILE}, "amount": 3, "spent": 4, "left": -1,
            "draft": {"prompt": HOSTILE, "description": HOSTILE, "tools": [{"name": HOSTILE, "approval": HOSTILE}]}}  # fmt: skip
    for status in ("succeeded", "failed", HOSTILE):
        row |= {"status": status, "error": {"message": HOSTILE}}
        harmless(things.task_bundle(row, "javascript:alert(4)"))
        for kind in things.ONE:
            harmless(things.one_bundle(kind, row, "http://farm.test"))
            harmless(things.list_bundle(kind, [row, row], "http://farm.test", more=True))
    harmless(things.batch_bundle(HOSTILE, {"tasks": 4, "counts": {"succeeded": 1, "failed": 1, "running": 1}}))
    assert str(link("javascript:alert(1)", "x")) == "x" and str(link("data:text/html,x", "x")) == "x"


def test_a_long_text_a_long_run_and_data_are_bounded(tmp_path: Path) -> None:
    @tool(effect="read")
    def long(n: int) -> dict[str, str]:
        """Long."""
        return {"text": "x" * 9000}

    model = ScriptedModel(*(calls("long", n=n) for n in range(80)), says("done"))
    agent = Agent("a", tools=[long], model=model, limits={"steps": None, "calls": None}, ledger=tmp_path / "l.sqlite")
    story = Story().apply_all(agent.run("go").events())
    shown = run_bundle(story)["text/html"]
    assert shown.count("<li>") == 64 and "18 steps are not shown here" in shown and len(shown) < 400_000


def test_a_run_as_a_notebook_is_valid_and_holds_what_was_said_in_outputs_alone(run: Run) -> None:
    story = Story().apply_all(run.events())
    made = notebook_of(story, run.run_id)
    nbformat.validate(nbformat.from_dict(json.loads(json.dumps(made))))
    sources = "".join(cell["source"] for cell in made["cells"])
    assert "img" not in sources and f"open_run('{run.run_id}')" in sources
    assert [cell["source"] for cell in made["cells"][2:]] == [
        "replay.step(0)", "replay.step(1)", "replay.step(2)", "replay.check()  # everything at once, and the first difference",
    ]  # fmt: skip
    for cell in made["cells"]:
        for output in cell.get("outputs", ()):
            harmless(output["data"])


def test_events_whose_bodies_are_erased_or_strange_are_shown_all_the_same(run: Run) -> None:
    events = run.events()
    gone = [
        Event(run=e.run, seq=e.seq, kind=e.kind, at=e.at, by=e.by, call=e.call)
        if e.kind in ("message.added", "model.reported", "tool.succeeded")
        else e
        for e in events
    ]
    shown = run_bundle(Story().apply_all(gone))
    assert "(erased)" in shown["text/plain"] and "order" in shown["text/html"]


def test_how_far_a_batch_is_counts_what_ended_and_tells_how_long_it_takes_on() -> None:
    counts = things.batch_counts(
        {"tasks": 40, "counts": {"succeeded": 8, "failed": 1, "cancelled": 1, "running": 3, "queued": 27}}
    )
    assert counts == {"size": 40, "done": 8, "failed": 2, "running": 3, "left": 30}
    assert live.remaining(counts, first=0, seconds=10) == 30.0
    assert live.remaining(counts, first=5, seconds=10) == 60.0 and live.remaining(counts, first=10, seconds=10) is None
    assert things.batch_line(counts, 30.0) == "10 of 40 · 2 failed · 3 running · about 30 s left"


def test_plain_text_obeys_nothing_and_keeps_lines() -> None:
    assert plain("a\r\nb\tc\x1b[0m\x9b\x00") == "a\nb\tc\\x1b[0m\\x9b\\x00"


class FourTasks:
    """A batch of which one more has ended each time that it is asked."""

    id = "batch-1"

    def __init__(self) -> None:
        self.done = -1

    def progress(self) -> dict[str, Any]:
        self.done = min(self.done + 1, 4)
        return {"tasks": 4, "counts": {"succeeded": self.done, "running": 4 - self.done}}


def test_in_a_terminal_progress_is_one_line_that_is_written_over_and_elsewhere_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with live.progress_of(FourTasks()):
        pass
    assert capsys.readouterr() == ("", ""), "standard error is no terminal"
    near, far = os.openpty()
    with os.fdopen(far, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with live.progress_of(FourTasks(), wanted=False):
            pass
        batch = FourTasks()
        with live.progress_of(batch):
            while batch.done < 2:
                time.sleep(0.01)
        terminal.flush()
        said = ""
        while not said.endswith("\n"):
            said += os.read(near, 10_000).decode()
    os.close(near)
    assert said.count("\n") == 1 and said.endswith("\r\n") and said.count("\r\x1b[K") >= 3
    assert "of 4" in said and "running" in said and "█" in said


def test_watching_in_a_terminal_ends_after_the_time_that_was_given() -> None:
    class Going:
        def request(self, method: str, path: str) -> Any:
            return {"batch_id": "batch-1", "tasks": 2, "counts": {"running": 2}}

    with pytest.raises(TimeoutError, match=r"after 0\.1 s"):
        watch(Batch(Going(), "batch-1", 2), timeout=0.1)  # type: ignore[arg-type]


def test_an_outputs_style_is_its_own_beside_the_panels_on_the_same_page() -> None:
    kit = "".join(file.read_text() for file in (Path(__file__).parents[3] / "labextension" / "style").glob("*.css"))
    panels = set(re.findall(r"\.(af-[\w-]+)", kit))
    assert panels and not panels & set(re.findall(r"[.\"' ](af[\w]*-[\w-]+)", STYLE))

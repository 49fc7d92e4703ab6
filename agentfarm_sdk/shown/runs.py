"""A run for the eye: its story as HTML, folded, and as plain text. Pure; everything that was said is escaped in markup.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .markup import Html, bounded, el, joined, lasted, link, money, number, one_line, page, plain, run_page, state
from .story import CallSeen, Step, Story

FIRST, LAST = 3, 60  # steps that are shown of a long run
Mark = Callable[[CallSeen], str]  # what stands beside a call; "" = its state


def run_html(story: Story, address: str = "") -> Html:
    """Return a run. `address`: of the farm's page, for the link."""
    fold = story.fold
    parts: list[str] = [head(story, address)]
    if story.prompt:
        parts.append(folded("Prompt", story.prompt))
    parts += [labelled("Input", said) for said in story.asked]
    if steps := list(_steps(story)):
        parts.append(el("ol", *steps))
    else:
        parts += [el("p", note, class_="afo-quiet") for _, note in story.notes]
    if fold.status == "succeeded":
        parts.append(labelled("Result", fold.result, "afo-result"))
    elif fold.status == "failed":
        parts.append(labelled("Error", (fold.error or {}).get("message") or "failed", "afo-error"))
    elif fold.status == "cancelled" and fold.cancel:
        parts.append(labelled("Cancelled", fold.cancel, "afo-error"))
    elif fold.status == "waiting":
        parts.append(el("p", waits_for(story), class_="afo-note afo-part"))
    return joined(*parts)


def run_bundle(story: Story, address: str = "") -> dict[str, str]:
    return {"text/plain": run_text(story), "text/html": page(run_html(story, address))}


def head(story: Story, address: str = "") -> Html:
    facts = story.facts
    version = f"version {facts['version']}" if facts.get("version") else "draft"
    mode = str(facts.get("mode") or "")
    where = run_page(address, story.run_id)
    return el(
        "div",
        state(story.status), el("b", str(facts.get("agent") or "run")), el("code", story.run_id, class_="afo-quiet"),
        el("span", " · ".join(one for one in (version, mode) if one), class_="afo-quiet"),
        el("span", class_="afo-spring"), el("span", measures(story), class_="afo-quiet"), link(where, "farm page") if where else None,
        class_="afo-head", role="group", aria_label=f"run {story.run_id}",
    )  # fmt: skip


def measures(story: Story) -> str:
    fold = story.fold
    said = [f"{len(story.steps)} step{'' if len(story.steps) == 1 else 's'}"]
    if fold.tokens_in or fold.tokens_out:
        said.append(f"{number(fold.tokens_in)} → {number(fold.tokens_out)} tokens")
    if fold.cost:
        said.append(money(fold.cost))
    said.append(lasted(story.seconds))
    return " · ".join(said)


def waits_for(story: Story) -> str:
    """Say what lets a waiting run go on, and where."""
    calls = ", ".join(f"{call.tool} ({call.call})" for call in story.fold.open_calls)
    ways = {
        "approval": f"{calls} waits for a person's approval: decide in the inbox of the farm page",
        "in_doubt": f"nobody knows whether {calls} took effect: a person decides in the inbox of the farm page",
        "question": "the agent asked a person: answer in the inbox of the farm page",
        "budget": "a budget is used up: raise it, or allow this run in the inbox of the farm page",
        "paused": "it is paused: resume it",
        "restored": "the ledger was restored from a backup: resume it",
        "timer": "it goes on when the time has come",
        "child": "it goes on when the task that it delegated has ended",
    }
    return ways.get(story.fold.waiting or "", f"it waits: {story.fold.waiting}")


def labelled(label: str, value: Any, look: str = "") -> Html:
    return el(
        "div",
        el("div", label, class_="afo-label"),
        el("div", bounded(value), class_=f"afo-text {look}".strip()),
        class_="afo-part",
    )


def folded(label: str, value: Any) -> Html:
    return el(
        "details",
        el("summary", el("span", label, class_="afo-label"), " ", el("span", one_line(value, 80), class_="afo-quiet")),
        el("pre", bounded(value)),
        class_="afo-part",
    )


def _steps(story: Story) -> Iterator[Html]:
    """Yield what stands in the list: steps, what happened between them, and how many are left out of a long run."""
    count = len(story.steps)
    left_out = range(FIRST, count - LAST) if count > FIRST + LAST else range(0)
    notes: dict[int, list[str]] = {}
    for after, note in story.notes:
        notes.setdefault(after, []).append(note)
    for place, step in enumerate(story.steps):
        if place in left_out:
            if place == FIRST:
                told = f"{len(left_out):,} steps are not shown here; the farm page has all of them"
                yield el("li", el("div", told, class_="afo-in afo-quiet"))
            continue
        for note in notes.get(place, ()):
            yield el("li", el("div", note, class_="afo-in afo-quiet"))
        yield el("li", step_html(story, step))
    for note in notes.get(count, ()):
        yield el("li", el("div", note, class_="afo-in afo-quiet"))


def step_html(story: Story, step: Step, *, opened: bool = False, mark: Mark = lambda call: "") -> Html:
    """Return a step, folded: the line of what it came to, and below it the reply, calls and outcomes."""
    summary = el(
        "summary",
        el("span", str(step.number + 1), class_="afo-num afo-quiet"),
        el("span", *_line(story, step, mark), class_="afo-one"),
        el("span", _step_measures(step), class_="afo-quiet"),
    )
    inside: list[str] = [el("p", f"an attempt before failed: {why}", class_="afo-note") for why in step.failures]
    if step.said:
        inside.append(el("div", bounded(step.said), class_="afo-text"))
    inside += [call_html(story, call, mark) for call in step.calls]
    told = [
        f"model {step.model}" if step.model else "",
        "reported by the worker" if step.reported else "",
        f"event {step.seq}",
    ]
    inside.append(el("div", " · ".join(one for one in told if one), class_="afo-quiet"))
    return el("details", summary, el("div", *inside, class_="afo-in"), open=opened)


def _line(story: Story, step: Step, mark: Mark) -> Iterator[str]:
    if not step.calls:
        yield Html(joined(one_line(step.said, 160)))
    for place, call in enumerate(step.calls):
        if place:
            yield Html("&ensp;")
        known = story.fold.calls.get(call.call)
        yield el("code", f"{one_line(call.tool, 40)}({one_line(known.arguments if known else call.arguments, 60)})")
        yield Html(" ")
        yield state(mark(call) or story.state_of(call))
        if call.error or call.result is not None:
            yield el("span", f" {one_line(call.error or bounded(call.result), 70)}", class_="afo-quiet")


def _step_measures(step: Step) -> str:
    said = []
    if step.tokens_in or step.tokens_out:
        said.append(f"{'≈ ' if step.estimated else ''}{number(step.tokens_in)} → {number(step.tokens_out)}")
    if step.cost:
        said.append(money(step.cost))
    if step.seconds is not None:
        said.append(lasted(step.seconds))
    return " · ".join(said)


def call_html(story: Story, call: CallSeen, mark: Mark = lambda call: "") -> Html:
    known = story.fold.calls.get(call.call)
    facts = [call.effect, f"answered by {call.simulated}" if call.simulated else "", call.call]
    if call.seconds is not None:
        facts.append(lasted(call.seconds))
    parts: list[str] = [
        el(
            "div",
            el("code", el("b", one_line(call.tool, 80))), state(mark(call) or story.state_of(call)),
            el("span", " · ".join(one for one in facts if one), class_="afo-quiet"), class_="afo-head",
        ),
        el("pre", bounded(known.arguments if known else call.arguments)),
        *(el("div", note, class_="afo-quiet") for note in call.notes),
    ]  # fmt: skip
    if call.error:
        parts.append(el("div", bounded(call.error), class_="afo-text afo-error"))
    elif call.result is not None:
        parts.append(el("pre", bounded(call.result)))
    return el("div", *parts, class_="afo-call")


def run_text(story: Story) -> str:
    """Return a run as plain text: for terminals, and for who reads without HTML."""
    lines = [f"{story.run_id}  {story.facts.get('agent') or ''}  {story.status}  {measures(story)}"]
    lines += [f"  input: {one_line(said)}" for said in story.asked]
    for step in story.steps[-LAST:]:
        lines.append(f"  {step.number + 1:>3}  {one_line(step.said)}".rstrip())
        for call in step.calls:
            came = one_line(call.error or bounded(call.result)) if call.error or call.result is not None else ""
            lines.append(
                f"       {one_line(call.tool, 40)}({one_line(call.arguments, 60)}) {story.state_of(call)} {came}".rstrip()
            )
    if story.fold.status == "succeeded":
        lines.append(f"  result: {bounded(story.fold.result)}")
    elif story.fold.status == "failed":
        lines.append(f"  error: {one_line((story.fold.error or {}).get('message') or 'failed', 400)}")
    return plain("\n".join(lines))

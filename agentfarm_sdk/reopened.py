"""A run opened again: `open_run("run-…")`, or its evidence bundle, held step by step against today's code.

replay = open_run("run-….zip", tools=[my_tool])   # no farm is needed for a bundle
replay.step(0)                                    # what the model was shown and said, and each call, then and now
replay.check()                                    # everything at once, and the first difference

The model is not asked, and no effect is made: what came of effects is taken from the record.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from .audit import read_bundle, verify_bundle
from .errors import Divergence, Invalid, NotFound
from .farm import Farm
from .fold import Call, Fold
from .protocol import Definition, Event, ToolSpec
from .replay import COMPUTES, KEPT, Replayed, prompt_of, replay
from .shown.markup import Html, bounded, el, joined, one_line, page, plain
from .shown.runs import head, run_html, run_text, step_html
from .shown.story import CallSeen, Step, Story, words
from .tools.context import Context
from .tools.registry import Tool, builtin, tool

Json = dict[str, Any]
LINES = 200  # of a difference


def open_run(
    what: str | Path, *, version: int | str | None = None, tools: Sequence[Tool | Callable[..., Any]] = (), farm: Farm | None = None
) -> Reopened:  # fmt: skip
    """Open a run of the farm, or an evidence bundle (a file), to hold it against today's code.

    version: of its agent, a number or "draft"; the published one if left out; of a notebook's own agent, and of a bundle, the
    recorded definition. tools: functions of yours in place of the tools of the same names: those that only read are called.
    Raises Invalid, NotFound, and what the farm answers.
    """
    own = {made.name: made for made in (one if isinstance(one, Tool) else tool(one) for one in tools)}
    if str(what).endswith(".zip"):
        return _from_bundle(Path(what), own)
    farm = farm or Farm()
    run = farm.run(str(what))
    return Reopened(list(farm.events(run.id)), _definition(farm, run, version), own, farm.page)


def _from_bundle(file: Path, own: Mapping[str, Tool]) -> Reopened:
    _, events, raw = read_bundle(file)
    verdict = verify_bundle(file)
    flaw = "" if verdict.ok else "; ".join([verdict.checked.why, *verdict.flaws]).strip("; ")
    return Reopened(events, _converted(raw), own, "", flaw=flaw)


def _definition(farm: Farm, run: Mapping[str, Any], version: int | str | None) -> Definition:
    if not run.get("bound") or version is not None:
        agent = farm.agent(run["agent"])
        number = agent["published"] if version is None else version
        if number in (None, "draft"):
            return _converted(agent["draft"])
        return _converted(farm.request("GET", f"/agents/{run['agent']}/versions/{number}")["definition"])
    events = list(farm.events(run["run_id"]))  # of a notebook's own agent the farm has no version
    tools = {str(event.data().get("tool")) for event in events if event.kind == "tool.started"}
    return Definition(prompt=prompt_of(events) or "", tools=[ToolSpec(name=name) for name in sorted(tools)])


def _converted(raw: Any) -> Definition:
    try:
        return msgspec.json.decode(raw, type=Definition) if isinstance(raw, bytes) else msgspec.convert(raw, Definition)
    except msgspec.MsgspecError as error:
        raise Invalid(f"the definition cannot be read: {error}", hint="a newer AgentFarm may read it") from error


class Reopened:
    """A recorded run beside today's code. Nothing is executed before a step or the check asks for it, then once."""

    def __init__(self, events: Sequence[Event], definition: Definition, own: Mapping[str, Tool], address: str, *, flaw: str = "") -> None:  # fmt: skip
        self.events, self.flaw = list(events), flaw
        self.story = Story().apply_all(self.events)
        self._definition, self._own, self._address = definition, own, address
        self._found: Replayed | Divergence | Invalid | None = None
        self._marks: dict[str, Literal["same", "kept"]] = {}

    @property
    def run_id(self) -> str:
        return self.story.run_id

    @property
    def found(self) -> Replayed | Divergence | Invalid:
        """What the replay came to: what was found equal, the first difference, or why it cannot be held against anything."""
        if self._found is None:
            with concurrent.futures.ThreadPoolExecutor(1) as apart:  # a notebook's own thread has a loop that runs
                self._found = apart.submit(asyncio.run, self._replay()).result()
        return self._found

    @property
    def divergence(self) -> Divergence | None:
        return self.found if isinstance(self.found, Divergence) else None

    def step(self, number: int) -> StepShown:
        """Return step `number` (from 0), to be shown. Raises NotFound."""
        for step in self.story.steps:
            if step.number == number:
                return StepShown(self, step)
        raise NotFound(f"run {self.run_id} has no step {number}", hint=f"it has {len(self.story.steps)}, from 0")

    def check(self) -> Checked:
        """Return what the whole replay came to, to be shown."""
        return Checked(self)

    def shown_to_the_model(self, step: Step) -> list[Json]:
        """Return the messages that the model answered with this step."""
        fold = Fold()
        for event in self.events:
            if event.seq >= step.seq:
                break
            fold.apply(event)
        return fold.messages

    async def _replay(self) -> Replayed | Divergence | Invalid:
        specs = {spec.name: spec for spec in self._definition.tools} | {
            name: made.spec for name, made in self._own.items()
        }
        told = prompt_of(self.events) or ""
        prompt = told if "{{" in self._definition.prompt else self._definition.prompt
        try:
            return await replay(self.events, prompt, specs, self._again, self._marks.__setitem__)
        except (Divergence, Invalid) as error:
            return error

    async def _again(self, call: Call, values: Sequence[Mapping[str, Any]]) -> Any:
        """Make a call again that only read, then and now; what it raises now is its result."""
        made, spec = self._own.get(call.tool), self._definition.tool(call.tool)
        if made is None and spec is not None and spec.source == "builtin" and spec.name in COMPUTES:
            made = builtin(spec.name)
        if made is None or call.effect != "read":
            return KEPT
        ctx = Context(run=self.run_id, call=call.call, key=call.key, recorded=values)
        try:
            return await made.invoke(ctx, msgspec.json.decode(call.arguments or "{}"))
        except Exception as error:  # whatever a tool raises: it is what differs
            return {"error": str(error) or type(error).__name__}

    def mark(self, call: CallSeen, step: Step) -> str:
        """Say what today's code makes of a call."""
        if self.differs_in(step) and call.call == self._differing_call():
            return "differs"
        return {"same": "same", "kept": "recorded"}.get(self._marks.get(call.call, ""), "")

    def differs_in(self, step: Step) -> bool:
        seq = self._differing_seq()
        later = [one.seq for one in self.story.steps if one.seq > step.seq]
        first = step is self.story.steps[0]
        return seq is not None and (first or step.seq <= seq) and (not later or seq < later[0])

    def after_difference(self, step: Step) -> bool:
        seq = self._differing_seq()
        return seq is not None and seq < step.seq and not self.differs_in(step)

    def _differing_seq(self) -> int | None:
        return None if self.divergence is None else int(self.divergence.extra["seq"])

    def _differing_call(self) -> str | None:
        return next((event.call for event in self.events if event.seq == self._differing_seq()), None)

    def __repr__(self) -> str:
        return run_text(self.story)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        flaw = el("p", f"this bundle does not verify: {self.flaw}", class_="afo-error afo-part") if self.flaw else None
        return {"text/plain": run_text(self.story), "text/html": page(flaw, run_html(self.story, self._address))}


class StepShown:
    """A step: what the model was shown and said, each call then and now."""

    def __init__(self, run: Reopened, step: Step) -> None:
        self._run, self._step = run, step

    def _lines(self) -> tuple[Html, str]:
        run, step = self._run, self._step
        if isinstance(run.found, Invalid):
            return el("p", run.found.detail, class_="afo-note afo-part"), run.found.detail
        if run.differs_in(step) and run.divergence is not None:
            return difference_html(run.divergence), difference_text(run.divergence)
        if run.after_difference(step):
            told = "not held against today's code: a step before differs already"
            return el("p", told, class_="afo-note afo-part"), told
        marks = [run.mark(call, step) for call in step.calls]
        told = f"the reply is the recorded one; calls made again with the same result: {marks.count('same')}, taken as recorded: {marks.count('recorded')}"
        return el("p", told, class_="afo-quiet afo-part"), told

    def __repr__(self) -> str:
        called = ", ".join(f"{call.tool}({one_line(call.arguments, 60)})" for call in self._step.calls)
        return plain(f"step {self._step.number}: {called or one_line(self._step.said)}\n{self._lines()[1]}")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        run, step = self._run, self._step
        messages = run.shown_to_the_model(step)
        shown = el(
            "details",
            el("summary", el("span", "What the model was shown", class_="afo-label"), el("span", f" {len(messages)} messages", class_="afo-quiet")),
            *(joined(el("div", str(one.get("role")), class_="afo-label"), el("pre", bounded(_said(one)))) for one in messages),
            class_="afo-part",
        )  # fmt: skip
        body = step_html(run.story, step, opened=True, mark=lambda call: run.mark(call, step))
        html = page(shown, el("ol", el("li", body)), self._lines()[0])
        return {"text/plain": repr(self), "text/html": html}


class Checked:
    """What a whole replay came to."""

    def __init__(self, run: Reopened) -> None:
        self._run = run

    def __bool__(self) -> bool:
        """Whether nothing differs."""
        return isinstance(self._run.found, Replayed)

    def __repr__(self) -> str:
        found = self._run.found
        if isinstance(found, Replayed):
            return same(found)
        return difference_text(found) if isinstance(found, Divergence) else plain(found.detail)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        run, found = self._run, self._run.found
        look = "afo-result" if isinstance(found, Replayed) else "afo-note"
        told = el("p", repr(self), class_=f"{look} afo-part")
        came = difference_html(found) if isinstance(found, Divergence) else told
        return {"text/plain": repr(self), "text/html": page(head(run.story, run._address), came)}


def same(found: Replayed) -> str:
    return f"the same: {found.steps} steps, {found.again} calls made again, {found.kept} taken as recorded"


def difference(error: Divergence) -> tuple[str, list[str]]:
    """Return what differs, and the lines of a unified diff from what was recorded to what is today."""
    then, now = (_as_lines(error.extra[side]) for side in ("recorded", "today"))
    lines = list(difflib.unified_diff(then, now, "recorded", "today", lineterm=""))
    left = [f"… {len(lines) - LINES} more lines"] if len(lines) > LINES else []
    return error.detail.partition(": recorded")[0], [plain(line) for line in [*lines[:LINES], *left]]


def difference_text(error: Divergence) -> str:
    what, lines = difference(error)
    return "\n".join([plain(what), *lines])


def difference_html(error: Divergence) -> Html:
    what, lines = difference(error)
    looks = {"+": "afo-add", "-": "afo-del", "@": "afo-quiet"}
    marked = (joined(el("span", line, class_=looks.get(line[:1])), "\n") for line in lines)
    return el("div", el("p", what, class_="afo-error"), el("pre", *marked), class_="afo-part")


def _as_lines(value: Any) -> list[str]:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return text.splitlines()


def _said(message: Mapping[str, Any]) -> str:
    calls = [f"{one['function']['name']}({one['function']['arguments']})" for one in message.get("tool_calls") or []]
    return "\n".join([words(message.get("content")), *calls]).strip()

"""What a run did, step by step, for the eye: made of its events as they come. The fold says what state it is in. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..fold import ERASED, Fold
from ..protocol import Event, moment

Json = dict[str, Any]
WORDS = {
    "asked": "asked", "awaiting": "waiting: approval", "approved": "approved", "started": "running", "succeeded": "done",
    "failed": "failed", "doubted": "in doubt",
}  # fmt: skip


@dataclass
class CallSeen:
    """A call of a step. `result` or `error` once there is one; `notes`: what people and probes said of it."""

    call: str
    tool: str
    arguments: str
    effect: str = ""
    result: Any = None
    error: str = ""
    began: str = ""
    seconds: float | None = None
    simulated: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class Step:
    """A reply of the model, and what was done about it. `number`: from 0. Tokens as the model's server counted them."""

    number: int
    seq: int
    said: str
    calls: list[CallSeen]
    model: str = ""
    reported: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False
    cost: float | None = None
    seconds: float | None = None
    failures: list[str] = field(default_factory=list)


class Story:
    """A run as its events tell it. `apply` takes the next event."""

    def __init__(self, run_id: str = "") -> None:
        self.run_id = run_id
        self.fold = Fold()
        self.facts: Json = {}  # the body of run.created
        self.prompt = ""
        self.asked: list[str] = []  # what people said
        self.steps: list[Step] = []
        self.notes: list[tuple[int, str]] = []  # (after how many steps, what happened to the run)
        self.began = self.moved = self.head = ""
        self._requested = ""
        self._failures: list[str] = []
        self._calls: dict[str, CallSeen] = {}

    def apply(self, event: Event) -> None:
        """Take in the next event. Raises ValueError where it is not the next one."""
        self.fold.apply(event)
        self.run_id, self.moved, self.head = self.run_id or event.run, event.at, event.hash
        self.began = self.began or event.at
        handler = _HANDLERS.get(event.kind)
        if handler is not None:
            handler(self, event, event.data())
        call = self._calls.get(event.call or "")
        if call is not None and (note := _note(event)):
            call.notes.append(note)

    def apply_all(self, events: Iterable[Event]) -> Story:
        for event in events:
            self.apply(event)
        return self

    @property
    def seconds(self) -> float:
        """Between the first event and the last."""
        return max(0.0, (moment(self.moved) or 0.0) - (moment(self.began) or 0.0))

    @property
    def status(self) -> str:
        fold = self.fold
        return f"{fold.status}: {fold.waiting.replace('_', ' ')}" if fold.waiting else fold.status

    def state_of(self, call: CallSeen) -> str:
        """Return a call's state as a word."""
        known = self.fold.calls.get(call.call)
        if known is None:
            return "asked"
        return f"waiting: {known.rests_for}" if known.state == "resting" else WORDS[known.state]

    # -- how each kind is told -----------------------------------------------------------------------------------

    def _created(self, event: Event, body: Json) -> None:
        self.facts = body

    def _message(self, event: Event, body: Json) -> None:
        said = ERASED if event.erased else words(body.get("content"))
        if body.get("role") == "system":
            self.prompt = said
        else:
            self.asked.append(said)

    def _forked(self, event: Event, body: Json) -> None:
        self._happened(event, {"reason": f"begins with what {body.get('run')} said before its step {body.get('step')}"})
        if isinstance(body.get("prompt"), str):
            self.prompt = body["prompt"]

    def _continued(self, event: Event, body: Json) -> None:
        self._happened(event, {"reason": f"goes on from {body.get('run')}"})

    def _request(self, event: Event, body: Json) -> None:
        self._requested = self._requested or event.at

    def _model_failed(self, event: Event, body: Json) -> None:
        self._failures.append(str(_dict(body.get("error")).get("message") or "the model failed"))

    def _replied(self, event: Event, body: Json) -> None:
        if body.get("purpose") == "summary":
            self.notes.append((len(self.steps), "the model was asked for a summary of the older messages"))
            return
        message, usage = _dict(body.get("message")), _dict(body.get("usage"))
        calls = [
            CallSeen(str(one["id"]), str(one["function"]["name"]), str(one["function"]["arguments"]))
            for one in message.get("tool_calls") or []
        ]
        self._calls.update((one.call, one) for one in calls)
        began = moment(self._requested)
        self.steps.append(
            Step(
                self.fold.steps - 1, event.seq, ERASED if event.erased else words(message.get("content")), calls,
                model=str(_dict(body.get("provenance")).get("model") or ""), reported=event.kind == "model.reported",
                tokens_in=int(usage.get("input") or 0), tokens_out=int(usage.get("output") or 0),
                estimated=bool(usage.get("estimated")), cost=body.get("cost"), failures=self._failures,
                seconds=max(0.0, (moment(event.at) or began) - began) if began else None,
            )
        )  # fmt: skip
        self._requested, self._failures = "", []

    def _started(self, event: Event, body: Json) -> None:
        call = self._calls.get(event.call or "")
        if call is None and self.steps and event.call:  # its reply was erased: only the start names it
            call = self._calls[event.call] = CallSeen(event.call, str(body.get("tool", "")), ERASED)
            self.steps[-1].calls.append(call)
        if call is not None:
            call.effect, call.began = str(body.get("effect") or call.effect), event.at

    def _outcome(self, event: Event, body: Json) -> None:
        if (call := self._calls.get(event.call or "")) is None:
            return
        if event.kind == "tool.failed":
            call.error = str(_dict(body.get("error")).get("message") or (ERASED if event.erased else "failed"))
        else:
            call.result = ERASED if event.erased else body.get("result")
        call.simulated = str(body.get("simulated") or "")
        began = moment(call.began)
        if began is not None:
            call.seconds = max(0.0, (moment(event.at) or began) - began)

    def _asked_of_person(self, event: Event, body: Json) -> None:
        if call := self._calls.get(event.call or ""):
            call.effect = str(body.get("effect") or call.effect)

    def _happened(self, event: Event, body: Json) -> None:
        what = event.kind.partition(".")[2].replace("_", " ")
        why = str(body.get("reason") or body.get("proof") or body.get("why") or "")
        by = event.by.removeprefix("user:") if event.by.startswith("user:") else ""
        self.notes.append((len(self.steps), ": ".join(one for one in (f"{what} by {by}" if by else what, why) if one)))


def _dict(value: Any) -> Json:
    """Take a part of a body for what it should be; a worker may have written anything."""
    return value if isinstance(value, dict) else {}


def words(content: Any) -> str:
    """Return what a message says: its text; of images and files their names."""
    if not isinstance(content, list):
        return str(content or "")
    return "\n".join(
        str(one.get("text", "")) if one.get("type") == "text" else f"[{one.get('type')} {one.get('name') or ''}]"
        for one in content
        if isinstance(one, dict)
    )


def _note(event: Event) -> str:
    body, who = event.data(), event.by.removeprefix("user:")
    why = f": {body['reason']}" if body.get("reason") else ""
    told = {
        "approval.requested": f"a person is asked{': ' + str(body['why']) if body.get('why') else ''}",
        "approval.voted": f"{who} approves, more people must",
        "approval.given": f"approved by {who}" + why,
        "approval.refused": f"refused by {who}" + why,
        "approval.expired": "nobody approved in time",
        "tool.probed": f"its probe says: {body.get('answer')}",
        "tool.doubted": "nobody knows whether it took effect" + why,
        "tool.resolved": f"{who} decides: {body.get('decision')}" + why,
        "timer.set": f"rests until {body.get('until')}",
        "question.asked": f"asks: {body.get('question')}",
        "child.submitted": f"delegated to {body.get('target')}",
        "simulation.requested": "a person is asked for its answer",
        "simulation.answered": f"answered by {who}",
    }
    return told.get(event.kind, "")


def _answered(story: Story, event: Event, body: Json) -> None:
    """An outcome that is no tool's: of a person, a timer, another agent, a decision on a call in doubt."""
    call = story._calls.get(event.call or "")
    known = story.fold.calls.get(event.call or "")
    if call is not None and known is not None and not known.open:
        if known.state == "failed":
            call.error = str(known.outcome or "").removeprefix("Error: ")
        else:
            call.result = body.get("result", known.outcome)


_HANDLERS = {
    "run.created": Story._created, "message.added": Story._message, "run.forked": Story._forked, "thread.continued": Story._continued,
    "model.requested": Story._request, "model.failed": Story._model_failed, "model.replied": Story._replied,
    "model.reported": Story._replied, "tool.started": Story._started, "tool.succeeded": Story._outcome, "tool.failed": Story._outcome,
    "approval.requested": Story._asked_of_person,
    **{f"run.{one}": Story._happened for one in ("requeued", "paused", "resumed", "restored", "cancel_requested", "interrupted")},
    "worker.died": Story._happened, "budget.reached": Story._happened,
    **{kind: _answered for kind in ("tool.resolved", "timer.fired", "question.answered", "question.refused", "question.expired",
                                    "child.finished", "approval.refused", "approval.expired", "simulation.answered", "tool.probed")},
}  # fmt: skip

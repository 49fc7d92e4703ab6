"""Events of a run -> its messages, calls, counters and status. Pure, incremental, the only place that knows how.

Service, worker, local ledger, verifier and replay fold the same way. Past code is never executed again: what is here
is all that resuming needs. Unknown kinds are kept by readers and skipped here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from .protocol import ENDED, Event, moment

CallState = Literal["asked", "awaiting", "approved", "started", "resting", "succeeded", "failed", "doubted"]
CLOSED: frozenset[str] = frozenset({"succeeded", "failed"})
ERASED = "(erased)"  # stands where a body was


@dataclass
class Call:
    """One asked-for use of a tool. Its outcome reaches the model in call order."""

    call: str
    tool: str
    arguments: str  # JSON text as the model wrote it (after an approval: as it was edited)
    step: int
    state: CallState = "asked"
    fence: int | None = None  # of the worker that holds it
    key: str = ""
    effect: str = "once"
    attempts: int = 0
    timeout: float = 60.0
    started_at: str = ""
    outcome: str | None = None  # what the model is told
    proof: str | None = None  # what proved the worker dead that holds it
    rests_for: str = ""  # timer or question: it needs no worker until that has come
    rest: dict[str, Any] = field(default_factory=dict)  # the body of the event that let it rest
    votes: list[tuple[str, str]] = field(default_factory=list)  # who approved which arguments, where several must

    @property
    def open(self) -> bool:
        return self.state not in CLOSED


@dataclass(frozen=True)
class Waiver:
    """How far a run may go beyond a budget: so much (None: without end) from where it stood then."""

    amount: float | None
    tokens: int
    cost: float


@dataclass
class Fold:
    """The state of a run after the events applied so far.

    `history(run, seq)` returns the messages of an earlier run of the thread; needed only where a
    `thread.continued` or `run.forked` event is met.
    """

    history: Callable[[str, int], list[dict[str, Any]]] | None = None
    seq: int = 0
    fence: int = 0
    held: bool = False  # a worker holds a lease on it
    status: str = "queued"
    waiting: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)  # OpenAI chat messages, complete steps only
    calls: dict[str, Call] = field(default_factory=dict)
    steps: int = 0  # replies of the model
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    at: str = ""  # of the latest event
    leased_at: str = ""
    rested: float = 0.0  # seconds that it waited, or that its clock jumped over: no limit counts them
    result: Any = None
    error: dict[str, Any] | None = None
    cancel: str | None = None  # the reason, once asked for
    interrupted: str | None = None  # the reason: it ends at its next step boundary
    allowed: dict[str, Waiver] = field(default_factory=dict)  # budgets that a person waived for this run
    replies: dict[str, int] = field(default_factory=dict)  # request id -> seq of its model.replied
    _parked_at: str = ""
    inherited: int = 0  # so many of the first messages are not this run's: of its thread before, or a summary of them
    counted: tuple[int, int] = (0, 0)  # tokens of the first messages, and of how many: as the latest reply counted them
    _step_calls: list[str] = field(default_factory=list)  # of the latest reply, in call order
    _told: int = 0  # how many of them stand in `messages`
    _reply_erased: bool = False  # the latest one: its calls are known by their starts alone

    def apply(self, event: Event) -> None:
        """Take in the next event. Raises ValueError when it is not the next one."""
        if event.seq != self.seq + 1:
            raise ValueError(f"event {event.seq} came after {self.seq}")
        self.seq, self.at = event.seq, event.at or self.at
        handler = _HANDLERS.get(event.kind)
        if handler is not None:
            handler(self, event, event.data())

    def apply_all(self, events: Iterable[Event]) -> Fold:
        for event in events:
            self.apply(event)
        return self

    def used(self, now: float) -> float:
        """Return the wall time since the first lease, in seconds, without what it rested. `now`: epoch seconds of its farm."""
        since = moment(self.leased_at)
        return 0.0 if since is None else max(0.0, now - since - self.rested)

    @property
    def open_calls(self) -> list[Call]:
        """Calls without an outcome, in call order."""
        return [self.calls[c] for c in self._step_calls if self.calls[c].open]

    @property
    def open_for(self) -> str | None:
        """What the run waits for when no call can go on, in the order of how much a person is needed; None: nothing."""
        states = {call.rests_for or call.state for call in self.open_calls}
        words = (
            ("doubted", "in_doubt"),
            ("awaiting", "approval"),
            ("question", "question"),
            ("child", "child"),
            ("timer", "timer"),
        )
        return next((word for state, word in words if state in states), None)

    @property
    def last_reply(self) -> dict[str, Any] | None:
        """The model's latest message, where no message came after it but outcomes of its calls."""
        for message in reversed(self.messages):
            if message["role"] != "tool":
                return message if message["role"] == "assistant" else None
        return None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    # -- how each kind moves the state ---------------------------------------------------------------------------

    def _leased(self, event: Event, body: dict[str, Any]) -> None:
        self.fence, self.held = int(body["fence"]), True
        self._status("running")
        self.leased_at = self.leased_at or event.at
        if self._parked_at:
            self.rested += max(0.0, (moment(event.at) or 0.0) - (moment(self._parked_at) or 0.0))
            self._parked_at = ""
        for call in self.open_calls:
            call.fence = self.fence if call.state == "approved" else call.fence

    def _clock_jumped(self, event: Event, body: dict[str, Any]) -> None:
        self.rested += float(body.get("seconds") or 0.0)

    def _status(self, status: str, waiting: str | None = None) -> None:
        if self.cancel is not None and status in ("queued", "running"):
            status = "cancelling"
        if self.status not in ENDED:
            self.status, self.waiting = status, waiting
        if status == "waiting" and not self.held:  # parked, or taken from its worker by a doubt: nobody works on it
            self._parked_at = self._parked_at or self.at

    def _lost(self, proof: Any) -> None:
        """Its worker is gone; `proof` is what proved it dead, or None where it is only silent."""
        self.held = False
        for call in self.open_calls:
            if proof and call.state == "started" and call.fence == self.fence:
                call.proof = str(proof)

    def _worker_died(self, event: Event, body: dict[str, Any]) -> None:
        for name in body.get("calls") or []:  # the proof came when the run had been taken from it already
            if (call := self.calls.get(str(name))) and call.open:
                call.proof = str(body.get("proof"))

    def _requeued(self, event: Event, body: dict[str, Any]) -> None:
        self._lost(body.get("proof"))
        self._status("queued")

    def _parked(self, event: Event, body: dict[str, Any]) -> None:
        self.held = False
        reason = str(body.get("reason", "approval"))
        if reason == "paused" != self.waiting and self.cancel is None:  # it was resumed before it rested
            self._status("queued")
        else:
            self._status("waiting", reason)

    def _restored(self, event: Event, body: dict[str, Any]) -> None:
        self.held = False
        self._status("waiting", "restored")

    def _paused(self, event: Event, body: dict[str, Any]) -> None:
        self._status("waiting", "paused")

    def _resumed(self, event: Event, body: dict[str, Any]) -> None:
        self._status("running" if self.held else "queued")  # its worker may not even have parked yet

    def _cancel_requested(self, event: Event, body: dict[str, Any]) -> None:
        if not self.ended:
            self.cancel = str(body.get("reason", "")) or "cancelled"
            self._status("cancelling")

    def _interrupted(self, event: Event, body: dict[str, Any]) -> None:
        self.interrupted = str(body.get("reason") or "interrupted")

    def _cancelled(self, event: Event, body: dict[str, Any]) -> None:
        self._status("cancelled")

    def _succeeded(self, event: Event, body: dict[str, Any]) -> None:
        self.result = body.get("result")
        self._status("succeeded")

    def _failed(self, event: Event, body: dict[str, Any]) -> None:
        self.error = _dict(body.get("error"))
        self._status("failed")

    def _message(self, event: Event, body: dict[str, Any]) -> None:
        message = {"role": body.get("role", "user"), "content": body.get("content", ERASED if event.erased else "")}
        self.messages.append(message)

    def _continued(self, event: Event, body: dict[str, Any]) -> None:
        if self.history is not None:
            self.messages.extend(self.history(str(body["run"]), int(body["seq"])))
        self.inherited = len(self.messages)

    def _forked(self, event: Event, body: dict[str, Any]) -> None:
        if body.get("copied") or event.erased:  # in a local file: the events themselves follow
            return
        self.steps = int(body.get("step") or 0)  # counted on: choices by step, ids of calls
        self._continued(event, body)
        if isinstance(prompt := body.get("prompt"), str):
            rest = [one for one in self.messages if one["role"] != "system"]
            self.messages = [*([{"role": "system", "content": prompt}] if prompt else []), *rest]
            self.inherited = len(self.messages)

    def _replied(self, event: Event, body: dict[str, Any]) -> None:
        message = body.get("message") or {"role": "assistant", "content": ERASED}
        self._reply_erased = event.erased
        asked = message.get("tool_calls") or []
        usage = body.get("usage") or {}
        self.tokens_in += int(usage.get("input", 0))
        self.tokens_out += int(usage.get("output", 0))
        self.cost += float(body.get("cost") or 0.0)
        if request := body.get("request"):
            self.replies[str(request)] = event.seq
        if body.get("purpose") == "summary":  # `context.compacted` stands behind it, in the same transaction
            return
        self.messages.append(message)
        if not usage.get("estimated"):
            self.counted = (int(usage.get("input", 0)) + int(usage.get("output", 0)), len(self.messages))
        self._step_calls, self._told = [], 0
        for one in asked:
            call = Call(one["id"], one["function"]["name"], one["function"]["arguments"], self.steps)
            self.calls[call.call] = call
            self._step_calls.append(call.call)
        self.steps += 1

    def _compacted(self, event: Event, body: dict[str, Any]) -> None:
        keep = body.get("keep")  # the last `keep` messages stay, the summary stands for those before
        head = [m for m in self.messages[:1] if m["role"] == "system"]
        if "system" in body:  # it needs nothing of the thread before: who reads a later run need not read that
            head = [{"role": "system", "content": body["system"]}] if body["system"] else []
        first = 1 if self.messages and self.messages[0]["role"] == "system" else 0
        start = max(first, len(self.messages) - (keep if isinstance(keep, int) else 0))
        if self._told < len(self._step_calls):  # results still to come need their reply
            start = min(start, len(self.messages) - 1 - self._told)
        while start < len(self.messages) and self.messages[start]["role"] == "tool":
            start -= 1
        self.messages = [*head, {"role": "user", "content": str(body.get("summary", ""))}, *self.messages[start:]]
        self.inherited, self.counted = len(head) + 1, (0, 0)

    def _started(self, event: Event, body: dict[str, Any]) -> None:
        if self._reply_erased and event.call and event.call not in self.calls:
            self.calls[event.call] = Call(event.call, str(body.get("tool", "")), _json(ERASED), self.steps - 1)
        if (call := self.calls.get(event.call or "")) and call.open and call.state != "doubted":
            call.state, call.attempts = "started", int(body.get("attempt", call.attempts + 1))
            call.key, call.effect = str(body.get("key", call.key)), str(body.get("effect", call.effect))
            call.timeout, call.started_at = float(body.get("timeout", 60.0)), event.at
            call.fence, call.proof = int(body.get("fence", self.fence)), None

    def _outcome(self, event: Event, state: CallState, text: str) -> None:
        call = self.calls.get(event.call or "")
        if call is None or not call.open:
            return
        call.state, call.outcome, call.rests_for = state, text, ""
        while self._told < len(self._step_calls):  # results reach the model in call order
            done = self.calls[self._step_calls[self._told]]
            if done.open:
                break
            self.messages.append({"role": "tool", "tool_call_id": done.call, "content": done.outcome})
            self._told += 1

    def _tool_succeeded(self, event: Event, body: dict[str, Any]) -> None:
        self._outcome(event, "succeeded", ERASED if event.erased else as_text(body.get("result")))

    def _tool_failed(self, event: Event, body: dict[str, Any]) -> None:
        self._outcome(
            event,
            "failed",
            "Error: " + str(_dict(body.get("error")).get("message", ERASED if event.erased else "failed")),
        )

    def _rested(self, event: Event, body: dict[str, Any]) -> None:
        if (call := self.calls.get(event.call or "")) and call.state in (
            "asked",
            "started",
        ):  # asked: in a fork's copies
            call.state, call.rests_for, call.rest = "resting", event.kind.partition(".")[0], body

    def _timer_fired(self, event: Event, body: dict[str, Any]) -> None:
        if (call := self.calls.get(event.call or "")) and call.rests_for == "timer":
            then = call.rest.get("then")
            told = f"the time has come: it is {call.rest.get('until')}" if then is None else as_text(then)
            self._outcome(event, "succeeded", told)

    def _question_answered(self, event: Event, body: dict[str, Any]) -> None:
        if (call := self.calls.get(event.call or "")) and call.rests_for == "question":
            self._outcome(event, "succeeded", as_text(body.get("result")))

    def _question_closed(self, event: Event, body: dict[str, Any]) -> None:
        if (call := self.calls.get(event.call or "")) and call.rests_for == "question":
            self._outcome(
                event, "failed", f"Error: the question was not answered: {body.get('reason') or 'no reason given'}"
            )

    def _child_finished(self, event: Event, body: dict[str, Any]) -> None:
        if (call := self.calls.get(event.call or "")) and call.rests_for == "child":
            if body.get("status") == "succeeded":
                self._outcome(event, "succeeded", as_text(body.get("result")))
                return
            why = _dict(body.get("error")).get("message") or "no reason given"
            self._outcome(event, "failed", f"Error: the delegated task was {body.get('status')}: {why}")

    def _tool_probed(self, event: Event, body: dict[str, Any]) -> None:
        call, answer = self.calls.get(event.call or ""), body.get("answer")
        if call is None or call.state != "started" or not settles(call, answer):
            return
        if answer == "happened":
            self._outcome(event, "succeeded", as_text(body.get("result")))
        else:
            call.state = "approved"  # admitted anew, with the same key, when its worker opens the run again

    def _tool_doubted(self, event: Event, body: dict[str, Any]) -> None:
        self._lost(body.get("proof"))
        if (call := self.calls.get(event.call or "")) and call.open:
            call.state = "doubted"
        self._status("waiting", "in_doubt")  # by the kind alone, as the run's row moves

    def _tool_resolved(self, event: Event, body: dict[str, Any]) -> None:
        call, decision = self.calls.get(event.call or ""), body.get("decision")
        if call is None or call.state != "doubted":
            return
        if decision == "happened":
            self._outcome(event, "succeeded", as_text(body.get("result")))
        elif decision == "not_happened":
            call.state = "approved"  # admitted anew, with the same key, when a worker takes the run up
        elif event.erased:  # what was decided is not known any more: it counts as done, lest it be done again
            self._outcome(event, "succeeded", ERASED)
        else:
            self._outcome(event, "failed", "Error: nobody knows whether this call took effect; it was given up")

    def _budget_allowed(self, event: Event, body: dict[str, Any]) -> None:
        amount = body.get("amount")
        more = float(amount) if isinstance(amount, (int, float)) else None
        self.allowed[str(body.get("budget"))] = Waiver(more, self.tokens_in + self.tokens_out, self.cost)

    def _approval_requested(self, event: Event, body: dict[str, Any]) -> None:
        if (call := self.calls.get(event.call or "")) and call.state == "asked":
            call.state = "awaiting"
            call.effect = str(body.get("effect", call.effect))

    def _simulation_answered(self, event: Event, body: dict[str, Any]) -> None:
        if (call := self.calls.get(event.call or "")) and call.state == "awaiting":
            if "error" in body:
                self._tool_failed(event, body)
            else:
                self._tool_succeeded(event, body)

    def _approval_voted(self, event: Event, body: dict[str, Any]) -> None:
        if (call := self.calls.get(event.call or "")) and call.state == "awaiting":
            edited = body.get("arguments")
            call.votes.append((event.by, call.arguments if edited is None else _json(edited)))

    def _approval_given(self, event: Event, body: dict[str, Any]) -> None:
        if (call := self.calls.get(event.call or "")) and call.state == "awaiting":
            call.state = "approved"
            if body.get("arguments") is not None:
                call.arguments = _json(body["arguments"])

    def _approval_refused(self, event: Event, body: dict[str, Any]) -> None:
        reason = str(body.get("reason") or "no reason given")
        if (call := self.calls.get(event.call or "")) and call.state == "awaiting":
            self._outcome(event, "failed", f"Error: a person refused this call: {reason}")

    def _approval_expired(self, event: Event, body: dict[str, Any]) -> None:
        reason = str(body.get("reason") or "nobody approved it in time")
        if (call := self.calls.get(event.call or "")) and call.state == "awaiting":
            self._outcome(event, "failed", f"Error: this call was not made: {reason}")


def settles(call: Call, answer: Any) -> bool:
    """Say whether a probe's answer ends the doubt. What has not happened yet may still come from a worker that is only silent."""
    return answer == "happened" or (answer == "not_happened" and call.proof is not None)


def _dict(value: Any) -> dict[str, Any]:
    """Take a part of a body for what it should be; a worker may have written anything."""
    return value if isinstance(value, dict) else {}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def as_text(value: Any) -> str:
    """Return a tool's result as the model is told it: text stays text, the rest is compact JSON.

    A result over 16 kB lies in a blob, `{"$blob": sha256, "size": bytes, "preview": text}`: the model sees its beginning.
    """
    if isinstance(value, dict) and "$blob" in value:
        return f"{value.get('preview', '')}\n[the first part of {value.get('size')} bytes]"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


_HANDLERS: dict[str, Callable[[Fold, Event, dict[str, Any]], None]] = {
    "run.leased": Fold._leased,
    "worker.died": Fold._worker_died,
    "clock.jumped": Fold._clock_jumped,
    "run.requeued": Fold._requeued,
    "run.parked": Fold._parked,
    "run.restored": Fold._restored,
    "run.paused": Fold._paused,
    "run.resumed": Fold._resumed,
    "run.cancel_requested": Fold._cancel_requested,
    "run.interrupted": Fold._interrupted,
    "run.cancelled": Fold._cancelled,
    "run.succeeded": Fold._succeeded,
    "run.failed": Fold._failed,
    "message.added": Fold._message,
    "thread.continued": Fold._continued,
    "run.forked": Fold._forked,
    "model.replied": Fold._replied,
    "model.reported": Fold._replied,
    "context.compacted": Fold._compacted,
    "tool.started": Fold._started,
    "tool.succeeded": Fold._tool_succeeded,
    "tool.failed": Fold._tool_failed,
    "timer.set": Fold._rested,
    "timer.fired": Fold._timer_fired,
    "child.submitted": Fold._rested,
    "child.finished": Fold._child_finished,
    "question.asked": Fold._rested,
    "question.answered": Fold._question_answered,
    "question.refused": Fold._question_closed,
    "question.expired": Fold._question_closed,
    "tool.probed": Fold._tool_probed,
    "tool.doubted": Fold._tool_doubted,
    "tool.resolved": Fold._tool_resolved,
    "budget.allowed": Fold._budget_allowed,
    "approval.requested": Fold._approval_requested,
    "simulation.requested": Fold._approval_requested,
    "simulation.answered": Fold._simulation_answered,
    "approval.voted": Fold._approval_voted,
    "approval.given": Fold._approval_given,
    "approval.refused": Fold._approval_refused,
    "approval.expired": Fold._approval_expired,
}

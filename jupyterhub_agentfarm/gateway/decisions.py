"""What a person's word on an inbox item comes to: events, or why not. Pure.

Items are of five kinds, each with its words: `approval` (approve, refuse), `in_doubt` (happened, not_happened, give_up),
`simulation` (answer, refuse), `budget` (approve, refuse), `question` (answer, refuse).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentfarm_sdk.effects import answer_flaw
from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import ENDED, NewEvent, new_event
from agentfarm_sdk.schemas import Check

from ..errors import Conflict, Invalid
from ..records import Run
from . import admission

WORDS = {
    "approval": "approve or refuse",
    "in_doubt": "happened, not_happened or give_up",
    "simulation": "answer (with the result), or refuse",
    "budget": "approve or refuse; or change the budget",
    "question": "answer (with the result), or refuse",
}
CALLED = {
    "approval": "an approval",
    "in_doubt": "a call in doubt",
    "simulation": "a simulated call",
    "budget": "a budget",
    "question": "a question",
}


@dataclass(frozen=True)
class Word:
    """What a person said. `by`: user:<name>."""

    decision: str
    by: str
    reason: str = ""
    arguments: Any = None
    result: Any = None
    force: bool = False


def events_of(
    word: Word, item: Mapping[str, Any], run: Run, fold: Fold, validators: Mapping[str, Check]
) -> list[NewEvent]:
    """Return the events of a decision about an open item. Raises Conflict: not now; Invalid: no such decision here."""
    if run.status in ENDED:
        raise Conflict(f"the run has {run.status}")
    match item["kind"], word.decision:
        case "approval", "refuse":
            return [new_event("approval.refused", {"reason": word.reason}, item["call"])]
        case "approval", "approve":
            return _approved(word, item, fold, validators)
        case "in_doubt", ("happened" | "not_happened" | "give_up"):
            return _resolved(word, item)
        case "simulation", ("answer" | "refuse"):
            return _answered(word, item)
        case "question", ("answer" | "refuse"):
            return _told(word, item)
        case "budget", ("approve" | "refuse"):
            return _waived(word, item, run)
    kind = str(item["kind"])
    raise Invalid(f"{CALLED[kind]} cannot be decided by {word.decision!r}", hint=WORDS[kind])


def _approved(word: Word, item: Mapping[str, Any], fold: Fold, validators: Mapping[str, Check]) -> list[NewEvent]:
    """Where several must approve, people are counted who approved the same arguments: an edit is nobody else's yet."""
    name, body = item["call"], dict[str, Any](reason=word.reason)
    if word.arguments is not None:
        if flaw := admission.disagreement(validators[item["detail"]["tool"]], word.arguments):
            raise Invalid(flaw, hint="mend the arguments")
        body["arguments"] = word.arguments
    needed = int(item["detail"].get("approvers", 1))
    if needed <= 1:
        return [new_event("approval.given", body, name)]
    call = fold.calls[name]
    wanted = admission.alike(admission.parse(call.arguments)[0] if word.arguments is None else word.arguments)
    people = [voter for voter, given in call.votes if admission.alike(admission.parse(given)[0]) == wanted]
    if word.by in people:
        raise Conflict("you have approved this", hint=f"{needed - len(people)} more must: other people than you")
    people.append(word.by)
    given = [new_event("approval.given", {**body, "approvers": people}, name)] if len(people) >= needed else []
    return [new_event("approval.voted", body, name), *given]


def _resolved(word: Word, item: Mapping[str, Any]) -> list[NewEvent]:
    call, body = item["call"], {"decision": word.decision, "reason": word.reason}
    if word.decision == "happened":
        return [new_event("tool.resolved", {**body, "result": word.result}, call)]
    if word.decision == "not_happened":
        if not item["detail"].get("proof") and not (word.force and word.reason):
            raise Conflict(
                "the worker is only silent: it may still be doing it", hint="wait for proof, or force it with a reason"
            )
        return [new_event("tool.resolved", {**body, "forced": word.force}, call)]
    error = {"type": "given-up", "message": word.reason or "given up while a call was in doubt"}
    given_up = new_event("tool.resolved", {**body, "decision": "given_up"}, call)
    return [given_up, new_event("run.failed", {"error": error})]


def _answered(word: Word, item: Mapping[str, Any]) -> list[NewEvent]:
    if word.decision == "answer":
        return [new_event("simulation.answered", {"result": word.result, "reason": word.reason}, item["call"])]
    error = {"type": "refused", "message": word.reason or "a person refused this call"}
    return [new_event("simulation.answered", {"error": error, "reason": word.reason}, item["call"])]


def _told(word: Word, item: Mapping[str, Any]) -> list[NewEvent]:
    if word.decision == "refuse":
        return [new_event("question.refused", {"reason": word.reason}, item["call"])]
    if flaw := answer_flaw(item["detail"], word.result):
        raise Invalid(f"this does not answer the question: {flaw} - at `$.result`", hint="give it as `result`")
    return [new_event("question.answered", {"result": word.result, "reason": word.reason}, item["call"])]


def _waived(word: Word, item: Mapping[str, Any], run: Run) -> list[NewEvent]:
    """Approved, a budget holds no longer for this run, or only once it has gone beyond it by the amount that was said."""
    body = {"budget": item["detail"]["budget"], "reason": word.reason}
    if word.decision == "approve":
        if word.arguments is not None:
            body["amount"] = _amount(word.arguments, item["detail"])
        queued = [new_event("run.requeued", {"reason": "the budget was waived for this run", "proof": None})]
        return [new_event("budget.allowed", body), *(queued if run.waiting == "budget" else [])]
    why = f"a budget is used up, and a person refused more: {word.reason or 'no reason given'}"
    return [new_event("budget.refused", body), new_event("run.failed", {"error": {"type": "budget", "message": why}})]


def _amount(arguments: Any, detail: Mapping[str, Any]) -> float:
    """Return by how much, in the budget's unit, the run may go beyond it. Raises Invalid."""
    unit = "USD" if detail["unit"] == "usd" else detail["unit"]
    match arguments:
        case {"amount": int() | float() as amount} if len(arguments) == 1 and not isinstance(amount, bool):
            if amount >= detail["needed"]:
                return float(amount)
    least = f"at least {detail['needed']:g} {unit}, which its next request may use"
    raise Invalid("a budget is waived without end, or by an amount", hint=f'arguments: {{"amount": {least}}}')

"""Effects in the farm's own database: what an agent remembers, timers, questions to people, tasks for others. Pure.

A tool's context makes these events, the service and the local ledger check them at the door; each takes effect in the
transaction that records it, so none is ever in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec

from .errors import Invalid
from .protocol import NewEvent, moment, new_event, timestamp

KEY_CHARACTERS = 200
VALUE_BYTES = 16_384  # of a remembered value's JSON
MAX_KEYS = 1000  # of one agent
RECALLED, RECALLED_BYTES = 10, 32_768  # what one look into the memory gives at most
LONGEST_WAIT = 30 * 86400.0  # seconds
QUESTION_CHARACTERS = 4000
MAX_CHOICES = 50
MEMORY = frozenset({"memory.remembered", "memory.forgotten"})
RESTS = frozenset({"timer.set", "question.asked", "child.submitted"})  # the call stays open without a worker
KINDS = MEMORY | RESTS


def remembered(key: str, value: Any, call: str | None) -> NewEvent:
    """Return the event by which the agent remembers a JSON value. Raises Invalid."""
    try:
        event = new_event("memory.remembered", {"key": key, "value": value}, call)
    except (TypeError, ValueError, OverflowError) as error:
        raise Invalid(f"a {type(value).__name__} cannot be remembered: {error}", hint="values are JSON") from error
    check(event, 0.0)
    return event


def forgotten(key: str, call: str | None) -> NewEvent:
    """Return the event by which the agent forgets a key. Raises Invalid."""
    event = new_event("memory.forgotten", {"key": key}, call)
    check(event, 0.0)
    return event


def timer(until: datetime | float, now: float, then: Any, call: str | None) -> NewEvent:
    """Return the event that lets a call rest: until a time, or for so many seconds. Raises Invalid.

    then: what the model is told when the time has come; None: the time. Seconds are counted by the farm's own clock,
    whatever this machine's says.
    """
    body: dict[str, Any] = {}
    if isinstance(until, datetime):
        at = (until if until.tzinfo else until.replace(tzinfo=timezone.utc)).timestamp()
    else:
        at = now + float(until)
        body["after"] = float(until)  # `seconds` is how long the call took, as of every outcome
    body = {"until": _stamp(at)} | body | ({} if then is None else {"then": then})
    event = new_event("timer.set", body, call)
    check(event, now)
    return event


def question(
    text: str, choices: Sequence[str] | None, schema: dict[str, Any] | None, expires: float | None, call: str | None
) -> NewEvent:
    """Return the event that asks a person. `expires`: seconds, then the model is told that nobody answered. Raises Invalid."""
    body: dict[str, Any] = {"question": text}
    for name, value in (("choices", list(choices) if choices else None), ("schema", schema), ("expires", expires)):
        if value is not None:
            body[name] = value
    event = new_event("question.asked", body, call)
    check(event, 0.0)
    return event


def delegated(
    target: str, given: Any, deadline: float | None, variables: dict[str, str] | None, call: str | None
) -> NewEvent:
    """Return the event that submits a child task and lets the call rest until it has ended. Raises Invalid."""
    body: dict[str, Any] = {"target": target, "input": given}
    for name, value in (("deadline", deadline), ("variables", variables)):
        if value is not None:
            body[name] = value
    event = new_event("child.submitted", body, call)
    check(event, 0.0)
    return event


def check(event: NewEvent, now: float) -> None:
    """Check such an event, whoever wrote it; `now` in epoch seconds. Raises Invalid: what is wrong, and what would do."""
    if event.kind not in KINDS:
        return
    body = msgspec.json.decode(event.body)
    if event.kind in MEMORY:
        _check_memory(body)
    elif event.kind == "timer.set":
        until = moment(body.get("until"))
        if until is None:
            raise Invalid(f"{body.get('until')!r} is no time", hint="UTC, as 2026-11-21T12:00:00.000000Z")
        if until - now > LONGEST_WAIT + 60.0:
            raise Invalid("a run waits 30 days at most", hint="submit a task later instead")
        after = body.get("after", 0.0)
        if isinstance(after, bool) or not isinstance(after, int | float) or not after <= LONGEST_WAIT + 60.0:
            raise Invalid("`after` must be seconds from now, 30 days at most", hint="leave it away: until says it too")
    elif event.kind == "child.submitted":
        _check_child(body)
    else:
        _check_question(body)


def _check_memory(body: dict[str, Any]) -> None:
    key = body.get("key")
    if not isinstance(key, str) or not key or len(key) > KEY_CHARACTERS or not key.isprintable():
        raise Invalid(f"{str(key)[:80]!r} cannot be a key", hint=f"1 to {KEY_CHARACTERS} printable characters")
    size = len(msgspec.json.encode(body.get("value")))
    if size > VALUE_BYTES:
        raise Invalid(
            f"{size} bytes are too many to remember under one key",
            hint=f"at most {VALUE_BYTES}: write a file, and remember its name",
        )


def _check_child(body: dict[str, Any]) -> None:
    target, given, deadline, variables = (body.get(name) for name in ("target", "input", "deadline", "variables"))
    if not isinstance(target, str) or not 0 < len(target) <= 80:
        raise Invalid("a task is delegated to an agent, or to pool:NAME", hint="name one as target")
    if given in (None, ""):
        raise Invalid("a delegated task needs an input", hint="say all that is to be done: it knows nothing else")
    if deadline is not None and not (isinstance(deadline, int | float) and 0 < deadline <= LONGEST_WAIT):
        raise Invalid(f"a deadline of {deadline!r} seconds", hint="more than 0, at most 30 days")
    if variables is not None and not (
        isinstance(variables, dict) and all(isinstance(one, str) for one in variables.values())
    ):
        raise Invalid("variables are texts by name", hint='{"name": "Ada"}')


def _check_question(body: dict[str, Any]) -> None:
    from . import schemas  # not for every tool that is declared

    text, choices, schema, expires = (body.get(name) for name in ("question", "choices", "schema", "expires"))
    if not isinstance(text, str) or not text.strip() or len(text) > QUESTION_CHARACTERS:
        raise Invalid("a question is text", hint=f"1 to {QUESTION_CHARACTERS} characters")
    if choices is not None and not (
        isinstance(choices, list) and 0 < len(choices) <= MAX_CHOICES and all(isinstance(one, str) for one in choices)
    ):
        raise Invalid("choices are texts", hint=f"1 to {MAX_CHOICES} of them")
    if choices is not None and schema is not None:
        raise Invalid("a question has choices or a schema, not both", hint='a schema may say {"enum": […]}')
    if schema is not None and (flaw := schemas.flaw(schema)):
        raise Invalid(f"the schema of the answer: {flaw}", hint="a JSON Schema")
    if expires is not None and not (isinstance(expires, int | float) and 0 < expires <= LONGEST_WAIT):
        raise Invalid(f"a question cannot expire after {expires!r} seconds", hint="more than 0, at most 30 days")


def answer_flaw(asked: dict[str, Any], result: Any) -> str:
    """Say why a result does not answer the question of this body; "" where it does."""
    from . import schemas

    if (choices := asked.get("choices")) is not None and result not in choices:
        return "it is none of the choices: " + ", ".join(choices)
    if (schema := asked.get("schema")) is not None:
        return schemas.check(schema)(result) or ""
    return "" if result not in (None, "") else "there is no answer"


def _stamp(seconds: float) -> str:
    try:
        return timestamp(seconds)
    except (ValueError, OverflowError, OSError) as error:
        raise Invalid(f"{seconds:g} is no time: {error}", hint="a run waits 30 days at most") from error

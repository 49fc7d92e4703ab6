"""When and how a conversation is made shorter: a summary stands for its older messages, the latest stay. Pure.

The gateway does it for the farm's models, loop.py for those that live in the kernel; fold.py applies `context.compacted`.
What was said stays in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

BYTES_A_TOKEN = 3  # of a message's JSON: English has four, code and other scripts less
FULL, KEPT, ASKED = 0.75, 0.25, 0.5  # of the context: where it is made shorter; what stays; what the summary is made of
SHORTEST = 256  # tokens: a summary may always have so many
INSTRUCTION = (
    "Summarise the conversation below for whoever goes on with it and cannot see it. Keep: what was asked, word for word where "
    "it matters; names, numbers, identifiers, file names; what was done and with which result; what was decided; what is still "
    "to do. Leave out greetings and repetitions. Answer with the summary alone."
)
HEAD = "Summary of the conversation so far, whose older messages are not shown any more:\n\n"
LATEST = "\n\nThe latest request, word for word:\n\n"

Message = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """keep: so many of the last messages stay. question: what the model is asked with. longest: tokens of its summary."""

    keep: int
    replaced: int
    question: list[Message]
    longest: int
    latest: str  # the latest request, where it does not stay

    def body(self, said: str, system: str | None, request: str) -> dict[str, Any]:
        """Return the body of `context.compacted`. A model that says nothing is stood in for by what it was shown."""
        told = said.strip() or str(self.question[-1]["content"])[-self.longest * BYTES_A_TOKEN :]
        summary = HEAD + told + (LATEST + self.latest if self.latest else "")
        return {"request": request, "summary": summary, "system": system, "keep": self.keep, "replaced": self.replaced}


def size(messages: Sequence[Message]) -> int:
    """Return about how many tokens messages have."""
    return sum(len(msgspec.json.encode(one)) // BYTES_A_TOKEN + 4 for one in messages)


def plan(messages: Sequence[Message], own: int, tokens: int, context: int) -> Plan | None:
    """Say how the messages are made shorter; None where they need not be, or cannot.

    own: so many of the last ones are of the run itself, not of its thread before: only they can stay. tokens: how many all
    have, with what is sent beside them. context: tokens that the model can take. No call may be open.
    """
    if tokens <= FULL * context:
        return None
    first = 1 if messages and messages[0]["role"] == "system" else 0
    start = _start(messages, max(first, len(messages) - own), KEPT * context)
    old = messages[first:start]
    if len(old) < 2:
        return None  # one message alone is too long: no summary makes it shorter
    longest = max(SHORTEST, context // 8)
    asked = [place for place, one in enumerate(messages) if one["role"] == "user"]
    latest = text_of(messages[asked[-1]])[: context // 8 * BYTES_A_TOKEN] if asked and asked[-1] < start else ""
    if latest.startswith(HEAD):
        latest = latest.partition(LATEST)[2]
    shown = transcript(old, int(ASKED * context) * BYTES_A_TOKEN)
    question = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": shown}]
    return Plan(len(messages) - start, len(old), question, longest, latest)


def _start(messages: Sequence[Message], earliest: int, most: float) -> int:
    """Return where those begin that stay: as many as fit, and never a call's result without the call."""
    start, left = len(messages), most
    for place in range(len(messages) - 1, earliest - 1, -1):
        left -= size(messages[place : place + 1])
        if left < 0:
            break
        if messages[place]["role"] != "tool":
            start = place
    return start


def transcript(messages: Sequence[Message], most: int) -> str:
    """Return the messages as text of about `most` bytes; the longest lose their middle."""
    told = [f"{one['role']}: {text_of(one)}" for one in messages]
    each = most
    while sum(min(len(one.encode()), each) for one in told) > most and each > 80:
        each = each * 3 // 4
    whole = "\n\n".join(_cut(one, each) for one in told)
    return whole if len(whole.encode()) <= most + 100 else _cut(whole, most)


def _cut(text: str, most: int) -> str:
    raw = text.encode()
    if len(raw) <= most:
        return text
    half = max(0, most // 2 - 20)
    first, last = raw[:half].decode(errors="ignore"), raw[len(raw) - half :].decode(errors="ignore")
    return f"{first} [… {len(raw) - 2 * half} bytes …] {last}"


def text_of(message: Message) -> str:
    """Return what a message says, with the calls that it asks for."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [str(one.get("text")) if one.get("type") == "text" else f"[{one.get('type')}]" for one in content]
        content = "\n".join(parts)
    asked = [one["function"] for one in message.get("tool_calls") or []]
    called = "".join(f"\n[calls {one['name']} {one['arguments']}]" for one in asked)
    return f"{content or ''}{called}"

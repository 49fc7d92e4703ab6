"""Structured answers: held against the version's schema when they come; one that does not fit is asked for once more. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import Definition, NewEvent, new_event
from agentfarm_sdk.schemas import Check, answer

FLAW = "Your answer does not fit what is asked for: "


def repairing(messages: list[dict[str, Any]]) -> bool:
    """Say whether the model is asked for its answer once more: then it makes no calls."""
    last = messages[-1] if messages else {}
    return last.get("role") == "user" and str(last.get("content")).startswith(FLAW)


def repair(definition: Definition, fits: Check | None, fold: Fold, said: dict[str, Any]) -> list[NewEvent]:
    """Return what the model is told of its reply `said`, which is not in the fold yet: nothing where it fits, is a call,

    is the second one that does not fit, or no step is left to answer in.
    """
    if fits is None or said.get("tool_calls") or fold.cancel or repairing(fold.messages):
        return []
    if definition.limits.steps is not None and fold.steps + 1 >= definition.limits.steps:
        return []
    flaw = answer(str(said.get("content") or ""), fits)[1]
    if not flaw:
        return []
    schema = msgspec.json.encode(definition.answer).decode()
    told = f"{FLAW}{flaw}\nAnswer again, with nothing but JSON of this JSON Schema: {schema}"
    return [new_event("message.added", {"role": "user", "content": told})]

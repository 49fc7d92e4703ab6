"""The two agents of a new farm, made for what a model of 135 million parameters really can do: no more is claimed.

Few tools, short prompts with one example, temperature 0, the tool first and the answer after it, arguments and answers
held narrow by their schema. Tried: of the 20 sums that the analyst's prompt was chosen by 19 come out right, of 12 others
11; 12 of 12 reviews.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentfarm_sdk.protocol import Definition, Limits, ModelSpec, ToolSpec, content_hash
from agentfarm_sdk.tools.registry import builtin_specs

_NUMBER = r"[0-9]{1,8}(\.[0-9]{1,4})?"
_EXPRESSION = rf"^{_NUMBER}( ?(\*\*|[-+*/]) ?{_NUMBER}){{1,3}}$"
_LIMITS = Limits(steps=4, calls=4, tokens=8000, seconds=300)

TASKS = (
    ("analyst", "What is 17*23?"),
    ("analyst", "What is 12345 * 678?"),
    ("reviewer", "The food was cold and the waiter was rude."),
    ("reviewer", "Thank you, everything was perfect."),
)


def agents() -> dict[str, Definition]:
    """Return the demo agents by name."""
    return {
        "analyst": Definition(
            description="Does arithmetic with a calculator.",
            prompt=(
                "You are an analyst. Copy the sum into the calculator as it stands, for example: What is 8 * 9? "
                "expression: 8 * 9. Then answer with the result."
            ),
            model=_model(60),
            tools=[_narrow("calculator", {"expression": {"type": "string", "pattern": _EXPRESSION}})],
            tool_choice=["required", "none"],
            answer=_exactly({"result": {"type": "number"}}),
            limits=_LIMITS,
        ),
        "reviewer": Definition(
            description="Sorts reviews into positive and negative ones, as JSON.",
            prompt="You sort reviews. Say whether the review is positive or negative.",
            model=_model(40),
            answer=_exactly({"mood": {"enum": ["positive", "negative"]}}),
            limits=_LIMITS,
        ),
    }


def _model(max_tokens: int) -> ModelSpec:
    return ModelSpec(parameters={"temperature": 0, "max_tokens": max_tokens})


def _exactly(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _narrow(name: str, properties: dict[str, Any]) -> ToolSpec:
    """Return a built-in tool that takes only such arguments."""
    spec, schema = builtin_specs()[name], _exactly(properties)
    return msgspec.structs.replace(spec, schema=schema, schema_hash=content_hash(schema))

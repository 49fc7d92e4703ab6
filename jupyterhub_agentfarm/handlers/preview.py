"""What a definition comes to before anything is saved: checked, its prompt filled in, its tokens estimated."""

from __future__ import annotations

from typing import Any

import msgspec

from agentfarm_sdk import compaction
from agentfarm_sdk.parts import are_parts
from agentfarm_sdk.prompts import places, render

from .agents import settle
from .routes import Call, Route
from .steps import known_context


class ToPreview(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A definition as POST /agents takes it as `draft`, and what a task would give: variables and input."""

    definition: dict[str, Any]
    files: dict[str, str] = {}
    variables: dict[str, str] = {}
    input: Any = None


class Variable(msgspec.Struct, frozen=True):
    """`source`: given, input or default; null: it has no value."""

    name: str
    value: str | None
    source: str | None


class Tokens(msgspec.Struct, frozen=True):
    prompt: int
    input: int
    tools: int
    total: int


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """`missing`: variables without a value: they stand in `prompt` as they are written. `context`: what the model can take."""

    prompt: str
    messages: list[dict[str, Any]]
    variables: list[Variable]
    missing: list[str]
    tools: list[str]
    tokens: Tokens
    estimated: bool
    context: int | None


async def preview(call: Call) -> Preview:
    """Check a definition, fill its prompt, and estimate its tokens: about one for three bytes, as the gateway does."""
    body: ToPreview = call.body
    definition = (await call.read(lambda c: settle(call, body.definition, body.files, c))).definition
    fields = body.input if isinstance(body.input, dict) else {}
    found = [_variable(name, definition.variables, body.variables, fields) for name in places(definition.prompt)]
    missing = [one.name for one in found if one.source is None]
    kept = {name: "{{" + name + "}}" for name in missing}
    prompt = render(definition.prompt, definition.variables, {**body.variables, **kept}, body.input)
    messages: list[dict[str, Any]] = [{"role": "system", "content": prompt}] if prompt else []
    if body.input is not None:
        messages.append({"role": "user", "content": body.input if are_parts(body.input) else _text(body.input)})
    tools = len(msgspec.json.encode(definition.tools)) // compaction.BYTES_A_TOKEN if definition.tools else 0
    sizes = [compaction.size([one]) for one in messages]
    first = sizes[0] if prompt else 0
    return Preview(
        prompt=prompt, messages=messages, variables=found, missing=missing, tools=[tool.name for tool in definition.tools], estimated=True,
        tokens=Tokens(first, sum(sizes) - first, tools, sum(sizes) + tools),
        context=definition.model.context or await known_context(call, definition.model.name, definition.model.provider),
    )  # fmt: skip


def _variable(name: str, defaults: dict[str, str], given: dict[str, str], fields: dict[str, Any]) -> Variable:
    for source, values in (("given", given), ("input", fields), ("default", defaults)):
        if name in values:
            return Variable(name, _text(values[name]), source)
    return Variable(name, None, None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


ROUTES = [
    Route("POST", "/preview", preview, "Check a definition, fill its prompt, estimate its tokens", body=ToPreview, answer=Preview),
]  # fmt: skip

"""Tool calls for models that have none of their own: asked for by JSON Schema, one call a reply. Pure.

required -> the form of a call; none -> an answer; auto -> either. Servers obey `response_format` by grammar.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from .asking import Ask, AskedCall, Reply, UpstreamError


def translate(ask: Ask) -> tuple[Ask, dict[str, Any] | None]:
    """Return the request without tools, and the `response_format` that takes their place (None = free text)."""
    messages = _said_plainly(ask.messages, asking=bool(ask.tools) and ask.tool_choice != "none")
    form = response_format(ask)
    if ask.tools and ask.tool_choice != "none":
        messages = _with_tools(messages, ask)
    return replace(ask, messages=messages, tools=[], tool_choice="none"), form


def response_format(ask: Ask) -> dict[str, Any] | None:
    """Return the form of the reply: a call, an answer or either."""
    forms = [_call_form(tool.name, tool.schema) for tool in ask.tools] if ask.tool_choice != "none" else []
    if not forms:
        return _named("answer", ask.answer) if ask.answer else None
    if ask.tool_choice != "required":
        forms.append(
            {
                "type": "object",
                "properties": {"answer": ask.answer or {"type": "string"}},
                "required": ["answer"],
                "additionalProperties": False,
            }
        )
    return _named("reply", forms[0] if len(forms) == 1 else {"anyOf": forms})


def read(ask: Ask, reply: Reply) -> Reply:
    """Return the reply with the call that its text stands for, or with the answer out of its form.

    Raises UpstreamError: a call was required, or the reply ends in its middle, and it cannot be read: it is no answer.
    """
    if not ask.tools or ask.tool_choice == "none":
        return reply
    try:
        value = json.loads(reply.content)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and "tool" in value:
        call = AskedCall(str(value["tool"]), json.dumps(value.get("arguments", {})))
        return replace(reply, content="", calls=[call], finish="tool_calls")
    if isinstance(value, dict) and "answer" in value and ask.tool_choice != "required":
        answer = value["answer"]
        return replace(reply, content=answer if isinstance(answer, str) else json.dumps(answer))
    if ask.tool_choice == "required" or reply.finish == "length":
        raise _unreadable(reply)
    return reply


def _unreadable(reply: Reply) -> UpstreamError:
    cut = reply.finish == "length"
    said = "the model's reply was cut off in the middle of a call" if cut else "the model made no call that can be read"
    hint = "raise max_tokens of the agent's model" if cut else "ask for less at once, or use a larger model"
    error = UpstreamError("unreadable", said, hint=hint)
    error.used = (reply.tokens_in, reply.tokens_out)
    return error


def _call_form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    arguments = {"type": "object", **{key: value for key, value in schema.items() if key != "$schema"}}
    return {
        "type": "object", "properties": {"tool": {"const": name}, "arguments": arguments},
        "required": ["tool", "arguments"], "additionalProperties": False,
    }  # fmt: skip


def _named(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def _said_plainly(messages: list[dict[str, Any]], asking: bool) -> list[dict[str, Any]]:
    """Say calls and results in plain messages.

    Where a call is asked for, earlier ones stand in the form that is wanted; where an answer is, only their results do:
    a small model goes on in the form that it sees.
    """
    calls = {call["id"]: call["function"] for message in messages for call in message.get("tool_calls") or []}
    plain: list[dict[str, Any]] = []
    for message in messages:
        if message.get("tool_calls"):
            asked = [
                {"tool": c["function"]["name"], "arguments": _json(c["function"]["arguments"])}
                for c in message["tool_calls"]
            ]
            if asking:
                plain.append({"role": "assistant", "content": json.dumps(asked[0] if len(asked) == 1 else asked)})
            elif message.get("content"):
                plain.append({"role": "assistant", "content": message["content"]})
        elif message["role"] == "tool":
            call = calls.get(message["tool_call_id"], {"name": "The tool", "arguments": ""})
            given = _json(call["arguments"])
            values = ", ".join(str(value) for value in given.values()) if isinstance(given, dict) else str(given)
            _say(plain, f"{call['name']}({values}) = {message['content']}")
        elif message["role"] == "user":
            _say(plain, message["content"])
        else:
            plain.append(message)
    return plain


def _say(plain: list[dict[str, Any]], text: Any) -> None:
    """Add to what the user says: two messages of a user in a row are refused by some chat templates."""
    if plain and plain[-1]["role"] == "user" and isinstance(text, str) and isinstance(plain[-1]["content"], str):
        plain[-1] = {"role": "user", "content": f"{plain[-1]['content']}\n{text}"}
    else:
        plain.append({"role": "user", "content": text})


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _with_tools(messages: list[dict[str, Any]], ask: Ask) -> list[dict[str, Any]]:
    lines = []
    for tool in ask.tools:
        example = json.dumps({"tool": tool.name, "arguments": dict.fromkeys(tool.schema.get("properties", {}), "...")})
        lines.append(f"{tool.description.splitlines()[0] if tool.description else tool.name} Reply: {example}")
    text = "\n".join(lines)
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]

"""Tool calls for models that have none of their own: asked for by JSON Schema, one call a reply. Pure.

required -> the form of a call; none -> an answer; auto -> either. Servers obey `response_format` by grammar.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from .asking import Ask, AskedCall, Reply


def translate(ask: Ask) -> tuple[Ask, dict[str, Any] | None]:
    """Return the request without tools, and the `response_format` that takes their place (None = free text)."""
    names = {
        call["id"]: call["function"]["name"] for message in ask.messages for call in message.get("tool_calls") or []
    }  # fmt: skip
    messages = [_plain(message, names) for message in ask.messages]
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
    """Return the reply with the call that its text stands for, or with the answer out of its form."""
    if not ask.tools or ask.tool_choice == "none":
        return reply
    try:
        value = json.loads(reply.content)
    except (json.JSONDecodeError, RecursionError):
        return reply
    if not isinstance(value, dict):
        return reply
    if "tool" in value:
        call = AskedCall(str(value["tool"]), json.dumps(value.get("arguments", {})))
        return replace(reply, content="", calls=[call], finish="tool_calls")
    if "answer" in value:
        answer = value["answer"]
        return replace(reply, content=answer if isinstance(answer, str) else json.dumps(answer))
    return reply


def _call_form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    arguments = {"type": "object", **{key: value for key, value in schema.items() if key != "$schema"}}
    return {
        "type": "object", "properties": {"tool": {"const": name}, "arguments": arguments},
        "required": ["tool", "arguments"], "additionalProperties": False,
    }  # fmt: skip


def _named(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def _plain(message: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Say calls and their results in plain messages."""
    if message.get("tool_calls"):
        calls = [
            {"tool": c["function"]["name"], "arguments": _json(c["function"]["arguments"])}
            for c in message["tool_calls"]
        ]
        return {"role": "assistant", "content": json.dumps(calls[0] if len(calls) == 1 else calls)}
    if message["role"] == "tool":
        return {
            "role": "user",
            "content": f"{names.get(message['tool_call_id'], 'The tool')} returned: {message['content']}",
        }
    return message


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _with_tools(messages: list[dict[str, Any]], ask: Ask) -> list[dict[str, Any]]:
    lines = [
        f"- {tool.name}({', '.join(tool.schema.get('properties', {}))}): {tool.description.splitlines()[0] if tool.description else ''}"
        for tool in ask.tools
    ]
    how = 'To use one, reply with JSON: {"tool": name, "arguments": {...}}.'
    text = "Tools:\n" + "\n".join(lines) + "\n" + how
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]

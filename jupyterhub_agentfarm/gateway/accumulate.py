"""One tolerant reader for what OpenAI-compatible servers answer, whole or streamed. Pure; fed with decoded chunks.

Tolerates: index missing or always 0, ids missing, repeated or changing, arguments as an object, content null, usage absent,
cumulative or in a chunk of its own, a wrong or missing finish reason, `<think>` inline, an error object after HTTP 200.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .asking import AskedCall, Reply, UpstreamError


class Lines:
    """Bytes of a server-sent event stream -> the data of each event. Borders may lie inside a character."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data lines that are whole now; comments and blank lines are passed over."""
        self._rest += chunk
        *whole, self._rest = self._rest.split(b"\n")
        for line in whole:
            text = line.rstrip(b"\r").decode("utf-8", "replace")
            if text.startswith("data:"):
                yield text[5:].strip()

    def end(self) -> Iterator[str]:
        """Yield what stood in a last line without an end."""
        yield from self.feed(b"\n")


@dataclass
class _Call:
    index: int | None
    id: str
    name: str = ""
    arguments: str = ""
    whole: Any = None

    @property
    def finished(self) -> bool:
        """Say whether its arguments are a whole object already."""
        try:
            return self.whole is not None or isinstance(json.loads(self.arguments), dict)
        except (ValueError, RecursionError):
            return False


@dataclass
class Accumulator:
    """Takes chunks (or one whole answer) and becomes a Reply."""

    content: str = ""
    reasoning: str = ""
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    id: str = ""
    anything: bool = False
    _calls: list[_Call] = field(default_factory=list)

    @property
    def written(self) -> int:
        """Characters that have come so far."""
        return len(self.content) + len(self.reasoning) + sum(len(call.arguments) for call in self._calls)

    def chunk(self, value: Any) -> str:
        """Take in one chunk; return its new text. Raises UpstreamError: an error object, or no chunk at all."""
        try:
            return clean(self._chunk(value))
        except (
            AttributeError,
            TypeError,
            KeyError,
            IndexError,
        ) as error:  # a part is not of the kind that it should be
            raise UpstreamError("nonsense", "the model server sent something that is no chunk", retry=True) from error

    def _chunk(self, value: dict[str, Any]) -> str:
        if error := value.get("error") or (value if value.get("object") == "error" else None):
            text, code = (error.get("message"), error.get("code")) if isinstance(error, dict) else (error, 0)
            status = code if isinstance(code, int) and 400 <= code < 600 else 0
            message = f"the model server failed in its answer: {str(text)[:300]}"
            raise UpstreamError("failed", message, status=status, retry=True)
        self.model, self.id = str(value.get("model") or self.model), str(value.get("id") or self.id)
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        new = ""
        for choice in (value.get("choices") or [])[:1]:
            self.anything = True
            part = choice.get("delta") or choice.get("message") or {}
            new += self._text(part)
            for position, call in enumerate(part.get("tool_calls") or []):
                self._call(call, position)
            if isinstance(old := part.get("function_call"), dict):
                self._call({"function": old}, 0)
            self.finish = str(choice.get("finish_reason") or self.finish)
        return new

    def _text(self, part: dict[str, Any]) -> str:
        self.reasoning += part.get("reasoning_content") or part.get("reasoning") or ""
        content = part.get("content") or ""
        if isinstance(content, list):
            content = "".join(one.get("text", "") for one in content if isinstance(one, dict))
        self.content += content
        return str(content)

    def _call(self, delta: dict[str, Any], position: int) -> None:
        function = delta.get("function") or {}
        name, arguments = str(function.get("name") or ""), function.get("arguments")
        call = self._find(str(delta.get("id") or ""), delta.get("index"), name, position)
        call.name = call.name or name
        if isinstance(arguments, str):
            call.arguments += arguments
        elif arguments is not None:
            call.whole = arguments

    def _find(self, key: str, index: int | None, name: str, position: int) -> _Call:
        """By id first, then by index, then by order. What is in doubt stays one call: its arguments are no JSON then."""
        place = position if index is None else index
        known = next((call for call in reversed(self._calls) if key and call.id == key), None)
        if known is not None and name and index is not None and known.index != index:
            known = None  # one id for two calls
        elif known is None and not (key and name):
            same = [call for call in self._calls if call.index == place]
            known = same[-1] if same else (self._calls[-1] if self._calls and not name else None)
            if known is not None and name and known.name and (known.name != name or known.finished):
                known = None  # a name where the call has its own, and its arguments are whole: the next one begins
        if known is None:
            known = _Call(place, key)
            self._calls.append(known)
        return known

    def reply(self, prompt_text: int) -> Reply:
        """Return the reply. `prompt_text`: characters that were sent, for an estimate where no usage came.

        Raises UpstreamError: there was nothing in it.
        """
        if not self.anything:
            raise UpstreamError("nonsense", "the model server answered without a choice", retry=True)
        content, thought = _without_thoughts(clean(self.content))
        thought = clean(self.reasoning) + thought
        calls = [AskedCall(clean(call.name), clean(_arguments(call)), call.id) for call in self._calls if call.name]
        if not calls:
            content, calls = _calls_in_text(content)
        finish = (
            "tool_calls" if calls else ("stop" if self.finish in ("", "tool_calls", "function_call") else self.finish)
        )
        tokens_in, tokens_out = (self.usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        counted = isinstance(tokens_in, int) and isinstance(tokens_out, int) and tokens_in >= 0 and tokens_out >= 0
        if not counted:
            written = len(content) + sum(len(call.arguments) for call in calls) + len(thought)
            tokens_in, tokens_out = prompt_text // 4 + 1, written // 4 + 1
        return Reply(
            content=content, calls=calls, reasoning=thought, finish=clean(finish), model=clean(self.model), id=clean(self.id),
            tokens_in=int(tokens_in or 0), tokens_out=int(tokens_out or 0), estimated=not counted,
        )  # fmt: skip


def clean(text: str) -> str:
    """Return the text as it can be recorded: halves of a character that came as two escapes joined, others replaced."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _arguments(call: _Call) -> str:
    return call.arguments if call.whole is None else json.dumps(call.whole)


def _without_thoughts(text: str) -> tuple[str, str]:
    thoughts = "".join(re.findall(r"<think>(.*?)(?:</think>|$)", text, re.DOTALL))
    return re.sub(r"<think>.*?(?:</think>|$)", "", text, flags=re.DOTALL).strip() if thoughts else text, thoughts


def _calls_in_text(text: str) -> tuple[str, list[AskedCall]]:
    """Find calls that a server left in the text as <tool_call>{…}</tool_call>; only whole, readable ones count."""
    calls = []
    for found in re.findall(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", text, re.DOTALL):
        try:
            value = json.loads(found)
        except (ValueError, RecursionError):
            return text, []
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            calls.append(AskedCall(value["name"], json.dumps(value.get("arguments", {}))))
    return (re.sub(r"<tool_call>.*?</tool_call>", "", text, flags=re.DOTALL).strip() if calls else text), calls

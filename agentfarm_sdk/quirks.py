"""What OpenAI-compatible servers really put on the wire, quirk by quirk: bytes to replay, and what they come to.

with ScriptedServer(QUIRKS["index always 0"].wire) as server:      # agentfarm_sdk.testing
    ...                                                            # your client against server.url
The farm's own tests replay each of them against the gateway. `where` names the servers and reports that a quirk is from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

STREAM, JSON, HTML = "text/event-stream", "application/json", "text/html"


@dataclass(frozen=True)
class Wire:
    """What a server sends. `pieces` go out one by one; `cut`: the connection breaks behind them."""

    pieces: tuple[bytes, ...]
    status: int = 200
    kind: str = STREAM
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class Quirk:
    """`wire`, and what is to come of it: words and calls (name, arguments: an object, or None where none may be made of

    them), or the `error`: busy, down, failed, nonsense, no-credit, unauthorised, refused. `estimated`: the usage is a guess.
    """

    wire: Wire
    where: str
    content: str = ""
    calls: tuple[tuple[str, dict[str, Any] | None], ...] = ()
    reasoning: str = ""
    error: str = ""
    retry_after: float | None = None
    hint: str = ""
    estimated: bool = False


USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
DONE = b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chat completion chunk."""
    return {"id": "q", "object": "chat.completion.chunk", "model": "quirky", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}  # fmt: skip


def call(name: str | None = None, arguments: Any = None, **rest: Any) -> dict[str, Any]:
    """Return the delta of a call: `index` and `id` only where they are given."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{"type": "function", "function": function, **rest}]}


def stream(*chunks: Any, done: bytes = DONE, end: bytes = b"\n\n", cut: bool = False) -> Wire:
    """Return a stream of these chunks, one piece each."""
    return Wire((*(b"data: " + json.dumps(one).encode() + end for one in chunks), *([done] if done else [])), cut=cut)


def whole(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> Wire:
    """Return a whole answer."""
    body = {"id": "q", "model": "quirky", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE, **more}  # fmt: skip
    return Wire((json.dumps(body).encode(),), kind=JSON)


def refused(status: int, body: Any, kind: str = JSON, **headers: str) -> Wire:
    """Return an answer with an error's status."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Wire((raw,), status, kind, tuple((name.replace("_", "-"), value) for name, value in headers.items()))


def said(*words: str, finish: str | None = "stop") -> list[dict[str, Any]]:
    return [*(chunk({"content": word}) for word in words), chunk({}, finish, usage=USAGE)]


def _split(wire: Wire, at: Sequence[int]) -> Wire:
    """Return the same bytes in other pieces, cut at these places."""
    raw, ends = b"".join(wire.pieces), [0, *at, 10**9]
    return Wire(tuple(raw[a:b] for a, b in pairwise(ends) if raw[a:b]), kind=wire.kind)


END = chunk({}, "tool_calls", usage=USAGE)
LOOK, LOOKS = ("look", {"n": 1}), (("look", {"n": 1}), ("look", {"n": 2}))
ADD, PAY = '{"n": 1}', '{"n": 2}'
_UMLAUT = "data: " + json.dumps(chunk({"content": "Grüße 😀"}), ensure_ascii=False) + "\n\n"
_UMLAUTS = Wire((_UMLAUT.encode(), *stream(chunk({}, "stop", usage=USAGE)).pieces))

CALLS: dict[str, Quirk] = {
    "arguments split over chunks": Quirk(stream(chunk(call("look", '{"n"', index=0, id="a")), chunk(call(None, ": 1", index=0)), chunk(call(None, "}", index=0)), END), "vLLM, OpenAI", calls=(LOOK,)),
    "index missing": Quirk(stream(chunk(call("look", '{"n":', id="a")), chunk(call(None, " 1}")), chunk(call("look", PAY, id="b")), END), "several", calls=LOOKS),
    "index always 0": Quirk(stream(chunk(call("look", ADD, index=0, id="a")), chunk(call("look", PAY, index=0, id="b")), END), "ollama#7881", calls=LOOKS),
    "index always 0, no id": Quirk(stream(chunk(call("look", ADD, index=0)), chunk(call("look", PAY, index=0)), END), "Ollama", calls=LOOKS),
    "id missing": Quirk(stream(chunk(call("look", '{"n":', index=0)), chunk(call(None, " 1}", index=0)), chunk(call("look", PAY, index=1)), END), "llama.cpp", calls=LOOKS),
    "id repeated in every chunk": Quirk(stream(chunk(call("look", '{"n":', index=0, id="a")), chunk(call(None, " 1}", index=0, id="a")), END), "several", calls=(LOOK,)),
    "id and name repeated in every chunk": Quirk(stream(chunk(call("look", '{"n":', index=0, id="a")), chunk(call("look", " 1}", index=0, id="a")), END), "several", calls=(LOOK,)),
    "name repeated in every chunk, no id": Quirk(stream(chunk(call("look", '{"n":', index=0)), chunk(call("look", " 1}", index=0)), END), "several", calls=(LOOK,)),
    "one id for two calls": Quirk(stream(chunk(call("look", ADD, index=0, id="a")), chunk(call("look", PAY, index=1, id="a")), END), "several", calls=LOOKS),
    "id changing": Quirk(stream(chunk(call("look", '{"n":', index=0, id="a")), chunk(call(None, " 1}", index=0, id="b")), END), "several", calls=(LOOK,)),
    "two calls in turns": Quirk(stream(chunk(call("look", '{"n"', index=0, id="a")), chunk(call("look", '{"n"', index=1, id="b")), chunk(call(None, ": 1}", index=0)), chunk(call(None, ": 2}", index=1)), END), "vLLM", calls=LOOKS),
    "arguments an object": Quirk(stream(chunk(call("look", {"n": 1}, index=0)), END), "Ollama", calls=(LOOK,)),
    "arguments empty": Quirk(stream(chunk(call("look", "", index=0, id="a")), END), "several", calls=(("look", {}),)),
    "arguments bad JSON": Quirk(stream(chunk(call("look", '{"n": 1', index=0, id="a")), END), "small models", calls=(("look", None),)),
    "arguments with words around": Quirk(stream(chunk(call("look", 'Sure: {"n": 1}', index=0, id="a")), END), "small models", calls=(("look", None),)),
    "arguments encoded twice": Quirk(stream(chunk(call("look", json.dumps(ADD), index=0, id="a")), END), "several", calls=(LOOK,)),
    "arguments a list": Quirk(stream(chunk(call("look", "[1]", index=0, id="a")), END), "small models", calls=(("look", None),)),
    "arguments twice in one call": Quirk(stream(chunk(call("look", "{}", index=0, id="a")), chunk(call("look", ADD, index=0, id="a")), END), "proxies", calls=(("look", None),)),
    "finish reason stop with calls": Quirk(stream(chunk(call("look", ADD, index=0, id="a")), chunk({}, "stop", usage=USAGE)), "vllm#9209, #25054", calls=(LOOK,)),
    "finish reason null to the end": Quirk(stream(chunk(call("look", ADD, index=0, id="a")), chunk({}, None, usage=USAGE)), "vllm#27572, litellm#37792", calls=(LOOK,)),
    "whole call in one chunk": Quirk(stream(chunk({"role": "assistant", "content": None, **call("look", ADD, index=0, id="a")}, "tool_calls", usage=USAGE)), "Ollama", calls=(LOOK,)),
    "whole calls, not streamed": Quirk(whole({"content": None, "tool_calls": [{"function": {"name": "look", "arguments": {"n": n}}} for n in (1, 2)]}), "Ollama", calls=LOOKS),
    "call as text": Quirk(stream(*said('<tool_call>\n{"name": "look", "arguments": ', '{"n": 1}}\n</tool_call>')), "llama.cpp, a missing parser flag", calls=(LOOK,)),
    "call as text, broken": Quirk(stream(*said('<tool_call>{"name": "look", </tool_call>')), "llama.cpp", content='<tool_call>{"name": "look", </tool_call>'),
    "words and a call": Quirk(stream(chunk({"content": "Let me look."}), chunk(call("look", ADD, index=0, id="a")), END), "all", content="Let me look.", calls=(LOOK,)),
    "old function_call": Quirk(whole({"content": None, "function_call": {"name": "look", "arguments": ADD}}, "function_call"), "old proxies", calls=(LOOK,)),
}  # fmt: skip

WORDS: dict[str, Quirk] = {
    "content null": Quirk(whole({"role": "assistant", "content": None}), "all"),
    "content absent": Quirk(whole({"role": "assistant"}), "all"),
    "content a list of parts": Quirk(whole({"content": [{"type": "text", "text": "Yes."}]}), "Mistral", content="Yes."),
    "no role in the first delta": Quirk(stream(*said("Yes.")), "all", content="Yes."),
    "thoughts inline": Quirk(stream(*said("<think>so", " so</think>", "Yes.")), "DeepSeek, vLLM without a reasoning parser", content="Yes.", reasoning="so so"),
    "reasoning_content": Quirk(stream(chunk({"reasoning_content": "so"}), *said("Yes.")), "DeepSeek, vLLM", content="Yes.", reasoning="so"),
    "reasoning": Quirk(whole({"content": "Yes.", "reasoning": "so"}), "vLLM, OpenRouter", content="Yes.", reasoning="so"),
    "comments and blank lines": Quirk(Wire((b": OPENROUTER PROCESSING\n\n", b"\n", *stream(*said("Yes.")).pieces)), "OpenRouter", content="Yes."),
    "event and id lines": Quirk(Wire((b"event: message\nid: 7\n", *stream(*said("Yes.")).pieces)), "proxies", content="Yes."),
    "no space behind data": Quirk(Wire(tuple(piece.replace(b"data: ", b"data:") for piece in stream(*said("Yes.")).pieces)), "several", content="Yes."),
    "CRLF": Quirk(stream(*said("Yes."), end=b"\r\n\r\n"), "several", content="Yes."),
    "borders inside characters": Quirk(_split(_UMLAUTS, [_UMLAUT.encode().index(b"\xc3") + 1, _UMLAUT.encode().index(b"\xf0") + 2]), "all", content="Grüße 😀"),
    "everything in one piece": Quirk(_split(stream(*said("Ye", "s.")), []), "all", content="Yes."),
    "a byte a piece": Quirk(_split(stream(*said("Yes.")), range(1, 400)), "all", content="Yes."),
    "no [DONE]": Quirk(stream(*said("Yes."), done=b""), "several", content="Yes."),
    "no end of line at the end": Quirk(Wire((*stream(*said("Yes."), done=b"").pieces, b"data: [DONE]")), "several", content="Yes."),
    "no usage": Quirk(stream(chunk({"content": "Yes."}), chunk({}, "stop")), "Ollama, old vLLM", content="Yes.", estimated=True),
    "usage null": Quirk(stream(chunk({"content": "Yes."}, usage=None), chunk({}, "stop", usage=None)), "several", content="Yes.", estimated=True),
    "usage cumulative": Quirk(stream(chunk({"content": "Ye"}, usage={"prompt_tokens": 10, "completion_tokens": 1}), chunk({"content": "s."}, usage={"prompt_tokens": 10, "completion_tokens": 3}), chunk({}, "stop", usage=USAGE)), "vLLM with continuous_usage_stats", content="Yes."),
    "usage in a chunk without choices": Quirk(stream(chunk({"content": "Yes."}), chunk({}, "stop"), {"choices": [], "usage": USAGE}), "OpenAI, vLLM", content="Yes."),
    "finish reason tool_calls without calls": Quirk(stream(*said("Yes.", finish="tool_calls")), "several", content="Yes."),
}  # fmt: skip

FAILURES: dict[str, Quirk] = {
    "error object after 200": Quirk(Wire((json.dumps({"error": {"message": "overloaded", "code": 503}}).encode(),), kind=JSON), "routers", error="failed"),
    "error object in mid-stream": Quirk(stream(chunk({"content": "Ye"}), {"error": {"message": "provider gone"}}), "OpenRouter", error="failed"),
    "error object of vLLM": Quirk(Wire((json.dumps({"object": "error", "message": "EngineDeadError", "code": 500}).encode(),), kind=JSON), "vLLM", error="failed"),
    "credit gone, after 200": Quirk(Wire((json.dumps({"error": {"message": "Insufficient balance", "code": 402}}).encode(),), kind=JSON), "hub-docs#2392", error="no-credit"),
    "dies in mid-stream": Quirk(stream(chunk({"content": "Ye"}), done=b"", cut=True), "any provider", error="down"),
    "dies in a whole answer": Quirk(Wire((b'{"choices": [{"message": {"conte',), kind=JSON, cut=True), "any provider", error="down"),
    "ends without an end": Quirk(stream(chunk({"content": "Ye"}), done=b""), "proxies with a time limit", error="down"),
    "429 with seconds": Quirk(refused(429, {"error": {"message": "slow down"}}, Retry_After="7"), "all", error="busy", retry_after=7.0),
    "429 with a date": Quirk(refused(429, {"error": {"message": "slow down"}}, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"), "RFC 9110", error="busy", retry_after=0.0),
    "429 without Retry-After": Quirk(refused(429, {"error": {"message": "slow down"}}), "all", error="busy"),
    "402": Quirk(refused(402, {"error": "You have exceeded your monthly included credits"}), "Hugging Face", error="no-credit"),
    "401": Quirk(refused(401, {"error": "Invalid username or password."}), "Hugging Face", error="unauthorised"),
    "HTML with 502": Quirk(refused(502, b"<html><h1>Bad Gateway</h1></html>", HTML), "nginx", error="failed"),
    "HTML with 200": Quirk(Wire((b"<html>Welcome</html>",), kind=HTML), "a wrong address", error="nonsense", hint="/v1"),
    "a chunk that is no JSON": Quirk(Wire((b"data: {oops\n\n", DONE)), "proxies", error="nonsense"),
    "no choices": Quirk(Wire((b'{"choices": []}',), kind=JSON), "several", error="nonsense"),
    "vLLM without a tool parser": Quirk(refused(400, {"object": "error", "message": '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', "code": 400}), "vLLM", error="refused", hint="--enable-auto-tool-choice --tool-call-parser"),
    "llama.cpp without jinja": Quirk(refused(500, {"error": {"message": "tools param requires --jinja flag", "code": 500}}), "llama.cpp", error="refused", hint="--jinja"),
}  # fmt: skip

QUIRKS: dict[str, Quirk] = {**CALLS, **WORDS, **FAILURES}

"""The gateway's front: OpenAI's chat completions for runs, with what the farm adds under `agentfarm`; the models' list."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from agentfarm_sdk.protocol import MAX_APPEND_BYTES, ModelAnswer, ModelRequest

from ..errors import Invalid
from ..records import new_id
from ..store import ledger
from .asking import Asker
from .base import as_problem
from .feed import KEEPALIVE_SECONDS, Sse
from .routes import Call, Empty, Route
from .runs import own_run


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """`agentfarm`: a ModelRequest. A plain OpenAI request gives `messages`; the run's version says model and tools."""

    agentfarm: ModelRequest | None = None
    messages: list[dict[str, Any]] | None = None
    stream: bool = False
    model: str = ""


async def completions(call: Call) -> None:
    body: Asked = call.body
    request = body.agentfarm or await _plain(call, body)
    own_run(call.asker, request.run, request.fence)
    if body.stream or request.stream:
        await _streamed(call, request)
        return
    answer = await call.parts.models.model(request)
    call.handler.set_header("Content-Type", "application/json; charset=utf-8")
    call.handler.finish(msgspec.json.encode(completion(answer)))


async def _plain(call: Call, body: Asked) -> ModelRequest:
    """Turn a plain OpenAI request into one of the run whose token asks; an Idempotency-Key is its id."""
    asker: Asker = call.asker
    if not body.messages or asker.claims is None:
        raise Invalid("messages are missing - at `$.messages`", hint="OpenAI's messages, or agentfarm: a ModelRequest")
    run = await call.read(lambda c: ledger.read_run(c, asker.name))
    request = call.handler.request.headers.get("Idempotency-Key") or new_id("req")
    return ModelRequest(
        run=run.run_id, fence=asker.claims.f, request=request[:255], n=run.last_n, messages=body.messages, stream=body.stream
    )  # fmt: skip


def completion(answer: ModelAnswer) -> dict[str, Any]:
    """Return the answer in OpenAI's form; `agentfarm` holds the whole of it."""
    finish = "tool_calls" if answer.message.get("tool_calls") else "stop"
    used_in, used_out = int(answer.usage.get("input", 0)), int(answer.usage.get("output", 0))
    return {
        "id": answer.request, "object": "chat.completion", "created": int(time.time()), "model": "",
        "choices": [{"index": 0, "message": answer.message, "finish_reason": finish}],
        "usage": {"prompt_tokens": used_in, "completion_tokens": used_out, "total_tokens": used_in + used_out},
        "agentfarm": answer,
    }  # fmt: skip


async def _streamed(call: Call, request: ModelRequest) -> None:
    """Stream the tokens, which are for the eye; then what was committed, as `agentfarm.admitted`; then [DONE]."""
    tokens: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    asking = asyncio.create_task(call.parts.models.model(request, tokens.put_nowait))
    stream: Sse | None = None
    said = False
    while not (asking.done() and tokens.empty()):
        waiting = asyncio.ensure_future(tokens.get())
        await asyncio.wait({waiting, asking}, timeout=KEEPALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            stream = stream or Sse(call.handler)
            token = waiting.result()
            said = said or bool(token.get("text"))
            await stream.send(_chunk(request, {"content": token.get("text", "")}))
            continue
        waiting.cancel()
        if not asking.done():
            stream = stream or Sse(call.handler)
            await stream.comment()
    error = asking.exception()
    if error is not None and stream is None:
        raise error
    stream = stream or Sse(call.handler)
    if error is not None:
        await stream.send({"error": as_problem(error).problem()}, "error")
        return
    answer = asking.result()
    last = {key: value for key, value in answer.message.items() if key != "content" or not said}
    finish = "tool_calls" if answer.message.get("tool_calls") else "stop"
    await stream.send(_chunk(request, last, finish))
    await stream.send(answer, "agentfarm.admitted")
    call.handler.finish(b"data: [DONE]\n\n")


def _chunk(request: ModelRequest, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    if "tool_calls" in delta:
        delta = {**delta, "tool_calls": [{"index": i, **one} for i, one in enumerate(delta["tool_calls"])]}
    return {
        "id": request.request, "object": "chat.completion.chunk", "created": int(time.time()), "model": "",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }  # fmt: skip


async def models(call: Call) -> dict[str, Any]:
    return {"object": "list", "data": await call.parts.models.upstreams.listed()}


ROUTES = [
    Route("POST", "/model/v1/chat/completions", completions, "Ask the model for a run's next step", who="run", body=Asked, streams=True, limit=MAX_APPEND_BYTES),
    Route("GET", "/model/v1/models", models, "The models that can be asked for", who="reader", query=Empty, answer=dict[str, Any]),
]  # fmt: skip

"""One request, one reply. This file alone knows the wire format of a model.

`GatewayModel` asks the farm, which records the reply and admits its calls before it answers. Other models live in the
kernel: what they said is reported by the worker (`model.reported`), and is shown as unattested.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from . import settings
from .errors import AgentFarmError, Invalid, Transient, Unauthenticated
from .protocol import AdmittedCall, Definition, Event, ModelAnswer, ModelRequest, call_id

REPLY_SECONDS = 600.0  # the longest that a model may think


@dataclass(frozen=True)
class Question:
    """What a model is asked with. `messages` are OpenAI chat messages; `n` is the worker's last append."""

    request: str
    n: int
    step: int
    messages: list[dict[str, Any]]
    definition: Definition


@dataclass(frozen=True)
class Reply:
    """What it said. `calls` and `inbox` come from the gateway only."""

    message: dict[str, Any]
    finish: str = "stop"
    usage: dict[str, Any] = field(default_factory=dict)
    cost: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)
    calls: list[AdmittedCall] = field(default_factory=list)
    inbox: list[Event] = field(default_factory=list)


class Model(Protocol):
    """`attested`: the farm recorded the reply itself."""

    attested: bool

    async def reply(self, question: Question) -> Reply: ...


class GatewayModel:
    """The farm's models, through the gateway. `request` sends an op of the worker protocol."""

    attested = True

    def __init__(self, run: str, fence: int, request: Callable[[str, Any], Awaitable[msgspec.Raw]]) -> None:
        self._run, self._fence, self._request = run, fence, request

    async def reply(self, question: Question) -> Reply:
        asked = ModelRequest(run=self._run, fence=self._fence, request=question.request, n=question.n)
        answer = msgspec.json.decode(await self._request("model", asked), type=ModelAnswer)
        news = [*answer.inbox, *answer.after]
        return Reply(answer.message, usage=answer.usage, calls=answer.calls, inbox=news)


class OpenAIModel:
    """An OpenAI-compatible server, asked from this kernel; for runs outside a farm."""

    attested = False

    def __init__(self, url: str, name: str = "", key: str = "") -> None:
        self.url, self.name, self._key = url.rstrip("/"), name, key

    def __repr__(self) -> str:  # never the key
        return f"OpenAIModel({self.url!r}, {self.name!r})"

    async def reply(self, question: Question) -> Reply:
        import httpx

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            async with httpx.AsyncClient(timeout=REPLY_SECONDS) as client:
                response = await client.post(
                    f"{self.url}/chat/completions", json=chat_request(question, self.name), headers=headers
                )
        except httpx.InvalidURL as error:
            raise Invalid(f"{self.url!r} is not an address", hint="set AGENTFARM_MODEL_URL") from error
        except httpx.HTTPError as error:
            raise Transient(f"the model at {self.url} cannot be reached: {error or type(error).__name__}") from error
        if response.status_code != 200:
            raise refusal(response.status_code, response.text, self.url, response.headers.get("retry-after", ""))
        return read_reply(response.content, self.url)


def model_from_environment(name: str = "") -> OpenAIModel:
    """Return the model of a run outside a farm. Raises Invalid where the environment names none."""
    address = settings.model_address()
    if address is None:
        raise Invalid(
            "no model is named, and there is no farm here",
            hint="set AGENTFARM_MODEL_URL to an OpenAI-compatible server (http://127.0.0.1:11434/v1 for Ollama), or "
            "HUGGING_FACE_AUTH_TOKEN; or give Agent(model=...)",
        )
    return OpenAIModel(address[0], name, address[1])


def chat_request(question: Question, name: str) -> dict[str, Any]:
    """Return the body of a chat completion request."""
    definition = question.definition
    body: dict[str, Any] = {"model": definition.model.name or name, "messages": question.messages}
    body |= definition.model.parameters
    choice = definition.choice_at(question.step)
    if definition.tools and choice != "none":
        body["tools"] = [
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.schema}}
            for t in definition.tools
        ]
        body["tool_choice"] = choice
    elif definition.answer is not None:
        schema = {"name": "answer", "schema": definition.answer}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def refusal(status: int, text: str, url: str, retry_after: str) -> AgentFarmError:
    """Return the error that a status of a model's server stands for."""
    said = f"the model at {url} answered {status}: {text[:300]}"
    if status in (401, 403):
        return Unauthenticated(said, hint="check the key: AGENTFARM_MODEL_KEY or HUGGING_FACE_AUTH_TOKEN")
    if status in (408, 425, 429) or status >= 500:
        return Transient(said, retry_after=float(retry_after) if retry_after.isdigit() else 1.0)
    return Invalid(said, hint="check the model's name and parameters")


class _Function(msgspec.Struct):
    name: str
    arguments: Any = ""


class _Asked(msgspec.Struct):
    function: _Function


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Asked] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None
    model: str = ""
    id: str = ""


def read_reply(data: bytes, url: str) -> Reply:
    """Read a chat completion. Raises Transient: it is none."""
    try:
        answer = msgspec.json.decode(data, type=_Completion)
        choice = answer.choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
        raise Transient(f"the model at {url} answered nonsense: {error}") from error
    message: dict[str, Any] = {"role": "assistant", "content": choice.message.content}
    if choice.message.tool_calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": one.function.name, "arguments": _text(one.function.arguments)}}
            for one in choice.message.tool_calls
        ]
    usage = {"input": 0, "output": 0, "estimated": True}
    if answer.usage is not None:
        usage = {"input": answer.usage.prompt_tokens, "output": answer.usage.completion_tokens, "estimated": False}
    source = {"upstream": url, "model": answer.model, "provider": None, "id": answer.id}
    return Reply(message, finish=choice.finish_reason or "stop", usage=usage, provenance=source)


def numbered(message: dict[str, Any], step: int) -> dict[str, Any]:
    """Return the message with our own call ids: a model's may repeat, or be missing."""
    calls = message.get("tool_calls")
    if not calls:
        return {"role": "assistant", "content": message.get("content") or ""}
    own = [
        {"id": call_id(step, index), "type": "function", "function": one["function"]} for index, one in enumerate(calls)
    ]
    return {"role": "assistant", "content": message.get("content"), "tool_calls": own}


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()

"""Any OpenAI-compatible server: the Hugging Face router, vLLM, Ollama, llama.cpp, TGI and the embedded one.

One attempt for each call; who retries is proxy.py, visibly. The key never reaches an event, a log or an error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from .. import schema_mode
from ..accumulate import Accumulator, Lines
from ..asking import Ask, OnToken, Reply, UpstreamError
from . import catalog
from .catalog import Entry, Price

log = logging.getLogger(__name__)
CATALOG_SECONDS, CATALOG_AGAIN = 3600.0, 60.0  # how long a list holds; when it is asked for again after a failure

MEDIA_CHARACTERS = 4000  # about a thousand tokens
MAX_ANSWER_BYTES = 16 * 1024 * 1024
# What a request can do without, where a server names it in a refusal. tool_choice: it is left to the model then.
OPTIONAL = ("parallel_tool_calls", "tool_choice", "response_format", "strict", "seed", "stream_options")
_NO_TOOLS = ("tool", "function call", "--enable-auto-tool-choice", "--jinja")


@dataclass(frozen=True)
class Settings:
    """How to reach a server. prices: USD per million tokens, {model: (in, out)}, "*" for all others; timeouts in seconds.

    inputs: what models take besides text, {model: ("image", "file")}. catalog: its /models tells prices and inputs of those
    that are not named here.

    native_tools: True, False, or None = try, and ask by JSON Schema from the server's first refusal on.
    """

    name: str
    url: str  # up to and with /v1
    key: str = ""
    models: tuple[str, ...] = ("*",)
    native_tools: bool | None = None
    max_in_flight: int = 8
    prices: dict[str, tuple[float, float]] = field(default_factory=dict)
    connect_timeout: float = 10.0
    silence_timeout: float = 120.0  # between two pieces of a stream
    max_tokens: int | None = None  # where the request says nothing
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    catalog: bool = False
    context: dict[str, int] = field(default_factory=dict)  # tokens that models can take; "*" for all others
    note: str = ""  # shown to people beside its models


class OpenAICompatible:
    """One server, one pool of connections."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name, self.max_in_flight = settings.name, settings.max_in_flight
        self.native_tools = settings.native_tools
        self.lacks: dict[str, set[str]] = {}  # model -> parameters that the server has refused
        self.refused: Callable[[str, str], None] = lambda model, parameter: None  # told of each new one
        self._catalog: dict[str, Entry] = {}
        self._catalog_at = 0.0  # monotonic seconds
        self._reading: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def complete(self, ask: Ask, on_token: OnToken | None) -> Reply:
        """Make one attempt. Raises UpstreamError; `unsupported`: the next one leaves out what the server has said it lacks."""
        lacks, reading = self.lacks.setdefault(ask.model, set()), self._look_up()
        if not ask.tools or (self.native_tools is not False and "tools" not in lacks):
            plain, body, hidden = ask, self._body(ask, lacks), False
        else:
            plain, form = schema_mode.translate(ask)
            body = self._body(plain, lacks)
            if form and "response_format" not in lacks:
                body["response_format"] = form
            hidden = form is not None  # the JSON of a call is not for the eye
        try:
            reply = await self._attempt(plain, body, None if hidden else on_token)
        except UpstreamError as error:
            missing = lacking(error, body)
            if missing is None or missing in lacks or (missing == "tools" and self.native_tools):
                raise
            lacks.add(missing)
            self.refused(ask.model, missing)
            message = f"{self.name} does not take {missing} for {ask.model}: {error.message}"
            raise UpstreamError("unsupported", message, status=error.status, retry=True, retry_after=0.0) from error
        if reading is not None:  # it went beside the attempt: the reply's price is in it
            await asyncio.shield(reading)
        return reply if plain is ask else schema_mode.read(ask, reply)

    def _body(self, ask: Ask, lacks: Collection[str]) -> dict[str, Any]:
        model = f"{ask.model}:{ask.provider}" if ask.provider else ask.model
        body: dict[str, Any] = {"model": model, "messages": ask.messages, **ask.parameters}
        if self.settings.max_tokens and "max_tokens" not in body:
            body["max_tokens"] = self.settings.max_tokens
        if "max_tokens" in lacks and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
        if ask.tools and ask.tool_choice != "none":
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.schema or {"type": "object"},
                    },
                }
                for tool in ask.tools
            ]
            body["tool_choice"] = "auto" if "tool_choice" in lacks else ask.tool_choice
        elif ask.answer:
            strict = {} if "strict" in lacks else {"strict": True}
            form = {"type": "json_schema", "json_schema": {"name": "answer", **strict, "schema": ask.answer}}
            body["response_format"] = form
        return {name: value for name, value in body.items() if name not in lacks or name == "tool_choice"}

    async def _attempt(self, ask: Ask, body: dict[str, Any], on_token: OnToken | None) -> Reply:
        if on_token is not None:
            body["stream"] = True
            if "stream_options" not in self.lacks.get(ask.model, ()):
                body["stream_options"] = {"include_usage": True}
        accumulator = Accumulator()
        try:
            return await self._exchange(ask, body, accumulator, on_token)
        except UpstreamError as error:
            if error.kind == "failed" and error.status in _STATUS:  # an error object after HTTP 200: by its own code
                error.kind, error.hint, error.retry = _STATUS[error.status]
            if (
                accumulator.anything or error.kind == "slow"
            ):  # the provider has begun, or nobody knows: it may well bill that
                error.used = (_characters(ask) // 4 + 1, accumulator.written // 4)
            raise

    async def _exchange(
        self, ask: Ask, body: dict[str, Any], accumulator: Accumulator, on_token: OnToken | None
    ) -> Reply:
        try:
            async with self._client().post(f"{self.settings.url}/chat/completions", json=body) as response:
                if response.status >= 400:
                    raise await _refusal(response, self.settings)
                if response.content_type == "text/event-stream":
                    await self._stream(response, accumulator, on_token)
                else:
                    accumulator.chunk(await _json(response, self.name))
                provider = response.headers.get("x-inference-provider", "") or (ask.provider or "")
        except asyncio.TimeoutError as error:
            raise UpstreamError(
                "slow",
                f"the model server {self.name} did not answer in time",
                hint="see whether it is overloaded",
                retry=True,
            ) from error
        except aiohttp.ClientError as error:
            raise UpstreamError(
                "down",
                f"the model server {self.name} cannot be reached or broke off ({type(error).__name__})",
                hint="start it, or check its address",
                retry=True,
            ) from error
        reply = accumulator.reply(0 if accumulator.usage else _characters(ask))
        return replace(reply, provider=provider, model=accumulator.model or ask.model, asked=ask.model)

    async def _stream(
        self, response: aiohttp.ClientResponse, accumulator: Accumulator, on_token: OnToken | None
    ) -> None:
        lines, seen = Lines(), 0
        async for data in _events(response, lines):
            seen += len(data)
            if seen > MAX_ANSWER_BYTES:
                raise UpstreamError("nonsense", f"the model server {self.name} does not end its answer")
            if data == "[DONE]":
                return
            try:
                chunk = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise UpstreamError(
                    "nonsense", f"the model server {self.name} sent a chunk that is not JSON", retry=True
                ) from error
            text = accumulator.chunk(chunk)
            if text and on_token is not None:
                on_token({"text": text})
        if not accumulator.finish:  # neither [DONE] nor a finish reason: it broke off
            raise UpstreamError(
                "down", f"the model server {self.name} broke off in the middle of its answer", retry=True
            )

    async def models(self) -> list[dict[str, Any]]:
        """Return what the server lists. Raises UpstreamError."""
        try:
            async with self._client().get(
                f"{self.settings.url}/models", timeout=aiohttp.ClientTimeout(total=10)
            ) as response:
                if response.status >= 400:
                    raise await _refusal(response, self.settings)
                listed = (await _json(response, self.name)).get("data") or []
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise UpstreamError("down", f"the model server {self.name} cannot be reached", retry=True) from error
        return [model for model in listed if isinstance(model, dict) and model.get("id")]

    def cost(self, reply: Reply) -> float | None:
        price = self._price(reply.asked, reply.provider) or self._price(reply.model, reply.provider)
        return None if price is None else (reply.tokens_in * price[0] + reply.tokens_out * price[1]) / 1e6

    async def price(self, model: str, provider: str | None) -> Price | None:
        if (reading := self._look_up()) is not None:
            await asyncio.shield(reading)
        return self._price(model, provider)

    async def inputs(self, model: str) -> frozenset[str]:
        """Return what the model takes: text, and perhaps image and file."""
        if (reading := self._look_up()) is not None:
            await asyncio.shield(reading)
        named = self.settings.inputs.get(model) or self.settings.inputs.get("*")
        if named is not None:
            return frozenset({"text", *named})
        return self._catalog.get(model, Entry()).inputs

    async def context(self, model: str, provider: str | None) -> int | None:
        """Return the tokens that the model can take: by the operator's word, or by the router's list."""
        if (named := self.settings.context.get(model) or self.settings.context.get("*")) is not None:
            return named
        if (reading := self._look_up()) is not None:
            await asyncio.shield(reading)
        return self._catalog.get(model, Entry()).context(provider)

    def _price(self, model: str, provider: str | None) -> Price | None:
        """By the operator's word for the model, by the router's list, by the operator's word for all."""
        named = self.settings.prices.get(model) or self._catalog.get(model, Entry()).price(provider)
        return named or self.settings.prices.get("*")

    def _look_up(self) -> asyncio.Task[None] | None:
        """Read the router's list where it is old; None where there is nothing to wait for."""
        if self.settings.catalog and (self._reading is None or self._reading.done()):
            if self._catalog_at and time.monotonic() - self._catalog_at < CATALOG_SECONDS:
                return None
            self._reading = asyncio.create_task(self._read_catalog())
        return self._reading if self.settings.catalog else None

    async def _read_catalog(self) -> None:
        # Also where it fails: then models have no price for so long, and runs say so.
        self._catalog_at = time.monotonic()
        try:
            self._catalog = catalog.read(await self.models())
        except UpstreamError as error:
            log.warning("the list of models of %s cannot be read: %s", self.name, error.message)
            self._catalog_at += CATALOG_AGAIN - CATALOG_SECONDS

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            headers = {"Authorization": f"Bearer {self.settings.key}"} if self.settings.key else {}
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=self.settings.connect_timeout, sock_read=self.settings.silence_timeout
            )
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
            near = is_loopback(self.settings.url)  # what is on this machine is not asked through a proxy
            self._session = aiohttp.ClientSession(
                headers=headers, timeout=timeout, connector=connector, trust_env=not near
            )
        return self._session


async def _events(response: aiohttp.ClientResponse, lines: Lines) -> AsyncIterator[str]:
    async for chunk in response.content.iter_any():
        for data in lines.feed(chunk):
            yield data
    for data in lines.end():
        yield data


async def _json(response: aiohttp.ClientResponse, name: str) -> dict[str, Any]:
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > MAX_ANSWER_BYTES:
            raise UpstreamError("nonsense", f"the answer of {name} is too long", status=response.status)
    try:
        value = json.loads(b"".join(pieces))
    except (ValueError, RecursionError) as error:
        raise UpstreamError(
            "nonsense",
            f"{name} answered something that is not JSON",
            hint="is its address right? It ends in /v1",
            status=response.status,
            retry=True,
        ) from error
    if not isinstance(value, dict):
        raise UpstreamError("nonsense", f"{name} answered something that is no chat completion", status=response.status)
    return value


_STATUS: dict[int, tuple[str, str, bool]] = {
    401: ("unauthorised", "check the key of this model server", False),
    402: ("no-credit", "add credit at the provider, or choose another model", False),
    403: ("unauthorised", "the key may not use this model", False),
    404: ("not-found", "check the model's name and the server's address (it ends in /v1)", False),
    408: ("slow", "try again", True),
    413: ("refused", "the messages are too long for this model", False),
    429: ("busy", "the provider limits requests", True),
}


async def _refusal(response: aiohttp.ClientResponse, settings: Settings) -> UpstreamError:
    text = (await response.content.read(4096)).decode("utf-8", "replace")
    if settings.key:
        text = text.replace(settings.key, "***")  # some servers say which key they refuse
    try:
        value = json.loads(text)
        error = value.get("error", value) if isinstance(value, dict) else value
        said = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError):
        said = "a page that is no JSON" if "<" in text else text
    kind, hint, retry = _STATUS.get(
        response.status,
        ("failed", "see the model server's log", True) if response.status >= 500 else ("refused", "", False),
    )
    if "--enable-auto-tool-choice" in said:
        hint = "start vLLM with --enable-auto-tool-choice --tool-call-parser NAME"
    elif "--jinja" in said:
        kind, hint, retry = "refused", "start llama.cpp's server with --jinja", False
    return UpstreamError(
        kind,
        f"{settings.name} answered {response.status}: {said[:300]}",
        hint=hint,
        status=response.status,
        retry=retry,
        retry_after=retry_after(response.headers.get("Retry-After", ""), time.time()),
    )


def lacking(error: UpstreamError, body: dict[str, Any]) -> str | None:
    """Return the part of the request that a refusal names, None where it names none that can be done without. Pure."""
    said = error.message.lower()
    if error.status not in (400, 422, 501) and not (error.status == 500 and "--jinja" in said):
        return None
    if "max_completion_tokens" in said and "max_tokens" in body:
        return "max_tokens"
    sent = {*body, *(("strict",) if "json_schema" in body.get("response_format", {}) else ())}
    for name in OPTIONAL:
        if name in sent and re.search(rf"(?<![\w-]){name}(?![\w-])", said) and body.get(name) != "auto":
            return name
    return "tools" if "tools" in body and any(word in said for word in _NO_TOOLS) else None


def _characters(ask: Ask) -> int:
    """Return how much text is asked with; an image or a file counts as MEDIA_CHARACTERS."""
    found = 0
    for message in ask.messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            found += sum(len(one.get("text", "")) if one.get("type") == "text" else MEDIA_CHARACTERS for one in content)
        else:
            found += len(str(content))
    return found


def retry_after(header: str, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number or a date; None where it says neither."""
    if header.replace(".", "", 1).isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, TypeError):
        return None


def is_loopback(url: str) -> bool:
    """Say whether an address is of this machine."""
    name = urlsplit(url).hostname or ""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")

"""What the gateway asks an upstream, what comes back, and what goes wrong: plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentfarm_sdk.protocol import ToolSpec

OnToken = Callable[[dict[str, Any]], None]  # {"text": …} or {"reasoning": …}; for the eye only


@dataclass(frozen=True)
class Ask:
    """One model request. `messages` are OpenAI chat messages; `tool_choice`: auto, required or none."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[ToolSpec] = field(default_factory=list)
    tool_choice: str = "auto"
    parameters: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] | None = None  # JSON Schema of a structured answer
    provider: str | None = None


@dataclass(frozen=True)
class AskedCall:
    """A call as the model wrote it. `arguments`: JSON text, unchecked."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class Reply:
    """A whole reply. tokens_in, tokens_out: counted by the upstream, or `estimated` from the text."""

    content: str
    calls: list[AskedCall] = field(default_factory=list)
    reasoning: str = ""
    finish: str = "stop"
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False
    model: str = ""  # as the upstream names it
    asked: str = ""  # as it was asked for
    provider: str = ""
    id: str = ""


class UpstreamError(Exception):
    """An attempt failed. `kind`: down, slow, nonsense, refused, unauthorised, no-credit, not-found, busy, failed, unsupported.

    `retry`: whether another attempt may help; `retry_after`: seconds that the upstream asks for. `used`: tokens in and out
    that were probably paid for all the same, where it broke off in its answer.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        hint: str = "",
        status: int = 0,
        retry: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.hint, self.status = kind, message, hint, status
        self.retry, self.retry_after = retry, retry_after
        self.used: tuple[int, int] | None = None


class Upstream(Protocol):
    """A model server. `name` is the operator's; `max_in_flight` requests go to it at once."""

    name: str
    max_in_flight: int

    async def complete(self, ask: Ask, on_token: OnToken | None) -> Reply:
        """Make one attempt. Raises UpstreamError."""
        ...

    async def models(self) -> list[dict[str, Any]]:
        """Return [{"id", "capabilities"?}]. Raises UpstreamError."""
        ...

    def cost(self, reply: Reply) -> float | None:
        """Return USD for a reply; None where the model has no price."""
        ...

    async def price(self, model: str, provider: str | None) -> tuple[float, float] | None:
        """Return USD per million tokens, in and out, at most; None where the model has no price."""
        ...

    async def inputs(self, model: str) -> frozenset[str]:
        """Return what the model takes: text, image, file."""
        ...

    async def context(self, model: str, provider: str | None) -> int | None:
        """Return how many tokens the model can take, with its reply; None where nobody knows."""
        ...

    async def close(self) -> None: ...

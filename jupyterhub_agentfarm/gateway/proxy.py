"""The model servers of the farm: which one serves a model, whose turn it is, what they list."""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentfarm_sdk.protocol import Retry

from ..errors import NotFound, Transient
from .asking import Ask, OnToken, Reply, Upstream, UpstreamError
from .turns import Turns

LONGEST_PAUSE = 8.0  # seconds between two attempts, where the server asks for none
AGAIN_SECONDS = 10.0  # how often a server that is away is looked for, while somebody looks at the farm
AWAY = {"down": "cannot be reached", "unauthorised": "refuses the farm's key", "no-credit": "has no credit left"}


@dataclass(frozen=True)
class Route:
    """An upstream and the model names that go to it (shell patterns)."""

    upstream: Upstream
    models: tuple[str, ...] = ("*",)
    note: str = ""


class Upstreams:
    """All model servers, in the order of the operator's configuration; `default` is the model of agents that name none."""

    def __init__(self, routes: Sequence[Route], default: str = "") -> None:
        self.routes = list(routes)
        self._default = default
        self._turns = {id(route.upstream): Turns(route.upstream.max_in_flight) for route in self.routes}
        self._away: dict[str, str] = {}  # by name, which kind of error the latest attempt came to
        self._looked_at = 0.0  # monotonic seconds
        self._looking: asyncio.Task[None] | None = None

    @property
    def away(self) -> dict[str, str]:
        """By name of the model servers that serve nobody at the moment: what is with them, in words."""
        return {name: f"the model server {name} {AWAY[kind]}" for name, kind in self._away.items()}

    def look_again(self) -> None:
        """Have those that could not be reached looked for, without waiting: nobody may have asked a model since they are back."""
        due = time.monotonic() - self._looked_at > AGAIN_SECONDS
        if "down" in self._away.values() and due and (self._looking is None or self._looking.done()):
            self._looked_at = time.monotonic()
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        for route in self.routes:
            if self._away.get(route.upstream.name) == "down":
                try:
                    await route.upstream.models()
                except UpstreamError as error:
                    self._note(route, error.kind)
                else:
                    self._note(route, "")

    def _note(self, route: Route, kind: str) -> None:
        """Keep how the latest attempt went: what other kinds of errors say of a request says nothing of the server."""
        if kind in AWAY:
            self._away[route.upstream.name] = kind
        else:
            self._away.pop(route.upstream.name, None)

    @property
    def default(self) -> str:
        """The farm's default model; "" where there is none."""
        if self._default:
            return self._default
        return next((name for route in self.routes for name in route.models if "*" not in name), "")

    def route(self, model: str) -> tuple[Route, str]:
        """Return who serves the model ("" = the default), and its full name. Raises NotFound, Transient."""
        if not self.routes:
            raise Transient(
                "this farm has no model",
                hint="set HF_API_URL and HUGGING_FACE_AUTH_TOKEN, or c.AgentFarm.upstreams in agentfarm_config.py",
                retry_after=60,
            )
        name = model or self.default
        exact = [route for route in self.routes if name in route.models]
        found = exact or [
            route for route in self.routes if any(fnmatch.fnmatchcase(name, pattern) for pattern in route.models)
        ]
        if not found or not name:
            served = sorted({pattern for route in self.routes for pattern in route.models})
            raise NotFound(
                f"no model server serves {name or 'the default model'!r}",
                hint="served: " + ", ".join(served) + "; see: agentfarm model list",
            )
        return found[0], name

    async def attempt(self, route: Route, ask: Ask, owner: str, on_token: OnToken | None) -> Reply:
        """Wait for a turn and make one attempt. Raises UpstreamError."""
        async with self._turns[id(route.upstream)].turn(owner):
            try:
                reply = await route.upstream.complete(ask, on_token)
            except UpstreamError as error:
                self._note(route, error.kind)
                raise
            self._note(route, "")
            return reply

    async def listed(self) -> list[dict[str, Any]]:
        """Return the models that can be asked for, OpenAI's form, with who serves them; a server that is away says so.

        price: USD per million tokens, in and out, or null; inputs: text, image, file; context: tokens, or null.
        """
        models: list[dict[str, Any]] = []
        for route in self.routes:
            extra = {
                "object": "model",
                "owned_by": route.upstream.name,
                "note": route.note,
                "created": int(time.time()),
            }
            named = [name for name in route.models if "*" not in name]
            try:
                answered = await route.upstream.models() if len(named) < len(route.models) or not named else []
            except UpstreamError as error:
                extra["error"] = error.message
                answered = []
            entries = [{"id": name} for name in named] + [model for model in answered if model["id"] not in named]
            for entry in entries:
                price = await route.upstream.price(entry["id"], None)
                told: dict[str, Any] = {"price": price, "inputs": sorted(await route.upstream.inputs(entry["id"]))}
                told["context"] = await route.upstream.context(entry["id"], None)
                models.append({**entry, **extra, **told, "default": entry["id"] == self.default})
        return models

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for route in self.routes:
            await route.upstream.close()


def pause(error: UpstreamError, attempt: int, retry: Retry) -> float | None:
    """Return the seconds until the next attempt, or None: no further one. Pure. `attempt` counts from 1.

    A server that asks for more patience than the version has is not asked again.
    """
    if error.kind == "unsupported":  # each part of a request is left out once
        return 0.0
    if not error.retry or attempt >= retry.attempts or error.kind not in retry.on:
        return None
    wait = error.retry_after if error.retry_after is not None else min(0.5 * 2 ** (attempt - 1), LONGEST_PAUSE)
    return wait if wait <= retry.max_wait else None

"""What a tool may know of its call, and ask of the farm: `ctx`, the first parameter of a tool that asks for it."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from .. import effects
from ..errors import Divergence, Invalid, ToolFailed
from ..protocol import NewEvent

Recall = Callable[[str, str, int], Awaitable[dict[str, Any]]]  # key, query, limit -> {"items", "keys"}
RECALL_SECONDS = 30.0


class Rest(BaseException):
    """The call rests here without a worker; what it waits for becomes its outcome. Not for tools' own `except Exception`."""

    def __init__(self, event: NewEvent) -> None:
        super().__init__(event.kind)
        self.event = event

    def event_body(self) -> dict[str, Any]:
        body: dict[str, Any] = msgspec.json.decode(self.event.body)
        return body


class Context:
    """One call's. What it hands out of the outside world is recorded with the outcome, and given back in a replay.

    key: the idempotency key, the same over every attempt. secrets: values by name, as the farm admitted them.
    workspace: the folder that belongs to the agent. cancelled: set when the run is to stop or the call is out of time.
    config: what the version fixes for this tool. recall, loop: how the agent's memory is read, and where.
    """

    def __init__(
        self,
        *,
        run: str = "",
        call: str = "",
        key: str = "",
        attempt: int = 1,
        workspace: Path | None = None,
        secrets: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        cancelled: threading.Event | None = None,
        recorded: Sequence[Mapping[str, Any]] | None = None,
        recall: Recall | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.run, self.call, self.key, self.attempt = run, call, key, attempt
        self.workspace = workspace or Path.cwd()
        self.secrets = dict(secrets or {})
        self.config = dict(config or {})
        self.cancelled = cancelled or threading.Event()
        self.log = logging.getLogger(f"agentfarm.tool.{call or 'local'}")
        self.values: list[dict[str, Any]] = []
        self.events: list[NewEvent] = []  # recorded with the outcome, in its transaction
        self._recall, self._loop = recall, loop
        self._recorded = None if recorded is None else list(recorded)
        self._lock = threading.Lock()

    def __repr__(self) -> str:  # never the secrets
        return f"<Context run={self.run} call={self.call} attempt={self.attempt}>"

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return datetime.fromisoformat(self._value("now", lambda: datetime.now(timezone.utc).isoformat()))

    def random(self) -> float:
        """Return a random number in [0, 1)."""
        return float(self._value("random", random.random))

    def uuid(self) -> str:
        """Return a random UUID (version 4)."""
        return str(self._value("uuid", lambda: str(uuid.uuid4())))

    # -- what the agent remembers --------------------------------------------------------------------------------

    def remember(self, key: str, value: Any) -> None:
        """Let the agent remember a JSON value under a key, in this run and in later ones.

        It is written in the transaction of this call's outcome: exactly once, and not where the call has none.
        Raises Invalid: not JSON, or too large (16 kB; keys 200 characters).
        """
        self.events.append(effects.remembered(key, value, self.call or None))

    def forget(self, key: str) -> None:
        """Let the agent forget a key, with this call's outcome. A key that is not there is no error."""
        self.events.append(effects.forgotten(key, self.call or None))

    def recall(self, key: str = "", *, query: str = "") -> Any:
        """Return the value of a key, None where there is none; or with `query` the entries that have all its words.

        Entries are `{key, value, changed_at}`, at most 10, the latest first. Waits for the farm: an async tool says
        `await ctx.arecall(…)`. Raises ToolFailed: called on the event loop, or the farm does not answer.
        """
        if self._recorded is None and self._loop is not None:
            if self._here() is self._loop:
                raise ToolFailed("an async tool must not wait for the farm", hint="await ctx.arecall(…)")
            asked = asyncio.run_coroutine_threadsafe(self._looked_up(key, query), self._loop)
            try:
                found = asked.result(RECALL_SECONDS)
            except TimeoutError as error:
                asked.cancel()
                raise ToolFailed(f"the farm did not answer in {RECALL_SECONDS:g} s") from error
        else:
            found = None
        return self._recalled(key, query, found)

    async def arecall(self, key: str = "", *, query: str = "") -> Any:
        """The same for an async tool."""
        found = await self._looked_up(key, query) if self._recorded is None else None
        return self._recalled(key, query, found)

    async def _looked_up(self, key: str, query: str) -> list[dict[str, Any]]:
        if self._recall is None:
            raise ToolFailed("there is no memory here", hint="it needs a run")
        return list((await self._recall(key, query, effects.RECALLED))["items"])

    def _recalled(self, key: str, query: str, found: Any) -> Any:
        if bool(key) == bool(query):
            raise Invalid("recall takes a key or a query", hint="ctx.recall('name'), ctx.recall(query='some words')")
        items = self._value("recall", lambda: found or [])
        return items if query else (items[0]["value"] if items else None)

    @staticmethod
    def _here() -> asyncio.AbstractEventLoop | None:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            return None

    # -- rests: each ends the call's work here -------------------------------------------------------------------

    def wait_until(self, when: datetime | float, then: Any = None) -> NoReturn:
        """End the call's work here and let the run rest until a time, or for so many seconds (30 days at most).

        No kernel is held meanwhile. When the time has come, the model is told `then` (or the time) as the call's
        result; nothing of the call is done again. Raises Invalid: too long, or no time.
        """
        raise Rest(effects.timer(when, time.time(), then, self.call or None))

    def ask_person(
        self,
        question: str,
        *,
        choices: Sequence[str] | None = None,
        schema: dict[str, Any] | None = None,
        expires: float | None = None,
    ) -> NoReturn:
        """End the call's work here and ask a person; their answer becomes the call's result.

        choices, schema: what answers fit. expires: seconds, then the model is told that nobody answered.
        Raises Invalid: not a question.
        """
        raise Rest(effects.question(question, choices, schema, expires, self.call or None))

    def delegate(
        self, target: str, input: Any, *, deadline: float | None = None, variables: dict[str, str] | None = None
    ) -> NoReturn:
        """End the call's work here and submit a task to another agent, or to `pool:NAME`; its result becomes the call's.

        It is submitted in the transaction that records it: exactly once. It draws on this run's deadline (`deadline`:
        seconds from now, if sooner) and ends with this run; eight deep at most, never in a circle. Raises Invalid.
        """
        raise Rest(effects.delegated(target, input, deadline, variables, self.call or None))

    def _value(self, name: str, make: Any) -> Any:
        with self._lock:
            if self._recorded is None:
                value = make()
            else:
                place = len(self.values)
                then = self._recorded[place] if place < len(self._recorded) else None
                if then is None or then.get("name") != name:
                    raise Divergence(
                        f"call {self.call} asks for `{name}` as its value {place + 1}; recorded was "
                        f"{then.get('name') if then else 'no such value'}",
                        hint="the tool's code is another one than the one that ran",
                    )
                value = then["value"]
            self.values.append({"name": name, "value": value})
            return value

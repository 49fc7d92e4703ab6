"""The supervisor's one WebSocket to the service: ordered, both ways, opened again after every cut.

Requests and answers are paired by number. What was asked when the connection fell raises Cut: whether it was done is
not known, and the asker asks again under the same name.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException

from agentfarm_sdk.errors import from_problem
from agentfarm_sdk.protocol import PROTOCOL, Event
from agentfarm_sdk.waiting import within
from jupyterhub_agentfarm.errors import Transient, Unauthenticated

LONGEST_WAIT_SECONDS = 10.0  # between attempts while the service is away
REFUSED_WAIT_SECONDS = 30.0  # after a refusal; as long as the farm keeps what the Hub said of a token
REFUSALS = 3  # of a token that the Hub does not know: only a new start of the server brings another
ANSWER_SECONDS = 15.0  # within which an answer comes, beyond what the request itself allows
MAX_FRAME = 16 * 1024 * 1024


class Frame(msgspec.Struct):
    """What the service sends: an answer to request `id`, or a push."""

    id: int | None = None
    ok: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None
    push: str = ""
    run: str = ""
    events: msgspec.Raw = msgspec.Raw(b"[]")


class Cut(Transient):
    """The connection fell before the answer came."""


class Link:
    """Keeps the connection; `up`, `down` and `push(run, events)` are called on the event loop."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        up: Callable[[], None],
        down: Callable[[], None],
        push: Callable[[str, list[Event]], None],
        log: logging.Logger,
    ) -> None:
        parts = urlsplit(url)
        self.url = (
            f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}{parts.path.rstrip('/')}/api/v1/worker"
        )
        self._token, self._up, self._down, self._push, self._log = token, up, down, push, log
        self._socket: ClientConnection | None = None
        self._answers: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._numbers = itertools.count(1)

    async def run(self) -> None:
        """Connect, read until it falls, wait, again; until cancelled.

        Raises Unauthenticated: the Hub does not know this server's token any more, and said so several times. It can never work again.
        """
        attempt = refusals = 0
        while True:
            wait = 0.0
            try:
                headers = {"Authorization": f"token {self._token}", "Agentfarm-Protocol": str(PROTOCOL)}
                async with connect(
                    self.url, additional_headers=headers, max_size=MAX_FRAME, compression=None, proxy=None
                ) as socket:
                    attempt = refusals = 0
                    await self._serve(socket)
            except InvalidStatus as error:
                status = error.response.status_code
                said = _problem(error.response.body)
                refusals = refusals + 1 if status == 401 else 0
                if status in (401, 403, 426):
                    wait = REFUSED_WAIT_SECONDS
                    self._log.error(
                        "the farm refuses this server (%d: %s); no run is taken. Start the server again from the hub", status, said,
                    )  # fmt: skip
                else:
                    self._log.warning("the farm at %s is not ready (%d: %s)", self.url, status, said)
                if refusals >= REFUSALS:
                    raise Unauthenticated(said, hint="the hub starts another server with another token") from error
            except (OSError, WebSocketException, InvalidHandshake) as error:
                if attempt in (0, 10):  # a long outage is not said every few seconds
                    self._log.warning("no connection to the farm at %s: %s; trying again", self.url, error)
            wait = wait or min(0.1 * 2**attempt, LONGEST_WAIT_SECONDS)
            attempt = min(attempt + 1, 10)
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))

    async def ask(self, op: str, run: str, body: msgspec.Struct, kind: Any, patience: float = 0.0) -> Any:
        """Ask once and return the answer, read as `kind`. `patience`: seconds that the request itself allows the service.

        Raises:
            Cut: there is no connection, or it fell. AgentFarmError: the problem that the service answered.
        """
        if self._socket is None:
            raise Cut("there is no connection to the farm")
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            frame = {"id": number, "op": op, "run": run, "body": body}
            await self._socket.send(msgspec.json.encode(frame).decode())
            return msgspec.json.decode(await within(future, patience + ANSWER_SECONDS), type=kind)
        except msgspec.DecodeError as error:
            raise Transient(f"the farm's answer to {op} cannot be read: {error}", retry_after=10.0) from error
        except asyncio.TimeoutError as error:
            await self._socket.close() if self._socket else None  # half dead: a new one is better than waiting
            raise Cut(f"the farm did not answer {op} in time") from error
        except (OSError, WebSocketException) as error:
            raise Cut(f"the connection to the farm fell: {error}") from error
        finally:
            self._answers.pop(number, None)

    async def _serve(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._log.info("connected to the farm at %s", self.url)
        self._up()
        try:
            async for frame in socket:
                self._take(frame)
        finally:
            self._socket = None
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(Cut("the connection to the farm fell"))
            self._down()
        self._log.warning("the farm closed the connection (%s); runs go on", socket.close_code)

    def _take(self, text: str | bytes) -> None:
        try:
            frame = msgspec.json.decode(text, type=Frame)
            if frame.push == "inbox":
                self._push(frame.run, msgspec.json.decode(frame.events, type=list[Event]))
        except msgspec.DecodeError as error:
            self._log.error("a message of the farm cannot be read and is passed over: %s", error)
            return
        future = self._answers.get(frame.id or 0)
        if future is None or future.done():
            if frame.error is not None:
                self._log.error("the farm refused a message: %s", frame.error.get("detail"))
            return
        if frame.error is not None:
            future.set_exception(from_problem(frame.error))
        else:
            future.set_result(frame.ok)


def _problem(body: bytes | bytearray | None) -> str:
    """Return the sentence of a problem document, or the beginning of whatever it is."""
    text = (body or b"").decode(errors="replace")
    try:
        document = json.loads(text)
        return str(document.get("detail") or document.get("title")) if isinstance(document, dict) else text[:200]
    except ValueError:
        return text[:200]

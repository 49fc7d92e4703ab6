"""For the tests of your own agents: a model that says what you wrote, a farm in a folder, a model's server.

model = ScriptedModel(calls("place_order", symbol="BTC-USD", size="0.1"), says("Bought."))
with FakeFarm() as farm:
    run = farm.run(Agent("trader", tools=[place_order]), "Buy a tenth", model)
    assert run.result == "Bought."
"""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .agent import Agent, Run
from .localfile import LocalFile
from .model import Question, Reply
from .quirks import Wire

Json = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One reply of a scripted model: words, or calls (`calls(…) & calls(…)` asks for both at once)."""

    content: str | None = None
    asked: tuple[tuple[str, str], ...] = ()  # (tool, arguments as JSON text)

    def __and__(self, other: Turn) -> Turn:
        return Turn(self.content or other.content, self.asked + other.asked)

    def message(self) -> Json:
        message: Json = {"role": "assistant", "content": self.content}
        if self.asked:
            message["tool_calls"] = [
                {"id": f"scripted-{place}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for place, (name, arguments) in enumerate(self.asked)
            ]
        return message


Said = Turn | Wire  # Wire: bytes as they are, see quirks.py
Script = Said | Callable[[list[Json]], Said]  # a function is given the messages that the model is shown


def says(text: str) -> Turn:
    """Answer in words."""
    return Turn(content=text)


def calls(tool: str, /, **arguments: Any) -> Turn:
    """Ask for a call."""
    return Turn(asked=((tool, json.dumps(arguments, default=str)),))


class ScriptedModel:
    """Says its turns, one a step; what it said depends on the step alone, so that a run taken up goes on in the script.

    `shown` has the messages of every question.
    """

    attested = False

    def __init__(self, *turns: Script, delay: float = 0.0) -> None:
        self._turns, self._delay = turns, delay
        self.shown: list[list[Json]] = []

    async def reply(self, question: Question) -> Reply:
        self.shown.append(copy.deepcopy(question.messages))
        if self._delay:
            await asyncio.sleep(self._delay)
        turn = _turn(self._turns, question.step, question.messages)
        if isinstance(turn, Wire):
            raise TypeError("bytes are for a ScriptedServer: a model in this process puts nothing on a wire")
        usage = {"input": 10, "output": 5, "estimated": True}
        source = {"upstream": "scripted", "model": "scripted", "provider": None, "id": None}
        return Reply(turn.message(), usage=usage, provenance=source, finish="tool_calls" if turn.asked else "stop")


class FakeFarm:
    """A farm in a folder of its own, without processes: the events, keys, approvals and doubts are the real ones."""

    def __init__(self, folder: Path | str | None = None) -> None:
        self._temporary = folder is None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="agentfarm-test-"))
        self.ledger = LocalFile(self.folder / "ledger.sqlite")
        self.workspace = self.folder / "workspace"
        self.workspace.mkdir(exist_ok=True)

    def __enter__(self) -> FakeFarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, agent: Agent, input: str, model: ScriptedModel | None = None, **options: Any) -> Run:
        """Run an agent here, with another model if one is given."""
        return self._hired(agent, model).run(input, **options)

    def take_up(self, agent: Agent, run_id: str, model: ScriptedModel | None = None) -> Run:
        """Go on with a run that was left, as another worker would."""
        return self._hired(agent, model).take_up(run_id)

    def _hired(self, agent: Agent, model: ScriptedModel | None) -> Agent:
        hired = copy.copy(agent)
        hired._file, hired._workspace = self.ledger, self.workspace
        hired._model = model or agent._model
        return hired

    def close(self) -> None:
        self.ledger.close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


class ScriptedServer:
    """An OpenAI-compatible server on a free loopback port, in this process; streams where it is asked to.

    The turn is chosen by the replies that stand in the request since the person's last message, so a request that is made
    again gets the same answer. A turn may be bytes as real servers send them (`QUIRKS` in quirks.py). `fail(503, times=2)` makes the next requests fail, `delay` slows every one (seconds).
    """

    def __init__(self, *turns: Script, delay: float = 0.0, name: str = "scripted") -> None:
        self.delay, self.name = delay, name
        self.requests: list[Json] = []
        self._turns, self._failures = turns, list[tuple[int, bytes]]()
        handler = type("Handler", (_Handler,), {"script": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, status: int, *, times: int = 1, body: bytes = b'{"error": {"message": "as scripted"}}') -> None:
        """Answer the next requests with a status, or with nonsense (status 200 and any body)."""
        self._failures += [(status, body)] * times

    def answer(self, request: Json) -> tuple[int, bytes | Said]:
        self.requests.append(request)
        if self.delay:
            time.sleep(self.delay)
        if self._failures:
            return self._failures.pop(0)
        messages = request.get("messages") or []
        since = max((place for place, one in enumerate(messages) if one["role"] == "user"), default=0)
        step = sum(1 for one in messages[since:] if one["role"] == "assistant")
        return 200, _turn(self._turns, step, messages)


class _Handler(BaseHTTPRequestHandler):
    script: ScriptedServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(
            200, "application/json", _json({"object": "list", "data": [{"id": self.script.name, "object": "model"}]})
        )

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        status, turn = self.script.answer(request)
        if isinstance(turn, Wire):
            self._replay(turn)
        elif isinstance(turn, bytes):
            self._send(status, "application/json", turn)
        elif request.get("stream"):
            self._send(200, "text/event-stream", b"".join(self._chunks(turn)))
        else:
            choice = {"index": 0, "message": turn.message(), "finish_reason": "tool_calls" if turn.asked else "stop"}
            self._send(
                200, "application/json", _json({**self._head("chat.completion"), "choices": [choice], "usage": _USAGE})
            )

    def _replay(self, wire: Wire) -> None:
        """Send the pieces one by one; a connection that is cut ends without the last one of HTTP."""
        try:
            self.send_response(wire.status)
            self.send_header("Content-Type", wire.kind)
            self.send_header("Transfer-Encoding", "chunked")
            for name, value in wire.headers:
                self.send_header(name, value)
            self.end_headers()
            for piece in wire.pieces:
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.flush()
            if wire.cut:
                self.close_connection = True
            else:
                self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _chunks(self, turn: Turn) -> list[bytes]:
        head = self._head("chat.completion.chunk")
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in (turn.content or "").splitlines(keepends=True)]
        for place, one in enumerate(turn.message().get("tool_calls") or []):
            deltas.append({"tool_calls": [{"index": place, **one}]})
        said = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        last = {"index": 0, "delta": {}, "finish_reason": "tool_calls" if turn.asked else "stop"}
        said += [{**head, "choices": [last]}, {**head, "choices": [], "usage": _USAGE}]
        return [b"data: " + _json(one) + b"\n\n" for one in said] + [b"data: [DONE]\n\n"]

    def _head(self, kind: str) -> Json:
        return {"id": "scripted", "object": kind, "created": 0, "model": self.script.name}

    def _send(self, status: int, kind: str, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # who asked has gone: what such tests are about

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output free of request lines."""


_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def _turn(turns: Sequence[Script], step: int, messages: list[Json]) -> Said:
    if not turns:
        return says("")
    turn = turns[min(step, len(turns) - 1)]
    return turn if isinstance(turn, Turn | Wire) else turn(messages)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()

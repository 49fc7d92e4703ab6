"""For your own tests: a model that says what you wrote, a farm without a farm, and a model server over HTTP.

model = ScriptedModel(calls("place_order", symbol="BTC-USD", size="0.1"), says("Bought."))
with FakeFarm() as farm:
    run = farm.run(Agent("trader", tools=[place_order], model=model, mode="live"), "Buy.")
assert [event.kind for event in run.events()][-1] == "run.succeeded"
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .agent import Agent, Run
from .local import LocalFile
from .model import Question, Reply

Said = dict[str, Any]  # an assistant's message in OpenAI's form


def says(text: str) -> Said:
    """A reply that ends the run with this text."""
    return {"role": "assistant", "content": text}


def calls(tool: str, /, **arguments: Any) -> Said:
    """A reply that asks for one call."""
    return all_of((tool, arguments))


def all_of(*asked: tuple[str, dict[str, Any]]) -> Said:
    """A reply that asks for several calls at once: (tool, arguments) each."""
    made = [
        {"id": f"call_{index}", "type": "function", "function": {"name": tool, "arguments": json.dumps(arguments)}}
        for index, (tool, arguments) in enumerate(asked)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


class ScriptedModel:
    """Says its lines by the number of the step: a run that is taken up again gets the line that comes next.

    `questions` keeps what it was asked with.
    """

    attested = False

    def __init__(self, *lines: Said) -> None:
        self.lines = lines
        self.questions: list[Question] = []

    async def reply(self, question: Question) -> Reply:
        self.questions.append(question)
        if question.step >= len(self.lines):
            raise AssertionError(f"the script has {len(self.lines)} lines and was asked for one more")
        return Reply(dict(self.lines[question.step]), provenance={"upstream": "scripted", "model": "scripted"})


class FakeFarm:
    """Runs agents with the farm's own rules (record, admission, approvals, doubts) in a temporary file."""

    def __enter__(self) -> FakeFarm:
        self._folder = tempfile.TemporaryDirectory(prefix="agentfarm-")
        self.path = Path(self._folder.name) / "ledger.sqlite"
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(self, agent: Agent, input: Any, **variables: str) -> Run:
        """Drive a run of the agent until it rests."""
        agent._ledger = self.path
        return agent.run(input, variables=variables)

    def resume(self, agent: Agent, run_id: str) -> Run:
        """Go on with a run, as another process would."""
        agent._ledger = self.path
        return agent.resume(run_id)

    def runs(self) -> list[str]:
        """Return the ids of all runs, the latest first."""
        return LocalFile(self.path).runs()


class ScriptedServer:
    """An OpenAI-compatible model server on a free port of 127.0.0.1 that says its lines by the number of replies so far.

    Each conversation gets the line that its own assistant messages count to. `fail` answers that many requests with
    `status` first; `delay` seconds pass before each answer. `requests` keeps the bodies.
    """

    def __init__(self, lines: Iterable[Said], *, fail: int = 0, status: int = 503, delay: float = 0.0) -> None:
        self.lines = list(lines)
        self.fail, self.status, self.delay = fail, status, delay
        self.requests: list[dict[str, Any]] = []
        farm = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "scripted", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                farm.requests.append(body)
                time.sleep(farm.delay)
                if farm.fail > 0:
                    farm.fail -= 1
                    return self._send(farm.status, {"error": {"message": "scripted failure"}})
                said = sum(1 for message in body["messages"] if message["role"] == "assistant")
                line = farm.lines[min(said, len(farm.lines) - 1)]
                usage = {"prompt_tokens": 1, "completion_tokens": 1}
                if body.get("stream"):
                    return self._stream(line, usage)
                self._send(
                    200, {"model": "scripted", "choices": [{"message": line, "finish_reason": "stop"}], "usage": usage}
                )

            def _stream(self, line: Said, usage: dict[str, int]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                for chunk in ({"choices": [{"delta": line}]}, {"choices": [], "usage": usage}):
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True

            def _send(self, status: int, value: Any) -> None:
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

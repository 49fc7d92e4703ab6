"""A model server that does what the task says, in OpenAI's form. Run as a process of its own; prints its port.

    python -m jupyterhub_agentfarm.chaos.model [PORT]

The task is JSON: {"steps": [[{"tool": name, "arguments": {…}}, …], …]}, or one call by itself. The model asks for the calls
of one step after the other, and then answers with the last result; where the task says {"refuse": true} the server answers 400. It keeps nothing: the same messages get the same reply,
whoever was killed in between.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any

from .world import Server


def reply(messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what the model says; None: it refuses to answer."""
    place = max(index for index, message in enumerate(messages) if message["role"] == "user")
    later = messages[place:]
    asked = json.loads(messages[place]["content"])
    if asked.get("refuse"):
        return None
    steps = asked.get("steps", [[asked]])
    done = sum(1 for message in later if message.get("tool_calls"))
    if done >= len(steps):
        results = [message["content"] for message in later if message["role"] == "tool"]
        return {"role": "assistant", "content": f"done: {results[-1] if results else ''}"}
    calls = [
        {
            "id": f"x{done}-{number}",
            "type": "function",
            "function": {"name": one["tool"], "arguments": json.dumps(one["arguments"])},
        }
        for number, one in enumerate(steps[done])
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = reply(asked["messages"])
        if message is None:
            return self.answer("application/json", b'{"error": {"message": "this is refused"}}', 400)
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        choice = {"index": 0, "finish_reason": finish}
        if not asked.get("stream"):
            whole = {"id": "s", "model": "scripted", "choices": [{**choice, "message": message}], "usage": usage}
            return self.answer("application/json", json.dumps(whole).encode())
        delta = {**message, "tool_calls": [{**c, "index": i} for i, c in enumerate(message.get("tool_calls") or [])]}
        chunk = {"id": "s", "model": "scripted", "choices": [{**choice, "delta": delta}], "usage": usage}
        return self.answer("text/event-stream", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())

    def do_GET(self) -> None:
        self.answer("application/json", json.dumps({"data": [{"id": "scripted", "object": "model"}]}).encode())

    def answer(self, kind: str, body: bytes, status: int = 200) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # who asked was killed

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Model)
    print(server.server_address[1], flush=True)
    server.serve_forever()

"""An outside world that counts: each effect that reaches it is on disk before it answers. Run as a process of its own.

    python -m jupyterhub_agentfarm.chaos.world FILE [ADDRESS]      prints its port; POST /effect/<name>  GET /counts

A line of FILE is one request: name, Idempotency-Key, whether that key was new. Between the effect and the answer lies
`?delay=<seconds>`, or with `?hold=<file>` the time until that file exists, in which somebody can be killed: the effect has
happened and nobody knows yet.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

LOCK = threading.Lock()
SEEN: list[dict[str, object]] = []


class Requests:
    """Everything that reached a world, read from its FILE: {name, key, new}; each line once."""

    def __init__(self, file: Path) -> None:
        self.file, self._read, self._known = file, 0, list[dict[str, Any]]()

    def __call__(self) -> list[dict[str, Any]]:
        with self.file.open("rb") as source:
            source.seek(self._read)
            whole = source.read().rpartition(b"\n")[0]
        if whole:
            self._read += len(whole) + 1
            self._known += [json.loads(line) for line in whole.splitlines()]
        return self._known


class Server(ThreadingHTTPServer):
    """A server whose clients are killed: that is nothing to be told."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Effects(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        where = urlsplit(self.path)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = self.headers.get("Idempotency-Key") or ""
        with LOCK:
            new = not any(one["key"] == key and key for one in SEEN)
            SEEN.append({"name": where.path.rpartition("/")[2], "key": key, "new": new})
            with Path(sys.argv[1]).open("a") as file:
                file.write(json.dumps(SEEN[-1]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        asked = parse_qs(where.query)
        time.sleep(min(60.0, float(asked.get("delay", ["0"])[0])))
        hold = asked.get("hold", [""])[0]
        until = time.monotonic() + 120
        while hold and not Path(hold).exists() and time.monotonic() < until:
            time.sleep(0.02)
        self.answer({"done": where.path.rpartition("/")[2], "first": new})

    def do_GET(self) -> None:
        with LOCK:
            self.answer(list(SEEN))

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # who asked was killed

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = Server((sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1", 0), Effects)
    print(server.server_address[1], flush=True)
    server.serve_forever()

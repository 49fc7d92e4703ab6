"""The little of the Hub's REST API that the service asks when a person's token comes in. For benchmarks alone."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "benchmark-token"
PERSON = {
    "kind": "user", "name": "bench", "admin": False, "groups": ["people"], "token_id": "a1", "session_id": None,
    "scopes": ["access:services!service=agentfarm", "read:users:name!user=bench", "custom:agentfarm:approve"],
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        known = self.headers.get("Authorization", "").endswith(TOKEN)
        if self.path.rstrip("/").endswith("/user"):
            self.answer(200 if known else 403, PERSON if known else {"message": "no such token"})
        elif "/users?" in self.path:
            self.answer(200, [])
        else:
            self.answer(200, {"version": "6.1.1"})

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def start() -> str:
    """Serve in a thread of this process; return the API's URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/hub/api"

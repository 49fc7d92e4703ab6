"""A server for the Hub's eyes: answers everything with 200 once the file named in WAIT_FOR exists (or at once)."""

import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["JUPYTERHUB_API_TOKEN"].encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


while (gate := os.environ.get("WAIT_FOR")) and not Path(gate).exists():
    time.sleep(0.02)
HTTPServer(("127.0.0.1", urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).port or 0), Answers).serve_forever()

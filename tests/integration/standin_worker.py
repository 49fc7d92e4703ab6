"""An IPython extension that speaks the worker's side of the socket pair and does what the run's token says. For tests."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any


def load_ipython_extension(shell: Any) -> None:
    connection = socket.socket(fileno=int(os.environ["AGENTFARM_FD"]))
    threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _note(**what: Any) -> None:
    with open("workers.jsonl", "a") as file:
        file.write(json.dumps({**what, "pid": os.getpid(), "at": time.monotonic()}) + "\n")


def _serve(connection: socket.socket) -> None:
    def say(**what: Any) -> None:
        connection.sendall(json.dumps(what).encode() + b"\n")

    run = does = ""
    for line in connection.makefile():
        message = json.loads(line)
        if "run" in message:
            run, does = message["run"], message["token"][4:]
            _note(began=run, fence=message["fence"], url=message["url"])
            say(started=run)
            say(progress=0.2 if does == "stuck" else 300.0)
            if does == "quick":
                say(finished=run, outcome="succeeded")
            elif does == "nonsense":
                connection.sendall(b"no json\n")
        elif "cancel" in message:
            _note(cancel=message["cancel"], run=run)
            if does == "obedient":
                say(finished=run, outcome="cancelled")
        else:
            _note(told=sorted(message), run=run)

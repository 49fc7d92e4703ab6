"""Where two services share a farm: how the one that stands by answers, and how the one that is deposed goes.

Standing by, a service answers `/health` and `/metrics` on its own port, and everything else by 503: whoever looks for the
one that leads (a load balancer, a person) sees which it is. Services of one machine share the farm's address besides: its
socket is the launcher's, both have it, and only the one that leads takes connections from it. What connects while none
leads waits there for the next.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import psutil
from tornado.httputil import HTTPConnection, HTTPMessageDelegate, HTTPServerConnectionDelegate
from tornado.web import Application, RequestHandler

import jupyterhub_agentfarm

from .errors import Deposed, StartError, Transient
from .handlers.base import PROBLEM
from .handlers.operations import Health
from .monitoring.metrics import standing_by

log = logging.getLogger("agentfarm")
LEADING = "leading.json"  # in the state directory: the process that leads
AGAIN_SECONDS = 2.0  # after which whoever was sent away may ask again


class Front(HTTPServerConnectionDelegate):
    """Hands each request to the application of the moment: first the one that stands by, then the farm's."""

    def __init__(self, application: HTTPServerConnectionDelegate) -> None:
        self.application = application

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        return self.application.start_request(server_conn, request_conn)


class _Waiting(RequestHandler):
    """Sends everybody away who does not ask how this service is. It asks nobody who they are: there is nothing to see."""

    def initialize(self, problem: Callable[[], str]) -> None:
        self.problem = problem

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    def check_xsrf_cookie(self) -> None:
        """Nothing is done here in anybody's name."""

    def prepare(self) -> None:
        self.set_status(503)
        self.set_header("Retry-After", str(round(AGAIN_SECONDS)))
        path = self.request.path.rstrip("/")
        if path.endswith("/api/v1/metrics"):
            self.set_status(200)
            self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.finish(standing_by())
        elif path.endswith("/api/v1/health"):
            self.set_header("Content-Type", "application/json; charset=utf-8")
            problems = [f"database: {said}"] if (said := self.problem()) else []
            version = jupyterhub_agentfarm.__version__
            self.finish(msgspec.json.encode(Health("standby", version, "", "postgresql", None, problems)))
        else:
            self.set_header("Content-Type", PROBLEM)
            wait = Transient("this service stands by", hint="ask the one that leads, or this one again in a moment")
            self.finish(msgspec.json.encode(wait.problem()))


def waiting(problem: Callable[[], str]) -> Application:
    """Return the application of a service that stands by. problem: what is in its way, "" where nothing is."""
    return Application([(r".*", _Waiting, {"problem": problem})], log_function=lambda _handler: None)


def shared_address(env: Mapping[str, str]) -> list[socket.socket]:
    """Return the socket of the farm's address that the launcher handed over, where it did. Raises StartError."""
    given = env.get("AGENTFARM_SERVICE_FD", "")
    if not given:
        return []
    try:
        inherited = socket.socket(fileno=int(given))
        inherited.setblocking(False)
    except (ValueError, OSError) as error:
        raise StartError(
            f"AGENTFARM_SERVICE_FD is {given!r}, which is no socket", hint="start the farm by: agentfarm up --standby"
        ) from error
    return [inherited]


def end_former(directory: Path) -> None:
    """End the service of this state directory that led before, and say that this one does. It may be stopped or hang:

    it holds connections of workers and people, who come to this one when those are gone.
    """
    file, mine = directory / LEADING, psutil.Process()
    former = _named(file)
    if former is not None and former.pid != mine.pid:
        with contextlib.suppress(psutil.Error):
            former.send_signal(signal.SIGKILL)
            log.warning("the service that led before (process %d) was still there: ended", former.pid)
    new = file.with_name(f".{file.name}.{mine.pid}")
    new.write_text(json.dumps({"pid": mine.pid, "started": mine.create_time()}) + "\n")
    new.replace(file)


def step_down(directory: Path) -> None:
    """Say that this service leads no more: it ends in order, and whoever follows lets it."""
    (directory / LEADING).unlink(missing_ok=True)


def _named(file: Path) -> psutil.Process | None:
    """Return the process that the file names, where it is still there and no other one by now has its number."""
    try:
        told: dict[str, Any] = json.loads(file.read_text())
        found = psutil.Process(int(told["pid"]))
        ended = found.status() == psutil.STATUS_ZOMBIE  # and nobody has asked yet how
        return found if found.create_time() == told["started"] and not ended else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def leave(why: Deposed) -> NoReturn:
    """End this process at once, in the middle of whatever it does: all of it is another service's now.

    Nothing is closed in order, for that may wait for a database that does not answer.
    """
    log.error("%s: %s", why.detail, why.hint)
    logging.shutdown()
    os._exit(1)

"""How the fleet daemon answers on its socket: JSON, errors as problem documents; and what is asked of drains and moves."""

from __future__ import annotations

import json
from typing import Any

import tornado.web

from ..errors import AgentFarmError, Invalid


class Handler(tornado.web.RequestHandler):
    def initialize(self, fleet: Any, users: Any) -> None:
        self.fleet, self.users = fleet, users

    def body(self) -> dict[str, Any]:
        try:
            value = json.loads(self.request.body or b"{}")
        except ValueError:
            raise Invalid("the body is not JSON") from None
        if not isinstance(value, dict):
            raise Invalid("the body must be a JSON object")
        return value

    def answer(self, value: Any) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if not isinstance(error, AgentFarmError):
            error = AgentFarmError(self._reason)
            error.status = status_code
        self.set_status(error.status)
        self.set_header("Content-Type", "application/problem+json")
        self.finish(json.dumps(error.problem()))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, AgentFarmError | tornado.web.HTTPError):
            super().log_exception(typ, value, tb)


class Drain(Handler):
    async def get(self) -> None:
        self.answer(await self.fleet.moving.drains())

    async def post(self, name: str, verb: str) -> None:
        self.fleet.microserver(name)
        self.answer(await self.fleet.moving.do(verb, name, self.body()))


class Move(Handler):
    async def put(self, user: str) -> None:
        asked = self.body()
        stop, away = str(asked.get("stop") or ""), str(asked.get("away") or "")
        self.answer(self.fleet.moving.begin(user, bool(asked.get("up")), stop, away))

    async def delete(self, user: str) -> None:
        self.fleet.moving.end(user)
        self.answer({})

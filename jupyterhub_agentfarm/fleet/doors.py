"""What the fleet daemon answers on its socket: who asks is let in by the socket's rights; JSON, errors as problem documents."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import msgspec
import tornado.web

from ..errors import AgentFarmError, Invalid
from .hubusers import HubUsers
from .kept import PATIENCE, UNITS_SECONDS

log = logging.getLogger("agentfarm.fleet")
MARKS = ("labels", "taints", "reserve_memory", "reserve_cpu")  # of a microserver, by operators


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

    def number(self, name: str, default: float) -> float:
        """Return an argument of the address. Raises Invalid."""
        try:
            return float(self.get_argument(name, str(default)))
        except ValueError:
            raise Invalid(f"{name} must be a number") from None

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


class _Servers(Handler):
    async def get(self) -> None:
        self.answer({"items": await self.fleet.listed(UNITS_SECONDS, PATIENCE)})


class _Server(Handler):
    async def get(self, unit: str) -> None:
        self.answer(await self.fleet.show(unit))

    def prepare(self) -> None:
        self.gone = asyncio.Event()

    def on_connection_close(self) -> None:
        self.gone.set()

    async def put(self, unit: str) -> None:
        self.answer(await self.fleet.start(unit, self.body(), self.gone))

    async def delete(self, unit: str) -> None:
        self.answer(await self.fleet.stop(unit, bool(self.get_argument("now", ""))))


class _Place(Handler):
    async def put(self, unit: str) -> None:
        asked = self.body()
        demand = self.fleet.placing.demand(unit, asked.get("demand") or {}, str(asked.get("user", "")))
        self.fleet.moving.check(str(asked.get("user", "")))
        self.answer(await self.fleet.place(unit, demand))


class _Turn(Handler):
    async def get(self, unit: str) -> None:
        self.answer({"before": self.fleet.turns.before(unit)})


class _Logs(Handler):
    async def get(self, unit: str) -> None:
        lines, wait = int(self.number("lines", 50)), self.number("wait", 0)
        self.answer(await self.fleet.log(unit, lines, self.get_argument("after", ""), wait))


class _Notices(Handler):
    async def get(self) -> None:
        self.answer(self.fleet.notices(int(self.number("after", 0))))


class _Silence(Handler):
    async def put(self, name: str) -> None:
        asked = self.body()
        self.fleet.microserver(name)
        self.fleet.placing.health.lose(name, bool(asked.get("lost")), str(asked.get("why", "")))
        self.answer({})


class _Microservers(Handler):
    async def get(self) -> None:
        self.answer({"items": await self.fleet.listed_microservers()})


class _Cordon(Handler):
    async def post(self, name: str, verb: str) -> None:
        asked, state = self.body(), "cordoned" if verb == "cordon" else "ready"
        self.answer(self.fleet.mark(name, asked, state=state, reason=str(asked.get("reason", ""))))


class _Microserver(Handler):
    async def put(self, name: str) -> None:
        self.answer(await self.fleet.register(name, self.body()))

    async def delete(self, name: str) -> None:
        await self.fleet.remotes.remove(name, bool(self.get_argument("force", "")), self.get_argument("by", ""))
        self.answer({})

    async def patch(self, name: str) -> None:
        asked = self.body()
        change = {field: asked[field] for field in MARKS if field in asked}
        self.answer(self.fleet.mark(name, asked, **change))


class _Key(Handler):
    async def get(self) -> None:
        self.answer(self.fleet.remotes.joining())


class _Examination(Handler):
    async def get(self, name: str) -> None:
        self.answer(await self.fleet.examine(name))


class _Connections(Handler):
    async def delete(self) -> None:
        await self.fleet.remotes.disconnect()
        self.answer({})


class _Explain(Handler):
    async def get(self) -> None:
        self.answer(await self.fleet.placing.explain(self.get_argument("unit")))


class _Placing(Handler):
    async def get(self, what: str) -> None:
        if what == "settings":
            self.answer(msgspec.to_builtins(self.fleet.placing.settings))
            return
        gain = self.number("gain", -1)
        self.answer(await self.fleet.placing.rebalance(gain if gain >= 0 else None))

    async def put(self, _settings: str) -> None:
        self.answer(msgspec.to_builtins(self.fleet.placing.set_settings(self.body())))


class _Plan(Handler):
    async def post(self) -> None:
        self.answer(await self.fleet.placing.plan([str(unit) for unit in self.body().get("units", [])]))


class _Demand(Handler):
    async def put(self, unit: str) -> None:
        self.fleet.placing.set_demand(unit, self.body())
        self.answer({})


class _User(Handler):
    async def put(self, name: str) -> None:
        self.answer(await self.users.put(name))

    async def delete(self, name: str) -> None:
        await self.users.delete(name)
        await self.fleet.retired.retire(name)
        self.answer({})


class _Drain(Handler):
    async def get(self) -> None:
        self.answer(await self.fleet.moving.drains())

    async def post(self, name: str, verb: str) -> None:
        self.fleet.microserver(name)
        self.answer(await self.fleet.moving.do(verb, name, self.body()))


class _Move(Handler):
    async def put(self, user: str) -> None:
        asked = self.body()
        stop, away = str(asked.get("stop") or ""), str(asked.get("away") or "")
        self.answer(self.fleet.moving.begin(user, bool(asked.get("up")), stop, away))

    async def delete(self, user: str) -> None:
        self.fleet.moving.end(user)
        self.answer({})


def application(fleet: Any, users: HubUsers) -> tornado.web.Application:
    parts = {"fleet": fleet, "users": users}
    return tornado.web.Application(
        [
            (r"/servers", _Servers, parts),
            (r"/servers/([^/]+)", _Server, parts),
            (r"/servers/([^/]+)/place", _Place, parts),
            (r"/servers/([^/]+)/turn", _Turn, parts),
            (r"/servers/([^/]+)/logs", _Logs, parts),
            (r"/microservers", _Microservers, parts),
            (r"/microservers/([^/]+)", _Microserver, parts),
            (r"/microservers/([^/]+)/examination", _Examination, parts),
            (r"/microservers/([^/]+)/silence", _Silence, parts),
            (r"/notices", _Notices, parts),
            (r"/ssh/key", _Key, parts),
            (r"/connections", _Connections, parts),
            (r"/microservers/([^/]+)/(cordon|uncordon)", _Cordon, parts),
            (r"/microservers/([^/]+)/(drain|drained|snapshot|lost)", _Drain, parts),
            (r"/drains", _Drain, parts),
            (r"/moves/([^/]+)", _Move, parts),
            (r"/placements/explain", _Explain, parts),
            (r"/placements/plan", _Plan, parts),
            (r"/placements/(settings|rebalance)", _Placing, parts),
            (r"/demands/([^/]+)", _Demand, parts),
            (r"/users/([^/]+)", _User, parts),
        ],
        log_function=lambda handler: log.debug(
            "%s %s %d", handler.request.method, handler.request.path, handler.get_status()
        ),
    )

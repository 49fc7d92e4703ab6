"""The service in this process, on a port of its own, with its real ledger and gateway; the Hub's few answers beside it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
from aiohttp import web
from jupyterhub.httpclient import JupyterHubHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import create_signed_value

from jupyterhub_agentfarm.app import AgentFarm, derived, service_key
from jupyterhub_agentfarm.errors import AgentFarmError, FleetError, NotFound
from jupyterhub_agentfarm.fleet.moving import Moving
from jupyterhub_agentfarm.fleet.placing import Placing
from jupyterhub_agentfarm.fleet.state import FleetState
from jupyterhub_agentfarm.gateway.asking import Ask, AskedCall, OnToken, Reply
from jupyterhub_agentfarm.gateway.proxy import Route, Upstreams
from jupyterhub_agentfarm.handlers.routes import Parts
from jupyterhub_agentfarm.handlers.table import application
from jupyterhub_agentfarm.hub import Hub
from jupyterhub_agentfarm.records import unit_name
from jupyterhub_agentfarm.scheduling.reaper import Reaper
from jupyterhub_agentfarm.scheduling.scheduler import Scheduler
from jupyterhub_agentfarm.store.db import Database

ACCESS = "access:services!service=agentfarm"
MANAGE, APPROVE, OPERATOR = (f"custom:agentfarm:{one}" for one in ("manage", "approve", "admin"))
PERSON = [ACCESS, MANAGE, APPROVE]
TOKENS: dict[str, tuple[str, list[str]]] = {  # token -> user, scopes; as jupyterhub_config gives them
    "ann": ("ann", PERSON),
    "ann-server": ("ann", [ACCESS]),
    "bob": ("bob", PERSON),
    "viewer": ("vic", PERSON),
    "manager": ("mia", PERSON),
    "chatter": ("cho", PERSON),
    "operator": ("root", [*PERSON, OPERATOR]),
    "agent-analyst": ("agent-analyst", [ACCESS, "custom:agentfarm:act!user=agent-analyst"]),
    "agent-boss": ("agent-boss", [ACCESS, "custom:agentfarm:act!user=agent-boss"]),
    "agent-other": ("agent-other", [ACCESS, "custom:agentfarm:act!user=agent-other"]),
    "trader": ("tom", PERSON),  # of the group desk
    "approving-agent": (
        "agent-analyst",
        [ACCESS, "custom:agentfarm:act!user=agent-analyst", APPROVE, MANAGE, OPERATOR],
    ),
    "no-access": ("ann", []),
    "pretender": ("agent-analyst", [ACCESS]),
}
GIB = 1 << 30
GROUPS = {"tom": ["desk"]}


class FakeHub:
    """The Hub's REST API as far as the service asks it; what was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.people = {user for user, _ in TOKENS.values()}
        self.running: set[str] = set()
        self.refuses_start: str | None = None
        self.spawn: Callable[[str], Awaitable[None]] | None = None  # what a start does besides; raises where it fails
        self.stuck: set[str] = set()  # users whose servers neither start nor stop
        self.started = asyncio.Event()
        self.starting = ""  # what a spawner says that is not done yet
        self.tokens: dict[str, dict[str, Any]] = {}  # id -> what was asked for, and whose it is
        self.minting: Any = None  # awaited before a token is made

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/hub/api/user", self.whose)
        app.router.add_route("*", "/hub/api/{path:.*}", self.answer)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        self.sock = bind_sockets(0, "127.0.0.1")[0]
        await web.SockSite(self.runner, self.sock).start()
        self.url = f"http://127.0.0.1:{self.sock.getsockname()[1]}/hub/api"

    async def whose(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").partition(" ")[2]
        if token not in TOKENS:
            return web.json_response({"message": "unknown"}, status=403)
        name, scopes = TOKENS[token]
        return web.json_response(
            {"kind": "user", "name": name, "admin": True, "groups": GROUPS.get(name, []), "scopes": scopes}
        )

    async def answer(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.method, path, body))
        kind, _, rest = path.partition("/")
        user = rest.partition("/")[0]
        if kind == "users" and path.endswith("/server"):
            if user in self.stuck:
                return web.json_response({"message": "it hangs"}, status=500)
            if request.method == "POST":
                self.started.set()
                if self.refuses_start:
                    return web.json_response({"message": self.refuses_start}, status=400)
                if self.spawn and user not in self.running:
                    try:
                        await self.spawn(user)
                    except AgentFarmError as error:
                        return web.json_response({"message": error.detail}, status=500)
                self.running.add(user)
                return web.json_response({}, status=201)
            self.running.discard(user)
            return web.Response(status=204)
        if kind == "users" and path.endswith("/server/progress"):
            return self.progress(user)
        if kind == "users" and "/tokens" in path:
            return await self.answer_tokens(request.method, user, path.rpartition("/")[2], body)
        if path == "users":
            model = {"ready": True, "pending": None}
            return web.json_response([{"name": one, "servers": {"": model}} for one in sorted(self.running)])
        if kind == "users":
            if user not in self.people and not user.startswith("agent-"):
                return web.json_response({"message": "No such user"}, status=404)
            servers = {"": {"ready": True, "pending": None, "url": f"/user/{user}/"}} if user in self.running else {}
            return web.json_response({"name": user, "servers": servers})
        return web.json_response({})

    def progress(self, user: str) -> web.Response:
        if user not in self.running:
            return web.json_response({"message": "is not starting"}, status=400)
        event = {"progress": 50, "message": self.starting} if self.starting else {"progress": 100, "ready": True}
        return web.Response(text=f"data: {json.dumps(event)}\n\n", content_type="text/event-stream")

    async def answer_tokens(self, method: str, user: str, token: str, body: Any) -> web.Response:
        if method == "GET":
            found = [{"id": name, "note": one["note"]} for name, one in self.tokens.items() if one["user"] == user]
            return web.json_response({"api_tokens": found})
        if method == "DELETE":
            return web.Response(status=204 if self.tokens.pop(token, None) else 404)
        if self.minting:
            await self.minting()
        name = f"t{len(self.asked)}"
        self.tokens[name] = {"user": user, **body}
        return web.json_response({"token": "minted-for-" + user, "id": name, "expires_at": "soon"}, status=201)

    async def stop(self) -> None:
        await self.runner.cleanup()


class FakeMachine:
    """What a microserver tells of itself."""

    def __init__(self, **facts: Any) -> None:
        self.state = "ready"
        self.silent = ""
        self.told = {"memory": 8 * GIB, "memory_free": 4 * GIB, "cpus": 2, "load": 0.5, **facts}

    silent_since: float | None = None
    silent = ""

    async def facts(self, patience: float | None = None, oldest: float | None = None) -> dict[str, Any]:
        if self.silent:
            raise FleetError(self.silent)
        return self.told

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return {"there": True, "bytes": 7, "entries": 1} if op == "measure" else {}


class FakeFleet:
    """Hub users made and retired, places by the real rules on machines that are none; the daemon has tests of its own."""

    def __init__(self, state: Path, runs: Callable[[], set[str]] = set) -> None:
        self.users: set[str] = set()
        self.machines = {"local": FakeMachine()}
        self.logs: dict[str, list[str]] = {}  # by unit
        self.read_behind: list[str] = []  # cursors
        self.placing, self.runs = Placing(FleetState(state), self.machines), runs  # runs: hub users whose servers run
        self.moving = Moving(self.placing.state, self.machines, self.placing, self)  # type: ignore[arg-type]

    async def put_user(self, name: str) -> None:
        self.users.add(name)

    async def delete_user(self, name: str) -> None:
        self.users.discard(name)

    async def microservers(self) -> list[dict[str, Any]]:
        facts = await self.placing.facts()
        return [{**self.placing.shown(name, facts, 0), "drain": self.moving.progress(name)} for name in self.machines]

    async def units(self) -> list[dict[str, Any]]:
        return [
            {"unit": unit_name(user), "state": "running", "microserver": "local", "agent": user.removeprefix("agent-")}
            for user in sorted(self.runs())
        ]

    async def log(self, unit: str, lines: int = 50, after: str = "", wait: float = 0.0) -> dict[str, Any]:
        written = self.logs.get(unit)
        if written is None:
            raise NotFound(f"there is no unit {unit}")
        self.read_behind.append(after)
        start = int(after) if after else max(0, len(written) - lines)
        found = written[start : start + lines]
        return {"lines": found, "cursor": str(start + len(found)), "microserver": "local"}

    async def notices(self, after: int) -> dict[str, Any]:
        silent = {name: one for name in self.machines if (one := self.placing.health.silence(name))}
        return {"items": [one for one in self.placing.state.notices if one["id"] > after], "silent": silent}

    async def set_lost(self, name: str, lost: bool, why: str) -> None:
        self.placing.health.lose(name, lost, why)

    async def joining(self) -> dict[str, Any]:
        known = {
            name: {"ssh": f"root@{name}", "login": "", "host_keys": []} for name in self.machines if name != "local"
        }
        return {"public_key": "ssh-ed25519 AAAA agentfarm", "farm": "0" * 12, "helper": "0" * 64, "microservers": known}

    async def register(self, name: str, registration: dict[str, Any], by: str = "") -> None:
        self.machines[name] = FakeMachine(ssh=registration["ssh"])
        self.placing.state.note("microserver.added", microserver=name, ssh=registration["ssh"], by=by)

    async def remove(self, name: str, force: bool = False, by: str = "") -> None:
        del self.machines[name]
        self.placing.state.note("microserver.removed", microserver=name, forced=force, by=by)

    async def cordon(self, name: str, reason: str = "", by: str = "", rev: int | None = None) -> None:
        self.placing.mark(name, rev, by, {"state": "cordoned", "reason": reason})
        self.moving.undrain(name, False)
        self.machines[name].state = "cordoned"

    async def uncordon(self, name: str, reason: str = "", by: str = "", rev: int | None = None) -> None:
        self.placing.mark(name, rev, by, {"state": "ready", "reason": reason})
        self.moving.undrain(name, False)
        self.machines[name].state = "ready"

    async def mark(self, name: str, change: dict[str, Any], by: str = "", rev: int | None = None) -> None:
        self.placing.mark(name, rev, by, change)

    async def show(self, unit: str) -> dict[str, Any]:
        return {"state": "running" if unit in {unit_name(user) for user in self.runs()} else "exited"}

    async def states(self, name: str) -> dict[str, str]:
        return {unit_name(user): "running" for user in self.runs()}

    async def drains(self) -> dict[str, Any]:
        return await self.moving.drains()

    async def drain(self, name: str, until: str = "finish-step", *rest: Any, **preview: Any) -> dict[str, Any]:
        asked = dict(zip(("deadline", "reason", "by", "rev"), rest, strict=False))
        return await self.moving.drain_or_tell(name, {"until": until, **preview, **asked})

    async def snapshot(self, name: str) -> list[dict[str, Any]]:
        return []

    async def lost(self, name: str, restore: str, users: list[str], by: str) -> list[dict[str, Any]]:
        return self.moving.give_up_lost(name, {"restore": restore, "users": users, "by": by})

    async def drained(self, name: str) -> None:
        self.moving.undrain(name, True)

    async def move(self, user: str, up: bool = False, stop: str = "", away: str = "") -> dict[str, Any]:
        return self.moving.begin(user, up, stop, away)

    async def end_move(self, user: str) -> None:
        self.moving.end(user)

    async def stop(self, unit: str, now: bool = False) -> dict[str, Any]:
        return {}

    async def put_demand(
        self, unit: str, user: str, resources: dict[str, Any], group: str | None, scratch: bool = False
    ) -> None:
        told = {"user": user, "resources": resources, "group": group, "scratch": scratch}
        self.placing.set_demand(unit, told)

    async def settings(self) -> Any:
        return msgspec.to_builtins(self.placing.settings)

    async def set_settings(self, change: dict[str, Any]) -> Any:
        return msgspec.to_builtins(self.placing.set_settings(change))

    async def explain(self, unit: str) -> dict[str, Any]:
        return await self.placing.explain(unit)

    async def plan(self, units: list[str]) -> dict[str, Any]:
        return await self.placing.plan(units)

    async def rebalance(self, gain: float | None = None) -> dict[str, Any]:
        return await self.placing.rebalance(gain)

    async def start(self, user: str) -> None:
        """Do what the spawner asks of the daemon: place a user's server, and start it there."""
        unit = unit_name(user)
        self.moving.check(user)
        self.placing.choose(self.placing.demand(unit, {}, user), await self.placing.facts())
        self.placing.state.units[unit] |= {"user": user, "port": 0}
        self.placing.started(unit)


@dataclass
class Scripted:
    """An upstream whose replies are written down: text, or (tool, arguments)."""

    script: list[Any] = field(default_factory=list)
    name: str = "scripted"
    max_in_flight: int = 8
    asked: list[Ask] = field(default_factory=list)
    holds: int | None = None  # tokens
    takes: frozenset[str] = frozenset({"text"})

    async def complete(self, ask: Ask, on_token: OnToken | None) -> Reply:
        self.asked.append(ask)
        said = self.script.pop(0)
        if isinstance(said, str):
            for word in said.split(" ") if on_token else []:
                on_token({"text": word + " "})  # type: ignore[misc]
            return Reply(said, tokens_in=3, tokens_out=2, model="scripted")
        tool, arguments = said
        return Reply("", [AskedCall(tool, json.dumps(arguments))], tokens_in=3, tokens_out=2, model="scripted")

    async def models(self) -> list[dict[str, Any]]:
        return [{"id": "scripted"}]

    def cost(self, reply: Reply) -> float:
        return 0.0

    async def context(self, model: str, provider: str | None) -> int | None:
        return self.holds

    async def inputs(self, model: str) -> frozenset[str]:
        return self.takes

    async def price(self, model: str, provider: str | None) -> tuple[float, float] | None:
        return None

    async def close(self) -> None: ...


@dataclass
class Service:
    url: str
    parts: Parts
    hub: FakeHub
    fleet: FakeFleet
    model: Scripted
    scheduler: Scheduler
    reaper: Reaper
    db: Database
    secret: bytes
    counter: Any = field(default_factory=itertools.count)

    def client(self, token: str = "", **headers: str) -> httpx.AsyncClient:
        if token:
            headers["Authorization"] = f"token {token}"
        return httpx.AsyncClient(base_url=self.url + "/api/v1", headers=headers, timeout=20)

    async def ask(self, token: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        async with self.client(token, **headers) as client:
            return await client.request(method, path, json=body)

    async def ok(self, token: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Ask, and return the answer's JSON; what is no success fails the test with the problem."""
        answer = await self.ask(token, method, path, body, **headers)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def agent(self, name: str = "analyst", owner: str = "ann", publish: bool = True, **draft: Any) -> None:
        await self.ok(owner, "POST", "/agents", {"name": name, "draft": {"prompt": "You calculate.", **draft}})
        if publish:
            await self.ok(owner, "POST", f"/agents/{name}/publish", {})

    async def claim(self, agent: str = "analyst", wait: float = 0.0, **more: Any) -> dict[str, Any] | None:
        body = {"worker": "w", "claim_id": f"c{next(self.counter)}", "wait": wait, **more}
        answer: dict[str, Any] | None = await self.ok(f"agent-{agent}", "POST", "/claims", body)
        return answer

    async def listens(self, agent: str) -> None:
        """Wait until a supervisor of the agent listens for runs."""
        for _ in range(2000):
            if self.parts.claims.seen(agent):
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"no supervisor of {agent} came")

    def cookie(self, token: str) -> str:
        """Return the Cookie header of a person who is signed in at the farm's pages."""
        name = self.parts.door.auth.cookie_name
        return f"{name}={create_signed_value(self.secret, name, token).decode()}"


@asynccontextmanager
async def service(tmp_path: Path, url: str, monkeypatch: Any, lease: float = 30.0) -> AsyncIterator[Service]:
    """Run a service until the block ends."""
    hub = FakeHub()
    await hub.start()
    for name, value in {
        "JUPYTERHUB_API_URL": hub.url, "JUPYTERHUB_API_TOKEN": "of-the-service", "JUPYTERHUB_CLIENT_ID": "service-agentfarm",
        "JUPYTERHUB_SERVICE_NAME": "agentfarm", "JUPYTERHUB_SERVICE_PREFIX": "/services/agentfarm/", "JUPYTERHUB_BASE_URL": "/",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    key = service_key(tmp_path)
    db = Database.open(url)
    farm = AgentFarm()
    farm.env, farm.lease_seconds = {}, lease
    model, fleet = Scripted(), FakeFleet(tmp_path / "fleet.json", lambda: hub.running)
    upstreams = Upstreams([Route(model, ("scripted",))])
    client = Hub(hub.url, "of-the-service")
    parts, scheduler, reaper = farm.build(db, key, upstreams, client, tmp_path)
    scheduler.places.fleet = fleet
    parts.fleet = parts.surroundings.fleet = parts.resources.fleet = parts.draining.fleet = fleet
    secret = derived(key, b"cookies")
    server = HTTPServer(application(parts, secret), max_body_size=2**40)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    looping = asyncio.create_task(scheduler.run())
    judging = asyncio.create_task(parts.judging.run())
    draining = asyncio.create_task(parts.draining.run())
    port = sockets[0].getsockname()[1]
    try:
        yield Service(f"http://127.0.0.1:{port}", parts, hub, fleet, model, scheduler, reaper, db, secret)
        assert not any(one.done() for one in (looping, judging, draining)), (looping, judging, draining)
    finally:
        for one in (looping, judging, draining):
            one.cancel()
        await asyncio.gather(looping, judging, draining, return_exceptions=True)
        server.stop()
        parts.workers.close()
        await server.close_all_connections()
        for sock in sockets:
            sock.close()
        await client.close()
        await JupyterHubHTTPClient.loop_instance().close()  # its connections would outlive the loop
        await db.close()
        await hub.stop()

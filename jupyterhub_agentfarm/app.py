"""The service: reads its configuration, builds the parts, introduces them to each other, and runs them.

Started as `python -m jupyterhub_agentfarm.app`; the environment is in docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import gc
import logging
import os
import secrets
import signal
import stat
import sys
from collections.abc import Awaitable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jupyterhub.services.auth import HubOAuth
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from traitlets import Bool, Dict, Float, Integer, List, Unicode
from traitlets.config import Application

from agentfarm_sdk.protocol import LEASE_SECONDS
from agentfarm_sdk.waiting import within

from .disk import Disk
from .dotenv import with_dotenv
from .errors import AgentFarmError, Deposed, StartError, StoreError
from .fleet.client import FleetClient
from .gateway.live import LiveRuns
from .gateway.models import Models
from .gateway.proxy import Route, Upstreams
from .gateway.refusals import Memory
from .gateway.upstreams.openai_compatible import OpenAICompatible, Settings
from .handlers.asking import HUB_CACHE_SECONDS, Door
from .handlers.feed import CASES, Feed
from .handlers.routes import Parts
from .handlers.surroundings import Surroundings
from .handlers.table import application
from .handlers.waiting import Claims
from .handlers.worker import Workers
from .hub import Hub
from .monitoring.anchoring import Anchoring
from .monitoring.metrics import Fleet, Vitals, scrape
from .records import EMBEDDED_CONTEXT, EMBEDDED_MODEL, hub_user, unit_name
from .scheduling.draining import Draining
from .scheduling.fleetwatch import FleetWatch
from .scheduling.idling import IDLE_SECONDS, Idling
from .scheduling.judging import Judging
from .scheduling.lifecycle import ASSIGNED_SECONDS
from .scheduling.reaper import Reaper
from .scheduling.resources import Resourcing
from .scheduling.retention import Retention, checked
from .scheduling.scheduler import Scheduler
from .standby import Front, end_former, leave, shared_address, step_down, waiting
from .store import secrets as secret_rows
from .store.db import Database

log = logging.getLogger("agentfarm")
HUGGING_FACE = "https://router.huggingface.co/v1"
FLEET_SECONDS = 5.0  # that a scrape waits for the fleet: then it is told what was seen last
SWITCH_SECONDS = 0.0005  # of the interpreter's lock: the writer thread would wait 5 ms for it behind a busy event loop


class AgentFarm(Application):
    """The service of the farm."""

    name = "agentfarm-service"
    description = "The service of the farm: API, pages, scheduler, model gateway."

    config_file = Unicode(
        "", help="Configuration file, read where it exists; empty: AGENTFARM_CONFIG, else agentfarm_config.py."
    ).tag(config=True)
    port = Integer(0, help="Port on 127.0.0.1; 0: AGENTFARM_SERVICE_PORT.").tag(config=True)
    state = Unicode("", help="State directory; empty: AGENTFARM_STATE, else .farm.").tag(config=True)
    db_url = Unicode("", help="Ledger; empty: DB_CONNECTION_STRING, else farm.sqlite in the state directory.").tag(
        config=True
    )
    standby = Bool(
        False,
        help="Take turns with other services of the same PostgreSQL database: wait until none leads, then lead. Set it "
        "for all of them; also AGENTFARM_STANDBY=1.",
    ).tag(config=True)
    lease_seconds = Float(
        LEASE_SECONDS, help="Seconds of a lease. Shorter ones let runs of dead machines go on sooner, and cost writes."
    ).tag(config=True)
    assign_seconds = Float(
        ASSIGNED_SECONDS, help="Seconds that an agent's server may take to claim its run, before the task fails."
    ).tag(config=True)
    hugging_face_model = Unicode(
        "openai/gpt-oss-20b", help="Default model where HF_API_URL and HUGGING_FACE_AUTH_TOKEN name the server."
    ).tag(config=True)
    default_model = Unicode("", help="Model of agents that name none; empty: the first one of the upstreams.").tag(
        config=True
    )
    idle_seconds = Float(
        IDLE_SECONDS,
        help="Seconds after which an agent's server that neither works nor is used is stopped; 0: never. A pool may have its own.",
    ).tag(config=True)
    upstreams = List(
        Dict(),
        help="Model servers besides, each the fields of gateway.upstreams.openai_compatible.Settings: "
        '[{"name": "vllm", "url": "http://gpu:8000/v1", "models": ["*"]}]. Asked before the others.',
    ).tag(config=True)
    retention = Dict(
        help="Days after a run's end that bodies of its events are kept, by kind; '*' is every other kind, what is not "
        "named stays for ever: {'tool.succeeded': 90, 'person.executed': 30}. Headers and hashes always stay."
    ).tag(config=True)
    aliases = Dict({"port": "AgentFarm.port", "state": "AgentFarm.state", "config": "AgentFarm.config_file"})

    def initialize(self, argv: list[str] | None = None) -> None:
        """Read command line and configuration. Raises StartError."""
        self.parse_command_line(argv)
        path = Path(self.config_file or os.environ.get("AGENTFARM_CONFIG") or "agentfarm_config.py")
        if path.exists():
            self.raise_config_file_errors = True
            try:
                self.load_config_file(path.name, path=str(path.parent.absolute()))
            except Exception as error:
                raise StartError(f"{path} cannot be read: {error}", hint="mend that line, and start again") from error
        self.parse_command_line(argv)  # the command line wins
        self.env = with_dotenv(os.environ, Path(".env"))

    def start(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises StartError, StoreError."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        sys.setswitchinterval(SWITCH_SECONDS)
        uvloop.run(self.serve())

    # -- building ------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Build the parts, serve, and take everything down again."""
        stopped = asked_to_stop()
        directory = Path(self.state or self.env.get("AGENTFARM_STATE", "") or ".farm").absolute()
        key, rules = service_key(directory), checked(self.retention)
        port = self.port or _port(self.env.get("AGENTFARM_SERVICE_PORT", ""))
        sockets, shared = listen(port), shared_address(self.env)
        problem = [""]  # of one that stands by
        front = Front(waiting(lambda: problem[0]))
        server = HTTPServer(front, max_body_size=2**40, xheaders=True, idle_connection_timeout=120)
        upstreams = await self.build_upstreams(directory)
        hub = Hub(_needed(self.env, "JUPYTERHUB_API_URL"), _needed(self.env, "JUPYTERHUB_API_TOKEN"))
        closing: list[Any] = [upstreams, hub]
        try:
            if self.stands_by:
                server.add_sockets(sockets)
            db = await self.open(directory, stopped, problem)
            if db is None:
                return
            memory = Memory(db)
            closing += [memory, db]
            await memory.remind(upstreams)
            parts, scheduler, reaper = self.build(db, key, upstreams, hub, directory)
            front.application = application(parts, derived(key, b"cookies"))
            server.add_sockets(shared if self.stands_by else sockets)
            log.info(
                "serving on 127.0.0.1:%d, epoch %s, generation %d, %s",
                port, db.epoch, db.generation, "SQLite" if db.sqlite else "PostgreSQL",
            )  # fmt: skip
            await parts.models.budgets.ready()  # what a former life reserved is settled before anything is asked
            gc.collect()
            gc.freeze()  # what stands for ever is not looked through each time: 50 ms, in which everybody waits
            await run_until(stopped, *self.loops(parts, scheduler, reaper, rules, directory))
            if self.stands_by:
                step_down(directory)
            server.stop()
            parts.workers.close()
            await within(server.close_all_connections(), 5)
        except Deposed as error:
            leave(error)
        finally:
            server.stop()  # before its sockets are closed: the event loop still looks at them
            for sock in (*sockets, *shared):
                sock.close()
            for one in closing:
                await one.close()
            log.info("stopped")

    def loops(
        self, parts: Parts, scheduler: Scheduler, reaper: Reaper, rules: Mapping[str, float], directory: Path
    ) -> list[Awaitable[None]]:
        """Return what runs for as long as the service leads."""
        db, fleet = parts.db, FleetClient(directory / "fleet.sock")
        return [
            db.lead(),
            scheduler.run(),
            reaper.run(),
            parts.models.budgets.run(),
            Anchoring(db, derived(parts.key, b"anchors"), directory / "anchors.jsonl").run(),
            Retention(db, rules).run(),
            Idling(db, parts.hub, parts.resources, self.idle_seconds).run(),
            FleetWatch(db, fleet, parts.claims.seen, self.lease_seconds).run(),
            parts.judging.run(),
            parts.draining.run(),
        ]

    @property
    def stands_by(self) -> bool:
        return self.standby or self.env.get("AGENTFARM_STANDBY", "") not in ("", "0")

    async def open(self, directory: Path, stopped: asyncio.Event, problem: list[str]) -> Database | None:
        """Open the ledger; one that stands by waits until it leads (None: it was stopped before). Raises StoreError."""
        url = self.db_url or self.env.get("DB_CONNECTION_STRING", "") or f"sqlite:///{directory}/farm.sqlite"
        if not self.stands_by:
            return Database.open(url)

        def note(said: str) -> None:
            if said and said != problem[0]:
                log.warning("standing by: %s", said)
            problem[0] = said

        log.info("standing by")
        db = await Database.stand_by(url, self.lease_seconds, stopped, note)
        if db is not None:
            end_former(directory)
        return db

    def build(
        self, db: Database, key: bytes, upstreams: Upstreams, hub: Hub, directory: Path
    ) -> tuple[Parts, Scheduler, Reaper]:
        """Make the parts and introduce them."""
        vault = Vault(key)
        live = LiveRuns(db, key, lambda owner, names: vault.open(db, owner, names), lease=self.lease_seconds)
        disk = Disk(db.folder or directory)
        workers, claims = Workers(), Claims(db, key, self.lease_seconds, live.expect, disk.full)
        live.push = workers.push
        fleet = FleetClient(directory / "fleet.sock")
        resources = Resourcing(db, fleet)
        scheduler = Scheduler(db, hub, claims, fleet, resources, self.assign_seconds)
        reaper = Reaper(db, self.lease_seconds, lambda agent: fleet.show(unit_name(hub_user(agent))))
        auth = HubOAuth(cache_max_age=HUB_CACHE_SECONDS)
        feed = Feed(db)

        models, surroundings = Models(live, upstreams), Surroundings(hub, fleet, feed)

        async def metrics() -> bytes:
            try:
                seen = await within(surroundings.look(), FLEET_SECONDS)
            except asyncio.TimeoutError:
                seen = surroundings.seen
            vitals = Vitals(db.commits, db.writes, reaper.reaped, feed.readers, db.generation)
            return await scrape(db, lambda: vitals, Fleet(seen.microservers, list(seen.units.values())))

        draining = Draining(db, hub, fleet, claims, resources, surroundings.stale)
        parts = Parts(
            db=db, live=live, models=models, judging=Judging(db, live, models, lambda: feed.wake(CASES)), hub=hub, fleet=fleet, door=Door(auth, key, db.epoch, db.even), key=key,
            encrypt=vault.seal, wake=scheduler.wake, why=scheduler.why, placeless=scheduler.placeless, metrics=metrics, claims=claims, feed=feed, workers=workers, surroundings=surroundings, resources=resources, draining=draining,
            lease=self.lease_seconds, prefix=self.env.get("JUPYTERHUB_SERVICE_PREFIX", "/services/agentfarm/"),
            public_hub=self.env.get("JUPYTERHUB_PUBLIC_HUB_URL", "/hub/"), public_page=self.env.get("JUPYTERHUB_PUBLIC_URL", ""),
        )  # fmt: skip
        return parts, scheduler, reaper

    async def build_upstreams(self, directory: Path) -> Upstreams:
        """Return the model servers: those of the configuration, the Hugging Face router, the embedded one."""
        routes = [_route(settings_of(one)) for one in self.upstreams]
        if url := self.env.get("HF_API_URL", "") or (HUGGING_FACE if self.env.get("HUGGING_FACE_AUTH_TOKEN") else ""):
            model = self.hugging_face_model
            key = self.env.get("HUGGING_FACE_AUTH_TOKEN", "")
            note = f"asked for {model} where an agent names no model; another one: c.AgentFarm.hugging_face_model"
            routes.append(
                _route(Settings(name="hugging-face", url=url.rstrip("/"), key=key, models=(model, "*"), catalog=True, note=note))
            )  # fmt: skip
        if url := self.env.get("AGENTFARM_MODEL_SERVER", ""):
            base = url.rstrip("/").removesuffix("/v1") + "/v1"
            note = "135 million parameters, embedded: set HF_API_URL and HUGGING_FACE_AUTH_TOKEN for a real model"
            key = _read(directory / "secrets" / "model.key")
            routes.append(
                _route(Settings(name="embedded", url=base, key=key, models=(EMBEDDED_MODEL,), native_tools=False, max_in_flight=2, prices={"*": (0.0, 0.0)}, max_tokens=200, context={"*": EMBEDDED_CONTEXT}, note=note))
            )  # fmt: skip
        made = Upstreams(routes, self.default_model)
        if made.routes and made.default:
            route, name = made.route("")
            log.info("agents that name no model are served %s by %s. %s", name, route.upstream.name, route.note)
        return made


def settings_of(named: Mapping[str, Any]) -> Settings:
    """Read one of `c.AgentFarm.upstreams`. Raises StartError: what is wrong with it."""
    try:
        known = {field.name for field in fields(Settings)}
        if unknown := sorted(set(named) - known):
            raise msgspec.ValidationError(f"there is no {unknown[0]}; there are: {', '.join(sorted(known))}")
        return msgspec.convert(dict(named), Settings)
    except msgspec.ValidationError as error:
        what = named.get("name") or "one without a name"
        raise StartError(f"c.AgentFarm.upstreams, {what}: {error}", hint="mend it in agentfarm_config.py") from error


def _route(settings: Settings) -> Route:
    return Route(OpenAICompatible(settings), settings.models, settings.note)


class Vault:
    """Encrypts the secrets of tools under the service's key (Fernet, HKDF-SHA256)."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(derived(key, b"secrets of tools")))

    def seal(self, value: bytes) -> bytes:
        return self._fernet.encrypt(value)

    async def open(self, db: Database, owner: str, names: list[str]) -> dict[str, str]:
        """Return the owner's secrets of these names. Raises StoreError: they were sealed under another key."""
        found = await db.read(lambda c: secret_rows.get(c, owner, names))
        try:
            return {name: self._fernet.decrypt(value).decode() for name, value in found.items()}
        except InvalidToken as error:
            raise StoreError(
                "the secrets were encrypted under another key", hint="bring back secrets/service.key, or set them anew"
            ) from error


# -- what the surroundings give ------------------------------------------------------------------------------------


def derived(key: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes for one purpose of the service's key."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"agentfarm " + purpose).derive(key)


def service_key(directory: Path) -> bytes:
    """Return the key that signs run tokens and encrypts secrets; made at the first start.

    Raises:
        StartError: the state directory cannot be written, or the file can be read by others, or is no key.
    """
    path = directory / "secrets" / "service.key"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _writable(directory)
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(secrets.token_bytes(32))
                out.flush()
                os.fsync(out.fileno())
        mode = stat.S_IMODE(path.stat().st_mode)
        key = path.read_bytes()
    except OSError as error:
        raise StartError(
            f"the state directory {directory} cannot be used: {error.strerror}",
            hint="give its owner the right to write there, or name another one in AGENTFARM_STATE",
        ) from error
    if mode & 0o077:
        raise StartError(f"{path} can be read by others (mode {mode:o})", hint=f"chmod 600 {path}")
    if len(key) != 32:
        raise StartError(f"{path} holds {len(key)} bytes, not a key of 32", hint="bring it back from a backup")
    return key


def _writable(directory: Path) -> None:
    probe = directory / f".probe-{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()


def listen(port: int) -> list[Any]:
    """Bind the port on the loopback. Raises StartError: it is taken."""
    try:
        return bind_sockets(port, "127.0.0.1", reuse_port=False)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else "is not for this user"
        raise StartError(f"port {port} {why}", hint="stop it, or set AGENTFARM_SERVICE_PORT to another one") from error


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise StartError(f"AGENTFARM_SERVICE_PORT is {text!r}", hint="set it to a free port")
    return int(text)


def _needed(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise StartError(f"{name} is not set", hint="start the service by: agentfarm up")
    return env[name]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def asked_to_stop() -> asyncio.Event:
    """Return what SIGTERM and SIGINT set from now on: also one that comes while the service starts ends it in order."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


async def run_until(stopped: asyncio.Event, *loops: Awaitable[None]) -> None:
    """Run the loops until the event is set. A loop that ends by itself ends the process, with what ended it."""
    running = [asyncio.ensure_future(one) for one in loops]
    waiting = asyncio.create_task(stopped.wait())
    done, _ = await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
    for one in (waiting, *running):
        one.cancel()
    await asyncio.gather(waiting, *running, return_exceptions=True)
    for one in done - {waiting}:
        raise one.exception() or RuntimeError("a loop of the service ended")


def main() -> None:
    """Run the service; what hinders its start is one sentence and exit code 1."""
    farm = AgentFarm()
    try:
        farm.initialize()
        farm.start()
    except AgentFarmError as error:
        print(f"agentfarm: {error.detail}. {error.hint}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

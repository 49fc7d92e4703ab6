"""Two services on one PostgreSQL: whatever becomes of the one that leads, the other goes on, and nothing happens twice.

Both are real processes with the farm's address between them, as the launcher gives it; a wire stands between each and the
database. A real agent works all the while, in a thread of this process: it is not told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from servicekit import FakeHub
from test_service_process import free_port

import agentfarm_sdk
from agentfarm_sdk import Agent, tool
from agentfarm_sdk.agent import Run
from agentfarm_sdk.testing import ScriptedServer, calls, says
from jupyterhub_agentfarm.chaos.network import Wire
from jupyterhub_agentfarm.chaos.postgres import Postgres
from jupyterhub_agentfarm.errors import StoreError, Transient
from jupyterhub_agentfarm.store import engines
from jupyterhub_agentfarm.store.db import Database
from jupyterhub_agentfarm.store.leading import Lock

T = TypeVar("T")
LEASE = 4.0
HEAL = 120.0  # seconds: a generous deadline for what takes a moment
BUSY = 20.0  # seconds that a busy machine may take besides
STEPS = 10
pytestmark = [pytest.mark.timeout(500)]


def until(look: Callable[[], T | None], seconds: float, what: str) -> T:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return found


class One:
    """One of the services."""

    def __init__(self, pair: Pair, name: str) -> None:
        self.pair, self.name, self.port = pair, name, free_port()
        self.wire = Wire(lambda: str(pair.postgres.folder / ".s.PGSQL.5432"))
        self.log = pair.folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        drop = ("JUPYTERHUB_", "AGENTFARM_", "DB_", "HF_", "HUGGING_FACE")
        env = {name: value for name, value in os.environ.items() if not name.startswith(drop)} | {
            "AGENTFARM_STATE": str(self.pair.folder / "state"), "AGENTFARM_SERVICE_PORT": str(self.port), "AGENTFARM_STANDBY": "1",
            "AGENTFARM_SERVICE_FD": str(self.pair.address.fileno()), "JUPYTERHUB_API_URL": self.pair.hub_url,
            "JUPYTERHUB_API_TOKEN": "of-the-service", "JUPYTERHUB_CLIENT_ID": "service-agentfarm", "JUPYTERHUB_SERVICE_NAME": "agentfarm",
            "JUPYTERHUB_SERVICE_PREFIX": "/services/agentfarm/", "JUPYTERHUB_BASE_URL": "/",
            "DB_CONNECTION_STRING": f"postgresql://farm@127.0.0.1:{self.wire.port}/{self.pair.database}",
            "PYTHONPATH": str(Path(agentfarm_sdk.__file__).parents[1]),
        }  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub_agentfarm.app"], env=env, cwd=self.pair.folder, stdout=log, stderr=log,
                pass_fds=[self.pair.address.fileno()],
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def health(self) -> dict[str, Any]:
        """What it says of itself on its own port, with the HTTP status; {} where it says nothing."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/health", timeout=2)
        except httpx.HTTPError:
            return {}
        return {**answer.json(), "code": answer.status_code}

    def leads(self) -> bool:
        return self.health().get("code") == 200

    def stands_by(self) -> bool:
        return bool(self.health().get("status") == "standby")

    def gone(self) -> bool:
        assert self.process
        return self.process.poll() is not None

    def end(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait()


class Pair:
    """Two services, their address, and what they need."""

    def __init__(self, folder: Path, postgres: Postgres, hub_url: str, model: ScriptedServer) -> None:
        self.folder, self.postgres, self.hub_url, self.model = folder, postgres, hub_url, model
        self.database = postgres.create().partition("@/")[2].partition("?")[0]
        self.address = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self.address.getsockname()[1]}"
        upstream = {"name": "gpu", "url": model.url, "models": ["scripted"]}
        (folder / "agentfarm_config.py").write_text(
            f"c.AgentFarm.lease_seconds = {LEASE}\nc.AgentFarm.upstreams = [{upstream!r}]\n"
        )
        self.both = [One(self, "first"), One(self, "second")]
        for one in self.both:
            one.start()  # at once: one of them leads

    def ready(self) -> tuple[One, One]:
        """Wait until one leads and the other stands by; one that has ended is started, as the launcher would."""

        def both() -> tuple[One, One] | None:
            for one in self.both:
                if one.gone():
                    one.end()
                    one.start()
            leads, stands_by = [o for o in self.both if o.leads()], [o for o in self.both if o.stands_by()]
            return (leads[0], stands_by[0]) if len(leads) == len(stands_by) == 1 else None

        return until(both, HEAL, "one leads and the other stands by")

    def ask(self, path: str) -> Any:
        headers = {"Authorization": "token ann"}
        return httpx.get(f"{self.url}/api/v1{path}", headers=headers, timeout=HEAL).raise_for_status().json()

    def close(self) -> None:
        for one in self.both:
            one.end()
            one.wire.close()
        self.address.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, breakable: Postgres) -> Iterator[Pair]:
    hub, loop = FakeHub(), asyncio.new_event_loop()
    looping = threading.Thread(target=loop.run_forever)
    looping.start()
    asyncio.run_coroutine_threadsafe(hub.start(), loop).result(30)
    turns = [calls("charge", number=number) for number in range(STEPS)]
    with ScriptedServer(*turns, says("done"), delay=0.1) as model:
        made = Pair(tmp_path_factory.mktemp("standby"), breakable, hub.url, model)
        yield made
        made.close()
    asyncio.run_coroutine_threadsafe(hub.stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    looping.join()
    loop.close()


class Work:
    """An agent at work in a thread, with an effect that may happen once for each number."""

    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
        monkeypatch.setenv("AGENTFARM_URL", pair.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
        self.pair, self.charged = pair, Counter[int]()
        self.result: Run | BaseException | None = None

        @tool
        def charge(number: int) -> str:
            """Charge."""
            self.charged[number] += 1
            return f"charged {number}"

        self.agent = Agent("clerk", prompt="Charge.", tools=[charge], mode="live")
        self.thread = threading.Thread(target=self._drive, daemon=True)
        self.thread.start()
        until(lambda: len(self.charged) >= 3 or self.result, HEAL, "the agent works")

    def _drive(self) -> None:
        try:
            self.result = self.agent.run("go")
        except BaseException as error:
            self.result = error

    def ends_as_if_nothing_had_happened(self) -> None:
        self.thread.join(HEAL)
        assert isinstance(self.result, Run), self.result
        assert self.result.result == "done"
        assert self.charged == Counter(range(STEPS))
        kinds = Counter(
            event["kind"] for event in self.pair.ask(f"/runs/{self.result.run_id}/events?limit=500")["items"]
        )
        assert kinds["run.succeeded"] == kinds["run.leased"] == 1 and kinds["tool.started"] == STEPS, kinds
        assert not kinds["tool.doubted"] and not kinds["run.requeued"]
        assert self.pair.ask(f"/runs/{self.result.run_id}/verify")["ok"]


@pytest.fixture
def work(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Work:
    pair.ready()
    return Work(pair, monkeypatch)


def taken_over(former: One, new: One, generation: int, what: str) -> None:
    """Wait until the other one leads: at most two periods of a lease, and the farm's address answers for it."""
    began = time.monotonic()
    until(new.leads, 2 * LEASE + BUSY, f"the other one leads after {what}")
    print(f"{what}: taken over after {time.monotonic() - began:.2f} s")
    assert new.health()["generation"] == generation + 1


def test_one_leads_and_the_other_says_that_it_stands_by(pair: Pair) -> None:
    leader, standby = pair.ready()
    assert pair.ask("/health")["generation"] == leader.health()["generation"]
    assert standby.health()["code"] == 503
    own = f"http://127.0.0.1:{standby.port}"
    for path in ("/api/v1/tasks", "/services/agentfarm/", "/api/v1/worker"):
        answer = httpx.get(own + path)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), path
        assert answer.json()["type"] == "unavailable" and answer.json()["hint"]
    assert "agentfarm_leader 0.0" in httpx.get(f"{own}/api/v1/metrics").text
    assert "agentfarm_leader 1.0" in httpx.get(f"{pair.url}/api/v1/metrics").text


def test_a_leader_that_is_killed_is_followed_at_once(pair: Pair, work: Work) -> None:
    leader, standby = pair.ready()
    generation = leader.health()["generation"]
    leader.end()
    taken_over(leader, standby, generation, "kill -9")
    work.ends_as_if_nothing_had_happened()


def test_a_leader_that_stops_for_longer_than_its_lease_leads_no_more_when_it_wakes(pair: Pair, work: Work) -> None:
    leader, standby = pair.ready()
    (pair.folder / "state" / "leading.json").unlink()  # so that it is not ended by the other one, as on another machine
    generation = leader.health()["generation"]
    os.kill(leader.pid, signal.SIGSTOP)
    taken_over(leader, standby, generation, "SIGSTOP")
    charged = len(work.charged)
    os.kill(leader.pid, signal.SIGCONT)
    until(leader.gone, HEAL, "the former leader ends")
    assert "another service" in leader.log.read_text()
    work.ends_as_if_nothing_had_happened()
    assert charged < STEPS, "the run was under way all the while"


def test_a_leader_that_the_database_does_not_hear_of_any_more_is_followed_and_ends(pair: Pair, work: Work) -> None:
    leader, standby = pair.ready()
    generation = leader.health()["generation"]
    leader.wire.silence()
    taken_over(leader, standby, generation, "a silent network between leader and database")
    until(leader.gone, HEAL, "the former leader ends")
    leader.wire.open()
    work.ends_as_if_nothing_had_happened()


def test_after_a_restart_of_the_database_exactly_one_leads(pair: Pair, work: Work) -> None:
    pair.ready()
    pair.postgres.kill()
    pair.postgres.start()
    until(lambda: any(one.leads() for one in pair.both), HEAL, "one leads again")
    work.ends_as_if_nothing_had_happened()
    pair.ready()


def test_a_leader_that_is_asked_to_stop_hands_over_at_once(pair: Pair, work: Work) -> None:
    leader, standby = pair.ready()
    generation = leader.health()["generation"]
    assert leader.process
    leader.process.terminate()
    taken_over(leader, standby, generation, "SIGTERM")
    assert leader.process.wait(HEAL) == 0
    work.ends_as_if_nothing_had_happened()


def test_what_a_model_was_asked_by_a_leader_that_died_is_counted_and_asked_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, _ = pair.ready()
    budget = {"scope": "owner", "name": "ann", "unit": "tokens", "period": "day", "amount": 10_000_000}
    with httpx.Client(base_url=f"{pair.url}/api/v1", headers={"Authorization": "token operator"}, timeout=HEAL) as http:
        assert http.put("/budgets", json=budget).is_success
        work = Work(pair, monkeypatch)
        asked, pair.model.delay = len(pair.model.requests), 3600.0
        try:
            until(lambda: len(pair.model.requests) > asked, HEAL, "the model is asked")
            run = pair.ask("/runs?limit=1")["items"][0]["run_id"]
            events = f"/runs/{run}/events?limit=500"  # its commit does not hold the question up
            until(lambda: pair.ask(events)["items"][-1]["kind"] == "model.requested", HEAL, "it is on record")
            leader.end()
        finally:
            pair.model.delay = 0.1
        work.ends_as_if_nothing_had_happened()
        assert isinstance(work.result, Run)
        items = pair.ask(f"/runs/{work.result.run_id}/events?limit=500")["items"]
        lost = [e["body"] for e in items if e["kind"] == "model.failed"]
        assert [one["error"]["type"] for one in lost] == ["lost"] and lost[0]["usage"]["estimated"]
        assert http.put("/budgets", json={**budget, "amount": None}).is_success


def test_with_sqlite_a_standby_is_refused_with_the_way_out(pair: Pair, tmp_path: Path) -> None:
    env = {
        **os.environ, "AGENTFARM_STATE": str(tmp_path / "state"), "AGENTFARM_SERVICE_PORT": str(free_port()), "AGENTFARM_STANDBY": "1",
        "JUPYTERHUB_API_URL": pair.hub_url, "JUPYTERHUB_API_TOKEN": "t", "DB_CONNECTION_STRING": "",
        "PYTHONPATH": str(Path(agentfarm_sdk.__file__).parents[1]),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "jupyterhub_agentfarm.app"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=HEAL, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "SQLite cannot have a standby" in done.stderr and "PostgreSQL" in done.stderr


class Pooler(Wire):
    """A wire that gives sessions numbers of its own, as poolers do: which server's session it is cannot be known."""

    def _carry(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(
                    re.sub(rb"K\x00\x00\x00\x0c.{4}", b"K\x00\x00\x00\x0c\x00\x00\x00\x07", data, flags=re.DOTALL)
                )
        sink.close()


def test_a_pooler_between_service_and_database_is_refused(postgres: Postgres) -> None:
    socket_file = str(postgres.folder / ".s.PGSQL.5432")
    for between, refused in ((Wire(lambda: socket_file), False), (Pooler(lambda: socket_file), True)):
        database = postgres.create().partition("@/")[2].partition("?")[0]
        url = f"postgresql://farm@127.0.0.1:{between.port}/{database}"
        if refused:
            with pytest.raises(StoreError, match="pooler") as said:
                Database.open(url)
            assert "DB_CONNECTION_STRING" in said.value.hint
        else:
            asyncio.run(Database.open(url).close())
        between.close()


class Router(Wire):
    """A wire that forgets a client and never tells the server."""

    def _carry(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)


async def test_a_session_of_one_s_own_that_the_database_takes_for_alive_stands_in_nobody_s_way(
    postgres: Postgres,
) -> None:
    wire = Router(lambda: str(postgres.folder / ".s.PGSQL.5432"))
    name = postgres.create().partition("@/")[2].partition("?")[0]
    db = Database.open(f"postgresql://farm@127.0.0.1:{wire.port}/{name}")
    try:
        await db.sure()
        assert db._connection
        ours = db._connection.connection.driver_connection.fileno()  # type: ignore[union-attr]
        with socket.socket(fileno=os.dup(ours)) as end:
            end.shutdown(socket.SHUT_RDWR)
        with pytest.raises(Transient):
            await db.sure()
        await db.sure()
        assert db.generation == 1
    finally:
        await db.close()
        wire.close()


def test_a_leader_that_is_stuck_in_the_middle_of_a_pipeline_is_followed(postgres: Postgres) -> None:
    """Its session is not idle either: PostgreSQL waits for the rest of what is asked."""
    url = postgres.create()
    former, reader = engines.make(url)
    following, other = engines.make(url)
    mine, theirs = Lock(following, 1.0), Lock(former, 1.0)
    session = theirs.connect()
    driver: Any = session.connection.driver_connection
    try:
        with pytest.raises(psycopg.OperationalError), driver.pipeline():
            driver.execute("SELECT 1")  # written, and no end of the pipeline behind it
            until(mine.ask, HEAL, "the other one leads")
            driver.execute("SELECT 1").fetchone()
    finally:
        mine.release()
        for engine in (former, reader, following, other):
            engine.dispose()


def test_a_leader_that_is_stuck_after_a_flush_request_is_followed(postgres: Postgres) -> None:
    """PostgreSQL's timeout of an idle session ends with the next message, also with one to which nothing is answered."""
    url = postgres.create()
    former, reader = engines.make(url)
    following, other = engines.make(url)
    mine, theirs = Lock(following, 1.0), Lock(former, 1.0)
    session = theirs.connect()
    try:
        pgconn = session.connection.driver_connection.pgconn  # type: ignore[union-attr]
        pgconn.send_flush_request()  # as psycopg asks behind a pipeline's end
        pgconn.flush()
        until(mine.ask, 20, "the other one leads")
    finally:
        mine.release()
        session.invalidate()
        for engine in (former, reader, following, other):
            engine.dispose()


def test_a_leader_that_is_stuck_in_the_middle_of_an_answer_is_followed(postgres: Postgres) -> None:
    """Its session is not idle: PostgreSQL waits to send the rest."""
    wire = Wire(lambda: str(postgres.folder / ".s.PGSQL.5432"))
    url = postgres.create()
    name = url.partition("@/")[2].partition("?")[0]
    former, reader = engines.make(f"postgresql://farm@127.0.0.1:{wire.port}/{name}")
    following, other = engines.make(url)
    mine, theirs = Lock(following, 1.0), Lock(former, 1.0)
    session = theirs.connect()

    def take() -> None:
        with contextlib.suppress(sa.exc.DBAPIError):
            session.exec_driver_sql("SELECT repeat('x', 100000000)")

    taking = threading.Thread(target=take)
    try:
        session.exec_driver_sql("SELECT 1")  # the transaction has begun: what follows is one question and its answer
        wire.silence("down")
        taking.start()
        until(mine.ask, HEAL, "the other one leads")
    finally:
        wire.close()
        taking.join()
        mine.release()
        for engine in (former, reader, following, other):
            engine.dispose()

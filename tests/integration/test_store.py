"""The ledger on real databases: what is written stays, what may not be written is refused, in the writing transaction."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.schema import CreateIndex

from agentfarm_sdk.audit import Link
from agentfarm_sdk.protocol import Definition, NewEvent, ToolSpec, decode_events, new_event
from jupyterhub_agentfarm.errors import Conflict, Fenced, Forbidden, Hole, Invalid, NotFound, StoreError, Transient
from jupyterhub_agentfarm.records import Run, Task
from jupyterhub_agentfarm.store import blobs, bundles, engines, inbox, leases, ledger, schema, tasks, threads, turns
from jupyterhub_agentfarm.store.db import Database, Tx
from jupyterhub_agentfarm.store.tables import events, metadata, runs

DEFINITION = Definition(prompt="Add {{what}}.", variables={"what": "numbers"}, tools=[ToolSpec(name="pay")])


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database.open(database_url)
    yield database
    await database.close()


async def submitted(db: Database, owner: str = "alice", agent: str = "analyst", **asked: Any) -> Task:
    submission = tasks.Submission(
        owner=owner, submitted_by=owner, target=agent, input=asked.pop("input", "2+2"), **asked
    )
    choice = tasks.Choice(agent, DEFINITION, 1)
    return (await db.write(lambda tx: tasks.submit(tx, db.epoch, submission, choice)))[0]


async def claimed(db: Database, claim_id: str = "claim-1", agent: str = "analyst", seconds: float = 30.0) -> Run:
    run = await db.write(lambda tx: leases.claim(tx, agent, "worker-1", claim_id, seconds))
    assert run is not None
    return run


async def running(db: Database) -> Run:
    await submitted(db)
    return await claimed(db)


async def append(db: Database, run: Run, n: int, *new: NewEvent, fence: int | None = None) -> ledger.Appended:
    raw = msgspec.json.encode(list(new))
    return await db.write(lambda tx: ledger.append(tx, run.run_id, fence or run.fence, n, decode_events(raw)))


async def kinds(db: Database, run_id: str) -> list[str]:
    return [event.kind for event in await db.read(lambda c: ledger.read_events(c, run_id))]


VALUE = new_event("value.recorded", {"name": "x", "value": 1})
REPLIED = new_event(
    "model.replied",
    {
        "message": {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c0-0", "type": "function", "function": {"name": "pay", "arguments": "{}"}}],
        }
    },
)


async def started(db: Database, run: Run, effect: str) -> None:
    begun = new_event(
        "tool.started",
        {"tool": "pay", "key": "k", "effect": effect, "attempt": 1, "timeout": 60, "fence": run.fence},
        "c0-0",
    )
    await db.write(lambda tx: ledger.record(tx, run.run_id, "gateway", [REPLIED, begun], fence=run.fence))


async def test_a_task_begins_with_its_prompt_and_input_and_ends_with_its_result(db: Database) -> None:
    run = await running(db)
    done = await append(db, run, 1, new_event("run.succeeded", {"result": "4"}))
    assert await kinds(db, run.run_id) == [
        "run.created",
        "message.added",
        "message.added",
        "run.leased",
        "run.succeeded",
    ]
    task = await db.read(lambda c: tasks.show(c, run.task_id))
    assert (task.status, task.result) == ("succeeded", "4") and task.ended_at
    assert (await db.read(lambda c: ledger.verify(c, run.run_id))).ok and done.seq == 5


async def test_a_run_that_goes_on_while_it_is_checked_is_whole(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run, loop, read = await running(db), asyncio.get_running_loop(), ledger.read_links

    def meanwhile(connection: sa.Connection, row: Run) -> list[Link]:
        n = row.last_n + 1 if row.run_id == run.run_id else 0
        if n:
            asyncio.run_coroutine_threadsafe(append(db, run, n, VALUE), loop).result(60)
        return read(connection, row)

    monkeypatch.setattr(ledger, "read_links", meanwhile)
    found = await db.read(lambda c: ledger.verify(c, run.run_id))
    assert found.ok and found.events == run.seq, found
    assert all(one.ok for one in await db.read(ledger.verify_all))
    zipped = await db.read(lambda c: bundles.make(c, run.run_id, db.now()))
    told = zipfile.ZipFile(io.BytesIO(zipped))
    assert msgspec.json.decode(told.read("run.json"))["seq"] == len(told.read("events.jsonl").splitlines())
    monkeypatch.undo()
    assert (await db.read(lambda c: ledger.verify(c, run.run_id))).events == run.seq + 3


async def test_a_repeated_append_is_only_answered_again_and_another_one_refused(db: Database) -> None:
    run = await running(db)
    first = await append(db, run, 1, VALUE)
    again = await append(db, run, 1, VALUE)
    assert again.repeated and (again.seq, again.head) == (first.seq, first.head)
    with pytest.raises(Conflict):
        await append(db, run, 1, new_event("value.recorded", {"name": "x", "value": 2}))
    assert (await kinds(db, run.run_id)).count("value.recorded") == 1


async def test_a_hole_a_stale_fence_and_a_kind_that_is_not_the_workers_are_refused(db: Database) -> None:
    run = await running(db)
    with pytest.raises(Hole):
        await append(db, run, 2, VALUE)
    with pytest.raises(Fenced):
        await append(db, run, 1, VALUE, fence=run.fence + 1)
    with pytest.raises(Forbidden):
        await append(db, run, 1, new_event("model.replied", {}))
    assert "value.recorded" not in await kinds(db, run.run_id)


async def test_of_two_workers_that_resume_one_run_one_is_fenced(db: Database) -> None:
    run = await running(db)
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "lease expired", None))
    second = await claimed(db, "claim-2")
    assert second.fence == run.fence + 1
    done = await asyncio.gather(append(db, run, 1, VALUE), append(db, second, 1, VALUE), return_exceptions=True)
    assert isinstance(done[0], Fenced) and isinstance(done[1], ledger.Appended)


async def test_the_same_claim_gets_the_same_lease_and_another_gets_nothing(db: Database) -> None:
    run = await running(db)
    again = await claimed(db)
    assert (again.run_id, again.fence) == (run.run_id, run.fence)
    assert await db.write(lambda tx: leases.claim(tx, "analyst", "w", "claim-9", 30.0)) is None


async def test_a_bad_member_of_a_batch_harms_nobody_else(db: Database) -> None:
    run = await running(db)
    other = await submitted(db, agent="clerk")

    def bad(tx: Tx) -> None:
        tx.execute(runs.update().where(runs.c.run_id == run.run_id).values(worker="half"))
        raise RuntimeError("after a write")

    results = await asyncio.gather(
        append(db, run, 1, VALUE),
        db.write(bad),
        db.write(lambda tx: leases.assign(tx, str(other.run_id))),
        return_exceptions=True,
    )
    assert isinstance(results[0], ledger.Appended) and isinstance(results[1], RuntimeError) and results[2] is None
    assert (await db.read(lambda c: ledger.read_run(c, run.run_id))).worker == "worker-1"
    assert (await append(db, run, 2, VALUE)).n == 2


async def test_many_appends_at_once_share_commits_and_every_chain_holds(db: Database) -> None:
    held = []
    for number in range(16):
        await submitted(db, input=f"{number}")
        held.append(await claimed(db, f"claim-{number}"))
    before = db.commits
    for n in range(1, 6):
        await asyncio.gather(*(append(db, run, n, VALUE, VALUE) for run in held))
    assert db.commits - before < 5 * 16
    assert all(check.ok for check in await db.read(ledger.verify_all))


async def test_a_key_submits_once_and_refuses_another_body(db: Database) -> None:
    one, two = await asyncio.gather(submitted(db, key="k"), submitted(db, key="k"))
    assert one.task_id == two.task_id
    with pytest.raises(Conflict):
        await submitted(db, key="k", input="3+3")
    assert (await submitted(db, owner="bob", key="k", input="3+3")).task_id != one.task_id


async def test_a_variable_without_value_is_refused_before_anything_is_written(db: Database) -> None:
    submission = tasks.Submission(owner="alice", submitted_by="alice", target="a", input="x")
    choice = tasks.Choice("a", Definition(prompt="{{who}}"), 1)
    with pytest.raises(Invalid):
        await db.write(lambda tx: tasks.submit(tx, db.epoch, submission, choice))
    assert await db.read(lambda c: tasks.listed(c)) == []


@pytest.mark.parametrize(
    ("effect", "status", "waiting"),
    [("read", "queued", None), ("idempotent", "queued", None), ("once", "waiting", "in_doubt")],
)
async def test_what_becomes_of_an_open_call_when_the_worker_is_gone(
    db: Database, effect: str, status: str, waiting: str | None
) -> None:
    run = await running(db)
    await started(db, run, effect)
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "the kernel died", "kernel exited with -9"))
    row = await db.read(lambda c: ledger.read_run(c, run.run_id))
    assert (row.status, row.waiting) == (status, waiting)
    task = await db.read(lambda c: tasks.show(c, run.task_id))
    assert (task.status, task.waiting) == (status, waiting)
    asked = await db.read(lambda c: inbox.listed(c, owners=["alice"]))
    assert len(asked) == (effect == "once")


async def test_an_idempotent_call_of_a_silent_worker_waits_for_its_timeout(db: Database) -> None:
    run = await running(db)
    await started(db, run, "idempotent")
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "lease expired", None))
    assert await db.write(lambda tx: leases.claim(tx, "analyst", "w", "c2", 30.0)) is None
    await db.write(lambda tx: tx.execute(runs.update().values(not_before=tx.now - 1)) and None)
    assert await db.write(lambda tx: leases.claim(tx, "analyst", "w", "c3", 30.0)) is not None


async def test_cancelling_ends_a_queued_run_at_once_and_asks_a_running_one(db: Database) -> None:
    queued = await submitted(db)
    assert (await db.write(lambda tx: tasks.cancel(tx, queued.task_id, "user:alice", "no need"))).status == "cancelled"
    run = await running(db)
    await started(db, run, "read")
    assert (await db.write(lambda tx: tasks.cancel(tx, run.task_id, "user:alice", "stop"))).status == "cancelling"
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "the kernel died", "kernel exited with -9"))
    assert (await db.read(lambda c: tasks.show(c, run.task_id))).status == "cancelled"
    with pytest.raises(Conflict):
        await append(db, run, 1, VALUE, fence=run.fence)


async def test_a_paused_task_is_not_claimed_until_it_is_resumed(db: Database) -> None:
    task = await submitted(db)
    await db.write(lambda tx: tasks.pause(tx, task.task_id, "user:alice", "wait"))
    assert await db.write(lambda tx: leases.claim(tx, "analyst", "w", "c1", 30.0)) is None
    await db.write(lambda tx: tasks.resume(tx, task.task_id, "user:alice"))
    assert (await claimed(db)).task_id == task.task_id
    with pytest.raises(Conflict):
        await db.write(lambda tx: tasks.resume(tx, task.task_id, "user:alice"))


async def test_the_second_message_of_a_thread_waits_and_continues_the_first(db: Database) -> None:
    thread = await db.write(lambda tx: threads.create(tx, agent="analyst", owner="alice"))
    await submitted(db, thread_id=thread["thread_id"])
    await submitted(db, thread_id=thread["thread_id"], input="and 3?")
    first = await claimed(db)
    assert await db.write(lambda tx: leases.claim(tx, "analyst", "w", "c2", 30.0)) is None
    await append(db, first, 1, new_event("run.succeeded", {"result": "4"}))
    second = await claimed(db, "c3")
    assert await kinds(db, second.run_id) == ["run.created", "thread.continued", "message.added", "run.leased"]
    with pytest.raises(NotFound):
        await submitted(db, owner="bob", thread_id=thread["thread_id"])


async def test_a_thread_that_rejects_takes_one_message_at_a_time(db: Database) -> None:
    thread = await db.write(lambda tx: threads.create(tx, agent="analyst", owner="alice", policy="reject"))
    await submitted(db, thread_id=thread["thread_id"])
    with pytest.raises(Conflict):
        await submitted(db, thread_id=thread["thread_id"])


async def test_a_blob_is_kept_for_its_run_alone(db: Database) -> None:
    import hashlib

    run, content = await running(db), b"x" * 20_000
    name = hashlib.sha256(content).hexdigest()
    for _ in range(2):
        await db.write(lambda tx: blobs.put(tx, run.run_id, name, content))
    assert await db.read(lambda c: blobs.get(c, run.run_id, name)) == content
    with pytest.raises(NotFound):
        await db.read(lambda c: blobs.get(c, "run-other", name))
    with pytest.raises(Invalid):
        await db.write(lambda tx: blobs.put(tx, run.run_id, "0" * 64, content))


@pytest.mark.parametrize("column", ["header", "body", "salt"])
async def test_a_byte_flipped_anywhere_is_found_and_named(db: Database, column: str) -> None:
    run = await running(db)
    await append(db, run, 1, VALUE)

    def flip(tx: Tx) -> None:
        where = sa.and_(events.c.run_no == run.run_no, events.c.seq == 3)
        raw = bytearray(tx.connection.execute(sa.select(events.c[column]).where(where)).scalar_one())
        raw[len(raw) // 2] ^= 1
        tx.execute(events.update().where(where).values({column: bytes(raw)}))

    await db.write(flip)
    check = await db.read(lambda c: ledger.verify(c, run.run_id))
    assert not check.ok and check.bad_seq in ((3, 4) if column == "header" else (3,)) and check.why


async def test_a_dropped_tail_and_a_dropped_event_are_found(db: Database) -> None:
    run = await running(db)
    await append(db, run, 1, VALUE)
    await db.write(
        lambda tx: tx.execute(events.delete().where(events.c.run_no == run.run_no, events.c.seq == 5)) and None
    )
    assert (await db.read(lambda c: ledger.verify(c, run.run_id))).bad_seq == 5
    await db.write(
        lambda tx: tx.execute(events.delete().where(events.c.run_no == run.run_no, events.c.seq == 2)) and None
    )
    assert (await db.read(lambda c: ledger.verify(c, run.run_id))).bad_seq == 2


async def test_listeners_hear_of_every_commit_in_order(db: Database) -> None:
    heard: list[int] = []
    db.on_commit(lambda committed: heard.extend(event.seq for one in committed for event in one.events))
    run = await running(db)
    for n in range(1, 4):
        await append(db, run, n, VALUE)
    assert heard == list(range(1, 8))


async def test_a_migrated_schema_equals_the_tables(db: Database) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        # Alembic cannot read an index with DESC back from SQLite: there its own words are compared.
        index = next(one for one in runs.indexes if one.name == "ix_runs_queue")
        context = MigrationContext.configure(
            connection, opts={"include_object": lambda _one, name, *_rest: not (db.sqlite and name == index.name)}
        )
        found = list(compare_metadata(context, metadata))
        if db.sqlite:
            kept = connection.scalar(sa.text("SELECT sql FROM sqlite_master WHERE name = 'ix_runs_queue'"))
            found += [] if kept == str(CreateIndex(index).compile(dialect=connection.dialect)) else [kept]
        return found

    assert await db.read(differences) == []


async def test_claiming_looks_at_the_first_run_of_the_queue_alone(db: Database) -> None:
    for _ in range(200):
        await submitted(db)

    def plan(tx: Tx) -> str:
        explain = "EXPLAIN QUERY PLAN " if tx.sqlite else "EXPLAIN (COSTS OFF) "
        statement = str(turns.NEXT).replace(":agent", "'analyst'").replace(":now", str(tx.now))
        return "\n".join(str(row) for row in tx.connection.exec_driver_sql(explain + statement))

    said = await db.write(plan)
    assert "ix_runs_queue" in said, said
    if not db.sqlite:  # which has not counted the table since it grew
        assert "Seq Scan on runs" not in said and "ix_runs_agent_status" not in said, said
    if db.sqlite:  # the sort is over owners, not over what waits
        assert "ix_runs_thread_id" in said and "ix_runs_concurrency" in said and said.count("TEMP B-TREE") == 1, said
        assert "SCAN runs" not in said and "SCAN q" not in said and "SCAN r" not in said, said


async def test_a_second_service_on_the_database_is_refused(db: Database, database_url: str) -> None:
    with pytest.raises(StoreError, match="another service"):
        Database.open(database_url)


async def test_a_newer_and_an_older_schema_are_refused_with_the_way_out(database_url: str) -> None:
    await Database.open(database_url).close()
    writer, _ = engines.make(database_url)
    with writer.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="newer release"):
        Database.open(database_url)
    with pytest.raises(StoreError, match="newer release"):
        schema.upgrade(database_url)
    writer.dispose()


async def test_a_postgresql_that_is_gone_is_said_and_work_goes_on_when_it_is_back(breakable: Any) -> None:
    db = Database.open(breakable.create())
    try:
        run = await running(db)
        breakable.stop()
        with pytest.raises(Transient):
            await append(db, run, 1, VALUE)
        with pytest.raises(Transient):
            await db.read(lambda c: ledger.read_run(c, run.run_id))
        breakable.start()
        assert (await append(db, run, 1, VALUE)).n == 1
        assert (await db.read(lambda c: ledger.verify(c, run.run_id))).ok
    finally:
        await db.close()


async def test_a_full_disk_loses_nothing_and_work_goes_on(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path}/farm.sqlite")
    run = await running(db)
    await db.write(lambda tx: tx.driver.execute("PRAGMA max_page_count = 1") and None)
    big = new_event("value.recorded", {"name": "x", "value": os.urandom(250_000).hex()})
    with pytest.raises(Transient, match="full"):
        await append(db, run, 1, big)
    await db.write(lambda tx: tx.driver.execute("PRAGMA max_page_count = 1000000") and None)
    assert (await append(db, run, 1, big)).n == 1
    await db.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [("sqlite:////nowhere/at/all/x.sqlite", "does not exist"), ("sqlite:///", "memory"), ("mysql://x/y", "mysql"), ("nonsense", "cannot be read"),
     ("postgresql://nobody@127.0.0.1:1/x", "cannot be reached")],
)  # fmt: skip
def test_a_database_that_cannot_be_used_is_a_sentence(url: str, why: str) -> None:
    with pytest.raises(StoreError, match=why) as caught:
        Database.open(url)
    assert caught.value.hint


def test_a_file_that_is_no_database_and_one_of_somebody_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StoreError, match="not a SQLite database"):
        Database.open(f"sqlite:///{tmp_path}/a.sqlite")
    with sqlite3.connect(tmp_path / "b.sqlite") as connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(StoreError, match="something else"):
        Database.open(f"sqlite:///{tmp_path}/b.sqlite")


_WRITER = """
import asyncio, sys, msgspec
sys.path[:0] = [{tests!r}]
from test_store import *
async def main():
    db = Database.open({url!r})
    run = await running(db)
    n = 0
    while True:
        n += 1
        await append(db, run, n, VALUE)
        print(run.run_id, n, flush=True)
asyncio.run(main())
"""


async def test_a_service_killed_in_mid_append_has_written_all_that_it_answered(database_url: str) -> None:
    code = _WRITER.format(tests=str(Path(__file__).parent), url=database_url)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    answered = [process.stdout.readline().split() for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    answered += [line.split() for line in process.stdout if line.endswith("\n")]
    process.wait()
    run_id, last = answered[-1][0], int(answered[-1][1])
    db = Database.open(database_url)
    run = await db.read(lambda c: ledger.read_run(c, run_id))
    assert run.last_n in (last, last + 1)
    assert (await db.read(lambda c: ledger.verify(c, run_id))).ok
    await db.close()


async def test_megabytes_and_other_statements_in_one_commit_are_written(database_url: str) -> None:
    db = Database.open(database_url)
    run = await running(db)
    large = [new_event("value.recorded", {"name": "x", "value": os.urandom(1000).hex()}) for _ in range(1500)]

    def write(tx: Tx) -> ledger.Appended:
        tx.execute(sa.select(runs.c.run_id)).all()  # a transaction has begun
        return ledger.append(tx, run.run_id, run.fence, 1, large)

    assert len((await asyncio.wait_for(db.write(write), 60)).events) == 1500
    assert (await db.read(lambda c: ledger.verify(c, run.run_id))).ok
    await db.close()

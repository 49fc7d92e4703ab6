"""Backups, and what restoring one begins: a new epoch in which nothing goes on without a person."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentfarm_sdk.audit import Leaf
from agentfarm_sdk.protocol import Definition, ToolSpec, call_key, new_event
from jupyterhub_agentfarm.cli.main import main
from jupyterhub_agentfarm.errors import Fenced, StoreError
from jupyterhub_agentfarm.records import Run
from jupyterhub_agentfarm.store import anchors, leases, ledger, restoring, tasks
from jupyterhub_agentfarm.store.db import Database

DEFINITION = Definition(prompt="p", tools=[ToolSpec(name="pay", schema={"type": "object"}, source="kernel")])


async def begun(db: Database, agent: str = "a") -> Run:
    """Begin a run and let a worker have it, with a `once` call that was started."""
    asked = tasks.Submission(owner="ann", submitted_by="ann", target=agent, input="go")
    await db.write(lambda tx: tasks.submit(tx, db.epoch, asked, tasks.Choice(agent, DEFINITION, 1)))
    run = await db.write(lambda tx: leases.claim(tx, agent, "w", f"claim-{agent}", 30.0))
    assert run is not None
    call = {"id": "c0-0", "type": "function", "function": {"name": "pay", "arguments": "{}"}}
    replied = {"request": "r0", "message": {"role": "assistant", "content": "", "tool_calls": [call]}}
    started = {
        "tool": "pay",
        "key": call_key(db.epoch, run.run_id, "c0-0"),
        "effect": "once",
        "attempt": 1,
        "timeout": 60,
        "fence": run.fence,
    }
    events = [new_event("model.replied", replied), new_event("tool.started", started, "c0-0")]
    await db.write(lambda tx: ledger.record(tx, run.run_id, "gateway", events, fence=run.fence))
    return await db.read(lambda c: ledger.read_run(c, run.run_id))


async def ended(db: Database, run: Run) -> None:
    event = new_event("run.failed", {"error": {"type": "x", "message": "y"}})
    await db.write(lambda tx: ledger.append(tx, run.run_id, run.fence, run.last_n + 1, [event]))


async def heads(db: Database) -> list[Leaf]:
    due = await db.read(anchors.due)
    assert due is not None
    return due.leaves


async def test_what_was_under_way_waits_for_a_person_and_what_came_after_the_backup_is_named(
    database_url: str, tmp_path: Path
) -> None:
    db = Database.open(database_url)
    done, open_, later = await begun(db, "a"), await begun(db, "b"), ""
    await ended(db, done)
    restoring.backup(database_url, tmp_path / "copy")
    later = (await begun(db, "c")).run_id
    await ended(db, open_)
    known, epoch = await heads(db), db.epoch
    with pytest.raises(StoreError, match="another service"):
        restoring.restore(database_url, tmp_path / "copy")
    await db.close()

    told = restoring.restore(database_url, tmp_path / "copy", known)
    assert told.waiting == [open_.run_id] and told.before == epoch != told.epoch
    assert set(told.ahead) == {"farm", later, open_.run_id} - (
        {"farm"} if "farm" not in [k.run for k in known] else set()
    )
    db = Database.open(database_url)
    run = await db.read(lambda c: ledger.read_run(c, open_.run_id))
    assert (run.status, run.waiting, run.lease_until, run.epoch) == ("waiting", "restored", None, db.epoch)
    assert all(one.ok for one in await db.read(ledger.verify_all))
    assert await db.write(lambda tx: leases.claim(tx, "b", "w", "again", 30.0)) is None
    with pytest.raises(Fenced):
        await ended(db, open_)  # its worker of the former life

    assert run.task_id is not None
    task = await db.write(lambda tx: tasks.resume(tx, run.task_id, "user:ann"))
    assert (task.status, task.waiting) == ("waiting", "in_doubt")  # nobody knows whether it paid
    kinds = [event.kind for event in await db.read(lambda c: ledger.read_events(c, open_.run_id))]
    assert kinds[-5:] == ["run.restored", "tool.doubted", "run.parked", "run.resumed", "run.parked"]
    farm = await db.read(lambda c: ledger.read_events(c, "farm"))
    assert farm[-1].kind == "run.restored" and farm[-1].data()["epoch"] == db.epoch
    await db.close()


async def test_a_restored_run_that_did_nothing_yet_goes_on_when_a_person_says_so(
    database_url: str, tmp_path: Path
) -> None:
    db = Database.open(database_url)
    asked = tasks.Submission(owner="ann", submitted_by="ann", target="a", input="go")
    task, _ = await db.write(lambda tx: tasks.submit(tx, db.epoch, asked, tasks.Choice("a", DEFINITION, 1)))
    await db.close()
    restoring.backup(database_url, tmp_path / "copy")
    restoring.restore(database_url, tmp_path / "copy")
    db = Database.open(database_url)
    assert await db.write(lambda tx: leases.claim(tx, "a", "w", "c", 30.0)) is None
    await db.write(lambda tx: tasks.resume(tx, task.task_id, "user:ann"))
    run = await db.write(lambda tx: leases.claim(tx, "a", "w", "c", 30.0))
    assert run is not None and (await db.read(lambda c: ledger.verify(c, run.run_id))).ok
    await db.close()


def test_the_command_line_backs_up_and_restores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DB_CONNECTION_STRING", raising=False)
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    _make(state / "farm.sqlite")
    copy = str(tmp_path / "copy")
    assert main(["db", "backup", copy, "--state", str(state)]) == 0
    assert main(["db", "backup", copy, "--state", str(state)]) != 0 and "exists" in capsys.readouterr().err
    assert main(["db", "restore", copy, "--state", str(state)]) == 0
    assert "restored: epoch" in capsys.readouterr().out
    assert len(list(state.glob("farm.sqlite.before-*"))) == 1


def _make(file: Path) -> None:
    code = f"import asyncio; from jupyterhub_agentfarm.store.db import Database\nasync def m():\n await Database.open('sqlite:///{file}').close()\nasyncio.run(m())"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("content", [b"", b"no database", "foreign"])
def test_what_is_no_backup_is_refused_and_nothing_is_changed(tmp_path: Path, content: Any) -> None:
    _make(tmp_path / "farm.sqlite")
    before = (tmp_path / "farm.sqlite").read_bytes()
    copy = tmp_path / "copy"
    if content == "foreign":
        with sqlite3.connect(copy) as foreign:
            foreign.execute("CREATE TABLE t (x)")
    else:
        copy.write_bytes(content)
    with pytest.raises(StoreError, match="backup"):
        restoring.restore(f"sqlite:///{tmp_path}/farm.sqlite", copy)
    with pytest.raises(StoreError, match="no file"):
        restoring.restore(f"sqlite:///{tmp_path}/farm.sqlite", tmp_path / "nowhere")
    assert (tmp_path / "farm.sqlite").read_bytes() == before


async def test_a_restore_that_is_killed_leaves_the_old_ledger_or_the_new_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/farm.sqlite"
    db = Database.open(url)
    old = db.epoch
    run = await begun(db)
    await db.close()
    restoring.backup(url, tmp_path / "copy")
    stages = ("_begun", "_settle", "_put_aside", "_sync_folder")
    for stage in stages:
        code = (
            "import os, signal\nfrom pathlib import Path\nfrom jupyterhub_agentfarm.store import restoring\n"
            f"restoring.{stage} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"restoring.restore({url!r}, Path({str(tmp_path / 'copy')!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ))
        assert done.returncode == -signal.SIGKILL
        db = Database.open(url)
        found = await db.read(lambda c: ledger.read_run(c, run.run_id))
        assert (found.waiting == "restored") == (db.epoch != old) == (stage == stages[-1])
        assert all(one.ok for one in await db.read(ledger.verify_all))
        await db.close()

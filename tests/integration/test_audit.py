"""Anchors, evidence bundles, and what is found out when a record was changed: in the database, in a file, on the way."""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from servicekit import Service, service

from agentfarm_sdk.audit import verify_bundle
from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.ledger import FarmLedger
from agentfarm_sdk.protocol import ModelAnswer, ModelRequest, new_event
from agentfarm_sdk.tools.registry import in_thread
from jupyterhub_agentfarm.cli.main import main
from jupyterhub_agentfarm.monitoring.anchoring import Anchoring
from jupyterhub_agentfarm.store import tables


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
    async with service(tmp_path, database_url, monkeypatch) as farm:
        monkeypatch.setenv("AGENTFARM_URL", farm.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "operator")
        yield farm


@pytest.fixture
def anchoring(farm: Service, tmp_path: Path) -> Anchoring:
    return Anchoring(farm.db, b"k" * 32, tmp_path / "anchors.jsonl")


async def worked(farm: Service, name: str = "analyst", end: bool = True) -> str:
    """Let an agent make a step with a call and a large result; return the run."""
    await farm.agent(name, tools=[{"name": "calculator", "source": "builtin"}])
    await farm.ok("ann", "POST", "/tasks", {"target": name, "input": "What is 17*23?"})
    claim = await farm.claim(name)
    assert claim is not None
    farm.model.script += [("calculator", {"expression": "17*23"}), "391"]
    ledger = FarmLedger(farm.url, claim["run"], claim["fence"], claim["token"])
    await ledger.open()
    for number in range(2):
        request = ModelRequest(run=ledger.run, fence=ledger.fence, request=f"r{number}", n=ledger.n)
        reply = msgspec.json.decode(await ledger.request("model", request), type=ModelAnswer)
        for call in reply.calls:
            event = await ledger.fit(new_event("tool.succeeded", {"result": "391" * 9000}, call.call))
            await ledger.append([event])
    if end:
        await ledger.append([new_event("run.succeeded", {"result": "391"})])
    await ledger.drain()
    await ledger.close()
    run: str = claim["run"]
    return run


async def cli(*arguments: str) -> int:
    return await asyncio.wait_for(in_thread(lambda: main(list(arguments))), 60)  # type: ignore[no-any-return]


async def bundled(farm: Service, run: str, file: Path) -> Path:
    answer = await farm.ask("ann", "GET", f"/runs/{run}/bundle")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    file.write_bytes(answer.content)
    return file


async def change(farm: Service, statement: Any) -> None:
    await farm.db.write(lambda tx: tx.connection.execute(statement) and None)
    farm.db._heads.clear()


# --- anchors ------------------------------------------------------------------------------------------------------


async def test_an_anchor_is_made_when_something_moved_and_then_the_farm_is_whole_up_to_it(
    farm: Service, anchoring: Anchoring, capsys: pytest.CaptureFixture[str]
) -> None:
    run = await worked(farm)
    assert await anchoring.anchor() == 1 and await anchoring.anchor() is None
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "again"})
    assert await anchoring.anchor() == 2
    whole = await farm.ok("operator", "GET", "/audit/verify")
    assert whole["ok"] and whole["anchor"] == 2 and whole["since"] == 0 and not whole["broken"]
    assert [one["number"] for one in (await farm.ok("bob", "GET", "/audit/anchors"))["items"]] == [1, 2]
    back = await farm.ok("bob", "GET", "/audit/anchors?newest=true&limit=1")
    assert ([one["number"] for one in back["items"]], back["next"]) == ([2], 2)
    before = await farm.ok("bob", "GET", "/audit/anchors?newest=true&limit=1&cursor=2")
    assert ([one["number"] for one in before["items"]], before["next"]) == ([1], None)
    assert await cli("audit", "verify") == 0 and "up to anchor 2" in capsys.readouterr().out
    assert await cli("audit", "verify", run) == 0 and await cli("audit", "anchors") == 0
    kept = str(anchoring.file)
    assert await cli("audit", "verify", "--anchors", kept, "--key", anchoring.public) == 0
    assert await cli("audit", "verify", "--anchors", kept, "--key", "00" * 32) == 2


async def test_the_file_of_anchors_catches_up_and_half_a_line_is_cut_off(farm: Service, anchoring: Anchoring) -> None:
    await worked(farm)
    await anchoring.anchor()
    whole = anchoring.file.read_bytes()
    anchoring.file.write_bytes(whole[: len(whole) // 2])
    again = Anchoring(farm.db, b"k" * 32, anchoring.file)
    assert await again.anchor() is None and anchoring.file.read_bytes() == whole


async def test_an_end_that_was_cut_off_with_its_row_is_found_by_the_anchor(farm: Service, anchoring: Anchoring) -> None:
    run = await worked(farm)
    await anchoring.anchor()
    row = await farm.db.read(lambda c: c.execute(sa.select(tables.runs).where(tables.runs.c.run_id == run)).one())
    e, r = tables.events.c, tables.runs.c
    await change(farm, sa.delete(tables.events).where(e.run_no == row.run_no, e.seq == row.seq))
    before = (await farm.ok("ann", "GET", f"/runs/{run}/events?after={row.seq - 2}"))["items"][0]
    moved = {
        "seq": row.seq - 1,
        "head": before["hash"],
        "last_n": row.last_n - 1,
        "status": "running",
        "ended_at": None,
    }
    await change(farm, tables.runs.update().where(r.run_id == run).values(moved))
    told = await farm.ok("ann", "GET", f"/runs/{run}/verify")
    assert not told["ok"] and told["bad_seq"] == row.seq and "anchor 1" in told["why"]


async def test_a_run_that_was_taken_away_and_an_anchor_that_was_changed_are_found(
    farm: Service, anchoring: Anchoring, capsys: pytest.CaptureFixture[str]
) -> None:
    run = await worked(farm)
    await anchoring.anchor()
    await change(farm, sa.update(tables.anchored).where(tables.anchored.c.run_id == run).values(seq=1))
    assert "anchor 1" in str((await farm.ok("operator", "GET", "/audit/verify"))["broken"])
    await change(farm, sa.delete(tables.runs).where(tables.runs.c.run_id == run))
    assert await cli("audit", "verify") == 1 and run in capsys.readouterr().out


async def test_an_anchor_that_is_said_to_reach_further_is_found(farm: Service, anchoring: Anchoring) -> None:
    """Else nothing would be anchored that is recorded before it gets there."""
    await worked(farm)
    await anchoring.anchor()
    await change(farm, sa.update(tables.anchors).values(upto=tables.anchors.c.upto + 1000))
    told = await farm.ok("operator", "GET", "/audit/verify")
    assert not told["ok"] and "anchor 1 reaches" in told["broken"][0]["why"]


BESIDE = {
    "owner": "bob", "agent": "other", "mode": "ask", "thread_id": "thread-x", "status": "failed", "input": '"What is 1+1?"', "result": '"2"',
}  # fmt: skip


@pytest.mark.parametrize("column", BESIDE)
async def test_the_task_is_held_against_its_run(farm: Service, column: str) -> None:
    run = await worked(farm)
    await change(farm, sa.update(tables.tasks).where(tables.tasks.c.run_id == run).values({column: BESIDE[column]}))
    told = await farm.ok("operator", "GET", f"/runs/{run}/verify")
    assert not told["ok"] and told["bad_seq"] and "its task says" in told["why"]


async def test_a_failed_and_a_cancelled_task_say_what_their_runs_say(farm: Service) -> None:
    run = await worked(farm, end=False)
    task = (await farm.ok("ann", "GET", f"/runs/{run}"))["task_id"]
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": {"a": 1}})
    other = await farm.claim()
    assert other
    end = {"kind": "run.failed", "body": {"error": {"type": "x", "message": "broke"}}}
    body = {"fence": other["fence"], "n": 1, "events": [end]}
    await farm.ok(other["token"], "POST", f"/runs/{other['run']}/events", body)
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"})
    (waits,) = (await farm.ok("ann", "GET", "/tasks?status=queued"))["items"]
    await farm.ok("ann", "POST", f"/tasks/{waits['task_id']}/cancel", {"reason": "enough"})
    await farm.ok("ann", "POST", f"/tasks/{task}/cancel", {"reason": "enough"})
    assert (await farm.ok("operator", "GET", "/audit/verify"))["ok"]
    for name in (other["run"], waits["run_id"]):
        forged = '{"type":"x","message":"all is well"}'
        await change(farm, sa.update(tables.tasks).where(tables.tasks.c.run_id == name).values(error=forged))
        assert "another error" in (await farm.ok("ann", "GET", f"/runs/{name}/verify"))["why"]


@pytest.mark.parametrize("column", ["n", "digest", "status", "fence", "last_n"])
async def test_what_lies_beside_the_chain_is_held_against_it(farm: Service, column: str) -> None:
    run = await worked(farm)
    e, r = tables.events.c, tables.runs.c
    if column in ("n", "digest"):
        value: Any = {"n": 7, "digest": b"x" * 16}[column]
        number = sa.select(r.run_no).where(r.run_id == run).scalar_subquery()
        await change(farm, sa.update(tables.events).where(e.run_no == number, e.n == 1).values({column: value}))
    else:
        value = {"status": "failed", "fence": 9, "last_n": 9}[column]
        await change(farm, sa.update(tables.runs).where(r.run_id == run).values({column: value}))
    told = await farm.ok("ann", "GET", f"/runs/{run}/verify")
    assert not told["ok"] and told["bad_seq"] and told["why"]


# --- evidence bundles ---------------------------------------------------------------------------------------------


async def test_a_bundle_is_checked_without_the_farm_and_says_up_to_where_it_is_anchored(
    farm: Service,
    anchoring: Anchoring,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = await worked(farm, end=False)
    await anchoring.anchor()
    assert await cli("run", "bundle", run, "-o", str(tmp_path / "run.zip")) == 0
    monkeypatch.setenv("AGENTFARM_URL", "http://127.0.0.1:1")  # there is no farm
    assert await cli("audit", "verify", str(tmp_path / "run.zip"), "--key", anchoring.public) == 0
    assert "anchor 1 of" in capsys.readouterr().out
    verdict = verify_bundle(tmp_path / "run.zip")
    assert verdict.ok and verdict.run == run and verdict.anchored == verdict.checked.events > 8
    assert not verify_bundle(tmp_path / "run.zip", "00" * 32).ok


async def test_a_bundle_without_an_anchor_says_so(
    farm: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = await bundled(farm, await worked(farm), tmp_path / "run.zip")
    assert await cli("audit", "verify", str(file)) == 0 and "no anchor" in capsys.readouterr().out


def rewritten(file: Path, name: str, edit: Callable[[bytes], bytes | None]) -> Path:
    """Write the bundle again with one of its files changed, or left out."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(file.with_suffix(".changed"), "w") as new:
        for one in old.namelist():
            content = edit(old.read(one)) if one == name else old.read(one)
            if content is not None:
                new.writestr(one, content)
    return file.with_suffix(".changed")


def found(file: Path) -> bool:
    """Say whether the check of a bundle finds anything wrong, or refuses it."""
    try:
        return not verify_bundle(file).ok
    except Invalid:
        return True


async def test_whatever_is_changed_in_a_bundle_is_found(farm: Service, anchoring: Anchoring, tmp_path: Path) -> None:
    run = await worked(farm)
    await anchoring.anchor()
    file = await bundled(farm, run, tmp_path / "run.zip")
    with zipfile.ZipFile(file) as whole:
        names = [name for name in whole.namelist() if name != "README.txt"]
        sizes = {name: len(whole.read(name)) for name in names}
    assert any(name.startswith("blobs/") for name in names) and not found(file)
    missed = []
    for name in names:
        if not found(rewritten(file, name, lambda content: None)):
            missed.append(f"{name} left out")
        for at in range(0, sizes[name], max(1, sizes[name] // 40)):
            changed = rewritten(file, name, lambda old, at=at: old[:at] + bytes([old[at] ^ 1]) + old[at + 1 :])  # type: ignore[misc]
            if not found(changed):
                missed.append(f"{name}, byte {at}")
    # only when it was made stands in no event
    with zipfile.ZipFile(file) as whole:
        at = whole.read("run.json").index(b'"exported_at"')
    assert [one for one in missed if not one.startswith("run.json, byte") or int(one.split()[-1]) < at] == []


async def test_a_bundle_whose_end_was_cut_off_is_found_by_its_anchor(
    farm: Service, anchoring: Anchoring, tmp_path: Path
) -> None:
    run = await worked(farm)
    await anchoring.anchor()
    file = await bundled(farm, run, tmp_path / "run.zip")
    cut = rewritten(file, "events.jsonl", lambda old: b"".join(old.splitlines(keepends=True)[:-1]))
    verdict = verify_bundle(cut)
    assert not verdict.ok and verdict.checked.bad_seq


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + b"\x00" * 18])
def test_what_is_no_bundle_is_a_sentence(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.zip"
    file.write_bytes(content)
    assert main(["audit", "verify", str(file)]) == 2 and "bundle" in capsys.readouterr().err

"""What is taken out of the ledger: bodies by hand and by age, whole runs; what stays, and what cannot be hidden."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from servicekit import Service, service
from test_audit import bundled, change, cli, worked

from agentfarm_sdk.audit import Link, check_chain, verify_bundle
from agentfarm_sdk.farm import Farm
from agentfarm_sdk.fold import ERASED, Fold
from agentfarm_sdk.protocol import header_hash
from agentfarm_sdk.tools.registry import in_thread
from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.monitoring.anchoring import Anchoring
from jupyterhub_agentfarm.scheduling.retention import Retention, checked
from jupyterhub_agentfarm.store import erasure, ledger, tables

SECRET = "17*23"
DAY = 86_400.0


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
    async with service(tmp_path, database_url, monkeypatch) as farm:
        monkeypatch.setenv("AGENTFARM_URL", farm.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "operator")
        yield farm


async def events(farm: Service, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await farm.ok("operator", "GET", f"/runs/{run}/events?limit=1000"))["items"]
    return found


def stored(connection: sa.engine.Connection) -> str:
    """Return all that the database holds as text, whatever the table; the definition is not the run's."""
    found = []
    for table in tables.metadata.sorted_tables:
        if table.name not in ("definitions", "agents"):
            for row in connection.execute(sa.select(table)):
                found += [v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in row]
    return "\n".join(found)


async def test_what_was_erased_is_nowhere_any_more_and_the_chain_holds(
    farm: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = await worked(farm)
    before = await events(farm, run)
    assert SECRET in await farm.db.read(stored) and "391391" in await farm.db.read(stored)
    assert await cli("run", "erase", run, "--all", "--reason", "ann asked for it") == 0
    assert "1 blobs erased" in capsys.readouterr().out
    left = await farm.db.read(stored)
    assert SECRET not in left and "391391" not in left
    after = await events(farm, run)
    assert [e["hash"] for e in after[:-1]] == [e["hash"] for e in before]
    last = after[-1]
    assert (last["kind"], last["by"], last["body"]["reason"]) == ("body.erased", "user:root", "ann asked for it")
    named = {seq for first, end in last["body"]["seqs"] for seq in range(first, end + 1)}
    assert named == {e["seq"] for e in after if e["body"] is None}
    assert {e["kind"] for e in after if e["body"] is not None} <= erasure.KEPT
    assert (await farm.ok("ann", "GET", f"/runs/{run}/verify"))["ok"]
    verdict = verify_bundle(await bundled(farm, run, tmp_path / "run.zip"))
    assert verdict.ok and verdict.erased == len(named), verdict
    again = await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "twice", "all": True})
    assert again["bodies"] == 0 and len(await events(farm, run)) == len(after)


async def test_an_erased_run_still_folds_and_cannot_be_run_again_by_its_task(farm: Service) -> None:
    run = await worked(farm)
    task = (await farm.ok("ann", "GET", f"/runs/{run}"))["task_id"]
    whole = Fold().apply_all(await farm.db.read(lambda c: ledger.read_events(c, run)))
    await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "r", "all": True})
    fold = Fold().apply_all(await farm.db.read(lambda c: ledger.read_events(c, run)))
    assert (fold.status, fold.steps, set(fold.calls)) == (whole.status, whole.steps, set(whole.calls))
    assert fold.messages and {m["content"] for m in fold.messages} == {ERASED}
    told = await farm.ok("ann", "GET", f"/tasks/{task}")
    assert (told["input"], told["result"], told["status"]) == (ERASED, None, "succeeded")
    for path in ("replay", "effects"):
        await farm.ok("ann", "GET", f"/runs/{run}/{path}")
    assert "was erased" in (await farm.ask("ann", "POST", f"/tasks/{task}/rerun", {})).text


async def test_only_what_is_named_goes(farm: Service) -> None:
    run = await worked(farm)
    await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "r", "kinds": ["model.replied"], "seqs": [2]})
    gone = {e["kind"] for e in await events(farm, run) if e["body"] is None}
    assert gone == {"model.replied", "message.added"}
    assert (await farm.ok("ann", "GET", f"/runs/{run}/verify"))["ok"]


async def led(farm: Service, steps: list[tuple[Any, list[dict[str, Any]]]]) -> str:
    """Lead the next run: in each step the model says something and the worker appends; return the run."""
    claim = await farm.claim(wait=5)
    assert claim
    for n, (said, told) in enumerate(steps):
        farm.model.script[:] = [said]
        request = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": f"r{n}", "n": n}}
        await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", request)
        await farm.ok(
            claim["token"],
            "POST",
            f"/runs/{claim['run']}/events",
            {"fence": claim["fence"], "n": n + 1, "events": told},
        )
    return str(claim["run"])


async def test_erasing_names_what_it_does_not_reach_and_is_through_when_nothing_is_left(
    farm: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    word = "wombat-secret"
    await farm.agent(tools=[{"name": "remember", "source": "builtin"}])
    asked = {"target": "analyst", "input": f"Note {word}."}
    first = await farm.ok("ann", "POST", "/tasks", asked, **{"Idempotency-Key": "k"})
    await farm.ok("ann", "POST", "/tasks", {**asked, "input": "Go on.", "after": [first["task_id"]], "results": True})
    kept = {"kind": "memory.remembered", "call": "c0-0", "body": {"key": "animal", "value": word}}
    done = {"kind": "tool.succeeded", "call": "c0-0", "body": {"result": "noted"}}
    over = {"kind": "run.succeeded", "body": {"result": word}}
    call = ("remember", {"key": "animal", "value": word})
    run = await led(farm, [(call, [kept, done]), (word, [over])])
    later = await led(farm, [("fine", [{"kind": "run.succeeded", "body": {"result": "fine"}}])])
    assert await cli("run", "erase", run, "--all", "--reason", "r") == 0
    told = capsys.readouterr().out
    assert f"not reached: run {later}: its task got the result" in told
    assert "not reached: memory analyst: animal: the agent remembers it" in told
    again = await farm.ask("ann", "POST", "/tasks", asked, **{"Idempotency-Key": "k"})
    assert again.status_code == 409 and "was erased" in again.text
    answer = await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "r", "memory": True})
    assert [one["what"] for one in answer["left"]] == ["run"] and word in await farm.db.read(stored)
    await farm.ok("ann", "POST", f"/runs/{later}/erase", {"reason": "r", "all": True})
    assert (await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "r", "all": True}))["left"] == []
    assert word not in await farm.db.read(stored)
    assert (await farm.ok("operator", "GET", "/audit/verify"))["ok"]


async def test_erasing_names_the_runs_of_delegated_tasks_and_stubs(farm: Service) -> None:
    for name in ("analyst", "other"):
        await farm.agent(name, tools=[{"name": "delegate", "source": "builtin"}])
    stubs = {"delegate": "no"}
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"})
    sent = {"kind": "child.submitted", "call": "c0-0", "body": {"target": "other", "input": "part"}}
    asked = ("delegate", {"target": "other", "input": "part"})
    run = await led(farm, [(asked, [sent, {"kind": "run.parked", "body": {"reason": "child"}}])])
    task = (await farm.ok("ann", "GET", f"/tasks?parent={run}"))["items"][0]
    await farm.ok("ann", "POST", f"/tasks/{task['task_id']}/cancel", {})
    answer = await farm.ok("ann", "POST", f"/runs/{task['run_id']}/erase", {"reason": "r", "all": True})
    assert [(one["what"], one["where"]) for one in answer["left"]] == [("run", run)], "it holds what it asked for"
    simulated = await farm.ok("ann", "POST", "/tasks", {"target": "other", "input": "x", "simulate": {"stubs": stubs}})
    await farm.ok("ann", "POST", f"/tasks/{simulated['task_id']}/cancel", {})
    answer = await farm.ok("ann", "POST", f"/runs/{simulated['run_id']}/erase", {"reason": "r", "all": True})
    assert [one["what"] for one in answer["left"]] == ["stubs"]


SENSELESS: list[tuple[dict[str, Any], str]] = [
    ({"all": True}, "reason"),
    ({"reason": "r"}, "nothing is named"),
    ({"reason": "r", "seqs": [999]}, "no event 999"),
    ({"reason": "r", "seqs": [1]}, "run.created"),
    ({"reason": "r", "kinds": ["tool.started"]}, "tool.started"),
]


async def test_a_wish_that_makes_no_sense_changes_nothing(farm: Service) -> None:
    run = await worked(farm)
    for body, says in SENSELESS:
        answer = await farm.ask("ann", "POST", f"/runs/{run}/erase", body)
        assert answer.status_code == 422 and says in answer.text
    assert all(e["body"] is not None for e in await events(farm, run))


async def test_runs_that_go_on_and_the_farm_s_chain_are_not_touched(farm: Service) -> None:
    run = await worked(farm, end=False)
    for token, path in (("ann", run), ("operator", "farm")):
        for method, rest, body in (("POST", "/erase", {"reason": "r", "all": True}), ("DELETE", "?reason=r", None)):
            assert (await farm.ask(token, method, f"/runs/{path}{rest}", body)).status_code == 409
    answer = await farm.ask("ann-server", "POST", f"/runs/{run}/erase", {"reason": "r", "all": True})
    assert answer.status_code == 403


async def test_a_body_that_somebody_took_away_by_hand_is_found(farm: Service) -> None:
    run = await worked(farm)
    await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "r", "seqs": [2]})
    number = sa.select(tables.runs.c.run_no).where(tables.runs.c.run_id == run).scalar_subquery()
    e = tables.events.c
    await change(
        farm, sa.update(tables.events).where(e.run_no == number, e.seq == 3).values(body=sa.null(), salt=sa.null())
    )
    told = await farm.ok("ann", "GET", f"/runs/{run}/verify")
    assert (told["ok"], told["bad_seq"]) == (False, 3) and "erased" in told["why"]


# --- whole runs ---------------------------------------------------------------------------------------------------


async def test_a_deleted_run_leaves_a_tombstone_that_anchors_and_the_farm_s_chain_agree_with(
    farm: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anchoring = Anchoring(farm.db, b"k" * 32, tmp_path / "anchors.jsonl")
    run, other = await worked(farm), await worked(farm, "other")
    row = await farm.ok("ann", "GET", f"/runs/{run}")
    await anchoring.anchor()
    assert (
        await cli("run", "delete", run, "--reason", "no longer needed") == 0 and row["head"] in capsys.readouterr().out
    )
    assert SECRET in await farm.db.read(stored), "the other run keeps what it has"
    await farm.ok("ann", "DELETE", f"/runs/{other}?reason=r")
    assert SECRET not in await farm.db.read(stored) and "391391" not in await farm.db.read(stored)
    gone = await farm.ask("ann", "GET", f"/runs/{run}")
    assert gone.status_code == 404 and row["head"] in gone.text
    assert (await farm.ok("operator", "GET", "/audit/verify"))["ok"] and await anchoring.anchor() == 2
    told = [e["body"] for e in await events(farm, "farm") if e["kind"] == "run.deleted"]
    assert (told[0]["run"], told[0]["seq"], told[0]["head"]) == (run, row["seq"], row["head"])


async def test_a_tombstone_that_was_changed_is_found(farm: Service) -> None:
    run = await worked(farm)
    await farm.ok("ann", "DELETE", f"/runs/{run}?reason=r")
    t = tables.tombstones
    row = (await farm.db.read(lambda c: c.execute(sa.select(t)).one()))._mapping
    back = dict(run_id=run, agent="a", owner="ann", definition_hash="", mode="live", epoch="e", status="failed", head="", created_at=0.0)  # fmt: skip
    for forged, mended in (
        (sa.update(t).values(seq=t.c.seq - 1), sa.update(t).values(seq=row["seq"])),
        (sa.update(t).values(head="0" * 64), sa.update(t).values(head=row["head"])),
        (sa.delete(t), sa.insert(t).values(**row)),
        (sa.insert(tables.runs).values(**back), sa.delete(tables.runs).where(tables.runs.c.run_id == run)),
    ):
        await change(farm, forged)
        answer = await farm.ok("operator", "GET", "/audit/verify")
        assert not answer["ok"] and run in {one["run_id"] for one in answer["broken"]}, str(forged)
        await change(farm, mended)
        assert (await farm.ok("operator", "GET", "/audit/verify"))["ok"], str(mended)


# --- by age -------------------------------------------------------------------------------------------------------


async def test_bodies_go_when_their_days_are_over_and_never_from_a_run_that_goes_on(farm: Service) -> None:
    old, going = await worked(farm), await worked(farm, "other", end=False)
    clock = [farm.db.now()]
    keeping = Retention(farm.db, checked({"tool.succeeded": 2, "*": 10}), now=lambda: clock[0])
    assert await keeping.apply() == 0
    clock[0] += 3 * DAY
    assert await keeping.apply() == 1 and await keeping.apply() == 0
    assert {e["kind"] for e in await events(farm, old) if e["body"] is None} == {"tool.succeeded"}
    clock[0] += 30 * DAY
    assert await keeping.apply() > 5
    after = await events(farm, old)
    assert {e["kind"] for e in after if e["body"] is not None} <= erasure.KEPT
    assert {(e["by"], e["body"]["reason"]) for e in after if e["kind"] == "body.erased"} == {
        ("service", "retention: 2 days"), ("service", "retention: 10 days")
    }  # fmt: skip
    assert all(e["body"] is not None for e in await events(farm, going))
    assert (await farm.ok("operator", "GET", "/audit/verify"))["ok"]
    changed = [e["body"] for e in await events(farm, "farm") if e["kind"] == "retention.changed"]
    assert changed == [{"days": {"tool.succeeded": 2.0, "*": 10.0}}]


async def test_a_run_whose_thread_goes_on_waits_for_its_end(farm: Service) -> None:
    await farm.agent()
    thread = (await farm.ok("ann", "POST", "/threads", {"agent": "analyst"}))["thread_id"]
    runs = []
    for text in ("first", "second"):
        await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": text, "thread_id": thread})
        claim = await farm.claim()
        assert claim
        runs.append(claim)
        if text == "first":
            end = {"fence": claim["fence"], "n": 1, "events": [{"kind": "run.succeeded", "body": {"result": "1"}}]}
            await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", end)
    first, second = (claim["run"] for claim in runs)
    keeping = Retention(farm.db, {"message.added": 1}, now=lambda: farm.db.now() + 9 * DAY)
    assert await keeping.apply() == 0
    assert (await farm.ask("ann", "DELETE", f"/runs/{first}?reason=r")).status_code == 409
    end = {"fence": runs[1]["fence"], "n": 1, "events": [{"kind": "run.succeeded", "body": {"result": "2"}}]}
    await farm.ok(runs[1]["token"], "POST", f"/runs/{second}/events", end)
    assert await keeping.apply() == 3
    assert all(e["body"] is None for e in await events(farm, first) if e["kind"] == "message.added")


@pytest.mark.parametrize("rules", [{"*": 0}, {"*": True}, {"tool.started": 3}, {"everything": 3}, {"*": "1"}])
def test_a_rule_that_makes_no_sense_stops_the_start(rules: dict[str, Any]) -> None:
    with pytest.raises(StartError, match="retention"):
        checked(rules)


# --- all of it, elsewhere -----------------------------------------------------------------------------------------


async def test_an_export_goes_on_where_it_was_cut_short_and_holds_every_chain(
    farm: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = await worked(farm), tmp_path / "farm.jsonl"
    await farm.ok("ann", "PUT", "/secrets", {"name": "API_KEY", "value": "hidden-value"})
    assert await cli("audit", "export", "-o", str(file)) == 0
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    await farm.ok("ann", "DELETE", "/secrets/API_KEY")
    await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "r", "seqs": [2]})
    assert await cli("audit", "export", "-o", str(file)) == 0 and await cli("audit", "export", "-o", str(file)) == 0
    assert "0 events more" in capsys.readouterr().out
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert file.read_bytes().startswith(whole[: len(whole) // 2]) and b"hidden-value" not in file.read_bytes()
    kinds = [json.loads(one["header"])["kind"] for one in lines if one["run"] == "farm"]
    assert kinds == ["agent.created", "version.published", "secret.set", "secret.deleted"]
    for name in {one["run"] for one in lines}:
        links = [
            Link(one["seq"], one["header"].encode(), _bytes(one["salt"]), one["body"] and one["body"].encode(), one["n"], _bytes(one["digest"]))
            for one in lines if one["run"] == name
        ]  # fmt: skip
        assert links[-1].seq == len(links) and all(header_hash(k.header) for k in links)
        told = await farm.ok("operator", "GET", f"/runs/{name}")
        epoch = json.loads(links[0].header)["epoch"]
        assert check_chain(epoch, name, links, told["seq"], told["head"]).ok
    assert await cli("audit", "export", "--after", str(lines[-1]["id"] - 1)) == 0
    assert json.loads(capsys.readouterr().out)["id"] == lines[-1]["id"]


async def test_an_export_is_checked_without_the_farm_and_held_against_kept_anchors(
    farm: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    anchoring = Anchoring(farm.db, b"k" * 32, tmp_path / "anchors.jsonl")
    run, gone, file = await worked(farm), await worked(farm, "other"), tmp_path / "farm.jsonl"
    await anchoring.anchor()
    await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "r", "seqs": [3]})
    await farm.ok("ann", "DELETE", f"/runs/{gone}?reason=r")
    await anchoring.anchor()
    assert await cli("audit", "export", "-o", str(file)) == 0
    await farm.agent("third")
    monkeypatch.setenv("AGENTFARM_URL", "http://127.0.0.1:1")  # there is no farm
    kept = ("--anchors", str(anchoring.file), "--key", anchoring.public)
    capsys.readouterr()
    assert await cli("audit", "verify", str(file), *kept) == 0, capsys.readouterr().out
    assert "2 runs" in (told := capsys.readouterr().out) and "1 bodies erased" in told and "up to anchor 2" in told

    lines = file.read_bytes().splitlines(keepends=True)
    mine = [at for at, line in enumerate(lines) if json.loads(line)["run"] == run]
    changed, copy = json.loads(lines[mine[4]]), tmp_path / "copy.jsonl"
    changed["body"] = (changed["body"] or "{}").replace("{", '{"x":1,', 1)
    told_of = next(at for at, line in enumerate(lines) if b"run.deleted" in line)
    broken = {**json.loads(lines[told_of]), "header": "no header"}
    for forged, says in (
        (
            [*lines[:told_of], json.dumps(broken).encode() + b"\n", *lines[told_of + 1 :]],
            "farm: event",
        ),
        (
            [*lines[: mine[4]], json.dumps(changed).encode() + b"\n", *lines[mine[4] + 1 :]],
            "event 5 is not what was recorded",
        ),
        ([*lines[: mine[4]], *lines[mine[4] + 1 :]], "event 5 is not what was recorded"),
        ([line for at, line in enumerate(lines) if at != mine[-1]], "the export ends before it"),
        (
            [line for at, line in enumerate(lines) if at not in mine],
            f"{run}: anchor 2 holds this run, and it is not here",
        ),
    ):
        copy.write_bytes(b"".join(forged))
        assert await cli("audit", "verify", str(copy), *kept) == 1
        assert says in (told := capsys.readouterr().out), told
    copy.write_bytes(b"".join(lines[1:]))
    assert await cli("audit", "verify", str(copy)) == 2, "it begins in the middle: nobody can check that"
    copy.write_bytes(b"{}")
    assert await cli("audit", "verify", str(copy)) == 2


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


async def test_the_sdk_erases_and_deletes(farm: Service) -> None:
    run = await worked(farm)

    def ask() -> tuple[Any, Any]:
        with Farm(farm.url, "ann") as mine:
            return mine.erase(run, "r", kinds=["message.added"]), mine.delete_run(run, "r")

    erased, stone = await in_thread(ask)
    assert erased["bodies"] == 2 and stone["seq"] == erased["seq"] and stone["head"] == erased["head"]

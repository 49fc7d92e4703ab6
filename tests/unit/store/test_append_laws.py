"""Laws of appending, over any order of appends, claims, deaths and repeats: a model beside the real store (SQLite)."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import Definition, NewEvent, decode_events, new_event
from jupyterhub_agentfarm.errors import AgentFarmError, Conflict, Fenced, Hole
from jupyterhub_agentfarm.records import Run
from jupyterhub_agentfarm.store import leases, ledger, tasks
from jupyterhub_agentfarm.store.db import Database, Tx
from jupyterhub_agentfarm.store.tables import events

APPEND = st.tuples(
    st.just("append"),
    st.integers(-1, 1),  # fence: beside the present one
    st.integers(-2, 2),  # n: beside the next one
    st.integers(1, 3),  # how many events
    st.sampled_from("ab"),  # what they say
)
STEP = st.one_of(
    APPEND, APPEND, APPEND, st.tuples(st.just("die")), st.tuples(st.just("claim")), st.tuples(st.just("together"))
)


class Model:
    """What must be true of one run, told without a database."""

    def __init__(self) -> None:
        self.fence, self.held, self.n = 0, False, 0
        self.written: dict[tuple[int, int], tuple[bytes, int, str]] = {}  # fence, n -> raw, seq, head

    def expected(self, fence: int, n: int, raw: bytes) -> type[AgentFarmError] | str:
        if fence == self.fence and 1 <= n <= self.n:
            return "repeated" if self.written[fence, n][0] == raw else Conflict
        if fence != self.fence or not self.held:
            return Fenced
        return "written" if n == self.n + 1 else Hole


def batch(count: int, word: str) -> tuple[bytes, list[NewEvent]]:
    raw = msgspec.json.encode([new_event("value.recorded", {"name": word, "value": i}) for i in range(count)])
    return raw, decode_events(raw)


async def append(db: Database, run_id: str, model: Model, fence: int, n: int, count: int, word: str) -> None:
    raw, new = batch(count, word)
    wanted = model.expected(fence, n, raw)
    try:
        done = await db.write(lambda tx: ledger.append(tx, run_id, fence, n, new))
    except AgentFarmError as error:
        assert type(error) is wanted, (wanted, error.detail)
        return
    if wanted == "repeated":
        assert done.repeated and (done.seq, done.head) == model.written[fence, n][1:]
        return
    assert wanted == "written" and len(done.events) == count
    model.n, model.written[fence, n] = n, (raw, done.seq, done.head)


async def together(db: Database, run_id: str, model: Model) -> None:
    """Two with the same fence and number in one commit: one is written."""
    fence, n = model.fence, model.n + 1
    both = [batch(1, "left"), batch(2, "right")]
    done = await asyncio.gather(
        *(db.write(lambda tx, one=one: ledger.append(tx, run_id, fence, n, one[1])) for one in both),
        return_exceptions=True,
    )
    if not model.held:
        assert all(isinstance(one, Fenced) for one in done)
        return
    won = [one for one in done if isinstance(one, ledger.Appended)]
    assert len(won) == 1 and any(isinstance(one, Conflict) for one in done)
    raw = both[[isinstance(one, ledger.Appended) for one in done].index(True)][0]
    model.n, model.written[fence, n] = n, (raw, won[0].seq, won[0].head)


async def play(url: str, steps: list[Any]) -> None:
    db = Database.open(url)
    asked = tasks.Submission(owner="o", submitted_by="o", target="a", input="x")
    task, _ = await db.write(lambda tx: tasks.submit(tx, db.epoch, asked, tasks.Choice("a", Definition(), 1)))
    run_id, model = str(task.run_id), Model()
    for step in steps:
        if step[0] == "append":
            _, fence, n, count, word = step
            await append(db, run_id, model, model.fence + fence, model.n + 1 + n, count, word)
        elif step[0] == "together":
            await together(db, run_id, model)
        elif step[0] == "die" and model.held:
            await db.write(lambda tx: leases.requeue(tx, run_id, model.fence, "silence", None))
            model.held = False
        elif step[0] == "claim":
            got = await db.write(lambda tx: leases.claim(tx, "a", "w", f"c{model.fence}", 30.0))
            assert (got is None or got.fence == model.fence) == model.held
            if not model.held:
                model.fence, model.held, model.n = model.fence + 1, True, 0
    run, told, check = await db.read(
        lambda c: (ledger.read_run(c, run_id), ledger.read_events(c, run_id), ledger.verify(c, run_id))
    )
    assert check.ok and [event.seq for event in told] == list(range(1, run.seq + 1))
    assert sum(len(decode_events(raw)) for raw, _, _ in model.written.values()) == sum(
        event.kind == "value.recorded" for event in told
    )
    fold = Fold().apply_all(told)
    assert (run.status, run.fence, run.last_n) == (fold.status, fold.fence, model.n)
    await db.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(STEP, max_size=15))
def test_each_append_is_written_once_in_order_or_refused_for_its_reason(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(f"sqlite:///{folder}/farm.sqlite", steps))


async def test_whichever_byte_of_an_event_is_flipped_that_event_is_named(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path}/farm.sqlite")
    asked = tasks.Submission(owner="o", submitted_by="o", target="a", input="x")
    await db.write(lambda tx: tasks.submit(tx, db.epoch, asked, tasks.Choice("a", Definition(), 1)))
    run: Run = await db.write(lambda tx: leases.claim(tx, "a", "w", "c", 30.0))  # type: ignore[assignment]
    _, new = batch(1, "x")
    await db.write(lambda tx: ledger.append(tx, run.run_id, run.fence, 1, new))

    def flip_each(tx: Tx) -> list[str]:
        missed = []
        rows = tx.connection.execute(
            sa.select(
                events.c.id,
                events.c.seq,
                *(sa.type_coerce(events.c[name], sa.LargeBinary).label(name) for name in ("header", "salt", "body")),
            ).where(events.c.run_no == run.run_no)
        ).all()
        for row in rows:
            for column in ("header", "salt", "body"):
                whole = bytes(getattr(row, column))
                for at in range(0, len(whole), 5):
                    flipped = bytearray(whole)
                    flipped[at] ^= 1
                    set_to = f"UPDATE events SET {column} = ? WHERE id = ?"
                    tx.driver.execute(set_to, (bytes(flipped), row.id))
                    check = ledger.verify(tx.connection, run.run_id)
                    if check.ok or check.bad_seq != row.seq or not check.why:
                        missed.append(f"{column} of event {row.seq}, byte {at}: {check}")
                    tx.driver.execute(set_to, (whole, row.id))
        return missed

    assert await db.write(flip_each) == []
    assert (await db.read(lambda c: ledger.verify(c, run.run_id))).ok
    await db.close()

"""Laws of a run's whole life, in any order of deaths, silences, decisions and late words: a model beside the real store.

Several workers may believe that they hold the run; the world counts what they really do. The person tells the truth: that
a call happened where it did, that it did not where its worker is proven dead before it began.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import (
    ENDED,
    AdmittedCall,
    AppendRequest,
    Definition,
    HeartbeatRequest,
    NewEvent,
    ToolSpec,
    call_id,
    new_event,
)
from jupyterhub_agentfarm.errors import AgentFarmError, Conflict, Fenced, Forbidden, NotFound
from jupyterhub_agentfarm.gateway.live import LiveRuns
from jupyterhub_agentfarm.store import inbox, latest, leases, ledger, tasks
from jupyterhub_agentfarm.store.db import Database
from jupyterhub_agentfarm.store.tables import inbox as inboxes

NAMES = {"look": "read", "store": "idempotent", "charge": "once", "pay": "once", "grant": "once", "wire": "once"}
RULES: dict[str, dict[str, Any]] = {
    "pay": {"approval": "always"}, "grant": {"approval": "always", "approvers": 2, "approval_expires": 60.0}, "wire": {"probe": True},
}  # fmt: skip
TOOLS = [ToolSpec(name=name, effect=effect, timeout=0.001, **RULES.get(name, {})) for name, effect in NAMES.items()]  # type: ignore[arg-type]
DEFINITION = Definition(prompt="p", tools=TOOLS)
NUMBERS = itertools.count()


@dataclass
class Worker:
    """Somebody who was given the run. One that lost it may go on for a while: it does not know."""

    fence: int
    n: int
    todo: dict[str, AdmittedCall] = field(default_factory=dict)  # admitted, not done
    done: list[str] = field(default_factory=list)  # done, not told
    probes: dict[str, AdmittedCall] = field(default_factory=dict)  # to be asked before anything else
    fenced: bool = False


class Life(RuleBasedStateMachine):
    db: Database
    loop: asyncio.AbstractEventLoop

    @initialize()
    def submit(self) -> None:
        self.agent = f"agent{next(NUMBERS)}"
        self.lives = LiveRuns(self.db, b"k" * 32, _no_secrets)
        asked = tasks.Submission(owner="o", submitted_by="o", target=self.agent, input="x")
        choice = tasks.Choice(self.agent, DEFINITION, 1)
        task, _ = self.wait(self.db.write(lambda tx: tasks.submit(tx, self.db.epoch, asked, choice)))
        self.run_id, self.task_id = str(task.run_id), task.task_id
        self.workers: list[Worker] = []
        self.dead: set[int] = set()  # fences whose worker is proven dead
        self.performed: Counter[str] = Counter()  # at the world, by key
        self.keys: dict[str, str] = {}  # key -> effect
        self.finished: set[str] = set()  # calls whose outcome the ledger took
        self.given_up = 0
        self.claim_twice_at_once()

    def wait(self, doing: Any) -> Any:
        return self.loop.run_until_complete(doing)

    def row(self) -> Any:
        return self.db.read_now(lambda c: ledger.read_run(c, self.run_id))

    @property
    def holder(self) -> Worker | None:
        run = self.row()
        held = run.lease_until is not None and run.fence not in self.dead
        return next((one for one in self.workers if held and one.fence == run.fence), None)

    def take(self, worker: Worker, admitted: list[AdmittedCall]) -> None:
        for call in admitted:
            if call.state == "probe":
                worker.probes[call.call] = call
            if call.state == "admitted":
                assert not worker.probes, "nothing starts before the probes are asked"
                assert call.call not in self.finished, "a finished call is not made again"
                worker.todo[call.call] = call
                self.keys[call.key] = NAMES[call.tool]

    def say(self, worker: Worker, *events: NewEvent) -> bool:
        """Append as this worker; False where it learns that it holds the run no more."""
        raw = msgspec.Raw(msgspec.json.encode(list(events)))
        request = AppendRequest(fence=worker.fence, n=worker.n + 1, events=raw)
        try:
            answer = self.wait(self.lives.append(self.run_id, worker.fence, request))
            again = self.wait(self.lives.append(self.run_id, worker.fence, request))
        except (Fenced, Conflict):
            assert worker is not self.holder or self.row().status in ENDED
            worker.fenced = True
            return False
        told = [[(call.call, call.state) for call in one.admitted] for one in (answer, again)]
        places = [(one.n, one.seq, one.head) for one in (answer, again)]
        assert places[0] == places[1] and told[0] == told[1], "sent again, it is only answered again"
        worker.n += 1
        self.take(worker, answer.admitted)
        return True

    # -- workers -------------------------------------------------------------------------------------------------

    @rule()
    def nothing(self) -> None:
        """So that something is possible in the end."""

    @precondition(lambda self: self.row().status == "queued" or self.given_up < 2)
    @rule()
    def claim_twice_at_once(self) -> None:
        def claim(number: int) -> Any:
            return self.db.write(lambda tx: leases.claim(tx, self.agent, "w", f"{self.agent}-{number}", 30.0))

        async def both() -> list[Any]:
            return await asyncio.gather(claim(next(NUMBERS)), claim(next(NUMBERS)))

        free = self.row().status == "queued"
        self.given_up += not free
        got = [one for one in self.wait(both()) if one is not None]
        assert len(got) <= 1 and (free or not got), "one run has one worker"
        if got:
            worker = Worker(got[0].fence, 0)
            self.workers.append(worker)
            self.open(worker)

    def open(self, worker: Worker) -> None:
        opened = self.wait(self.lives.open(self.run_id, worker.fence, lambda _definition: []))
        worker.n = opened.n
        self.take(worker, opened.calls)

    @precondition(lambda self: any(one.probes for one in self.workers))
    @rule(data=st.data(), knows=st.booleans())
    def probe(self, data: st.DataObject, knows: bool) -> None:
        """Ask a tool, which says the truth as it is now: a silent worker may still do it later."""
        worker = data.draw(st.sampled_from([one for one in self.workers if one.probes]))
        name, call = worker.probes.popitem()
        did = self.performed[call.key] > 0
        answer = ("happened" if did else "not_happened") if knows else "unknown"
        if self.say(worker, new_event("tool.probed", {"answer": answer, "result": "did"}, name)):
            self.finished |= {name} if answer == "happened" else set()
            if self.holder is worker:
                if not worker.probes:
                    self.open(worker)
            else:
                worker.fenced, worker.probes = True, {}
        else:
            worker.probes = {}

    def idle(self) -> list[Worker]:
        """Return the workers who have nothing to do, and do not know better."""
        if self.fold().open_calls:
            return []
        return [one for one in self.workers if not (one.todo or one.done or one.probes or one.fenced)]

    @precondition(lambda self: self.idle() and not self.fold().cancel)
    @rule(data=st.data(), wanted=st.lists(st.sampled_from(sorted(NAMES)), min_size=1, max_size=3))
    def reply(self, data: st.DataObject, wanted: list[str]) -> None:
        worker, fold = data.draw(st.sampled_from(self.idle())), self.fold()
        calls = [
            {"id": call_id(fold.steps, number), "type": "function", "function": {"name": name, "arguments": "{}"}}
            for number, name in enumerate(wanted)
        ]
        message = {"role": "assistant", "content": "", "tool_calls": calls}
        self.say(worker, new_event("model.reported", {"request": f"q{worker.fence}-{worker.n}", "message": message}))

    @precondition(lambda self: any(one.todo for one in self.workers))
    @rule(data=st.data())
    def perform(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([one for one in self.workers if one.todo]))
        call = data.draw(st.sampled_from(sorted(worker.todo)))
        self.performed[worker.todo.pop(call).key] += 1
        worker.done.append(call)

    @precondition(lambda self: any(one.done for one in self.workers))
    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([one for one in self.workers if one.done]))
        call = worker.done.pop()
        event = new_event("tool.succeeded", {"result": "did"}, call)
        if not worker.fenced:
            try:
                if self.say(worker, event):
                    self.finished.add(call)
                    return
            except AgentFarmError as error:
                assert worker is not self.holder, error.detail
        try:
            self.wait(self.lives.outcome(self.run_id, call, worker.fence, event))
            self.finished.add(call)
        except (Conflict, Forbidden):
            pass  # another one has it, or it was decided: the late word changes nothing

    @precondition(lambda self: self.idle() and (self.fold().steps > 2 or self.fold().cancel))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.idle()))
        if self.fold().cancel:
            self.say(worker, new_event("run.cancelled", {"reason": "asked"}))
        else:
            self.say(worker, new_event("run.succeeded", {"result": "done"}))

    @precondition(lambda self: self.holder and {call.state for call in self.fold().open_calls} == {"awaiting"})
    @rule()
    def park(self) -> None:
        """A worker that has only calls that wait for a person lets go."""
        worker = self.holder
        assert worker
        self.say(worker, new_event("run.parked", {"reason": "approval"}))

    # -- deaths, silences, wishes --------------------------------------------------------------------------------

    @precondition(lambda self: self.holder is not None and self.keys)
    @rule()
    def fall_silent(self) -> None:
        worker = self.holder
        assert worker
        self.wait(self.db.write(lambda tx: leases.requeue(tx, self.run_id, worker.fence, "the lease expired", None)))

    @precondition(lambda self: self.workers and self.keys)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        self.workers.remove(worker)
        self.dead.add(worker.fence)
        try:
            self.wait(
                self.lives.heartbeat(self.run_id, worker.fence, HeartbeatRequest(fence=worker.fence, dead="exit 9"))
            )
        except (Fenced, NotFound, Conflict):
            pass  # somebody else has the run already

    @precondition(lambda self: len(self.performed) > 1)
    @rule(dice=st.integers(0, 5))
    def cancel(self, dice: int) -> None:
        if dice == 5:
            try:
                self.wait(self.db.write(lambda tx: tasks.cancel(tx, self.task_id, "user:o", "enough")))
            except Conflict:
                assert self.row().status in ENDED

    def waiting(self) -> list[dict[str, Any]]:
        def listed(connection: Any) -> list[dict[str, Any]]:
            return [one for one in inbox.listed(connection, owners=None, agents=[self.agent], waiting=True, limit=100) if one["run_id"] == self.run_id]  # fmt: skip

        return self.db.read_now(listed)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data(), dice=st.integers(0, 4))
    def decide(self, data: st.DataObject, dice: int) -> None:
        item, give_up = data.draw(st.sampled_from(self.waiting())), dice == 4
        if item["kind"] == "approval":
            wish: tuple[Any, ...] = ("refuse" if give_up else "approve", "o", "so", None, None)
        elif self.performed[item["detail"]["key"]]:
            wish = ("happened", "o", "so", None, "did")
        else:
            wish = ("give_up" if give_up else "not_happened", "o", "so", None, None)
        try:
            wish = (wish[0], data.draw(st.sampled_from(["o", "p"])), *wish[2:])
            self.wait(self.lives.decide(item["inbox_id"], *wish))
        except Conflict:
            assert not item["detail"].get("proof"), "where the worker is proven dead a person may decide"

    @precondition(lambda self: any(one["expires_at"] for one in self.waiting()))
    @rule()
    def expire(self) -> None:
        """Let time pass for an approval."""
        item = next(one for one in self.waiting() if one["expires_at"])

        def passed(tx: Any) -> None:
            tx.execute(
                inboxes.update().where(inboxes.c.inbox_id == item["inbox_id"]).values(due_at=1.0, expires_at=1.0)
            )

        self.wait(self.db.write(passed))
        self.wait(self.db.write(lambda tx: leases.overdue(tx, item["inbox_id"])))
        call = self.fold().calls[item["call"]]
        assert call.state == "failed" and "was not made" in str(call.outcome), (
            "an approval that expired is told honestly"
        )

    # -- laws ----------------------------------------------------------------------------------------------------

    def fold(self) -> Fold:
        return Fold().apply_all(self.db.read_now(lambda c: ledger.read_events(c, self.run_id)))

    @invariant()
    def once_is_once(self) -> None:
        if hasattr(self, "performed"):
            twice = [key for key, times in self.performed.items() if times > 1 and self.keys[key] == "once"]
            assert not twice, f"performed twice: {twice}"

    @invariant()
    def nothing_is_done_that_a_person_did_not_approve(self) -> None:
        if not hasattr(self, "run_id"):
            return
        given = set[str | None]()
        votes: dict[str | None, set[str]] = {}
        for event in self.db.read_now(lambda c: ledger.read_events(c, self.run_id)):
            if event.kind == "approval.given":
                given.add(event.call)
            elif event.kind == "approval.voted":
                votes.setdefault(event.call, set()).add(event.by)
            elif event.kind == "tool.started" and RULES.get(event.data()["tool"], {}).get("approval"):
                assert event.call in given
                assert event.data()["tool"] != "grant" or len(votes[event.call]) == 2, "two people, and not one twice"

    @invariant()
    def the_row_says_what_the_events_say(self) -> None:
        if not hasattr(self, "run_id"):
            return
        told = self.db.read_now(lambda c: ledger.read_events(c, self.run_id))
        run, fold = self.row(), Fold()
        for event in told:
            fold.apply(event)
        assert (run.status, run.waiting, run.fence, run.seq) == (fold.status, fold.waiting, fold.fence, len(told))
        step = self.db.read_now(lambda c: latest.of(c, run))
        mine, whole = step.open_calls, fold.open_calls
        assert [replace(one, step=0) for one in mine] == [replace(one, step=0) for one in whole], (
            "its latest step tells all"
        )
        assert (step.status, step.held, step.cancel, step.seq) == (fold.status, fold.held, fold.cancel, fold.seq)
        goes_on = run.lease_until is not None or run.status == "queued"
        doubted = any(call.state == "doubted" for call in fold.open_calls)
        assert run.status in ENDED or goes_on or run.waiting or doubted, "it goes on, or waits for a reason"

    def teardown(self) -> None:
        if hasattr(self, "run_id"):
            assert self.db.read_now(lambda c: ledger.verify(c, self.run_id)).ok


async def _no_secrets(owner: str, names: list[str]) -> dict[str, str]:
    return {}


def test_whatever_happens_a_run_keeps_its_promises(database_url: str) -> None:
    loop = asyncio.new_event_loop()

    async def opened() -> Database:
        return Database.open(database_url)

    Life.loop, Life.db = loop, loop.run_until_complete(opened())
    try:
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=60 if database_url.startswith("sqlite") else 15,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(Life.db.close())
        loop.close()

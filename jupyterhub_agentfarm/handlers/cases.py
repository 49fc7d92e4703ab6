"""Test cases: what an agent is tried with and what is expected, tried against the draft and versions, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk import schemas
from agentfarm_sdk.parts import blobs_of
from agentfarm_sdk.protocol import Mode, Simulate

from ..errors import Conflict, Invalid, NotFound
from ..records import Agent
from ..store import batches, blobs, cases, tasks
from ..store.db import Tx
from . import attachments, budgets, modes
from .asking import in_use, reach_agent
from .feed import CASES
from .routes import Call, Empty, Page, Route
from .runs import reach_run
from .tasks import NewTask, choose, owner_of
from .views import Listed, page, when

Text200 = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Long = Annotated[str, msgspec.Meta(min_length=1, max_length=20_000)]
MOST_TASKS = 1000


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a result is held against. exact: `value`; contains: `text`, `ignore_case`; schema: `schema` (JSON Schema); python: `code`,

    statements over `result`, `text` and `input` that raise nothing where it passes; judge: `question`, answered with yes by `model`.
    """

    kind: Literal["exact", "contains", "schema", "python", "judge"]
    value: Any = None
    text: Long | None = None
    ignore_case: bool = False
    schema: dict[str, Any] | None = None
    code: Long | None = None
    question: Long | None = None
    model: Annotated[str, msgspec.Meta(max_length=200)] = ""


NEEDS = {"contains": "text", "schema": "schema", "python": "code", "judge": "question"}
Checks = Annotated[list[Check], msgspec.Meta(min_length=1, max_length=10)]


class NewCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`from_run`: its input is taken, and what it recorded answers the calls. `mode` left out: simulate with `simulate` or a run, else ask."""

    name: Text200
    expect: Checks
    input: Any = None
    variables: dict[str, str] = {}
    mode: Literal["ask", "simulate"] | None = None
    simulate: Simulate | None = None
    from_run: str | None = None


class CaseChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is left out stays."""

    name: Text200 | msgspec.UnsetType = msgspec.UNSET
    expect: Checks | msgspec.UnsetType = msgspec.UNSET
    input: Any = msgspec.UNSET
    variables: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    mode: Literal["ask", "simulate"] | msgspec.UnsetType = msgspec.UNSET
    simulate: Simulate | msgspec.UnsetType | None = msgspec.UNSET


class CaseView(msgspec.Struct, frozen=True, kw_only=True):
    case_id: str
    agent: str
    name: str
    input: Any
    variables: dict[str, str]
    expect: list[dict[str, Any]]
    mode: str
    simulate: dict[str, Any] | None
    from_run: str | None
    created_at: str
    created_by: str
    changed_at: str


class RunCases(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`versions`: numbers, or "draft". `cases` left out: all of the agent. `mode`: in place of each case's own."""

    versions: Annotated[list[int | Literal["draft"]], msgspec.Meta(min_length=1, max_length=5)] = msgspec.field(
        default_factory=lambda: ["draft"]
    )
    cases: list[str] | None = None
    mode: Literal["ask", "simulate"] | None = None


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One case, tried with one version. `verdict`: passed, failed, error, or null: it is not known yet."""

    case_id: str
    name: str
    version: int | str
    task_id: str
    run_id: str | None
    status: str
    waiting: str | None
    verdict: str | None
    checks: list[dict[str, Any]] | None
    result: Any


class Total(msgspec.Struct, frozen=True):
    version: int | str
    passed: int
    failed: int
    errors: int
    pending: int


class CaseRun(msgspec.Struct, frozen=True, kw_only=True):
    batch_id: str
    created_at: str
    submitted_by: str
    totals: list[Total]
    items: list[Tried] = []


def _agent(connection: Connection, call: Call, need: Literal["view", "manage"]) -> Agent:
    return reach_agent(connection, call.asker, call.path["name"], need)[0]


def _view(row: dict[str, Any]) -> CaseView:
    timed = {name: when(row[name]) for name in ("created_at", "changed_at")}
    return msgspec.convert({**row, **timed}, CaseView)


async def listed(call: Call) -> Listed[CaseView]:
    return Listed([_view(one) for one in await call.read(lambda c: cases.listed(c, _agent(c, call, "view").name))])


def _checked(expect: list[Check]) -> list[dict[str, Any]]:
    """Return checks as they are kept. Raises Invalid: one lacks what it needs, or cannot be used."""
    for index, check in enumerate(expect):
        needs = NEEDS.get(check.kind)
        if needs and getattr(check, needs) is None:
            raise Invalid(f"a check of kind {check.kind} needs {needs} - at `$.expect[{index}].{needs}`")
        if check.schema is not None and (flaw := schemas.flaw(check.schema)):
            raise Invalid(f"{flaw} - at `$.expect[{index}].schema`", hint="a JSON Schema, 2020-12")
        if check.code is not None:
            try:
                compile(check.code, "check", "exec")
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                raise Invalid(
                    f"{error} - at `$.expect[{index}].code`", hint="Python statements, e.g. assert result > 0"
                ) from error
    kept: list[dict[str, Any]] = [msgspec.to_builtins(one) for one in expect]
    return [
        {**one, "value": check.value} if check.kind == "exact" else one for one, check in zip(kept, expect, strict=True)
    ]


async def create(call: Call) -> CaseView:
    new: NewCase = call.body
    expect = _checked(new.expect)
    asked = await attachments.taken(call, new.input, None)

    def write(tx: Tx) -> CaseView:
        agent = in_use(_agent(tx.connection, call, "manage"))
        given, variables, simulate = asked, new.variables, new.simulate
        if new.from_run is not None:
            run = reach_run(tx.connection, call.asker, new.from_run)
            if run.agent != agent.name:
                raise Conflict(
                    f"run {run.run_id} is of {run.agent}, not of {agent.name}", hint="save it with that agent"
                )
            task = tasks.show(tx.connection, run.task_id)
            given = task.input if given is None else given
            variables = variables or task.requirements.get("variables", {})
            simulate = simulate or Simulate(recording=run.run_id, otherwise="refuse")
        if given is None:
            raise Invalid("a case needs an input - at `$.input`", hint="or from_run: a run whose input is taken")
        _, simulate = modes.settled(tx.connection, call.asker, None, simulate, "ask", None)
        values = {
            "name": new.name, "input": given, "variables": variables, "expect": expect, "from_run": new.from_run, "mode": new.mode or ("simulate" if simulate else "ask"),
            "simulate": msgspec.to_builtins(simulate) if simulate else None,
        }  # fmt: skip
        return _view(cases.create(tx, agent.name, call.asker.name, values))

    return await call.commit(write)  # type: ignore[no-any-return]


async def change(call: Call) -> CaseView:
    wish: CaseChange = call.body
    values = {name: value for name in wish.__struct_fields__ if (value := getattr(wish, name)) is not msgspec.UNSET}
    if "expect" in values:
        values["expect"] = _checked(values["expect"])
    if values.get("input", "") is None:
        raise Invalid("a case needs an input - at `$.input`", hint="leave it out, and it stays")
    if "input" in values:
        values["input"] = await attachments.taken(call, values["input"], None)

    def write(tx: Tx) -> CaseView:
        agent = _agent(tx.connection, call, "manage")
        if values.get("simulate") is not None:
            modes.settled(tx.connection, call.asker, None, wish.simulate, "ask", None)  # type: ignore[arg-type]
            values["simulate"] = msgspec.to_builtins(wish.simulate)
        return _view(cases.change(tx, agent.name, call.path["case"], values))

    return await call.commit(write)  # type: ignore[no-any-return]


async def delete(call: Call) -> Empty:
    def write(tx: Tx) -> Empty:
        cases.delete(tx, _agent(tx.connection, call, "manage").name, call.path["case"])
        return Empty()

    return await call.commit(write)  # type: ignore[no-any-return]


async def run(call: Call) -> CaseRun:
    """Submit each case once for each version, as one batch; verdicts follow as the tasks end."""
    wish: RunCases = call.body
    for version in wish.versions:
        await budgets.can_be_kept(call, call.path["name"], version)

    def write(tx: Tx) -> CaseRun:
        agent = in_use(_agent(tx.connection, call, "manage"))
        found = cases.listed(tx.connection, agent.name, wish.cases)
        if missing := set(wish.cases or ()) - {one["case_id"] for one in found}:
            raise NotFound(
                f"agent {agent.name} has no case {sorted(missing)[0]}", hint=f"see /agents/{agent.name}/cases"
            )
        if not found:
            raise Conflict(f"agent {agent.name} has no cases", hint="save some first")
        if len(found) * len(wish.versions) > MOST_TASKS:
            raise Invalid(
                f"{len(found) * len(wish.versions)} tasks at once", hint=f"at most {MOST_TASKS}: name some cases"
            )
        owner = owner_of(tx.connection, call.asker)
        batch_id = batches.begin(tx, owner=owner, submitted_by=call.asker.hub_name, key=None)
        place = 0
        for version in dict.fromkeys(wish.versions):
            choice = choose(tx.connection, call.asker, owner, NewTask(target=agent.name, version=version))
            assert choice is not None  # an agent is named, no pool
            for case in found:
                place += 1
                task = _submit(tx, call, owner, case, choice, wish.mode, (batch_id, place))
                cases.tried(tx, batch_id, agent.name, case, choice.version, task)
        return _case_run(tx.connection, agent.name, batch_id)

    done = await call.commit(write)
    call.parts.wake()
    call.parts.judging.expect()
    call.parts.feed.wake(CASES)
    return done  # type: ignore[no-any-return]


def _submit(
    tx: Tx,
    call: Call,
    owner: str,
    case: dict[str, Any],
    choice: tasks.Choice,
    mode: Mode | None,
    batch: tuple[str, int],
) -> str:
    wanted = mode or case["mode"]
    given = msgspec.convert(case["simulate"], Simulate) if case["simulate"] and wanted == "simulate" else None
    mode, simulate = modes.settled(tx.connection, call.asker, wanted, given, "ask", None)
    blobs.lend(tx, owner, blobs_of(case["input"]))
    asked = tasks.Submission(
        owner=owner, submitted_by=call.asker.hub_name, target=choice.agent, input=case["input"], variables=case["variables"], mode=mode,
        simulate=simulate, batch_id=batch[0], place=batch[1], workspace="home",
    )  # fmt: skip
    return tasks.submit(tx, call.parts.db.epoch, asked, choice)[0].task_id


def _case_run(connection: Connection, agent: str, batch_id: str) -> CaseRun:
    items = _tried(connection, agent, [batch_id]).get(batch_id)
    if not items:
        raise NotFound(
            f"agent {agent} has no case run {batch_id}", hint=f"they are listed at /agents/{agent}/cases/runs"
        )
    batch = batches.show(connection, batch_id)
    return CaseRun(
        batch_id=batch_id, created_at=batch["created_at"], submitted_by=batch["submitted_by"], totals=totals(items), items=items
    )  # fmt: skip


def _tried(connection: Connection, agent: str, batch_ids: list[str]) -> dict[str, list[Tried]]:
    found: dict[str, list[Tried]] = {}
    for row in cases.results(connection, agent, batch_ids):
        shown = {**row, "version": "draft" if row["version"] is None else row["version"]}
        found.setdefault(str(row["batch_id"]), []).append(msgspec.convert(shown, Tried))
    return found


def totals(items: list[Tried]) -> list[Total]:
    """Count verdicts by version, in the order of the versions. Pure."""
    return counted((one.version, one.verdict, 1) for one in items)


def counted(verdicts: Iterable[tuple[int | str, str | None, int]]) -> list[Total]:
    """Add up (version, verdict, how many), in the order of the versions. Pure."""
    found: dict[int | str, list[int]] = {}
    words = ("passed", "failed", "error", None)
    for version, verdict, many in verdicts:
        found.setdefault(version, [0, 0, 0, 0])[words.index(verdict)] += many
    return [Total(version, *counts) for version, counts in found.items()]


def standing(
    connection: Connection, agents: list[str] | None, known: Iterable[str], newer: str
) -> list[dict[str, Any]]:
    """Return how these case runs stand, for the stream of changes: `{agent, batch_id, totals}`."""
    rows = cases.standing(connection, agents, known, newer)
    return [
        {"agent": agent, "batch_id": batch, "totals": counted(("draft" if v is None else v, said, many) for _, _, v, said, many in mine)}
        for (batch, agent), mine in groupby(rows, lambda row: row[:2])
    ]  # fmt: skip


async def list_runs(call: Call) -> Listed[CaseRun]:
    query: Page = call.query

    def read(connection: Connection) -> list[CaseRun]:
        agent = _agent(connection, call, "view").name
        rows = cases.case_runs(connection, agent, query.cursor or None, query.limit + 1)
        tried = _tried(connection, agent, [row["batch_id"] for row in rows])
        return [CaseRun(**row, totals=totals(tried.get(row["batch_id"], []))) for row in rows]

    return page(await call.read(read), query.limit, lambda one: one.batch_id)


async def show_run(call: Call) -> CaseRun:
    return await call.read(lambda c: _case_run(c, _agent(c, call, "view").name, call.path["batch"]))


ROUTES = [
    Route("GET", "/agents/{name}/cases", listed, "Its test cases", answer=Listed[CaseView]),
    Route("POST", "/agents/{name}/cases", create, "Save a test case", who="person", body=NewCase, answer=CaseView, status=201),
    Route("PATCH", "/agents/{name}/cases/{case}", change, "Change it", who="person", body=CaseChange, answer=CaseView),
    Route("DELETE", "/agents/{name}/cases/{case}", delete, "Delete it", who="person", answer=Empty),
    Route("POST", "/agents/{name}/cases/run", run, "Try cases with the draft or versions", who="person", body=RunCases, answer=CaseRun, status=201),
    Route("GET", "/agents/{name}/cases/runs", list_runs, "How cases were tried, newest first", query=Page, answer=Listed[CaseRun]),
    Route("GET", "/agents/{name}/cases/runs/{batch}", show_run, "One of them, case by case", answer=CaseRun),
]  # fmt: skip

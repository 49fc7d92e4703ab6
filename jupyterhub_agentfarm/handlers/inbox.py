"""What waits for a person, and the deciding of it: by a person at a farm page, or with the scope approve; never agents."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from sqlalchemy.engine import Connection

from ..errors import Forbidden, NotFound
from ..store import agents, inbox
from . import budgets
from .asking import RANK, Asker, may, rights, visible
from .routes import Call, Page, Route
from .runs import NOTEBOOK
from .views import InboxView, Listed, inbox_view, page


class InboxPage(Page, frozen=True, forbid_unknown_fields=True):
    """`all`: also what was decided. `decided`: only that, newest first. `escalated`: only what waited too long for those whom it was shown first."""

    all: bool = False
    decided: bool = False
    escalated: bool = False


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For an approval: approve (with other `arguments`, if need be) or refuse. For a call in doubt: happened (with its

    `result`), not_happened (call again; with `force` and a reason also where the worker is only silent), give_up.
    For a budget: approve (with `arguments` {"amount"}: so much beyond it, in its unit) or refuse.
    For a question or a call of a simulated run: answer (with its `result`), or refuse. Where several people must approve, those are counted who approve the same arguments; one refusal refuses.
    """

    decision: Literal["approve", "refuse", "happened", "not_happened", "give_up", "given_up", "answer"]
    reason: str = ""
    arguments: dict[str, Any] | None = None
    result: Any = None
    force: bool = False


async def listed(call: Call) -> Listed[InboxView]:
    query: InboxPage = call.query

    def read(connection: Connection) -> list[dict[str, Any]]:
        owners, names = visible(connection, call.asker)
        return inbox.listed(
            connection, owners=owners, agents=names, groups=call.asker.groups, waiting=not query.all, decided=query.decided, escalated=query.escalated,
            after=query.cursor or None, limit=query.limit + 1,
        )  # fmt: skip

    found = page(await call.read(read), query.limit, lambda one: one["inbox_id"])
    return Listed([inbox_view(one) for one in found.items], found.next)


async def show(call: Call) -> InboxView:
    def read(connection: Connection) -> InboxView:
        item = _reach(connection, call.asker, call.path["item"])
        try:
            _may_decide(connection, call.asker, item)
        except (Forbidden, NotFound):
            return msgspec.structs.replace(inbox_view(item), may_decide=False)
        return msgspec.structs.replace(inbox_view(item), may_decide=call.asker.kind == "person")

    return await call.read(read)


async def decide(call: Call) -> InboxView:
    wish: Decision = call.body
    item = await call.read(lambda c: _reach(c, call.asker, call.path["item"]))
    await call.read(lambda c: _may_decide(c, call.asker, item))
    decision = "give_up" if wish.decision == "given_up" else wish.decision
    await call.parts.live.decide(
        item["inbox_id"], decision, call.asker.name, wish.reason, wish.arguments, wish.result, wish.force
    )
    return inbox_view(await call.read(lambda c: inbox.show(c, item["inbox_id"])))


def _reach(connection: Connection, asker: Asker, inbox_id: str) -> dict[str, Any]:
    item = inbox.show(connection, inbox_id)
    if not may(connection, asker, item, "view") and not _escalated_to(asker, item):
        raise NotFound(f"there is no inbox item {inbox_id}", hint="list them by: agentfarm inbox list")
    return item


def _escalated_to(asker: Asker, item: dict[str, Any]) -> bool:
    return asker.kind == "person" and item["escalated_at"] is not None and item["escalate_to"] in asker.groups


def _may_decide(connection: Connection, asker: Asker, item: dict[str, Any]) -> None:
    """An effect is decided by those who manage the agent, or to whom it was escalated: not by who only gave a task."""
    if item["kind"] == "budget":  # who could not change it cannot wave it through
        budgets.may_set(connection, asker, item["detail"]["scope"], item["detail"]["name"])
        return
    if item["kind"] == "question" and may(
        connection, asker, item, "chat"
    ):  # who gave the task may well be who is asked
        return
    if asker.operator or (item["agent"].startswith(NOTEBOOK) and item["owner"] == asker.name):
        return
    if _escalated_to(asker, item):
        return
    agent = agents.show(connection, item["agent"])
    has = rights(connection, asker, agent)
    if has is None or RANK[has] < RANK["manage"]:
        raise Forbidden(f"this is decided by those who manage {agent.name}", hint=f"ask {agent.owner}")


ROUTES = [
    Route("GET", "/inbox", listed, "What waits for a person, oldest first; or what was decided", query=InboxPage, answer=Listed[InboxView]),
    Route("GET", "/inbox/{item}", show, "One of them", answer=InboxView),
    Route("POST", "/inbox/{item}", decide, "Decide it", who="approver", body=Decision, answer=InboxView),
]  # fmt: skip

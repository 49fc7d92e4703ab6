"""Budgets of agents, owners and the farm: shown, set, taken away; and what was used, by agent, owner, model and day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import ModelSpec

from ..errors import Forbidden, Invalid, NotFound, UserError
from ..records import Agent
from ..store import agents
from ..store import budgets as rows
from ..store.budgets import Budget
from .asking import Asker, reach_agent
from .routes import Call, Empty, Route
from .views import Listed, when


class NewBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`name`: the agent's or the owner's, "" for the farm. `amount`: USD or tokens in the period (UTC); null takes the limit away.

    `action`: what meets a run that reaches it: stop (it fails with `budget`), ask (it waits until a person decides).
    """

    scope: Literal["agent", "owner", "farm"]
    name: Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[^\x00-\x1f]*$")] = ""
    unit: Literal["usd", "tokens"]
    period: Literal["day", "month", "total"]
    amount: Annotated[float, msgspec.Meta(ge=0, le=1e15)] | None
    action: Literal["stop", "ask"] = "stop"


class BudgetView(msgspec.Struct, frozen=True, kw_only=True):
    """`spent`: in the present period; `reserved`: by requests under way; `warning`: why it cannot be kept, "" where it can.

    `waived`: runs that have not ended and need not keep it, by the word of a person.
    """

    scope: str
    name: str
    unit: str
    period: str
    amount: float | None
    action: str
    spent: float
    reserved: float
    left: float | None
    set_by: str
    set_at: str | None
    warning: str = ""
    waived: list[str] = []


Day = Annotated[str, msgspec.Meta(pattern=r"^(\d{4}-\d{2}-\d{2})?$")]


class UsagePage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`since`, `until`: days, 2026-11-21, inclusive. `by`: what to sum by, of day, agent, owner and model."""

    since: Day = ""
    until: Day = ""
    by: str = "day,agent,owner,model"


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """Keys that were not asked for are "". `estimated`: requests whose tokens nobody counted; `unpriced`: without a price."""

    day: str = ""
    agent: str = ""
    owner: str = ""
    model: str = ""
    requests: int
    tokens_in: int
    tokens_out: int
    cost: float
    estimated: int = 0
    unpriced: int = 0


def may_set(connection: Connection, asker: Asker, scope: str, name: str) -> None:
    """Say whether the asker sets this budget: agents' those who manage them, all others an operator.

    Raises Forbidden; NotFound: also for an agent that may not be seen.
    """
    if scope == "agent":
        reach_agent(connection, asker, name, "manage")
    elif not asker.operator:
        raise Forbidden(
            f"the budget of {'the farm' if scope == 'farm' else 'an owner'} is set by operators", hint="ask one"
        )


async def listed(call: Call) -> Listed[BudgetView]:
    """The budgets that hold for what the asker may see; an operator sees all."""
    budgets = call.parts.models.budgets
    await budgets.ready()

    def seen(connection: Connection) -> list[Budget]:
        asker, found = call.asker, rows.listed(connection)
        if asker.operator:
            return found
        names = {asker.name} if asker.kind == "agent" else set(agents.reachable(connection, asker.name))
        owner = "" if asker.kind == "agent" else asker.name
        return [
            b for b in found if (b.scope == "agent" and b.name in names) or (b.scope == "owner" and b.name == owner)
        ]

    found, waived = await call.read(lambda c: (seen(c), rows.waived(c)))
    return Listed([_view(call, one, waived=waived.get(one.id, ())) for one in found])


async def put(call: Call) -> BudgetView:
    """Set a limit, or change it; runs that wait for it go on where there is room now."""
    new: NewBudget = call.body
    agent = await call.read(lambda c: _checked(c, call.asker, new))
    amount = 0.0 if new.amount is None else new.amount
    budget = Budget(
        new.scope, new.name, new.unit, new.period, amount, new.action, call.asker.hub_name, call.parts.db.now()
    )
    there = await call.parts.models.budgets.change(budget, remove=new.amount is None)
    if not there:
        raise NotFound("there is no such budget", hint="list them by: agentfarm budget list")
    warning = (
        ""
        if new.amount is None or new.unit == "tokens"
        else await _unpriced(call, agent.draft.model if agent else None)
    )
    return _view(call, budget, removed=new.amount is None, warning=warning)


def _checked(connection: Connection, asker: Asker, new: NewBudget) -> Agent | None:
    if (new.scope == "farm") != (new.name == ""):
        raise Invalid(
            "only the farm's budget has no name - at `$.name`", hint='{"scope": "agent", "name": "analyst", …}'
        )
    may_set(connection, asker, new.scope, new.name)
    return agents.show(connection, new.name) if new.scope == "agent" else None


async def can_be_kept(call: Call, target: str, version: int | str | None) -> None:
    """Raises Invalid where a budget in USD holds for the task's agent and its model has no price: it would only fail."""
    budgets = call.parts.models.budgets
    await budgets.ready()
    if target.startswith("pool:") or not budgets.in_money():
        return

    def read(connection: Connection) -> tuple[str, ModelSpec]:
        agent = reach_agent(connection, call.asker, target, "chat")[0]  # who may not, learns nothing of it here
        number = version if isinstance(version, int) else agent.published
        draft = version == "draft" or number is None
        return agent.owner, agent.draft.model if draft else agents.version(
            connection, target, number or 0
        ).definition.model

    try:
        owner, model = await call.read(read)
    except UserError:
        return  # submitting says so
    holds = [one.budget for one in budgets.applying(target, owner) if one.budget.unit == "usd"]
    if holds and (flaw := await _unpriced(call, model)):
        raise Invalid(
            f"{holds[0].words}, and {flaw}", hint="or set that budget in tokens: agentfarm budget set … --tokens"
        )


async def _unpriced(call: Call, wanted: ModelSpec | None) -> str:
    """Say which model has no price: a budget in USD cannot be kept with it."""
    upstreams = call.parts.models.upstreams
    if not upstreams.default and not (wanted and wanted.name):
        return ""
    try:
        route, name = upstreams.route(wanted.name if wanted else "")
    except NotFound:
        return ""
    if await route.upstream.price(name, wanted.provider if wanted else None) is not None:
        return ""
    return f"the model {name} has no price: runs with it are refused; name its prices in the upstream's settings"


def _view(
    call: Call, budget: Budget, *, removed: bool = False, warning: str = "", waived: Sequence[str] = ()
) -> BudgetView:
    budgets = call.parts.models.budgets
    spent, reserved = budgets.used(budget), budgets.reserved(budget)
    return BudgetView(
        scope=budget.scope, name=budget.name, unit=budget.unit, period=budget.period, action=budget.action,
        amount=None if removed else budget.amount, spent=spent, reserved=reserved,
        left=None if removed else max(0.0, budget.amount - spent - reserved), set_by=budget.set_by,
        set_at=when(budget.set_at), warning=warning, waived=list(waived),
    )  # fmt: skip


async def usage(call: Call) -> Listed[Used]:
    """Requests, tokens and cost of what the asker may see, summed by what `by` names."""
    query: UsagePage = call.query
    keys = [key.strip() for key in query.by.split(",") if key.strip()]
    if wrong := set(keys) - set(rows.USAGE_KEYS):
        raise Invalid(f"usage is not kept by {', '.join(sorted(wrong))}", hint="by=" + ",".join(rows.USAGE_KEYS))

    def read(connection: Connection) -> list[dict[str, Any]]:
        owner: str | None = call.asker.name
        names = [call.asker.name]
        if call.asker.operator:
            owner = None
        elif call.asker.kind == "agent":
            owner = ""
        else:
            names = list(agents.reachable(connection, call.asker.name))
        return rows.usage_by(connection, keys, owner=owner, agents=names, since=query.since, until=query.until)

    return Listed([Used(**{str(name): value for name, value in row.items()}) for row in await call.read(read)])


ROUTES = [
    Route("GET", "/budgets", listed, "Limits of agents, owners and the farm, and what is left of them", query=Empty, answer=Listed[BudgetView]),
    Route("PUT", "/budgets", put, "Set a limit, or take it away", who="person", body=NewBudget, answer=BudgetView),
    Route("GET", "/usage", usage, "Requests, tokens and cost by day, agent, owner and model", query=UsagePage, answer=Listed[Used]),
]  # fmt: skip

"""What is left of agents', owners' and the farm's budgets: reserved before each model request, settled with its reply.

The balances are kept in memory, for there is one service; the rows of `usage` and `reservations` are the truth that they
are made of at the start. Where no budget applies to a run, nothing here costs it anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agentfarm_sdk.fold import Fold
from agentfarm_sdk.waiting import within

from ..errors import Invalid
from ..records import new_id
from ..store import budgets as rows
from ..store.budgets import Budget, Hold
from ..store.db import Database, Tx

log = logging.getLogger(__name__)
LONGEST_OUTPUT = 4096  # tokens that are reserved, and asked for, where the version sets no max_tokens
SHORTEST_OUTPUT = 256  # a reply is cut to what is left of a budget, but not shorter than this
NEAR = 0.9  # above this part of a budget the reservation's commit is waited for before the model is asked
BYTES_A_TOKEN = 2  # of a prompt, at least: English has four, code three, Chinese and digits two to three
MEDIA_TOKENS = 2000  # for an image or a file, whose bytes say nothing of its tokens
LOOK_SECONDS = 30.0
Price = tuple[float, float]  # USD per million tokens, in and out


@dataclass
class Balance:
    """A budget and what was used of it since the beginning of its period."""

    budget: Budget
    since: str
    spent: float


@dataclass(frozen=True)
class Wish:
    """What a model request may use. tokens_out: as much as wanted; price: None where the model has none."""

    agent: str
    owner: str
    run: str
    model: str
    tokens_in: int
    tokens_out: int
    price: Price | None

    def amount(self, unit: str, tokens_out: int) -> float:
        if unit == "tokens":
            return self.tokens_in + tokens_out
        per_in, per_out = self.price or (0.0, 0.0)
        return (self.tokens_in * per_in + tokens_out * per_out) / 1e6

    def outputs(self, unit: str, left: float) -> float:
        """Return how many tokens of output fit into what is left."""
        if unit == "tokens":
            return left - self.tokens_in
        per_in, per_out = self.price or (0.0, 0.0)
        money = left - self.tokens_in * per_in / 1e6
        return money * 1e6 / per_out if per_out else (float("inf") if money >= 0 else -1.0)


@dataclass(frozen=True)
class Taken:
    """A reservation that stands. `near`: its commit is to be waited for; `cut`: the output is shorter than was wanted."""

    hold: Hold
    near: bool
    cut: bool


@dataclass(frozen=True)
class Reached:
    """A budget that has no room for the request, and what it would need."""

    budget: Budget
    spent: float
    needed: float

    def told(self) -> dict[str, Any]:
        b = self.budget
        return {
            "budget": b.id, "scope": b.scope, "name": b.name, "unit": b.unit, "period": b.period, "limit": b.amount,
            "spent": self.spent, "needed": self.needed, "why": self.words,
        }  # fmt: skip

    @property
    def words(self) -> str:
        used = f"{self.spent:.4f}".rstrip("0").rstrip(".") if self.budget.unit == "usd" else f"{self.spent:g}"
        return f"{self.budget.words} and has used {used}"


def beyond(fold: Fold, budget: Budget) -> float:
    """Return what a run may still use by a person's word, however much of the budget is used up; -inf: nobody said so. Pure."""
    waiver = fold.allowed.get(budget.id)
    if waiver is None or waiver.amount is None:
        return float("-inf" if waiver is None else "inf")
    since = fold.cost - waiver.cost if budget.unit == "usd" else fold.tokens_in + fold.tokens_out - waiver.tokens
    return waiver.amount - since


def decide(
    balances: Sequence[Balance], reserved: Callable[[Budget], float], wish: Wish, fold: Fold | None = None
) -> int | Reached | None:
    """Return the tokens of output that may be asked for; the budget that is reached; None: wait for those under way. Pure."""
    wanted, reached, most = wish.tokens_out, list[Reached](), float(wish.tokens_out)
    shortest, wait = min(wanted, SHORTEST_OUTPUT), False
    for one in balances:
        unit, held, left = one.budget.unit, reserved(one.budget), one.budget.amount - one.spent
        more = beyond(fold, one.budget) if fold else float("-inf")
        alone = wish.outputs(unit, max(left, more))
        if alone < shortest:
            reached.append(Reached(one.budget, one.spent, wish.amount(unit, shortest)))
        fits = wish.outputs(unit, max(left - held, more))
        wait = wait or (held > 0 and fits < min(wanted, alone))
        most = min(most, fits)
    if reached:
        return min(reached, key=lambda one: one.budget.action != "stop")
    return None if wait else int(most)


def size_of(message: Any, raw: bytes) -> int:
    """Return how many tokens a message (or another part of a request) has at most; `raw` is its JSON."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return len(raw) // BYTES_A_TOKEN + 4
    text = [part for part in content if part.get("type") == "text"]  # the base64 of images and files is no text
    return len(msgspec.json.encode(text)) // BYTES_A_TOKEN + (len(content) - len(text)) * MEDIA_TOKENS + 4


class Budgets:
    """The balances of this farm. Nothing is read before it is asked for something."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._balances: dict[tuple[str, str], list[Balance]] = {}
        self._holds: dict[str, Hold] = {}
        self._loading: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._day = ""

    # -- in memory -----------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Read the budgets once; settle what a former life of the service left. Raises Transient."""
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = asyncio.create_task(self._load(settle=True))
        await asyncio.shield(self._loading)

    async def _load(self, settle: bool = False) -> None:
        """Read limits and what was used of them, in the writer's order: what is settled later is added after it."""

        def read(tx: Tx) -> list[Balance]:
            for hold in rows.orphans(tx.connection) if settle else ():
                rows.settle_in_full(tx, hold)
            found = rows.listed(tx.connection)
            return [
                Balance(one, rows.key_of(one.period, tx.now), rows.spent(tx.connection, one, tx.now)) for one in found
            ]

        balances: dict[tuple[str, str], list[Balance]] = {}
        for one in await self.db.write(read):
            balances.setdefault((one.budget.scope, one.budget.name), []).append(one)
        self._balances = balances
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def applying(self, agent: str, owner: str) -> list[Balance]:
        """Return the balances that hold for an agent's runs, their periods up to date."""
        if not self._balances:
            return []
        places = (("farm", ""), ("owner", owner), ("agent", agent))
        found = [one for place in places for one in self._balances.get(place, ())]
        for one in found:
            since = rows.key_of(one.budget.period, self.db.now())
            if since != one.since:
                one.since, one.spent = since, 0.0
        return found

    def in_money(self) -> bool:
        """Say whether any budget is in USD."""
        return any(one.budget.unit == "usd" for several in self._balances.values() for one in several)

    def reserved(self, budget: Budget) -> float:
        """Return what the requests under way have reserved of a budget."""
        return sum(
            one.cost if budget.unit == "usd" else one.tokens_in + one.tokens_out
            for one in self._holds.values()
            if budget.scope == "farm" or budget.name == (one.agent if budget.scope == "agent" else one.owner)
        )

    def used(self, budget: Budget) -> float:
        """Return what was used of a budget in its present period."""
        balances = self._balances.get((budget.scope, budget.name), ())
        self.applying(budget.name, budget.name)
        return next((one.spent for one in balances if one.budget.id == budget.id), 0.0)

    # -- a request -----------------------------------------------------------------------------------------------

    async def reserve(self, wish: Wish, fold: Fold, still: Callable[[], None]) -> Taken | Reached | None:
        """Reserve what a request may use, or say which budget is reached; None where no budget applies.

        Where only the requests under way stand in the way, wait for them; `still` is asked meanwhile whether the run may
        go on. `fold`: of the run, for which a person may have waived budgets. Raises Invalid: a budget in USD, and no price.
        """
        while True:
            every = self.applying(wish.agent, wish.owner)
            balances = [one for one in every if beyond(fold, one.budget) < float("inf")]
            if not balances:
                return None
            self._priced(balances, wish)
            output = decide(balances, self.reserved, wish, fold)
            if isinstance(output, Reached):
                return output
            if output is not None:
                return self._take(balances, wish, output)
            try:
                await within(self._changed.wait(), 1.0)
            except asyncio.TimeoutError:
                still()
            else:
                still()

    @staticmethod
    def _priced(balances: Iterable[Balance], wish: Wish) -> None:
        money = next((one.budget for one in balances if one.budget.unit == "usd"), None)
        if money is not None and wish.price is None:
            raise Invalid(
                f"{money.words}, and the model {wish.model} has no price",
                hint="name its prices in the upstream's settings, or set that budget in tokens",
            )

    def _take(self, balances: Iterable[Balance], wish: Wish, output: int) -> Taken:
        hold = Hold(
            hold_id=new_id("hold"), run_id=wish.run, agent=wish.agent, owner=wish.owner, model=wish.model,
            tokens_in=wish.tokens_in, tokens_out=output, cost=wish.amount("usd", output),
        )  # fmt: skip
        self._holds[hold.hold_id] = hold
        near = any(one.spent + self.reserved(one.budget) > NEAR * one.budget.amount for one in balances)
        return Taken(hold, near, output < wish.tokens_out)

    def settle(self, hold: Hold | None, agent: str, owner: str, tokens: int, cost: float) -> None:
        """Count what a request came to, once its transaction is through; its reservation is over."""
        for one in self.applying(agent, owner):
            one.spent += cost if one.budget.unit == "usd" else tokens
        if hold is not None and self._holds.pop(hold.hold_id, None) is not None:
            self._notify()

    async def abandon(self, hold: Hold) -> None:
        """Settle in full what nobody will settle any more. Raises Transient."""
        if hold.hold_id in self._holds:
            await self.db.write(lambda tx: rows.settle_in_full(tx, hold))
            self.settle(hold, hold.agent, hold.owner, hold.tokens_in + hold.tokens_out, hold.cost)

    # -- limits --------------------------------------------------------------------------------------------------

    async def change(self, budget: Budget, *, remove: bool = False) -> bool:
        """Set a limit, or take it away; runs that wait for it go on where there is room now. False: it was not there."""
        await self.ready()

        def write(tx: Tx) -> bool:
            if remove:
                return rows.remove(tx, budget, budget.set_by)
            rows.put(tx, budget)
            return True

        done = await self.db.write(write)
        await self._load()
        word = "was removed" if remove else "was changed"
        await self.revive(f"user:{budget.set_by}", f"the budget {word} by {budget.set_by}")
        return done

    async def revive(self, by: str, reason: str) -> None:
        """Let the runs go on that wait for a budget which has room for them now, or is no more."""
        for run_id, raw in await self.db.read(rows.waiting):
            detail = msgspec.json.decode(raw)
            known = {one.budget.id: one for several in self._balances.values() for one in several}
            balance = known.get(str(detail.get("budget")))
            if balance is not None:
                self.applying(balance.budget.name, balance.budget.name)  # its period may have begun anew
                if balance.spent + float(detail.get("needed", 0.0)) > balance.budget.amount:
                    continue
            await self._go_on(run_id, by, str(detail.get("budget")), reason)

    async def _go_on(self, run_id: str, by: str, budget_id: str, reason: str) -> None:
        await self.db.write(lambda tx: rows.go_on(tx, run_id, by, budget_id, reason))

    async def run(self) -> None:
        """Look for ever whether a period has begun anew; at the start too: one may have begun while nobody looked."""
        await self.ready()
        await self.revive("service", "there is room again")
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            day = rows.key_of("day", self.db.now())
            if self._day and day != self._day:
                await self.revive("service", "a new day has begun")
            self._day = day

"""A run's model requests: asked once for each id, recorded with their admissions in one transaction, never lost once paid."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from agentfarm_sdk import parts
from agentfarm_sdk.protocol import AdmittedCall, Event, ModelAnswer, ModelRequest, NewEvent, new_event

from ..errors import (
    AgentFarmError,
    BudgetReached,
    Conflict,
    Fenced,
    Hole,
    Invalid,
    Parked,
    Transient,
)
from ..store import blobs, ledger, usage
from ..store import budgets as reservations
from ..store.budgets import Hold
from ..store.db import Tx
from . import admission, rules
from .answers import repair, repairing
from .asking import Ask, OnToken, Reply, UpstreamError
from .budgets import BYTES_A_TOKEN, Budgets, Reached, Taken, Wish
from .families import Families
from .live import ASIDE, LiveRun, LiveRuns
from .proxy import Route, Upstreams, pause

log = logging.getLogger(__name__)
SETTLE_PAUSE = 0.2


@dataclass(frozen=True)
class _Asked:
    """An attempt's `model.requested`, the commit that is to hold it, and what is reserved of the budgets with it."""

    event: NewEvent
    future: asyncio.Future[None]
    hold: Hold | None


class Models:
    """The gateway's part of a step. Viewers may watch the tokens of a run; they are for the eye only."""

    def __init__(self, lives: LiveRuns, upstreams: Upstreams) -> None:
        self.lives, self.upstreams, self.budgets = lives, upstreams, Budgets(lives.db)
        self.families = Families(lives.db)
        self._leaving: set[asyncio.Future[None]] = set()
        self._watchers: dict[str, set[asyncio.Queue[dict[str, Any]]]] = {}
        self._under_way: dict[tuple[str, int], tuple[str, asyncio.Task[ModelAnswer]]] = {}  # by run and fence

    async def model(self, request: ModelRequest, on_token: OnToken | None = None) -> ModelAnswer:
        """Ask the model for the run's next step. The same request id gets the recorded reply again.

        Raises:
            Fenced, Hole, Transient; LimitReached, BudgetReached: the run ends; Parked: it waits; Cancelled; UserError: the
            model server refuses; ModelFailed: it does not reply.
        """
        place = (request.run, request.fence)
        if place not in self._under_way:
            live = await self.lives.get(*place)
            if request.request in live.fold.replies and place not in self._under_way:
                return await self._again(live, request)
        if place not in self._under_way:
            task = asyncio.create_task(self._step(request, on_token))
            self._under_way[place] = (request.request, task)
            task.add_done_callback(lambda done: self._over(place, done))
        asked, task = self._under_way[place]
        if asked != request.request:
            raise Conflict(f"request {asked} of this run is under way", hint="a run asks its model one thing at a time")
        return await asyncio.shield(task)  # a worker that goes away does not stop a request that is paid

    def _over(self, place: tuple[str, int], done: asyncio.Task[ModelAnswer]) -> None:
        del self._under_way[place]
        error = None if done.cancelled() else done.exception()
        if error is not None and not isinstance(error, AgentFarmError):  # ours are told to whoever waited
            log.error("run %s: a model request failed", place[0], exc_info=error)

    @asynccontextmanager
    async def watch(self, run_id: str) -> AsyncIterator[asyncio.Queue[dict[str, Any]]]:
        """Give a queue of {"step", "text"} of the run while the block lasts; a slow viewer misses some."""
        mine: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1000)
        self._watchers.setdefault(run_id, set()).add(mine)
        try:
            yield mine
        finally:
            self._watchers[run_id].discard(mine)
            if not self._watchers[run_id]:
                del self._watchers[run_id]

    def _teller(self, live: LiveRun, on_token: OnToken | None) -> OnToken | None:
        watchers = self._watchers.get(live.run.run_id)
        if on_token is None and not watchers:
            return None
        step = live.fold.steps

        def tell(token: dict[str, Any]) -> None:
            if on_token is not None:
                on_token(token)
            for watcher in watchers or ():
                if not watcher.full():
                    watcher.put_nowait({"step": step, **token})

        return tell

    async def _step(self, request: ModelRequest, on_token: OnToken | None) -> ModelAnswer:
        live = await self.lives.arrived(request.run, request.fence, request.n)
        self._may_ask(live)
        await self.families.check(live)
        definition = live.definition
        route, model = self.upstreams.route(definition.model.name)
        if definition.limits.cost is not None and await route.upstream.price(model, definition.model.provider) is None:
            raise Invalid(
                f"limits.cost of the agent is in USD, and the model {model} has no price",
                hint="name its prices in the upstream's settings, or use limits.tokens",
            )
        if request.messages is None:
            live = await self._shortened(live, request, route, model)
        choice = request.tool_choice or definition.choice_at(live.fold.steps)
        if request.messages is None:
            while found := live.unseen_parts():
                await self._show(live, found)
            digest, messages = live.roll_digest(), live.messages()
        else:
            messages, digest = request.messages, rules.digest_of(request.messages)
        if repairing(messages):
            choice = "none"
        ask = Ask(
            model=model, messages=messages, tools=definition.tools, tool_choice=choice if definition.tools else "none",
            parameters=definition.model.parameters, answer=definition.answer, provider=definition.model.provider,
        )  # fmt: skip
        wish = await self._wish(live, request, route, ask) if live.parent or live.delegated else None
        async with self.families.turn(live, wish, lambda: self._may_ask(self.lives.current(live))):
            reply, asked = await self._attempts(live, request, route, ask, digest, self._teller(live, on_token))
            return await self._replied(self.lives.current(live), request, route, reply, asked, model)

    async def _replied(
        self, live: LiveRun, request: ModelRequest, route: Route, reply: Reply, asked: _Asked, model: str
    ) -> ModelAnswer:
        """Record a reply with the admissions of its calls, in one transaction."""
        said = admission.message(live.fold.steps, reply.content, reply.calls)
        body = rules.recorded(request, route, reply, said)
        cost = body["cost"]
        verdicts = self.lives.admit(live, said)
        more = [] if request.messages is not None else repair(live.definition, live.fits, live.fold, said)
        events = [new_event("model.replied", body), *(verdict.event for verdict in verdicts), *more]
        done = await self._settle(live, request, events, asked, model, reply, cost)
        self._settled(live, asked, reply, cost, done.seq)
        for event in events:
            live.apply(event, "gateway")
        return await self._answer(
            live, request, done.seq, done.head, said, [verdict.told for verdict in verdicts], body["usage"],
            list(done.events[len(done.events) - len(more) :]),
        )  # fmt: skip

    def _settled(self, live: LiveRun, asked: _Asked, reply: Reply, cost: float | None, seq: int) -> None:
        """Count in memory what a reply came to, whose transaction is through."""
        tokens = reply.tokens_in + reply.tokens_out
        self.budgets.settle(asked.hold, live.run.agent, live.run.owner, tokens, cost or 0.0)
        self.families.count(live.run.run_id, seq, tokens, cost or 0.0)

    async def _shortened(self, live: LiveRun, request: ModelRequest, route: Route, model: str) -> LiveRun:
        """Let the model summarise the older messages where all of them come near what it can take.

        The summary is a reply of its own, and takes effect in the transaction that records it: a step asked for again after
        a death finds it done.
        """
        spec = live.definition.model
        context = spec.context or await route.upstream.context(model, spec.provider)
        if context is None or (found := rules.shorter(live, context)) is None:
            return live
        parameters = {**spec.parameters, "max_tokens": found.longest}
        parameters.pop("max_completion_tokens", None)
        ask = Ask(model, found.question, tool_choice="none", parameters=parameters, provider=spec.provider)
        own = msgspec.structs.replace(request, request=f"{request.request}.summary", messages=found.question)
        reply, asked = await self._attempts(live, own, route, ask, rules.digest_of(found.question), None)
        live = self.lives.current(live)
        said = {"role": "assistant", "content": reply.content}
        body = {**rules.recorded(own, route, reply, said), "purpose": "summary"}
        head = live.fold.messages[0]
        system = str(head["content"]) if head["role"] == "system" else None
        events = [
            new_event("model.replied", body),
            new_event("context.compacted", found.body(reply.content, system, own.request)),
        ]
        done = await self._settle(live, own, events, asked, model, reply, body["cost"])
        self._settled(live, asked, reply, body["cost"], done.seq)
        for event in events:
            live.apply(event, "gateway")
        return live

    async def _attempts(
        self, live: LiveRun, request: ModelRequest, route: Route, ask: Ask, digest: str, tell: OnToken | None
    ) -> tuple[Reply, _Asked]:
        """Attempt until the upstream replies; each attempt is an event. The request's commit does not hold the call up."""
        attempt = 0
        while True:
            attempt += 1
            taken = await self._reserved(live, request, route, ask)
            now = ask if taken is None else rules.within(ask, taken)
            live.attempts += 1
            asked = self._requested(live, request, route, now, digest, taken.hold if taken else None)
            if taken is not None and taken.near:
                await self._written(live, asked)
            try:
                return await self.upstreams.attempt(route, now, live.run.owner, tell), asked
            except UpstreamError as error:
                wait = pause(error, attempt, live.definition.model.retry)
                await self._failed(live, request, route, asked, error, wait, ask.model)
                if wait is None:
                    raise rules.as_ours(error) from error
                log.warning(
                    "run %s: %s; attempt %d follows in %.1f s", live.run.run_id, error.message, live.attempts + 1, wait
                )
                await asyncio.sleep(wait)
                self._may_ask(self.lives.current(live))
            except BaseException:
                if asked.hold is not None:  # a bug, or the end of the service: then the next one settles it
                    leaving = asyncio.ensure_future(self.budgets.abandon(asked.hold))
                    self._leaving.add(leaving)
                    leaving.add_done_callback(self._leaving.discard)
                raise

    def _may_ask(self, live: LiveRun) -> None:
        rules.may_ask(live, self.lives.db.now())

    async def _show(self, live: LiveRun, found: dict[int, dict[str, Any]]) -> None:
        """Make what the model is shown of images and files. Raises Invalid: it takes none."""
        named = {digest for one in found.values() for digest in parts.blobs_of(one["content"])}
        needed = frozenset().union(*(parts.needed(one["content"]) for one in found.values()))
        if needed:
            route, model = self.upstreams.route(live.definition.model.name)
            if missing := needed - await route.upstream.inputs(model):
                raise Invalid(
                    f"the model {model} takes no {' and no '.join(sorted(missing))}", hint="see: agentfarm model list"
                )
        kept = await self.lives.db.read(lambda c: blobs.read(c, named))
        live.shown |= {place: parts.shown(one, kept) for place, one in found.items()}

    # -- budgets -------------------------------------------------------------------------------------------------

    async def _reserved(self, live: LiveRun, request: ModelRequest, route: Route, ask: Ask) -> Taken | None:
        """Reserve what an attempt may use; None where no budget applies. Raises BudgetReached, Parked, Invalid, Transient."""
        await self.budgets.ready()
        if not self.budgets.applying(live.run.agent, live.run.owner):
            return None
        wish = await self._wish(live, request, route, ask)
        found = await self.budgets.reserve(wish, live.fold, lambda: self._may_ask(self.lives.current(live)))
        if isinstance(found, Reached):
            await self._reached(live, request, found)
        return found  # type: ignore[return-value]

    async def _wish(self, live: LiveRun, request: ModelRequest, route: Route, ask: Ask) -> Wish:
        """Return what an attempt may use at most."""
        run, own = live.run, request.messages is None
        tools = len(msgspec.json.encode(ask.tools)) if ask.tools and not (own and live.fold.counted[0]) else 0
        return Wish(
            agent=run.agent, owner=run.owner, run=run.run_id, model=ask.model, tokens_out=rules.most_output(ask, route),
            tokens_in=live.sized(ask.messages, own) + tools // BYTES_A_TOKEN, price=await route.upstream.price(ask.model, ask.provider),
        )  # fmt: skip

    async def _reached(self, live: LiveRun, request: ModelRequest, reached: Reached) -> None:
        """End the step at a budget: the run fails, or is parked for a person. Raises BudgetReached, Parked, Transient."""
        run_id, told = live.run.run_id, reached.told()
        if reached.budget.action == "stop" or live.run.bound:  # a notebook's run cannot be put aside
            hint = "see: agentfarm budget list; who set it may raise it, then: agentfarm task rerun"
            raise BudgetReached(reached.words, hint=hint, **told)
        events = [new_event("budget.reached", told), new_event("run.parked", {"reason": "budget"})]
        try:
            await self.lives.written(
                live, lambda tx: ledger.record(tx, run_id, "gateway", events, fence=live.fence, after_n=request.n)
            )
        except Hole as error:
            raise Transient(error.detail, hint=error.hint, retry_after=SETTLE_PAUSE) from error
        self.lives.drop(run_id)
        await self.budgets.revive("service", "there is room again")  # it may have been raised in this very moment
        raise Parked(reached.words, hint="raise the budget, or decide it in the inbox: agentfarm inbox list", **told)

    async def _written(self, live: LiveRun, asked: _Asked) -> None:
        """Wait for a reservation's commit. Raises what hindered it."""
        try:
            await asyncio.shield(asked.future)
        except BaseException:
            self.budgets.settle(asked.hold, live.run.agent, live.run.owner, 0, 0.0)  # nothing was asked
            raise

    def _count(
        self, live: LiveRun, model: str, hold: Hold | None, used: tuple[int, int] | None, cost: float | None, estimated: bool
    ) -> Callable[[Tx], None]:  # fmt: skip
        """Return what counts the use of an attempt and ends its reservation."""

        def count(tx: Tx) -> None:
            if used is not None:
                usage.add(
                    tx, agent=live.run.agent, owner=live.run.owner, model=model, tokens_in=used[0], tokens_out=used[1],
                    cost=cost, estimated=estimated,
                )  # fmt: skip
            if hold is not None:
                reservations.release(tx, hold)

        return count

    # -- what is recorded ----------------------------------------------------------------------------------------

    async def _failed(
        self, live: LiveRun, request: ModelRequest, route: Route, asked: _Asked, error: UpstreamError,
        wait: float | None, model: str,
    ) -> None:  # fmt: skip
        """Record a failed attempt, with what it probably used all the same."""
        said = {"type": error.kind, "message": error.message, "status": error.status}
        body: dict[str, Any] = {"request": request.request, "attempt": live.attempts, "error": said, "retry_in": wait}
        tokens, cost = error.used or (0, 0), 0.0
        if error.used is not None:
            half = Reply("", tokens_in=tokens[0], tokens_out=tokens[1], asked=model, model=model)
            cost = route.upstream.cost(half) or 0.0
            body |= {"usage": {"input": tokens[0], "output": tokens[1], "estimated": True}, "cost": cost}
        event, count = new_event("model.failed", body), self._count(live, model, asked.hold, error.used, cost, True)

        def write(tx: Tx) -> None:
            ledger.record(tx, live.run.run_id, "gateway", [event], fence=live.fence)
            count(tx)

        try:
            await self.lives.db.write(write)
        except (Fenced, Conflict):
            await self.lives.db.write(count)
            raise
        finally:  # where the store is away its row is settled in full by the next start
            self.budgets.settle(asked.hold, live.run.agent, live.run.owner, sum(tokens), cost)

    def _requested(
        self, live: LiveRun, request: ModelRequest, route: Route, ask: Ask, digest: str, hold: Hold | None
    ) -> _Asked:  # fmt: skip
        body = {
            "request": request.request, "attempt": live.attempts, "model": ask.model, "upstream": route.upstream.name, "digest": digest,
            "messages": len(ask.messages), "tool_choice": ask.tool_choice, "parameters": ask.parameters,
        }  # fmt: skip
        if hold is not None:
            body["reserved"] = {"input": hold.tokens_in, "output": hold.tokens_out, "cost": hold.cost}

        def write(tx: Tx) -> None:
            upto = ledger.held(tx, live.run.run_id).seq  # the appends before this stand in the writer's queue before it
            ledger.record(
                tx, live.run.run_id, "gateway", [new_event("model.requested", {**body, "upto": upto})], fence=live.fence
            )
            if hold is not None:
                reservations.reserve(tx, hold)

        future = self.lives.db.submit(write)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at in _settle
        return _Asked(new_event("model.requested", {**body, "upto": live.known_seq}), future, hold)

    async def _settle(
        self,
        live: LiveRun,
        request: ModelRequest,
        events: list[NewEvent],
        asked: _Asked,
        model: str,
        reply: Reply,
        cost: float | None,
    ) -> ledger.Appended:
        """Write reply, admissions and usage in one transaction; a paid reply is written when the store is back.

        Raises Fenced, Conflict: the run is somebody else's now, or has ended; what the reply cost is counted all the same.
        """
        recorded = events
        count = self._count(live, model, asked.hold, (reply.tokens_in, reply.tokens_out), cost, reply.estimated)

        def write(tx: Tx) -> ledger.Appended:
            done = ledger.record(tx, live.run.run_id, "gateway", recorded, fence=live.fence, after_n=request.n)
            count(tx)
            return done

        while True:
            if asked.future.done() and not asked.future.cancelled() and asked.future.exception() is not None:
                recorded = [asked.event, *events]  # its own commit failed: it stands before the reply all the same
            try:
                return await self.lives.written(live, write)
            except (Hole, Transient) as error:
                log.warning("run %s: a reply waits to be written: %s", live.run.run_id, error.detail)
                await asyncio.sleep(SETTLE_PAUSE)
            except (Fenced, Conflict) as error:
                log.warning("run %s: a reply came too late: %s", live.run.run_id, error.detail)
                await self.lives.db.write(count)
                used = reply.tokens_in + reply.tokens_out
                self.budgets.settle(asked.hold, live.run.agent, live.run.owner, used, cost or 0.0)
                raise

    async def _again(self, live: LiveRun, request: ModelRequest) -> ModelAnswer:
        """Give the recorded answer once more. Raises Conflict: the run has gone on since."""
        events = await self.lives.db.read(lambda c: ledger.read_events(c, request.run))
        replies = [(place, event.data()) for place, event in enumerate(events) if event.kind == "model.replied"]
        place, body = next((one for one in replies if one[1].get("request") == request.request), (-1, {}))
        said = body.get("message")
        more = [e for e in events[place + 1 :] if e.kind == "message.added" and e.by == "gateway"]  # a repair
        gone_on = place != replies[-1][0] or (not more and said != live.fold.last_reply) if replies else True
        if said is None or gone_on:
            raise Conflict(f"request {request.request} was answered and the run has gone on", hint="open the run anew")
        last = events[place]  # of the transaction that held the reply
        for event in events[place + 1 :]:
            if event.by != "gateway" or event.kind in ASIDE:
                break
            last = event
        return await self._answer(
            live, request, last.seq, last.hash, said, self.lives.told_before(live), body.get("usage") or {}, more
        )  # fmt: skip

    async def _answer(
        self,
        live: LiveRun,
        request: ModelRequest,
        seq: int,
        head: str,
        said: dict[str, Any],
        calls: list[AdmittedCall],
        used: Any,
        more: list[Event],
    ) -> ModelAnswer:
        return ModelAnswer(
            request=request.request, seq=seq, head=head, message=said, calls=await self.lives.with_secrets(live, calls), usage=used,
            inbox=live.take_inbox(), after=more, token=self.lives.fresh_token(live),
        )  # fmt: skip

"""A run's model requests: asked once for each id, recorded with their admissions in one transaction, never lost once paid."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from agentfarm_sdk.protocol import AdmittedCall, ModelAnswer, ModelRequest, NewEvent, new_event, roll

from ..errors import AgentFarmError, Cancelled, Conflict, Fenced, Hole, LimitReached, NotFound, Transient, UserError
from ..store import ledger, usage
from ..store.db import Tx
from . import admission
from .asking import Ask, OnToken, Reply, UpstreamError
from .live import LiveRun, LiveRuns
from .proxy import Route, Upstreams, pause

log = logging.getLogger(__name__)
SETTLE_PAUSE = 0.2


@dataclass(frozen=True)
class _Asked:
    """An attempt's `model.requested`, and the commit that is to hold it."""

    event: NewEvent
    future: asyncio.Future[None]


class Models:
    """The gateway's part of a step. Viewers may watch the tokens of a run; they are for the eye only."""

    def __init__(self, lives: LiveRuns, upstreams: Upstreams) -> None:
        self.lives, self.upstreams = lives, upstreams
        self._watchers: dict[str, set[asyncio.Queue[dict[str, Any]]]] = {}
        self._under_way: dict[tuple[str, int], tuple[str, asyncio.Task[ModelAnswer]]] = {}  # by run and fence

    async def model(self, request: ModelRequest, on_token: OnToken | None = None) -> ModelAnswer:
        """Ask the model for the run's next step. The same request id gets the recorded reply again.

        Raises:
            Fenced, Hole, Transient; LimitReached: the run ends; Cancelled; UserError: the model server refuses.
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
        _may_ask(live)
        definition = live.definition
        route, model = self.upstreams.route(definition.model.name)
        choice = request.tool_choice or definition.choice_at(live.fold.steps)
        if request.messages is None:
            messages, digest = live.fold.messages, live.roll_digest()
        else:
            messages, digest = request.messages, _digest(request.messages)
        ask = Ask(
            model=model, messages=messages, tools=definition.tools, tool_choice=choice if definition.tools else "none",
            parameters=definition.model.parameters, answer=definition.answer, provider=definition.model.provider,
        )  # fmt: skip
        reply, asked = await self._attempts(live, request, route, ask, digest, on_token)
        live = self.lives.current(live)
        said = admission.message(live.fold.steps, reply.content, reply.calls)
        cost = route.upstream.cost(reply)
        body = {
            "request": request.request, "message": said, "finish": reply.finish,
            "usage": {"input": reply.tokens_in, "output": reply.tokens_out, "estimated": reply.estimated}, "cost": cost,
            "provenance": {"upstream": route.upstream.name, "model": reply.model, "provider": reply.provider, "id": reply.id},
        }  # fmt: skip
        if reply.reasoning:
            body["reasoning"] = reply.reasoning
        verdicts = self.lives.admit(live, said)
        events = [new_event("model.replied", body), *(verdict.event for verdict in verdicts)]
        done = await self._settle(live, request, events, asked, model, reply, cost)
        for event in events:
            live.apply(event, "gateway")
        return await self._answer(
            live, request, done.seq, done.head, said, [verdict.told for verdict in verdicts], body["usage"]
        )

    async def _attempts(
        self, live: LiveRun, request: ModelRequest, route: Route, ask: Ask, digest: str, on_token: OnToken | None
    ) -> tuple[Reply, _Asked]:
        """Attempt until the upstream replies; each attempt is an event. The request's commit does not hold the call up."""
        attempt = 0
        while True:
            attempt += 1
            asked = self._requested(live, request, route, ask, digest, attempt)
            try:
                return await self.upstreams.attempt(route, ask, live.run.owner, self._teller(live, on_token)), asked
            except UpstreamError as error:
                wait = pause(error, attempt)
                await self._failed(live, request, error, attempt, wait)
                if wait is None:
                    raise _as_ours(error) from error
                log.warning(
                    "run %s: %s; attempt %d follows in %.1f s", live.run.run_id, error.message, attempt + 1, wait
                )
                await asyncio.sleep(wait)
                _may_ask(self.lives.current(live))

    async def _failed(
        self, live: LiveRun, request: ModelRequest, error: UpstreamError, attempt: int, wait: float | None
    ) -> None:
        said = {"type": error.kind, "message": error.message, "status": error.status}
        body = {"request": request.request, "attempt": attempt, "error": said, "retry_in": wait}
        event = new_event("model.failed", body)
        await self.lives.db.write(lambda tx: ledger.record(tx, live.run.run_id, "gateway", [event], fence=live.fence))

    def _requested(
        self, live: LiveRun, request: ModelRequest, route: Route, ask: Ask, digest: str, attempt: int
    ) -> _Asked:
        body = {
            "request": request.request, "attempt": attempt, "model": ask.model, "upstream": route.upstream.name, "digest": digest,
            "messages": len(ask.messages), "tool_choice": ask.tool_choice, "parameters": ask.parameters,
        }  # fmt: skip

        def write(tx: Tx) -> None:
            upto = ledger.held(tx, live.run.run_id).seq  # the appends before this stand in the writer's queue before it
            ledger.record(
                tx, live.run.run_id, "gateway", [new_event("model.requested", {**body, "upto": upto})], fence=live.fence
            )

        future = self.lives.db.submit(write)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at in _settle
        return _Asked(new_event("model.requested", {**body, "upto": live.known_seq}), future)

    async def _settle(
        self,
        live: LiveRun,
        request: ModelRequest,
        events: list[NewEvent],
        asked: _Asked,
        model: str,
        reply: Reply,
        cost: float,
    ) -> ledger.Appended:
        """Write reply, admissions and usage in one transaction; a paid reply is written when the store is back.

        Raises Fenced, Conflict: the run is somebody else's now, or has ended; what the reply cost is counted all the same.
        """
        recorded = events

        def count(tx: Tx) -> None:
            usage.add(
                tx,
                agent=live.run.agent,
                owner=live.run.owner,
                model=model,
                tokens_in=reply.tokens_in,
                tokens_out=reply.tokens_out,
                cost=cost,
            )

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
                raise

    async def _again(self, live: LiveRun, request: ModelRequest) -> ModelAnswer:
        """Give the recorded answer once more. Raises Conflict: the run has gone on since."""
        events = await self.lives.db.read(lambda c: ledger.read_events(c, request.run))
        replies = [(event, event.data()) for event in events if event.kind == "model.replied"]
        event, body = next((one for one in replies if one[1].get("request") == request.request), (None, {}))
        said = body.get("message")
        if event is None or said is None or said != live.fold.last_reply:
            raise Conflict(f"request {request.request} was answered and the run has gone on", hint="open the run anew")
        return await self._answer(
            live, request, event.seq, events[-1].hash, said, self.lives.told_before(live), body.get("usage") or {}
        )

    async def _answer(
        self,
        live: LiveRun,
        request: ModelRequest,
        seq: int,
        head: str,
        said: dict[str, Any],
        calls: list[AdmittedCall],
        used: Any,
    ) -> ModelAnswer:
        return ModelAnswer(
            request=request.request, seq=seq, head=head, message=said, calls=await self.lives.with_secrets(live, calls), usage=used,
            inbox=live.take_inbox(), token=self.lives.fresh_token(live),
        )  # fmt: skip


def _may_ask(live: LiveRun) -> None:
    """Raises LimitReached, Cancelled; Conflict: there is nothing to ask now."""
    limits, fold = live.definition.limits, live.fold
    if fold.ended:
        raise Conflict(f"run {live.run.run_id} has {fold.status}", hint="submit a new task, or rerun this one")
    if fold.cancel:
        raise Cancelled(f"run {live.run.run_id} was cancelled: {fold.cancel}")
    if fold.open_calls:  # a reply's call without a result makes providers refuse the messages for ever
        raise Conflict("a call has no outcome yet", hint="append the outcomes before the next request")
    seconds = (
        datetime.now().timestamp() - datetime.fromisoformat(fold.leased_at.replace("Z", "+00:00")).timestamp()
        if fold.leased_at
        else 0.0
    )
    for name, limit, used in (
        ("steps", limits.steps, fold.steps),
        ("tokens", limits.tokens, fold.tokens_in + fold.tokens_out),
        ("seconds", limits.seconds, seconds),
        ("cost", limits.cost, fold.cost),
    ):
        if limit is not None and used >= limit:
            raise LimitReached(
                f"this run may use {limit} {name}",
                hint=f"raise limits.{name} of the agent, or give it less to do",
                limit=name,
            )


def _digest(messages: list[dict[str, Any]]) -> str:
    digest = ""
    for one in messages:
        digest = roll(digest, msgspec.json.encode(one))
    return digest


def _as_ours(error: UpstreamError) -> AgentFarmError:
    if error.kind == "not-found":
        return NotFound(error.message, hint=error.hint)
    if error.retry:
        return Transient(error.message, hint=error.hint, retry_after=error.retry_after or 5.0)
    return UserError(error.message, hint=error.hint)

"""Claims runs for this server's agent, gives them to worker kernels, keeps their leases. In agents' servers only.

What to do is decided in plan.py; here it is done: one task reads the service, one keeps the clock, each request to the
service and each kernel's start has a task of its own. A dead loop ends the server, loudly: the hub starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from agentfarm_sdk.errors import AgentFarmError
from agentfarm_sdk.protocol import Claim, ClaimRequest, Event, HeartbeatAnswer, HeartbeatRequest
from agentfarm_sdk.waiting import within

from .kernels import WorkerKernels
from .link import Cut, Link
from .plan import (
    AskForRun,
    Beat,
    CloseKernel,
    Hand,
    Instruction,
    KillKernel,
    Plan,
    ShowKernel,
    StartKernel,
    Tell,
)

FINAL = (404, 409, 422)  # a heartbeat so answered is not sent again: the lease is another's, or the run has ended
STOP_SECONDS = 5.0  # for closing kernels and reporting them when the server stops


class Supervisor:
    """Owns the connection and the kernels of one agent's server."""

    def __init__(
        self,
        *,
        url: str,
        token: str,
        agent: str,
        slots: int,
        manager: Any,
        sessions: Any,
        kernel_env: Mapping[str, str],
        active: Callable[[], None],
        broken: Callable[[BaseException], None],
        log: logging.Logger,
        kernel_name: str = "",
        scratch: bool = False,
    ) -> None:
        """scratch: the server is away from the agent's files."""
        self.scratch = scratch
        self.url, self._active, self._broken, self._log = url, active, broken, log
        self.plan = Plan(slots=slots, worker=f"{agent}@{socket.gethostname()}:{os.getpid()}")
        self.kernels = WorkerKernels(
            manager, sessions, agent=agent, env=kernel_env, said=self._said, gone=self._gone, log=log, kernel_name=kernel_name,
        )  # fmt: skip
        self.link = Link(
            url, token, up=lambda: self._do(self.plan.up(_now())), down=lambda: self._do(self.plan.down(_now())),
            push=self._pushed, log=log,
        )  # fmt: skip
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Begin; starting twice is harmless."""
        if not self._loops:
            self._loops = [self._spawn(self.link.run()), self._spawn(self._clock())]

    async def stop(self) -> None:
        """Kill what works, report it, close the rest; at most some seconds."""
        if not self._loops:
            return
        self._do(self.plan.stop(_now()))
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._settled(), STOP_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loops = []

    # -- the loops -----------------------------------------------------------------------------------------------

    async def _clock(self) -> None:
        while True:
            now = _now()
            self._do(self.plan.tick(now))
            if self.plan.working(now):
                self._active()
                self.kernels.touch()
            due = self.plan.next_due(now)
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._changed.wait(), None if due is None else max(0.0, due - _now()))

    async def _settled(self) -> None:
        while not self.plan.settled:
            self._changed.clear()
            await self._changed.wait()
        await self.kernels.finished()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(error)

    # -- instructions --------------------------------------------------------------------------------------------

    def _do(self, instructions: list[Instruction]) -> None:
        for one in instructions:
            match one:
                case StartKernel(name):
                    self._spawn(self._start(name))
                case CloseKernel(name):
                    self._spawn(self.kernels.close(name))
                case KillKernel(name):
                    self._log.warning("worker kernel %s is killed", name)
                    self.kernels.kill(name)
                case ShowKernel(name, run):
                    self._spawn(self.kernels.show(name, run))
                case Hand(name, claim):
                    handed = {"run": claim.run, "fence": claim.fence, "token": claim.token, "lease": claim.lease}
                    self.kernels.tell(name, {"url": self.url, **handed})
                    pid = self.kernels.pid(name)
                    self._log.info(
                        "run %s, fence %d goes to worker kernel %s (pid %s)", claim.run, claim.fence, name, pid
                    )
                case Tell(name, message):
                    self.kernels.tell(name, message)
                case AskForRun():
                    self._spawn(self._claim(one))
                case Beat(run, fence, dead):
                    self._spawn(self._report(run, fence, dead) if dead else self._beat(run, fence))
        self._changed.set()

    async def _start(self, name: str) -> None:
        await self.kernels.start(name)
        if self.kernels.alive(name):
            self._do(self.plan.warm(name, _now()))

    async def _claim(self, asked: AskForRun) -> None:
        request = ClaimRequest(
            worker=self.plan.worker,
            claim_id=asked.claim_id,
            wait=asked.wait,
            kernels=asked.kernels,
            scratch=self.scratch,
        )
        try:
            claim: Claim | None = await self.link.ask("claim", "", request, Claim | None, patience=asked.wait)
        except Cut:
            return  # `down` has said so, or will; the same claim is asked again
        except AgentFarmError as error:
            self._log.warning("no run could be claimed: %s %s", error.detail, error.hint)
            self._do(self.plan.claim_refused(getattr(error, "retry_after", 10.0), _now()))
            return
        self._do(self.plan.claimed(claim, _now()))

    async def _beat(self, run: str, fence: int) -> None:
        sent = _now()
        try:
            answer: HeartbeatAnswer = await self.link.ask(
                "heartbeat", run, HeartbeatRequest(fence=fence), HeartbeatAnswer
            )
        except AgentFarmError as error:
            final = error.type if error.status in FINAL else None
            self._log.warning("the lease of run %s, fence %d was not renewed: %s", run, fence, error.detail)
            self._do(self.plan.beat_refused(run, fence, final, _now()))
        else:
            self._do(self.plan.beaten(run, fence, answer, sent, _now()))

    async def _report(self, run: str, fence: int, proof: str) -> None:
        try:
            await self.link.ask("heartbeat", run, HeartbeatRequest(fence=fence, dead=proof), Any)
        except AgentFarmError as error:
            self._log.warning("the death of run %s's worker, fence %d: %s", run, fence, error.detail)
            self._do(self.plan.reported(run, fence, error.status in FINAL, _now()))
        else:
            self._log.warning("run %s, fence %d: reported that its worker is dead: %s", run, fence, proof)
            self._do(self.plan.reported(run, fence, True, _now()))

    # -- what is heard -------------------------------------------------------------------------------------------

    def _said(self, name: str, message: dict[str, Any]) -> None:
        if run := message.get("started"):
            self._log.info("worker kernel %s began run %s", name, run)
        if run := message.get("finished"):
            self._log.info("worker kernel %s finished run %s: %s", name, run, message.get("outcome"))
        self._do(self.plan.said(name, message, _now()))

    def _gone(self, name: str, proof: str) -> None:
        self._do(self.plan.died(name, proof, _now()))

    def _pushed(self, run: str, events: list[Event]) -> None:
        self._do(self.plan.pushed(run, events, _now()))


def _now() -> float:
    return time.monotonic()

"""What the supervisor does next: events in, instructions out. No I/O, no clock: each method is told the time.

supervisor.py carries the instructions out and tells what came of them. Times are seconds of the machine's monotonic
clock, which the worker kernels share.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from agentfarm_sdk.protocol import CANCEL_GRACE_SECONDS, Claim, Event, HeartbeatAnswer, beat_seconds

BEGIN_SECONDS = 60.0  # within which a claimed run must get a kernel, and a kernel say that it began
CLAIM_WAIT_SECONDS = 20.0  # how long the service may hold a claim open
RETRY_SECONDS = 1.0  # before a claim or a heartbeat that the service refused for now is sent again
SLOWEST_START_SECONDS = 30.0  # between attempts to start kernels that keep dying


# --- instructions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartKernel:
    name: str


@dataclass(frozen=True)
class CloseKernel:
    """Shut an idle kernel down, in its own time."""

    name: str


@dataclass(frozen=True)
class KillKernel:
    name: str


@dataclass(frozen=True)
class ShowKernel:
    """Let people see in JupyterLab and VS Code what the kernel does. `run` is "" for one that waits."""

    name: str
    run: str


@dataclass(frozen=True)
class Hand:
    """Give the run to the kernel, over its own connection."""

    name: str
    claim: Claim


@dataclass(frozen=True)
class Tell:
    name: str
    message: dict[str, Any]


@dataclass(frozen=True)
class AskForRun:
    claim_id: str
    wait: float
    kernels: list[str]


@dataclass(frozen=True)
class Beat:
    """Renew the lease; with `dead` report the worker's death instead."""

    run: str
    fence: int
    dead: str | None = None


Instruction = StartKernel | CloseKernel | KillKernel | ShowKernel | Hand | Tell | AskForRun | Beat


# --- state ------------------------------------------------------------------------------------------------------


@dataclass
class Kernel:
    """`definition`: the content hash that it ran last, "" while it is the spare."""

    name: str
    state: Literal["starting", "warm", "busy", "ending"] = "starting"
    definition: str = ""
    since: float = 0.0  # when it became what it is


@dataclass
class Hold:
    """A lease in hand. `sure`: the lease is known to be young enough to begin under it."""

    claim: Claim
    kernel: str | None
    renewed: float
    deadline: float
    next_beat: float
    sure: bool = True
    beating: bool = False
    lost: bool = False  # a newer lease holds the run: it is renewed no more
    kill_at: float | None = None
    killed: str = ""  # why we ended the kernel

    @property
    def lease_until(self) -> float:
        return self.renewed + self.claim.lease


@dataclass
class Report:
    """A death that the service has not confirmed to know."""

    run: str
    fence: int
    proof: str
    sending: bool = False
    not_before: float = 0.0


@dataclass
class Plan:
    """The supervisor's mind. `slots`: how many runs at once. Methods return what is to be done now, in order."""

    slots: int
    worker: str
    connected: bool = False
    stopping: bool = False
    kernels: dict[str, Kernel] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)
    claim_id: str = ""
    claiming: bool = False
    claim_repeated: bool = False
    claim_after: float = 0.0
    failures: int = 0
    start_after: float = 0.0
    _count: int = 0

    # -- what happened -------------------------------------------------------------------------------------------

    def up(self, now: float) -> list[Instruction]:
        """The service is there (again)."""
        self.connected = True
        self.claim_after = now
        return self.tick(now)

    def down(self, now: float) -> list[Instruction]:
        """The connection was cut: what was asked may have been done, and is asked again under the same names."""
        self.connected = False
        self.claim_repeated = self.claim_repeated or self.claiming
        self.claiming = False
        for hold in self.holds.values():
            hold.beating, hold.next_beat = False, min(hold.next_beat, now)
        for report in self.reports.values():
            report.sending = False
        return self.tick(now)

    def claimed(self, claim: Claim | None, now: float) -> list[Instruction]:
        """The service answered the claim. One that was asked for again may be old: it is renewed before it is begun."""
        repeated = self.claim_repeated
        self.claiming, self.claim_id, self.claim_repeated = False, "", False
        known = claim is None or any(
            h.claim.run == claim.run and h.claim.fence == claim.fence for h in self.holds.values()
        )
        if claim is not None and not known:
            self.holds[claim.run] = Hold(
                claim=claim, kernel=None, renewed=now, deadline=now + BEGIN_SECONDS,
                next_beat=now if repeated else now + beat_seconds(claim.lease), sure=not repeated,
            )  # fmt: skip
        return self.tick(now)

    def claim_refused(self, retry_after: float, now: float) -> list[Instruction]:
        self.claiming, self.claim_id, self.claim_repeated = False, "", False
        self.claim_after = now + max(RETRY_SECONDS, retry_after)
        return self.tick(now)

    def warm(self, name: str, now: float) -> list[Instruction]:
        """A kernel has started and answers."""
        if (kernel := self.kernels.get(name)) and kernel.state == "starting":
            kernel.state, kernel.since, self.failures = "warm", now, 0
        return self.tick(now)

    def died(self, name: str, proof: str, now: float) -> list[Instruction]:
        """A kernel is gone, or could not be started. `proof` is what the service gets to read."""
        kernel = self.kernels.pop(name, None)
        if kernel is not None and kernel.state == "starting":
            self.failures += 1
            self.start_after = now + min(2.0 ** (self.failures - 1), SLOWEST_START_SECONDS)
        for hold in [h for h in self.holds.values() if h.kernel == name]:
            self._give_up(hold, f"{proof} ({hold.killed})" if hold.killed else proof)
        return self.tick(now)

    def said(self, name: str, message: dict[str, Any], now: float) -> list[Instruction]:
        """The worker in a kernel said something; what is no word of ours is passed over."""
        kernel, hold = self.kernels.get(name), self._held_by(name)
        if kernel is None or hold is None:
            return []
        if isinstance(seconds := message.get("progress"), int | float):
            hold.deadline = max(hold.deadline, now + float(seconds))
        if message.get("finished") != hold.claim.run:
            return self.tick(now)
        del self.holds[hold.claim.run]
        kernel.state, kernel.since, kernel.definition = "warm", now, hold.claim.definition
        done: list[Instruction] = [ShowKernel(name, "")]
        if hold.claim.fresh_kernel or hold.lost:
            kernel.state = "ending"
            done = [CloseKernel(name)]
        return done + self.tick(now)

    def beaten(self, run: str, fence: int, answer: HeartbeatAnswer, sent: float, now: float) -> list[Instruction]:
        """The lease was renewed by a request that left at `sent`: it counts from then."""
        hold = self._hold(run, fence)
        if hold is None:
            return self.tick(now)
        hold.beating, hold.sure, hold.renewed, hold.next_beat = False, True, sent, sent + beat_seconds(answer.lease)
        if answer.token:
            hold.claim = msgspec.structs.replace(hold.claim, token=answer.token, lease=answer.lease)
        done: list[Instruction] = []
        if hold.kernel:
            done = [Tell(hold.kernel, {"token": answer.token})] if answer.token else []
            done.append(Tell(hold.kernel, {"renewed": sent}))
        return done + self._inbox(hold, answer.inbox, now) + self.tick(now)

    def reported(self, run: str, fence: int, done: bool, now: float) -> list[Instruction]:
        """The service knows of a death, or knows better (`done`); else it is told again."""
        report = self.reports.get(run)
        if report and report.fence == fence:
            report.sending, report.not_before = False, now + RETRY_SECONDS
            if done:
                del self.reports[run]
        return self.tick(now)

    def beat_refused(self, run: str, fence: int, final: str | None, now: float) -> list[Instruction]:
        """The service did not renew. `final` says why where asking again would not help: the lease is another's."""
        hold = self._hold(run, fence)
        if hold is not None:
            hold.beating, hold.next_beat = False, now + RETRY_SECONDS
            if final is not None and hold.kernel is None:
                del self.holds[run]
            elif final is not None:
                hold.lost = True
                return self._cancel(hold, final, now) + self.tick(now)
        return self.tick(now)

    def pushed(self, run: str, events: Sequence[Event], now: float) -> list[Instruction]:
        """The service says what others appended to a run."""
        hold = self.holds.get(run)
        return (self._inbox(hold, events, now) if hold else []) + self.tick(now)

    def stop(self, now: float) -> list[Instruction]:
        """The server stops: kernels that work are killed (their deaths are reported), the others closed."""
        self.stopping = True
        done: list[Instruction] = []
        for hold in list(self.holds.values()):
            if hold.kernel is None:
                self._give_up(hold, "the server was stopped before the run began")
            else:
                hold.killed = hold.killed or "the server was stopped"
                done.append(KillKernel(hold.kernel))
        for kernel in self.kernels.values():
            if kernel.state != "busy":
                kernel.state = "ending"
                done.append(CloseKernel(kernel.name))
        return done + self.tick(now)

    # -- what follows --------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Instruction]:
        """Return all that is due. Every event ends here, so nothing waits for a clock that could be done now."""
        if self.stopping:
            return self._beats(now)
        return [*self._overdue(now), *self._assign(now), *self._pool(now), *self._claim(now), *self._beats(now)]

    def next_due(self, now: float) -> float | None:
        """Return the next time after `now` when `tick` may have something to do without an event; None: never."""
        due = [self.start_after, self.claim_after, *(report.not_before for report in self.reports.values())]
        for hold in self.holds.values():
            due += [hold.deadline, hold.deadline + CANCEL_GRACE_SECONDS, hold.next_beat]
            due += [] if hold.kill_at is None else [hold.kill_at]
        return min((when for when in due if when > now), default=None)

    def working(self, now: float) -> bool:
        """Say whether a run makes progress under a live lease: such a server is not idle."""
        return any(h.kernel and now < min(h.deadline, h.lease_until) for h in self.holds.values())

    @property
    def settled(self) -> bool:
        """Say whether, while stopping, everything is closed and reported."""
        return not (self.kernels or self.holds or self.reports)

    # -- decisions -----------------------------------------------------------------------------------------------

    def _overdue(self, now: float) -> list[Instruction]:
        """Kill kernels whose grace is over, or which made no progress for their time and the grace."""
        done: list[Instruction] = []
        for hold in list(self.holds.values()):
            if hold.kernel is None and now >= hold.deadline:
                self._give_up(hold, f"no kernel could be started in {BEGIN_SECONDS:.0f} s; the run was not begun")
            elif hold.kernel and hold.kill_at is None and now >= hold.deadline + CANCEL_GRACE_SECONDS:
                hold.kill_at, hold.killed = now, "it made no progress in its time"
            if hold.kernel and hold.kill_at is not None and now >= hold.kill_at:
                hold.kill_at = now + CANCEL_GRACE_SECONDS  # again, should it survive that
                done.append(KillKernel(hold.kernel))
        return done

    def _assign(self, now: float) -> list[Instruction]:
        """Give each run that waits a kernel: one of the same definition, else the spare."""
        done: list[Instruction] = []
        for hold in self.holds.values():
            if hold.kernel is not None or not hold.sure:
                continue
            warm = [kernel for kernel in self.kernels.values() if kernel.state == "warm"]
            same = [k for k in warm if k.definition == hold.claim.definition and not hold.claim.fresh_kernel]
            for kernel in (same or [k for k in warm if not k.definition])[:1]:
                kernel.state, kernel.since, kernel.definition = "busy", now, hold.claim.definition
                hold.kernel, hold.deadline = kernel.name, now + BEGIN_SECONDS
                done += [
                    Hand(kernel.name, hold.claim),
                    Tell(kernel.name, {"renewed": hold.renewed}),
                    ShowKernel(kernel.name, hold.claim.run),
                ]
                if hold.kill_at is not None:  # cancelled before it had a kernel
                    hold.kill_at = now + CANCEL_GRACE_SECONDS
                    done.append(Tell(kernel.name, {"cancel": hold.killed}))
        return done

    def _pool(self, now: float) -> list[Instruction]:
        """Keep one spare beyond what waits; keep no more used kernels than there are slots."""
        waiting = sum(hold.kernel is None for hold in self.holds.values())
        missing = waiting + 1 - len(self._spares())
        done: list[Instruction] = []
        while missing > 0 and now >= self.start_after:
            self._count += 1
            name = f"{self._count}"
            self.kernels[name] = Kernel(name, since=now)
            done.append(StartKernel(name))
            missing -= 1
        used = [k for k in self.kernels.values() if k.definition and k.state in ("warm", "busy")]
        idle = sorted((k for k in used if k.state == "warm"), key=lambda k: k.since)
        for kernel in idle[: max(0, len(used) - self.slots)]:
            kernel.state = "ending"
            done.append(CloseKernel(kernel.name))
        return done

    def _claim(self, now: float) -> list[Instruction]:
        """Ask for one run more while there is room, and a kernel that could take it."""
        able = any(kernel.state in ("warm", "starting") for kernel in self.kernels.values())
        if not (self.connected and able and not self.claiming and now >= self.claim_after):
            return []
        if len(self.holds) >= self.slots:
            return []
        self.claiming = True
        self.claim_id = self.claim_id or f"claim-{uuid.uuid4().hex}"
        warm = sorted({k.definition for k in self.kernels.values() if k.state == "warm" and k.definition})
        return [AskForRun(self.claim_id, CLAIM_WAIT_SECONDS, warm)]

    def _beats(self, now: float) -> list[Instruction]:
        """Report the dead, renew the leases of the living that make progress."""
        if not self.connected:
            return []
        done: list[Instruction] = []
        for report in self.reports.values():
            if not report.sending and now >= report.not_before:
                report.sending = True
                done.append(Beat(report.run, report.fence, report.proof))
        for hold in self.holds.values():
            if not (hold.beating or hold.lost) and hold.next_beat <= now < hold.deadline:
                hold.beating = True
                done.append(Beat(hold.claim.run, hold.claim.fence))
        return done

    # -- small things --------------------------------------------------------------------------------------------

    def _spares(self) -> list[Kernel]:
        return [k for k in self.kernels.values() if not k.definition and k.state in ("starting", "warm")]

    def _held_by(self, name: str) -> Hold | None:
        return next((hold for hold in self.holds.values() if hold.kernel == name), None)

    def _hold(self, run: str, fence: int) -> Hold | None:
        hold = self.holds.get(run)
        return hold if hold and hold.claim.fence == fence else None

    def _give_up(self, hold: Hold, proof: str) -> None:
        """Report the death, of a run that another one holds too: what was left in doubt is then proven."""
        del self.holds[hold.claim.run]
        self.reports[hold.claim.run] = Report(hold.claim.run, hold.claim.fence, proof)

    def _inbox(self, hold: Hold, events: Sequence[Event], now: float) -> list[Instruction]:
        wish = next((event for event in events if event.kind == "run.cancel_requested"), None)
        return self._cancel(hold, str(wish.data().get("reason") or "cancelled"), now) if wish else []

    def _cancel(self, hold: Hold, reason: str, now: float) -> list[Instruction]:
        if hold.kill_at is not None:
            return []
        hold.kill_at, hold.killed = now + CANCEL_GRACE_SECONDS, f"it was to stop: {reason}"
        return [Tell(hold.kernel, {"cancel": reason})] if hold.kernel else []

"""What Prometheus is told, read off the store at scrape time: nothing below knows that it is measured.

Names as agreed for the farm: base units, `_total`, no run, user or call ids in labels; `agent` only up to a cap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

import jupyterhub_agentfarm
from agentfarm_sdk.protocol import ENDED

from ..errors import Transient
from ..store import changes
from ..store.db import Database
from .fleetmetrics import of_microservers, of_servers

AGENTS_NAMED = 100  # the rest is `other`


@dataclass(frozen=True)
class Vitals:
    """What only the process knows."""

    commits: int
    writes: int
    reaped: int
    readers: int  # open streams
    generation: int  # how many services have led


@dataclass(frozen=True)
class Fleet:
    """The fleet as it was last seen."""

    microservers: Sequence[Mapping[str, Any]]
    units: Sequence[Mapping[str, Any]]


async def scrape(db: Database, vitals: Callable[[], Vitals], fleet: Fleet) -> bytes:
    """Return the text for Prometheus. A database that is away leaves only what the process and the fleet know."""
    try:
        counts: dict[str, list[tuple[Any, ...]]] = await db.read(lambda c: changes.counts(c, db.now()))
    except Transient:
        counts = {}
    registry = CollectorRegistry()
    named = capped(counts["runs"]) if counts else ()
    of_fleet = (*of_microservers(fleet.microservers), *of_servers(fleet.units, named))
    registry.register(
        _Once([*_of_process(vitals(), up=bool(counts)), *(_of_store(counts) if counts else ()), *of_fleet])
    )
    return generate_latest(registry)


def standing_by() -> bytes:
    """Return the text of a service that stands by: it knows of the ledger nothing but that another one leads."""
    registry = CollectorRegistry()
    registry.register(_Once([_build_info(), _leader(0)]))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for *values, number in rows:
        family.add_metric([str(value) for value in values], float(number))
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for *values, number in rows:
        family.add_metric([str(value) for value in values], float(number or 0))
    return family


def _build_info() -> Metric:
    version = jupyterhub_agentfarm.__version__
    return _gauge("agentfarm_build_info", "The version that runs", ("version",), [(version, 1)])


def _leader(leads: int) -> Metric:
    return _gauge("agentfarm_leader", "Whether this service leads, or stands by", (), [(leads,)])


def _of_process(vitals: Vitals, up: bool) -> Iterator[Metric]:
    yield _build_info()
    yield _leader(1)
    yield _counter("agentfarm_generations", "Services that have led this ledger", (), [(vitals.generation,)])
    yield _gauge("agentfarm_ledger_up", "Whether the ledger can be read", (), [(int(up),)])
    yield _counter("agentfarm_ledger_commits", "Transactions of the writer", (), [(vitals.commits,)])
    yield _counter("agentfarm_ledger_writes", "Writes in them: the ratio is the batch size", (), [(vitals.writes,)])
    yield _counter("agentfarm_lease_lost", "Leases that expired", (), [(vitals.reaped,)])
    yield _gauge("agentfarm_streams_open", "Readers of event streams", (), [(vitals.readers,)])


def _of_store(counts: dict[str, list[tuple[Any, ...]]]) -> Iterator[Metric]:
    runs = counts["runs"]
    kept = capped(runs)
    ended: dict[tuple[str, str], int] = {}
    state: dict[str, int] = {}
    for agent, status, number in runs:
        if status in ENDED:
            name = agent if agent in kept else "other"
            ended[name, status] = ended.get((name, status), 0) + number
        else:
            state[status] = state.get(status, 0) + number
    rows = [(*key, number) for key, number in ended.items()]
    yield _counter("agentfarm_runs", "Runs that ended", ("agent", "outcome"), rows)
    yield _gauge("agentfarm_runs", "Runs that have not ended", ("state",), list(state.items()))
    duration = SummaryMetricFamily("agentfarm_run_duration_seconds", "From creation to end", labels=("outcome",))
    for status, number, seconds in counts["run_seconds"]:
        duration.add_metric([status], number, float(seconds or 0))
    yield duration
    outcomes = [(status, number) for status, number in counts["tasks"] if status in ENDED]
    yield _counter("agentfarm_tasks", "Tasks that ended", ("outcome",), outcomes)
    yield _gauge(
        "agentfarm_queue_depth", "Runs that wait for a worker", ("priority",), [row[:2] for row in counts["queue"]]
    )
    oldest = max((float(row[2]) for row in counts["queue"]), default=0.0)
    yield _gauge("agentfarm_queue_oldest_seconds", "How long the oldest of them waits", (), [(oldest,)])
    doubts: dict[str, int] = {}
    for kind, agent, number, _ in counts["inbox"]:
        if kind == "in_doubt":
            name = agent if agent in kept else "other"
            doubts[name] = doubts.get(name, 0) + number
    yield _gauge("agentfarm_tool_in_doubt", "Calls in doubt", ("agent",), list(doubts.items()))
    approvals = [row for row in counts["inbox"] if row[0] == "approval"]
    yield _gauge("agentfarm_approvals_pending", "Approvals that wait", (), [(sum(row[2] for row in approvals),)])
    waits = max((float(row[3]) for row in approvals), default=0.0)
    yield _gauge("agentfarm_approval_wait_seconds", "How long the oldest of them waits", (), [(waits,)])
    yield from _of_models(counts["usage"])


def _of_models(rows: list[tuple[Any, ...]]) -> Iterator[Metric]:
    tokens = [(model, way, number) for model, _, ins, outs, _ in rows for way, number in (("in", ins), ("out", outs))]
    yield _counter("agentfarm_model_tokens", "Tokens", ("model", "direction"), tokens)
    yield _counter(
        "agentfarm_model_cost_usd", "Cost by the operator's prices", ("model",), [(r[0], r[4]) for r in rows]
    )
    requests = [(r[0], "replied", r[1]) for r in rows]
    yield _counter("agentfarm_model_attempts", "Requests that were answered", ("model", "outcome"), requests)


def capped(runs: Iterable[tuple[Any, ...]]) -> frozenset[str]:
    """Return the agents that get a label of their own: those with most runs; notebooks' agents get none. Pure."""
    total: dict[str, int] = {}
    for agent, _, number in runs:
        if not agent.startswith("~"):
            total[agent] = total.get(agent, 0) + number
    return frozenset(sorted(total, key=lambda name: (-total[name], name))[:AGENTS_NAMED])

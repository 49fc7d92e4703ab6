"""What Prometheus is told of microservers and of agents' servers: as the fleet daemon told it last. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Row = Mapping[str, Any]
OTHER = "other"
# name, what it is, and the figure of a microserver that it tells
GAUGES: tuple[tuple[str, str, str], ...] = (
    ("servers", "Servers that run there", "servers"),
    ("cpus", "CPUs", "cpus"),
    ("cpu_ratio", "Which part of its CPUs was busy between the last two looks", "cpu_ratio"),
    ("load", "Load of the last minute", "load"),
    ("memory_bytes", "Memory", "memory"),
    ("memory_available_bytes", "Memory that may be taken", "memory_free"),
    ("memory_promised_bytes", "Memory that is promised to servers", "promised_memory"),
    ("disk_bytes", "File system of the workspaces", "disk"),
    ("disk_free_bytes", "What is free of it", "disk_free"),
    ("uptime_seconds", "Since its boot", "uptime"),
    ("clock_offset_seconds", "By how much its clock is ahead of the farm's", "clock_offset"),
)
GPU_GAUGES: tuple[tuple[str, str, str, float], ...] = (
    ("memory_bytes", "Memory of a GPU", "memory", 1),
    ("memory_used_bytes", "What is used of it", "memory_used", 1),
    ("utilisation_ratio", "Which part of the time it works", "utilisation", 0.01),
    ("temperature_celsius", "Temperature of a GPU", "temperature", 1),
)


def _family(
    kind: Callable[..., Any], name: str, text: str, labels: Sequence[str], rows: Iterator[tuple[list[str], Any]]
) -> Metric:
    family = kind(name, text, labels=labels)
    for values, number in rows:
        if isinstance(number, int | float):
            family.add_metric(values, float(number))
    return family  # type: ignore[no-any-return]


def of_microservers(farm: Sequence[Row]) -> Iterator[Metric]:
    """Return the figures of all microservers; of a silent one those that it told last, with `up` 0."""
    up = {one["name"] for one in farm if one.get("state") not in ("silent", "lost")}
    for_each = "agentfarm_microserver"
    yield _family(
        GaugeMetricFamily, f"{for_each}_up", "Whether it can be reached", ["microserver"],
        (([one["name"]], int(one["name"] in up)) for one in farm),
    )  # fmt: skip
    yield _family(
        GaugeMetricFamily, f"{for_each}_lost", "Whether neither it nor any run there is heard of", ["microserver"],
        (([one["name"]], int(one.get("state") == "lost")) for one in farm),
    )  # fmt: skip
    yield _family(
        GaugeMetricFamily, f"{for_each}_tainted", "A taint that keeps servers away", ["microserver", "taint"],
        (([one["name"], taint], 1) for one in farm for taint in sorted(one.get("taints") or {})),
    )  # fmt: skip
    for name, text, field in GAUGES:
        yield _family(
            GaugeMetricFamily, f"{for_each}_{name}", text, ["microserver"], (([one["name"]], one.get(field)) for one in farm)
        )  # fmt: skip
    yield _family(
        GaugeMetricFamily, f"{for_each}_pressure_ratio", "Which part of a minute some, or all, work waited for it",
        ["microserver", "resource", "kind"],
        (
            ([one["name"], what, kind], share)
            for one in farm for what, kinds in (one.get("pressure") or {}).items() for kind, share in kinds.items()
        ),
    )  # fmt: skip
    for name, text, field, scale in GPU_GAUGES:
        yield _family(
            GaugeMetricFamily, f"{for_each}_gpu_{name}", text, ["microserver", "gpu"],
            (
                ([one["name"], str(gpu.get("index", at))], None if gpu.get(field) is None else gpu[field] * scale)
                for one in farm for at, gpu in enumerate(one.get("gpus") or ())
            ),
        )  # fmt: skip
    yield _family(
        GaugeMetricFamily, f"{for_each}_disk_healthy", "Whether a disk's SMART says that it is well", ["microserver", "device"],
        (
            ([one["name"], disk["device"]], None if disk.get("healthy") is None else int(disk["healthy"]))
            for one in farm for disk in one.get("disks") or ()
        ),
    )  # fmt: skip
    yield _family(
        CounterMetricFamily, f"{for_each}_memory_errors", "Errors of its memory since the boot", ["microserver", "kind"],
        (([one["name"], kind], number) for one in farm for kind, number in (one.get("ecc") or {}).items()),
    )  # fmt: skip


def of_servers(units: Sequence[Row], named: Collection[str]) -> Iterator[Metric]:
    """Return what agents' servers use; agents that are not `named` are put together as `other`."""
    memory: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for unit in units:
        if not unit.get("agent") or unit.get("state") != "running":
            continue
        agent = str(unit["agent"]) if unit["agent"] in named else OTHER
        memory[agent] = memory.get(agent, 0) + (unit.get("memory") or 0)
        seconds[agent] = seconds.get(agent, 0) + (unit.get("cpu_seconds") or 0)
    yield _family(
        GaugeMetricFamily, "agentfarm_agent_memory_bytes", "Memory that an agent's server uses", ["agent"],
        (([agent], number) for agent, number in sorted(memory.items())),
    )  # fmt: skip
    yield _family(
        CounterMetricFamily, "agentfarm_agent_cpu_seconds", "CPU time of an agent's server since it was started", ["agent"],
        (([agent], number) for agent, number in sorted(seconds.items())),
    )  # fmt: skip

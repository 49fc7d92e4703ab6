"""The row of benchmarks/fleet.py on placement: many waiting servers against many microservers, on one core."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from jupyterhub_agentfarm.records import Demand, Microserver
from jupyterhub_agentfarm.scheduling.placement import RANKS, place_all

GIB = 1 << 30
SEED = 6


def farm_of(microservers: int, dice: random.Random) -> list[Microserver]:
    """Return old and new machines, some with a tick store, few with GPUs, in three zones, one in fifty cordoned."""
    return [
        Microserver(
            name=f"micro{at:04}", memory=(size := dice.choice([4, 8, 16, 64]) * GIB), memory_free=size - dice.randint(0, 2) * GIB, cpus=dice.choice([2, 4, 16]),
            load=dice.random(), labels={"zone": dice.choice("abc"), **({"ticks": "questdb"} if dice.random() < 0.3 else {})},
            state="cordoned" if dice.random() < 0.02 else "ready", flags=frozenset(["avx2"] if dice.random() < 0.5 else []),
            gpus=(24 * GIB,) * 2 if dice.random() < 0.03 else (), reserve_memory=GIB // 2, taints={} if dice.random() < 0.9 else {"kept": ""},
        )
        for at in range(microservers)
    ]  # fmt: skip


def demands_of(tasks: int, dice: random.Random) -> list[Demand]:
    """Return servers of many sizes, of ten pools and of none, some of which need a zone, AVX2, a GPU, ticks."""
    return [
        Demand(
            server=f"af-agent-{at}", memory=dice.choice([256, 512, 512, 1024, dice.randint(100, 4000)]) << 20, cpu=dice.choice([0, 0, 0, 0.5]),
            labels={} if dice.random() < 0.8 else {"zone": dice.choice("abc")}, flags=("avx2",) if dice.random() < 0.2 else (),
            gpus=1 if dice.random() < 0.01 else 0, ticks="questdb" if dice.random() < 0.2 else "", group=dice.choice(["", *(f"pool-{n}" for n in range(10))]),
        )
        for at in range(tasks)
    ]  # fmt: skip


def measure(microservers: int = 1000, tasks: int = 10_000, times: int = 3) -> list[dict[str, Any]]:
    """Return a row for each rank: the best of some times, in seconds of this process's CPU."""
    dice, rows = random.Random(SEED), []
    farm, demands = farm_of(microservers, dice), demands_of(tasks, dice)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is not None:
        os.sched_setaffinity(0, [min(allowed)])
    for rank in RANKS:
        taken = []
        for _ in range(times):
            begin = time.process_time()
            planned = place_all(demands, farm, rank)
            taken.append(time.process_time() - begin)
        placed = sum(1 for name in planned.where.values() if name is not None)
        rows.append(
            {
                "microservers": microservers,
                "tasks": tasks,
                "rank": rank,
                "placed": placed,
                "seconds": round(min(taken), 3),
            }
        )
    if allowed is not None:
        os.sched_setaffinity(0, allowed)
    return rows

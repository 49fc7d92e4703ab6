"""Draws docs/fairness.svg: how long tasks wait, by the farm's own rules of turns and ageing, in simulated time.

    python benchmarks/fairness.py [FILE]

The queue is the farm's: its table, its rank, and the statement that gives the next run to a worker (store/turns.py), on SQLite
in memory. Only the clock is simulated, and the work: each run takes as long as it says. Beside it stand what other rules would do
with the same tasks.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from jupyterhub_agentfarm.store import turns
from jupyterhub_agentfarm.store.tables import metadata, runs

AGENT = "analyst"
TARGET = Path(__file__).parents[1] / "docs" / "fairness.svg"


@dataclass(frozen=True)
class Asked:
    """A task: whose, how urgent, when it is submitted and how long it takes (seconds)."""

    owner: str
    at: float
    priority: int = 0
    takes: float = 60.0


@dataclass(frozen=True)
class Begun:
    asked: Asked
    at: float

    @property
    def waited(self) -> float:
        return self.at - self.asked.at


class Turns:
    """The farm's own queue of one agent."""

    def __init__(self) -> None:
        engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
        self.connection: Any = engine.connect()
        metadata.create_all(self.connection)
        self.tasks: dict[str, Asked] = {}

    def submit(self, task: Asked) -> None:
        name = f"run-{len(self.tasks):06}"
        self.tasks[name] = task
        self.connection.execute(
            runs.insert().values(
                run_id=name, agent=AGENT, owner=task.owner, definition_hash="", mode="live", epoch="", status="queued", head="",
                created_at=task.at, priority=task.priority, rank=turns.rank(task.at, task.priority),
            )
        )  # fmt: skip

    def take(self, now: float) -> Asked | None:
        found = self.connection.execute(sa.text(turns.NEXT), {"agent": AGENT, "now": now}).one_or_none()
        if found is None or found.run_id is None:
            return None
        self.connection.execute(runs.update().where(runs.c.run_id == found.run_id).values(status="running"))
        if found.owners > 1:
            turns.served(self.connection, AGENT, found.owner)
        return self.tasks[found.run_id]

    def close(self) -> None:
        self.connection.close()
        self.connection.engine.dispose()


class Sorted:
    """What other farms do: the next is the smallest by one key."""

    def __init__(self, key: Callable[[Asked], Any]) -> None:
        self.key, self.waiting = key, list[tuple[Any, int, Asked]]()
        self.count = 0

    def submit(self, task: Asked) -> None:
        self.count += 1
        heapq.heappush(self.waiting, (self.key(task), self.count, task))

    def take(self, now: float) -> Asked | None:
        return heapq.heappop(self.waiting)[2] if self.waiting else None

    def close(self) -> None: ...


def simulate(queue: Any, tasks: Sequence[Asked], kernels: int = 1) -> list[Begun]:
    """Let so many kernels do the tasks, each taking the next when it is free; return when each began."""
    coming = sorted(tasks, key=lambda task: task.at)
    free, begun, at, now = [0.0] * kernels, list[Begun](), 0, 0.0
    while len(begun) < len(coming):
        now = max(now, free[0])
        while at < len(coming) and coming[at].at <= now:
            queue.submit(coming[at])
            at += 1
        task = queue.take(now)
        if task is None:
            now = max(now, coming[at].at)  # nobody waits: sleep until somebody comes
            continue
        heapq.heapreplace(free, now + task.takes)
        begun.append(Begun(task, now))
    queue.close()
    return begun


# --- two situations ------------------------------------------------------------------------------------------------


def flood() -> list[Asked]:
    """Ann submits 150 tasks at once; bob comes every ten minutes with one, cho every fifteen."""
    hours = 150 * 60.0
    many = [Asked("ann", 0.0) for _ in range(150)]
    bob = [Asked("bob", 300.0 + n * 600) for n in range(int(hours // 600))]
    cho = [Asked("cho", 450.0 + n * 900) for n in range(int(hours // 900))]
    return many + bob + cho


def stream() -> list[Asked]:
    """One owner has more urgent tasks (priority 20) than can be done for four hours, and now and then one that is not urgent."""
    urgent = [Asked("ann", n * 55.0, priority=20) for n in range(260)]
    return urgent + [Asked("ann", 600.0 + n * 1800, priority=0) for n in range(7)]


FLOOD = {"turns between owners (the farm)": Turns, "first come, first served": lambda: Sorted(lambda task: task.at)}
STREAM = {
    "priority that ages (the farm)": Turns,
    "strict priority": lambda: Sorted(lambda task: (-task.priority, task.at)),
}


def waits(
    rules: dict[str, Any], tasks: list[Asked], shown: Callable[[Asked], bool]
) -> dict[str, list[tuple[float, float]]]:
    """Return for each rule when the tasks that are shown were submitted and how long they waited, in minutes."""
    found = {}
    for name, rule in rules.items():
        begun = [one for one in simulate(rule(), tasks) if shown(one.asked)]
        found[name] = sorted((one.asked.at / 60, one.waited / 60) for one in begun)
    return found


# --- drawing --------------------------------------------------------------------------------------------------------

WIDE, HIGH, LEFT, TOP, GAP = 400, 220, 60, 70, 60
COLOURS = ("#1a7f64", "#b5520c")  # seen apart without colours too: the second one is dashed


def plot(x: float, title: str, lines: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Draw one chart at a place: minutes of submission to the right, minutes of waiting upwards."""
    most_x = max(point[0] for line in lines.values() for point in line)
    most_y = max(point[1] for line in lines.values() for point in line) or 1
    step = next(one for one in (5, 10, 20, 30, 60, 120) if most_y / one <= 6)
    far = next(one for one in (30, 60, 120) if most_x / one <= 5)

    def place(point: tuple[float, float]) -> str:
        return f"{x + point[0] / most_x * WIDE:.1f},{TOP + HIGH - point[1] / most_y * HIGH:.1f}"

    drawn = [f'<text x="{x}" y="{TOP - 46}" class="title">{title}</text>']
    for mark in range(0, int(most_y) + 1, step):
        y = TOP + HIGH - mark / most_y * HIGH
        drawn.append(
            f'<path d="M{x} {y:.1f}h{WIDE}" class="grid"/><text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{mark}</text>'
        )
    for mark in range(0, int(most_x) + 1, far):
        drawn.append(
            f'<text x="{x + mark / most_x * WIDE:.1f}" y="{TOP + HIGH + 18}" text-anchor="middle">{mark}</text>'
        )
    drawn.append(
        f'<text x="{x + WIDE / 2}" y="{TOP + HIGH + 36}" text-anchor="middle">submitted after (minutes)</text>'
    )
    for at, (name, line) in enumerate(lines.items()):
        dash = ' stroke-dasharray="6 4"' if at else ""
        drawn.append(f'<polyline points="{" ".join(map(place, line))}" stroke="{COLOURS[at]}"{dash}/>')
        y = TOP - 26 + 15 * at
        drawn.append(
            f'<path d="M{x} {y - 4}h24" stroke="{COLOURS[at]}"{dash}/><text x="{x + 30}" y="{y}">{name}: at most {max(y for _, y in line):.0f} min</text>'
        )
    return drawn


def picture() -> str:
    """Return the plot as SVG; the same each time."""
    first = waits(FLOOD, flood(), lambda task: task.owner != "ann")
    second = waits(STREAM, stream(), lambda task: task.priority == 0)
    wide, high = LEFT + 2 * WIDE + GAP + 30, TOP + HIGH + 50
    style = "text{font:12px sans-serif;fill:#444}.title{font-weight:600;fill:#111}.grid{stroke:#ddd}polyline,path{fill:none;stroke-width:2}.grid{stroke-width:1}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img" aria-label="How long tasks wait, by the farm\'s rules and by others">',
            f'<style>{style}</style><rect width="{wide}" height="{high}" fill="#fff"/>',
            *plot(LEFT, "Minutes waited beside 150 tasks of another owner", first),
            *plot(LEFT + WIDE + GAP, "Minutes waited beside a stream of urgent tasks", second),
            "</svg>",
        ]
    ) + "\n"  # fmt: skip


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_text(picture())
    print(f"{target} is drawn")

"""What a step writes does not depend on the steps before it: no state, no history, no prompt is stored again with each."""

from __future__ import annotations

import itertools

import msgspec
import sqlalchemy as sa
from test_gateway import PAY, Make, calls, make

from agentfarm_sdk.protocol import Limits
from jupyterhub_agentfarm.store import tables

__all__ = ["make"]
STEPS = 60


async def test_what_a_step_stores_is_the_same_after_many_steps_as_after_a_few(make: Make) -> None:
    farm = make(*(calls(("look", f'{{"n": {100 + step}}}')) for step in range(STEPS)))
    limits = Limits(steps=None, calls=None, tokens=None)
    await farm.begin(msgspec.structs.replace(PAY, limits=limits), given="word " * 500)
    e, sizes = tables.events.c, [0]

    def stored(connection: sa.engine.Connection) -> int:
        rows = connection.execute(sa.select(e.header, e.body).join(tables.runs, tables.runs.c.run_no == e.run_no))
        return sum(len(header) + len(body) for header, body in rows)

    for step in range(STEPS):
        await farm.model(f"q{100 + step}")
        await farm.done(f"c{step}-0", f"result {100 + step} " * 20)
        sizes.append(await farm.db.read(stored))
    each = [after - before for before, after in itertools.pairwise(sizes)]
    early, late = sum(each[4:14]) / 10, sum(each[-10:]) / 10
    assert len(farm.upstream.asked[-1].messages) > STEPS, "the model was shown all of it"
    assert late < 1.05 * early, f"{early:.0f} bytes a step, and {late:.0f} at the end"

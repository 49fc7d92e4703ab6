"""An agent's server started anew, once no run is on it: its agent takes none meanwhile, so none is lost and nothing is in doubt."""

from __future__ import annotations

from ..errors import Conflict
from ..records import hub_user
from ..store import poolrules
from .asking import in_use, reach_agent
from .routes import Call, Empty, Route


async def restart(call: Call) -> Empty:
    """Stop the server and start it again. Raises Conflict while a run is on it."""
    agent, _ = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], "manage"))
    in_use(agent)
    with call.parts.claims.resting(agent.name):
        # in the writer's order: a claim before this is seen, one behind it finds the agent resting
        working = await call.write(lambda tx: poolrules.held(tx.connection, agent.name))
        if working:
            raise Conflict(
                f"{agent.name} works: {working} runs are on its server", hint="wait for their end, or pause its tasks"
            )
        await call.parts.hub.stop_server(hub_user(agent.name))
        await call.parts.resources.tell(agent.name)
        await call.parts.hub.start_server(hub_user(agent.name))
    call.parts.surroundings.stale()
    return Empty()


ROUTES = [
    Route("POST", "/agents/{name}/restart", restart, "Start its server anew, once no run is on it", who="person", body=Empty, answer=Empty),
]  # fmt: skip

"""A server is asked for while the former one is still ending: the farm waits for its end and asks again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from jupyterhub_agentfarm import hub as module
from jupyterhub_agentfarm.errors import Transient, UserError
from jupyterhub_agentfarm.hub import Hub

ENDING, GONE, UP = {"": {"ready": False, "pending": "stop"}}, dict[str, Any](), {"": {"ready": True, "pending": None}}
Make = Callable[..., Awaitable[tuple[Hub, list[int]]]]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Make a Hub that answers each start with a status, and says then what servers there are."""
    monkeypatch.setattr(module, "ENDING_PAUSE", 0.0)
    closing: list[Any] = []

    async def made(*answers: tuple[int, dict[str, Any]]) -> tuple[Hub, list[int]]:
        left, asked = list(answers), list[int]()

        async def start(_request: web.Request) -> web.Response:
            asked.append(left[0][0])
            return web.json_response({"message": "agent-a is pending stop"}, status=left[0][0])

        async def show(_request: web.Request) -> web.Response:
            return web.json_response({"name": "agent-a", "servers": (left.pop(0) if len(left) > 1 else left[0])[1]})

        app = web.Application()
        app.router.add_post("/hub/api/users/agent-a/server", start)
        app.router.add_get("/hub/api/users/agent-a", show)
        server = TestServer(app)
        await server.start_server()
        hub = Hub(str(server.make_url("/hub/api")), "t")
        closing.extend([hub, server])
        return hub, asked

    yield made
    for one in closing:
        await one.close()


async def test_a_start_waits_for_the_end_of_a_server_that_is_just_ending(make: Make) -> None:
    hub, asked = await make((400, ENDING), (400, ENDING), (500, GONE), (201, UP))
    await hub.start_server("agent-a")
    assert asked == [400, 400, 500, 201]
    hub, asked = await make((400, UP))
    await hub.start_server("agent-a")
    assert asked == [400], "one that runs is fine"


async def test_what_the_hub_refuses_or_fails_at_otherwise_is_told_and_not_asked_for_for_ever(make: Make) -> None:
    hub, asked = await make((400, GONE))
    with pytest.raises(UserError, match="pending stop"):
        await hub.start_server("agent-a")
    assert asked == [400]
    hub, asked = await make((500, GONE))
    with pytest.raises(Transient, match="the Hub failed"):
        await hub.start_server("agent-a")
    assert asked == [500, 500]
    hub, asked = await make((400, ENDING))
    with pytest.raises(Transient, match="does not end"):
        await hub.start_server("agent-a")
    assert len(asked) == module.ENDING_TRIES

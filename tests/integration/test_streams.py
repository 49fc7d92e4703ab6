"""Streams are open for days: whoever may not see any more is told nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from servicekit import TOKENS, Service, service

from jupyterhub_agentfarm.handlers import feed, worker


@pytest.fixture
async def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as running:
        await running.agent()
        yield running


def revoke(farm: Service, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the Hub know the token no more, and the service ask it anew at the next look."""
    monkeypatch.setattr(feed, "STILL_SECONDS", 0.0)
    monkeypatch.setattr(worker, "STILL_SECONDS", 0.0)
    monkeypatch.delitem(TOKENS, token)
    farm.parts.door.auth.cache.clear()


async def rest(answer: httpx.Response) -> str:
    """Return what a stream still says until the service ends it."""
    said = ""
    try:
        async for piece in answer.aiter_text():
            said += piece
    except httpx.RemoteProtocolError:
        pass  # cut in the middle
    return said


async def test_who_a_run_is_shared_with_no_more_hears_nothing_more_of_it(farm: Service) -> None:
    await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "vic", "rights": "view"})
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    path = f"/runs/{claim['run']}/events"
    async with farm.client("viewer") as client:
        async with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
            heard = asyncio.ensure_future(rest(answer))
            await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "vic", "rights": None})
            event: dict[str, Any] = {"kind": "value.recorded", "body": {"name": "later", "value": "not for vic"}}
            await farm.ok(claim["token"], "POST", path, {"fence": claim["fence"], "n": 1, "events": [event]})
            assert "not for vic" not in await asyncio.wait_for(heard, 20)
        assert (await client.get(path)).status_code == 404


async def test_a_stream_whose_token_was_revoked_is_ended(farm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async with farm.client("ann") as client, client.stream("GET", "/events?state=true") as answer:
        heard = asyncio.ensure_future(rest(answer))
        revoke(farm, "ann", monkeypatch)
        await farm.ok("bob", "POST", "/agents", {"name": "other"})  # something happens: it looks around
        await asyncio.wait_for(heard, 20)


async def test_a_server_whose_token_was_revoked_claims_nothing_more(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": "token agent-analyst", "Agentfarm-Protocol": "1"}
    async with websockets.connect(farm.url.replace("http", "ws") + "/api/v1/worker", additional_headers=headers) as one:
        revoke(farm, "agent-analyst", monkeypatch)
        await one.send('{"id": 1, "op": "claim", "body": {"worker": "w", "claim_id": "c", "wait": 0}}')
        assert '"status":401' in str(await asyncio.wait_for(one.recv(), 20))

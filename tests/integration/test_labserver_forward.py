"""A person's server: the panel's back end and the kernels' socket, before a scripted service on a real port."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from labserverkit import HUB_TOKEN, FakeService, Server, until
from yarl import URL


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    service = FakeService()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def server(tmp_path: Path, service: FakeService) -> AsyncIterator[Server]:
    server = Server(tmp_path / "s", service)
    try:
        await server.ready()
        yield server
    finally:
        await server.stop()


async def call(server: Server, method: str, path: str, **more: Any) -> tuple[int, Any, Mapping[str, str]]:
    assert server.http
    async with server.http.request(method, server.url + path, **more) as answer:
        kind = answer.headers.get("Content-Type", "")
        return (
            answer.status,
            await (answer.json(content_type=None) if "json" in kind else answer.text()),
            answer.headers,
        )


async def farm_socket(server: Server) -> str:
    """Return AGENTFARM_SOCKET as a kernel of the server sees it."""
    printed, _ = await server.execute(await server.kernel(), "import os; print(os.environ['AGENTFARM_SOCKET'])")
    return printed.strip()


async def test_the_panel_speaks_in_the_persons_name(server: Server, service: FakeService) -> None:
    status, body, headers = await call(
        server, "POST", "agentfarm/tasks?a=1&token=server-token", json={"target": "analyst"},
        headers={"Idempotency-Key": "k1", "X-Other": "no", "Cookie": "c=1"},
    )  # fmt: skip
    assert (status, body) == (200, {"path": "/api/v1/tasks?a=1", "by": f"token {HUB_TOKEN}"})
    assert headers["ETag"] == '"7"' and headers["Content-Type"].startswith("application/json")
    got = service.requests[-1].headers
    assert got["Idempotency-Key"] == "k1" and "X-Other" not in got and "Cookie" not in got
    assert service.bodies[-1] == b'{"target": "analyst"}'


async def test_the_services_problems_come_through_as_they_are(server: Server) -> None:
    status, body, headers = await call(server, "GET", "agentfarm/agents/nothing")
    assert status == 404 and body["detail"] == "no such agent" and body["hint"] == "h"
    assert headers["Content-Type"].startswith("application/problem+json")


NEVER = (
    "GET secrets", "PUT secrets", "POST inbox/i-1", "POST microservers/m1/drain", "POST claims", "GET worker", "POST runs",
    "POST model/v1/chat/completions", "GET agents/%2e%2e/secrets", "GET agents/..%2fsecrets", "POST agents/x/publish/y",
)  # fmt: skip


async def test_what_is_not_on_the_list_does_not_pass(server: Server, service: FakeService) -> None:
    assert server.http
    for method, path in (one.split() for one in NEVER):
        async with server.http.request(method, URL(server.url + "agentfarm/" + path, encoded=True)) as answer:
            assert answer.status in (403, 404, 405), (method, path)
            if answer.status == 403:
                assert "hint" in await answer.json(content_type=None)
    assert service.requests == []


async def test_a_stranger_gets_nothing(server: Server, service: FakeService) -> None:
    async with aiohttp.ClientSession() as stranger:
        for path in ("agentfarm/tasks", "agentfarm/agents/x"):
            for method in ("GET", "POST", "PATCH", "DELETE"):
                async with stranger.request(method, server.url + path) as answer:
                    assert answer.status == 403
    assert service.requests == []
    unguarded = re.findall(
        r"^.*(?:GET|POST|PATCH|DELETE) of \S+ registered for \S+$", server.log.read_text(), re.MULTILINE
    )
    assert not [line for line in unguarded if "agentfarm/" in line], unguarded


async def test_a_browsers_cookie_alone_cannot_submit(server: Server, service: FakeService) -> None:
    """Cross-site request forgery: a page elsewhere sends the cookie, but cannot know the token."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.get(server.url + "login?token=" + server.token):
            pass
        async with browser.get(server.url + "agentfarm/tasks") as answer:
            assert answer.status == 200, "the cookie signs in"
        async with browser.post(server.url + "agentfarm/tasks", json={}) as answer:
            assert answer.status == 403
    assert [request.method for request in service.requests] == ["GET"]


async def test_a_stream_passes_event_by_event_and_ends_at_the_service_when_the_asker_goes(server: Server, service: FakeService) -> None:  # fmt: skip
    assert server.http
    address = server.url + "agentfarm/runs/run-1/events?after=0"
    async with server.http.get(address, headers={"Accept": "text/event-stream", "Last-Event-ID": "0"}) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert (await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 20)).startswith(
            b"id: 1"
        )  # before the second is written
        service.go_on.set()
        assert (await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 20)).startswith(b"id: 2")
        assert await answer.content.read() == b""
    assert service.requests[-1].headers["Last-Event-ID"] == "0"
    async with server.http.get(address) as answer:
        await answer.content.readuntil(b"\n\n")
        assert service.streams_open == 1
    await until(lambda: service.streams_open == 0, 10, "the stream at the service ends")


async def test_while_the_service_is_away_the_panel_is_told_so(server: Server, service: FakeService) -> None:
    await service.stop()
    status, body, headers = await call(server, "GET", "agentfarm/tasks")
    assert status == 503 and body["type"] == "unavailable" and body["hint"] and headers["Retry-After"] == "1"


async def test_a_stream_that_is_cut_does_not_look_whole(server: Server, service: FakeService) -> None:
    assert server.http
    with pytest.raises(aiohttp.ClientError):
        async with server.http.get(server.url + "agentfarm/runs/run-1/events") as answer:
            await answer.content.readuntil(b"\n\n")
            await service.stop()
            await answer.content.read()
    status, _, _ = await call(server, "GET", "agentfarm/tasks")
    assert status == 503, "the server itself goes on"


async def test_kernels_reach_the_farm_by_a_socket_only_this_user_can_open(server: Server, service: FakeService) -> None:
    path = await farm_socket(server)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600 and stat.S_ISSOCK(os.stat(path).st_mode)
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=path)) as http:
        async with http.post("http://farm/api/v1/runs", json={}) as answer:
            assert (await answer.json())["by"] == f"token {HUB_TOKEN}"
        async with http.get("http://farm/api/v1/health", headers={"Authorization": "token afr.mine"}) as answer:
            assert (await answer.json())["by"] == "token afr.mine"
        async with http.get("http://farm/api/v1/health", headers={"Authorization": "token somebody-elses"}) as answer:
            assert (await answer.json())["by"] == f"token {HUB_TOKEN}"
        for refused in ("secrets", "claims", "inbox/i-1"):
            async with http.post(f"http://farm/api/v1/{refused}") as answer:
                assert answer.status == 403
    await server.stop()
    assert not os.path.exists(path)


async def test_the_sdk_in_a_persons_kernel_finds_the_farm(server: Server, service: FakeService) -> None:
    code = "from agentfarm_sdk.farm import Farm; print(Farm().request('GET', '/health')['by'])"
    printed, _ = await server.execute(await server.kernel(), code)
    assert printed.strip() == f"token {HUB_TOKEN}"


async def test_a_bound_runs_websocket_passes_both_ways_without_delay(server: Server, service: FakeService) -> None:
    path = await farm_socket(server)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=path)) as http:
        async with http.ws_connect("http://farm/api/v1/worker", headers={"Authorization": "token afr.mine"}) as ws:
            began = time.monotonic()
            for number in range(20):
                await ws.send_json({"id": number, "op": "open", "run": "run-1", "body": {}})
                assert (await ws.receive_json())["id"] == number
            spent = (time.monotonic() - began) / 20
            print(f"a frame there and back through the socket: {1000 * spent:.2f} ms")
            assert spent < 0.02
            await service.push("run-1", "run.cancel_requested", {})
            assert (await ws.receive_json())["push"] == "inbox"
        assert service.handshakes[-1]["Authorization"] == "token afr.mine"
        await until(lambda: not service.sockets, 5, "its end reaches the service")
        service.refuse = 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect("http://farm/api/v1/worker", headers={"Authorization": "token afr.mine"})
        assert refused.value.status == 403


async def test_a_persons_kernels_and_terminals_inherit_no_token(server: Server) -> None:
    printed, _ = await server.execute(await server.kernel(), "import os; print(dict(os.environ))")
    assert "AGENTFARM_SOCKET" in printed and HUB_TOKEN not in printed
    async with server.http.post(server.url + "api/terminals") as answer:
        name = (await answer.json())["name"]
    async with server.http.ws_connect(server.url.replace("http", "ws", 1) + f"terminals/websocket/{name}") as ws:
        await ws.send_json(["stdin", "env; echo the-$((40+2))-end\r"])
        seen = ""
        while "the-42-end" not in seen:
            seen += str((await asyncio.wait_for(ws.receive_json(), 20))[-1])
    assert "AGENTFARM_SOCKET" in seen and HUB_TOKEN not in seen


async def test_a_tiny_cell_does_not_wait_for_an_acknowledgement(server: Server) -> None:
    """Without TCP_NODELAY on the kernel's WebSocket, Nagle and delayed acknowledgements make 44 ms of each exchange."""
    kernel = await server.kernel()
    spent = sorted((await server.execute(kernel, "1", times=20))[1])
    print("a tiny cell, ms:", [round(1000 * one, 1) for one in spent])
    assert spent[10] < 0.035

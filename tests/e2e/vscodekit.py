"""VS Code as the farm sees it: the requests of its JupyterHub extension (ms-toolsai.jupyter-hub 2025.8), in their order.

Names below .localhost are this machine, as for a browser; nothing else is helped along: no cookies, no retries of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import websockets
from farmkit import PATIENCE

START_SECONDS = 10.0  # for which the extension looks whether a server is up, each second


class Refused(Exception):
    """What the extension tells its user: one sentence, whatever the reason was."""


class Here(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1")  # the header Host is made already
        return await super().handle_async_request(request)


@dataclass
class VSCode:
    """`typed`: the address that the person enters. `asked`: every request, with its status."""

    typed: str
    user: str
    secret: str
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    hub: str = ""
    server: str = ""
    token: str = ""
    token_id: str = ""  # of a token that the extension made, and takes back

    async def ask(self, method: str, url: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"token {self.token}"} if self.token else {}
        async with httpx.AsyncClient(transport=Here(), timeout=30 * PATIENCE) as http:
            answer = await http.request(method, url, headers={**headers, **more.pop("headers", {})}, **more)
        self.asked.append((method, httpx.URL(url).path, answer.status_code))
        return answer

    # -- the address, the person --------------------------------------------------------------------------------------

    async def find_hub(self) -> None:
        origin = str(httpx.URL(self.typed).copy_with(raw_path=b"/"))
        bases = [self.typed, self.typed.partition("/user/")[0], origin]
        for base in dict.fromkeys(one.rstrip("/") for one in bases):
            answer = await self.ask("GET", f"{base}/hub/api")
            if answer.status_code == 200 and answer.json().get("version"):
                self.hub = f"{base}/hub/api"
                return
        raise Refused("not a JupyterHub")

    async def sign_in(self) -> None:
        """The second field may hold a token or a password: tried in this order."""
        users = f"{self.hub}/users/{self.user}"
        known = await self.ask("GET", users, headers={"Authorization": f"token {self.secret}"})
        if known.status_code == 200:
            self.token = self.secret
        else:
            body = {"auth": {"username": self.user, "password": self.secret}, "note": "Requested by JupyterHub extension in VSCode"}  # fmt: skip
            plain = {"Content-Type": "text/plain;charset=UTF-8"}
            for url in (f"{users}/tokens", f"{self.hub}/authorizations/token"):
                made = await self.ask("POST", url, content=json.dumps(body), headers=plain)
                if made.status_code in (200, 201):
                    self.token, self.token_id = made.json()["token"], made.json().get("id", "")
                    break
        me = await self.ask("GET", users)
        if not self.token or me.status_code != 200 or me.json()["name"] != self.user:
            raise Refused("Invalid username or password")

    # -- its server ---------------------------------------------------------------------------------------------------

    async def reach_server(self) -> None:
        """Start it where it does not run; after 10 s go on regardless."""
        users = f"{self.hub}/users/{self.user}"
        await self.ask("GET", f"{users}?include_stopped_servers")
        me = (await self.ask("GET", users)).json()
        if not me.get("servers", {}).get("", {}).get("ready"):
            await self.ask("POST", f"{users}/server")
            until = time.monotonic() + START_SECONDS
            while time.monotonic() < until and not me.get("servers", {}).get("", {}).get("ready"):
                await asyncio.sleep(1)
                me = (await self.ask("GET", users)).json()
        named = me.get("servers", {}).get("", {}).get("url") or me.get("server") or f"user/{self.user}/"
        self.server = str(httpx.URL(self.hub.removesuffix("hub/api")).join(named))
        for name in ("kernels", "sessions", "kernelspecs", "kernelspecs"):
            answer = await self.ask("GET", f"{self.server}api/{name}?{time.time_ns() // 1_000_000}")
            if answer.status_code != 200:
                raise Refused("Failed to connect to the remote Jupyter Server")

    async def open(self) -> VSCode:
        await self.find_hub()
        await self.sign_in()
        await self.reach_server()
        return self

    async def remove(self) -> None:
        if self.token_id:
            await self.ask("DELETE", f"{self.hub}/users/{self.user}/tokens/{self.token_id}")

    # -- kernels ------------------------------------------------------------------------------------------------------

    async def sessions(self) -> list[dict[str, Any]]:
        return list((await self.ask("GET", f"{self.server}api/sessions")).json())

    @asynccontextmanager
    async def new_kernel(self) -> AsyncIterator[str]:
        made = await self.ask("POST", f"{self.server}api/kernels", json={"name": "python3"})
        kernel = made.raise_for_status().json()["id"]
        yield kernel
        await self.ask("DELETE", f"{self.server}api/kernels/{kernel}")

    @asynccontextmanager
    async def attached(self, kernel: str) -> AsyncIterator[Any]:
        where = httpx.URL(self.server)
        url = f"ws://{where.netloc.decode()}{where.path}api/kernels/{kernel}/channels?session_id={uuid.uuid4()}&token={self.token}"
        headers = {"Authorization": f"token {self.token}"}
        async with websockets.connect(
            url, host="127.0.0.1", port=where.port, additional_headers=headers, origin=None, max_size=None
        ) as ws:
            yield ws

    async def execute(self, ws: Any, code: str, seconds: float = 60) -> str:
        """Run a cell; return what it printed. Raises AssertionError with the traceback."""
        return await asyncio.wait_for(self._execute(ws, code), PATIENCE * seconds)

    async def _execute(self, ws: Any, code: str) -> str:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "vscode", "session": uuid.uuid4().hex, "version": "5.3"}  # fmt: skip
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": True, "stop_on_error": False, "user_expressions": {}}  # fmt: skip
        message = {"header": header, "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [], "content": content}  # fmt: skip
        await ws.send(json.dumps(message))
        printed = ""
        async for frame in ws:
            got = json.loads(frame)
            kind, content = got["header"]["msg_type"], got["content"]
            if got.get("parent_header", {}).get("msg_id") != header["msg_id"]:
                continue
            assert kind != "error", "\n".join(content["traceback"])
            printed += content["text"] if kind == "stream" else ""
            if kind == "status" and content["execution_state"] == "idle":
                return printed
        raise AssertionError("the kernel's WebSocket was closed")

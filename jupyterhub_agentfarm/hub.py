"""The few calls of the Hub's REST API that the service makes. Its token never reaches a log or an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from .errors import Conflict, Transient, UserError

SECONDS = 20.0  # starting a server answers after up to 10 s
# How often, and after how many seconds, a start is asked for again while a server ends.
ENDING_TRIES, ENDING_PAUSE = 20, 0.5
PAGE, MOST_USERS = 200, 20_000  # users asked for at once, and at most
SHARED = {  # each scope by itself: tokens do not expand the subscopes of shares
    "view": ("custom:agentfarm:view",),
    "chat": ("custom:agentfarm:view", "custom:agentfarm:chat"),
    "manage": (
        "access:servers", "read:servers", "start:servers", "delete:servers",
        "custom:agentfarm:manage", "custom:agentfarm:view", "custom:agentfarm:chat",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Minted:
    token: str
    token_id: str
    expires_at: str


@dataclass(frozen=True)
class Starting:
    """How far a server's start is; `said`: the spawner's latest words."""

    ready: bool
    said: str = ""


class Hub:
    """`api_url` up to and with /hub/api. Names of users are the Hub's: an agent's begins with agent-."""

    def __init__(self, api_url: str, token: str) -> None:
        self.api_url = api_url.rstrip("/")
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                headers={"Authorization": f"token {self._token}"}, timeout=aiohttp.ClientTimeout(total=SECONDS)
            )
        return self._session

    async def _ask(self, method: str, path: str, body: Any = None, *, absent: bool = False) -> Any:
        """Return the answer's JSON, None where there is none, or on 404 with `absent`.

        Raises:
            Transient: the Hub does not answer.  UserError: it refuses, in its own words.
        """
        try:
            async with self._open().request(method, self.api_url + path, json=body) as response:
                if response.status == 404 and absent:
                    return None
                if response.status >= 500:
                    said = await _message(response)
                    failed = Transient(f"the Hub failed: {said}", hint="see the Hub's log", retry_after=5.0)
                    failed.extra["hub_status"] = response.status
                    raise failed
                if response.status >= 400:
                    error = UserError(f"the Hub refuses: {await _message(response)}")
                    error.extra["hub_status"] = response.status
                    raise error
                return await response.json(content_type=None) if response.content_type.endswith("json") else None
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            raise _away() from error

    async def user(self, name: str) -> dict[str, Any] | None:
        """Return the user as far as the service may see it, None where there is none."""
        found: dict[str, Any] | None = await self._ask("GET", f"/users/{quote(name)}", absent=True)
        return found

    async def start_server(self, user: str) -> None:
        """Ask for the user's default server; one that runs or starts already is fine, one that is just ending is waited for.

        The Hub refuses a start while a server ends, and fails where it has seen only now that it is dead.
        Raises Transient, UserError.
        """
        failed = False
        for _ in range(ENDING_TRIES):
            try:
                await self._ask("POST", f"/users/{quote(user)}/server", {"user_options": {}})
                return
            except (UserError, Transient) as error:
                if (status := error.extra.get("hub_status")) is None:
                    raise
                server = await self.server(user)
                ending = server is not None and server["pending"] == "stop"
                if server is not None and not ending:
                    return
                if not ending and (status < 500 or failed):
                    raise
                failed = failed or not ending
            await asyncio.sleep(ENDING_PAUSE)
        raise Transient(f"the server of {user} does not end", hint="see the Hub's log", retry_after=5.0)

    async def stop_server(self, user: str) -> None:
        """Stop the user's default server; one that does not run is fine. Raises Transient, UserError."""
        try:
            await self._ask("DELETE", f"/users/{quote(user)}/server", absent=True)
        except UserError as error:
            if error.extra.get("hub_status") != 400 or await self.server(user) is not None:
                raise

    async def server(self, user: str) -> dict[str, Any] | None:
        """Return the default server where it runs or is on its way: `{ready, pending, url, …}`."""
        found = await self.user(user)
        server = ((found or {}).get("servers") or {}).get("")
        return server if server and (server.get("ready") or server.get("pending")) else None

    async def follow_start(self, user: str, seconds: float) -> Starting:
        """Follow the start of the user's default server until it is up, for at most so many seconds.

        Raises:
            Conflict: it failed; in the spawner's words.  Transient: the Hub does not answer.
        """
        said = ""
        url = f"{self.api_url}/users/{quote(user)}/server/progress"
        try:
            async with self._open().get(url, timeout=aiohttp.ClientTimeout(total=seconds)) as response:
                if response.status == 400:  # neither up nor on its way, and no failure that the Hub remembers
                    raise Conflict(f"the server of {user} was stopped while it started", hint="try again")
                if response.status != 200:
                    raise Transient(f"the Hub failed: {await _message(response)}", retry_after=5.0)
                async for line in response.content:
                    event = json.loads(line[5:]) if line.startswith(b"data:") else {}
                    if event.get("failed"):
                        raise Conflict(
                            str(event.get("message")), hint="agentfarm doctor, and the server's log, say more"
                        )
                    if event.get("ready"):
                        return Starting(True)
                    said = str(event.get("message") or said)
        except asyncio.TimeoutError:
            return Starting(False, said)
        except (aiohttp.ClientError, ValueError) as error:
            raise _away() from error
        return Starting(False, said)

    async def agents_servers(self) -> dict[str, dict[str, Any]]:
        """Return the default servers of all agents that run or are on their way, by hub user. Raises Transient, UserError."""
        found: dict[str, dict[str, Any]] = {}
        for offset in range(0, MOST_USERS, PAGE):
            users = await self._ask("GET", f"/users?state=active&limit={PAGE}&offset={offset}") or []
            if not isinstance(users, list):
                raise Transient("the Hub's list of users is none", retry_after=5.0)
            for user in users:
                server = (user.get("servers") or {}).get("")
                if server and (server.get("ready") or server.get("pending")):
                    found[str(user.get("name"))] = server
            if len(users) < PAGE:
                break
        return found

    async def share(self, user: str, person: str, rights: str | None) -> None:
        """Mirror a grant to a share of the user's default server; None takes it away. Raises Transient, UserError."""
        path = f"/shares/{quote(user)}/"
        await self._ask("PATCH", path, {"user": person}, absent=True)  # all that was shared with that person
        if rights is not None:
            await self._ask("POST", path, {"user": person, "scopes": list(SHARED[rights])})

    async def mint(self, user: str, scopes: list[str], seconds: int, note: str) -> Minted:
        """Make a token of the user. Raises Transient, UserError."""
        made = await self._ask(
            "POST", f"/users/{quote(user)}/tokens", {"expires_in": seconds, "note": note, "scopes": scopes}
        )
        if not isinstance(made, dict) or "token" not in made:
            raise Conflict(f"the Hub made no token for {user}")
        return Minted(str(made["token"]), str(made.get("id", "")), str(made.get("expires_at") or ""))

    async def drop_tokens(self, user: str, chosen: Callable[[str], bool]) -> None:
        """Delete those tokens of the user whose note is chosen. Raises Transient, UserError."""
        known = await self._ask("GET", f"/users/{quote(user)}/tokens", absent=True) or {}
        for token in known.get("api_tokens", []):
            if chosen(str(token.get("note") or "")):
                await self._ask("DELETE", f"/users/{quote(user)}/tokens/{quote(str(token['id']))}", absent=True)


def _away() -> Transient:
    return Transient("the Hub does not answer", hint="try again shortly; runs go on meanwhile", retry_after=5.0)


async def _message(response: aiohttp.ClientResponse) -> str:
    try:
        said = await response.json(content_type=None)
        return str(said.get("message") or response.reason)[:500] if isinstance(said, dict) else str(response.reason)
    except (ValueError, aiohttp.ClientError):
        return str(response.reason)

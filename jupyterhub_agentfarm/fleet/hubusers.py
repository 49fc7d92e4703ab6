"""Makes and retires hub users named agent-…, for the fleet daemon alone: it holds the token with the Hub's `admin:users`."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import aiohttp

from ..errors import FleetError, Forbidden
from ..records import unit_name
from .state import AGENT_USER

GROUP = "agents"
PAGE = 100  # users


class HubUsers:
    """Makes and retires hub users named agent-…, by the Hub's REST API with the fleet's own token."""

    def __init__(self, api_url: str, token_file: Path) -> None:
        self.api_url, self.token_file = api_url.rstrip("/"), token_file
        self._session: aiohttp.ClientSession | None = None

    async def put(self, name: str) -> dict[str, Any]:
        """Make the user and put it into the group. Again is harmless. Raises Forbidden, FleetError."""
        _agents_only(name)
        await self._call("POST", f"/users/{name}", ok=(201, 409))
        await self._call("POST", f"/groups/{GROUP}/users", {"users": [name]}, ok=(200,))
        return await self._call("GET", f"/users/{name}", ok=(200,))

    async def servers(self) -> set[str]:
        """Return the units of all servers that the Hub has, or is starting or stopping. Raises FleetError."""
        found: set[str] = set()
        for offset in itertools.count(0, PAGE):
            page = await self._call("GET", f"/users?state=active&offset={offset}&limit={PAGE}", ok=(200,))
            items = page.get("items", [])
            found |= {unit_name(user["name"], server) for user in items for server in user.get("servers", {})}
            if len(items) < PAGE:
                break
        return found

    async def delete(self, name: str) -> None:
        """Delete the user, its servers stopped by the Hub. Again is harmless. Raises Forbidden, FleetError."""
        _agents_only(name)
        await self._call("DELETE", f"/users/{name}", ok=(204, 404))

    async def _call(self, verb: str, path: str, body: Any = None, *, ok: tuple[int, ...]) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        headers = {"Authorization": f"token {self._token()}", "Accept": "application/jupyterhub-pagination+json"}
        try:
            async with self._session.request(verb, self.api_url + path, json=body, headers=headers) as answer:
                text = await answer.text()
                if answer.status not in ok:
                    said = json.loads(text).get("message", "") if text.startswith("{") else ""
                    raise FleetError(
                        f"the Hub answered {answer.status} to {verb} {path}: {said}",
                        hint="see the Hub's log",
                        retry_after=2,
                    )
                value = json.loads(text) if text.startswith("{") else {}
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            raise FleetError(
                "the Hub cannot be reached", hint="it may be restarting: try again", retry_after=2
            ) from error
        return dict(value)

    def _token(self) -> str:
        try:
            return self.token_file.read_text().strip()
        except OSError as error:
            raise FleetError(
                "the fleet's token file cannot be read", hint=f"check {self.token_file.name} in the secrets folder"
            ) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _agents_only(name: str) -> None:
    if not AGENT_USER.fullmatch(name):
        raise Forbidden(
            f"{name!r} is no agent's user", hint="the fleet daemon makes and retires users named agent-… only"
        )

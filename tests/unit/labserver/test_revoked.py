"""Whose open connection may stay: as the Hub says; while it cannot say, everybody's."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.services.auth import HubOAuth
from tornado.web import HTTPError

from jupyterhub_agentfarm.labserver.revoked import OpenSockets

SCOPE = "access:servers!server=agent-x/"


class Auth(HubOAuth):  # type: ignore[misc]
    """JupyterHub's own, whose Hub answers what it is told to."""

    said: Any = None

    async def user_for_token(self, token: str, **_: Any) -> Any:  # type: ignore[override]
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


@pytest.mark.parametrize(
    ("said", "stays"),
    [
        ({"name": "agent-x", "scopes": [SCOPE]}, True),
        ({"name": "ann", "scopes": ["access:servers!server=agent-y/"]}, False),  # the share was ended
        (None, False),  # revoked, or expired
        (HTTPError(500), True),
        (OSError("the answer was cut"), True),
    ],
)
async def test_a_connection_stays_as_long_as_its_token_opens_this_server(
    monkeypatch: pytest.MonkeyPatch, said: Any, stays: bool
) -> None:
    monkeypatch.setenv("JUPYTERHUB_OAUTH_ACCESS_SCOPES", f'["{SCOPE}"]')
    auth = Auth(api_url="http://127.0.0.1:9/hub/api", api_token="x")
    auth.said = said
    asked = SimpleNamespace(headers={"Authorization": "token t"}, path="/", uri="/", arguments={})
    handler = SimpleNamespace(request=asked, get_argument=lambda *_a, **_k: "")
    assert await OpenSockets(auth, logging.getLogger()).may_stay(handler) is stays  # type: ignore[arg-type]

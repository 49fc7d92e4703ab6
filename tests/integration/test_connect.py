"""Connecting an editor: who is given a token of an agent, what stands on record of it, and when it ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from servicekit import Service, service
from test_audit import cli

from jupyterhub_agentfarm.store import tables

CONNECT, CONNECTIONS = "/agents/analyst/connect", "/agents/analyst/connections"


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
    async with service(tmp_path, database_url, monkeypatch) as farm:
        monkeypatch.setenv("AGENTFARM_URL", farm.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
        await farm.agent()
        await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "mia", "rights": "manage"})
        yield farm


async def chain(farm: Service) -> list[dict[str, Any]]:
    """Return what the farm's own chain says of connections."""
    found = (await farm.ok("operator", "GET", "/audit/export?limit=500"))["items"]
    mine = [(json.loads(one["header"]), json.loads(one["body"])) for one in found if one["run"] == "farm"]
    return [{"kind": h["kind"], "by": h["by"], **b} for h, b in mine if h["kind"].startswith("connection.")]


async def test_the_token_reaches_the_agent_s_server_alone_and_stands_nowhere_in_the_farm(farm: Service) -> None:
    made = await farm.ok("ann", "POST", CONNECT, {"hours": 2})
    assert made["ready"] and made["user"] == "agent-analyst" and made["url"].endswith("/user/agent-analyst/")
    (asked,) = farm.hub.tokens.values()
    assert (asked["user"], asked["expires_in"]) == ("agent-analyst", 7200) and "ann" in asked["note"]
    assert sorted(asked["scopes"]) == [f"{verb}:servers!server=agent-analyst/" for verb in ("access", "read", "start")]
    (listed,) = (await farm.ok("manager", "GET", CONNECTIONS))["items"]
    assert set(listed) == {"connection_id", "person", "created_at", "expires_at"} and listed["person"] == "ann"
    assert (listed["connection_id"], listed["expires_at"]) == (made["connection_id"], made["expires_at"])
    (told,) = await chain(farm)
    assert (told["kind"], told["by"], told["connection"]) == ("connection.opened", "user:ann", made["connection_id"])

    def rows(connection: sa.engine.Connection) -> str:
        return "\n".join(
            str(row) for table in tables.metadata.sorted_tables for row in connection.execute(sa.select(table))
        )

    assert made["token"] not in await farm.db.read(rows) and "mia" in await farm.db.read(rows)


async def test_while_the_server_starts_there_is_no_token_but_how_far_it_is(farm: Service) -> None:
    farm.hub.starting = "Starting on microserver gen8"
    answer = await farm.ask("ann", "POST", CONNECT, {})
    told = answer.json()
    assert answer.status_code == 202 and answer.headers["Retry-After"] == "1"
    assert (told["ready"], told["pending"], told["token"]) == (False, "spawn", "")
    assert told["note"] == "Starting on microserver gen8"
    assert farm.hub.tokens == {} and (await farm.ok("ann", "GET", CONNECTIONS))["items"] == []


async def test_a_server_that_cannot_start_is_told_with_the_reason_and_no_token(farm: Service) -> None:
    farm.hub.refuses_start = "local: 12 MiB of memory are free, 512 are asked for"
    refused = await farm.ask("ann", "POST", CONNECT, {})
    assert 400 <= refused.status_code < 500 and "12 MiB" in refused.json()["detail"]
    assert farm.hub.tokens == {} and await chain(farm) == []


async def test_one_is_revoked_by_its_id_and_the_others_stay(farm: Service) -> None:
    first, second = [await farm.ok(who, "POST", CONNECT, {}) for who in ("ann", "manager")]
    left = await farm.ok("ann", "DELETE", f"{CONNECTIONS}/{first['connection_id']}")
    assert [one["connection_id"] for one in left["items"]] == [second["connection_id"]]
    (token,) = farm.hub.tokens.values()
    assert second["connection_id"] in token["note"]
    assert (await farm.ask("ann", "DELETE", f"{CONNECTIONS}/{first['connection_id']}")).status_code == 404
    opened, _, closed = await chain(farm)
    assert (closed["kind"], closed["connection"], closed["person"]) == (
        "connection.closed",
        opened["connection"],
        "ann",
    )


async def test_unsharing_ends_that_person_s_editors_and_retiring_everybody_s(farm: Service) -> None:
    for who in ("ann", "manager", "manager"):
        await farm.ok(who, "POST", CONNECT, {})
    await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "mia", "rights": "chat"})
    assert [one["person"] for one in (await farm.ok("ann", "GET", CONNECTIONS))["items"]] == ["ann"]
    assert len(farm.hub.tokens) == 1
    await farm.ok("ann", "DELETE", "/agents/analyst")
    assert farm.hub.tokens == {} and (await farm.ok("ann", "GET", CONNECTIONS))["items"] == []
    closed = [(one["person"], one["reason"]) for one in await chain(farm) if one["kind"] == "connection.closed"]
    assert closed == [("mia", "unshared"), ("mia", "unshared"), ("ann", "retired")]


async def test_who_is_unshared_while_the_token_is_made_does_not_get_it(farm: Service) -> None:
    async def unshare() -> None:
        farm.hub.minting = None
        await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "mia", "rights": None})

    farm.hub.minting = unshare
    refused = await farm.ask("manager", "POST", CONNECT, {})
    assert refused.status_code == 409 and farm.hub.tokens == {}


async def test_the_command_line_gives_lists_and_revokes(farm: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert await cli("agent", "connect", "analyst") == 0
    said = capsys.readouterr().out
    assert "minted-for-agent-analyst" in said and "/user/agent-analyst/" in said
    assert await cli("agent", "connect", "analyst", "--list") == 0
    listed = capsys.readouterr().out
    assert "ann" in listed and "minted" not in listed
    name = next(word for word in listed.split() if word.startswith("connection-"))
    assert await cli("agent", "connect", "analyst", "--revoke", name) == 0
    assert await cli("agent", "connect", "analyst", "--revoke", name) == 2, "it has ended"
    assert await cli("agent", "connect", "analyst", "--revoke", "all") == 0 and farm.hub.tokens == {}

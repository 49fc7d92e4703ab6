"""Versions of agents: published, listed, compared, restored as a draft; agents as files, out and in."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import Definition
from agentfarm_sdk.tools.registry import builtin_specs

from ..errors import Conflict, Invalid, NotFound
from ..records import Agent, hub_user
from ..store import agents
from ..store.db import Tx
from . import drafts
from .agents import keep_files, open_for_owner, settle
from .asking import Rights, in_use, reach_agent
from .feed import AGENTS
from .routes import Call, Page, Route
from .views import AgentView, Listed, VersionView, agent_view, page, version_view


class Publish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    note: str = ""


class Restore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int


class Between(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}):
    """`from` and `to`: numbers of versions; left out: the published one, and the draft."""

    start: int | None = None
    end: int | None = None


class Difference(msgspec.Struct, frozen=True, rename={"old": "from", "new": "to"}):
    path: str
    old: Any
    new: Any


class OfVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int | None = None


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`name`: another one than the file says."""

    name: str | None = None


def _reach(connection: Connection, call: Call, need: Rights) -> tuple[Agent, Rights]:
    return reach_agent(connection, call.asker, call.path["name"], need)


async def publish(call: Call) -> VersionView:
    """Make the draft a version: its tools are checked anew and pinned."""

    def write(tx: Tx) -> VersionView:
        agent, _ = _reach(tx.connection, call, "manage")
        in_use(agent)
        given = {**msgspec.structs.asdict(agent.draft), "tools": [msgspec.to_builtins(t) for t in agent.draft.tools]}
        given["model"], given["limits"] = map(msgspec.structs.asdict, (agent.draft.model, agent.draft.limits))
        definition = settle(call, given, {}, tx.connection).definition
        if not definition.prompt.strip():
            raise Invalid(f"the draft of {agent.name} has no prompt", hint="say in it what the agent is to do")
        return version_view(agents.publish(tx, agent.name, definition, call.body.note, call.asker.name))

    return await call.commit(write)  # type: ignore[no-any-return]


async def listed(call: Call) -> Listed[VersionView]:
    limit, cursor = call.query.limit, call.query.cursor
    if cursor and not cursor.isdigit():
        raise Invalid(f"cursor {cursor!r}", hint="take it from `next` of the page before")

    def read(connection: Connection) -> list[VersionView]:
        agent, _ = _reach(connection, call, "view")
        before = int(cursor) if cursor else None
        return [version_view(one) for one in agents.listed_versions(connection, agent.name, before, limit + 1)]

    return page(await call.read(read), limit, lambda one: str(one.number))


def _number(text: str) -> int:
    if not text.isdigit() or len(text) > 9:
        raise NotFound(f"there is no version {text!r}", hint="versions are numbered from 1")
    return int(text)


async def show(call: Call) -> VersionView:
    def read(connection: Connection) -> VersionView:
        agent, _ = _reach(connection, call, "view")
        return version_view(agents.version(connection, agent.name, _number(call.path["number"])))

    return await call.read(read)


def _definition(connection: Connection, agent: Agent, number: int | None) -> Definition:
    return agent.draft if number is None else agents.version(connection, agent.name, number).definition


async def diff(call: Call) -> Listed[Difference]:
    def read(connection: Connection) -> list[Difference]:
        agent, _ = _reach(connection, call, "view")
        start = call.query.start if call.query.start is not None else agent.published
        old = Definition() if start is None else _definition(connection, agent, start)
        new = _definition(connection, agent, call.query.end)
        return [Difference(one["path"], one["from"], one["to"]) for one in drafts.difference(old, new)]

    return Listed(await call.read(read))


async def restore(call: Call) -> AgentView:
    """Let an old version land as the draft; publishing it is a step of its own."""
    rev = call.if_match()

    def write(tx: Tx) -> AgentView:
        agent, has = _reach(tx.connection, call, "manage")
        in_use(agent)
        old = agents.version(tx.connection, agent.name, call.body.number)
        by = call.asker.name
        return agent_view(
            agents.update_draft(tx, agent.name, draft=old.definition, pool=agent.pool, rev=rev, by=by), has
        )

    restored: AgentView = await call.commit(write)
    call.parts.feed.wake(AGENTS)
    if isinstance(restored, AgentView):
        call.etag(restored.draft_rev)
    return restored


async def export(call: Call) -> None:
    """Write the agent as one YAML file: the version asked for, else the published one, else the draft."""

    def read(connection: Connection) -> str:
        agent, _ = _reach(connection, call, "view")
        number = call.query.version if call.query.version is not None else agent.published
        definition = _definition(connection, agent, number)
        digests = {t.source.removeprefix("file@") for t in definition.tools if t.source.startswith("file@")}
        files = {digest: agents.get_file(connection, digest) for digest in digests}
        return drafts.dump(agent.name, agent.pool, definition, files, builtin_specs())

    text = await call.read(read)
    call.handler.set_header("Content-Type", "text/yaml; charset=utf-8")
    call.handler.set_header("Content-Disposition", f'attachment; filename="{call.path["name"]}.yaml"')
    call.handler.finish(text)


async def import_(call: Call) -> AgentView:
    """Make an agent from a file, or set the draft of one that is there."""
    text = _file_text(call)
    file = drafts.load(text)
    name = drafts.check_name(call.query.name or file.name)
    if file.pool is not None:
        drafts.check_name(file.pool, "pool")

    def settled(connection: Connection) -> drafts.Draft:
        with drafts.located(text, ".definition"):
            return settle(call, file.definition, file.files, connection)

    await call.read(settled)
    new = not await call.read(lambda c: _there(c, name))
    if new:
        await call.parts.fleet.put_user(hub_user(name))

    def write(tx: Tx) -> AgentView:
        draft = settled(tx.connection)
        keep_files(tx, draft)
        if not _there(tx.connection, name):
            made = agents.create(
                tx, name=name, owner=call.asker.name, owner_since=call.asker.since, pool=file.pool, draft=draft.definition, by=call.asker.by
            )  # fmt: skip
            return agent_view(made, "owner")
        try:
            agent, has = reach_agent(tx.connection, call.asker, name, "manage")
        except NotFound as error:
            raise Conflict(f"the name {name} is taken", hint="import it under another name (?name=)") from error
        in_use(agent)
        by = call.asker.name
        return agent_view(agents.update_draft(tx, name, draft=draft.definition, pool=file.pool, rev=None, by=by), has)

    imported: AgentView = await call.commit(write)
    call.parts.feed.wake(AGENTS)
    if new:
        await open_for_owner(call, name)
    return imported


def _there(connection: Connection, name: str) -> bool:
    try:
        agents.show(connection, name)
    except NotFound:
        return False
    return True


def _file_text(call: Call) -> str:
    """Return the file's text: the body itself, or `{"text"}` in JSON."""
    raw: bytes = call.body
    if "json" in call.handler.request.headers.get("Content-Type", ""):
        try:
            raw = str(msgspec.json.decode(raw, type=dict[str, str])["text"]).encode()
        except (msgspec.DecodeError, KeyError) as error:
            raise Invalid('expected {"text": …}', hint="or send the YAML itself as text/yaml") from error
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"byte {error.start} of this file is not UTF-8", hint="save it as UTF-8") from error


ROUTES = [
    Route("POST", "/agents/{name}/publish", publish, "Make the draft a version", who="person", body=Publish, answer=VersionView, status=201),
    Route("GET", "/agents/{name}/versions", listed, "List versions, newest first", query=Page, answer=Listed[VersionView]),
    Route("GET", "/agents/{name}/versions/{number}", show, "Show a version", answer=VersionView),
    Route("GET", "/agents/{name}/diff", diff, "What differs between two versions", query=Between, answer=Listed[Difference]),
    Route("POST", "/agents/{name}/restore", restore, "Make an old version the draft", who="person", body=Restore, answer=AgentView),
    Route("GET", "/agents/{name}/export", export, "The agent as a YAML file", query=OfVersion, streams=True),
    Route("POST", "/agents/import", import_, "Make or change an agent by a YAML file", who="person", query=Named, raw=True, answer=AgentView),
]  # fmt: skip

"""Agents: made, shown, edited, retired; started and stopped; shared. Versions: versions.py, editors: connect.py."""

from __future__ import annotations

import logging
from typing import Any, Literal

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.tools.registry import builtin_specs

from ..errors import AgentFarmError, Conflict, Forbidden, Invalid, NotFound
from ..records import Agent, hub_user
from ..store import agents
from ..store.db import Tx
from . import drafts
from .asking import RANK, Asker, Rights, in_use, reach_agent, rights
from .connect import close_of, editors
from .feed import AGENTS
from .routes import Call, Empty, Page, Route
from .surroundings import Seen
from .views import AgentView, Listed, agent_view, page

log = logging.getLogger(__name__)


class NewAgent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`definition` is another word for `draft`."""

    name: str
    pool: str | None = None
    draft: dict[str, Any] | None = None
    definition: dict[str, Any] | None = None
    files: dict[str, str] = {}


class DraftChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is left out stays."""

    pool: str | msgspec.UnsetType | None = msgspec.UNSET
    draft: dict[str, Any] | None = None
    definition: dict[str, Any] | None = None
    files: dict[str, str] = {}


class Shared(msgspec.Struct, frozen=True):
    person: str
    rights: str


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rights` null ends it."""

    person: str
    rights: Literal["view", "chat", "manage"] | None


class ServerView(msgspec.Struct, frozen=True):
    name: str
    ready: bool
    pending: str | None
    url: str


class AgentsPage(Page, frozen=True, forbid_unknown_fields=True):
    pool: str | None = None
    retired: bool = False


def settle(call: Call, draft: dict[str, Any] | None, files: dict[str, str], connection: Connection) -> drafts.Draft:
    def known(digest: str) -> bool:
        try:
            agents.get_file(connection, digest)
        except NotFound:
            return False
        return True

    return drafts.settle(draft or {}, files, builtin_specs(), known)


def keep_files(tx: Tx, draft: drafts.Draft) -> None:
    for name, content in draft.files.items():
        agents.put_file(tx, name, content)


async def listed(call: Call) -> Listed[AgentView]:
    query: AgentsPage = call.query

    def read(connection: Connection) -> list[AgentView]:
        asker = call.asker
        names: list[str] | None = None
        if asker.kind == "agent":
            names = [asker.name]
        elif not asker.operator:
            names = list(agents.reachable(connection, asker.name))
        found = agents.listed(
            connection, names=names, after=query.cursor, limit=query.limit + 1, retired=query.retired, pool=query.pool
        )
        may = [(one, has) for one in found if (has := rights(connection, asker, one))]
        return [agent_view(one, has, editors(call.parts, one, has)) for one, has in may]

    found = page(await call.read(read), query.limit, lambda one: one.name)
    seen = await call.parts.surroundings.look()
    return Listed([with_server(call, one, seen) for one in found.items], found.next)


def with_server(call: Call, agent: AgentView, seen: Seen) -> AgentView:
    """Add how its server is, as the farm was last seen."""
    server = seen.server(agent.name, call.parts.why(agent.name))
    return msgspec.structs.replace(agent, server=server)


async def create(call: Call) -> AgentView:
    new: NewAgent = call.body
    drafts.check_name(new.name)
    if new.pool is not None:
        drafts.check_name(new.pool, "pool")
    await call.read(lambda c: settle(call, new.draft or new.definition, new.files, c))  # before the Hub is asked
    await call.read(lambda c: _free(c, new.name, call.asker))
    await call.parts.fleet.put_user(hub_user(new.name))

    def write(tx: Tx) -> AgentView:
        draft = settle(call, new.draft or new.definition, new.files, tx.connection)
        keep_files(tx, draft)
        asker = call.asker
        made = agents.create(
            tx, name=new.name, owner=asker.name, owner_since=asker.since, pool=new.pool, draft=draft.definition, by=asker.by
        )  # fmt: skip
        return agent_view(made, "owner")

    call.headers["Location"] = f"agents/{new.name}"
    call.etag(1)
    answer = await call.commit(write)
    await open_for_owner(call, new.name)
    return answer  # type: ignore[no-any-return]


async def open_for_owner(call: Call, name: str) -> None:
    """Let the Hub open the agent's server for its owner. The agent stands also where the Hub is away just now."""
    try:
        await call.parts.hub.share(hub_user(name), call.asker.name, "manage")
    except AgentFarmError as error:
        log.warning("agent %s: its server is not open to %s at the Hub yet: %s", name, call.asker.name, error.detail)


def _free(connection: Connection, name: str, asker: Asker) -> None:
    try:
        agents.show(connection, name)
    except NotFound:
        return
    raise Conflict(f"there is, or was, an agent {name}", hint="choose another name: records keep it for ever")


async def show(call: Call) -> AgentView:
    agent, has = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], "view"))
    call.etag(agent.draft_rev)
    shown = agent_view(agent, has, editors(call.parts, agent, has))
    return with_server(call, shown, await call.parts.surroundings.look())


async def change(call: Call) -> AgentView:
    wish: DraftChange = call.body
    rev = call.if_match()

    def write(tx: Tx) -> AgentView:
        agent, has = reach_agent(tx.connection, call.asker, call.path["name"], "manage")
        in_use(agent)
        given = wish.draft if wish.draft is not None else wish.definition
        draft = settle(call, given, wish.files, tx.connection) if given is not None else drafts.Draft(agent.draft)
        pool = agent.pool if wish.pool is msgspec.UNSET else wish.pool
        if pool is not None:
            drafts.check_name(pool, "pool")
        keep_files(tx, draft)
        by = call.asker.name
        return agent_view(agents.update_draft(tx, agent.name, draft=draft.definition, pool=pool, rev=rev, by=by), has)

    changed: AgentView = await call.commit(write)
    call.parts.feed.wake(AGENTS)
    if isinstance(changed, AgentView):
        call.etag(changed.draft_rev)
    return changed


async def retire(call: Call) -> AgentView:
    """Take the agent out of use, its server and hub user away; its record stays."""
    name = call.path["name"]
    _, has = await call.read(lambda c: reach_agent(c, call.asker, name, "owner"))
    retired: AgentView = await call.commit(lambda tx: agent_view(agents.retire(tx, name, call.asker.by), has))
    await close_of(call, name, "retired")
    await call.parts.hub.stop_server(hub_user(name))
    await call.parts.fleet.delete_user(hub_user(name))
    return retired


# -- its server ----------------------------------------------------------------------------------------------------


async def _reach(call: Call, need: Rights) -> Agent:
    agent, _ = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], need))
    return in_use(agent)


async def start(call: Call) -> ServerView:
    agent = await _reach(call, "chat")
    await call.parts.resources.tell(agent.name)
    await call.parts.hub.start_server(hub_user(agent.name))
    call.parts.surroundings.stale()
    return await _server(call, agent)


async def stop(call: Call) -> Empty:
    agent = await _reach(call, "manage")
    await call.parts.hub.stop_server(hub_user(agent.name))
    call.parts.surroundings.stale()
    return Empty()


async def _server(call: Call, agent: Agent) -> ServerView:
    found = await call.parts.hub.server(hub_user(agent.name)) or {}
    url = str(found.get("full_url") or found.get("url") or f"/user/{hub_user(agent.name)}/")
    return ServerView(agent.name, bool(found.get("ready")), found.get("pending"), url)


# -- with whom it is shared ----------------------------------------------------------------------------------------


async def shares(call: Call) -> Listed[Shared]:
    agent, _ = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], "manage"))
    found = await call.read(lambda c: agents.grants_of(c, agent.name))
    return Listed([Shared(person, has) for person, has in found.items()])


async def share(call: Call) -> Listed[Shared]:
    """Share with a person, and mirror it to the Hub, so that the server opens for them too. Less than manage ends their editors."""
    wish: Share = call.body
    agent, has = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], "manage"))
    in_use(agent)
    if not wish.person or wish.person.startswith("agent-") or len(wish.person) > 255:
        raise Invalid(
            f"{wish.person!r} is not a person", hint="agents are shared with people, by their name at the Hub"
        )
    if wish.person == agent.owner:
        raise Conflict(f"{wish.person} owns {agent.name}", hint="the owner has every right already")
    if wish.rights == "manage" and RANK[has] < RANK["owner"]:
        raise Forbidden("only the owner gives the right manage", hint=f"ask {agent.owner}")
    if wish.rights is not None and await call.parts.hub.user(wish.person) is None:
        raise NotFound(f"the Hub knows no person {wish.person}", hint="they sign in once first")
    await call.parts.hub.share(hub_user(agent.name), wish.person, wish.rights)

    def write(tx: Tx) -> Listed[Shared]:
        agents.set_grant(tx, agent.name, wish.person, wish.rights, call.asker.by)
        return Listed(
            [Shared(person, granted) for person, granted in agents.grants_of(tx.connection, agent.name).items()]
        )

    shared: Listed[Shared] = await call.commit(write)
    if wish.rights != "manage":
        await close_of(call, agent.name, "unshared", wish.person)
    return shared


ROUTES = [  # keeps=False: repeated, it does again what follows the commit
    Route("GET", "/agents", listed, "List the agents that the asker may see", query=AgentsPage, answer=Listed[AgentView]),
    Route("POST", "/agents", create, "Create an agent, and its user at the Hub", who="person", body=NewAgent, answer=AgentView, status=201),
    Route("GET", "/agents/{name}", show, "Show an agent with its draft", answer=AgentView),
    Route("PATCH", "/agents/{name}", change, "Edit the draft", who="person", body=DraftChange, answer=AgentView),
    Route("DELETE", "/agents/{name}", retire, "Retire an agent; its record stays", who="person", answer=AgentView, keeps=False),
    Route("POST", "/agents/{name}/start", start, "Start its server", who="person", body=Empty, answer=ServerView),
    Route("POST", "/agents/{name}/stop", stop, "Stop its server", who="person", body=Empty, answer=Empty),
    Route("GET", "/agents/{name}/shares", shares, "With whom it is shared", who="person", answer=Listed[Shared]),
    Route("POST", "/agents/{name}/shares", share, "Share it with a person, or end that", who="person", body=Share, answer=Listed[Shared], keeps=False),
]  # fmt: skip

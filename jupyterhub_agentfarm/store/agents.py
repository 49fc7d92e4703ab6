"""Agents, their drafts, versions, grants and tools' files. A version is immutable; a draft moves by compare-and-set.

What happens to agents is also on record in the farm's own chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import ENDED, Definition, canonical, new_event, timestamp

from ..errors import Conflict, NotFound
from ..records import Agent, Version
from . import definitions, ledger
from .db import Tx
from .tables import FARM_RUN, agents, files, grants, runs, versions

_AGENT = sa.select(*(agents.c[one.name] for one in fields(Agent)))
_ONE = _AGENT.where(
    agents.c.name == sa.bindparam("name")
)  # each task needs it: to make it costs more than to execute it


def create(
    tx: Tx, *, name: str, owner: str, owner_since: float | None, pool: str | None, draft: Definition, by: str
) -> Agent:
    """Make an agent. Raises Conflict: the name is taken, also by a retired one: names stand in records for ever."""
    if tx.connection.execute(sa.select(agents.c.name).where(agents.c.name == name)).scalar():
        raise Conflict(f"there is, or was, an agent {name}", hint="choose another name: records keep it for ever")
    tx.execute(
        agents.insert().values(
            name=name, owner=owner, owner_since=owner_since, pool=pool, draft=_text(draft), created_at=tx.now,
            edited_by=owner, edited_at=tx.now,
        )
    )  # fmt: skip
    _record(tx, by, "agent.created", {"agent": name, "owner": owner, "pool": pool})
    return show(tx.connection, name)


def show(connection: Connection, name: str) -> Agent:
    """Return the agent, a retired one too. Raises NotFound."""
    row = connection.execute(_ONE, {"name": name}).one_or_none()
    if row is None:
        raise no_agent(name)
    return _agent(row)


def no_agent(name: str) -> NotFound:
    """Return the error for a name that is nobody's, or that the asker may not see: both look the same."""
    return NotFound(f"there is no agent {name}", hint="list them by: agentfarm agent list")


def listed(
    connection: Connection, *, names: Iterable[str] | None = None, after: str | None = None, limit: int = 50, retired: bool = False, pool: str | None = None
) -> list[Agent]:  # fmt: skip
    """Return agents by name: these (None = all)."""
    statement = _AGENT.order_by(agents.c.name).limit(limit)
    if names is not None:
        statement = statement.where(agents.c.name.in_(list(names)))
    if not retired:
        statement = statement.where(agents.c.retired_at.is_(None))
    if pool is not None:
        statement = statement.where(agents.c.pool == pool)
    if after:
        statement = statement.where(agents.c.name > after)
    return [_agent(row) for row in connection.execute(statement)]


def update_draft(tx: Tx, name: str, *, draft: Definition, pool: str | None, rev: int | None, by: str) -> Agent:
    """Replace the draft. by: the person. Raises Conflict: `rev` is given and the draft has moved on; it tells the other one."""
    done = tx.execute(
        agents.update()
        .where(agents.c.name == name, *([] if rev is None else [agents.c.draft_rev == rev]))
        .values(draft=_text(draft), pool=pool, draft_rev=agents.c.draft_rev + 1, edited_by=by, edited_at=tx.now)
    )
    if done.rowcount != 1:
        now = show(tx.connection, name)
        raise Conflict(
            f"{now.edited_by or 'somebody'} edited the draft of {name}: it is at revision {now.draft_rev}, not {rev}",
            hint="look at both, then send what you want with the new revision",
            draft_rev=now.draft_rev, draft=msgspec.to_builtins(now.draft), pool=now.pool, edited_by=now.edited_by,
            edited_at=None if now.edited_at is None else timestamp(now.edited_at),
        )  # fmt: skip
    return show(tx.connection, name)


_BRIEF = (
    "name",
    "owner",
    "owner_since",
    "pool",
    "draft_rev",
    "edited_by",
    "edited_at",
    "published",
    "created_at",
    "retired_at",
)


def brief(connection: Connection, names: Iterable[str] | None) -> list[dict[str, Any]]:
    """Return the rows of these agents (None = all), retired ones too, without their drafts: what a list needs to be redrawn."""
    statement = sa.select(*(agents.c[name] for name in _BRIEF)).order_by(agents.c.name)
    if names is not None:
        statement = statement.where(agents.c.name.in_(list(names)))
    return [{str(name): value for name, value in row.items()} for row in connection.execute(statement).mappings()]


def people(connection: Connection) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Return (owner, agent) and (person, agent, rights) of every agent in use."""
    used = agents.c.retired_at.is_(None)
    owns = connection.execute(sa.select(agents.c.owner, agents.c.name).where(used).order_by(agents.c.name))
    shared = connection.execute(
        sa.select(grants.c.person, grants.c.agent, grants.c.rights)
        .join(agents, agents.c.name == grants.c.agent)
        .where(used)
        .order_by(grants.c.agent)
    )
    return [(owner, name) for owner, name in owns], [(person, name, has) for person, name, has in shared]


def publish(tx: Tx, name: str, definition: Definition, note: str, by: str) -> Version:
    """Make a version of the definition; the same as the published one makes none anew."""
    digest = definitions.put(tx, definition)
    agent = show(tx.connection, name)
    if agent.published is not None:
        now = version(tx.connection, name, agent.published)
        if now.hash == digest:
            return now
    number = 1 + int(
        tx.connection.execute(
            sa.select(sa.func.coalesce(sa.func.max(versions.c.number), 0)).where(versions.c.agent == name)
        ).scalar_one()
    )
    tx.execute(
        versions.insert().values(agent=name, number=number, hash=digest, note=note, created_at=tx.now, created_by=by)
    )
    tx.execute(agents.update().where(agents.c.name == name).values(published=number))
    _record(tx, f"user:{by}", "version.published", {"agent": name, "number": number, "hash": digest, "note": note})
    return version(tx.connection, name, number)


_VERSION = sa.select(
    versions.c.agent,
    versions.c.number,
    versions.c.hash,
    versions.c.note,
    versions.c.created_at,
    versions.c.created_by,
)
_ONE_VERSION = _VERSION.where(versions.c.agent == sa.bindparam("name"), versions.c.number == sa.bindparam("number"))


def version(connection: Connection, name: str, number: int) -> Version:
    """Return one version. Raises NotFound."""
    row = connection.execute(_ONE_VERSION, {"name": name, "number": number}).one_or_none()
    if row is None:
        raise NotFound(f"agent {name} has no version {number}", hint=f"they are listed at /agents/{name}/versions")
    return _version(connection, row)


def listed_versions(connection: Connection, name: str, before: int | None = None, limit: int = 50) -> list[Version]:
    """Return versions, newest first."""
    statement = _VERSION.where(versions.c.agent == name).order_by(versions.c.number.desc()).limit(limit)
    if before is not None:
        statement = statement.where(versions.c.number < before)
    return [_version(connection, row) for row in connection.execute(statement).all()]


def retire(tx: Tx, name: str, by: str) -> Agent:
    """Take the agent out of use; its record stays. Again is harmless. Raises Conflict: runs of it have not ended."""
    agent = show(tx.connection, name)
    if agent.retired_at is not None:
        return agent
    open_run = sa.select(runs.c.run_id).where(runs.c.agent == name, runs.c.status.not_in(ENDED)).limit(1)
    if unfinished := tx.connection.execute(open_run).scalar():
        raise Conflict(f"agent {name} has a run that has not ended: {unfinished}", hint="wait for it, or cancel it")
    tx.execute(agents.update().where(agents.c.name == name).values(retired_at=tx.now))
    tx.execute(grants.delete().where(grants.c.agent == name))
    _record(tx, by, "agent.retired", {"agent": name})
    return show(tx.connection, name)


# -- with whom an agent is shared ----------------------------------------------------------------------------------


def set_grant(tx: Tx, name: str, person: str, rights: str | None, by: str) -> None:
    """Share the agent with a person, change that, or end it (`rights` None)."""
    tx.execute(grants.delete().where(grants.c.agent == name, grants.c.person == person))
    if rights is not None:
        tx.execute(grants.insert().values(agent=name, person=person, rights=rights, created_at=tx.now))
    _record(tx, by, "agent.shared", {"agent": name, "person": person, "rights": rights})


def grants_of(connection: Connection, name: str) -> dict[str, str]:
    """Return person -> rights."""
    rows = connection.execute(
        sa.select(grants.c.person, grants.c.rights).where(grants.c.agent == name).order_by(grants.c.person)
    )
    return {person: rights for person, rights in rows}


def grant(connection: Connection, name: str, person: str) -> str | None:
    """Return what the person was granted on this agent."""
    found: str | None = connection.execute(
        sa.select(grants.c.rights).where(grants.c.agent == name, grants.c.person == person)
    ).scalar()
    return found


def reachable(connection: Connection, person: str) -> dict[str, str]:
    """Return the agents that a person owns or was granted, with the rights."""
    own = sa.select(agents.c.name).where(agents.c.owner == person)
    shared = sa.select(grants.c.agent, grants.c.rights).where(grants.c.person == person)
    granted = {name: rights for name, rights in connection.execute(shared)}
    return {**granted, **{name: "owner" for name in connection.execute(own).scalars()}}


# -- tools' files --------------------------------------------------------------------------------------------------


def put_file(tx: Tx, name: str, content: bytes) -> str:
    """Keep a source by its content; return its SHA-256."""
    sha256 = hashlib.sha256(content).hexdigest()
    if not tx.connection.execute(sa.select(files.c.sha256).where(files.c.sha256 == sha256)).scalar():
        tx.execute(files.insert().values(sha256=sha256, name=name, content=content, created_at=tx.now))
    return sha256


def get_file(connection: Connection, sha256: str) -> tuple[str, bytes]:
    """Return name and content of a tool's source. Raises NotFound."""
    row = connection.execute(sa.select(files.c.name, files.c.content).where(files.c.sha256 == sha256)).one_or_none()
    if row is None:
        raise NotFound(f"there is no tool file {sha256[:12]}…", hint="upload it with the draft, under files")
    return str(row[0]), bytes(row[1])


def _record(tx: Tx, by: str, kind: str, body: dict[str, Any]) -> None:
    ledger.record(tx, FARM_RUN, by, [new_event(kind, body)])


def _text(draft: Definition) -> str:
    return canonical(draft).decode()


def _agent(row: Any) -> Agent:
    values = dict(row._mapping)
    return Agent(**{**values, "draft": msgspec.json.decode(values["draft"], type=Definition)})


def _version(connection: Connection, row: Any) -> Version:
    return Version(**row._mapping, definition=definitions.get(connection, row.hash))

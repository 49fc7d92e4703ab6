"""The farm itself: health, metrics, all changes as one stream, microservers; and the API described."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

import jupyterhub_agentfarm
from agentfarm_sdk.errors import BY_TYPE

from ..errors import AgentFarmError, Forbidden
from ..records import hub_user, unit_name
from ..store import agents, changes
from .asking import reach_agent
from .feed import Sse, resume_from
from .routes import Call, Empty, Page, Route
from .runs import After
from .views import Listed


class Health(msgspec.Struct, frozen=True):
    """`status`: ok, or degraded with `problems`. `page`: the farm's page, for browsers ("": not known)."""

    status: str
    version: str
    epoch: str
    database: str
    model: dict[str, Any] | None
    problems: list[str]
    page: str = ""


async def health(call: Call) -> Health:
    parts = call.parts
    problems = []
    try:
        await asyncio.wait_for(call.read(changes.latest), 5)
    except (AgentFarmError, asyncio.TimeoutError) as error:
        problems.append(f"database: {getattr(error, 'detail', '') or 'it does not answer'}")
    if parts.db.last_error:
        problems.append(f"database: {parts.db.last_error}")
    model = default_model(parts.models.upstreams)
    if model is None:
        problems.append("model: none is set; set HF_API_URL and HUGGING_FACE_AUTH_TOKEN")
    if any(problem.startswith("database") for problem in problems):
        call.status = 503
    kind = "sqlite" if parts.db.sqlite else "postgresql"
    status = "degraded" if problems else "ok"
    return Health(status, jupyterhub_agentfarm.__version__, parts.db.epoch, kind, model, problems, parts.public_page)


def default_model(upstreams: Any) -> dict[str, Any] | None:
    """Return name, server and note of the model that agents get who name none."""
    if not upstreams.default:
        return None
    route, name = upstreams.route("")
    return {
        "name": name,
        "upstream": route.upstream.name,
        "note": route.note,
        "embedded": route.upstream.name == "embedded",
    }


async def metrics(call: Call) -> None:
    """Give Prometheus its text: on the service's own listener, or to an operator."""
    if call.handler.paged and not call.asker.operator:
        raise Forbidden("metrics are for operators", hint="scrape the service's own listener: /api/v1/metrics")
    content = await call.parts.metrics()
    call.handler.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
    call.handler.finish(content)


async def events(call: Call) -> None:
    """Stream every event that the asker may see, from now on or from where they were; ids number the whole farm's."""
    asker = call.asker
    start = resume_from(call.handler, call.query.after)
    last = start or await call.read(changes.latest)

    def look(connection: Any) -> list[tuple[int, str, Any]]:
        if asker.operator:
            return changes.after(connection, last, owner=None, agents=())
        names = [asker.name] if asker.kind == "agent" else list(agents.reachable(connection, asker.name))
        return changes.after(connection, last, owner="" if asker.kind == "agent" else asker.name, agents=names)

    async def read() -> list[tuple[int, str, Any]]:
        nonlocal last
        found = await call.read(look)
        last = found[-1][0] if found else last
        return [(number, event.kind, {"agent": agent, "event": event}) for number, agent, event in found]

    with call.parts.feed.reader(None) as wake:
        await Sse(call.handler).follow(wake, read, lambda: False)


async def microservers(call: Call) -> Listed[Any]:
    found = await call.parts.fleet.microservers()
    return Listed(list(found))


class Explained(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`agent`: whose server."""

    agent: str


async def explain(call: Call) -> dict[str, Any]:
    """Say where the agent's server goes, and of each other microserver why not."""
    agent, _ = await call.read(lambda c: reach_agent(c, call.asker, call.query.agent, "view"))
    answer: dict[str, Any] = await call.parts.fleet.explain(unit_name(hub_user(agent.name)))
    return answer


async def openapi(call: Call) -> dict[str, Any]:
    return describe(call.parts.routes)


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Return OpenAPI 3.1 of the table of routes. Pure."""
    kinds = {id(kind): kind for r in routes for kind in (r.body, r.answer, r.also, r.query) if kind is not None}
    schemas, components = msgspec.json.schema_components(
        list(kinds.values()), ref_template="#/components/schemas/{name}"
    )
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_kind, components)
    problem = {
        "type": "object",
        "required": ["type", "title", "status", "detail", "hint"],
        "properties": {
            "type": {"type": "string", "examples": sorted(BY_TYPE)}, "title": {"type": "string"}, "status": {"type": "integer"},
            "detail": {"type": "string"}, "hint": {"type": "string", "description": "what to do"},
        },
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "AgentFarm", "version": jupyterhub_agentfarm.__version__},
        "servers": [{"url": "/services/agentfarm/api/v1"}, {"url": "/api/v1"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": problem},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, by_kind: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    query = by_kind[id(route.query)]
    query = components.get(str(query.get("$ref", "")).rpartition("/")[2], query)
    parameters += [{"name": name, "in": "query", "schema": one} for name, one in query.get("properties", {}).items()]
    answer = {"description": "as asked"}
    if route.answer is not None:
        schema = by_kind[id(route.answer)]
        schema = {"anyOf": [schema, by_kind[id(route.also)]]} if route.also is not None else schema
        answer["content"] = {"application/json": {"schema": schema}}  # type: ignore[assignment]
    refused = {
        "description": "a problem",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    operation = {
        "summary": route.summary, "description": route.fn.__doc__ or "", "x-for": route.who, "parameters": parameters,
        "operationId": f"{route.fn.__module__.rpartition('.')[2]}_{route.fn.__name__.strip('_')}",
        "responses": {str(route.status): answer, "default": refused},
    }  # fmt: skip
    if route.body is not None or route.raw:
        kind = "application/octet-stream" if route.raw else "application/json"
        operation["requestBody"] = {"content": {kind: {"schema": by_kind.get(id(route.body), {})}}}
    return operation


ROUTES = [
    Route("GET", "/health", health, "Whether the farm is well", who="anyone", answer=Health),
    Route("GET", "/metrics", metrics, "For Prometheus", who="metrics", streams=True),
    Route("GET", "/events", events, "Stream of all changes that the asker may see", query=After, streams=True),
    Route("GET", "/microservers", microservers, "The farm's machines", query=Page, answer=Listed[Any]),
    Route("GET", "/placements/explain", explain, "Where a server goes, and why", query=Explained, answer=dict[str, Any]),
    Route("GET", "/openapi.json", openapi, "This API described", who="anyone", query=Empty, answer=dict[str, Any]),
]  # fmt: skip

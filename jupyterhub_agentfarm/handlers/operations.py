"""The farm itself: health, metrics; and the API described."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

import jupyterhub_agentfarm
from agentfarm_sdk.errors import BY_TYPE
from agentfarm_sdk.waiting import within

from ..errors import AgentFarmError, Forbidden
from ..store import changes
from .routes import Call, Empty, Parts, Route


class Health(msgspec.Struct, frozen=True):
    """`status`: ok, degraded with `problems`, or standby: another service leads. `page`: the farm's page, for browsers ("": not known).

    `generation`: how many services have led this ledger, with the one that answers; 0: it stands by.
    """

    status: str
    version: str
    epoch: str
    database: str
    model: dict[str, Any] | None
    problems: list[str]
    page: str = ""
    generation: int = 0


async def health(call: Call) -> Health:
    away = ""
    try:
        await within(call.read(changes.latest), 5)
    except (AgentFarmError, asyncio.TimeoutError) as error:
        away = getattr(error, "detail", "") or "it does not answer"
    found = health_of(call.parts, away)
    if any(problem.startswith("database") for problem in found.problems):
        call.status = 503
    return found


def health_of(parts: Parts, away: str = "") -> Health:
    """Return how the farm is, by what is known without asking. `away`: why the database did not answer, where it did not."""
    problems = [f"database: {why}" for why in dict.fromkeys((away, parts.db.last_error)) if why]
    if why := parts.claims.full():
        problems.append(f"disk: {why}")
    upstreams = parts.models.upstreams
    model = default_model(upstreams)
    if model is None:
        problems.append("model: none is set; set HF_API_URL and HUGGING_FACE_AUTH_TOKEN")
    problems += [f"model: {why}" for why in upstreams.away.values()]
    kind = "sqlite" if parts.db.sqlite else "postgresql"
    status = "degraded" if problems else "ok"
    version, db = jupyterhub_agentfarm.__version__, parts.db
    return Health(status, version, db.epoch, kind, model, problems, parts.public_page, db.generation)


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
    Route("GET", "/openapi.json", openapi, "This API described", who="anyone", query=Empty, answer=dict[str, Any]),
]  # fmt: skip

"""Every route of the farm, and the tornado application that serves them under both prefixes."""

from __future__ import annotations

from tornado.web import Application

from . import (
    agents,
    attachments,
    audit,
    batches,
    budgets,
    cases,
    changes,
    connect,
    drains,
    erasure,
    farm,
    forks,
    inbox,
    joining,
    lists,
    logs,
    memory,
    model,
    operations,
    pages,
    placements,
    pools,
    preview,
    restarting,
    runs,
    steps,
    tasks,
    templates,
    toolfiles,
    tools,
    versions,
    worker,
)
from .base import url_specs
from .routes import Parts, Route

ROUTES: list[Route] = [
    *agents.ROUTES, *restarting.ROUTES, *connect.ROUTES, *versions.ROUTES, *tools.ROUTES, *toolfiles.ROUTES, *tasks.ROUTES, *lists.ROUTES, *batches.ROUTES, *attachments.ROUTES, *runs.ROUTES, *forks.ROUTES, *steps.ROUTES, *cases.ROUTES, *preview.ROUTES, *worker.ROUTES, *model.ROUTES,
    *inbox.ROUTES, *memory.ROUTES, *budgets.ROUTES, *audit.ROUTES, *erasure.ROUTES, *changes.ROUTES, *farm.ROUTES, *drains.ROUTES, *joining.ROUTES, *placements.ROUTES, *logs.ROUTES, *pools.ROUTES, *templates.ROUTES, *operations.ROUTES,
]  # fmt: skip
OWN_LISTENER = "/api/v1"


def application(parts: Parts, cookie_secret: bytes) -> Application:
    """Return the application: the pages and their API behind the proxy, and the API on the service's own listener."""
    parts.routes = ROUTES
    specs = [
        *url_specs(ROUTES, parts, f"{parts.prefix}api/v1", cookies=True),
        *url_specs(ROUTES, parts, OWN_LISTENER, cookies=False),
        *pages.specs(parts),
    ]
    return Application(
        specs,
        cookie_secret=cookie_secret,
        log_function=pages.log_request,
    )

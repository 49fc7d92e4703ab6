"""Is the record whole? Anchors, the farm as a whole, and evidence bundles of runs."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from sqlalchemy.engine import Connection

from ..errors import Forbidden
from ..store import anchors, bundles, contents, erasure, ledger
from ..store.tables import FARM_RUN
from .routes import Call, Route
from .runs import reach_run
from .views import Listed


class AnchorPage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`cursor`: the number of the last anchor that is known. `newest`: from the last one back."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 50
    cursor: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    newest: bool = False


class AnchorView(msgspec.Struct, frozen=True):
    number: int
    anchor: str  # the text that is signed
    signature: str


class Broken(msgspec.Struct, frozen=True):
    run_id: str
    bad_seq: int | None
    why: str


class Whole(msgspec.Struct, frozen=True):
    """`anchor`: up to which the farm's record is whole; `since`: events recorded after it. `broken`: what is not whole."""

    ok: bool
    runs: int
    events: int
    anchor: int | None
    anchored_at: str | None
    since: int
    broken: list[Broken]


async def list_anchors(call: Call) -> Listed[AnchorView]:
    page: AnchorPage = call.query
    found = await call.read(lambda c: anchors.listed(c, page.cursor, page.limit + 1, newest=page.newest))
    items = [AnchorView(number, one.anchor, one.signature) for number, one in found[: page.limit]]
    return Listed(items, items[-1].number if len(found) > page.limit else None)


async def verify_farm(call: Call) -> Whole:
    if not call.asker.operator:
        raise Forbidden("the whole farm is for operators", hint="check your own runs: agentfarm audit verify RUN")
    return await call.read(_whole)


def _whole(connection: Connection) -> Whole:
    checked = ledger.verify_all(connection)
    broken = [Broken(one.run_id, one.bad_seq, one.why) for one in checked if not one.ok]
    broken += [Broken(run, None, "an anchor holds this run, and it is not here") for run in anchors.missing(connection)]
    if all(one.ok for one in checked if one.run_id == FARM_RUN):  # else nobody knows which runs were deleted
        broken += [Broken(run, None, why) for run, why in erasure.flaws(connection)]
    broken += [Broken("", None, why) for why in contents.flaws(connection)]
    if damage := anchors.damaged(connection):
        broken.append(Broken("", None, damage))
    last = anchors.last(connection) if not damage else None
    return Whole(
        not broken, len(checked), sum(one.events for one in checked), last[0].number if last else None, last[0].at if last else None,
        last[1] if last else 0, broken,
    )  # fmt: skip


async def bundle(call: Call) -> Any:
    """Give a zip with all that proves the run."""

    def made(connection: Connection) -> tuple[str, bytes]:
        run = reach_run(connection, call.asker, call.path["run"])
        return run.run_id, bundles.make(connection, run.run_id, call.parts.db.now())

    run_id, content = await call.read(made)
    call.handler.set_header("Content-Type", "application/zip")
    call.handler.set_header("Content-Disposition", f'attachment; filename="{run_id}.zip"')
    call.handler.finish(content)


ROUTES = [
    Route("GET", "/audit/anchors", list_anchors, "Signed roots over the heads of all runs", who="person", query=AnchorPage, answer=Listed[AnchorView]),
    Route("GET", "/audit/verify", verify_farm, "Check every run, and all anchors", who="person", answer=Whole),
    Route("GET", "/runs/{run}/bundle", bundle, "Its evidence bundle (zip)", who="reader", streams=True),
]  # fmt: skip

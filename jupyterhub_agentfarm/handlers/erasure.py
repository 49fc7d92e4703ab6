"""Taking things out of the ledger, and all of it out of the farm: erasure, deletion, export."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..errors import Forbidden, Invalid
from ..store import erasure, export, ledger, remains
from ..store.db import Tx
from .asking import OPERATOR, may
from .routes import Call, Route
from .runs import reach_run
from .tools import MANAGE
from .views import Listed

Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Erasure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to go: events by number, all of a kind, or all that may go; of an ended run.

    `memory`: also what its agent remembers since.
    """

    reason: Reason
    seqs: list[int] = []
    kinds: list[str] = []
    all: bool = False
    memory: bool = False


class ErasedView(msgspec.Struct, frozen=True):
    """How many bodies and blobs went. `left`: what holds words of the run still, and this did not reach."""

    run_id: str
    bodies: int
    blobs: int
    seq: int
    head: str
    left: list[remains.Left]


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Reason


class TombstoneView(msgspec.Struct, frozen=True):
    """What stays of a deleted run: how many events it had, and the hash of the last."""

    run_id: str
    epoch: str
    seq: int
    head: str


class ExportPage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`after`: the number of the last event that is known; numbers only grow."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=2000)] = 500


def _reach(tx: Tx, call: Call) -> str:
    """Return the run that the asker may take things out of. Raises NotFound, Forbidden."""
    asker = call.asker
    run = reach_run(tx.connection, asker, call.path["run"])
    if not may(tx.connection, asker, run, "owner"):
        raise Forbidden("only its owner and operators may take things out of a run", hint=f"ask {run.owner}")
    if asker.via == "token" and not asker.scopes & {MANAGE, OPERATOR}:
        raise Forbidden("a server's token takes nothing out of the ledger", hint=f"use a token of yours with {MANAGE}")
    return run.run_id


async def erase(call: Call) -> ErasedView:
    body: Erasure = call.body
    if not (body.seqs or body.kinds or body.all or body.memory):
        raise Invalid("nothing is named", hint='name "seqs" or "kinds", or say "all": true, "memory": true')
    seqs, kinds = set(body.seqs), set(body.kinds)

    def write(tx: Tx) -> ErasedView:
        run_id = _reach(tx, call)
        erasure.check_named(tx.connection, run_id, body.seqs, body.kinds)
        done = erasure.erase(
            tx, run_id, call.asker.by, body.reason, lambda seq, kind: body.all or seq in seqs or kind in kinds, remembered=body.memory
        )  # fmt: skip
        return ErasedView(**vars(done), left=remains.left(tx.connection, ledger.held(tx, run_id)))

    return await call.commit(write)  # type: ignore[no-any-return]


async def delete(call: Call) -> TombstoneView:
    why: Why = call.query

    def write(tx: Tx) -> TombstoneView:
        return TombstoneView(**vars(erasure.delete(tx, _reach(tx, call), call.asker.by, why.reason)))

    return await call.commit(write)  # type: ignore[no-any-return]


async def listed(call: Call) -> Listed[export.Exported]:
    page: ExportPage = call.query
    if not call.asker.operator:
        raise Forbidden("the whole farm is for operators", hint="save your own runs: agentfarm run bundle RUN")
    items = await call.read(lambda c: export.page(c, page.after, page.limit))
    return Listed(items, items[-1].id if len(items) == page.limit else None)


ROUTES = [
    Route("POST", "/runs/{run}/erase", erase, "Erase bodies of its events", who="person", body=Erasure, answer=ErasedView),
    Route("DELETE", "/runs/{run}", delete, "Delete it; a tombstone stays", who="person", query=Why, answer=TombstoneView),
    Route("GET", "/audit/export", listed, "All events of the farm as they are kept", who="person", query=ExportPage, answer=Listed[export.Exported]),
]  # fmt: skip

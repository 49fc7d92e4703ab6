"""`agentfarm inbox …`: what waits for a person, and the person's decision."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from typing import Any

from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.farm import Farm

from .show import Out, noun
from .tasks import parsed

LIST = ("inbox_id", "kind", "age", "agent", "run_id", "call", "tool", "state")
SHOWN = (
    "inbox_id", "kind", "agent", "owner", "run_id", "question", "choices", "schema", "call", "tool", "effect", "arguments", "key", "why", "reason", "age",
    "worker", "approvals", "expires_at", "escalated_at", "escalate_to", "decision", "decided_by", "decided_at", "because",
)  # fmt: skip
DECISIONS = ("approve", "refuse", "happened", "not_happened", "give_up", "given_up", "answer")
WHICH = """which decision: an approval is approved or refused; a call in doubt happened (--result), not_happened (it is
called again; --force where its worker is only silent), or give_up (the run ends); a call of a simulated run gets an
answer (--result) or is refused; a question is answered (--answer TEXT, or answer --result JSON) or refused; a budget is
approved (it no longer holds for that run) or refused (the run fails)"""


def add(nouns: Any) -> None:
    verb = noun(nouns, "inbox", "what waits for a person: approvals, calls in doubt, questions, budgets")
    listed = verb("list", list_inbox, "what waits, oldest first")
    listed.add_argument("--limit", type=int)
    listed.add_argument("--all", action="store_true", help="also what was decided")
    listed.add_argument(
        "--escalated", action="store_true", help="only what waited too long for those it was shown first"
    )
    verb("show", show_inbox, "one thing that waits").add_argument("item")
    resolve = verb(
        "resolve", resolve_inbox, "decide it; takes a token with custom:agentfarm:approve in AGENTFARM_TOKEN"
    )
    resolve.add_argument("item")
    resolve.add_argument("decision", nargs="?", choices=DECISIONS, help=WHICH)
    resolve.add_argument("--answer", metavar="TEXT", help="answer a question with a text")
    resolve.add_argument("--reason", default="", help="why; recorded with your name")
    resolve.add_argument("--result", metavar="JSON", help="what came of it (with: happened, answer)")
    resolve.add_argument("--arguments", metavar="JSON", help="other arguments for the call (with: approve)")
    resolve.add_argument(
        "--force", action="store_true", help="not_happened though the worker is only silent; with a reason"
    )


def list_inbox(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    wanted = {"all": "true" if asked.all else None, "escalated": "true" if asked.escalated else None}
    found = list(farm.inbox(asked.limit, **{name: value for name, value in wanted.items() if value}))
    out.rows(found if out.as_json else [told(one) for one in found], LIST, "nothing waits for a person")


def show_inbox(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    item = farm.request("GET", f"/inbox/{asked.item}")
    out.record(item if out.as_json else told(item), () if out.as_json else SHOWN)


def resolve_inbox(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    decision = asked.decision or ("answer" if asked.answer is not None else None)
    if decision is None or (asked.answer is not None and decision != "answer"):
        raise Invalid("say one decision", hint="agentfarm inbox resolve ITEM DECISION; for a question --answer TEXT")
    result = asked.answer if asked.answer is not None else parsed("--result", asked.result)
    given = {"arguments": parsed("--arguments", asked.arguments), "result": result}
    item = farm.resolve(asked.item, decision, reason=asked.reason, force=asked.force, **given)
    done = f"{asked.item}: {decision} is recorded"
    out.line(done if item.get("decided_at") else f"{done}; {told(item)['approvals']} have approved", item)


def told(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item as a person reads it: what is asked, how long it waits, what is known of the worker."""
    detail, needed = item["detail"], item["detail"].get("approvers", 1)
    until = (
        datetime.fromisoformat(item["decided_at"][:-1]).replace(tzinfo=timezone.utc)
        if item["decided_at"]
        else datetime.now(timezone.utc)
    )
    waited = until - datetime.fromisoformat(item["asked_at"][:-1]).replace(tzinfo=timezone.utc)
    votes = ", ".join(vote["by"].removeprefix("user:") for vote in item["votes"])
    approvals = f"{len(item['votes'])} of {needed}" + (f" ({votes})" if votes else "") if needed > 1 else ""
    state = item["decision"] or item["worker"] or approvals or ("escalated" if item["escalated_at"] else "")
    asked = {
        name: detail.get(name)
        for name in ("tool", "effect", "arguments", "key", "why", "reason", "question", "choices", "schema")
    }
    asked["tool"] = asked["tool"] or detail.get("budget")
    return {
        **item,
        **asked,
        "age": age(waited.total_seconds()),
        "approvals": approvals,
        "state": state,
        "because": item["reason"],
    }


def age(seconds: float) -> str:
    """Return a span in the largest unit that says enough: 45 s, 12 min, 5 h, 3 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"

"""Tasks, batches, agents, budgets and inbox items for the eye, as HTML and as plain text. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .markup import Html, bounded, el, joined, lasted, link, money, number, one_line, page, plain, run_page, state
from .runs import folded, labelled

Json = Mapping[str, Any]
Bundle = dict[str, str]


def status_of(data: Json) -> str:
    waiting = str(data.get("waiting") or "").replace("_", " ")
    return f"{data.get('status', '')}: {waiting}" if waiting else str(data.get("status", ""))


# -- a task, many tasks ----------------------------------------------------------------------------------------------


def task_html(data: Json, address: str = "") -> Html:
    """Return a task without its steps: what was asked, what came of it."""
    where = run_page(address, str(data.get("run_id") or ""))
    top = el(
        "div",
        state(status_of(data)), el("b", str(data.get("agent") or data.get("target") or "task")),
        el("code", str(data.get("task_id") or ""), class_="afo-quiet"),
        el("span", str(data.get("mode") or ""), class_="afo-quiet"), el("span", class_="afo-spring"),
        link(where, "farm page") if where else None, class_="afo-head", role="group", aria_label="task",
    )  # fmt: skip
    parts: list[str] = [top, labelled("Input", data.get("input"))]
    if data.get("status") == "succeeded":
        parts.append(labelled("Result", data.get("result"), "afo-result"))
    elif error := data.get("error"):
        parts.append(labelled("Error", error.get("message") if isinstance(error, dict) else error, "afo-error"))
    elif note := data.get("note"):
        parts.append(el("p", str(note), class_="afo-note afo-part"))
    return joined(*parts)


def task_text(data: Json) -> str:
    ended = data.get("result") if data.get("status") == "succeeded" else (data.get("error") or {})
    came = one_line(ended.get("message", "") if isinstance(ended, dict) and "message" in ended else ended or "")
    return plain(f"<Task {data.get('task_id')} {status_of(data)}{': ' + came if came else ''}>")


def task_bundle(data: Json, address: str = "") -> Bundle:
    return {"text/plain": task_text(data), "text/html": page(task_html(data, address))}


def batch_counts(progress: Json) -> dict[str, int]:
    """Return how many of a batch are done, failed, running and left."""
    counts = {str(name): int(count) for name, count in dict(progress.get("counts") or {}).items()}
    done, failed = counts.get("succeeded", 0), counts.get("failed", 0) + counts.get("cancelled", 0)
    going = sum(counts.get(name, 0) for name in ("running", "cancelling"))
    size = max(int(progress.get("tasks") or 0), sum(counts.values()))
    return {"size": size, "done": done, "failed": failed, "running": going, "left": size - done - failed}


def batch_line(counts: Mapping[str, int], eta: float | None = None) -> str:
    said = [f"{counts['done'] + counts['failed']} of {counts['size']}"]
    if counts["failed"]:
        said.append(f"{counts['failed']} failed")
    if counts["running"]:
        said.append(f"{counts['running']} running")
    if eta is not None and counts["left"]:
        said.append(f"about {lasted(eta)} left")
    return " · ".join(said)


def batch_html(batch_id: str, counts: Mapping[str, int], eta: float | None = None) -> Html:
    size = max(1, counts["size"])
    word = "succeeded" if counts["done"] == counts["size"] else "running" if counts["left"] else "failed"
    said = {"succeeded": "done", "failed": "done, some failed"}.get(word, word)

    def part(count: int, look: str) -> Html | None:
        return el("i", class_=f"afo-{look}", style=f"width:{100 * count / size:.2f}%") if count else None

    bar = el(
        "div", part(counts["done"], "good"), part(counts["failed"], "bad"), part(counts["running"], "run"), class_="afo-bar",
        role="progressbar", aria_valuemin="0", aria_valuemax=str(counts["size"]),
        aria_valuenow=str(counts["done"] + counts["failed"]), aria_label=f"batch {batch_id}",
    )  # fmt: skip
    top = el(
        "div",
        state(said, {"succeeded": "good", "failed": "bad"}.get(word, "run")), el("code", batch_id, class_="afo-quiet"),
        el("span", class_="afo-spring"), el("span", batch_line(counts, eta), class_="afo-quiet"), class_="afo-head",
    )  # fmt: skip
    return joined(top, bar)


def batch_bundle(batch_id: str, progress: Json, eta: float | None = None) -> Bundle:
    counts = batch_counts(progress)
    return {
        "text/plain": f"<Batch {plain(batch_id)}: {batch_line(counts, eta)}>",
        "text/html": page(batch_html(batch_id, counts, eta)),
    }


# -- agents, budgets, what waits for a person --------------------------------------------------------------------------


def agent_html(data: Json) -> Html:
    draft = dict(data.get("draft") or {})
    published = data.get("published")
    model = dict(draft.get("model") or {}).get("name") or "the farm's default model"
    top = el(
        "div",
        state("published" if published else "draft"), el("b", str(data.get("name"))),
        el("span", f"version {published}" if published else "not published", class_="afo-quiet"),
        el("span", f"of {data.get('owner')} · {model}", class_="afo-quiet"), class_="afo-head",
    )  # fmt: skip
    parts: list[str] = [top]
    if draft.get("description"):
        parts.append(el("div", bounded(draft["description"]), class_="afo-text afo-part"))
    if draft.get("prompt"):
        parts.append(folded("Prompt", draft["prompt"]))
    if tools := draft.get("tools"):
        rows = [
            [el("code", str(one.get("name"))), str(one.get("effect") or "once"), str(one.get("approval") or "")]
            for one in tools
        ]
        parts.append(table_of(["Tool", "Effect", "Approval"], rows))
    return joined(*parts)


def _period(data: Json) -> str:
    return "in all" if data.get("period") == "total" else f"a {data.get('period')}"


def budget_html(data: Json) -> Html:
    used, reserved, amount = (float(data.get(name) or 0.0) for name in ("spent", "reserved", "amount"))
    say = money if data.get("unit") == "usd" else number
    over = bool(amount) and used >= amount
    share = min(100.0, 100 * used / amount) if amount else 100.0
    held = min(100.0 - share, 100 * reserved / amount) if amount else 0.0
    bar = el(
        "div",
        el("i", class_=f"afo-{'bad' if over else 'good'}", style=f"width:{share:.2f}%"), el("i", class_="afo-run", style=f"width:{held:.2f}%"),
        class_="afo-bar", role="meter", aria_valuemin="0", aria_valuemax=str(amount), aria_valuenow=str(used), aria_label="used",
    )  # fmt: skip
    top = el(
        "div",
        state("over" if over else "room"), el("b", f"{data.get('scope')} {data.get('name') or ''}".strip()),
        el("span", f"{say(used)} of {say(amount)} {data.get('unit') if say is number else ''} {_period(data)}"),
        el("span", f"{say(reserved)} reserved" if reserved else "", class_="afo-quiet"), class_="afo-head",
    )  # fmt: skip
    return joined(top, bar, el("p", str(data["warning"]), class_="afo-note") if data.get("warning") else None)


KINDS = {"in_doubt": "in doubt", "approval": "waiting: approval", "question": "waiting: question", "budget": "waiting: budget",
         "simulation": "waiting: answer"}  # fmt: skip


def inbox_html(data: Json, address: str = "") -> Html:
    detail = dict(data.get("detail") or {})
    word = str(data.get("decision") or KINDS.get(str(data.get("kind")), str(data.get("kind"))))
    where = run_page(address, str(data.get("run_id") or ""))
    top = el(
        "div",
        state(word.replace("_", " "), "off" if data.get("decision") else "wait"), el("b", str(data.get("agent") or "")),
        el("code", str(data.get("inbox_id") or ""), class_="afo-quiet"), el("span", class_="afo-spring"),
        link(where, "decide at the farm page") if where else None, class_="afo-head",
    )  # fmt: skip
    parts: list[str] = [top]
    if detail.get("tool"):
        facts = " · ".join(str(one) for one in (detail.get("effect"), data.get("call"), data.get("worker")) if one)
        called = el("code", el("b", str(detail["tool"])))
        parts.append(el("div", called, el("span", facts, class_="afo-quiet"), class_="afo-head afo-part"))
        parts.append(el("pre", bounded(detail.get("arguments") or {})))
    for name in ("question", "why", "reason"):
        if detail.get(name):
            parts.append(el("div", bounded(detail[name]), class_="afo-text"))
    return joined(*parts)


def table_of(columns: list[str], rows: list[list[str]]) -> Html:
    head = el("thead", el("tr", *(el("th", name, scope="col") for name in columns)))
    return el("table", head, el("tbody", *(el("tr", *(el("td", cell) for cell in row)) for row in rows)))


# -- lists ---------------------------------------------------------------------------------------------------------


def _agent(one: Json) -> Html:
    return el("span", str(one.get("agent") or one.get("target") or ""), class_="afo-name")


def _tasks(one: Json, address: str) -> list[str]:
    where = run_page(address, str(one.get("run_id") or ""))
    name = str(one.get("task_id") or "")
    return [
        state(status_of(one)), el("code", link(where, name) if where else name), _agent(one),
        one_line(one.get("input"), 70), one_line(one.get("result") or (one.get("error") or {}).get("message") or "", 70),
    ]  # fmt: skip


def _agents(one: Json, address: str) -> list[str]:
    draft = dict(one.get("draft") or {})
    tools = ", ".join(str(tool.get("name")) for tool in draft.get("tools") or [])
    published = one.get("published")
    return [
        state("published" if published else "draft"), el("b", str(one.get("name"))), str(published or ""), str(one.get("owner")),
        tools, one_line(draft.get("description") or draft.get("prompt") or "", 70),
    ]  # fmt: skip


def _inbox(one: Json, address: str) -> list[str]:
    detail, where = dict(one.get("detail") or {}), run_page(address, str(one.get("run_id") or ""))
    word, name = KINDS.get(str(one.get("kind")), str(one.get("kind"))), str(one.get("inbox_id"))
    what = f"{detail['tool']}({one_line(detail.get('arguments') or {}, 60)})" if detail.get("tool") else ""
    return [
        state(str(one.get("decision") or word), "off" if one.get("decision") else "wait"),
        el("code", link(where, name) if where else name), _agent(one),
        one_line(what or detail.get("question") or detail.get("why") or ""), str(one.get("worker") or ""),
    ]  # fmt: skip


def _budgets(one: Json, address: str) -> list[str]:
    say = money if one.get("unit") == "usd" else number
    over = one.get("left") is not None and float(one["left"]) <= 0
    return [
        state("over" if over else "room"), f"{one.get('scope')} {one.get('name') or ''}".strip(),
        say(float(one.get("spent") or 0)), say(float(one.get("amount") or 0)), f"{one.get('unit')} {_period(one)}",
    ]  # fmt: skip


ROWS: dict[str, tuple[list[str], Callable[[Json, str], list[str]], str]] = {
    "tasks": (["Status", "Task", "Agent", "Input", "Result"], _tasks, 'no tasks yet: farm.submit("analyst", "…")'),
    "agents": (["State", "Agent", "Version", "Owner", "Tools", "Does"], _agents, "no agents yet: agentfarm agent create"),
    "inbox": (["Waits for", "Item", "Agent", "What", "Worker"], _inbox, "nothing waits for a person"),
    "budgets": (["State", "Budget", "Spent", "Limit", "Unit"], _budgets, "no budgets are set: agentfarm budget set"),
}  # fmt: skip
ONE: dict[str, Callable[..., Html]] = {
    "agents": agent_html,
    "budgets": budget_html,
    "inbox": inbox_html,
    "tasks": task_html,
}


def list_bundle(kind: str, items: Sequence[Json], address: str = "", more: bool = False) -> Bundle:
    """Return a list as a table. `more`: that there are more than are shown."""
    columns, row, empty = ROWS[kind]
    if not items:
        return {"text/plain": empty, "text/html": page(el("p", empty, class_="afo-quiet"))}
    rows = [row(one, address) for one in items]
    note = el("p", f"the first {len(items)} are shown", class_="afo-quiet") if more else None
    text = "\n".join(one_text(kind, one) for one in items)
    return {"text/plain": text, "text/html": page(table_of(columns, rows), note)}


def one_bundle(kind: str, item: Json, address: str = "") -> Bundle:
    html = ONE[kind](item, address) if kind in ("inbox", "tasks") else ONE[kind](item)
    return {"text/plain": one_text(kind, item), "text/html": page(html)}


def one_text(kind: str, one: Json) -> str:
    """Return one line."""
    if kind == "tasks":
        return task_text(one)
    words = {
        "agents": ("name", "published", "owner"), "budgets": ("scope", "name", "spent", "amount", "unit", "period"),
        "inbox": ("inbox_id", "kind", "agent", "decision"),
    }[kind]  # fmt: skip
    said = "  ".join(one_line(one[name]) for name in words if one.get(name) not in (None, ""))
    detail = dict(one.get("detail") or {}) if kind == "inbox" else {}
    return plain(f"{said}  {one_line(detail.get('tool') or detail.get('question') or '')}".rstrip())

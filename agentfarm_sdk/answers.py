"""What the farm answers, read: JSON and bytes, problems as the errors that they stand for, streams of events. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import httpx

from .errors import from_problem


def sse(lines: Iterable[str]) -> Iterator[tuple[int, str, Any]]:
    """Read server-sent events: (id or 0, event name, parsed JSON or text)."""
    seq, name, data = 0, "message", list[str]()
    for line in lines:
        if not line:
            if data:
                text = "\n".join(data)
                try:
                    value = json.loads(text)
                except ValueError:
                    value = text
                yield seq, name, value
            name, data = "message", []
            continue
        field, _, value_text = line.partition(":")
        value_text = value_text.removeprefix(" ")
        if field == "data":
            data.append(value_text)
        elif field == "event":
            name = value_text
        elif field == "id" and value_text.isdigit():
            seq = int(value_text)


def read_answer(response: httpx.Response) -> Any:
    """Return JSON, bytes, or None for nothing. Raises what the farm answers."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    if response.is_success:
        if response.status_code == 204 or not response.content:
            return None
        return response.json() if kind.endswith("json") else response.content
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict) or "detail" not in problem:
        transient = response.status_code in (502, 503, 504)
        problem = {"type": "unavailable" if transient else "error", "status": response.status_code}
        problem["detail"] = f"the farm answered {response.status_code} {response.reason_phrase}".rstrip()
    raise from_problem(problem)

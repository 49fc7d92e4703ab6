"""Reads one request, hands it to the backend, writes one answer. Whatever comes, the answer is JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import checks, processunits, systemdunits, workspaces

Op = Callable[[Any], Any]  # the checked request → the answer


def backend(words: list[str]) -> dict[str, Op]:
    """Return the operations of the backend that the command line names. Raises Refused."""
    if len(words) == 2 and words[0] == "--process" and os.path.isabs(words[1]):
        return processunits.operations(Path(words[1]))
    if words:
        raise checks.invalid("usage: helper.pyz, or helper --process STATE")
    return systemdunits.operations()


def answer_to(text: bytes, words: list[str]) -> dict[str, Any]:
    """Carry out one request."""
    try:
        ops = backend(words)
        asked = checks.request(text)
        op = ops.get(asked["op"])
        if op is None:
            raise checks.invalid("this microserver's backend has no such operation")
        return {"ok": op(asked)}
    except checks.Refused as refused:
        return {"error": {"type": refused.kind, "detail": refused.detail, "hint": refused.hint}}
    except OSError as error:
        detail = f"{type(error).__name__}: {error.strerror or error}"
        return {"error": {"type": "os", "detail": detail, "hint": "see disk and rights of the units' folder"}}


def main() -> None:
    os.umask(0o077)
    text = sys.stdin.buffer.readline(checks.MAX_REQUEST + 1)
    if not workspaces.takes_stream(text):
        text += sys.stdin.buffer.read(checks.MAX_REQUEST + 1 - len(text))
    answer = answer_to(text, sys.argv[1:])
    if not workspaces.sent:
        sys.stdout.write(json.dumps(answer))
        sys.stdout.flush()
    elif "error" in answer:  # behind half a stream: whoever reads it finds no end
        sys.stderr.write(json.dumps(answer))
        sys.exit(1)

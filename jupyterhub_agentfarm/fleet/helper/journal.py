"""Lines that a unit of systemd's wrote, read on from where somebody was: nothing is left out and nothing told twice."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from typing import Any

from .checks import LONGEST_LINE, Refused
from .programs import PATH

READ_SECONDS = 12.0
SETTLE_SECONDS = 0.1  # what is written together is told together
MOST_BYTES = 1 << 20


def read(service: str, count: int, after: str, wait: float) -> dict[str, Any]:
    """Return {lines, cursor}: the last `count` lines; or, behind a cursor, the next ones, for which it waits up to `wait` seconds."""
    words = ["journalctl", "--no-pager", "--quiet", "--all", "-o", "json", "--output-fields=MESSAGE", "-u", service]
    words += [f"--after-cursor={after}"] if after else [f"--lines={count}"]
    follows = bool(after) and wait > 0
    words += ["--follow", "--no-tail"] if follows else []
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": PATH, "LC_ALL": "C"}
    )  # fmt: skip
    try:
        rows = _rows(process, count, wait if follows else READ_SECONDS, follows)
        if not rows and process.poll():  # it ended by itself, and not well
            said = process.stderr.read(300).decode("utf-8", "replace").strip() if process.stderr else ""
            raise Refused(
                "os", f"the log cannot be read: {said or 'journalctl did not say why'}", "see the journal there"
            )
        if not (rows or follows) and process.poll() is None:  # an empty log would end by itself
            raise Refused("os", f"journalctl has not answered in {READ_SECONDS:.0f} s", "ask again: it is slow there")
    finally:
        process.kill()
        process.communicate()
    entries = [json.loads(row) for row in rows]
    cursor = str(entries[-1].get("__CURSOR", "")) if entries else after
    return {"lines": [line for entry in entries for line in _text(entry.get("MESSAGE")).split("\n")], "cursor": cursor}


def _rows(process: subprocess.Popen[bytes], count: int, seconds: float, follows: bool) -> list[bytes]:
    """Return up to so many whole lines of what journalctl writes."""
    assert process.stdout is not None
    source, held, deadline = process.stdout.fileno(), b"", time.monotonic() + seconds
    while held.count(b"\n") < count and (len(held) < MOST_BYTES or b"\n" not in held):
        if not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        piece = os.read(source, 1 << 16)
        if not piece:
            process.wait()
            break
        held += piece
        if follows:
            deadline = min(deadline, time.monotonic() + SETTLE_SECONDS)
    return held.split(b"\n")[:-1][:count]


def _text(message: Any) -> str:
    """Return an entry's text: journalctl gives what is no UTF-8 as numbers."""
    if isinstance(message, list):
        message = bytes(one for one in message if isinstance(one, int) and 0 <= one < 256).decode("utf-8", "replace")
    return str(message or "")[:LONGEST_LINE]

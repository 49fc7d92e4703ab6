"""Run a program inside a virtual machine of the lab, past its network: guest.py SOCKET COMMAND [WORD ...]. Asks QEMU's guest agent there."""

from __future__ import annotations

import base64
import json
import socket
import sys
import time
from typing import Any

SECONDS = 300.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def ask(where: str, verb: str, **arguments: Any) -> Any:
    """Return the agent's answer. Raises OSError where the machine hangs or has ended, RuntimeError with the agent's own words."""
    with socket.socket(socket.AF_UNIX) as wire:  # QEMU serves one at a time: others wait until this one is closed
        wire.settimeout(SECONDS)
        wire.connect(where)
        mark = time.monotonic_ns() % 2**31
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": mark}}
        wire.sendall(b"\xff" + json.dumps(sync).encode() + b"\n")
        with wire.makefile("rb") as lines:
            while told := lines.readline():  # what somebody before has not read comes first, up to the mark
                if told.rpartition(b"\xff")[2].startswith(b'{"return": %d}' % mark):
                    break
            else:
                raise ConnectionResetError("the machine has ended")
            wire.sendall(json.dumps({"execute": verb, "arguments": arguments}).encode() + b"\n")
            answer = json.loads(lines.readline() or b"{}")
    if "return" not in answer:
        raise RuntimeError(answer.get("error", {}).get("desc", "the machine has ended"))
    return answer["return"]


def main(where: str, program: str, *words: str) -> int:
    """Return the program's exit code; what it wrote is written here."""
    environment = [f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"]
    command = {"path": program, "arg": words, "env": environment, "capture-output": True}
    try:
        pid, wait = ask(where, "guest-exec", **command)["pid"], 0.01
        while not (told := ask(where, "guest-exec-status", pid=pid))["exited"]:
            time.sleep(wait)
            wait = min(0.2, wait * 1.5)
    except (OSError, RuntimeError) as error:
        print(f"guest.py: {error}", file=sys.stderr)
        return 255
    sys.stdout.buffer.write(base64.b64decode(told.get("out-data", "")))
    sys.stderr.buffer.write(base64.b64decode(told.get("err-data", "")))
    return int(told.get("exitcode", 128 + told.get("signal", 0)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

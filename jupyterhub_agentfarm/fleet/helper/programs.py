"""What other programs say, where one that hangs must not hang the helper: in the kernel no signal ends it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUSY_SECONDS = 0.5  # for another question that is being answered


class Silent(Exception):
    """A program that did not answer: why, in words."""


def found(name: str) -> str | None:
    """Return where a program is, also where only root looks."""
    return shutil.which(name) or shutil.which(name, path=PATH)


def said(program: str, *words: str, lock: Path, seconds: float) -> tuple[int, str]:
    """Return a program's exit code and what it wrote. Raises Silent.

    It holds `lock` for as long as it lives: while one hangs, no other is started, however often somebody asks.
    """
    held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(held):
            raise Silent(f"{Path(program).name} does not answer, and cannot be ended")
        process = subprocess.Popen(
            [program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(held,),
            env={"PATH": PATH, "LC_ALL": "C"}, text=True, errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise Silent(f"{Path(program).name} cannot be started: {error.strerror}") from None
    finally:
        os.close(held)  # the program has its own
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.communicate(timeout=BUSY_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # it stays, with the lock, until the kernel lets go of it
        raise Silent(f"{Path(program).name} did not answer in {seconds:g} s") from None
    return process.returncode, out


def _locked(held: int) -> bool:
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True

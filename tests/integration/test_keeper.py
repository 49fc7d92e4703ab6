"""The launcher's keeper with real processes: it starts, heals and ends what it started, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.launcher import keeper as keeping
from jupyterhub_agentfarm.launcher.keeper import Keeper, Part
from jupyterhub_agentfarm.launcher.up import clear_leftovers, started_at

ROOT = Path(__file__).parents[2]


async def until(look: Callable[[], object], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Made:
    """Parts whose process writes a file when it works; and what the keeper said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.keeper = Keeper(folder, self.said.append)

    def part(self, name: str, then: str = "signal.pause()", seconds: float = 15) -> Part:
        up = self.folder / f"{name}.up"
        code = f"import os, signal, subprocess, sys, time\nopen({str(up)!r}, 'w').write(str(os.getpid()))\n{then}"

        async def answers() -> bool:
            return up.exists() and up.read_text() == str(self.keeper.pids.get(name))

        return Part(name, [sys.executable, "-c", code], dict(os.environ), self.folder, answers, seconds)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Made]:
    made = Made(tmp_path)
    yield made
    for name in list(made.keeper.kept):
        await made.keeper.stop(name)


async def test_a_part_that_dies_is_started_again_and_the_person_is_told(made: Made) -> None:
    filled: list[str] = []

    async def fill() -> None:
        filled.append("again")

    await made.keeper.start(made.part("proxy"), made.part("hub"))
    made.keeper.on_restart["proxy"] = fill
    before = made.keeper.pids
    os.kill(before["proxy"], signal.SIGKILL)
    await until(lambda: filled)
    assert made.keeper.pids["proxy"] != before["proxy"] and made.keeper.pids["hub"] == before["hub"]
    assert "killed by signal 9" in made.said[0] and made.said[1] == "proxy is up again"


async def test_one_that_dies_again_and_again_is_started_ever_more_seldom(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[int] = []
    monkeypatch.setattr(keeping, "pause", lambda deaths, longest: pauses.append(deaths) or 0.01)
    await made.keeper.start(made.part("hub"))
    for count in range(1, 4):
        pid = made.keeper.pids["hub"]
        os.kill(pid, signal.SIGKILL)
        await until(
            lambda pid=pid: (
                made.keeper.pids["hub"] != pid and (made.folder / "hub.up").read_text() == str(made.keeper.pids["hub"])
            )
        )  # type: ignore[misc]
        await until(lambda count=count: made.said.count("hub is up again") == count)  # type: ignore[misc]
    assert sorted(set(pauses)) == [1, 2, 3]


async def test_a_part_that_cannot_start_is_named_with_the_reason_from_its_log(made: Made) -> None:
    with pytest.raises(StartError) as refused:
        await made.keeper.start(made.part("service", "sys.exit('this database is read-only: an error')"))
    assert refused.value.detail == "service does not start: this database is read-only: an error"
    assert "service.log" in refused.value.hint


async def test_a_part_that_never_answers_is_given_up_in_time(made: Made) -> None:
    part = made.part("hub", seconds=0.3)

    async def never() -> bool:
        return False

    with pytest.raises(StartError, match="did not answer within 0 s"):
        await made.keeper.start(Part(part.name, part.argv, part.env, part.cwd, never, 0.3))


async def test_stopping_ends_what_the_part_left_running_too(made: Made) -> None:
    child = made.folder / "child"
    then = f"open({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '300']).pid)); signal.pause()"
    await made.keeper.start(made.part("hub", then))
    await until(lambda: child.exists() and child.read_text())
    pids = [made.keeper.pids["hub"], int(child.read_text())]
    await made.keeper.stop("hub")
    await until(lambda: not any(alive(pid) for pid in pids))
    assert made.said == []


async def test_one_that_ignores_the_request_to_end_is_killed(made: Made) -> None:
    await made.keeper.start(
        made.part("hub", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()")
    )
    pid = made.keeper.pids["hub"]
    await asyncio.sleep(0)
    await made.keeper.stop("hub", seconds=0.2)
    assert not alive(pid)


async def test_a_grown_log_is_moved_aside_and_the_process_writes_on(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "LOG_BYTES", 1000)
    monkeypatch.setattr(keeping, "LOG_LOOK_SECONDS", 0.0)
    then = "n = 0\nwhile True: n += 1; print('line', n, flush=True); time.sleep(0.001)"
    await made.keeper.start(made.part("hub", then))
    await until(lambda: (made.folder / "hub.log.3").exists())
    assert (made.folder / "hub.log").stat().st_size < 200_000
    assert not (made.folder / "hub.log.4").exists()


def test_parts_end_with_a_launcher_that_is_killed_and_the_next_start_waits_for_them(tmp_path: Path) -> None:
    code = f"""
        import asyncio, sys
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from jupyterhub_agentfarm.launcher.keeper import Keeper, Part
        async def yes(): return True
        async def main():
            keeper = Keeper(Path({str(tmp_path)!r}), print)
            await keeper.start(Part("hub", ["sleep", "300"], {{"PATH": "/usr/bin:/bin"}}, Path({str(tmp_path)!r}), yes))
            print(keeper.pids["hub"], flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
    """
    launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout
    pid = int(launcher.stdout.readline())
    (tmp_path / "processes.json").write_text(f'{{"hub": [{pid}, {started_at(pid)}]}}')
    launcher.kill()
    launcher.wait(10)
    clear_leftovers(tmp_path)
    assert not alive(pid) and not (tmp_path / "processes.json").exists()


def test_a_process_that_only_has_an_old_part_s_number_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        (tmp_path / "processes.json").write_text(f'{{"hub": [{stranger.pid}, {started_at(stranger.pid) - 100}]}}')
        clear_leftovers(tmp_path, seconds=0.1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(10)

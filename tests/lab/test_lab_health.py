"""A microserver that is ill or hangs: tainted by its own figures and healed, told in time, its log read to the last line."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from typing import Any

import pytest
from labkit import HELPER, Daemon, Lab, until

from jupyterhub_agentfarm.errors import FleetError, NoMicroserverFits
from jupyterhub_agentfarm.fleet.zipped import helper_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WORKSPACES = "/var/lib/agentfarm/workspaces"
AN_HOUR_AHEAD = b"import time\nreal = time.time\ntime.time = lambda: real() + 3600.0\n"
COUNTS = "import time\nfor n in range(2000): print('line', n, flush=True)\ntime.sleep(3)\nprint('last', flush=True)\ntime.sleep(600)"


def an_hour_ahead() -> bytes:
    """Return the helper as it is, on a machine whose clock Python reads an hour ahead: the hosts of the lab share one clock."""
    made, source = io.BytesIO(), zipfile.ZipFile(io.BytesIO(helper_file()))
    with zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            text = source.read(name)
            target.writestr(name, AN_HOUR_AHEAD + text if name == "__main__.py" else text)
    return made.getvalue()


async def test_a_full_disk_and_a_wrong_clock_taint_a_microserver_until_they_are_mended(
    daemon: Daemon, lab: Lab
) -> None:
    assert not (await daemon.add(lab, 1))["silent"]
    await daemon.client.cordon("local", "the test is about another one")
    await daemon.client.set_settings({"health": {"calm_seconds": 0}})
    for words in (
        ("mkdir", "-p", WORKSPACES),
        ("mount", "-t", "tmpfs", "-o", "size=16m,mode=711", "tmpfs", WORKSPACES),
    ):
        lab("exec", 1, *words)
    try:
        lab("exec", 1, "sh", "-c", f"head -c 20000000 /dev/zero > {WORKSPACES}/filler || true")
        lab.inside(1, HELPER).write_bytes(an_hour_ahead())

        async def tainted() -> Any:
            one = await daemon.micro("micro1")
            return one if {"disk-full", "clock-off"} <= set(one["taints"]) else None

        one = await until(tainted, 60, "both taints")
        assert one["taints"]["disk-full"] == "0% of its disk is free" and "3600 s ahead" in one["taints"]["clock-off"]
        assert one["state"] == "ready" and abs(one["clock_offset"] - 3600) < 60
        with pytest.raises(NoMicroserverFits, match=r"micro1: it is tainted clock-off \(its clock is 3600 s ahead"):
            await daemon.client.place("af-x", user="agent-x")
        lab("exec", 1, "rm", f"{WORKSPACES}/filler")
        lab.inside(1, HELPER).write_bytes(helper_file())

        async def healed() -> bool:
            return not (await daemon.micro("micro1"))["taints"]

        await until(healed, 60, "the healing")
        notices = (await daemon.client.notices(0))["items"]
        assert [(one["kind"].partition(".")[2], one["taint"]) for one in notices if "taint" in one] == [
            ("tainted", "clock-off"), ("tainted", "disk-full"), ("untainted", "clock-off"), ("untainted", "disk-full"),
        ]  # fmt: skip
    finally:
        lab.inside(1, HELPER).write_bytes(helper_file())
        lab("exec", 1, "umount", "-l", WORKSPACES)


async def test_a_log_is_followed_to_its_end(daemon: Daemon, lab: Lab) -> None:
    await daemon.add(lab, 1)
    await daemon.client.cordon("local", "the test is about another one")
    unit = "af-logs"
    args = ["/usr/bin/python3", "-c", COUNTS]
    await daemon.client.start(unit, user="agent-logs", server="", args=args, env={}, demand={"memory": 64 << 20})
    told = await daemon.client.log(unit, lines=1)
    found: list[str] = list(told["lines"])

    async def read_on() -> bool:
        nonlocal told
        told = await daemon.client.log(unit, lines=300, after=told["cursor"], wait=5)
        found.extend(told["lines"])
        return found[-1:] == ["last"]

    await until(read_on, 60, "the last line")
    numbers = [int(line.split()[1]) for line in found if line.startswith("line ")]
    assert numbers == list(range(numbers[0], 2000)), "none is left out, none told twice"
    (shown,) = [one for one in await daemon.client.units() if one["unit"] == unit]
    assert shown["memory"] > 0 and shown["cpu_seconds"] > 0


@pytest.mark.parametrize("daemon", [3], indirect=True, ids=["patient"])  # the host may hang for 9 s before it is silent
async def test_a_host_that_hangs_slows_no_answer(daemon: Daemon, lab: Lab) -> None:
    await daemon.add(lab, 1)
    await daemon.client.cordon("local", "the test is about another one")
    unit = "af-before"  # what a start has changed is asked for anew
    await daemon.client.start(unit, user="agent-before", server="", args=["/bin/sleep", "600"], env={})
    began = time.time()
    lab("freeze", 1)
    its_own = asyncio.create_task(daemon.client.log(unit))
    answers = asyncio.gather(daemon.micro("micro1"), daemon.client.units())
    await asyncio.wait({its_own, answers}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert answers.done() and not its_own.done(), "who asks for all of them does not wait for the one that hangs"
    with pytest.raises(FleetError):
        await its_own

    async def silent() -> Any:
        one = await daemon.micro("micro1")
        return one if one["silent"] else None

    one = await until(silent, 60, "the silence")
    assert one["state"] == "silent" and one["since"] >= began - 1 and one["memory"] > 0, "what it said last is told"
    await daemon.client.set_lost("micro1", True, "no run there renews its lease")  # as the service says it
    assert (await daemon.micro("micro1"))["state"] == "lost"
    lab("thaw", 1)
    back = await daemon.reachable("micro1")
    assert back["since"] is None and back["state"] == "ready"
    assert [one["kind"] for one in (await daemon.client.notices(0))["items"]] == [
        "microserver.added",
        "microserver.lost",
        "microserver.returned",
    ]

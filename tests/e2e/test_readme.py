"""The README's try, as it stands there: `make farm`, the commands of its second block, the notebook's code, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from farmkit import ROOT, Farm, clean_env, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TRY = (ROOT / "README.md").read_text().partition("## Try it")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TRY, re.DOTALL)


def test_the_try_of_the_readme_works_as_it_stands_there(short_directory: Path) -> None:
    start, commands = blocks("sh")
    assert start.split() == ["make", "farm"]
    farm = Farm(short_directory / "readme", clean_env(), database=f"sqlite:///{short_directory}/readme/farm.sqlite")
    log = short_directory / "readme.log"
    with log.open("wb") as out:
        farm.launcher = subprocess.Popen(
            [*start.split(), f"STATE={farm.state}", "PORT=0"], cwd=ROOT, env=farm.env, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        marker = farm.state / "ready.json"
        until(lambda: marker.exists() or farm.launcher.poll() is not None, 150, "the farm is up")
        assert farm.launcher.poll() is None, log.read_text()[-4000:]
        until(lambda: "Ctrl-C" in log.read_text(), 10, "the first screen is whole")
        screen = log.read_text()
        assert farm.ready["public_url"] in screen and farm.passwords()["admin"]["admin"] in screen
        until(lambda: "done: " in log.read_text(), 60, "the first task was shown")
        client = json.loads((farm.state / "client.json").read_text())
        env = farm.env | {"AGENTFARM_URL": client["url"], "AGENTFARM_TOKEN": client["token"]}
        for line in commands.strip().splitlines():
            said = subprocess.run(
                shlex.split(line), cwd=ROOT, env=env, capture_output=True, text=True, timeout=360, check=False
            )
            assert said.returncode == 0, f"{line}\n{said.stdout}\n{said.stderr}"
            if "17*23" in line:
                assert "391" in said.stdout
        [notebook] = blocks("python")
        admin = farm.person("admin")
        show_all = (
            f"shell = get_ipython(); shell.ast_node_interactivity = 'all'; shell.run_cell({notebook!r}).raise_error()"
        )
        printed = admin.server("admin").run(show_all, 150)
        assert str(12345 * 678) in re.sub(r"\D", "", printed) and "succeeded" in printed, printed
        until(lambda: not farm.busy(), 60, "no run is under way any more")
    finally:
        os.killpg(farm.launcher.pid, signal.SIGINT)  # as the terminal does for Ctrl-C
        try:
            farm.launcher.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(farm.launcher.pid, signal.SIGKILL)
            raise
    until(lambda: farm.leftovers() == [], 10, "nothing outlives Ctrl-C")

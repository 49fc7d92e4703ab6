"""What `agentfarm up` is asked for, as the launcher gets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyterhub_agentfarm.cli import local
from jupyterhub_agentfarm.cli.main import main
from jupyterhub_agentfarm.launcher.up import Wish


@pytest.mark.parametrize(
    ("argv", "env", "standby"),
    [((), "", False), (("--standby",), "", True), ((), "1", True), ((), "0", False), (("--standby",), "0", True)],
)
def test_a_standby_is_wished_for_by_the_flag_or_by_the_environment(
    argv: tuple[str, ...], env: str, standby: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes: list[Wish] = []
    monkeypatch.setattr(local, "up", lambda wish: wishes.append(wish) or 0)
    monkeypatch.setenv("AGENTFARM_STANDBY", env)
    assert main(["up", "--state", str(tmp_path), *argv]) == 0
    assert [(one.directory, one.standby) for one in wishes] == [(tmp_path, standby)]


def test_a_trial_with_a_standby_beside_sqlite_is_refused_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "--standby"]) == 2
    said = capsys.readouterr().err
    assert "SQLite cannot have a standby" in said and "--database postgresql" in said

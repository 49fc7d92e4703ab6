"""A machine joins: what the farm would refuse in the end is refused before anybody signs in there."""

from __future__ import annotations

from typing import Any

import pytest

from jupyterhub_agentfarm.cli.main import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Micro 1", "--ssh", "root@10.0.0.11"], "'Micro 1' is no name for a microserver"),
        (["local", "--ssh", "root@10.0.0.11"], "local is the farm's own machine"),
        (["micro1", "--ssh", "root@10.0.0.11", "--label", "a zone=b"], "these are no labels"),
        (["micro1", "--ssh", "root@10.0.0.11", "--label", "=b"], "it has no name"),
        (["micro1", "--ssh", "root@10.0.0.11", "--key", "nowhere/id"], "there is no file nowhere/id"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("AGENTFARM_URL", "http://127.0.0.1:1")  # nobody is asked
    monkeypatch.setenv("AGENTFARM_TOKEN", "t")
    try:
        code = main(["microserver", "add", *words])
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    assert code == 2 and said in capsys.readouterr().err

"""What the command line says of a mistake that is nobody's of the farm."""

from __future__ import annotations

import argparse
import errno
import os
from typing import Any

import pytest

from jupyterhub_agentfarm.cli import main as cli


def test_a_disk_that_is_full_is_told_in_a_sentence_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/archive")

    class Parser:
        def parse_args(self, _argv: Any) -> argparse.Namespace:
            return argparse.Namespace(alone=True, act=act)

    monkeypatch.setattr(cli, "parser", Parser)
    assert cli.main([]) == cli.FAILED
    said = capsys.readouterr().err
    assert "No space left on device: '/cache/archive'" in said and "See its disk" in said and "Traceback" not in said

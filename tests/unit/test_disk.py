"""When the ledger's disk has too little room for new runs."""

from __future__ import annotations

import pytest

from jupyterhub_agentfarm.disk import shortage

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "total", "short"),
    [
        (0, GIB, True),
        (GIB // 25, GIB, True),
        (GIB // 19, GIB, False),
        (GIB, 100 * GIB, True),
        (3 * GIB, 100 * GIB, False),
    ],
)
def test_less_than_a_twentieth_and_less_than_two_gigabytes_is_too_little(free: int, total: int, short: bool) -> None:
    assert bool(shortage(free, total)) is short

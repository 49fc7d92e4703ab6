"""Fixtures of the lab: hosts for the session, mended between tests; a daemon that knows those that a test adds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

# Before anybody reads it: an emulated CPU computes ten times slower, and waits as well as any.
if os.environ.get("AGENTFARM_LAB") == "vm":
    os.environ.setdefault("AGENTFARM_SLOWNESS", "6")

from labkit import ALIVE, HERE, SLOWNESS, Daemon, Lab, skip_without_lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests more time on slow hosts."""
    for item in items:
        limit = item.get_closest_marker("timeout")
        if SLOWNESS > 1 and limit and item.path.parent == HERE:
            item.add_marker(pytest.mark.timeout(limit.args[0] * SLOWNESS))


@pytest.fixture(scope="session")
def booted() -> Iterator[Lab]:
    skip_without_lab()
    lab = Lab()
    try:
        try:
            lab.need(1)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"the lab of microservers cannot be built here: {error}")
        yield lab
    finally:
        lab.down()


@pytest.fixture
def lab(booted: Lab) -> Iterator[Lab]:
    """At least one microserver (`lab.need(3)` for more); what a test did to power and lines is undone behind it."""
    yield booted
    booted.mend()


@pytest.fixture
async def daemon(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[Daemon]:
    made = Daemon(alive=getattr(request, "param", ALIVE))
    try:
        await made.start()
        yield made
    finally:
        lab.mend()
        await made.stop()

"""Fixtures of the lab: hosts for the session, mended between tests; a daemon that knows those that a test adds."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
from labkit import ALIVE, Daemon, Lab, skip_without_lab


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

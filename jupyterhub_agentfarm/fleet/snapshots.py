"""Workspaces kept as files on this machine: what an operator falls back on when a microserver is lost for good.

<folder>/<workspace>/<UTC time>.tar and beside it .json: {at, microserver, digest, bytes, entries, changed}. The newest ones are kept. A server may run
meanwhile: each file is as it was when it was read, and `changed` counts those that were being written.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ..errors import FleetError, NotFound
from . import copying
from .helper.processes import write_json
from .helper.workspaces import LAST
from .microserver import AnyMicroserver

KEPT = 3  # of a workspace
NAME = re.compile(r"\d{8}T\d{6}Z")
FREE = 1 << 30  # bytes that stay free on this disk


class Snapshots:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locks: dict[str, asyncio.Lock] = {}  # of a workspace: one is taken at a time

    def listed(self, workspace: str) -> list[dict[str, Any]]:
        """Return what there is of a workspace, the newest first: {name, at, bytes, entries, digest, changed, microserver}."""
        names = sorted((path.stem for path in (self.folder / workspace).glob("*.json")), reverse=True)
        there = [name for name in names if NAME.fullmatch(name) and self._path(workspace, name, "tar").exists()]
        return [{"name": name, **json.loads(self._path(workspace, name, "json").read_text())} for name in there]

    def find(self, workspace: str, name: str) -> dict[str, Any]:
        """Return one by its name, or the `latest`. Raises NotFound."""
        known = self.listed(workspace)
        found = next((one for one in known if name in ("latest", one["name"])), None)
        if found is None:
            there = ", ".join(one["name"] for one in known) or "none"
            raise NotFound(f"there is no snapshot {name} of {workspace}", hint=f"there are: {there}")
        return found

    async def save(self, micro: AnyMicroserver, workspace: str) -> dict[str, Any]:
        """Take one; return it. Raises FleetError, Invalid: nothing is kept of it then."""
        async with self._locks.setdefault(workspace, asyncio.Lock()):
            try:
                return await self._save(micro, workspace)
            except OSError as error:
                raise FleetError(
                    f"the snapshot of {workspace} cannot be kept: {error.strerror or error}",
                    hint="see disk and rights of snapshots/",
                ) from error

    async def _save(self, micro: AnyMicroserver, workspace: str) -> dict[str, Any]:
        size = await micro.ask("measure", workspace=workspace)
        if not size["there"]:
            raise NotFound(f"{workspace} has no files on {micro.name} yet")
        (self.folder / workspace).mkdir(mode=0o700, parents=True, exist_ok=True)
        if size["bytes"] + FREE > shutil.disk_usage(self.folder).free:
            raise FleetError(
                f"the snapshot of {workspace} does not fit on this disk",
                hint="make room, or remove old ones in snapshots/",
            )
        name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for left in (self.folder / workspace).glob("*.coming"):  # of a daemon that died
            left.unlink()
        path = self._path(workspace, name, "coming")
        try:
            with await asyncio.to_thread(open, path, "wb", opener=lambda at, flags: os.open(at, flags, 0o600)) as sink:
                async with aclosing(copying.read(micro, workspace)) as stream:
                    async for chunk in stream:
                        await asyncio.to_thread(sink.write, chunk)  # a slow disk holds up nobody else
                await asyncio.to_thread(sink.flush)
                await asyncio.to_thread(os.fsync, sink.fileno())
            told = {"at": time.time(), "microserver": micro.name, **await asyncio.to_thread(said_last, path)}
            write_json(self._path(workspace, name, "json"), told)  # without its archive it counts for nothing
            os.replace(path, self._path(workspace, name, "tar"))
        finally:
            path.unlink(missing_ok=True)
        self._prune(workspace)
        return {"name": name, **told}

    def _prune(self, workspace: str) -> None:
        """Keep the newest, and no half of one."""
        kept = {one["name"] for one in self.listed(workspace)[:KEPT]}
        for path in (self.folder / workspace).iterdir():
            if NAME.fullmatch(path.stem) and path.stem not in kept:
                path.unlink()

    async def read(self, workspace: str, name: str) -> AsyncGenerator[bytes, None]:
        """Return one as a stream. Raises FleetError."""
        try:
            with await asyncio.to_thread(open, self._path(workspace, name, "tar"), "rb") as source:
                while chunk := await asyncio.to_thread(source.read, copying.CHUNK):
                    yield chunk
        except OSError as error:
            raise FleetError(
                f"the snapshot {name} of {workspace} cannot be read: {error.strerror or error}",
                hint="name another one: agentfarm microserver lost NAME --restore SNAPSHOT",
            ) from error

    def _path(self, workspace: str, name: str, kind: str) -> Path:
        if not NAME.fullmatch(name):
            raise NotFound(f"{name[:50]!r} is no name of a snapshot", hint="e.g. 20300131T180000Z, or latest")
        return self.folder / workspace / f"{name}.{kind}"


def said_last(path: Path) -> dict[str, Any]:
    """Return what an archive's last member says. Raises FleetError: it has none."""
    try:
        with tarfile.open(path) as archive:
            content = archive.extractfile(LAST)
            said = json.loads(content.read()) if content else None
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise FleetError("the snapshot broke off", hint="take it again") from error
    if not isinstance(said, dict):
        raise FleetError("the snapshot broke off", hint="take it again")
    return said

"""A workspace on its way: from one helper's output to another's input, through this process, or to a file and back.

What arrives is compared by whoever takes it (helper/workspaces.py); a stream that breaks off is refused there and leaves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from agentfarm_sdk.waiting import within

from ..errors import FleetError
from .microserver import AnyMicroserver

CHUNK = 1 << 18
SILENT_SECONDS = 120.0  # without a byte, either way
COMPARE_SECONDS = 1800.0  # for what has arrived to be read again there


async def copy(
    source: AnyMicroserver, to: AnyMicroserver, workspace: str, uid: int | None, told: Callable[[int, int], None]
) -> dict[str, Any]:
    """Bring a workspace from one microserver to another; return {digest, bytes, entries}, digest "" where there was none.

    `told(bytes so far, bytes of files)` is called on the way. Raises FleetError, Invalid: nothing is changed then.
    """
    size = await source.ask("measure", workspace=workspace)
    if not size["there"]:
        return {"digest": "", "bytes": 0, "entries": 0}
    async with aclosing(read(source, workspace)) as stream:
        return await put(to, workspace, uid, size, stream, lambda so_far: told(so_far, size["bytes"]))


async def read(source: AnyMicroserver, workspace: str) -> AsyncGenerator[bytes, None]:
    """Return a workspace as a stream, in chunks. Raises FleetError, Invalid."""
    async with source.running() as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(source.request("snapshot", workspace=workspace) + b"\n")
        process.stdin.write_eof()
        said = asyncio.create_task(process.stderr.read())
        try:
            chunk = await _soon(process.stdout.read(CHUNK), source)
            if chunk.startswith(b"{"):  # no archive: why not
                source.answer(chunk + await _soon(process.stdout.read(), source))
            while chunk:
                yield chunk
                chunk = await _soon(process.stdout.read(CHUNK), source)
            code, words = await _soon(process.wait(), source), await said
        finally:
            said.cancel()
    if code != 0:
        if words.startswith(b"{"):
            source.answer(words)
        last = words.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {code}"]
        raise FleetError(f"the workspace {workspace} could not be read on {source.name}: {last[0][:300]}")


async def put(
    to: AnyMicroserver, workspace: str, uid: int | None, size: dict[str, Any], stream: AsyncIterator[bytes],
    told: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    """Put a stream in the place of a workspace; return {digest, bytes, entries} as they were read again there. Raises FleetError, Invalid."""
    asked = {"workspace": workspace, "uid": uid, "bytes": size["bytes"], "entries": size["entries"]}
    async with to.running() as process:
        assert process.stdin and process.stdout and process.stderr
        answer, said = asyncio.create_task(process.stdout.read()), asyncio.create_task(process.stderr.read())
        try:
            await _pour(process.stdin, to.request("restore", **asked) + b"\n", stream, to, told)
            out = await within(answer, COMPARE_SECONDS) or await said
        except asyncio.TimeoutError:
            raise FleetError(f"{to.name} does not answer", hint="see its load and its disk", retry_after=5) from None
        finally:
            answer.cancel()
            said.cancel()
    return to.answer(out)


async def _pour(
    sink: asyncio.StreamWriter, first: bytes, stream: AsyncIterator[bytes], to: AnyMicroserver, told: Callable[[int], None]
) -> None:  # fmt: skip
    so_far = 0
    try:
        sink.write(first)
        async for chunk in stream:
            sink.write(chunk)
            await _soon(sink.drain(), to)
            so_far += len(chunk)
            told(so_far)
        sink.close()
        await sink.wait_closed()
    except ConnectionError:
        return  # it takes no more: its answer says why


async def _soon(waiting: Any, micro: AnyMicroserver) -> Any:
    try:
        return await within(waiting, SILENT_SECONDS)
    except asyncio.TimeoutError:
        raise FleetError(f"{micro.name} does not answer", hint="see its load and its disk", retry_after=5) from None

"""Whatever the API's own description allows, and much that it forbids, is answered as described, and never by a 5xx."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from servicekit import service
from test_service_rights import things

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method,allow_header_conformance"
STREAMS = r"/(worker|events|tokens|metrics)$"  # they do not end, or are no JSON


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True], ids=["any", "known"])
async def test_the_service_answers_as_its_description_says(
    database_url: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`known`: the ids in paths are those of things that are there, and their owner asks; else an operator."""
    async with service(tmp_path, database_url, monkeypatch) as farm:
        names = await things(farm)
        config = tmp_path / "schemathesis.toml"
        config.write_text(
            "[parameters]\n" + "".join(f'"path.{name}" = "{value}"\n' for name, value in names.items() if known)
        )
        command = [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{farm.url}/api/v1/openapi.json",
            "--url", f"{farm.url}/api/v1", "--header", f"Authorization: token {'ann' if known else 'operator'}", "--exclude-path-regex", STREAMS,
            "--checks", CHECKS, "--phases", "coverage,fuzzing,stateful", "--max-examples", "5", "--max-time", "8", "--seed", "1",
            "--no-shrink", "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "30",
        ]  # fmt: skip
        if known:
            command += ["--exclude-method", "DELETE"]  # what is there stays there
        asking = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await asyncio.wait_for(asking.communicate(), 180)
        assert asking.returncode == 0, said.decode()[-12000:]
        assert (await farm.ask("ann", "GET", "/health")).status_code == 200

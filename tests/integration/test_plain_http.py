"""Any language can be a worker: a whole run over plain HTTP, by a program that has only Python's standard library."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from servicekit import service

HERE = Path(__file__).parent


async def test_a_worker_of_the_standard_library_alone_does_a_run(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, database_url, monkeypatch) as farm:
        await farm.agent(tools=[{"name": "calculator", "source": "builtin"}])
        task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "What is 17*23?"})
        farm.model.script += [("calculator", {"expression": "17*23"}), "It is 391."]
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(HERE / "plain_worker.py"), farm.url, "agent-analyst",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(worker.communicate(), 60)
        assert worker.returncode == 0, err.decode()
        run = out.decode().strip()
        assert run == task["run_id"] and (await farm.ok("ann", "GET", f"/runs/{run}/verify"))["ok"]
        done = await farm.ok("ann", "GET", f"/tasks/{task['task_id']}")
        assert (done["status"], done["result"]) == ("succeeded", "It is 391.")


def test_the_page_shows_every_request_that_such_a_worker_makes() -> None:
    page = (HERE.parents[1] / "docs" / "protocol.md").read_text()
    made = set(re.findall(r'"(?:GET|POST|PUT)", f?"(/[^"?]+)', (HERE / "plain_worker.py").read_text()))
    assert len(made) >= 7
    for path in made:
        assert re.sub(r"\{.*?\}", "*", path) in re.sub(r"\$[A-Z0-9]+", "*", page), path

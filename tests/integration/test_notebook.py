"""A real kernel that speaks to the real service: magics, what is shown and goes on being shown, runs opened as notebooks."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import nbformat
import pytest
from nbclient import NotebookClient
from servicekit import Service, service

from agentfarm_sdk import Agent, Farm, open_run, tool
from agentfarm_sdk.ledger import FarmLedger
from agentfarm_sdk.loop import Loop
from agentfarm_sdk.model import GatewayModel
from agentfarm_sdk.tools.registry import in_thread
from jupyterhub_agentfarm.cli.main import main
from jupyterhub_agentfarm.labserver import forward
from jupyterhub_agentfarm.labserver.kernelsocket import KernelSocket

T = TypeVar("T")
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
    " [click](javascript:document.title='owned') \x1b[31mred"
)
LEFT = """
import threading, time
deadline = time.monotonic() + 60
def left():
    return [one.name for one in threading.enumerate() if one.name.startswith("agentfarm-")]
while left() and time.monotonic() < deadline:
    time.sleep(0.1)
left()
"""


@pytest.fixture
async def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as farm:
        monkeypatch.setenv("AGENTFARM_URL", farm.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
            monkeypatch.setenv(name, str(tmp_path / name.lower()))
        farm.parts.public_page = "http://farm.test/services/agentfarm/"
        await farm.agent(tools=["calculator"])
        enough = asyncio.Event()
        working = asyncio.create_task(works(farm, enough))
        yield farm
        enough.set()
        await working


async def there(fn: Callable[..., T], *args: Any) -> T:
    """Call what blocks in another thread: the service is in this one."""
    return await asyncio.wait_for(in_thread(lambda: fn(*args)), 60)  # type: ignore[no-any-return]


async def works(farm: Service, enough: asyncio.Event) -> None:
    """Do the runs of the agent `analyst` with the real loop, as its server's worker does, one after the other."""
    while not enough.is_set():
        claim = await farm.claim(wait=0.3)
        if claim is None:
            continue
        ledger = FarmLedger(farm.url, claim["run"], claim["fence"], claim["token"])
        try:
            await Loop(ledger, GatewayModel(claim["run"], ledger.fence, ledger.request)).run()
        finally:
            await ledger.close()


def notebook(*cells: str) -> Any:
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )


async def executed(made: Any, folder: Path, *, errors: bool = False) -> Any:
    """Execute a notebook in a real kernel."""
    client = NotebookClient(made, timeout=90, allow_errors=errors, resources={"metadata": {"path": str(folder)}})
    await client.async_execute()
    return made


def text(cell: Any) -> str:
    """Return what a cell shows, as plain text."""
    said = []
    for output in cell.outputs:
        said.append(
            output.get("text") or output.get("data", {}).get("text/plain") or " ".join(output.get("traceback", []))
        )
    return "\n".join(said)


def markup(cell: Any) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


async def test_an_agent_is_asked_by_a_cell_shown_while_it_works_and_its_result_lands_in_the_variable(
    farm: Service, tmp_path: Path
) -> None:
    farm.model.script[:] = [("calculator", {"expression": "17*23"}), "It is 391.", "Hello, Ada."]
    made = await executed(
        notebook(
            "%load_ext agentfarm_sdk",
            "%%agent analyst --out answer\nWhat is 17*23?",
            "print(answer)",
            "%%agent analyst --no-wait --out greeting\nGreet Ada.",
            "greeting.result()",
            "%agentfarm tasks",
            "%agentfarm agents",
            "%agentfarm inbox",
            "%agentfarm status",
            "%agentfarm help",
        ),
        tmp_path,
    )
    _, asked, printed, _, greeted, tasks, agents, inbox, status, told = made.cells
    assert "succeeded" in markup(asked) and "calculator" in markup(asked) and "It is 391." in markup(asked)
    assert "<details" in markup(asked) and "http://farm.test/services/agentfarm/runs/run-" in markup(asked)
    assert len(asked.outputs) == 1, "one output, drawn again and again"
    assert text(printed).strip() == "It is 391." and text(greeted) == "'Hello, Ada.'"
    assert markup(tasks).count("task-") >= 2 and "analyst" in markup(agents) and "calculator" in markup(agents)
    assert "nothing waits for a person" in text(inbox) and "ok: AgentFarm" in text(status)
    assert "%agentfarm submit AGENT" in text(told)


async def test_what_goes_wrong_is_one_sentence_and_no_traceback(farm: Service, tmp_path: Path) -> None:
    cells = {
        "%%agent nobody\nHello": "nobody",
        "%%agent analyst --mode fast\nHello": "invalid choice: 'fast'",
        "%%agent analyst --out 1x\nHello": "no name of a variable",
        "%agentfarm task": "say which one: %agentfarm task TASK",
        "%agentfarm fly": "%agentfarm has no 'fly'",
        "%agentfarm run run-none": "run-none",
        '%agentfarm submit analyst "open': "the line cannot be read",
    }
    made = await executed(notebook("%load_ext agentfarm_sdk", *cells), tmp_path, errors=True)
    for cell, expected in zip(made.cells[1:], cells.values(), strict=True):
        assert expected in text(cell) and len(text(cell).strip().splitlines()) == 1, cell
        assert "Traceback" not in text(cell)


@pytest.fixture
async def socket(farm: Service, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The farm as kernels of a person's server reach it: by a socket, with no token of their own."""
    passing = forward.Service(farm.url, "ann-server", logging.getLogger("test"))
    kernels = KernelSocket(passing, tempfile.gettempdir(), lambda: None)
    monkeypatch.setenv("AGENTFARM_SOCKET", kernels.start())
    monkeypatch.delenv("AGENTFARM_TOKEN")
    yield
    await kernels.stop()
    await passing.close()


async def test_in_a_persons_server_a_task_that_is_shown_goes_on_being_shown_and_so_does_a_batch(
    farm: Service, socket: None, tmp_path: Path
) -> None:
    farm.model.script[:] = [("calculator", {"expression": "6*7"}), "It is 42.", "one", "two", "three", "four"]
    made = await executed(
        notebook(
            "from agentfarm_sdk import Farm, watch\nfarm = Farm()",
            "task = farm.submit('analyst', 'What is 6*7?')\ntask",
            "task.wait()\nwatch(task)",
            "list(farm.map('analyst', ['a', 'b', 'c']))",
            "farm.run(task.run_id)",
            "batch = farm.submit_many('analyst', ['d'])\nwatch(batch)\nlist(batch.values())",
            LEFT,
        ),
        tmp_path,
    )
    _, shown, watched, mapped, run, batch, threads = made.cells
    assert "It is 42." in markup(shown), "the output of a cell that ended long ago"
    assert "It is 42." in markup(watched) and "391" not in markup(watched)
    bar, results = mapped.outputs
    assert 'role="progressbar"' in bar["data"]["text/html"] and "3 of 3" in bar["data"]["text/html"]
    assert sorted(json.loads(results["data"]["text/plain"].replace("'", '"'))) == ["one", "three", "two"]
    assert "1 of 1" in markup(batch) and "four" in text(batch)
    assert "calculator" in markup(run) and text(threads).strip() == "[]"


async def test_a_notebook_s_run_with_a_live_lease_marks_its_person_s_server_as_used_and_a_refused_one_does_not(
    farm: Service,
) -> None:
    await farm.agent("other")  # the analyst is at work here
    await farm.ok("ann", "POST", "/tasks", {"target": "other", "input": "x"})
    claim = await farm.claim("other", wait=15)
    assert claim is not None
    marks: list[str] = []
    passing = forward.Service(farm.url, "ann-server", logging.getLogger("test"))
    kernels = KernelSocket(passing, tempfile.gettempdir(), lambda: marks.append("used"))
    transport = httpx.AsyncHTTPTransport(uds=kernels.start())
    headers = {"Authorization": f"token {claim['token']}"}
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://farm/api/v1", headers=headers) as http:
            path = f"/runs/{claim['run']}/heartbeat"
            assert (await http.post(path, json={"fence": claim["fence"] + 1})).status_code == 409 and not marks
            assert (await http.post(path, json={"fence": claim["fence"]})).status_code == 200
    finally:
        await kernels.stop()
        await passing.close()
    assert marks == ["used"]


CHROMIUM = next((one for one in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(one).exists()), "")


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: install the package chromium (make test does so as root)")
async def test_what_an_agent_said_does_nothing_in_a_real_browser(farm: Service, tmp_path: Path) -> None:
    from nbconvert import HTMLExporter
    from playwright.async_api import async_playwright

    farm.model.script[:] = [("calculator", {"expression": HOSTILE}), HOSTILE]
    cells = (
        f"%%agent analyst --out said\n{HOSTILE}",
        "%agentfarm tasks",
        "Farm().task(next(Farm().tasks())['task_id'])",
    )
    made = await executed(notebook("%load_ext agentfarm_sdk\nfrom agentfarm_sdk import Farm", *cells), tmp_path)
    written, _ = HTMLExporter().from_notebook_node(made)
    (tmp_path / "page.html").write_text(written)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = await browser.new_page()
        await page.route(
            "**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort()
        )
        await page.goto((tmp_path / "page.html").as_uri())
        for fold in await page.locator(".agentfarm summary").all():
            await fold.click()
        assert "owned" not in await page.title()
        assert await page.locator(".agentfarm :is(img, script, iframe, [onerror])").count() == 0
        assert await page.locator(".agentfarm a:not([href^='http://farm.test/'])").count() == 0
        said = page.locator(".agentfarm .afo-result").first
        assert await said.inner_text() == HOSTILE.replace("\x1b", "\\x1b"), "letter by letter"
        assert await page.locator(".agentfarm li pre").first.is_visible()
        await browser.close()


async def test_a_run_opened_as_a_notebook_replays_in_a_real_kernel_and_from_a_bundle_without_a_farm(
    farm: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm.model.script[:] = [("calculator", {"expression": "17*23"}), HOSTILE]
    task = await there(Farm().submit, "analyst", "What is 17*23?")
    await there(task.wait)
    monkeypatch.chdir(tmp_path)
    assert await there(main, ["run", "notebook", task.run_id, "-o", "live.ipynb"]) == 0
    assert await there(main, ["run", "notebook", task.run_id, "-o", "kept.ipynb", "--bundle"]) == 0
    assert await there(main, ["run", "notebook", "kept.zip", "-o", "again.ipynb"]) == 0

    made = await executed(nbformat.read(tmp_path / "live.ipynb", as_version=4), tmp_path)
    nbformat.validate(made)
    first, second, check = made.cells[2:]
    assert "same" in markup(first) and "calls made again with the same result: 1" in markup(first)
    assert (
        "What the model was shown" in markup(first)
        and "&lt;img src=x" in markup(second)
        and "<img" not in markup(second)
    )
    assert "the same: 2 steps, 1 calls made again, 0 taken as recorded" in text(check)

    for name in ("AGENTFARM_URL", "AGENTFARM_TOKEN"):
        monkeypatch.delenv(name)
    for name in ("kept", "again"):
        alone = await executed(nbformat.read(tmp_path / f"{name}.ipynb", as_version=4), tmp_path)
        assert "the same: 2 steps, 1 calls made again" in text(alone.cells[-1])

    await farm.ok("ann", "PATCH", "/agents/analyst", {"draft": {"prompt": "You guess."}}, **{"If-Match": '"1"'})
    monkeypatch.setenv("AGENTFARM_URL", farm.url)
    monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
    differs = await there(lambda: open_run(task.run_id, version="draft"))
    assert differs.divergence is not None and "the prompt is another one" in repr(differs.check())
    assert "-You calculate." in repr(differs.check()) and "+You guess." in repr(differs.step(0))
    assert "not held against today" in repr(differs.step(1)) and not differs.check()


async def test_a_replay_calls_what_only_reads_with_your_code_and_never_an_effect(farm: Service) -> None:
    made: list[str] = []

    @tool(effect="read")
    def price(item: str) -> str:
        """Price."""
        return "1.00"

    @tool(effect="once")
    def order(item: str) -> str:
        """Order."""
        made.append(item)
        return "ordered"

    farm.model.script[:] = [("price", {"item": "pear"}), ("order", {"item": "pear"}), "Done."]
    agent = Agent("shop", prompt="Sell.", tools=[price, order], mode="live")
    run = await there(agent.run, "A pear")
    assert made == ["pear"]
    same = await there(lambda: open_run(run.run_id, tools=[price, order]))
    assert await there(lambda: repr(same.check())) == "the same: 3 steps, 1 calls made again, 1 taken as recorded"
    assert made == ["pear"], "an effect is never made again"
    assert "same" in (await there(same.step(0)._repr_mimebundle_))["text/html"]

    @tool(name="price", effect="read")
    def dearer(item: str) -> str:
        """Price."""
        return "2.00"

    other = await there(lambda: open_run(run.run_id, tools=[dearer]))
    assert await there(lambda: [one in repr(other.step(0)) for one in ("-1.00", "+2.00")]) == [True, True]
    assert "not held against today's code" in repr(other.step(1)) and made == ["pear"]

    await there(lambda: Farm().erase(run.run_id, "privacy", everything=True))
    gone = await there(lambda: open_run(run.run_id, tools=[price, order]))
    shown = (await there(gone.step(0)._repr_mimebundle_))["text/html"]
    assert "cannot be held against anything" in repr(gone.check()) and not gone.check() and "was erased" in shown


async def test_a_kernel_of_a_persons_server_has_the_magics_from_the_start_and_imports_nothing_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from traitlets.config import Config, PyFileConfigLoader

    for name in ("AGENTFARM_URL", "AGENTFARM_TOKEN", "AGENTFARM_AGENT", "AGENTFARM_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    file = Path(__file__).parents[2] / "scripts" / "ipython_kernel_config.py"
    assert PyFileConfigLoader(str(file)).load_config() == Config()
    profile = tmp_path / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / file.name).write_text(file.read_text())  # where a kernel reads it; the wheel puts it into etc/ipython
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("AGENTFARM_SOCKET", str(tmp_path / "nobody.sock"))
    made = await executed(
        notebook(
            "import sys\n['agentfarm_sdk' in sys.modules, 'agentfarm_sdk.farm' in sys.modules]",
            "%agentfarm help",
            "%agentfarm agents",
        ),
        tmp_path,
        errors=True,
    )
    first, told, away = made.cells
    assert text(first) == "[True, False]" and "%%agent NAME" in text(told)
    assert "cannot be reached" in text(away) and "Traceback" not in text(away)

"""The widgets in a real kernel: live while a run goes on, steered, and gone without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from servicekit import Service, service
from test_notebook import LEFT, executed, markup, notebook, text, there, works

from agentfarm_sdk import Farm, FarmView, RunView
from agentfarm_sdk.errors import Invalid

pytest.importorskip("ipywidgets", reason="the extra `widgets` is not installed")


@pytest.fixture
async def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as farm:
        monkeypatch.setenv("AGENTFARM_URL", farm.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        await farm.agent(tools=["calculator"])
        yield farm


@pytest.fixture
async def working(farm: Service) -> AsyncIterator[Service]:
    enough = asyncio.Event()
    work = asyncio.create_task(works(farm, enough))
    yield farm
    enough.set()
    await work


def shown(view: RunView) -> str:
    return "".join(one.value for one in (view._head, *view._steps.children, view._foot))


async def test_a_run_is_drawn_as_it_goes_on_asked_on_and_gone_when_closed(working: Service) -> None:
    working.model.script[:] = [("calculator", {"expression": "17*23"}), "It is <b>391</b>.", "As I said."]

    def look() -> None:
        view = RunView(Farm().submit("analyst", "What is 17*23?"))
        assert view.wait(60) and view.status == "succeeded"
        assert "It is &lt;b&gt;391&lt;/b&gt;." in shown(view) and "calculator" in shown(view)
        assert len(view._steps.children) == 2 and view._cancel.layout.display == "none" and not view._ask.disabled
        view._more.value = "Sure?"
        view._ask.click()
        assert view.next is not None and view.next.wait(60), view._message.value
        assert "As I said." in shown(view.next) and "mode" not in view.next._message.value
        view.close()
        assert view.widget.comm is None and view.next.widget.comm is None

    await there(look)


async def test_a_run_is_cancelled_paused_and_resumed_and_what_cannot_be_is_a_sentence(farm: Service) -> None:
    def steer() -> None:
        view = RunView(Farm().submit("analyst", "What is 17*23?"))
        view._pause.click()
        assert (
            view._message.value == ""
            and view._following._farm.task(view._following.data["task_id"]).status == "waiting"
        )  # type: ignore[index, attr-defined]
        view._resume.click()
        view._ask.click()
        assert "there is nothing to ask" in view._message.value
        view._cancel.click()
        assert view.wait(60) and view.status.startswith("cancelled")
        assert view._message.value == ""
        view.close()

    await there(steer)


async def test_the_farm_in_a_cell_asks_lists_and_shows_the_chosen_run(working: Service) -> None:
    working.model.script[:] = ["It is 391."]

    def look() -> None:
        view = FarmView()
        view._submit.click()
        assert "there is nothing to ask" in view._message.value
        view._input.value = "What is 17*23?"
        view._submit.click()
        assert view.run is not None and view.run.wait(60) and "It is 391." in shown(view.run)
        assert [name for _, name in view._list.options] == [view._list.value]
        view.close()
        assert view._follower.wait(30) and view.run.widget.comm is None

    await there(look)


async def test_a_cell_that_runs_again_leaves_nothing_behind(working: Service, tmp_path: Path) -> None:
    working.model.script[:] = ["It is 391."]
    made = await executed(
        notebook(
            "from agentfarm_sdk import FarmView, Farm, RunView\nview = FarmView()\nview",
            "run = RunView(Farm().submit('analyst', 'What is 17*23?'))\nrun",
            "[run.wait(60), run.status]",
            # what a front end does when the first cell runs again: the shell is told its id
            "from agentfarm_sdk.shown import live\n"
            "live._of_cells.setdefault('first', live.weakref.WeakSet()).add(view)\n"
            "live._runs_again(type('Info', (), {'cell_id': 'first'}))\n"
            "[view._follower.wait(30), view.widget.comm is None]",
            LEFT,
        ),
        tmp_path,
    )
    first, second, ended, closed, left = made.cells
    assert "application/vnd.jupyter.widget-view+json" in first.outputs[0]["data"], first
    assert "application/vnd.jupyter.widget-view+json" in second.outputs[0]["data"] and not markup(second)
    assert text(ended) == "[True, 'succeeded']" and text(closed) == "[True, True]" and text(left) == "[]"


def test_without_ipywidgets_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    with pytest.raises(Invalid, match="not installed") as told:
        FarmView(Farm("http://127.0.0.1:9", "x"))
    assert "jupyterhub-agentfarm[widgets]" in told.value.hint

"""What is known of the servers of hub users that are no more: forgotten with their workspace, kept while that is there or nobody can say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyterhub_agentfarm.errors import FleetError
from jupyterhub_agentfarm.fleet.retired import Retired
from jupyterhub_agentfarm.fleet.state import FleetState


class Machine:
    """A microserver with these workspaces."""

    def __init__(self, *workspaces: str) -> None:
        self.workspaces, self.forgot, self.silent = set(workspaces), list[str](), False

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        if self.silent:
            raise FleetError("it does not answer")
        if op == "forget":
            self.forgot.append(fields["unit"])
            return {}
        assert op == "measure" and fields["brief"]
        return {"there": fields["workspace"] in self.workspaces}


async def test_units_of_retired_users_are_forgotten_once_their_workspace_is_gone(tmp_path: Path) -> None:
    state, here, there = FleetState(tmp_path / "fleet.json"), Machine("never", "used", "other"), Machine("away")
    machines: Any = {"local": here, "micro1": there}
    up = {"af-used"}
    for name, home in (("never", ""), ("used", "local"), ("away", "micro1"), ("removed", "gone"), ("other", "local")):
        where = home or "local"
        state.units[f"af-{name}"] = {"user": f"agent-{name}", "microserver": where, "home": home, "port": 0}
        state.demands[f"af-{name}"] = {"user": f"agent-{name}"}

    async def show(unit: str) -> dict[str, Any]:
        return {"state": "running" if unit in up else "exited"}

    retired = Retired(state, machines, show)
    for name in ("never", "used", "away", "removed"):
        await retired.retire(f"agent-{name}")
    assert sorted(state.units) == ["af-away", "af-other", "af-used"] and list(state.demands) == ["af-other"]
    here.workspaces.clear()
    there.workspaces.clear()
    there.silent = True
    await retired.forget()
    assert sorted(state.units) == ["af-away", "af-other", "af-used"], "one runs, one cannot be asked, one is in use"
    up.clear()
    again = FleetState(tmp_path / "fleet.json")
    retired = Retired(again, machines, show)
    await retired.forget()
    there.silent = False
    again.moves["agent-away"] = {"phase": "waiting"}
    await retired.forget()
    assert sorted(again.units) == ["af-away", "af-other"], "its workspace moves"
    again.moves.clear()
    await retired.forget()
    assert list(FleetState(tmp_path / "fleet.json").units) == ["af-other"]
    assert (here.forgot, there.forgot) == (["af-never", "af-used"], ["af-away"])


async def test_a_unit_that_a_user_made_anew_has_a_place_for_is_kept(tmp_path: Path) -> None:
    state = FleetState(tmp_path / "fleet.json")
    known = state.units["af-new"] = {"user": "agent-new", "microserver": "local", "home": "", "port": 0}

    class Meanwhile(Machine):
        async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
            known["promise"] = {"memory": 1}  # its server is placed in this moment
            return await super().ask(op, **fields)

    async def show(unit: str) -> dict[str, Any]:
        return {"state": "exited"}

    retired = Retired(state, {"local": Meanwhile()}, show)  # type: ignore[dict-item]
    await retired.retire("agent-new")
    await retired.forget()
    assert list(state.units) == ["af-new"]

"""Puts what was built from labextension/ into a wheel, and the lock by which microservers get their packages. In a checkout JupyterLab finds it by a link, so editable installs do without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Panel(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raise FileNotFoundError where panel or pages are not built: a wheel without them would be half of AgentFarm."""
        if version != "standard":
            return
        package = Path(self.root) / "jupyterhub_agentfarm"
        for built in (package / "labextension" / "package.json", package / "pages" / "build" / "manifest.json"):
            if not built.exists():
                raise FileNotFoundError(f"{built} is not built: make setup, or npm run build in labextension/")
        build_data["shared_data"]["jupyterhub_agentfarm/labextension"] = (
            "share/jupyter/labextensions/jupyterhub-agentfarm"
        )
        build_data["force_include"][str(Path(self.root) / "requirements" / "farm.lock")] = (
            "jupyterhub_agentfarm/farm.lock"
        )
        build_data["artifacts"].append("jupyterhub_agentfarm/pages/build/*")

"""The Jupyter server extension of AgentFarm (jupyter_server finds it by this function); importing it does nothing."""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from .app import AgentFarmExtension

    return [{"module": "jupyterhub_agentfarm.labserver", "app": AgentFarmExtension}]

"""How the parts are started: what is in their environments and argument lists, and what must not be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.launcher import parts as making
from jupyterhub_agentfarm.launcher.state import NAMES, State, prepare


@pytest.fixture
def state(tmp_path: Path) -> State:
    return prepare(tmp_path / "farm", lambda kept: {name: 40_001 + number for number, name in enumerate(NAMES)})


def made(state: State, monkeypatch: pytest.MonkeyPatch, **env: str) -> dict[str, making.Part]:
    monkeypatch.setattr(making, "node", lambda env: "node")
    monkeypatch.setattr(making, "proxy_script", lambda env: Path("chp"))
    return making.parts(state, {"PATH": os.environ["PATH"], **env}, model=True)


def test_no_secret_is_an_argument(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [file.read_text().strip() for file in state.secrets.iterdir()]
    for part in made(state, monkeypatch, HUGGING_FACE_AUTH_TOKEN="the-key").values():
        line = " ".join(part.argv)
        assert "the-key" not in line and not [one for one in secrets if one in line], part.name


def test_the_keys_of_models_and_the_ledger_s_address_are_the_service_s_alone(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"HUGGING_FACE_AUTH_TOKEN": "the-key", "DB_CONNECTION_STRING": "postgresql://u:pw@h/d"}
    for name, part in made(state, monkeypatch, **keys).items():
        assert {one for one in keys if one in part.env} == (set(keys) if name == "service" else set()), name


def test_each_part_gets_its_own_token_and_no_other_part_s(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"proxy.token": "proxy", "hub-service.token": "service"}
    for name, part in made(state, monkeypatch).items():
        for file, owner in owners.items():
            assert (state.secret(file) in part.env.values()) == (name == owner), (name, file)


def test_what_would_configure_another_hub_is_not_handed_on(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """`agentfarm up` from a terminal in somebody's JupyterLab."""
    env = {"JUPYTERHUB_API_TOKEN": "of-another-hub", "JUPYTERHUB_USER": "ada", "AGENTFARM_TOKEN": "hers"}
    for part in made(state, monkeypatch, **env).values():
        assert not set(env.values()) & set(part.env.values()), part.name


def test_the_service_is_told_all_that_the_architecture_says(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (making.CHECKOUT / "docs/architecture.md").read_text()
    told = text.partition("Environment of the service:")[2].partition("Environment of the model server")[0]
    import re

    optional = {"DB_CONNECTION_STRING", "HF_API_URL", "HUGGING_FACE_AUTH_TOKEN"}
    named = set(re.findall(r"`([A-Z][A-Z_]+)", told)) - optional
    assert named and named <= made(state, monkeypatch)["service"].env.keys()


def test_a_state_too_deep_for_a_unix_socket_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    state = prepare(deep, lambda kept: dict.fromkeys(NAMES, 40_000))
    with pytest.raises(StartError, match="longer than a unix socket's") as refused:
        made(state, monkeypatch)
    assert "--state" in refused.value.hint


def test_a_node_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old" / "node", tmp_path / "new" / "node"
    for program, version in ((old, "v18.20.0"), (new, "v22.1.0")):
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
    monkeypatch.setattr(making, "packaged_node", lambda: new)
    assert making.node({"PATH": str(old.parent)}) == str(new)
    monkeypatch.setattr(making, "packaged_node", lambda: None)
    with pytest.raises(StartError, match="no Node 20"):
        making.node({"PATH": str(old.parent)})

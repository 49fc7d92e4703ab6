"""What the service takes from its surroundings: .env, its key; and that its API is described."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jupyterhub_agentfarm.app import AgentFarm, Vault, service_key, settings_of, with_dotenv
from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.handlers.operations import describe
from jupyterhub_agentfarm.handlers.table import ROUTES
from jupyterhub_agentfarm.monitoring.metrics import AGENTS_NAMED, capped


def test_dotenv_completes_the_environment_by_the_names_that_a_farm_takes(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("# mine\nexport HF_API_URL='https://a/v1'\nDB_CONNECTION_STRING=x\nLD_PRELOAD=evil\nnonsense\n")
    found = with_dotenv({"DB_CONNECTION_STRING": "wins"}, file)
    assert found == {"HF_API_URL": "https://a/v1", "DB_CONNECTION_STRING": "wins"}
    assert with_dotenv({"A": "b"}, tmp_path / "none") == {"A": "b"}


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    key = service_key(tmp_path)
    path = tmp_path / "secrets" / "service.key"
    assert len(key) == 32 and service_key(tmp_path) == key and path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(StartError, match="read by others") as caught:
        service_key(tmp_path)
    assert "chmod 600" in caught.value.hint
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(StartError, match="5 bytes"):
        service_key(tmp_path)


def test_a_state_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="cannot be used"):
        service_key(tmp_path / "file")


def test_a_sealed_secret_says_nothing() -> None:
    vault = Vault(os.urandom(32))
    assert b"s3cret" not in vault.seal(b"s3cret") and vault.seal(b"a") != vault.seal(b"a")


def test_each_route_is_described_with_what_it_takes_and_answers() -> None:
    described = describe(ROUTES)
    for route in ROUTES:
        operation = described["paths"][route.path][route.method.lower()]
        assert operation["summary"] == route.summary
        assert ("requestBody" in operation) == (route.body is not None or route.raw)
    names = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    assert "TaskView" in described["components"]["schemas"]


def test_only_so_many_agents_get_a_label_of_their_own() -> None:
    runs = [(f"a{n}", "succeeded", n) for n in range(AGENTS_NAMED + 5)] + [("~notebook", "failed", 10_000)]
    kept = capped(runs)
    assert len(kept) == AGENTS_NAMED and "a0" not in kept and "~notebook" not in kept


def test_an_upstream_of_the_configuration_is_checked_and_named_where_it_is_wrong() -> None:
    found = settings_of({"name": "gpu", "url": "http://gpu/v1", "prices": {"*": [1, 2]}, "models": ["a"]})
    assert (found.prices, found.models) == ({"*": (1.0, 2.0)}, ("a",))
    for wrong, words in (
        ({"prices": {"a": "dear"}}, "prices"),
        ({"colour": 1}, "there is no colour"),
        ({"url": 7}, "url"),
    ):
        with pytest.raises(StartError, match=words):
            settings_of({"name": "gpu", "url": "http://gpu/v1", **wrong})


async def test_the_service_says_which_model_agents_get_that_name_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    farm = AgentFarm()
    farm.env = {"HF_API_URL": "http://127.0.0.1:9/v1"}
    with caplog.at_level("INFO"):
        upstreams = await farm.build_upstreams(tmp_path)
    assert "are served openai/gpt-oss-20b by hugging-face" in caplog.text and "hugging_face_model" in caplog.text
    await upstreams.close()

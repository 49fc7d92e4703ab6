"""The state directory: ports that stay, secrets that only their owner reads, one launcher."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.launcher import state as states

ports = st.integers(min_value=1024, max_value=65000)


def choose(
    kept: dict[str, int], public: int | None = None, base: int | None = None, taken: frozenset[int] = frozenset()
) -> dict[str, int]:
    fresh = iter(range(50_000, 60_000))
    return states.choose_ports(
        kept, public, base, lambda port: port not in taken, lambda: next(p for p in fresh if p not in taken)
    )


def test_a_first_start_takes_8000_for_people_and_any_free_ports_for_the_rest() -> None:
    chosen = choose({})
    assert chosen["public"] == 8000 and len(set(chosen.values())) == len(states.NAMES)


def test_a_later_start_keeps_all_ports_since_servers_remember_them() -> None:
    first = choose({}, public=0)
    assert choose(first) == first == choose(first, public=0)


def test_ports_can_be_counted_from_one_that_is_named() -> None:
    chosen = choose({"hub": 51_111}, base=9000)
    assert {name: chosen[name] for name in states.COUNTED} == dict(zip(states.COUNTED, range(9000, 9005), strict=True))
    assert set(chosen) == set(states.NAMES)


def test_a_taken_public_port_is_refused_with_the_way_out() -> None:
    with pytest.raises(StartError) as refused:
        choose({}, taken=frozenset({8000}))
    assert "8000" in refused.value.detail and "--port" in refused.value.hint


def test_another_port_of_the_farm_that_was_taken_meanwhile_is_replaced() -> None:
    kept = choose({})
    again = choose(kept, taken=frozenset({kept["hub"]}))
    assert again["hub"] != kept["hub"] and {**again, "hub": 0} == {**kept, "hub": 0}


@given(st.dictionaries(st.sampled_from(states.NAMES), ports), st.sampled_from([None, 0, 7777]), st.frozensets(ports))
def test_no_two_parts_ever_share_a_port(kept: dict[str, int], public: int | None, taken: frozenset[int]) -> None:
    try:
        chosen = choose(kept, public, None, taken)
    except StartError:
        return
    assert len(set(chosen.values())) == len(states.NAMES) and not set(chosen.values()) & taken


@pytest.mark.parametrize("number", [-1, 65_536, 10**9])
def test_a_number_that_is_no_port_is_refused_in_a_sentence(number: int) -> None:
    with pytest.raises(StartError, match="is no port"):
        states.is_free(number)


def test_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    first = states.prepare(tmp_path / "farm", choose)
    before = {file.name: file.read_text() for file in first.secrets.iterdir()}
    again = states.prepare(tmp_path / "farm", choose)
    assert {file.name: file.read_text() for file in again.secrets.iterdir()} == before
    assert set(before) >= {*states.TOKENS, "passwords.json"}
    for file in first.secrets.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    for folder in (first.directory, first.secrets, first.directory / "logs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    assert len(json.loads(before["passwords.json"])["admin"]["admin"]) >= 32  # JupyterHub's least


def test_no_two_farms_have_the_same_secrets(tmp_path: Path) -> None:
    one, other = (states.prepare(tmp_path / name, choose) for name in "ab")
    assert not {one.secret(name) for name in states.TOKENS} & {other.secret(name) for name in states.TOKENS}


def test_a_half_written_ports_file_is_as_none(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text('{"public": 80')
    assert states.kept_ports(tmp_path) == {}


def test_a_state_that_cannot_be_written_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "farm").write_text("a file where a folder should be")
    with pytest.raises(StartError) as refused:
        states.prepare(tmp_path / "farm", choose)
    assert "--state" in refused.value.hint


def test_a_nearly_full_disk_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "FREE_BYTES", 2**62)
    with pytest.raises(StartError, match="MB left") as refused:
        states.prepare(tmp_path / "farm", choose)
    assert "free some space" in refused.value.hint


def test_a_second_launcher_is_told_where_the_first_one_s_farm_is(tmp_path: Path) -> None:
    with states.held(tmp_path):
        states.write_atomically(tmp_path / "ready.json", '{"public_url": "http://farm.localhost:8123"}')
        with pytest.raises(StartError, match=r"already runs here: http://farm\.localhost:8123"), states.held(tmp_path):
            raise AssertionError("two held it")
    with states.held(tmp_path):
        pass

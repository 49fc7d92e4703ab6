"""The walls around agents' servers: what a list of places comes to, and the table that the kernel is given."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.fleet.helper import checks, egress, systemdunits, walls
from jupyterhub_agentfarm.fleet.placing import Placing
from jupyterhub_agentfarm.fleet.state import FleetState
from jupyterhub_agentfarm.fleet.walling import usual_of

FARM = ["127.0.0.1:8003", "127.0.0.1:8081"]
LIST = [
    "api.example.com:443",
    "10.1.0.0/16:5432",
    "[2001:db8::/32]:443",
    "192.0.2.9:8000-8010",
    "*:443",
    "127.0.0.0/8:*",
]
NAMES = {"api.example.com": ["198.51.100.7", "10.9.9.9", "2600::1"]}


@pytest.mark.parametrize(
    "text",
    ["", "api.example.com", "api.example.com:", ":443", "api.example.com:0", "api.example.com:65536", "api.example.com:90-80", "a b:443", "10.0.0.0/33:443",
     "10.0.0.1/8:443", "10.0.0:443", "example.com/8:443", "[::1]", "2001:db8::1:443", "[2001:db8::/129]:443", "[fe80::1%eth0]:443", "https://a.example:443",
     "-a.example:443", "a.example:443\n", "a.example:443; accept", "*:443, tcp", "a\u0430.example:443", "user@a.example:443", "10.0.0.0/8:443 }"],
)  # fmt: skip
def test_what_is_no_place_to_go_is_refused_in_words_before_it_is_anywhere_near_a_rule(text: str) -> None:
    with pytest.raises(ValueError, match=r"e\.g\.|ports|bits|network|appear|address"):
        egress.parse(text)


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "168.63.129.16", "224.0.0.1", "0.0.0.0",
                                     "::1", "fe80::1", "fd00::1", "::ffff:10.0.0.1", "2002:a00:1::", "2001:0:1::"])  # fmt: skip
def test_a_name_never_leads_inside(address: str) -> None:
    assert not egress.is_public(walls.ipaddress.ip_address(address))
    wall = {"egress": ["a.example:443"], "farm": []}
    tables = [walls.table("t", {200_001: wall}, [], [], {"a.example": found}) for found in ([], [address])]
    assert tables[0] == tables[1]


def whole() -> str:
    return walls.table("agentfarm", {200_001: {"egress": LIST, "farm": FARM}, 200_002: {"egress": [], "farm": FARM}, 200_003: None}, [200_004, 200_003], ["127.0.0.53", "fd00::53"], NAMES)  # fmt: skip


def test_the_table_allows_what_is_listed_and_ends_in_a_refusal() -> None:
    text = whole()
    chains = dict(re.findall(r"  chain (\w+) \{\n(.*?)\n  \}", text, re.S))
    assert (
        chains["user_200002"].split("\n")[-1].strip() == "goto common"
        and chains["common"].split("\n")[-1].strip() == "goto refused"
    )
    assert "ip daddr { 198.51.100.7 } tcp dport 443 accept" in chains["user_200001"] and "10.9.9.9" not in text
    assert "198.51.100.7" not in chains["user_200002"] and "5432" not in chains["user_200002"]
    assert chains["user_200001"].index("169.254.0.0/16") < chains["user_200001"].index(
        "10.1.0.0/16"
    )  # metadata is refused before any list
    assert "200003" not in chains["output"]  # a person's: wherever it likes
    assert "200004 : goto refused" in chains["output"] and "user_200003" not in text
    assert (
        "{ 8003, 8081, 8812 }" in chains["answers"] and "200003" in chains["answers"]
    )  # nobody stands in the farm's place


def test_addresses_that_a_name_had_stay_for_a_while_and_those_of_a_name_that_is_gone_too() -> None:
    known = {
        "a": {"198.51.100.1": 0.0, "198.51.100.2": 3000.0},
        "old": {"198.51.100.9": 0.0},
        "away": {"198.51.100.3": 0.0},
    }
    now = walls.renewed(known, {"a": ["198.51.100.4"]}, ["a", "away"], 4000.0)
    assert now == {"a": {"198.51.100.2": 3000.0, "198.51.100.4": 4000.0}, "away": {"198.51.100.3": 0.0}}


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft") or not shutil.which("unshare"),
    reason="takes root, nft and a network namespace",
)
def test_the_kernel_takes_the_table_whole_again_and_away(tmp_path: Path) -> None:
    """In a network namespace of its own."""
    again = f"table inet agentfarm {{}}\ndelete table inet agentfarm\n{whole()}"
    (tmp_path / "rules").write_text(again)
    script = f"nft -f {tmp_path}/rules && nft -f {tmp_path}/rules && nft list table inet agentfarm && nft 'table inet agentfarm {{}}; delete table inet agentfarm' && nft list ruleset"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    if "unshare" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    assert "chain user_200002" in done.stdout and done.stdout.strip().endswith("}")


def test_the_latest_start_of_a_user_says_where_he_may_go(tmp_path: Path) -> None:
    for unit, at, listed in (("af-a", 2.0, ["new.example:1"]), ("af-b", 1.0, ["old.example:1"])):
        (tmp_path / unit).mkdir()
        walls.write_json(
            tmp_path / unit / walls.RECORD, {"uid": 200_001, "wall": {"egress": listed, "farm": []}, "at": at}
        )
    assert walls._walls(tmp_path) == {200_001: {"egress": ["new.example:1"], "farm": []}}


def test_the_farm_is_where_the_environment_says_and_nothing_else_of_it_counts() -> None:
    env = {
        "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
        "AGENTFARM_URL": "https://farm.example",
        "AGENTFARM_PAGES": "http://x",
        "JUPYTERHUB_ACTIVITY_URL": "http://127.0.0.1:8081/x",
    }
    assert walls.wall_of(env, []) == {"egress": [], "farm": ["127.0.0.1:8081", "farm.example:443"]}
    assert walls.wall_of(env, None) is None


def test_lists_come_in_layers_and_a_person_is_walled_in_only_where_it_is_said(tmp_path: Path) -> None:
    placing = Placing(FleetState(tmp_path / "fleet.json"), {}, ["usual.example:1"])

    def of(user: str, **resources: Any) -> list[str] | None:
        placing.set_demand("u", {"user": user, "resources": resources})
        return placing.egress("u", {}, user)

    assert of("agent-a") == ["usual.example:1"] == placing.settings.servers.egress and of("ann") is None
    placing.set_settings({"servers": {"egress": ["farm.example:1"]}})
    assert of("agent-a") == ["farm.example:1"] and of("ann") is None
    assert of("agent-a", egress=[]) == [] and of("agent-a", egress=["own.example:2"]) == ["own.example:2"]
    placing.set_settings({"people": {"egress": []}})
    assert of("ann") == []
    with pytest.raises(Exception, match="no place to go"):
        of("agent-a", egress=["nonsense"])
    with pytest.raises(StartError, match="AGENTFARM_EGRESS"):
        usual_of("a.example")


def test_the_table_is_loaded_when_something_moves_and_left_alone_when_nothing_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []
    there, addresses = {"text": ""}, {"a.example": ["198.51.100.1"]}

    def look_up(names: Any) -> dict[str, list[str]]:
        asked.append(set(names))
        return {name: addresses[name] for name in asked[-1]}

    def nft(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        if words[0] == "list":
            return subprocess.CompletedProcess(words, 0 if words[-1] in there["text"] else 1, "", "")
        there["text"] = text
        loads.append(text)
        return subprocess.CompletedProcess(words, 0, "", "")

    loads: list[str] = []
    monkeypatch.setattr(walls, "look_up", look_up)
    monkeypatch.setattr(walls, "nft", nft)
    (tmp_path / "af-a").mkdir()
    record = {"uid": 200_001, "wall": {"egress": ["a.example:443"], "farm": []}, "at": 1.0}
    walls.write_json(tmp_path / "af-a" / walls.RECORD, record)
    for fresh in (False, False, True):  # a name that is known is asked for anew only where that is wished
        assert walls.sync(tmp_path, "t", users=False, fresh=fresh) == {"unknown": {}}
    assert asked == [{"a.example"}, set(), {"a.example"}] and len(loads) == 1 and "198.51.100.1" in loads[0]
    addresses["a.example"] = ["198.51.100.2"]
    walls.sync(tmp_path, "t", users=False)
    assert len(loads) == 2 and "{ 198.51.100.1, 198.51.100.2 }" in loads[1]
    there["text"] = ""  # somebody flushed the machine's rules
    walls.sync(tmp_path, "t", users=False)
    assert loads[2] == loads[1] and loads[2].startswith("table inet t {}\ndelete table inet t\n")
    addresses["b.example"] = ["10.0.0.9"]
    walls.write_json(tmp_path / "af-a" / walls.RECORD, {**record, "wall": {"egress": ["b.example:443"], "farm": []}})
    assert "10.0.0.9, a private address" in walls.sync(tmp_path, "t", users=False)["unknown"]["b.example"]
    (tmp_path / "af-a" / walls.RECORD).unlink()
    walls.sync(tmp_path, "t", users=False)
    assert loads[-1] == "table inet t {}\ndelete table inet t\n"


@pytest.mark.parametrize(
    ("listed", "denied"), [(["a.example:443", "10.1.0.0/16:*"], "any"), (["*:443"], "10.0.0.0/8"), (None, None)]
)
def test_without_nft_the_unit_itself_is_given_the_addresses(
    monkeypatch: pytest.MonkeyPatch, listed: list[str] | None, denied: str | None
) -> None:
    monkeypatch.setattr(walls, "look_up", lambda names: {one: ["198.51.100.1"] for one in names})
    monkeypatch.setattr(walls, "resolvers", lambda: ["192.0.2.53"])
    env = {"AGENTFARM_URL": "http://127.0.0.1:8003"}
    asked = {"unit": "af-a", "argv": ["/bin/true"], "env": env, "workspace": "a", "uid": 200_001, "egress": listed}
    words = dict(one.removeprefix("--property=").split("=") for one in systemdunits.addresses(checks.start(asked)))
    if denied is None:
        assert words == {}
        return
    assert denied in words["IPAddressDeny"].split() and {"localhost", "192.0.2.53"} <= {
        *words["IPAddressAllow"].split()
    }
    assert (
        ("198.51.100.1" in words["IPAddressAllow"]) == ("10.1.0.0/16" in words["IPAddressAllow"]) == (denied == "any")
    )

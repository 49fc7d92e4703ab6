"""What the pages for users say is there, is there; and what there is to set or to say is named in them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyterhub_agentfarm.app import AgentFarm
from jupyterhub_agentfarm.cli.main import parser
from jupyterhub_agentfarm.labserver.app import AgentFarmExtension
from jupyterhub_agentfarm.spawner import AgentFarmSpawner

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATE = (ROOT / "docs" / "operate.md").read_text()
OURS = re.compile(r"AGENTFARM_[A-Z_]+[A-Z]")


def subparsers(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [one for one in of._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def test_every_variable_of_the_environment_is_named_in_the_docs() -> None:
    packages = [ROOT / "agentfarm_sdk", ROOT / "jupyterhub_agentfarm"]
    code = [ROOT / "jupyterhub_config.py", *(file for package in packages for file in package.rglob("*.py"))]
    read = {name for file in code for name in OURS.findall(file.read_text())}
    told = {name for page in PAGES for name in OURS.findall(page.read_text())}
    assert read - told == set()
    assert told - read == {"AGENTFARM_CHAOS_SECONDS", "AGENTFARM_FAULTS"}, "which the tests read"


@pytest.mark.parametrize("kind", [AgentFarm, AgentFarmExtension, AgentFarmSpawner])
def test_every_setting_is_named_where_operators_look(kind: type) -> None:
    own = [name for name, trait in kind.class_own_traits(config=True).items() if trait.this_class is kind]
    assert own and [name for name in own if f"`{name}`" not in OPERATE] == []


def test_every_verb_of_the_command_line_stands_in_its_table() -> None:
    rows = {noun: row for row in re.findall(r"^\|.*\|$", OPERATE, re.MULTILINE) for noun in re.findall(r"`(\w+)`", row.split("|")[1])}  # fmt: skip
    told = {one for row in re.findall(r"^\| \| .*\|$", OPERATE, re.MULTILINE) for one in re.findall(r"`(\w+)`", row)}
    for noun, of in subparsers(parser()).items():
        verbs = subparsers(of)
        missing = [verb for verb in verbs if not re.search(f"`{verb}[` ]", rows.get(noun, ""))]
        assert missing == [] and (verbs or noun in told), f"{noun}: {missing}"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the commands that the pages show, each with its words."""
    for page in PAGES:
        for line in re.findall(r"(?:^|`)(?:\.venv/bin/)?agentfarm ([a-z][^`\n#]*)", page.read_text(), re.MULTILINE):
            yield f"{page.name}: agentfarm {line}", line.split()


def test_every_command_that_is_shown_exists_with_its_options() -> None:
    nouns = subparsers(parser())
    for shown, (noun, *words) in commands():
        if noun not in nouns:
            continue  # words of a sentence
        verbs = subparsers(nouns[noun])
        asked = nouns[noun] if not verbs else verbs.get(words[0] if words else "")
        if verbs and not words:
            continue  # the noun alone
        assert asked is not None, shown
        known = {option for action in asked._actions for option in action.option_strings}
        assert [word for word in words if re.fullmatch(r"--[a-z-]+", word) and word not in known] == [], shown


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"

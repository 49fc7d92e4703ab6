"""The workspace's files: what is in it can be reached, nothing else can, by no path and no link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentfarm_sdk import Context
from agentfarm_sdk.errors import ToolFailed
from agentfarm_sdk.tools import files
from agentfarm_sdk.tools.files import list_files, read_file, write_file


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "secret.txt").write_text("SECRET")
    return Context(workspace=tmp_path / "workspace", key="k" * 64, call="c0-0")


def test_what_is_written_is_read_and_listed(ctx: Context) -> None:
    assert write_file(ctx, "notes/today.txt", "Grüße") == {"path": "notes/today.txt", "size": 7}
    assert read_file(ctx, "notes/today.txt") == "Grüße"
    assert list_files(ctx) == [{"name": "notes", "kind": "folder", "size": list_files(ctx)[0]["size"]}]
    assert list_files(ctx, "notes") == [{"name": "today.txt", "kind": "file", "size": 7}]


def test_writing_twice_leaves_one_file_and_no_rest(ctx: Context) -> None:
    (ctx.workspace / f".a.txt.{ctx.key[:12]}.part").write_text("of an attempt that was cut off")
    write_file(ctx, "a.txt", "1")
    write_file(ctx, "a.txt", "2")
    assert os.listdir(ctx.workspace) == ["a.txt"] and read_file(ctx, "a.txt") == "2"


def links(workspace: Path) -> None:
    (workspace / "out").symlink_to(workspace.parent)
    (workspace / "file").symlink_to(workspace.parent / "secret.txt")
    (workspace / "inner").mkdir()
    (workspace / "inner" / "up").symlink_to("../..")
    (workspace / "self").symlink_to(".")


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt", "/etc/passwd", "a/../../secret.txt", "out/secret.txt", "file", "inner/up/secret.txt", "self/file", "./../secret.txt",
        "..", "/", "file/", "a\0b", "out/workspace/file", "//etc/passwd",
    ],
)  # fmt: skip
def test_no_path_leads_out(ctx: Context, path: str) -> None:
    links(ctx.workspace)
    with pytest.raises(ToolFailed):
        read_file(ctx, path)
    with pytest.raises(ToolFailed):
        list_files(ctx, path)
    if path.rstrip("/") != "file":
        with pytest.raises(ToolFailed):
            write_file(ctx, path, "overwritten")
    assert (ctx.workspace.parent / "secret.txt").read_text() == "SECRET"
    assert sorted(p.name for p in ctx.workspace.parent.iterdir()) == ["secret.txt", "workspace"]


def test_writing_over_a_link_replaces_the_link_and_leaves_its_target(ctx: Context) -> None:
    links(ctx.workspace)
    write_file(ctx, "file", "mine")
    assert (ctx.workspace.parent / "secret.txt").read_text() == "SECRET"
    assert not (ctx.workspace / "file").is_symlink() and read_file(ctx, "file") == "mine"


def test_pipes_and_folders_are_no_files_and_nothing_blocks(ctx: Context) -> None:
    os.mkfifo(ctx.workspace / "pipe")
    (ctx.workspace / "folder").mkdir()
    for path in ("pipe", "folder", "", ".", "absent"):
        with pytest.raises(ToolFailed):
            read_file(ctx, path)
    with pytest.raises(ToolFailed):
        write_file(ctx, "folder", "x")
    assert sorted(os.listdir(ctx.workspace)) == ["folder", "pipe"]


def test_sizes_are_limited_and_a_long_file_is_read_in_parts(ctx: Context) -> None:
    with pytest.raises(ToolFailed, match="bytes"):
        write_file(ctx, "large", "x" * (files.MAX_WRITE + 1))
    write_file(ctx, "long", "a" * files.MAX_READ + "rest")
    first = read_file(ctx, "long")
    assert first.endswith(f"offset={files.MAX_READ}]") and read_file(ctx, "long", files.MAX_READ) == "rest"
    with pytest.raises(ToolFailed):
        read_file(ctx, "long", -1)

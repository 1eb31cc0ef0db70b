# SPDX-License-Identifier: Apache-2.0
"""Removing what a pod left: hostile trees."""

import os
from pathlib import Path

import pytest

from rktd_units import runfiles
from rktd_units.runfiles import remove_tree


def test_a_tree_deeper_than_there_are_descriptors(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for depth in range(3000):
        os.mkdir("moved-2" if depth % 2 else "d", dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("moved-2" if depth % 2 else "d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(str(top))
    assert list(tmp_path.iterdir()) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "link").symlink_to(kept)
    (top / "a/link").symlink_to(kept)
    (top / "moved-1").touch()
    (top / "a/b").mkdir()
    remove_tree(str(top))
    remove_tree(str(top))  # nothing there is no fault
    assert [path.name for path in kept.iterdir()] == ["file"]
    assert not top.exists()


def test_a_directory_with_more_names_than_fit_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runfiles, "_NAMES_MAX", 3)
    for number in range(10):
        (tmp_path / f"top/a/{number}/d").mkdir(parents=True)
        (tmp_path / f"top/{number}").touch()
        (tmp_path / f"top/a/file-{number}").touch()
    remove_tree(str(tmp_path / "top"))
    assert list(tmp_path.iterdir()) == []


def test_rounds_are_limited(tmp_path: Path) -> None:
    (tmp_path / "top/a/b/c").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        remove_tree(str(tmp_path / "top"), 2)
    remove_tree(str(tmp_path / "top"), 2)
    assert list(tmp_path.iterdir()) == []

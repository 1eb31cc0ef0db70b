# SPDX-License-Identifier: Apache-2.0
"""Removing what a pod left: hostile trees."""

import os
from pathlib import Path

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

# SPDX-License-Identifier: Apache-2.0
"""What is written for a pod's files, and what becomes of the directories of claims. Mounts are the integration tests' business."""

import os
import resource
import stat
from pathlib import Path

import pytest

from rktd_units.paths import Layout
from rktd_units.values import File
from rktd_units.vault import write_file, write_files
from rktd_units.volumes import list_volumes, new_volume, ready_volume, remove_volume


def modes(top: Path) -> dict[str, str]:
    return {str(path.relative_to(top)): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in sorted(top.rglob("*"))}


def test_files_and_modes(tmp_path: Path) -> None:
    me, group = os.getuid(), os.getgid()
    files = (File("a", b"\xff\0", 0o400), File("d/e/f", b"", 0o644))
    write_files(str(tmp_path / "plain"), files, me, None)
    assert modes(tmp_path / "plain") == {"a": "400", "d": "755", "d/e": "755", "d/e/f": "644"}
    assert (tmp_path / "plain/a").read_bytes() == b"\xff\0"
    write_files(str(tmp_path / "group"), files, me, group)
    assert modes(tmp_path / "group") == {"a": "440", "d": "2755", "d/e": "2755", "d/e/f": "644"}
    with pytest.raises(FileExistsError, match="File exists"):
        write_file(str(tmp_path / "plain/a"), b"", me, group, 0o600)


def test_volumes(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    ready_volume(layout, "data", None)
    ready_volume(layout, "data", None)
    data = tmp_path / "var/lib/rktd/volumes/data"
    assert (list_volumes(layout), stat.S_IMODE(data.stat().st_mode), stat.S_IMODE(data.parent.stat().st_mode)) == (["data"], 0o777, 0o700)
    (data / "sub").mkdir()
    (data / "sub/file").write_text("x")
    (data / "sub/file").chmod(0o600)
    (data / "out").symlink_to("/etc/passwd")
    before = os.stat("/etc/passwd")
    ready_volume(layout, "data", os.getgid())
    assert os.stat("/etc/passwd") == before
    assert {name: mode for name, mode in modes(data).items() if name != "out"} == {"sub": "2775", "sub/file": "660"}
    (data / "sub/file").chmod(0o600)
    ready_volume(layout, "data", os.getgid(), only_if_wrong=True)
    assert modes(data)["sub/file"] == "600"
    (Path(new_volume(layout, ".import")) / "left").touch()
    assert os.listdir(new_volume(layout, ".import")) == []
    remove_volume(layout, "data")
    assert list_volumes(layout) == []


def test_a_volume_deeper_than_there_are_descriptors(tmp_path: Path) -> None:
    """What an app made in it does not keep pods from starting; every directory gets the group."""
    layout, depth = Layout(str(tmp_path)), 300
    ready_volume(layout, "data", None)
    here = os.open(tmp_path / "var/lib/rktd/volumes/data", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", 0o700, dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        ready_volume(layout, "data", os.getgid())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert stat.S_IMODE(os.fstat(here).st_mode) == 0o2770
    os.close(here)
    remove_volume(layout, "data")

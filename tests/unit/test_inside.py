# SPDX-License-Identifier: Apache-2.0
"""Paths that try to lead out, on a real directory; what needs mounts and ids of others is in the integration tests."""

import os
import re
import signal
import stat
from pathlib import Path

import pytest

from rktd_units.stage1.inside import Inside


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "have" / "deep").mkdir(parents=True)
    (tmp_path / "root" / "file").touch()
    return tmp_path / "root"


def place_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("links", "path", "expected"),
    [
        ({}, "/new/er", "new/er"),
        ({}, "//have/./deep/", "have/deep"),
        ({}, "/", ""),
        ({"l": "/have"}, "/l/x", "have/x"),
        ({"l": "../../../outside"}, "/l/x", "outside/x"),
        ({"l": "/mnt/x"}, "/l", "mnt/x"),
        ({"l": "mnt/../../y/./z/"}, "/l", "y/z"),
        ({"have/l": "../a", "a": "b/c", "b": "/d"}, "/have/l", "d/c"),
        ({"have/l": "deep/../.."}, "/have/l/x", "x"),
        ({"l": "/proc/self/cwd"}, "/l", "proc/self/cwd"),
    ],
    ids=["made", "there", "root", "absolute", "up", "nowhere", "nowhere-up", "chain", "back", "magic"],
)
def test_directories_are_made_inside(root: Path, links: dict[str, str], path: str, expected: str) -> None:
    for name, target in links.items():
        (root / name).symlink_to(target)
    with Inside(str(root), 0) as inside:
        assert place_of(inside.make_directory(path)) == str(root / expected).rstrip("/")
    assert os.listdir(root.parent / "outside") == []
    assert sorted(os.listdir(root.parent)) == ["outside", "root"]


def test_modes_whatever_the_umask(root: Path) -> None:
    """0755 in an app's root; the volume's own mode in a volume, its set-group-ID bit by inheritance; files 0644."""
    umask = os.umask(0o077)
    try:
        with Inside(str(root), 0) as inside:
            os.close(inside.make_directory("/a/b"))
            os.close(inside.make_file("/c/d"))
        for mode in (0o777, 0o2775, 0o1777, 0o750):
            volume = root / oct(mode)
            volume.mkdir()
            volume.chmod(mode)
            with Inside(str(volume), 0, volume=True) as inside:
                os.close(inside.make_directory("x/y"))
            assert {stat.S_IMODE((volume / made).stat().st_mode) for made in ("x", "x/y")} == {mode}
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert [stat.S_IMODE((root / made).stat().st_mode) for made in ("a", "a/b", "c", "c/d")] == [0o755, 0o755, 0o755, 0o644]
    assert (root / "c" / "d").is_file()


def test_file_through_a_link_to_nowhere(root: Path) -> None:
    (root / "l").symlink_to("/etc/deep/file")
    with Inside(str(root), 0) as inside:
        assert place_of(inside.make_file("/l")) == str(root / "etc/deep/file")
        assert place_of(inside.make_file("/file")) == str(root / "file")


@pytest.mark.parametrize("target", ["/mnt/x", "../outside", "have/x"])
def test_in_a_volume_a_link_to_nowhere_is_refused(root: Path, target: str) -> None:
    (root / "l").symlink_to(target)
    with (
        Inside(str(root), 0, label="volume v: ", volume=True) as inside,
        pytest.raises(FileNotFoundError, match=r"leads to nowhere: 'volume v: l/more'"),
    ):
        inside.make_directory("l/more")


@pytest.mark.parametrize(
    ("path", "message"),
    [("/file", "something else than a directory"), ("/file/x/y", "Not a directory"), ("/loop/x/y", "Too many levels")],
)
def test_faults_name_the_whole_path(root: Path, path: str, message: str) -> None:
    (root / "loop").symlink_to("loop")
    with Inside(str(root), 0, label="app a: ") as inside, pytest.raises(OSError, match=f"{message}.*'app a: {re.escape(path)}'"):
        inside.make_directory(path)


def test_no_descriptor_is_left(root: Path) -> None:
    (root / "up").symlink_to("have/../../have/deep")
    (root / "loop").symlink_to("/loop")
    before = os.listdir("/proc/self/fd")
    with Inside(str(root), 0) as inside:
        os.close(inside.make_directory("/up/x"))
        os.close(inside.make_file("/up/f"))
        inside.replace_file("/up/g", b"text")
        inside.replace_link("/up/g", "nowhere")
        for path in ("/loop", "/file", "/file/x", "/up/../../../loop/x"):
            with pytest.raises(OSError, match=path):
                inside.make_directory(path)
    assert os.listdir("/proc/self/fd") == before
    assert (root / "have/deep/g").is_symlink()


def test_who_swaps_directories_for_links_meanwhile_moves_nothing_out(root: Path) -> None:
    """The owner of a volume is at work in it while a walk is on its way."""
    secret = root.parent / "outside"
    (root / "link").symlink_to("../outside")
    (root / "there").mkdir()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(root)
            while True:
                for name in ("there", "link"):
                    os.rename(name, "x")
                    os.rename("x", name)
        finally:
            os._exit(1)
    try:
        made = 0
        with Inside(str(root), 0, volume=True) as inside:
            for number in range(3000):
                try:
                    found = place_of(inside.make_directory(f"x/{number % 7}"))
                except OSError:
                    continue
                made += 1
                assert Path(found).is_relative_to(root)
        assert made
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.listdir(secret) == []
    assert sorted(os.listdir(root.parent)) == ["outside", "root"]

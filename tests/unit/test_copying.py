# SPDX-License-Identifier: Apache-2.0
"""The stream of `podctl cp`: what arrives is what was sent, and a sender who lies gets nothing but an error."""

import errno
import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rktd_units import copying
from rktd_units.cli import cp
from rktd_units.copying import DATA, DIRECTORY, END, FAULT, FILE, LINK, SKIPPED, Item, Writer
from rktd_units.errors import FailedError

pytestmark = pytest.mark.usefixtures("require_root")


def write(place: Path, items: Iterable[Item], name: str = "new") -> list[str]:
    """Over a pipe's bytes; gives what was skipped."""
    skipped: list[str] = []
    data = io.BytesIO(b"".join(copying.pack_items(items)))
    Writer(os.open(place, os.O_RDONLY), name, (0, 0), skipped.append).write(copying.unpack_items(data.read))
    return skipped


def test_a_tree_arrives_as_it_is(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner/big").write_bytes(os.urandom(300_000))
    (tree / "empty").touch(0o640)
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "empty").chmod(0o4755)
    os.mkfifo(tree / "pipe")
    os.utime(tree / "empty", ns=(5, 7_000_000_001))
    (tree / "inner").chmod(0o500)
    (tmp_path / "to").mkdir()
    assert write(tmp_path / "to", copying.read_items(os.open(tree, os.O_PATH), "anything")) == ["pipe"]
    found = tmp_path / "to/new"
    assert sorted(os.listdir(tmp_path / "to")) == ["new"]
    assert sorted(os.listdir(found)) == ["empty", "inner", "link"]
    assert (found / "inner/big").read_bytes() == (tree / "inner/big").read_bytes()
    assert os.readlink(found / "link") == "/etc/passwd"
    assert stat.S_IMODE((found / "empty").stat().st_mode) == 0o755
    assert (found / "empty").stat().st_mtime_ns == 7_000_000_001
    assert stat.S_IMODE((found / "inner").stat().st_mode) == 0o500


FILE_X = [Item(FILE, b"x", 0o644, 0), Item(DATA, b"text"), Item(END)]


@pytest.mark.parametrize(
    "items",
    [
        [*FILE_X, *FILE_X],  # a second one beside what was asked for
        [Item(DIRECTORY, b"d", 0o755), Item(FILE, b"../x"), Item(END), Item(END)],
        [Item(DIRECTORY, b"d", 0o755), Item(LINK, b"..\0/etc"), Item(END)],
        [Item(DIRECTORY, b"d", 0o755), Item(FILE, b"x\0y"), Item(END), Item(END)],
        [Item(DIRECTORY, b"d", 0o755), Item(LINK, b"l\0/srv"), Item(DIRECTORY, b"l"), Item(FILE, b"x"), Item(END), Item(END), Item(END)],
        [Item(FILE, b"x"), Item(FILE, b"y"), Item(END)],
        [Item(DATA, b"x")],
        [Item(END)],
        [Item(99, b"x")],
        [Item(FILE, b"x"), Item(DATA, b"x")],
        [Item(DIRECTORY, b"d")] * 300,
        [Item(FAULT, b"13 permission denied\0/x")],
        [Item(FAULT, b"\xff" * 10)],
    ],
)
def test_a_sender_who_lies(tmp_path: Path, items: list[Item]) -> None:
    (tmp_path / "to").mkdir()
    with pytest.raises(OSError, match=r".") as raised:
        write(tmp_path / "to", items)
    assert raised.value.strerror
    assert sorted(os.listdir(tmp_path)) == ["to"]
    assert set(os.listdir(tmp_path / "to")) <= {"new"}


@given(st.binary(max_size=200))
def test_bytes_of_nobody(data: bytes) -> None:
    """Refused, or items whose bytes they are."""
    try:
        items = list(copying.unpack_items(io.BytesIO(data).read))
    except OSError:
        return
    assert b"".join(copying.pack_items(items)) == data


def test_names_of_the_top_are_the_receivers(tmp_path: Path) -> None:
    assert write(tmp_path, [Item(SKIPPED, b"p"), Item(LINK, b"shadow\0/x")], "mine") == ["p"]
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.parametrize("path", ["/", "/a/..", "..", "/a/."])
def test_a_copy_is_never_called_as_its_place(path: str) -> None:
    assert copying.last_name(path) == "root"
    assert copying.last_name(f"{path}/b/") == "b"


def test_what_a_guest_says_is_no_terminal_code(capsys: pytest.CaptureFixture[str]) -> None:
    def call(order: dict[str, Any], streams: tuple[int, int, int]) -> int:
        os.write(streams[2], b"no such file\n\x1b]52;c;ZXZpbA==\a" + b"x" * 20000)
        return 1

    def work(into: int, out: int) -> None:
        os.close(into)
        os.close(out)

    with pytest.raises(FailedError, match="exit code 1"):
        cp._with_guest(call, {}, work)
    said = capsys.readouterr().err
    assert said.startswith("podctl: the guest says: no such file\n")
    assert "\x1b" not in said
    assert len(said) < 5000


def test_a_guest_that_sends_without_end(tmp_path: Path) -> None:
    """When the copy has failed here, that is the end of it."""

    def call(order: dict[str, Any], streams: tuple[int, int, int]) -> int:
        while True:
            os.write(streams[1], bytes(65536))

    def work(into: int, out: int) -> None:
        os.close(into)
        os.read(out, 100)
        os.close(out)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cp._with_guest(call, {}, work)

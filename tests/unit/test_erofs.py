# SPDX-License-Identifier: Apache-2.0
"""The EROFS images of layers, read back by a reader of the tests' own; test_layers_umoci.py has the kernel read them."""

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from rktd_units.errors import ImageError, TooLargeError
from rktd_units.images import erofs
from rktd_units.images.layers import LayerInput, convert_layers
from rktd_units.images.records import TAR_START
from rktd_units.images.tree import Budget, Tree
from tests.erofs_reader import Found, read_image
from tests.layer_cases import BASE, CAPABILITY, TAR, directory, entry, hard, layer, link, sparse_1_0, xattr


def convert(tmp_path: Path, tars: Sequence[bytes], limit: int = 1 << 30) -> list[bytes]:
    inputs = []
    for index, tar in enumerate(tars):
        (tmp_path / f"{index}.tar").write_bytes(tar)
        inputs.append(LayerInput(str(tmp_path / f"{index}.tar"), TAR, "sha256:" + hashlib.sha256(tar).hexdigest()))
    return [Path(output.path).read_bytes() for output in convert_layers(inputs, range(len(tars)), str(tmp_path), limit)]


def read_last(tmp_path: Path, *tars: bytes) -> dict[str, Found]:
    return read_image(convert(tmp_path, tars)[-1])


def test_contents_stay_in_the_tar(tmp_path: Path) -> None:
    tar = layer(entry("f", data=b"x" * 700, mode=0o640, ids=(5, 6), mtime=7), entry("empty"))
    (image,) = convert(tmp_path, [tar])
    assert image[TAR_START : TAR_START + len(tar)] == tar
    found = read_image(image)
    assert sorted(found) == ["", "empty", "f"]
    f = found["f"]
    assert (oct(f.mode), f.uid, f.gid, f.mtime, f.links, f.data) == ("0o100640", 5, 6, (7, 0), 1, b"x" * 700)
    assert TAR_START <= f.union * 512 < TAR_START + len(tar)
    assert found["empty"].data == b""


def test_what_is_not_in_one_piece_is_copied(tmp_path: Path) -> None:
    """Holes; what another layer has; and where a block's rest is not zeros, for a program that maps the file would see it."""
    dirty = bytearray(layer(entry("dirty", data=b"d" * 10)))
    dirty[dirty.index(b"d" * 10) + 10] = 1
    tar = bytes(dirty)
    found = read_last(tmp_path, tar)
    start = found["dirty"].union * 512
    assert start >= TAR_START + len(tar)
    assert found["dirty"].data == b"d" * 10
    (tmp_path / "s").mkdir()
    sparse = read_last(tmp_path / "s", layer(sparse_1_0("s", 10000, (0, 9000), (b"a", b"b"))))
    assert sparse["s"].data == b"a" + bytes(8999) + b"b" + bytes(999)


def test_links_and_devices(tmp_path: Path) -> None:
    long, whole = "t" * 449, "t" * 448
    tar = layer(
        entry("a", data=b"1"),
        hard("b", "a"),
        link("short", "a"),
        link("long", long),
        link("whole", whole),
        directory("d/"),
        directory("d/e/"),
    )
    found = read_last(tmp_path, tar)
    assert found["a"] == found["b"]
    assert found["a"].links == 2
    assert [found[name].data.decode() for name in ("short", "long", "whole")] == ["a", long, whole]
    assert (found[""].links, found["d"].links, found["d/e"].links) == (3, 3, 2)


def test_directories_of_many_and_long_names(tmp_path: Path) -> None:
    names = [f"{n:03}".rjust(length, "n") for n in range(40) for length in (3, 100, 255)]
    found = read_last(tmp_path, layer(*(entry(f"d/{name}") for name in names), entry("d/!before the dots")))
    assert sorted(name for name in found if name.startswith("d/")) == sorted(f"d/{name}" for name in [*names, "!before the dots"])


def test_whiteouts_marks_and_attributes(tmp_path: Path) -> None:
    upper = layer(
        entry(".wh.x"),
        entry("d/.wh..wh..opq"),
        entry("f", pax=[xattr("security.capability", CAPABILITY), xattr("user.a", b"1")]),
        entry("old", pax=[(b"mtime", b"-1.5")]),
    )
    found = read_last(tmp_path, BASE, upper)
    assert (found["x"].mode, found["x"].union) == (stat.S_IFCHR, 0)
    assert found["d"].xattrs == {b"trusted.overlay.opaque": b"y"}
    assert found["f"].xattrs == {b"security.capability": CAPABILITY, b"user.a": b"1"}
    assert found["old"].mtime == (-2, 500_000_000)


def test_hard_link_to_a_lower_layer_is_a_copy(tmp_path: Path) -> None:
    found = read_last(tmp_path, BASE, layer(hard("new", "in-lower-layer")))
    assert found["new"].data == b"lower"
    assert found["new"] == found["in-lower-layer"] == found["d/linked"]
    assert found["new"].links == 3


DEEP = "/".join("d" * 400)
DIRTY = layer(*(entry(str(n), data=b"d" * 512 * 20 + b"x") for n in range(20))).replace(b"x" + bytes(511), b"x" + bytes(510) + b"x")
BOMBS = {
    "directories that are only on the way": [layer(entry(f"{DEEP}/{n}")) for n in range(4)],
    "files whose last block is not padded": [DIRTY],
    "long links": [layer(*(link(str(n), "t" * 500) for n in range(300)))],
    "extended attributes": [layer(*(entry(str(n), pax=[xattr("user.x", b"\xff" * 4000)]) for n in range(40)))],
}


@pytest.mark.parametrize("name", BOMBS)
def test_all_that_is_written_counts(tmp_path: Path, name: str) -> None:
    """Not only the tars: tables and copies can be a multiple of them."""
    tars = BOMBS[name]
    written = sum(map(len, convert(tmp_path, tars))) + sum(file.stat().st_size for file in tmp_path.glob("*.entries"))
    assert written > 1.5 * sum(map(len, tars))
    again = tmp_path / "again"
    again.mkdir()
    slack = 2 * TAR_START * len(tars)  # what is before the tar, and after the tables
    with pytest.raises(TooLargeError, match="image is too large: more than"):
        convert(again, tars, written - slack - 1)
    assert not list(again.glob("*.e*"))
    convert(again, tars, written)


def test_addresses_end(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    try:
        tree = Tree(Budget(1 << 20))
        tree.apply(iter(()))
        with pytest.raises(ImageError, match="image is too large: a layer of more than 2199023255552 bytes"):
            erofs.write_image(tree, fd, 1 << 41, bytes(16))
    finally:
        os.close(fd)

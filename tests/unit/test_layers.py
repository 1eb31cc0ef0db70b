# SPDX-License-Identifier: Apache-2.0
"""The converter up to the canonical tar: nothing here needs root."""

import gzip
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rktd_units.errors import ImageError
from rktd_units.images import canonical, inflate, layers, records, tree
from rktd_units.images.attributes import Attributes
from rktd_units.images.tarball import parse_number, parse_pax, read_members, show_path
from rktd_units.images.tree import Budget, Tree, clean_path
from tests.layer_cases import (
    BASE,
    CAPABILITY,
    CASES,
    GZIP,
    TAR,
    ZSTD,
    Case,
    X,
    directory,
    entry,
    hard,
    layer,
    link,
    pax_entry,
    sparse_1_0,
    xattr,
)

CHAIN = "sha256:" + "1" * 64


def spooled(stack: ExitStack, tar: bytes) -> int:
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    file.write(tar)
    file.flush()
    return file.fileno()


def delta_of(*tars: bytes, budget: Budget | None = None) -> bytes:
    """The canonical tar of the last layer."""
    merged = Tree(budget or Budget(1 << 24))
    with ExitStack() as stack:
        for tar in tars:
            merged.apply(read_members(spooled(stack, tar)))
        delta = canonical.build_delta(merged, tempfile.gettempdir())
        stack.callback(delta.headers.close)
        received = stack.enter_context(tempfile.TemporaryFile())
        canonical.send_delta(delta, received.fileno())
        received.seek(0)
        return received.read()


def listing(tar: bytes) -> dict[str, tuple[str, str | bytes]]:
    """What Python's own reader sees: name to (type, link name or content)."""
    with tarfile.open(fileobj=io.BytesIO(tar), format=tarfile.PAX_FORMAT) as archive:
        found: dict[str, tuple[str, str | bytes]] = {}
        for member in archive.getmembers():
            content = archive.extractfile(member) if member.isreg() else None
            found[member.name] = (member.type.decode(), member.linkname if content is None else content.read())
        return found


def opaque(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return [m.name for m in archive.getmembers() if "SCHILY.xattr.trusted.overlay.opaque" in m.pax_headers]


def whiteouts(tar: bytes) -> list[str]:
    return [name for name, (kind, _) in listing(tar).items() if kind == "3"]


def test_chain_ids_name_the_layer_and_all_below() -> None:
    a, b, c = (f"sha256:{digit * 64}" for digit in "abc")
    ab = "sha256:" + hashlib.sha256(f"{a} {b}".encode()).hexdigest()
    assert records.chain_ids([a, b, c]) == (a, ab, "sha256:" + hashlib.sha256(f"{ab} {c}".encode()).hexdigest())
    assert records.chain_ids([]) == ()


def test_layer_key_changes_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {records.layer_key(CHAIN), records.layer_key(CHAIN + "0"), records.layer_key(CHAIN, insecure=True)}
    monkeypatch.setattr(records, "CONVERTER_VERSION", records.CONVERTER_VERSION + 1)
    keys.add(records.layer_key(CHAIN))
    assert len(keys) == 4
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys)


def test_nothing_wanted_makes_nothing(tmp_path: Path) -> None:
    assert layers.convert_layers([layers.LayerInput("/nonexistent", TAR, CHAIN)], [], str(tmp_path), 1) == ()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("case", [c for c in CASES if c.refusal], ids=lambda case: case.name)
def test_refusal_names_layer_and_path(case: Case, tmp_path: Path) -> None:
    inputs = []
    contents = case.contents or case.layers
    types = case.types or (TAR,) * len(contents)
    for index, (blob, content) in enumerate(zip(case.layers, contents, strict=True)):
        path = tmp_path / f"{index}.blob"
        path.write_bytes(blob)
        inputs.append(layers.LayerInput(str(path), types[index], "sha256:" + hashlib.sha256(content).hexdigest()))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ImageError, match=case.refusal) as caught:
        layers.convert_layers(inputs, [len(inputs) - 1], str(out), 1 << 30)
    assert str(caught.value).startswith(f"layer {len(inputs)} of {len(inputs)}: ")
    assert "\n" not in str(caught.value)
    assert os.listdir(out) == []


def test_delta_holds_what_changed_and_its_parents() -> None:
    tar = delta_of(BASE, layer(entry("usr/lib/new", data=b"n"), entry(".wh.x"), entry("d/.wh.a")))
    assert list(listing(tar)) == [".", "d", "d/a", "usr", "usr/lib", "usr/lib/new", "x"]
    assert whiteouts(tar) == ["d/a", "x"]
    assert opaque(tar) == []


@pytest.mark.parametrize(
    ("entries", "marked", "deleted"),
    [
        pytest.param([entry("d/.wh..wh..opq")], ["d"], [], id="mark"),
        pytest.param([entry(".wh.d"), directory("d/")], ["d"], [], id="deleted and made anew"),
        pytest.param([directory("x/"), entry("x/y")], ["x"], [], id="in place of a file"),
        pytest.param([entry("d/sub/n"), entry("d/sub/.wh.deep"), entry("d/.wh..wh..opq")], ["d"], [], id="no whiteout below a mark"),
        pytest.param([entry(".wh..wh..opq"), directory("d/")], ["d"], None, id="root has no mark but whiteouts"),
        pytest.param([directory("new/"), entry("new/.wh..wh..opq"), entry("new/.wh.x")], [], [], id="nothing below a new one"),
    ],
)
def test_opaque_directories(entries: Sequence[bytes], marked: list[str], deleted: list[str] | None) -> None:
    tar = delta_of(BASE, layer(*entries))
    assert opaque(tar) == marked
    if deleted is not None:
        assert whiteouts(tar) == deleted
    else:
        assert whiteouts(tar) == ["absolute", "etc", "in-lower-layer", "lib", "root", "shared", "tmp", "up", "usr", "x"]


def test_link_to_lower_layer_brings_every_name_of_the_file() -> None:
    found = listing(delta_of(BASE, layer(hard("new", "in-lower-layer"))))
    assert found == {
        ".": ("5", ""),
        "d": ("5", ""),
        "d/linked": ("0", b"lower"),
        "in-lower-layer": ("1", "d/linked"),
        "new": ("1", "d/linked"),
    }


def test_same_tree_gives_the_same_tar_whatever_the_order() -> None:
    entries = [
        entry("b/f", data=b"1"),
        entry("a", data=b"2"),
        directory("b/"),
        link("l", "a"),
        entry("c", pax=[xattr("user.b", b"1"), xattr("user.a", b"2")]),
    ]
    other = [
        directory("b/"),
        entry("c", pax=[xattr("user.a", b"2"), xattr("user.b", b"1")]),
        link("l", "a"),
        entry("a", data=b"2"),
        entry("b/f", data=b"1"),
    ]
    assert delta_of(layer(*entries)) == delta_of(layer(*other))


def test_canonical_header_carries_what_ustar_cannot() -> None:
    path, target = b"p" * 240, b"t" * 4095
    header = canonical._headers(path, b"2", Attributes(0o777, 65535, 1, -1_500_000_000, ((b"user.x", b"\0=\n\xff"),)), 0, target, (0, 0))
    with tarfile.open(fileobj=io.BytesIO(header + bytes(1024)), errors="surrogateescape") as archive:
        (member,) = archive.getmembers()
    assert (member.name.encode(), member.linkname.encode(), member.uid, member.gid) == (path, target, 65535, 1)
    assert member.pax_headers["mtime"] == "-2.500000000"
    assert member.pax_headers["SCHILY.xattr.user.x"].encode(errors="surrogateescape") == b"\0=\n\xff"
    large = canonical._headers(b"big", b"0", Attributes(0o644, 0, 0, 0), 1 << 40, b"", (0, 0))
    assert b"size=1099511627776\n" in large


@pytest.mark.parametrize(
    ("path", "parts"),
    [("/a//b/./c/", "a b c"), ("../../x", "x"), ("a/../../b", "b"), ("", ""), (".", ""), ("a/..", ""), ("..a/b..", "..a b..")],
)
def test_clean_path(path: str, parts: str) -> None:
    assert b" ".join(clean_path(path.encode())).decode() == parts


def test_show_path_is_one_printable_line() -> None:
    assert show_path(b"a\nb\x1b[31m\xff") == r"a\x0ab\x1b[31m\xff"
    assert len(show_path(b"x" * 5000)) < 300


@pytest.mark.parametrize(
    ("field", "value"),
    [(b"0000755\0", 0o755), (b"   17 \0", 0o17), (b"\0" * 8, 0), (b"\x80" + bytes(5) + b"\1\0", 256), (b"\xff" * 8, -1)],
)
def test_parse_number(field: bytes, value: int) -> None:
    assert parse_number(field, "size", "f") == value


@pytest.mark.parametrize("field", [b"0o17\0\0\0\0", b"1_7\0\0\0\0\0", b"-17\0\0\0\0\0", b"8\0\0\0\0\0\0\0"])
def test_parse_number_refuses_what_only_python_takes(field: bytes) -> None:
    with pytest.raises(ImageError, match="f: size is not a number"):
        parse_number(field, "size", "f")


def test_parse_pax_last_of_a_key_counts() -> None:
    assert parse_pax(b"6 a=1\n7 b==x\n6 a=2\n", 0) == {b"a": b"2", b"b": b"=x"}


def test_long_chain_of_extension_headers_is_no_recursion() -> None:
    assert "f" in listing(delta_of(layer(*(pax_entry([(b"comment", b"c")]) for _ in range(3000)), entry("f"))))


def test_limits_stop_bombs(tmp_path: Path) -> None:
    blob = tmp_path / "bomb.gz"
    blob.write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(ImageError, match="image is too large: more than 1000000 bytes unpacked"):
        inflate.inflate_layer(str(blob), GZIP, str(tmp_path), Budget(1_000_000))
    with pytest.raises(ImageError, match="image is too large: more than 100000 bytes"):
        delta_of(layer(sparse_1_0("s", 1 << 40, (0,), (b"a",))), budget=Budget(100_000))
    with pytest.raises(ImageError, match="image is too large: more than 50 files"):
        delta_of(layer(*(entry("/".join(["d"] * 40) + f"{n}/f") for n in range(10))), budget=Budget(1 << 20, 50))
    with pytest.raises(ImageError, match="image is too large: more than 3000 bytes"):
        delta_of(layer(entry("f", data=b"x" * 4000)), layer(hard("g", "f")), layer(hard("h", "f")), budget=Budget(3_000))


@pytest.mark.parametrize("head", [BASE, b"", bytes(1024)], ids=["ustar", "empty", "end mark"])
def test_plain_tar_is_used_in_place(head: bytes, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(head)
    spool = inflate.inflate_layer(str(blob), TAR, str(tmp_path), Budget(1 << 20))
    with spool.file:
        assert spool.file.name == str(blob)
    assert (spool.size, spool.diff_id) == (len(head), "sha256:" + hashlib.sha256(head).hexdigest())


@pytest.mark.parametrize("without", [(), ("isal", "isal.igzip")], ids=["isal if there", "zlib"])
@pytest.mark.parametrize("parts", [1, 3])
def test_gzip_members(without: Sequence[str], parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in without:
        monkeypatch.setitem(sys.modules, name, None)
    step = -(-len(BASE) // parts)
    packed = b"".join(gzip.compress(BASE[at : at + step]) for at in range(0, len(BASE), step))
    blob = tmp_path / "blob"
    blob.write_bytes(packed + bytes(100))  # some tools pad
    with inflate.inflate_layer(str(blob), GZIP, str(tmp_path), Budget(1 << 20)).file as file:
        file.seek(0)
        assert file.read() == BASE
    blob.write_bytes(packed[:-9])
    with pytest.raises(ImageError, match="compressed data is damaged or cut off"):
        inflate.inflate_layer(str(blob), GZIP, str(tmp_path), Budget(1 << 20))


def test_zstd_without_a_module_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    blob = tmp_path / "blob"
    blob.write_bytes(inflate.ZSTD_MAGIC + b"rest")
    with pytest.raises(ImageError, match="compressed with zstd") as caught:
        inflate.inflate_layer(str(blob), ZSTD, str(tmp_path), Budget(1 << 20))
    assert caught.value.hint == "install python3-zstandard"


def test_missing_parents_inherit_the_set_group_id_bit() -> None:
    tar = delta_of(BASE, layer(entry("shared/new/f", **X)))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        new = archive.getmember("shared/new")
    assert (oct(new.mode), new.uid, new.gid, new.mtime) == ("0o2755", 0, 50, 0)


SEEDS = sorted({c.layers[-1] for c in CASES if not c.types and len(c.layers[-1]) < 20000})


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_no_damage_raises_anything_but_image_error(data: st.DataObject) -> None:
    tar = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, max(len(tar) - 1, 0)))
        tar[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        # Most damage would only meet the checksum: make it good again, header by header.
        block = at // 512 * 512
        if len(tar) >= block + 512:
            head = tar[block : block + 148] + b" " * 8 + tar[block + 156 : block + 512]
            tar[block + 148 : block + 156] = b"%06o\0 " % sum(head)
    if data.draw(st.booleans()):
        del tar[data.draw(st.integers(0, len(tar))) :]
    with suppress(ImageError):
        delta_of(BASE, bytes(tar), budget=Budget(1 << 20))


def test_entry_limit_is_two_million() -> None:
    assert tree.MAX_ENTRIES == 2_000_000


def test_repeated_whiteouts_cost_nothing() -> None:
    """Each mark or whiteout of a directory that this layer has filled looked at all of it again: the square of a layer's length."""
    count = 4000
    base = layer(directory("d/"), *(entry(f"d/{n}") for n in range(count)))
    again = layer(*(entry(f"d/{n}") for n in range(count)), *[entry("d/.wh..wh..opq"), entry(".wh.d")] * count)
    began = time.monotonic()
    assert len([name for name in listing(delta_of(base, again)) if name.startswith("d/")]) == count
    assert time.monotonic() - began < 10


def test_only_capabilities_are_security_attributes() -> None:
    attributes = [xattr(f"security.{name}", b"x") for name in ("selinux", "ima", "evm", "apparmor", "SMACK64", "foo")]
    tar = delta_of(layer(entry("f", pax=[*attributes, xattr("security.capability", CAPABILITY), xattr("user.a", b"1")])))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        headers = {key for member in archive for key in member.pax_headers if key.startswith("SCHILY.xattr.security.")}
    assert headers == {"SCHILY.xattr.security.capability"}

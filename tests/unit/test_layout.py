# SPDX-License-Identifier: Apache-2.0
"""OCI layouts and docker-archives."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from rktd_units.errors import ImageError
from rktd_units.images import layout, manifest
from tests.image_cases import dump, make_image, make_index, make_tar, sha256, write_archive, write_layout

LIMIT = 1 << 20


def test_layout_by_name(tmp_path: Path) -> None:
    one, two = make_image({"1": b""}), make_image({"2": b""})
    data = layout.read_index(str(write_layout(tmp_path / "l", {"one": one, "two": two})))
    assert layout.find_digest(data, "two") == two.digest
    with pytest.raises(ImageError, match="has no image called 'three'; names in it: one, two"):
        layout.find_digest(data, "three")
    with pytest.raises(ImageError, match="has 2 images; names in it: one, two") as caught:
        layout.find_digest(data, "")
    assert "oci:PATH:NAME" in caught.value.hint


def test_only_image_needs_no_name(tmp_path: Path) -> None:
    image = make_image()
    assert layout.find_digest(layout.read_index(str(write_layout(tmp_path / "l", {"": image}))), "") == image.digest


def test_not_a_layout(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"it has no index\.json"):
        layout.read_index(str(tmp_path))
    with pytest.raises(ImageError, match="no such directory"):
        layout.read_index(str(tmp_path / "none"))
    with pytest.raises(ImageError, match="no such directory"):
        layout.open_blob(str(tmp_path / "none"), sha256(b""))
    with pytest.raises(ImageError, match="has no blob sha256:"):
        layout.open_blob(str(tmp_path), sha256(b""))
    (tmp_path / "index.json").symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="must be a regular file"):
        layout.read_index(str(tmp_path))


@pytest.mark.parametrize("packed", [False, True])
def test_layout_in_an_archive(tmp_path: Path, packed: bool) -> None:
    """Only what the image needs comes out; a multi-platform index is kept, since it is what a pin names."""
    one, two, foreign = make_image({"a": b"1"}, {"b": b"2"}), make_image({"c": b"3"}), make_image(architecture="vax")
    here = manifest.host_platform()
    platforms = [{"os": "linux", "architecture": a} for a in ("vax", here.architecture)]
    index = make_index((foreign, platforms[0]), (two, platforms[1]))
    path = write_layout(tmp_path / "l", {"one": one, "two": two, "foreign": foreign})
    (path / "blobs/sha256" / sha256(index)[7:]).write_bytes(index)
    top = json.loads((path / "index.json").read_text())
    top["manifests"].append({"mediaType": manifest.OCI_INDEX, "digest": sha256(index), "size": len(index)})
    top["manifests"][-1]["annotations"] = {manifest.REF_NAME: "many"}
    (path / "index.json").write_bytes(dump(top))
    archive = tmp_path / "a.tar"
    archive.write_bytes(make_tar({str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}))
    if packed:
        archive.write_bytes(gzip.compress(archive.read_bytes()))
    for name, digest, wanted in (("one", "", one), ("", two.digest, two), ("many", "", two)):
        out = tmp_path / f"out-{name}"
        out.mkdir()
        found = layout.unpack_layout(str(archive), str(out), name, digest, LIMIT)
        assert found == (sha256(index) if name == "many" else wanted.digest)
        assert {f.name for f in out.iterdir()} == {d[7:] for d in (*wanted.blobs, found)}
    with pytest.raises(ImageError, match="has no image called 'four'"):
        layout.unpack_layout(str(archive), str(tmp_path), "four", "", LIMIT)
    with pytest.raises(ImageError, match="the archive: has no member 'blobs/sha256/000"):
        layout.unpack_layout(str(archive), str(tmp_path), "", "sha256:" + "0" * 64, LIMIT)


def test_directory(tmp_path: Path) -> None:
    image = make_image({"a": b"1"})
    for digest, data in image.blobs.items():
        (tmp_path / ("manifest.json" if digest == image.digest else digest[7:])).write_bytes(data)
    assert layout.hash_manifest(str(tmp_path)) == image.digest
    for digest, data in image.blobs.items():
        with open(layout.open_directory_blob(str(tmp_path), digest), "rb") as file:
            assert file.read() == data
    with pytest.raises(ImageError, match=r"dir:.*: has no blob sha256:000"):
        layout.open_directory_blob(str(tmp_path), "sha256:" + "0" * 64)
    with pytest.raises(ImageError, match=r"is not an image's directory: it has no manifest\.json"):
        layout.hash_manifest("/")


@pytest.mark.parametrize("packed", [False, True])
def test_archive(tmp_path: Path, packed: bool) -> None:
    image = make_image({"a": b"1"}, {"b": b"2"})
    path = write_archive(tmp_path / "a.tar", image)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    out = tmp_path / "out"
    out.mkdir()
    told: list[tuple[int, int]] = []
    digest = layout.unpack_archive(str(path), str(out), LIMIT, lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {path.stat().st_size}
    assert all(0 < done <= total for done, total in told)
    parsed = manifest.parse_manifest((out / digest[7:]).read_bytes(), digest)
    assert (out / parsed.config.digest[7:]).read_bytes() == image.config
    assert [(out / d.digest[7:]).read_bytes() for d in parsed.layers] == list(image.layers)
    assert {d.media_type for d in parsed.layers} == {manifest.LAYER_TAR}
    assert len(list(out.iterdir())) == 4


def unpack(tmp_path: Path, data: bytes) -> str:
    (tmp_path / "a.tar").write_bytes(data)
    (tmp_path / "out").mkdir()
    return layout.unpack_archive(str(tmp_path / "a.tar"), str(tmp_path / "out"), LIMIT)


def test_archive_with_links_and_gzipped_layer(tmp_path: Path) -> None:
    layer = gzip.compress(make_tar({"a": b"1"}))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        files = {"x/real": layer, "c": b"{}", "manifest.json": dump([{"Config": "c", "Layers": ["l1/layer.tar", "l2/layer.tar"]}])}
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind, target in (("l1/layer.tar", tarfile.SYMTYPE, "../x/real"), ("l2/layer.tar", tarfile.LNKTYPE, "x/real")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    digest = unpack(tmp_path, out.getvalue())
    layers = json.loads((tmp_path / "out" / digest[7:]).read_bytes())["layers"]
    assert [(d["mediaType"], d["digest"]) for d in layers] == [(manifest.LAYER_GZIP, sha256(layer))] * 2


def link_loop() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("manifest.json")
        member.type, member.linkname = tarfile.SYMTYPE, "manifest.json"
        tar.addfile(member)
    return out.getvalue()


def pax(records: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("x")
        member.type, member.size = tarfile.XHDTYPE, len(records)
        tar.addfile(member, io.BytesIO(records))
    return out.getvalue() + make_tar({"manifest.json": b"[]"})


def many_headers() -> bytes:
    """Each says something of the next: tarfile calls itself for each."""
    member = tarfile.TarInfo("x")
    member.type = tarfile.XHDTYPE
    return member.tobuf(tarfile.PAX_FORMAT) * 5000 + make_tar({"manifest.json": b"[]"})


ENTRY = {"Config": "c", "Layers": ["l"]}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not a readable tar"),
        (b"no tar at all" * 100, "not a readable tar"),
        (b"\x1f\x8bjunk", "not a readable tar"),
        (gzip.compress(b"")[:10] + b"\xff" * 100, "not a readable tar"),  # a block of no known kind: zlib.error
        (gzip.compress(make_tar({"manifest.json": b"[]"}))[:-20], "not a readable tar"),
        (pax(b"26 GNU.sparse.size=x12345\n"), "(not a readable tar|must hold one image)"),
        (pax(b"22 GNU.sparse.map=1,z\n"), "(not a readable tar|must hold one image)"),
        (many_headers(), "not a readable tar"),
        (make_tar({"a": b""}), "has no member 'manifest.json'"),
        (make_tar({"manifest.json": b"{"}), "not valid JSON"),
        (make_tar({"manifest.json": b"{}"}), "must be a list"),
        (make_tar({"manifest.json": dump([ENTRY, ENTRY])}), "must hold one image, has 2"),
        (make_tar({"manifest.json": dump([{"Config": 1, "Layers": []}])}), "Config must be a string"),
        (make_tar({"manifest.json": dump([{"Config": "../../etc/passwd", "Layers": []}])}), "has no member"),
        (make_tar({"manifest.json": dump([ENTRY]), "c": b"{}"}), "has no member 'l'"),
        (make_tar({"manifest.json": dump([ENTRY]), "c": b"{}", "l": b"x" * (LIMIT + 1)}), "larger than the limit"),
        (link_loop(), "too many links"),
        (make_tar({"manifest.json": dump([ENTRY]), "c": b"{}", "l": b"x" * 5000})[:4000], "(cut short|not a readable tar|no member)"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_archives(tmp_path: Path, data: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        unpack(tmp_path, data)


def test_a_name_and_a_pin_must_agree(tmp_path: Path) -> None:
    layout.check_name("t", "sha256:a", "")
    layout.check_name("t", "sha256:a", "sha256:a")
    with pytest.raises(ImageError, match="'t' is sha256:a, but the pinned digest is sha256:b"):
        layout.check_name("t", "sha256:a", "sha256:b")

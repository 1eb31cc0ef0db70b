# SPDX-License-Identifier: Apache-2.0
"""The store: what it believes, what it deletes, what a crash or a full disk leaves."""

import errno
import os
import threading
from pathlib import Path

import pytest

from rktd_units.errors import ImageError, StateError, TemporaryError
from rktd_units.images import store
from rktd_units.images.records import TAR_START, VERSION, ImageRecord
from rktd_units.images.store import LayerHash, Store, hash_image, told_errors
from rktd_units.paths import Layout
from tests.image_cases import sha256

KEY = "ab" * 32
DATA = b"some bytes"


@pytest.fixture
def shelf(tmp_path: Path) -> Store:
    shelf = Store(Layout(str(tmp_path)))
    shelf.prepare()
    return shelf


def put_layer(shelf: Store, data: bytes = DATA) -> Path:
    path = Path(shelf.layout.work, "x")
    path.write_bytes(data)
    with open(path, "rb") as file, shelf.lock(f"layer-{KEY}"):
        shelf.adopt_layer(str(path), file.fileno(), KEY, hash_image(file.fileno(), 100))
    return Path(shelf.layer_path(KEY))


def test_entries_are_believed_while_they_are_what_was_adopted(shelf: Store) -> None:
    put_layer(shelf)
    assert shelf.find_entries(KEY) == ""  # none were given
    for name in ("x", "y"):
        Path(shelf.layout.work, name).write_bytes(DATA)
    with open(f"{shelf.layout.work}/x", "rb") as x, open(f"{shelf.layout.work}/y", "rb") as y, shelf.lock(f"layer-{KEY}"):
        shelf.adopt_layer(x.name, x.fileno(), KEY, hash_image(x.fileno(), 0), (y.name, y.fileno()))
        assert shelf.hash_layer(KEY)
    path = Path(shelf.find_entries(KEY))
    assert path.read_bytes() == DATA
    path.write_bytes(b"other")
    assert shelf.find_entries(KEY) == ""
    path.unlink()
    assert shelf.find_entries(KEY) == ""
    path.symlink_to(shelf.layer_path(KEY))
    assert shelf.find_entries(KEY) == ""


def put_blob(shelf: Store, data: bytes = DATA) -> Path:
    source = Path(shelf.layout.work, "source")
    source.write_bytes(data)
    with open(source, "rb") as file:
        shelf.copy_blob(file.fileno(), sha256(data), len(data), shelf.layout.work)
    source.unlink()
    return Path(shelf.blob_path(sha256(data)))


def record(**more: str) -> ImageRecord:
    values = {"reference": "oci:/a", "pin": "sha256:" + "1" * 64, "manifest": "sha256:" + "2" * 64, "config": "sha256:" + "3" * 64}
    return ImageRecord(
        version=VERSION, layer_keys=(KEY,), insecure=False, converter=1, verified_by="digest pin", time=0, **{**values, **more}
    )


def test_directories_are_private(shelf: Store) -> None:
    for path in (shelf.layout.state, shelf.layout.blobs, shelf.layout.layers, shelf.layout.images, shelf.layout.work):
        assert os.stat(path).st_mode & 0o777 == 0o700


def test_blob(shelf: Store) -> None:
    path = put_blob(shelf)
    assert path.read_bytes() == DATA
    assert Store(shelf.layout).has_blob(sha256(DATA))
    assert shelf.read_blob(sha256(DATA), 100) == DATA
    assert shelf.blob_names() == [sha256(DATA)]
    assert os.listdir(shelf.layout.work) == []


def test_damaged_blob_is_deleted(shelf: Store) -> None:
    path = put_blob(shelf)
    path.write_bytes(b"other")
    assert not Store(shelf.layout).has_blob(sha256(DATA))
    assert not path.exists()
    path = put_blob(shelf)
    path.write_bytes(b"other")
    with pytest.raises(FileNotFoundError, match="damaged"):
        shelf.read_blob(sha256(DATA), 100)
    assert not path.exists()


@pytest.mark.parametrize(("digest", "limit", "match"), [(sha256(b"x"), 100, "another digest"), (sha256(DATA), 3, "larger than 3")])
def test_wrong_bytes_leave_nothing(shelf: Store, digest: str, limit: int, match: str) -> None:
    source = Path(shelf.layout.root, "source")
    source.write_bytes(DATA)
    with open(source, "rb") as file, pytest.raises(ImageError, match=match):
        shelf.copy_blob(file.fileno(), digest, limit, shelf.layout.work)
    assert os.listdir(shelf.layout.work) == os.listdir(shelf.layout.blobs) == []


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha256:" + "A" * 64, ""])
def test_bad_digests(shelf: Store, digest: str) -> None:
    with pytest.raises(ImageError, match="bad digest"):
        shelf.blob_path(digest)


def test_layer(shelf: Store) -> None:
    path = put_layer(shelf)
    assert shelf.verify_layer(KEY)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("locked", [False, True])
def test_edited_layer_is_deleted_though_size_and_mtime_are_kept(shelf: Store, locked: bool) -> None:
    path = put_layer(shelf)
    status = path.stat()
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    if locked:
        with shelf.lock(f"layer-{KEY}"):
            assert not shelf.verify_layer(KEY, locked=True)
    else:
        assert not shelf.verify_layer(KEY)
    assert not path.exists()


def test_restored_layer_is_hashed_once_and_kept(shelf: Store) -> None:
    path = put_layer(shelf)
    path.unlink()
    path.write_bytes(DATA)
    before = Path(shelf.layout.layers, f"{KEY}.json").read_text()
    assert shelf.verify_layer(KEY)
    assert Path(shelf.layout.layers, f"{KEY}.json").read_text() != before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 2}', '{"version": 2, "sha256": 1, "size": "x"}'])
def test_layer_without_a_good_record_is_not_believed(shelf: Store, text: str) -> None:
    path = put_layer(shelf)
    Path(shelf.layout.layers, f"{KEY}.json").write_text(text)
    assert not shelf.verify_layer(KEY)
    assert not path.exists()


def test_link_in_place_of_a_layer(shelf: Store, tmp_path: Path) -> None:
    path = put_layer(shelf)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not shelf.verify_layer(KEY)
    assert not path.is_symlink()
    assert (tmp_path / "elsewhere").exists()


def test_image_records(shelf: Store) -> None:
    one = record()
    shelf.write_image(one)
    assert shelf.find_image("oci:/a") == one
    assert shelf.find_pin("registry", one.pin) == one
    assert shelf.find_pin("docker-archive", one.pin) is None
    assert shelf.find_image("oci:/b") is None
    two = record(reference="docker-archive:/a", pin=one.pin)
    shelf.write_image(two)
    assert shelf.find_pin("docker-archive", one.pin) == two
    assert shelf.list_images() == [two, one]


@pytest.mark.parametrize("text", ["", "null", '{"version": 1}', "{}"])
def test_damaged_image_record_is_absent(shelf: Store, text: str) -> None:
    shelf.write_image(record())
    for path in Path(shelf.layout.images).iterdir():
        path.write_text(text)
    assert shelf.find_image("oci:/a") is None
    assert shelf.list_images() == []


def test_full_disk_is_temporary() -> None:
    with pytest.raises(TemporaryError, match="No space left"), told_errors():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x")
    with pytest.raises(StateError, match="Permission denied: /x"), told_errors():
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), "/x")


def test_full_disk_leaves_nothing(shelf: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        put_blob(shelf)
    assert os.listdir(shelf.layout.blobs) == []


def test_locks_exclude_threads_and_do_not_deadlock(shelf: Store) -> None:
    inside, most = 0, 0

    def work(names: tuple[str, ...]) -> None:
        nonlocal inside, most
        for _ in range(50):
            with shelf.lock(*names):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work, args=(n,)) for n in (("a", "b"), ("b", "a"), ("a", "b", "c"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == 1


def test_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("pipe", "link"):
        with pytest.raises(ImageError, match="must be a regular file"):
            store.open_regular(str(tmp_path / name))
    with pytest.raises(ImageError, match="must be a regular file"):
        store.open_regular(str(tmp_path))


def flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def test_any_flipped_byte_of_a_record_is_found(shelf: Store) -> None:
    """Where it still is JSON, the checksum tells; what stays as it was is what was written."""
    one = record()
    shelf.write_image(one)
    path = next(p for p in Path(shelf.layout.images).iterdir() if not p.name.startswith("pin-"))
    good = path.read_bytes()
    for index in range(len(good)):
        flip(path, index)
        assert shelf.find_image("oci:/a") in (None, one), good[index : index + 10]
        path.write_bytes(good)
    put_layer(shelf)
    path = Path(shelf.layout.layers, f"{KEY}.json")
    flip(path, path.read_bytes().index(b'"rest": "') + 12)
    assert not shelf.verify_layer(KEY)


def test_what_cannot_be_read_is_damaged(shelf: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    blob, layer = put_blob(shelf), put_layer(shelf)
    os.utime(layer)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    assert not Store(shelf.layout).has_blob(sha256(DATA))
    assert not shelf.verify_layer(KEY)
    assert not blob.exists()
    assert not layer.exists()


@pytest.mark.parametrize("tar_size", [0, 3000, 5000, 1 << 60])
@pytest.mark.parametrize("index", [0, 4095, 4096, 7095, 7096, 8191])
def test_each_byte_of_a_layer_counts(shelf: Store, tar_size: int, index: int) -> None:
    data = bytearray(8192)
    path = Path(shelf.layout.work, "x")
    path.write_bytes(data)
    with open(path, "rb") as file, shelf.lock(f"layer-{KEY}"):
        found = hash_image(file.fileno(), tar_size)
        assert f"sha256:{found.tar}" == sha256(bytes(min(tar_size, 4096)))
        shelf.adopt_layer(str(path), file.fileno(), KEY, found)
    layer = Path(shelf.layer_path(KEY))
    data[index] = 1
    layer.write_bytes(data)
    assert not shelf.verify_layer(KEY)
    assert not layer.exists()


@pytest.mark.parametrize("stated", [4097, 1 << 62, (1 << 63) - TAR_START - 2, 1 << 80])
def test_a_tar_ends_with_its_file(shelf: Store, stated: int) -> None:
    """A sandboxed job says how large it is: an image that is nothing but the tar has no tables of its own."""
    path = Path(shelf.layout.work, "x")
    path.write_bytes(bytes(8192))
    with open(path, "rb") as file:
        assert hash_image(file.fileno(), stated) == hash_image(file.fileno(), 4096)


def test_layer_that_the_kernel_checks(shelf: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fs-verity the digest counts, not the times; see tests/integration for the real one."""
    measured = ["1:aa"]
    monkeypatch.setattr(store, "enable_verity", lambda path: measured[0])
    monkeypatch.setattr(store, "measure_verity", lambda fd: measured[0])
    path = put_layer(shelf)
    os.utime(path)
    monkeypatch.setattr(store, "hash_image", lambda fd, size: pytest.fail("hashed"))
    assert shelf.verify_layer(KEY)
    measured[0] = "1:bb"
    monkeypatch.setattr(store, "hash_image", lambda fd, size: LayerHash(size, "other", "other"))
    assert not shelf.verify_layer(KEY)
    assert not path.exists()


def test_collection_waits_for_users(shelf: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    with shelf.used(), Store(shelf.layout).used(), pytest.raises(TemporaryError, match="in use"), shelf.alone():
        pass
    with shelf.alone():
        pass

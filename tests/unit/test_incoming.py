# SPDX-License-Identifier: Apache-2.0
"""The incoming directory: whatever a member of the group puts there, root takes bytes by their digest only."""

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dbus_next")

from rktd_units.cli import incoming as cli
from rktd_units.errors import ImageError, PrivilegeError, TemporaryError
from rktd_units.images import incoming, jobs, ready
from rktd_units.images.incoming import (
    Incoming,
    bound_incoming,
    complete_layout,
    list_deliveries,
    new_delivery,
    read_reference,
    remove_delivery,
)
from rktd_units.images.reference import parse_reference
from rktd_units.images.store import Store, hash_file
from rktd_units.paths import Layout
from rktd_units.settings import Settings
from rktd_units.systemd import Property, ServiceResult
from tests.image_cases import Bench, MadeImage, make_image, sha256


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    bench = Bench()
    monkeypatch.setattr(jobs, "run_service", bench.run_service)
    monkeypatch.setattr(jobs, "stop_units", lambda names: None)
    layout = Layout(str(tmp_path))
    os.makedirs(layout.incoming)
    Store(layout).prepare()
    return layout


def deliver(layout: Layout, made: MadeImage, name: str = "ex.org/a") -> str:
    """Gives the name of the delivery."""
    reference = parse_reference(f"{name}@{made.digest}")
    with new_delivery(layout, reference) as blobs:
        for digest, data in made.blobs.items():
            Path(blobs, digest[7:]).write_bytes(data)
        Path(blobs, "junk.part").write_bytes(b"")
        complete_layout(blobs, reference, made.digest)
    (delivery,) = list_deliveries(layout.incoming)
    return delivery


def test_pinned_image_comes_without_the_registry(layout: Layout) -> None:
    made = make_image()
    delivery = deliver(layout, made)
    reference = read_reference(layout, delivery)
    assert reference == f"ex.org/a@{made.digest}"
    assert not Path(layout.incoming, delivery, "blobs/sha256/junk.part").exists()
    image = ready.ready_image(reference, "Never", Settings(), layout, lambda event: None)
    assert image.manifest_digest == made.digest
    assert ready.ready_image(f"oci:{layout.incoming}/{delivery}@{made.digest}", "Never", Settings(), layout, lambda event: None)
    remove_delivery(layout, delivery)
    ready.ready_image(reference, "Never", Settings(), layout, lambda event: None)


@pytest.mark.parametrize("victim", range(3))
def test_other_bytes_are_not_taken(layout: Layout, victim: int) -> None:
    made = make_image()
    delivery = deliver(layout, made)
    digest = list(made.blobs)[victim]
    Path(layout.incoming, delivery, "blobs/sha256", digest[7:]).write_bytes(b"other")
    with pytest.raises(ImageError, match="is not present"):
        ready.ready_image(f"ex.org/a@{made.digest}", "Never", Settings(), layout, lambda event: None)
    assert digest not in Store(layout).blob_names()
    assert os.listdir(layout.work) == []


@pytest.mark.parametrize("how", ["link to the blob", "link to the directory", "pipe", "directory", "too large"])
def test_traps_are_not_followed(layout: Layout, tmp_path: Path, how: str) -> None:
    data = b"secret"
    digest = sha256(data)
    blobs = Path(layout.incoming, "x/blobs/sha256")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / digest[7:]).write_bytes(data)
    if how == "link to the directory":
        blobs.parent.mkdir(parents=True)
        blobs.symlink_to(tmp_path / "elsewhere")
    else:
        blobs.mkdir(parents=True)
        path = blobs / digest[7:]
        if how == "link to the blob":
            path.symlink_to(tmp_path / "elsewhere" / digest[7:])
        elif how == "pipe":
            os.mkfifo(path)
        elif how == "directory":
            path.mkdir()
        else:
            path.write_bytes(data)
    assert not Incoming(layout).copy(Store(layout), digest, 5 if how == "too large" else 100)
    assert Store(layout).blob_names() == []


def put_blob(layout: Layout, delivery: str, name: str, data: bytes) -> Path:
    path = Path(layout.incoming, delivery, "blobs/sha256")
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(data)
    return path / name


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of NAME-more in the incoming directory is one that NAME alone has."""

    def changed(status: os.stat_result, path: str) -> os.stat_result:
        name = path.partition("/incoming/")[2].partition("-")[0]
        return os.stat_result((*status[:4], sum(name.encode()), *status[5:]), {"st_ctime": status.st_ctime, "st_blocks": status.st_blocks})

    fstat, stat = os.fstat, os.stat
    monkeypatch.setattr(os, "fstat", lambda fd: changed(fstat(fd), os.readlink(f"/proc/self/fd/{fd}")))
    monkeypatch.setattr(os, "stat", lambda path, **more: changed(stat(path, **more), str(path)))


def test_a_bad_blob_is_tried_once(layout: Layout, owners: None) -> None:
    digest = sha256(b"good")
    put_blob(layout, "x", digest[7:], b"bad")
    put_blob(layout, "y", digest[7:], b"good")
    found = Incoming(layout)
    assert found.digests() == {digest}
    assert found.copy(Store(layout), digest, 100)
    assert found.digests() == set()


def test_bogus_blobs_are_read_twice_at_most_and_never_written(layout: Layout, owners: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def read_file(fd: int, limit: int) -> str:
        read.append(fd)
        return hash_file(fd, limit)

    monkeypatch.setattr(incoming, "hash_file", read_file)
    monkeypatch.setattr(Store, "copy_blob", lambda *_: pytest.fail("written"))
    digests = [sha256(b"1"), sha256(b"2")]
    for digest in digests:
        for owner in "abcd":
            for number in range(5):
                put_blob(layout, f"{owner}-{number}", digest[7:], b"bogus")
    found = Incoming(layout)
    assert not found.copy(Store(layout), digests[0], 3)  # too large: not even read
    assert read == []
    found = Incoming(layout)
    for digest in digests:
        assert not found.copy(Store(layout), digest, 100)
    assert len(read) == 4  # one of each owner


def test_names_are_bounded(layout: Layout, owners: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_NAMES_MAX", 20)
    monkeypatch.setattr(incoming, "_OWNER_NAMES_MAX", 8)
    for delivery in ("a-1", "a-2", "b-1", "c-1", "d-1"):
        for number in range(6):
            put_blob(layout, delivery, sha256(f"{delivery}{number}".encode())[7:], b"")
    assert len(Incoming(layout).digests()) == 20  # 6 and 2 of a, 6 of b, 6 of c


def test_bounds(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "BYTES_MAX", 110_000)
    for name in (".half", "older", "old", "new"):
        put_blob(layout, name, "a", b"x" * 40_000)
        time.sleep(0.01)
    Path(layout.incoming, "strange/blobs/sha256/dir/dir").mkdir(parents=True)
    Path(layout.incoming, "file").write_text("")
    Path(layout.incoming, "link").symlink_to("/etc")
    os.link(put_blob(layout, "linked", "a", b""), Path(layout.incoming, "linked/blobs/sha256/b"))
    with put_blob(layout, "sparse", "a", b"").open("wb") as file:
        file.truncate(120_000)
    assert sorted(bound_incoming(layout)) == [".half", "file", "link", "linked", "older", "sparse", "strange"]
    assert sorted(os.listdir(layout.incoming)) == ["new", "old"]


def test_age_is_not_the_owners_to_set(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, when in (("kept", 0.0), ("future", time.time() + 9e6)):
        put_blob(layout, name, "a", b"")
        os.utime(Path(layout.incoming, name), (when, when))
    assert bound_incoming(layout) == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + incoming.AGE_MAX + 1)
    assert sorted(bound_incoming(layout)) == ["future", "kept"]


def test_a_name_that_goes_hides_no_other(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        Path(layout.incoming, name).write_text("")
    stat = os.stat

    def vanish(path: str, **more: Any) -> os.stat_result:
        if str(path).endswith("/incoming/b"):
            raise FileNotFoundError
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", vanish)
    assert sorted(bound_incoming(layout)) == ["a", "c"]


def test_an_owner_has_a_share(layout: Layout, owners: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_DIRECTORIES_MAX", 4)
    monkeypatch.setattr(incoming, "_OWNER_DIRECTORIES_MAX", 2)
    monkeypatch.setattr(incoming, "OWNER_BYTES_MAX", 50_000)
    for name in ("victim-1", "large-1", "large-2", "many-1", "many-2", "many-3", "many-4"):
        put_blob(layout, name, "a", b"x" * (30_000 if name.startswith("large") else 1))
        time.sleep(0.01)
    assert sorted(bound_incoming(layout)) == ["large-1", "many-1", "many-2"]


def test_what_cannot_be_removed_does_not_end_the_run(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner adds a name whenever one goes."""
    for name in ("a", "b", "c"):
        Path(layout.incoming, name, "strange").mkdir(parents=True)
    Path(layout.incoming, "b/file").write_text("")
    unlink = os.unlink

    def add(path: str, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        os.close(os.open(f"{path}1"[-20:], os.O_CREAT | os.O_WRONLY, dir_fd=dir_fd))

    monkeypatch.setattr(os, "unlink", add)
    assert sorted(bound_incoming(layout)) == ["a", "c"]
    assert os.listdir(layout.incoming) == ["b"]


# What `podctl image import` makes of it


@pytest.fixture
def bench(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr(jobs, "run_service", bench.run_service)
    monkeypatch.setattr(cli, "LAYOUT", layout)
    monkeypatch.setattr(cli, "open_store", lambda: Store(layout))
    return bench


def write_reference(layout: Layout, delivery: str, reference: str) -> None:
    Path(layout.incoming, delivery).mkdir(exist_ok=True)
    Path(layout.incoming, delivery, "reference").write_text(f"{reference}\n")


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "dir", "docker-archive", "aci"])
def test_no_file_of_the_host_is_read(
    layout: Layout, bench: Bench, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    pin = "sha512-" + "0" * 128 if kind == "aci" else f"sha256:{'0' * 64}"
    monkeypatch.setattr(cli, "ready_image", lambda *_: pytest.fail("readied"))
    for name, text in (("a", f"{kind}:{secret}@{pin}"), ("b", f"{kind}:{secret}")):
        write_reference(layout, name, text)
    assert cli.run(argparse.Namespace()) == 1
    assert "is no registry's" in capsys.readouterr().err
    assert list_deliveries(layout.incoming) == []


def test_import_of_a_pin_asks_no_registry(layout: Layout, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_image()
    deliver(layout, made)
    write_reference(layout, "0-empty", f"slow.evil/x@sha256:{'0' * 64}")
    assert cli.run(argparse.Namespace()) == 1
    told = capsys.readouterr().err
    assert "slow.evil/x" in told
    assert f"imported ex.org/a@{made.digest}" in told
    assert bench.kinds == ["convert-layers"]


def test_what_comes_during_an_import_is_taken_too(layout: Layout, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would start another run for it (systemd.path(5))."""
    readied: list[str] = []

    def ready_image(reference: str, *_: object) -> object:
        readied.append(reference)
        if len(readied) == 1:
            write_reference(layout, "0-late", f"ex.org/late@sha256:{'0' * 64}")
        raise TemporaryError("full") if len(readied) == 1 else ImageError("bad")

    monkeypatch.setattr(cli, "ready_image", ready_image)
    write_reference(layout, "early", f"ex.org/early@sha256:{'0' * 64}")
    cli.run(argparse.Namespace())
    assert [name.partition("@")[0] for name in readied] == ["ex.org/early", "ex.org/late"]
    assert list_deliveries(layout.incoming) == ["early"]  # for the next try


def test_a_slow_registry_keeps_nobody_from_an_image_of_that_digest(layout: Layout, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_image()
    asked, go_on = threading.Event(), threading.Event()

    def run_service(name: str, properties: Sequence[Property], timeout: float, progress: Callable[[], object]) -> ServiceResult:
        root = next(p.value for p in properties if p.name == "RootDirectory")
        if json.loads(Path(root, "in/request.json").read_text())["kind"] == "pull-image":
            asked.set()
            go_on.wait(20)
            return ServiceResult("timeout", 1, 0)
        return bench.run_service(name, properties, timeout, progress)

    monkeypatch.setattr(jobs, "run_service", run_service)

    def ready_one(name: str, policy: str) -> object:
        return ready.ready_image(f"{name}@{made.digest}", policy, Settings(), layout, lambda event: None)

    with ThreadPoolExecutor(2) as executor:
        slow = executor.submit(ready_one, "slow.evil/x", "IfNotPresent")
        try:
            assert asked.wait(10)
            deliver(layout, made)
            assert executor.submit(ready_one, "ex.org/a", "Never").result(10)
            with Store(layout).alone():  # and collections do not wait for it
                pass
        finally:
            go_on.set()
        with pytest.raises(TemporaryError, match="took too long"):
            slow.result()


def test_failed_delivery_leaves_nothing(layout: Layout) -> None:
    with pytest.raises(OSError, match="cut"), new_delivery(layout, parse_reference("ex.org/a:1")):
        raise OSError("cut")
    assert os.listdir(layout.incoming) == []
    with pytest.raises(PrivilegeError, match="only root may fetch from files"), new_delivery(layout, parse_reference("oci:/x")):
        pass
    with pytest.raises(PrivilegeError, match="No such file"), new_delivery(Layout("/nonexistent"), parse_reference("a")):
        pass


@pytest.mark.parametrize("text", ["", "x" * 5000, "\xff"])
def test_hostile_reference(layout: Layout, text: str) -> None:
    path = Path(layout.incoming, "x")
    path.mkdir()
    (path / "reference").write_bytes(text.encode("latin-1"))
    with pytest.raises(ImageError, match="image reference"):
        ready.ready_image(read_reference(layout, "x"), "IfNotPresent", Settings(), layout, lambda event: None)

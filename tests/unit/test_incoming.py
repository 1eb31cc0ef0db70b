# SPDX-License-Identifier: Apache-2.0
"""The incoming directory: whatever a member of the group puts there, root takes bytes by their digest only."""

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("dbus_next")

from rktd_units.errors import ImageError, PrivilegeError, UsageError
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
from rktd_units.images.store import Store
from rktd_units.paths import Layout
from rktd_units.settings import Settings
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


def test_a_bad_blob_is_tried_once(layout: Layout) -> None:
    digest = sha256(b"good")
    for name in ("x", "y"):
        path = Path(layout.incoming, name, "blobs/sha256")
        path.mkdir(parents=True)
        (path / digest[7:]).write_bytes(b"good" if name == "y" else b"bad")
    found = Incoming(layout)
    assert found.digests() == {digest}
    assert found.copy(Store(layout), digest, 100)
    assert found.digests() == set()


def test_bounds(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "BYTES_MAX", 100_000)
    for age, name in enumerate(("new", "old", "older", ".half")):
        path = Path(layout.incoming, name, "blobs/sha256")
        path.mkdir(parents=True)
        (path / "a").write_bytes(b"x" * 40_000)
        os.utime(Path(layout.incoming, name), (time.time() - age * 60,) * 2)
    os.utime(Path(layout.incoming, ".half"), (0, 0))
    Path(layout.incoming, "strange/blobs/sha256/dir/dir").mkdir(parents=True)
    Path(layout.incoming, "file").write_text("")
    Path(layout.incoming, "link").symlink_to("/etc")
    assert sorted(bound_incoming(layout)) == [".half", "file", "link", "older", "strange"]
    assert sorted(os.listdir(layout.incoming)) == ["new", "old"]


def test_failed_delivery_leaves_nothing(layout: Layout) -> None:
    with pytest.raises(OSError, match="cut"), new_delivery(layout, parse_reference("ex.org/a:1")):
        raise OSError("cut")
    assert os.listdir(layout.incoming) == []
    with pytest.raises(UsageError, match="only root may fetch from files"), new_delivery(layout, parse_reference("oci:/x")):
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

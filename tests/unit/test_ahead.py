# SPDX-License-Identifier: Apache-2.0
"""Layers that are converted while the image is still fetched, and what a fetching job can do about it that somebody has taken over."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rktd_units.errors import ImageError, TemporaryError, TrustError
from rktd_units.images import jobs, worker
from rktd_units.images.manifest import host_platform
from rktd_units.images.records import Voucher
from rktd_units.images.store import Store, own_file
from rktd_units.trust import decide
from tests.image_cases import Bench, MadeImage, make_image, make_index, sha256
from tests.unit.test_ready import Place, Settings

THREE = make_image({"a": b"a" * 5000}, {"b": b"b"}, {"c": b"c"})
OTHER = make_image({"x": b"x"})
REFERENCE = f"ex.org/a@{THREE.digest}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    bench = Bench()
    monkeypatch.setattr(jobs, "run_service", bench.run_service)
    return Place(tmp_path, bench)


class Pull:
    """A fetching job: writes and names files in the order that it is told to."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch, *steps: str | Callable[[], None]) -> None:
        self.steps, self.digest = steps, THREE.digest
        self.error: Exception | None = None
        self.target = Path()
        self._kinds, self._whole = place.bench.kinds, -1
        monkeypatch.setitem(worker._JOBS, "pull-image", self)

    def __call__(self, request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
        self.target = Path(target)
        self._whole = os.open(f"{source}/{worker.WHOLE}", os.O_WRONLY)
        (self.target / "progress").write_text("")
        try:
            for step in self.steps:
                self.bring(step) if isinstance(step, str) else step()
        finally:
            os.close(self._whole)
        if self.error:
            raise self.error
        return {"digest": self.digest}

    def bring(self, digest: str, data: bytes = b"") -> None:
        (self.target / digest[7:]).write_bytes(data or {**THREE.blobs, **OTHER.blobs}[digest])
        self.say(f"{digest[7:]}\n".encode())

    def say(self, text: bytes) -> None:
        os.write(self._whole, text)

    def wait_for_converter(self) -> None:
        deadline = time.monotonic() + 30
        while "convert-layers" not in self._kinds:
            assert time.monotonic() < deadline, "no conversion while the image is fetched"
            time.sleep(0.01)

    def wait_for(self, digest: str) -> None:
        """Until the file was taken."""
        deadline = time.monotonic() + 30
        while (self.target / digest[7:]).exists():
            assert time.monotonic() < deadline, "not taken"
            time.sleep(0.01)


def digests(image: MadeImage) -> tuple[str, list[str]]:
    """Of the configuration, and of the layers."""
    _, config, *layers = image.blobs
    return config, layers


CONFIG, LAYERS = digests(THREE)


def assert_empty(place: Place) -> None:
    assert place.files(place.layout.layers) == []
    assert place.files(place.layout.images) == []
    assert place.files(place.layout.work) == []


def test_converted_while_it_is_fetched(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter runs before the last layer is there; and the order in which layers come is none of its business."""
    pull = Pull(place, monkeypatch, THREE.digest, LAYERS[2], CONFIG)
    pull.steps = (*pull.steps, pull.wait_for_converter, LAYERS[1], LAYERS[0], lambda: pull.wait_for(LAYERS[0]))
    image = place.ready(REFERENCE)
    assert place.bench.kinds == ["pull-image", "convert-layers"]
    assert place.told == [f"fetching {REFERENCE}", f"converting {REFERENCE}", f"ready {REFERENCE}"]
    assert Store(place.layout).blob_names() == sorted(THREE.blobs)
    assert place.files(place.layout.work) == []
    assert place.ready(REFERENCE) == image
    assert place.bench.kinds == []
    # As if it had been converted afterwards.
    made = [path.read_bytes() for path in place.files(place.layout.layers, ".erofs")]
    for path in place.files(place.layout.layers):
        path.unlink()
    assert place.ready(REFERENCE).layer_keys == image.layer_keys
    assert place.bench.kinds == ["convert-layers"]
    assert [path.read_bytes() for path in place.files(place.layout.layers, ".erofs")] == made


def test_an_image_in_an_index(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_index((THREE, {"os": "linux", "architecture": host_platform().architecture}))
    pull = Pull(place, monkeypatch)
    pull.digest = sha256(index)
    pull.steps = (lambda: pull.bring(pull.digest, index), THREE.digest, CONFIG, pull.wait_for_converter, *LAYERS)
    assert place.ready(f"ex.org/a@{pull.digest}").manifest_digest == THREE.digest
    assert place.bench.kinds == ["pull-image", "convert-layers"]


@pytest.mark.parametrize("error", [ImageError("is a lie"), TemporaryError("the network has gone")], ids=["for-good", "for-now"])
def test_a_pull_that_fails_makes_no_layers(place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Though the layers that came were being converted. Blobs stay where another try makes sense."""
    pull = Pull(place, monkeypatch, THREE.digest, CONFIG)
    pull.steps = (*pull.steps, pull.wait_for_converter, *LAYERS[:2], lambda: pull.wait_for(LAYERS[1]))
    pull.error = error
    with pytest.raises(type(error), match=str(error)):
        place.ready(REFERENCE)
    assert_empty(place)
    kept = [digest for digest in Store(place.layout).blob_names() if digest in LAYERS]
    assert kept == (sorted(LAYERS[:2]) if isinstance(error, TemporaryError) else [])


def test_another_image_than_the_one_that_was_converted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that shows one image and states another in the end: what is run is the latter, and of the former nothing is left."""
    pull = Pull(place, monkeypatch, OTHER.digest, digests(OTHER)[0])
    pull.steps = (*pull.steps, pull.wait_for_converter, *digests(OTHER)[1], *THREE.blobs)
    image = place.ready("ex.org/a:1", insecure=True)
    assert image.manifest_digest == THREE.digest
    assert place.bench.kinds == ["pull-image", "convert-layers", "convert-layers"]
    assert {path.stem for path in place.files(place.layout.layers, ".erofs")} == set(image.layer_keys)


def test_only_what_was_signed_is_converted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature comes before the layers: of an image that it is not of, none is looked at."""
    voucher = Voucher(1, "x", "simple", "F", "", OTHER.digest, "x", "", 0, "", "")
    monkeypatch.setattr(decide, "find_proof", lambda *arguments: voucher)
    monkeypatch.setattr(Settings, "requires_signature", lambda self, reference: True)
    Pull(place, monkeypatch, *THREE.blobs)
    with pytest.raises(ImageError, match=f"the registry sent {THREE.digest}") as caught:
        place.ready("ex.org/a:1")
    assert not isinstance(caught.value, TrustError)
    assert place.bench.kinds == ["pull-image"]
    assert_empty(place)


@pytest.mark.parametrize(
    ("size", "match"),
    [(0, f"the sandboxed job did not bring {LAYERS[0]}"), (1, f"blob {LAYERS[0]}: the bytes have another digest")],
    ids=["same-size", "another-size"],
)
def test_a_layer_of_other_bytes(place: Place, monkeypatch: pytest.MonkeyPatch, size: int, match: str) -> None:
    pull = Pull(place, monkeypatch, THREE.digest, CONFIG)
    pull.steps = (*pull.steps, lambda: pull.bring(LAYERS[0], bytes(len(THREE.blobs[LAYERS[0]]) + size)), *LAYERS[1:])
    with pytest.raises(ImageError, match=match):
        place.ready(REFERENCE)
    assert_empty(place)
    assert LAYERS[0] not in Store(place.layout).blob_names()


@pytest.mark.parametrize("text", [b"x" * 200, b"\n", b"../../etc/passwd\n", b"\xff\n", b"0" * 64 + b"\n"])
def test_nonsense_is_no_matter(place: Place, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    pull = Pull(place, monkeypatch)
    pull.steps = (lambda: pull.say(text), *THREE.blobs)
    assert place.ready(REFERENCE).manifest_digest == THREE.digest


@pytest.mark.parametrize("how", ["flood", "unfinished"])
def test_a_job_keeps_nobody_waiting(place: Place, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """One that names files without end, or ends in the middle of a name."""
    pull = Pull(place, monkeypatch)

    def flood() -> None:
        os.set_blocking(pull._whole, False)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                pull.say(b"1" * 64 + b"\n")
            except BlockingIOError:
                return

    pull.steps = (*THREE.blobs, flood if how == "flood" else lambda: pull.say(b"0" * 64))
    done = threading.Event()
    images: list[str] = []

    def run() -> None:
        images.append(place.ready(REFERENCE).manifest_digest)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    assert done.wait(60)
    assert images == [THREE.digest]


def test_who_still_has_it_open_can_write_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x")
    path.chmod(0o666)
    reader = os.open(path, os.O_RDONLY)
    try:
        with path.open("r+b"):
            assert not own_file(reader)
        assert own_file(reader)
        assert path.stat().st_mode & 0o777 == 0o644
    finally:
        os.close(reader)


def test_a_file_that_is_still_open_is_copied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was hashed is what is converted and kept, whatever the job writes into its own file afterwards."""
    pull = Pull(place, monkeypatch, THREE.digest, CONFIG)

    def bring() -> None:
        with open(pull.target / LAYERS[0][7:], "wb") as file:
            file.write(THREE.blobs[LAYERS[0]])
            file.flush()
            pull.say(f"{LAYERS[0][7:]}\n".encode())
            copy = next(Path(place.layout.work).glob("*/blobs")) / LAYERS[0][7:]
            deadline = time.monotonic() + 30
            while not copy.exists() or copy.stat().st_size < len(THREE.blobs[LAYERS[0]]):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.05)
            file.write(b"evil")

    pull.steps = (*pull.steps, bring, *LAYERS[1:])
    image = place.ready(REFERENCE)
    assert place.bench.kinds == ["pull-image", "convert-layers"]
    assert len(image.layer_keys) == 3
    assert Path(Store(place.layout).blob_path(LAYERS[0])).read_bytes() == THREE.blobs[LAYERS[0]]

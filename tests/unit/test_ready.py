# SPDX-License-Identifier: Apache-2.0
"""An image made ready: trust, policies, what is rebuilt. The sandbox is none here, and conversion a copy: see tests/integration."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("dbus_next")

from rktd_units.errors import ImageError, RktdError, StateError, TemporaryError, TooLargeError, TrustError, clean_text
from rktd_units.images import acquire, jobs, ready, store, worker
from rktd_units.images.progress import CONVERTING, Event
from rktd_units.images.ready import Image, ImageRequest
from rktd_units.images.records import TAR_START, Voucher
from rktd_units.images.store import Store
from rktd_units.paths import Layout
from rktd_units.systemd import ServiceResult
from rktd_units.trust import decide
from tests.image_cases import Bench, MadeImage, make_image, sha256, write_archive, write_layout


class Settings:
    max_image_bytes = 1 << 20
    stall_timeout = 60

    def __init__(self, insecure: bool = False) -> None:
        self.insecure = insecure

    def is_insecure(self, reference: str) -> bool:
        return self.insecure

    def is_insecure_transport(self, reference: str) -> bool:
        return False

    def find_proxies(self) -> dict[str, str]:
        return {}

    def list_logins(self) -> tuple[tuple[str, bytes], ...]:
        return ()

    def requires_signature(self, reference: str) -> bool:
        return False


class Place:
    """A layout directory with one image in it, and a store."""

    def __init__(self, root: Path, bench: Bench) -> None:
        self.layout = Layout(str(root / "host"))
        self.bench = bench
        self.image: MadeImage = make_image({"a": b"1"}, {"b": b"2"})
        self.path = write_layout(root / "img", {"one": self.image})
        self.archive = write_archive(root / "a.tar", self.image)
        self.told: list[str] = []

    @property
    def pinned(self) -> str:
        return f"oci:{self.path}@{self.image.digest}"

    def ready(self, reference: str = "", policy: str = "IfNotPresent", insecure: bool = False) -> Image:
        self.bench.kinds.clear()
        self.told.clear()
        return ready.ready_image(reference or self.pinned, policy, Settings(insecure), self.layout, self.tell)

    def tell(self, event: Event) -> None:
        if not event.parts:  # those come where it takes longer
            self.told.append(str(event))

    def files(self, directory: str, suffix: str = "") -> list[Path]:
        return sorted(p for p in Path(directory).iterdir() if p.name.endswith(suffix))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    bench = Bench()
    monkeypatch.setattr(jobs, "run_service", bench.run_service)
    monkeypatch.setattr(jobs, "stop_units", lambda names: None)
    return Place(tmp_path, bench)


def test_pinned_layout(place: Place) -> None:
    image = place.ready()
    assert image.manifest_digest == place.image.digest
    assert image.verified_by == "digest pin"
    assert image.config.cmd == ("/bin/sh",)
    for key, tar in zip(image.layer_keys, place.image.layers, strict=True):
        data = Path(place.layout.layers, f"{key}.erofs").read_bytes()
        assert data[TAR_START : TAR_START + len(tar)] == tar
    assert place.bench.kinds == ["convert-layers"]
    assert place.told == [f"fetching {place.pinned}", f"converting {place.pinned}", f"ready {place.pinned}"]
    assert place.files(place.layout.work) == []


def test_directory_and_archive_of_a_layout(place: Place, tmp_path: Path) -> None:
    """`dir:` needs no sandbox but for conversion; both are pinned by the manifest's digest, as a registry's image is."""
    first = place.ready()
    (tmp_path / "dir").mkdir()
    for digest, data in place.image.blobs.items():
        (tmp_path / "dir" / ("manifest.json" if digest == place.image.digest else digest[7:])).write_bytes(data)
    subprocess.run(["tar", "--create", f"--file={tmp_path / 'l.tar'}", f"--directory={place.path}", "."], check=True)
    for reference in (f"dir:{tmp_path}/dir", f"oci-archive:{tmp_path}/l.tar:one"):
        subprocess.run(["rm", "-r", place.layout.state], check=True)
        assert place.ready(reference, insecure=True)[1:3] == first[1:3]
        assert place.bench.kinds == (["convert-layers"] if reference.startswith("dir") else ["unpack-layout", "convert-layers"])
        subprocess.run(["rm", "-r", place.layout.state], check=True)
        assert place.ready(f"{reference}@{place.image.digest}")[1:4] == first[1:4]
        with pytest.raises(ImageError, match=r"has no blob|the pinned digest is sha256:0"):
            place.ready(f"{reference}@sha256:{'0' * 64}")
        with pytest.raises(TrustError, match="not verified") as caught:
            place.ready(reference, policy="Always")
        assert f"{reference}@" in caught.value.hint


def test_nothing_is_noted_of_what_was_not_signed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a fresh image nor by one that is there under another name."""
    signed = Voucher(1, "x", "simple", "F", "", "sha256:" + "1" * 64, "x", "", 0, "", "")
    monkeypatch.setattr(decide, "find_proof", lambda *arguments: signed)
    monkeypatch.setattr(Settings, "requires_signature", lambda self, reference: True)
    for _ in range(2):
        with pytest.raises(TrustError, match=f"the signature is of {signed.digest}, the image is {place.image.digest}"):
            place.ready()
        assert not place.files(place.layout.images)
        assert not os.path.exists(place.layout.vouchers)
    monkeypatch.undo()
    monkeypatch.setattr(jobs, "run_service", place.bench.run_service)
    place.ready()
    records = {path: path.read_bytes() for path in place.files(place.layout.images)}
    monkeypatch.setattr(decide, "find_proof", lambda *arguments: signed)
    monkeypatch.setattr(Settings, "requires_signature", lambda self, reference: True)
    with pytest.raises(TrustError, match="the signature is of"):
        place.ready(f"ex.org/other@{place.image.digest}")
    assert {path: path.read_bytes() for path in place.files(place.layout.images)} == records


def test_dependencies_of_an_image_that_is_no_aci_mean_nothing(place: Place, tmp_path: Path) -> None:
    said = {"dependencies": [{"reference": "aci:ex.org/x", "imageID": "sha512-" + "0" * 128}, {"reference": "no:reference", "imageID": ""}]}
    image = make_image(top={"appc": said})
    pinned = f"oci:{write_layout(tmp_path / 'appc', {'one': image})}@{image.digest}"
    first = place.ready(pinned)
    assert place.ready(pinned) == first
    assert place.bench.kinds == []
    many = make_image(top={"appc": {"dependencies": [{"reference": "aci:ex.org/x", "imageID": ""}] * 201}})
    with pytest.raises(ImageError, match="has 201 dependencies, at most 200"):
        place.ready(f"oci:{write_layout(tmp_path / 'many', {'one': many})}@{many.digest}")


@pytest.mark.parametrize("times", [1, 9])
def test_what_is_collected_before_it_is_used_is_made_again(place: Place, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Between two looks others may collect (`--grace=0`), but not once the caller has the images."""
    calls: list[object] = []
    acquire_images = acquire.acquire_images

    def collected(*arguments: Any, **more: Any) -> list[Image]:
        images = acquire_images(*arguments, **more)
        calls.append(images)
        if len(calls) <= times:
            with Store(place.layout).alone():  # nobody holds it any more
                Path(place.layout.layers, f"{images[0].layer_keys[0]}.erofs").unlink()
        return images

    monkeypatch.setattr(acquire, "acquire_images", collected)
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    held = ready.held_images([ImageRequest(place.pinned, "IfNotPresent")], Settings(), place.layout, place.tell)
    if times > 1:
        with pytest.raises(TemporaryError, match="removed as fast as they come"), held:
            pass
        return
    with held as (image,):
        assert all(Store(place.layout).verify_layer(key) for key in image.layer_keys)
        with pytest.raises(TemporaryError, match="in use"), Store(place.layout).alone():
            pass
    assert len(calls) == 2


def test_nothing_is_collected_while_an_image_is_converted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blobs are nobody's yet: the record comes last."""
    monkeypatch.setattr(store, "_PATIENCE", 0.1)

    def tell(event: Event) -> None:
        if event.stage == CONVERTING:
            with pytest.raises(TemporaryError, match="in use"), Store(place.layout).alone():
                pass
            told.append(event)

    told: list[Event] = []
    ready.ready_image(place.pinned, "IfNotPresent", Settings(), place.layout, tell)
    assert told


@pytest.mark.parametrize("policy", ["Always", "IfNotPresent", "Never"])
def test_present_pin_needs_no_source(place: Place, policy: str) -> None:
    first = place.ready()
    subprocess.run(["rm", "-r", str(place.path)], check=True)
    assert place.ready(policy=policy) == first
    assert place.ready(f"ex.org/other@{place.image.digest}", policy)[1:] == first[1:]
    assert (place.bench.kinds, place.told) == ([], [])


def test_refusal_names_the_ways_out(place: Place) -> None:
    with pytest.raises(TrustError, match="is not verified: the reference has no digest, no prefix under insecure:") as caught:
        place.ready(f"oci:{place.path}:one")
    assert f"oci:{place.path}:one@{place.image.digest}" in caught.value.hint
    assert place.layout.config in caught.value.hint
    with pytest.raises(TrustError, match="not verified") as caught:
        place.ready(f"docker-archive:{place.archive}")
    assert sha256(place.archive.read_bytes()) in caught.value.hint
    with pytest.raises(TrustError, match=r"docker\.io/library/x:latest: is not verified") as caught:
        place.ready("x")
    assert "skopeo inspect" in caught.value.hint


def test_trust_is_asked_again_at_each_start(place: Place) -> None:
    reference = f"oci:{place.path}:one"
    assert place.ready(reference, insecure=True).verified_by == "insecure"
    place.ready(reference, insecure=True)
    assert place.bench.kinds == []
    with pytest.raises(TrustError, match="not verified"):
        place.ready(reference)


def test_never(place: Place) -> None:
    with pytest.raises(ImageError, match="is not present, and its pull policy is Never"):
        place.ready(policy="Never")
    with pytest.raises(TrustError, match="not verified") as caught:
        place.ready(f"oci:{place.path}:one", "Never")
    assert place.image.digest not in caught.value.hint
    assert place.bench.kinds == []


def test_always_without_pin_looks_again(place: Place) -> None:
    reference = f"oci:{place.path}:one"
    place.ready(reference, insecure=True)
    other = make_image({"c": b"3"})
    subprocess.run(["rm", "-r", str(place.path)], check=True)
    write_layout(place.path, {"one": other})
    assert place.ready(reference, insecure=True).manifest_digest == place.image.digest
    assert place.ready(reference, "Always", insecure=True).manifest_digest == other.digest
    place.ready(reference, "Always", insecure=True)
    assert place.bench.kinds == ["find-digest"]


def test_archive_is_pinned_by_its_file(place: Place) -> None:
    digest = sha256(place.archive.read_bytes())
    image = place.ready(f"docker-archive:{place.archive}@{digest}")
    assert image.config.diff_ids == tuple(sha256(t) for t in place.image.layers)
    assert place.bench.kinds == ["unpack-archive", "convert-layers"]
    with pytest.raises(ImageError, match=f"the file's digest is {digest}, the pinned one is sha256:0"):
        place.ready(f"docker-archive:{place.archive}@sha256:{'0' * 64}")
    place.ready()
    with pytest.raises(ImageError, match="the file's digest is"):  # the manifest's digest is another thing, though that image is present
        place.ready(f"docker-archive:{place.archive}@{place.image.digest}")
    with pytest.raises(ImageError, match="no such file"):
        place.ready(f"docker-archive:/nowhere@{'sha256:' + '1' * 64}")


def test_damaged_layer_is_rebuilt_from_good_blobs(place: Place) -> None:
    first = place.ready()
    Path(place.layout.layers, f"{first.layer_keys[1]}.erofs").write_text("evil")
    subprocess.run(["rm", "-r", str(place.path)], check=True)
    assert place.ready(policy="Never") == first
    assert place.told == [f"converting {place.pinned}", f"ready {place.pinned}"]


def second_image(place: Place) -> str:
    """One that shares the first layer of the first image, which is there."""
    place.ready()
    place.bench.noted.clear()
    other = make_image({"a": b"1"}, {"c": b"3"})
    return f"oci:{write_layout(place.path.parent / 'second', {'': other})}@{other.digest}"


def test_a_second_image_does_not_look_into_shared_layers(place: Place) -> None:
    reference = second_image(place)
    shared = place.image.blobs[list(place.image.blobs)[2]]
    blob = next(p for p in place.files(place.layout.blobs) if p.read_bytes() == shared)
    blob.write_bytes(shared[::-1])  # nobody notices
    image = place.ready(reference)
    assert place.bench.noted == [["0.entries", ""]]
    assert blob.read_bytes() == shared[::-1]
    assert len(set(image.layer_keys)) == 2


def test_a_shared_layer_is_looked_into_where_it_must_be(place: Place) -> None:
    reference = second_image(place)
    place.bench.lacks = True
    place.ready(reference)
    assert place.bench.noted == [["0.entries", ""], ["", ""]]


@pytest.mark.parametrize("sizes", [None, [], [1], [-1, 1], [True, 1], ["1", 1], [1, 1]])
def test_root_believes_no_job_what_a_layer_is(place: Place, sizes: object) -> None:
    """What it says of the tars is proven by their digests; else nothing is taken over, of the good layers neither."""
    place.bench.sizes = sizes
    with pytest.raises(ImageError, match=r"states no sizes|layer 1 of 2: content is sha256:\w+, but the image says sha256:"):
        place.ready()
    assert place.files(place.layout.layers) == place.files(place.layout.work) == []


def test_a_layer_that_is_another_than_the_image_says(place: Place) -> None:
    """Nor is the one above it, which was made of a wrong one, kept for those who have the right one."""
    place.image = make_image({"a": b"1"}, {"b": b"2"}, diff_ids=[sha256(b"else"), place.image.diff_ids[1]])
    write_layout(place.path.parent / "lie", {"": place.image})
    with pytest.raises(ImageError, match=rf"layer 1 of 2: content is sha256:\w+, but the image says {sha256(b'else')}"):
        place.ready(f"oci:{place.path.parent / 'lie'}@{place.image.digest}")
    assert place.files(place.layout.layers) == []


def test_verified_images_do_not_run_from_what_an_insecure_one_made(place: Place) -> None:
    """Whoever takes over the sandbox that converts an insecure image decides what becomes of its layers, the ones that it shares too."""
    tag = f"oci:{place.path}:one"
    insecure = place.ready(tag, insecure=True)
    pinned = place.ready()
    assert place.bench.kinds == ["convert-layers"]
    assert not set(insecure.layer_keys) & set(pinned.layer_keys)
    assert place.ready(tag, "Always", insecure=True).layer_keys == insecure.layer_keys
    assert place.ready(insecure=True) == pinned  # the pin still stands for what was verified, and is enough
    assert place.bench.kinds == []


def test_a_damaged_blob_that_is_needed_after_all_is_fetched_again(place: Place) -> None:
    reference = second_image(place)
    shared = place.image.blobs[list(place.image.blobs)[2]]
    blob = next(p for p in place.files(place.layout.blobs) if p.read_bytes() == shared)
    blob.write_bytes(shared[::-1])
    place.bench.lacks = True
    place.ready(reference)
    assert place.bench.noted[-1] == ["", ""]
    assert blob.read_bytes() == shared


def test_damaged_entries_are_none(place: Place) -> None:
    reference = second_image(place)
    for path in place.files(place.layout.layers, ".entries"):
        path.write_text("evil")
    place.ready(reference)
    assert place.bench.noted == [["", ""]]


def test_damage_beyond_repair_is_refused(place: Place) -> None:
    first = place.ready()
    for path in (*place.files(place.layout.blobs), *place.files(place.layout.layers, ".erofs")):
        path.write_text("evil")
    with pytest.raises(ImageError, match="is not present"):
        place.ready(policy="Never")
    assert place.ready() == first


@pytest.mark.parametrize("victim", [0, 1, 2, 3])
def test_wrong_bytes_in_the_layout(place: Place, victim: int) -> None:
    path = place.path / "blobs/sha256" / list(place.image.blobs)[victim][7:]
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ImageError, match="another digest"):
        place.ready()
    assert place.files(place.layout.work) == []
    assert sha256(path.read_bytes()) not in Store(place.layout).blob_names()


def test_index_in_a_layout_and_missing_blob(place: Place) -> None:
    (place.path / "blobs/sha256" / list(place.image.blobs)[3][7:]).unlink()
    with pytest.raises(ImageError, match="has no blob sha256:"):
        place.ready()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", range(1, 9))
def test_killed_at_any_rename(place: Place, monkeypatch: pytest.MonkeyPatch, call: int, when: str) -> None:
    rename, count = os.rename, 0

    def dying_rename(source: str, target: str, **places: int) -> None:
        nonlocal count
        if places:  # of remove_tree, within a directory that is garbage already
            rename(source, target, **places)
            return
        count += 1
        dies = count == call
        if dies and when == "before":
            raise KeyboardInterrupt("killed")
        rename(source, target)
        if dies:
            raise KeyboardInterrupt("killed")

    monkeypatch.setattr(os, "rename", dying_rename)
    with pytest.raises(KeyboardInterrupt, match="killed"):
        place.ready()
    monkeypatch.setattr(os, "rename", rename)
    assert place.ready().manifest_digest == place.image.digest
    place.ready()
    assert place.told == []


class Registry:
    """What the fetching job does: brings what it is told to, and what it may not, before it fails as it is told to."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.image, self.error = place.image, TemporaryError("the network has gone")
        self.bring: tuple[str, ...] = ()
        self.had: list[list[str]] = []
        self.requests: list[dict[str, Any]] = []
        monkeypatch.setitem(worker._JOBS, "pull-image", self)

    def __call__(self, request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
        self.requests.append(request)
        Path(target, "progress").write_text("")
        for digest in self.bring:
            if digest not in request["have"]:
                Path(target, digest[7:]).write_bytes(self.image.blobs[digest])
        if set(self.bring) != set(self.image.blobs):
            Path(target, "0" * 64).write_bytes(b"other bytes")
            Path(target, "1" * 64).symlink_to("/etc/passwd")
            Path(target, f"{self.image.digest[7:]}.part").write_bytes(b"x")
            raise self.error
        return {"digest": self.image.digest}


@pytest.mark.parametrize("ends", ["fails", "is ended", "is out of space"])
def test_what_came_whole_is_kept(place: Place, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """However a pull fails for now, the next one goes on with the blobs that it brought; none but those."""
    registry = Registry(place, monkeypatch)
    layers = list(place.image.blobs)[2:]
    registry.bring = tuple(layers[:1])
    if ends == "is ended":
        place.bench.result = ServiceResult("timeout", 0, 0)
    elif ends == "is out of space":
        registry.error = OSError(errno.ENOSPC, "No space left on device", "x")  # type: ignore[assignment]
    with pytest.raises(TemporaryError, match=r"the network has gone|took too long: it did not get on for 600 seconds|No space left"):
        place.ready(f"ex.org/a@{place.image.digest}")
    store = Store(place.layout)
    assert store.blob_names() == layers[:1]
    assert store.has_blob(layers[0])
    assert place.files(place.layout.work) == []
    place.bench.result = ServiceResult("success", 1, 0)
    registry.bring = tuple(place.image.blobs)
    assert place.ready(f"ex.org/a@{place.image.digest}").manifest_digest == place.image.digest
    assert [request["have"] for request in registry.requests] == [[], layers[:1]]


def test_a_pull_that_fails_for_good_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(place, monkeypatch)
    registry.bring, registry.error = tuple(place.image.blobs)[2:3], ImageError("is a lie")  # type: ignore[assignment]
    with pytest.raises(ImageError, match="is a lie"):
        place.ready(f"ex.org/a@{place.image.digest}")
    assert Store(place.layout).blob_names() == []


def set_space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Of a file system of 1 MiB, a twentieth of which stays free."""
    status = SimpleNamespace(f_blocks=256, f_frsize=4096, f_bavail=free // 4096)
    monkeypatch.setattr(os, "statvfs", lambda path: status)


def test_space_of_the_file_system_is_a_limit_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(place, monkeypatch)
    registry.bring = tuple(place.image.blobs)
    set_space(monkeypatch, 512 << 10)
    place.ready(f"ex.org/a@{place.image.digest}")
    assert (registry.requests[0]["limit"], registry.requests[0]["space"]) == (1 << 20, (512 << 10) - (1 << 20) // 20)
    subprocess.run(["rm", "-r", place.layout.state], check=True)
    registry.bring, registry.error = (), TooLargeError("5000 bytes of it must be fetched")  # type: ignore[assignment]
    with pytest.raises(
        TemporaryError, match=r"5000 bytes of it must be fetched: No space left on device: \S+/work has \d+ bytes for it"
    ) as caught:
        place.ready(f"ex.org/a@{place.image.digest}")
    assert "podctl gc" in caught.value.hint
    set_space(monkeypatch, 40 << 10)
    with pytest.raises(TemporaryError, match=r"at least 1 bytes are needed: No space left on device"):
        place.ready(f"ex.org/a@{place.image.digest}")


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_bomb(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What does not fit is refused for good, by the image's own limit or by the disk's, before the disk is full."""
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(2 << 20)))
    reference = f"{kind}:{tmp_path / 'bomb'}"
    with pytest.raises(ImageError, match="is larger than the limit for images") as caught:
        place.ready(reference, insecure=True)
    assert "No space" not in str(caught.value)
    set_space(monkeypatch, 512 << 10)
    with pytest.raises(ImageError, match="is larger than the limit for images: No space left on device"):
        place.ready(reference, insecure=True)
    set_space(monkeypatch, 52 << 10)  # not even a copy of it
    with pytest.raises(TemporaryError, match=r"at least \d+ bytes are needed: No space left on device"):
        place.ready(reference, insecure=True)
    assert place.bench.kinds == []
    assert place.files(place.layout.work) == []


def test_conversion_needs_space_to_begin_with(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    set_space(monkeypatch, (1 << 20) // 20 + 8192 - 4096)
    with pytest.raises(TemporaryError, match=r"at least \d+ bytes are needed: No space left on device"):
        place.ready(f"oci:{write_layout(place.path.parent / 'big', {'one': (big := make_image({'a': os.urandom(8192)}))})}@{big.digest}")


def test_link_local_addresses_are_closed_to_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that the administrator has named himself."""
    endpoints = [["169.254.7.7:5000", "a", False, None], ["ex.org", "b", False, None]]
    access = {"endpoints": endpoints, "proxies": {"http": "http://u:p@[fe80::1]:80"}}
    requests = [
        {"reference": "aci:https://169.254.8.8/a.aci"},
        {"lookaside": "http://169.254.9.9/x"},
        {"reference": "169.254.1.1:5000/a:1"},
    ]
    found = [set(jobs._find_peers(request, {"access.json": json.dumps(access).encode()})) for request in requests]
    assert [{"169.254.7.7", "fe80::1"} <= peers for peers in found] == [True] * 3
    assert [address in peers for address, peers in zip(("169.254.8.8", "169.254.9.9", "169.254.1.1"), found, strict=True)] == [True] * 3
    named = ["169.254.7.7", "10.0.0.1", "ex.org", "fe80::1%eth0"]
    properties = {p.name: p.value for p in jobs._render_properties("pull-image", "/x", {}, jobs.Limits(1), named)}
    assert properties["IPAddressDeny"] == [[2, b"\xa9\xfe\0\0", 16], [10, b"\xfe\x80" + bytes(14), 64]]
    assert properties["IPAddressAllow"] == [[2, b"\xa9\xfe\7\7", 32], [10, b"\xfe\x80" + bytes(13) + b"\1", 128]]
    assert properties["Slice"] == "rktd.slice"
    assert "IPAddressDeny" not in {p.name for p in jobs._render_properties("open-aci", "/x", {}, jobs.Limits(1))}


def test_stale_work_is_removed_and_live_work_is_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(place.layout)
    stopped: list[str] = []
    store.prepare()
    monkeypatch.setattr(jobs, "stop_units", stopped.extend)
    stale = Path(place.layout.work, "dead")
    (stale / "root/out").mkdir(parents=True)
    with jobs.work_directory(store) as live:
        place.ready()
        assert os.path.isdir(live)
    assert stopped == ["rktd-job-dead.service"]
    assert place.files(place.layout.work) == []


@pytest.mark.parametrize(
    ("result", "kind", "match"),
    [
        (ServiceResult("timeout", 0, 0), ImageError, "took too long"),
        (ServiceResult("oom-kill", 2, 9, 2 << 30), ImageError, "needs more than 2048 MiB of memory"),
        (ServiceResult("oom-kill", 2, 9, 60 << 20), TemporaryError, "killed for want of memory, though it had less"),
        (ServiceResult("oom-kill", 2, 9), TemporaryError, "killed for want of memory"),  # without a memory controller nothing is counted
        (ServiceResult("exit-code", 1, 1), StateError, "failed .exit-code, code 1, status 1"),
        (ServiceResult("signal", os.CLD_KILLED, signal.SIGKILL), TemporaryError, "was killed by SIGKILL"),
        (ServiceResult("success", os.CLD_KILLED, signal.SIGTERM), TemporaryError, "was killed by SIGTERM"),  # `systemctl stop`
        (ServiceResult("signal", os.CLD_KILLED, signal.SIGSEGV), StateError, "failed .signal, code 2, status 11"),
        (ServiceResult("signal", os.CLD_KILLED, signal.SIGSYS), StateError, "failed .signal, code 2, status 31"),
        (ServiceResult("core-dump", os.CLD_DUMPED, signal.SIGABRT), StateError, "failed .core-dump, code 3, status 6"),
    ],
)
def test_job_results(place: Place, result: ServiceResult, kind: type[RktdError], match: str) -> None:
    place.bench.result = result
    with pytest.raises(kind, match=match):
        place.ready()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EIO, "temporary"), (errno.ENOSPC, "temporary"), (errno.EFBIG, "large"), (errno.EPERM, "permanent")],
    ids=["unreadable", "full", "too-large", "forbidden"],
)
def test_what_the_file_system_refuses_a_job(monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> None:
    def refused(*arguments: object) -> dict[str, Any]:
        raise OSError(number, os.strerror(number), "/in/x")

    monkeypatch.setitem(worker._JOBS, "open-aci", refused)
    assert worker.run_request({"kind": "open-aci"}, "/in", "/out")["error"]["kind"] == kind


def test_host_files_of_a_job(tmp_path: Path) -> None:
    """As they are read on the host: links followed, what is not there left out, and by nobody who may not read the original."""
    host, root = tmp_path / "host", tmp_path / "root"
    for path in (host, Path(f"{root}{host}")):
        path.mkdir(parents=True)
    for name, mode in (("open", 0o644), ("secret", 0o600)):
        (host / name).write_text(name)
        (host / name).chmod(mode)
    (host / "link").symlink_to("open")
    jobs._copy_host_files(str(root), [f"{host}/{name}" for name in ("open", "secret", "link", "absent")])
    found = {path.name: (path.read_text(), oct(path.lstat().st_mode)[-3:]) for path in Path(f"{root}{host}").iterdir()}
    assert found == {"open": ("open", "444"), "secret": ("secret", "400"), "link": ("open", "444")}


def test_hostile_output(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "root/out"
    out.mkdir(parents=True)
    (out / "good").write_text("x")
    (out / "hard").write_text("x")
    os.link(out / "hard", out / "hard2")
    (out / "soft").symlink_to("/etc/shadow")
    os.mkfifo(out / "pipe")
    output = jobs.Output({}, str(tmp_path), os.geteuid())
    os.close(output.open("good")[1])
    for name, match in (
        ("hard", "itself"),
        ("soft", "regular"),
        ("pipe", "regular"),
        ("../x", "bad file"),
        ("", "bad file"),
        ("no", "did not write"),
    ):
        with pytest.raises(ImageError, match=match):
            output.open(name)
    with pytest.raises(ImageError, match="itself"):
        output._replace(owner=os.geteuid() + 1).open("good")


def test_hostile_text() -> None:
    assert clean_text("a\x1b[31m\nb\u202e" + "x" * 5000)[:9] == "a?[31m b?"
    assert len(clean_text("x" * 5000)) == 2000


def test_several_at_once(place: Place) -> None:
    requests = [ImageRequest(place.pinned, "Never"), ImageRequest(f"docker-archive:{place.archive}", "Always")] * 2
    place.ready()
    images = ready.ready_images(requests, Settings(insecure=True), place.layout, place.tell)
    assert images[:2] == images[2:]
    assert [i.verified_by for i in images[:2]] == ["digest pin", "insecure"]


def test_bad_policy(place: Place) -> None:
    with pytest.raises(ImageError, match="bad pull policy 'Sometimes'"):
        place.ready(policy="Sometimes")


def test_too_large(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "max_image_bytes", 10)
    with pytest.raises(ImageError, match="bytes, the limit is 10"):
        place.ready()


def test_fast_path_imports_little() -> None:
    code = "import sys, rktd_units.images.ready; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"asyncio", "dbus_next", "urllib3", "subprocess", "socket", "dataclasses", "tarfile", "rktd_units.images.acquire"}
    assert heavy.isdisjoint(done.stdout.split())

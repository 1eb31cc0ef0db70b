# SPDX-License-Identifier: Apache-2.0
"""Images by name and short digest, what of the store is garbage, and the verbs that tell and change it."""

import errno
import json
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("dbus_next")

from rktd_units import disks, sweep
from rktd_units.cli import fetch, gc, images
from rktd_units.cli.main import main
from rktd_units.errors import AmbiguousError, ImageError, NotFoundError, UsageError
from rktd_units.images import jobs, ready
from rktd_units.images.catalog import find_entries, keep_image, list_entries, remove_records
from rktd_units.images.collect import Spared, find_garbage, remove_garbage
from rktd_units.images.export import FORMATS, export_image
from rktd_units.images.progress import CONVERTING, FETCHING, READY, Event, Part
from rktd_units.images.records import ImageRecord
from rktd_units.images.store import Store
from rktd_units.paths import Layout
from rktd_units.settings import Settings
from rktd_units.usage import find_usage
from tests.image_cases import Bench, MadeImage, make_image, sha256, write_layout
from tests.output_schema import check_record


class Shelf:
    """A store with two images, which share their lowest layer."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(str(root))
        self.store = Store(self.layout)
        self.made: dict[str, MadeImage] = {n: make_image({"a": b"base"}, {n: b"1"}) for n in ("one", "two")}
        write_layout(root / "img", self.made)
        self.names = {n: f"oci:{root}/img:{n}" for n in self.made}
        for name in self.names.values():
            self.ready(name)

    def ready(self, reference: str) -> None:
        ready.ready_image(reference, "IfNotPresent", Settings(insecure=(f"oci:{self.layout.root}",)), self.layout, lambda event: None)

    def files(self) -> dict[str, set[str]]:
        return {d: set(os.listdir(getattr(self.layout, d))) for d in ("blobs", "layers", "images", "work")}

    def collect(self, spared: Spared | None = None, age: float = -1) -> set[str]:
        garbage = find_garbage(self.store, spared or Spared(), time.time() - age)
        remove_garbage(garbage)
        return {g.kind for g in garbage}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    bench = Bench()
    monkeypatch.setattr(jobs, "run_service", bench.run_service)
    monkeypatch.setattr(jobs, "stop_units", lambda names: None)
    monkeypatch.setattr(sweep, "is_active", lambda name: name == "active")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    shelf = Shelf(tmp_path)
    monkeypatch.setattr(images, "LAYOUT", shelf.layout)
    monkeypatch.setattr(gc, "LAYOUT", shelf.layout)
    monkeypatch.setattr(fetch, "LAYOUT", shelf.layout)
    monkeypatch.setenv("RKTD_POD_PATH", str(tmp_path / "etc/pods"))
    (tmp_path / "etc/pods").mkdir(parents=True)
    return shelf


def write_pod(shelf: Shelf, name: str, image: str, more: str = "") -> None:
    text = f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  - name: app\n    image: {image}\n{more}"
    Path(shelf.layout.root, f"etc/pods/{name}.yaml").write_text(text)


def run_pod(shelf: Shelf, name: str, made: str) -> None:
    """As stage0 leaves it."""
    record = find_entries(shelf.store, shelf.names[made])[0].record
    directory = Path(shelf.layout.pod(name))
    directory.mkdir(parents=True)
    (directory / "pod.json").write_text(json.dumps({"apps": [{"digest": record.manifest}]}))
    claim = Path(shelf.layout.run, "layer-claims", name)
    claim.parent.mkdir(exist_ok=True)
    claim.write_text("".join(f"{key}\n" for key in record.layer_keys))


# By name and digest


def test_by_reference_and_short_digest(shelf: Shelf) -> None:
    digest = shelf.made["one"].digest
    for text in (shelf.names["one"], digest, digest[7:19], digest[:19], f"ex.org/x@{digest}"):
        assert [e.record.manifest for e in find_entries(shelf.store, text)] == [digest]
    one = find_entries(shelf.store, digest)[0].record
    shelf.store.write_image(one._replace(reference="oci:/other"))
    assert len(find_entries(shelf.store, digest[7:19])) == 2  # one image under two references


def test_three_errors(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    digest = shelf.made["one"].digest[7:]
    with pytest.raises(UsageError, match=f"'{digest[:5]}' is too short for a digest: 6 digits at least"):
        find_entries(shelf.store, digest[:5])
    unknown = ("0" if digest[0] != "0" and shelf.made["two"].digest[7] != "0" else "f") * 8
    with pytest.raises(NotFoundError, match=f"no image has a digest that begins with {unknown}"):
        find_entries(shelf.store, unknown)
    with pytest.raises(NotFoundError, match="there is no image 'Nonsense!'"):
        find_entries(shelf.store, "Nonsense!")
    entries = list_entries(shelf.store)
    alike = [e._replace(record=e.record._replace(manifest=f"sha256:{'ab' * 31}{i:02}")) for i, e in enumerate(entries)]
    monkeypatch.setattr("rktd_units.images.catalog.list_entries", lambda store: alike)
    with pytest.raises(AmbiguousError, match=r"the digest ababab is ambiguous:(\n  (ab){31}0. oci:.*){2}"):
        find_entries(shelf.store, "ababab")
    assert main(["image", "cat-manifest", "ababab"]) == 65
    assert main(["image", "cat-manifest", "abab"]) == 64
    assert main(["image", "cat-manifest", "abcdef0"]) == 66
    assert "ambiguous" in capsys.readouterr().err


def test_members_of_the_group_have_the_same_errors(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What root's side has told them is chosen from as root chooses from the store."""
    digests = [f"sha256:{'ab' * 31}{index:02}" for index in range(2)]
    pins = [digests[0], f"sha512-{'cd' * 64}"]
    told = [{"reference": f"ex.org/{i}:1", "digest": d, "pin": p} for i, (d, p) in enumerate(zip(digests, pins, strict=True))]
    monkeypatch.setattr(images, "ask_root", lambda: told)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    for text, code in (("ababab", 65), ("abab", 64), ("abcdef0", 66), ("Nonsense!", 66)):
        assert main(["images", text]) == code
    said = capsys.readouterr().err
    assert "the digest ababab is ambiguous" in said
    assert "too short for a digest" in said
    for text, digest in ((digests[0], digests[0]), ("sha512-cdcdcd", digests[1]), ("cdcdcd", digests[1]), ("ex.org/0:1", digests[0])):
        assert main(["images", "--quiet", text]) == 0
        assert capsys.readouterr().out == f"{digest}\n"


# Garbage


def test_everything_goes_when_nobody_needs_it(shelf: Shelf) -> None:
    assert shelf.collect() == {"image", "record", "layer", "blob"}
    assert shelf.files() == {"blobs": set(), "layers": set(), "images": set(), "work": set()}


@pytest.mark.parametrize("how", ["grace", "kept", "reference", "digest", "running"])
def test_what_is_spared(shelf: Shelf, how: str) -> None:
    before, one = shelf.files(), find_entries(shelf.store, shelf.names["one"])[0].record
    if how == "grace":
        assert shelf.collect(age=60) == set()
        assert shelf.files() == before
        return
    spared = Spared()
    if how == "kept":
        keep_image(shelf.store, one.reference)
    elif how == "reference":
        write_pod(shelf, "web", one.reference)
        spared = find_usage(shelf.layout, (f"{shelf.layout.root}/etc/pods",)).spared()
    elif how == "digest":
        spared = Spared(digests=frozenset({one.pin}))
    else:
        run_pod(shelf, "web", "one")
        spared = find_usage(shelf.layout, ()).spared()
    shelf.collect(spared)
    assert {e.record.reference for e in list_entries(shelf.store)} == {one.reference}
    assert {n.removesuffix(".erofs") for n in shelf.files()["layers"] if n.endswith(".erofs")} == set(one.layer_keys)
    assert len(shelf.files()["blobs"]) == 4
    shelf.ready(one.reference)


@pytest.mark.parametrize("pin", ["sha256:" + "1" * 64, "sha512-" + "2" * 128])
def test_pin_of_a_pod_file_spares_the_image_under_any_name(shelf: Shelf, pin: str) -> None:
    one = find_entries(shelf.store, shelf.names["one"])[0].record
    kind = "aci:" if pin.startswith("sha512-") else "oci:"
    shelf.store.write_image(one._replace(reference=f"{kind}/here", pin=pin))
    write_pod(shelf, "web", f"{kind}/there@{pin}")
    shelf.collect(find_usage(shelf.layout, (f"{shelf.layout.root}/etc/pods",)).spared())
    assert [e.record.reference for e in list_entries(shelf.store)] == [f"{kind}/here"]


def test_invalid_pod_file_still_spares(shelf: Shelf) -> None:
    write_pod(shelf, "web", shelf.names["one"], "  nonsense: {image: x}\n")
    usage = find_usage(shelf.layout, (f"{shelf.layout.root}/etc/pods",))
    assert usage.faults == (f"{shelf.layout.root}/etc/pods/web.yaml",)
    assert shelf.names["one"] in usage.spared().references


def test_what_a_crash_left_goes_at_once(shelf: Shelf) -> None:
    before = shelf.files()
    for directory in ("blobs", "layers", "images"):
        Path(getattr(shelf.layout, directory), ".half.json").write_text("{")
    Path(shelf.layout.images, "0" * 64 + ".json").write_text("damaged")
    assert shelf.collect(age=3600) == {"leftover"}
    assert shelf.files() == before


# Verbs


def test_images(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    run_pod(shelf, "web", "one")
    write_pod(shelf, "other", shelf.names["one"])
    main(["image", "pin", shelf.names["two"]])
    assert main(["images"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["REFERENCE", "DIGEST", "SIZE", "AGE", "VERIFIED", "BY", "PODS"]
    assert lines[1].startswith(f"{shelf.names['one']}  {shelf.made['one'].digest[7:19]}")
    assert lines[1].endswith("insecure     (other) web")
    assert lines[2].endswith("[pinned]")
    assert lines[-1] == "2 images listed."
    assert main(["images", "--output=json", shelf.made["one"].digest[7:20]]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    check_record("image", record)
    assert record["digest"] == shelf.made["one"].digest
    assert record["pods"] == [{"name": "other", "use": "configured"}, {"name": "web", "use": "running"}]
    assert main(["images", "-q"]) == 0
    assert capsys.readouterr().out.split() == [shelf.made[n].digest for n in ("one", "two")]


def test_rm(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    write_pod(shelf, "web", shelf.names["two"])
    assert main(["image", "rm", shelf.names["one"], shelf.names["two"]]) == 69
    assert "is in use: pod web has it in its file" in capsys.readouterr().err
    assert len(list_entries(shelf.store)) == 2
    two = find_entries(shelf.store, shelf.names["two"])[0].record
    assert main(["image", "rm", shelf.made["one"].digest[7:15]]) == 0
    assert [e.record for e in list_entries(shelf.store)] == [two]
    assert {n for n in shelf.files()["layers"] if n.endswith(".erofs")} == {f"{k}.erofs" for k in two.layer_keys}
    assert {f"sha256:{n}" for n in shelf.files()["blobs"]} == set(shelf.made["two"].blobs)
    main(["image", "pin", shelf.names["two"]])
    assert main(["image", "rm", "--force", shelf.names["two"]]) == 0
    assert shelf.files() == {"blobs": set(), "layers": set(), "images": set(), "work": set()}
    assert os.listdir(shelf.layout.kept) == []


def test_who_may_only_look_sees_the_rest(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged manifest, and a store that cannot be written, as in rktd-images@.service."""
    Path(shelf.store.blob_path(shelf.made["one"].digest)).write_bytes(b"x")

    def refuse(path: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        assert main(["images", "--output=json"]) == 0
    assert {image["reference"] for image in json.loads(capsys.readouterr().out)} == set(shelf.names.values())


def test_verify_leaves_the_store_between_images(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is locked for one at a time, and what is removed meanwhile is not damaged; a disk of a guest that is not its layers goes."""
    records = [find_entries(shelf.store, name)[0].record for name in shelf.names.values()]
    disk, _ = disks.ready_disk(shelf.layout, records[0].layer_keys)
    with open(disk, "r+b") as file:
        file.seek(25000)
        file.write(b"evil")
    seen: list[str] = []
    find_damage = images._find_damage

    def spy(store: Store, record: ImageRecord) -> list[str]:
        seen.append(record.reference)
        return find_damage(store, record)

    used = Store.used

    @contextmanager
    def forget(store: Store) -> Iterator[None]:
        if seen and records:
            with store.alone():
                remove_records(store, find_entries(store, records.pop().reference)[0])
                records.clear()
        with used(store):
            yield

    Path(shelf.layout.root, "etc/rktd").mkdir()
    Path(shelf.layout.config).write_text(f"insecure: ['oci:{shelf.layout.root}']\n")
    monkeypatch.setattr(images, "_find_damage", spy)
    monkeypatch.setattr(Store, "used", forget)
    assert main(["image", "verify", "--output=json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["reference"], found["state"], found["damage"]) == (seen[0], "repaired", [f"disk {Path(disk).stem[:12]}"])
    assert not Path(disk).exists()


@pytest.mark.parametrize("victim", ["layer", "blob", "both"])
def test_verify(shelf: Shelf, victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    one = find_entries(shelf.store, shelf.names["one"])[0].record
    if victim != "blob":
        Path(shelf.store.layer_path(one.layer_keys[1])).write_bytes(b"x")
    if victim != "layer":
        own = {d for d in shelf.made["one"].blobs if d not in shelf.made["two"].blobs}
        (layer,) = own - {one.manifest, one.config}
        Path(shelf.store.blob_path(layer)).write_bytes(b"x")
    Path(shelf.layout.root, "etc/rktd").mkdir()
    Path(shelf.layout.config).write_text(f"insecure: ['oci:{shelf.layout.root}']\n")
    code = main(["image", "verify", "--output=json"])
    found = json.loads(capsys.readouterr().out)
    check_record("check", found[0])
    states = {r["reference"]: r["state"] for r in found}
    assert states[shelf.names["two"]] == "good"
    if victim == "layer":
        assert (code, states[shelf.names["one"]]) == (0, "repaired")
    else:
        assert (code, states[shelf.names["one"]]) == (1, "damaged")
    assert main(["image", "verify", "--fetch", "--output=json", shelf.names["one"]]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == ("good" if victim == "layer" else "repaired")
    assert main(["image", "verify"]) == 0


@pytest.mark.parametrize("form", FORMATS)
def test_export(shelf: Shelf, form: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert main(["image", "export", f"--format={form}", shelf.names["one"], str(path)]) == 0
    if form == "oci":
        names = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    else:
        with tarfile.open(path) as tar:
            names = set(tar.getnames())
    if form == "docker-archive":
        assert len(names) == 4
    else:
        assert names == {"oci-layout", "index.json", *(f"blobs/sha256/{d[7:]}" for d in shelf.made["one"].blobs)}
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".out")] == []


def test_export_beside_what_another_user_made(shelf: Shelf, tmp_path: Path) -> None:
    """Who guesses a temporary name has no part in what is written."""
    one = find_entries(shelf.store, shelf.names["one"])[0].record
    trap = tmp_path / f".out.{os.getpid()}"
    trap.mkdir(mode=0o777)
    export_image(shelf.store, one, str(tmp_path / "out"), "oci")
    assert list(trap.iterdir()) == []
    assert (tmp_path / "out/index.json").exists()


def test_export_of_a_damaged_image(shelf: Shelf, tmp_path: Path) -> None:
    one = find_entries(shelf.store, shelf.names["one"])[0].record
    path = Path(shelf.store.blob_path(sha256(shelf.made["one"].config)))
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ImageError, match="missing or damaged"):
        export_image(shelf.store, one, str(tmp_path / "out"), "oci-archive")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_cat_manifest(shelf: Shelf, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["image", "cat-manifest", shelf.names["one"]]) == 0
    assert capsysbinary.readouterr().out == shelf.made["one"].manifest
    assert main(["image", "cat-manifest", "--config", shelf.names["one"]]) == 0
    assert capsysbinary.readouterr().out == shelf.made["one"].config


def test_gc(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    write_pod(shelf, "web", shelf.names["two"])
    stale = Path(shelf.layout.work, "dead/root")
    stale.mkdir(parents=True)
    left = Path(shelf.layout.pod_storage("gone"), "apps/app/upper")
    left.mkdir(parents=True)
    Path(shelf.layout.pod_storage("active")).mkdir()
    time.sleep(0.01)
    for option in ("--dry-run", ""):
        assert main(["gc", "--grace=0", "--output=json", *([option] if option else [])]) == 0
        found = json.loads(capsys.readouterr().out)
        check_record("garbage", found[0])
        assert {g["name"] for g in found if g["kind"] in ("image", "leftover")} == {shelf.names["one"], "job dead", "pod gone"}
        assert stale.exists() == left.exists() == bool(option)
    assert Path(shelf.layout.pod_storage("active")).exists()
    assert main(["gc", "--grace=0"]) == 0
    assert capsys.readouterr().out.endswith("0 things listed.\n")
    shelf.ready(shelf.names["two"])


def test_pod_that_is_worked_on_is_not_swept(shelf: Shelf) -> None:
    from rktd_units.runfiles import lock

    Path(shelf.layout.pod_storage("gone")).mkdir(parents=True)
    with lock(shelf.layout, "pod-gone"):
        assert sweep.sweep_pods(shelf.layout) == []
    run_pod(shelf, "new", "one")
    assert sweep.sweep_pods(shelf.layout) == ["gone"]
    os.utime(shelf.layout.pod("new"), (0, 0))
    assert sweep.sweep_pods(shelf.layout) == ["new"]
    assert not Path(shelf.layout.pod("new")).exists()
    assert not Path(shelf.layout.run, "layer-claims/new").exists()


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90", 90), ("30min", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600)])
def test_times(text: str, seconds: int) -> None:
    assert gc.parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1", "1y", "1.5h", "1h30min", "²"])
def test_bad_times(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        gc.parse_time(text)


def test_others_than_root(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["image", "verify"]) == 77
    assert "the images are root's" in capsys.readouterr().err


def test_fetch(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_image({"z": b"9"})
    write_layout(Path(shelf.layout.root, "more"), {"": made})
    reference = f"oci:{shelf.layout.root}/more@{made.digest}"
    assert main(["fetch", "--output=json", reference]) == 0
    out, err = capsys.readouterr()
    check_record("fetched", json.loads(out)[0])
    assert made.digest in out
    assert err == f"fetching {reference}\nconverting {reference}\nready {reference}\n"
    assert main(["fetch", "--quiet", "--no-legend", reference]) == 0
    assert capsys.readouterr().err == ""
    assert main(["fetch", f"oci:{shelf.layout.root}/more"]) == 78


def test_bars() -> None:
    shown: list[str] = []

    class Bar:
        def __init__(self, total: int, desc: str, **options: object) -> None:
            self.total, self.n = total, 0
            shown.append(desc)

        def update(self, count: int) -> None:
            self.n += count

        def close(self) -> None:
            shown.append(f"{self.n} of {self.total}")

        @staticmethod
        def write(text: str, file: object) -> None:
            shown.append(text)

    bars = fetch._Bars(Bar)
    bars(Event(FETCHING, "a"))
    bars(Event(FETCHING, "a", (Part("sha256:" + "b" * 64, 3, 9),)))
    bars(Event(FETCHING, "a", (Part("sha256:" + "b" * 64, 5, 9),)))
    bars(Event(CONVERTING, "a", (Part("sha256:" + "b" * 64, 1, 9),)))
    bars(Event(READY, "a"))
    bars.close()
    assert shown == ["fetching a", "  fetch   bbbbbbbbbbbb", "  convert bbbbbbbbbbbb", "9 of 9", "9 of 9"]

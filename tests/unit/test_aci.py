# SPDX-License-Identifier: Apache-2.0
"""From ACIs to an image: rendering, dependencies, pins; and where an ACI is."""

import bz2
import gzip
import json
import lzma
import os
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("dbus_next")

from rktd_units.errors import ImageError, TrustError
from rktd_units.images import acis, discovery, jobs, manifest, ready, rendering
from rktd_units.images.catalog import find_entries, list_dependencies, list_entries
from rktd_units.images.collect import Spared, find_garbage, remove_garbage
from rktd_units.images.progress import Event
from rktd_units.images.ready import Image
from rktd_units.images.reference import parse_reference
from rktd_units.images.rendering import Occurrence
from rktd_units.images.store import Store
from rktd_units.images.tarball import read_members
from rktd_units.images.tree import Budget, Tree
from rktd_units.paths import Layout
from rktd_units.trust import decide
from rktd_units.trust.decide import UnprovenError
from rktd_units.trust.vouchers import detached_scope
from tests.aci_cases import aci_manifest, image_id, labels, make_aci
from tests.image_cases import Bench
from tests.layer_cases import END, TIME, directory, entry, hard, link
from tests.unit.test_ready import Settings

LIMIT = 1 << 24


def render(tmp_path: Path, acis: Sequence[bytes], order: Sequence[Occurrence] = (Occurrence(0, (0,)),)) -> tuple[manifest.Manifest, Path]:
    sources = []
    for index, aci in enumerate(acis):
        (tmp_path / f"{index}.tar").write_bytes(aci)
        sources.append(str(tmp_path / f"{index}.tar"))
    out = tmp_path / "out"
    out.mkdir()
    digest = rendering.render_image(sources, order, str(out), LIMIT)
    return manifest.parse_manifest((out / digest[7:]).read_bytes(), digest), out


def digest_of_file(path: Path) -> str:
    return manifest.digest_of(path.read_bytes())


def config_of(made: manifest.Manifest, out: Path) -> manifest.ImageConfig:
    return manifest.parse_config((out / made.config.digest[7:]).read_bytes(), made.config.digest)


def layers_of(made: manifest.Manifest, out: Path) -> list[list[str]]:
    """Of each layer what Python's own reader sees: `path`, `path=content`, `path->target`, `path==hard link`."""
    found = []
    for layer in made.layers:
        with tarfile.open(out / layer.digest[7:]) as tar:
            lines = []
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                text = f"={file.read().decode()}" if file else f"->{member.linkname}" if member.issym() else ""
                lines.append(member.name + (f"=={member.linkname}" if member.islnk() else text))
            found.append(lines)
    return found


def test_app_becomes_a_configuration(tmp_path: Path) -> None:
    app = aci_manifest(
        exec=["/bin/app", "-v"],
        user="/bin/app",
        group="wheel",
        environment=[{"name": "A", "value": "b=c"}],
        mountPoints=[{"name": "data", "path": "/data"}],
        eventHandlers=[{"name": "pre-start", "exec": ["/bin/pre"]}],
        supplementaryGIDs=[7],
        isolators=[{"name": "resource/memory", "value": {"limit": "1M"}}, {"name": "ex.org/x", "value": 1}],
    )
    made, out = render(tmp_path, [make_aci(app, entry("rootfs/bin/app", data=b"x", ids=(12, 34)))])
    config = config_of(made, out)
    assert (config.entrypoint, config.cmd, config.user) == (("/bin/app", "-v"), (), "12:wheel")
    assert (config.env, config.volumes, config.working_dir) == ((("A", "b=c"),), ("/data",), "")
    assert config.appc == manifest.Appc(
        groups=(7,),
        pre_start=("/bin/pre",),
        memory_limit=10**6,
        isolators=(("resource/memory", "enforced"), ("ex.org/x", "ignored: not supported")),
    )


def test_rootfs_becomes_a_layer(tmp_path: Path) -> None:
    entries = [
        directory("rootfs/d/", mode=0o2750, ids=(1, 2)),
        entry("./rootfs/d/f", data=b"f"),
        hard("rootfs/h", "rootfs/d/f"),
        link("rootfs/l", "/d"),
        entry("rootfs/no/parent", data=b"p"),
    ]
    made, out = render(tmp_path, [make_aci(aci_manifest(), *entries)])
    assert layers_of(made, out) == [[".", "d", "d/f=f", "h==d/f", "l->/d", "no", "no/parent=p"]]
    with tarfile.open(out / made.layers[0].digest[7:]) as tar:
        about = tar.getmember("d")
        assert (about.mode, about.uid, about.gid, about.mtime) == (0o2750, 1, 2, TIME)


def test_same_files_give_the_same_layer(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = make_aci(aci_manifest(), entry("rootfs/x", data=b"x"), entry("rootfs/y", data=b"y"))
    two = make_aci(aci_manifest("ex.org/b"), entry("rootfs/y", data=b"y"), entry("./rootfs/x", data=b"x"))
    assert render(tmp_path / "a", [one])[0].layers == render(tmp_path / "b", [two])[0].layers


@pytest.mark.parametrize(
    ("aci", "message"),
    [
        (make_aci(aci_manifest(), entry("rootfs/a/.wh.b")), r"rootfs/a/\.wh\.b: a name that begins with \.wh\. cannot be"),
        (make_aci(aci_manifest(), entry("other")), "other: an ACI has nothing but its manifest and what is below rootfs"),
        (make_aci(aci_manifest(), entry("manifest/x")), "manifest/x: an ACI has nothing but"),
        (make_aci(aci_manifest(), entry("../etc/passwd")), "an ACI has nothing but"),
        (make_aci(aci_manifest(), hard("rootfs/h", "manifest")), "hard link to manifest, which is not below rootfs"),
        (make_aci(aci_manifest(), hard("rootfs/h", "rootfs/../manifest")), "which is not below rootfs"),
        (make_aci(aci_manifest(), entry("rootfs", data=b"x")), "the root must stay a directory"),
        (make_aci(aci_manifest(user="/nowhere")), "user is the owner of '/nowhere', which is not there"),
        (make_aci(aci_manifest(group="a:b")), "group 'a:b' cannot be the name of one"),
        (directory("rootfs/") + END, "is no ACI: it has no manifest"),
        (directory("manifest/") + END, "manifest: must be a regular file"),
    ],
)
def test_refused(tmp_path: Path, aci: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        render(tmp_path, [aci])


def test_link_out_of_the_root_stays_inside(tmp_path: Path) -> None:
    aci = make_aci(aci_manifest(), link("rootfs/l", "../../../etc"), entry("rootfs/l/passwd", data=b"pwn"))
    made, out = render(tmp_path, [aci])
    assert layers_of(made, out) == [[".", "etc", "etc/passwd=pwn", "l->../../../etc"]]


def test_dependencies_are_layers_below(tmp_path: Path) -> None:
    """What is above replaces: a link to a directory gives way to a directory, a file too, and neither is followed."""
    base = make_aci(
        aci_manifest(app=False),
        directory("rootfs/tmp/", mode=0o1777),
        directory("rootfs/usr/lib/"),
        entry("rootfs/usr/lib/base", data=b"base"),
        link("rootfs/lib", "usr/lib"),
        entry("rootfs/file", data=b"file"),
        entry("rootfs/both", data=b"base"),
        directory("rootfs/dir/"),
        entry("rootfs/dir/x", data=b"x"),
    )
    app = make_aci(
        aci_manifest(),
        entry("rootfs/tmp/mine", data=b"m"),
        entry("rootfs/lib/mine", data=b"m"),
        entry("rootfs/file/mine", data=b"m"),
        entry("rootfs/both", data=b"app"),
        entry("rootfs/dir", data=b"now a file"),
    )
    made, out = render(tmp_path, [app, base], [Occurrence(1, (0, 1)), Occurrence(0, (0,))])
    below, above = layers_of(made, out)
    assert below[-2:] == ["usr/lib", "usr/lib/base=base"]
    assert above == [".", "both=app", "dir=now a file", "file", "file/mine=m", "lib", "lib/mine=m", "tmp", "tmp/mine=m"]
    with tarfile.open(out / made.layers[1].digest[7:]) as tar:
        assert [tar.getmember(name).mode for name in ("tmp", "lib")] == [0o1777, 0o755]


def test_whitelist_hides_files_of_dependencies_too(tmp_path: Path) -> None:
    base = make_aci(
        aci_manifest(app=False, pathWhitelist=["/a", "/d/f", "/hidden/by/app", "/h2"]),
        *(entry(f"rootfs/{p}", data=b"x") for p in ("a", "b", "d/f", "d/g", "hidden/by/app", "h1")),
        hard("rootfs/h2", "rootfs/h1"),
    )
    app = make_aci(aci_manifest(pathWhitelist=["/a", "/own", "/d/", "/d/f", "/h2"]), entry("rootfs/own"), entry("rootfs/other"))
    made, out = render(tmp_path, [app, base], [Occurrence(1, (0, 1)), Occurrence(0, (0,))])
    assert layers_of(made, out) == [[".", "a=x", "d", "d/f=x", "h2=x"], [".", "own="]]


def test_too_large(tmp_path: Path) -> None:
    """By its last layer too, which is not begun: what is written never passes the limit."""
    acis = [make_aci(aci_manifest(), entry("rootfs/x", data=bytes([number]) * (LIMIT // 3))) for number in range(4)]
    with pytest.raises(ImageError, match="image is too large"):
        render(tmp_path, acis, [Occurrence(number, (number,)) for number in range(4)])
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert LIMIT // 2 < written <= LIMIT


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["none", "gzip", "bzip2", "xz"])
def test_compressions(tmp_path: Path, pack: Any) -> None:
    aci = make_aci(aci_manifest("ex.org/packed"), entry("rootfs/x", data=os.urandom(3000)))
    (tmp_path / "a.aci").write_bytes(pack(aci))
    told: list[tuple[int, int]] = []
    found = rendering.open_aci(str(tmp_path / "a.aci"), str(tmp_path), LIMIT, lambda done, size: told.append((done, size)))
    size = (tmp_path / "a.aci").stat().st_size
    assert (found.name, told[-1]) == ("ex.org/packed", (size, size))
    assert (tmp_path / "plain.tar").read_bytes() == aci
    with pytest.raises(ImageError, match="image is too large"):
        rendering.open_aci(str(tmp_path / "a.aci"), str(tmp_path), 1000)
    if pack is not bytes:
        (tmp_path / "a.aci").write_bytes(pack(aci)[:-1000])
        with pytest.raises(ImageError, match="damaged or cut off"):
            rendering.open_aci(str(tmp_path / "a.aci"), str(tmp_path), LIMIT)


class Place:
    """A directory with ACIs, a store, and a web that only has the same ACIs, by name."""

    def __init__(self, path: Path, bench: Bench) -> None:
        self.path = path
        self.layout = Layout(str(path / "host"))
        self.bench = bench
        self.insecure: tuple[str, ...] = ()

    def write(self, name: str, aci: bytes) -> str:
        (self.path / name).write_bytes(gzip.compress(aci))
        return f"aci:{self.path / name}"

    def ready(self, reference: str, policy: str = "IfNotPresent", *, insecure: bool = False) -> Image:
        self.bench.kinds.clear()
        return ready.ready_image(reference, policy, Settings(insecure), self.layout, lambda event: None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    bench = Bench()
    monkeypatch.setattr(jobs, "run_service", bench.run_service)
    monkeypatch.setattr(jobs, "stop_units", lambda names: None)
    place = Place(tmp_path, bench)

    def fetch(client: object, reference: Any, *, target: str, **more: object) -> discovery.Endpoint:
        name = reference.path.rpartition("/")[2]
        subprocess.run(["cp", str(tmp_path / name), f"{target}/image.aci"], check=True)
        if (tmp_path / f"{name}.asc").exists():
            subprocess.run(["cp", str(tmp_path / f"{name}.asc"), f"{target}/image.aci.asc"], check=True)
        return discovery.Endpoint("https://ex.org/x", "", "")

    monkeypatch.setattr(discovery, "fetch_aci", fetch)
    return place


def test_progress_of_a_fetch_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    aci = make_aci(aci_manifest("ex.org/a"))
    place.write("a", aci)
    fetch, events = discovery.fetch_aci, list[Event]()

    def dawdle(*arguments: Any, progress: Callable[[int, int], None], **more: Any) -> discovery.Endpoint:
        progress(5, 10)
        deadline = time.monotonic() + 10
        while not any(event.parts for event in events) and time.monotonic() < deadline:
            time.sleep(0.05)
        return fetch(*arguments, **more)

    monkeypatch.setattr(discovery, "fetch_aci", dawdle)
    ready.ready_image(f"aci:ex.org/a@{image_id(aci)}", "IfNotPresent", Settings(), place.layout, events.append)
    told = next(event for event in events if event.parts)
    assert (told.reference, told.parts[0].done, told.parts[0].total) == (f"aci:ex.org/a@{image_id(aci)}", 5, 10)


def test_pinned_file(place: Place) -> None:
    aci = make_aci(aci_manifest(), entry("rootfs/x", data=b"x"))
    reference = place.write("a.aci", aci)
    image = place.ready(f"{reference}@{image_id(aci)}")
    assert place.bench.kinds == ["open-aci", "render-aci", "convert-layers"]
    assert (image.config.entrypoint, image.verified_by) == (("/bin/app",), "digest pin")
    assert place.ready(f"aci:/elsewhere@{image_id(aci)}", "Never")[1:4] == image[1:4]
    assert place.bench.kinds == []
    with pytest.raises(ImageError, match=rf"the image ID is {image_id(aci)}, the pinned one is sha512-000") as caught:
        place.ready(f"{reference}@sha512-{'0' * 128}")
    assert str(caught.value).startswith(reference)
    with pytest.raises(TrustError, match="not verified") as refused:
        place.ready(reference, "Always")
    assert f"pin what is there now, {reference}@{image_id(aci)}; or trust whoever signed it" in refused.value.hint
    assert os.listdir(place.layout.work) == []


def test_is_listed_found_and_collected_as_any_image(place: Place) -> None:
    aci = make_aci(aci_manifest(), entry("rootfs/x", data=b"x"))
    pin = image_id(aci)
    image = place.ready(f"{place.write('a.aci', aci)}@{pin}")
    store = Store(place.layout)
    (listed,) = list_entries(store)
    assert (listed.record.pin, listed.record.manifest) == (pin, image.manifest_digest)
    for text in (pin, pin[:19], pin[7:19], image.manifest_digest[:19], f"aci:/elsewhere@{pin}"):
        assert [e.record.reference for e in find_entries(store, text)] == [image.reference]
    assert find_garbage(store, Spared(), time.time() - 1) == []
    remove_garbage(find_garbage(store, Spared(), time.time() + 1))
    assert (os.listdir(place.layout.blobs), os.listdir(place.layout.layers), list_entries(store)) == ([], [], [])


def test_damaged_blob_is_rendered_anew(place: Place) -> None:
    aci = make_aci(aci_manifest(), entry("rootfs/x", data=b"x"))
    reference = f"{place.write('a.aci', aci)}@{image_id(aci)}"
    first = place.ready(reference)
    for directory_ in (place.layout.blobs, place.layout.layers):
        for name in os.listdir(directory_):
            Path(directory_, name).write_bytes(b"damaged")
    assert place.ready(reference) == first
    assert place.bench.kinds == ["open-aci", "render-aci", "convert-layers"]


def test_image_that_runs_must_be_for_this_host(place: Place) -> None:
    for wrong, message in (([], "has no label os"), (labels(os="linux", arch="vax"), "label arch is 'vax'")):
        aci = make_aci(aci_manifest(labels=wrong))
        with pytest.raises(ImageError, match=message):
            place.ready(f"{place.write('a.aci', aci)}@{image_id(aci)}")


def depend(*names: str, **ids: str) -> list[dict[str, Any]]:
    return [{"imageName": f"ex.org/{name}", **({"imageID": ids[name]} if name in ids else {})} for name in names]


def test_order_of_dependencies(place: Place) -> None:
    """A -> B, C; B -> D; C -> D: the order is D, B, D, C, A (ace.md); each is fetched once, and a noarch one will do."""
    made: dict[str, bytes] = {}
    for name, below in (("d", ()), ("b", ("d",)), ("c", ("d",)), ("a", ("b", "c"))):
        ids = {n: image_id(made[n]) for n in below}
        extra = {} if name == "a" else {"labels": [], "app": False}
        manifest_ = aci_manifest(f"ex.org/{name}", dependencies=depend(*below, **ids), **extra)
        made[name] = make_aci(manifest_, entry("rootfs/last", data=name.encode()), entry(f"rootfs/{name}"))
        place.write(name, made[name])
    image = place.ready(f"aci:ex.org/a@{image_id(made['a'])}")
    assert place.bench.kinds == ["fetch-aci", "open-aci"] * 4 + ["render-aci", "convert-layers"]
    assert len(image.layer_keys) == 5
    blob = Path(place.layout.blobs, image.manifest_digest[7:])
    found = manifest.parse_manifest(blob.read_bytes(), image.manifest_digest)
    contents = [line for layer in layers_of(found, Path(place.layout.blobs)) for line in layer if line.startswith("last")]
    assert contents == ["last=d", "last=b", "last=d", "last=c", "last=a"]


def test_dependency_is_verified_too(place: Place) -> None:
    base = make_aci(aci_manifest("ex.org/b", app=False))
    place.write("b", base)
    unpinned = make_aci(aci_manifest("ex.org/a", dependencies=depend("b")))
    with pytest.raises(TrustError, match=r"dependency ex\.org/b: aci:ex\.org/b: is not verified: its parent has no imageID") as caught:
        place.ready(f"{place.write('a', unpinned)}@{image_id(unpinned)}")
    assert image_id(base) in caught.value.hint
    place.ready(f"{place.write('a', unpinned)}@{image_id(unpinned)}", insecure=True)
    wrong = make_aci(aci_manifest("ex.org/a", dependencies=depend("b", b="sha512-" + "1" * 128)))
    with pytest.raises(ImageError, match=r"dependency ex\.org/b: aci:ex\.org/b: the image ID is sha512-"):
        place.ready(f"{place.write('a', wrong)}@{image_id(wrong)}")
    size = make_aci(aci_manifest("ex.org/a", dependencies=[{**depend("b", b=image_id(base))[0], "size": 1 << 20}]))
    with pytest.raises(ImageError, match="it should have 1048576"):
        place.ready(f"{place.write('a', size)}@{image_id(size)}")


@pytest.mark.parametrize("name", ["../../../tmp/keys", "ex.org/../a", "ex.org//a", "ex.org/a\nnext: line", "", "a" * 1001])
def test_a_lying_job_names_no_path(name: str) -> None:
    answer: dict[str, Any] = {"name": "ex.org/a", "labels": {"os": "linux"}, "dependencies": [["ex.org/b", [], "", 0]]}
    assert acis._checked_value(answer)[0] == "ex.org/a"
    for lie in ({"name": name}, {"labels": {name: "x"}}, {"dependencies": [[name, [], "", 0]]}):
        with pytest.raises(ImageError, match=r"the sandboxed job's answer makes no sense: .* is no AC identifier"):
            acis._checked_value({**answer, **lie})


@pytest.mark.parametrize("size", [float("inf"), -1, 1 << 63, "1", True, None])
def test_a_lying_job_names_no_size_that_is_none(size: object) -> None:
    with pytest.raises(ImageError, match="the sandboxed job's answer makes no sense"):
        acis._checked_value({"name": "ex.org/a", "labels": {}, "dependencies": [["ex.org/b", [], "", size]]})


@pytest.mark.parametrize(
    ("reference", "scope"),
    [
        ("aci:https://ex.org:8443/acis/web.aci", "ex.org:8443/acis/web.aci"),
        ("aci:ex.org/web:1", "own.org/name"),
        ("aci:/srv/web.aci", "own.org/name"),
    ],
)
def test_what_a_key_must_be_trusted_for(reference: str, scope: str) -> None:
    assert detached_scope(parse_reference(reference), "own.org/name") == scope


def test_a_key_for_another_name_does_not_vouch_for_a_url(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a key for his own name and the web server's ear puts his own ACI there."""
    place.write("web.aci", make_aci(aci_manifest("evil.org/web")))
    asked: list[str] = []

    def verify(store: object, reference: str, name: str, *more: object) -> Any:
        asked.append(name)
        raise UnprovenError(f"no key is trusted for {name}")

    monkeypatch.setattr(decide, "verify_detached", verify)
    with pytest.raises(TrustError, match=r"no key is trusted for ex\.org/web\.aci") as caught:
        place.ready("aci:https://ex.org/web.aci")
    assert "podctl trust add --prefix ex.org/web.aci KEYFILE" in caught.value.hint
    with pytest.raises(TrustError, match=r"no key is trusted for evil\.org/web"):
        place.ready(f"aci:{place.path}/web.aci")
    assert asked == ["ex.org/web.aci", "evil.org/web"]


class Verifier:
    """Stands in for gpg: accepts by the first key that counts for the name, while `fault` is empty."""

    def __init__(self) -> None:
        self.fault = ""
        self.asked: list[str] = []

    def check(self, store: Store, keys: Sequence[Any], signatures: Sequence[Any], data: str) -> decide.Checked:
        self.asked.append(Path(data).name)
        accepted = [decide.Accepted(signatures[0], keys[0], "F", 0, b"")]
        return decide.Checked((), (self.fault,), ()) if self.fault else decide.Checked(tuple(accepted), (), ())


def test_a_touched_key_does_not_take_a_signed_aci_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was signed is kept with the image, and its signature verified again; of a dependency, too."""
    verifier = Verifier()
    monkeypatch.setattr(decide, "check_signatures", verifier.check)
    place.path.chmod(0o755)
    key = Path(place.layout.trusted_keys, "root.d/key")
    key.parent.mkdir(parents=True)
    key.write_bytes(b"key")
    for name, below in (("a", ["b"]), ("b", [])):
        place.write(name, make_aci(aci_manifest(f"ex.org/{name}", dependencies=depend(*below))))
        (place.path / f"{name}.asc").write_bytes(b"signature")
    signed = {digest_of_file(place.path / name) for name in ("a", "b")}
    reference = f"aci:{place.path}/a"
    first = place.ready(reference)
    assert first.verified_by == "signature of GPG key F, trusted for every name"
    for name in ("a", "b"):
        (place.path / name).unlink()
    key.write_bytes(b"the same key, and another")
    for policy in ("Never", "IfNotPresent"):
        assert place.ready(reference, policy)[1:4] == first[1:4]
        assert place.bench.kinds == []
    assert set(verifier.asked[-2:]) == {digest[7:] for digest in signed}
    asked = len(verifier.asked)
    assert place.ready(reference, "Never")
    assert len(verifier.asked) == asked  # the voucher is of the keys as they are now
    store = Store(place.layout)
    assert not [item for item in find_garbage(store, Spared(frozenset({reference})), time.time() + 1) if item.kind == "blob"]
    key.write_bytes(b"touched")
    verifier.fault = "the key has been revoked"
    with pytest.raises(TrustError, match=r"no trusted key has signed it\n  signature: the key has been revoked") as caught:
        place.ready(reference, "Never")
    assert "podctl trust add --prefix NAME KEYFILE, NAME being that in its manifest" in caught.value.hint
    with pytest.raises(TrustError, match=r"the key has been revoked\n  another one cannot be looked for: .*there is no such file"):
        place.ready(reference)
    remove_garbage(find_garbage(store, Spared(), time.time() + 1))
    assert os.listdir(place.layout.blobs) == []


def test_name_and_labels_must_be_those_that_were_asked_for(place: Place) -> None:
    aci = make_aci(aci_manifest("ex.org/other"))
    place.write("a", aci)
    with pytest.raises(ImageError, match=r"aci:ex\.org/a: calls itself ex\.org/other"):
        place.ready(f"aci:ex.org/a@{image_id(aci)}")
    aci = make_aci(aci_manifest("ex.org/a"))
    place.write("a", aci)
    with pytest.raises(ImageError, match="label version was asked to be '1', the image has no such label"):
        place.ready(f"aci:ex.org/a:1@{image_id(aci)}")


def test_dependency_is_asked_about_again_at_each_start(place: Place) -> None:
    for name, below in (("a", ["b"]), ("b", [])):
        place.write(name, make_aci(aci_manifest(f"ex.org/{name}", dependencies=depend(*below))))
    pinned = f"aci:{place.path}/a@{image_id(gzip.decompress((place.path / 'a').read_bytes()))}"
    first = place.ready(pinned, insecure=True)
    assert first.config.appc is not None
    assert first.config.appc.dependencies == (("aci:ex.org/b", image_id(gzip.decompress((place.path / "b").read_bytes()))),)
    assert place.ready(pinned, insecure=True) == first
    assert place.bench.kinds == []
    for policy in ("IfNotPresent", "Never"):
        with pytest.raises(ImageError, match=r"is not verified|is not present"):
            place.ready(pinned, policy)
    record = list_entries(Store(place.layout))[0].record
    assert list_dependencies(Store(place.layout), record) == ("aci:ex.org/b",)


def test_circles_and_depths_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, below in (("a", "b"), ("b", "a")):
        place.write(name, make_aci(aci_manifest(f"ex.org/{name}", dependencies=depend(below))))
    with pytest.raises(ImageError, match=r"ex\.org/a: depends on itself"):
        place.ready("aci:ex.org/a", insecure=True)
    for index in range(4):
        place.write(
            f"x{index}", make_aci(aci_manifest(f"ex.org/x{index}", dependencies=depend(*[f"x{index + 1}"] * 3) if index < 3 else []))
        )
    place.ready("aci:ex.org/x0", insecure=True)
    monkeypatch.setattr(acis, "_DEPTH_MAX", 3)
    with pytest.raises(ImageError, match="go deeper than 3 levels"):
        place.ready("aci:ex.org/x0", "Always", insecure=True)
    monkeypatch.setattr(acis, "_DEPTH_MAX", 16)
    monkeypatch.setattr(acis, "_OCCURRENCES_MAX", 20)
    with pytest.raises(ImageError, match="more than 20 dependencies"):
        place.ready("aci:ex.org/x0", "Always", insecure=True)


def test_all_together_have_a_limit(place: Place) -> None:
    """Settings of these tests: 1 MiB."""
    for name, below in (("a", ["b", "c"]), ("b", []), ("c", [])):
        place.write(name, make_aci(aci_manifest(f"ex.org/{name}", dependencies=depend(*below)), entry("rootfs/x", data=bytes(400_000))))
    with pytest.raises(ImageError, match=r"dependency ex\.org/c: aci:ex\.org/c: image is too large"):
        place.ready("aci:ex.org/a", insecure=True)


def test_templates() -> None:
    """discovery.md; a prefix counts by whole components, and a template must be complete."""
    page = """<!DOCTYPE html><html><head><META name="ac-discovery" content="ex.org https://a/{os}/{arch}/{name}-{version}.{ext}">
      <meta name="ac-discovery" content=" ex.org/app  http://b/{name}.{ext} "/><meta name=ac-discovery content="ex.org/ap https://c/{ext}">
      <meta name="ac-discovery" content="other.org https://d/{ext}"><meta name="ac-discovery" content="ex.org https://e/{odd}.{ext}">
      <meta name="ac-discovery-pubkeys" content="ex.org https://f/keys"><meta name="ac-discovery" content="ex.org https://g/x">
      <meta name="ac-discovery"><meta name="ac-discovery" content=""><b></head><meta name="""
    values = {"name": "ex.org/app", "version": "1", "os": "linux", "arch": "amd64"}
    assert discovery.find_templates(page, "ex.org/app", values) == [
        ("https://a/linux/amd64/ex.org/app-1.aci", "https://a/linux/amd64/ex.org/app-1.aci.asc"),
        ("http://b/ex.org/app.aci", "http://b/ex.org/app.aci.asc"),
    ]
    assert discovery.find_templates("", "ex.org/app", values) == []


def test_appc_object_is_checked() -> None:
    """It comes out of a sandbox, or from an image of another kind."""
    base = {"os": "linux", "architecture": manifest.host_platform().architecture, "rootfs": {"type": "layers", "diff_ids": []}}
    for bad in (
        {"seccompMode": "off"},
        {"seccompCalls": ["a\nb"]},
        {"oomScoreAdjust": "-1"},
        {"seccompErrno": "E"},
        {"memoryLimit": -1},
        {"groups": "x"},
    ):
        data = json.dumps({**base, "appc": bad}).encode()
        with pytest.raises(ImageError, match="appc"):
            manifest.parse_config(data, manifest.digest_of(data))


_names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
_roots = st.dictionaries(_names, st.sampled_from(["file", "directory", "link"]), max_size=7)


def _is_possible(root: dict[str, str]) -> bool:
    """As a real directory would have it: nothing lies below what is no directory."""
    return not any(root.get(path[:end]) in ("file", "link") for path in root for end in (1, 3) if end < len(path))


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(st.lists(_roots.filter(_is_possible), min_size=1, max_size=3), st.sets(_names, max_size=4))
def test_layers_mean_what_the_specification_says(roots: list[dict[str, str]], listed: set[str]) -> None:
    """Each on top of the one before: a plain model of ace.md, Filesystem Setup, against our layers as the converter applies them."""
    allowed = listed | {path[:end] for path in listed for end in (1, 3) if end < len(path)}
    model: dict[str, tuple[str, int]] = {}
    acis = []
    for number, root in enumerate(roots):
        entries = []
        for path, kind in sorted(root.items()):
            flag = {"file": "0", "directory": "5", "link": "2"}[kind]
            entries.append(
                entry(
                    f"rootfs/{path}", flag, b"%d" % number if kind == "file" else b"", link="/a/b" if kind == "link" else b"", mtime=number
                )
            )
            if listed and path not in listed and (kind != "directory" or path not in allowed):
                continue
            for end in (1, 3):
                if end < len(path) and model.get(path[:end], ("",))[0] != "directory":
                    model[path[:end]] = ("directory", 0)
            if kind != "directory":
                model = {other: found for other, found in model.items() if not other.startswith(f"{path}/")}
            model[path] = (kind, number)
        acis.append(make_aci(aci_manifest(pathWhitelist=[f"/{path}" for path in sorted(listed)]), *entries))
    numbers = range(len(acis))
    with tempfile.TemporaryDirectory() as place:
        made, out = render(Path(place), acis, [Occurrence(n, tuple(numbers[n:][::-1])) for n in numbers])
        tree = Tree(Budget(LIMIT))
        for made_layer in made.layers:
            with open(out / made_layer.digest[7:], "rb") as file:
                tree.apply(read_members(file.fileno()))
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
        found = {}
        pending = list((tree.root.children or {}).values())
        while pending:
            node = pending.pop()
            found[node.path().decode()] = (kinds[node.inode.kind], node.inode.attributes.mtime // 10**9)
            pending += (node.children or {}).values()
    assert found == model

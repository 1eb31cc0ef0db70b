# SPDX-License-Identifier: Apache-2.0
"""Trust without gpg and without a network: which keys count, what a claim must say, what is kept, and refusals. See tests/integration."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dbus_next")
pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from rktd_units.cli import trust as cli_trust
from rktd_units.errors import ConfigError, ImageError, NotFoundError, TemporaryError, TrustError, UsageError
from rktd_units.images import jobs
from rktd_units.images.http import AbsentError, Answer, StatusError
from rktd_units.images.reference import parse_reference
from rktd_units.images.store import Store
from rktd_units.paths import Layout
from rktd_units.trust import admin, decide, keys, pem, vouchers
from rktd_units.trust.claims import parse_claim
from rktd_units.trust.decide import UnprovenError, find_proof
from rktd_units.trust.fetch import find_signatures
from rktd_units.trust.gpg import find_fault, parse_status
from rktd_units.trust.lookaside import DEFAULT, find_lookaside, read_local, signature_places
from rktd_units.trust.vouchers import COSIGN, SIMPLE, matches_identity
from tests.image_cases import Bench, describe, dump, make_image, make_index, sha256
from tests.output_schema import check_record

DIGEST = "sha256:" + "a" * 64
REFERENCE = parse_reference("ex.org/team/app:1")


def claim(digest: str = DIGEST, identity: str = "ex.org/team/app:1", kind: str = "cosign container image signature", **more: Any) -> bytes:
    critical = {"identity": {"docker-reference": identity}, "image": {"docker-manifest-digest": digest}, "type": kind}
    return dump({"critical": critical, "optional": None, **more})


class Signer:
    """A key pair of cosign's most usual kind."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.pem = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.fingerprint = next(iter(pem.load_keys(self.pem)))

    def sign(self, payload: bytes) -> bytes:
        return base64.b64encode(self.private.sign(payload, ec.ECDSA(SHA256())))


class Place:
    """A store, directories of keys, and a network that has what a test puts there."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(str(root))
        self.store = Store(self.layout)
        self.store.prepare()
        self.signer = Signer()
        self.found: list[list[str]] = []
        self.failures: list[str] = []
        self.asked: list[Mapping[str, Any]] = []
        self.error: Exception | None = None

    def write(self, path: str, data: bytes, *, vendor: bool = False) -> Path:
        file = Path(self.layout.vendor_keys if vendor else self.layout.trusted_keys, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file

    def add(self, payload: bytes, signature: bytes = b"") -> None:
        data = base64.b64encode(signature or self.signer.sign(payload)).decode()
        self.found.append([COSIGN, data, base64.b64encode(payload).decode(), "reg"])

    def search(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        if self.error:
            raise self.error
        return {"digests": [DIGEST], "signatures": self.found, "places": ["ex.org/team/app:sha256-x.sig"], "failures": self.failures}

    def prove(self, *, offline: bool = False, renew: bool = False) -> Any:
        return find_proof(REFERENCE, offline, renew, self.store, self.search)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(jobs, "run_service", Bench().run_service)
    tmp_path.chmod(0o755)
    return Place(tmp_path)


def found_prefixes(place: Place, name: str) -> list[str]:
    return [key.prefix for key in keys.find_keys(place.layout, name)]


def test_keys_count_by_whole_components(place: Place) -> None:
    for prefix in ("ex.org", "ex.org/etcd", "ex.org/etcd/a", "other.org"):
        place.write(f"prefix.d/{prefix}/k", b"x")
    place.write("root.d/k", b"x")
    assert found_prefixes(place, "ex.org/etcd") == ["", "ex.org", "ex.org/etcd"]
    assert found_prefixes(place, "ex.org/etcd-evil") == ["", "ex.org"]
    assert found_prefixes(place, "ex.organic/etcd") == [""]
    assert found_prefixes(place, "other.org/etcd/a") == ["", "other.org"]
    assert keys.list_prefixes(place.layout) == ["", "ex.org", "ex.org/etcd", "ex.org/etcd/a", "other.org"]


def test_masks_vendors_and_what_is_no_key(place: Place) -> None:
    for name in ("a", "b", "c"):
        place.write(f"root.d/{name}", b"vendor", vendor=True)
    place.write("root.d/a", b"own")
    place.write("root.d/b", b"")
    Path(place.layout.trusted_keys, "root.d/c").symlink_to("/dev/null")
    for name in (".hidden", "editor~"):
        place.write(f"root.d/{name}", b"x")
    found, masked = keys.scan_scope(place.layout, "")
    assert [(k.path, k.vendor) for k in found] == [(f"{place.layout.trusted_keys}/root.d/a", False)]
    assert [m.vendor for m in masked] == [f"{place.layout.vendor_keys}/root.d/{name}" for name in "bc"]


def test_keys_that_others_may_change(place: Place) -> None:
    file = place.write("prefix.d/ex.org/k", b"x")
    file.chmod(0o664)
    with pytest.raises(TrustError, match=r"/ex.org/k: must not be writable by group or others, has mode 0664"):
        keys.find_keys(place.layout, "ex.org/a")
    file.chmod(0o644)
    file.parent.parent.chmod(0o777)
    with pytest.raises(TrustError, match=r"prefix\.d: must not be writable"):
        keys.find_keys(place.layout, "ex.org/a")
    assert keys.find_keys(place.layout, "other.org/a") == ()
    file.parent.parent.chmod(0o755)
    away = Path(place.layout.root, "away/keys")
    away.parent.mkdir()
    file.parent.rename(away)
    file.parent.symlink_to(away)
    assert found_prefixes(place, "ex.org/a") == ["ex.org"]
    away.parent.chmod(0o777)
    with pytest.raises(TrustError, match="away: must not be writable"):
        keys.find_keys(place.layout, "ex.org/a")
    away.parent.chmod(0o755)
    file.rename(f"{file}2")
    file.symlink_to(f"{file}2")
    with pytest.raises(TrustError, match="must be a regular file"):
        keys.find_keys(place.layout, "ex.org/a")


def test_any_change_of_keys_shows(place: Place) -> None:
    file = place.write("root.d/k", b"x")

    def stamp() -> str:
        return keys.stamp_keys(keys.find_keys(place.layout, "ex.org/a"))

    first = stamp()
    assert stamp() == first
    place.write("prefix.d/other.org/k", b"x")
    assert stamp() == first
    os.utime(file, ns=(1, 1))
    touched = stamp()
    added = place.write("prefix.d/ex.org/k", b"x")
    more = stamp()
    assert len({first, touched, more}) == 3
    added.write_bytes(b"")
    assert stamp() == touched


@pytest.mark.parametrize(
    ("form", "identity", "reference", "expected"),
    [
        (SIMPLE, "ex.org/a:1", "ex.org/a:1", True),
        (SIMPLE, "ex.org/a:2", "ex.org/a:1", False),
        (SIMPLE, "ex.org/a", "ex.org/a:latest", False),
        (SIMPLE, "ex.org/a:latest", "ex.org/a", True),
        (SIMPLE, "ex.org/a-evil:1", "ex.org/a:1", False),
        (SIMPLE, "busybox:1", "docker.io/library/busybox:1", True),
        (SIMPLE, "ex.org/a:2", f"ex.org/a@{DIGEST}", True),
        (SIMPLE, "ex.org/a:2", f"ex.org/a:1@{DIGEST}", False),
        (SIMPLE, f"ex.org/a@{DIGEST}", "ex.org/a:1", False),
        (SIMPLE, "ex.org/b:2", f"ex.org/a@{DIGEST}", False),
        (SIMPLE, "ex.org:5000/a:1", "ex.org:5000/a:1", True),
        (SIMPLE, "not a reference", "ex.org/a:1", False),
        (SIMPLE, "oci:/ex.org/a:1", "ex.org/a:1", False),
        (COSIGN, "ex.org/a", "ex.org/a:1", True),
        (COSIGN, "ex.org/a", "ex.org/a/b:1", False),
    ],
)
def test_identity(form: str, identity: str, reference: str, expected: bool) -> None:
    assert matches_identity(form, identity, parse_reference(reference)) is expected


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (claim(kind="atomic container signature"), "critical.type must be 'cosign container image signature'"),
        (claim(extra=1), "the signed claim: must be an object of exactly critical, optional"),
        (claim(digest="sha512:x"), "is no digest"),
        (claim(identity=""), "must name the image"),
        (claim()[:-1] + b', "optional": {}}', "stands twice"),
        (b'{"critical": NaN, "optional": null}', "NaN is not JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 5000, "not valid JSON"),
        (b"[]", "must be an object of exactly"),
        (b" " * 20000, "larger than"),
        (dump({"critical": {"identity": {}, "image": {}, "type": "cosign container image signature"}, "optional": None}), "critical.image"),
        (dump({"critical": [], "optional": None}), "critical: must be an object"),
        (dump({"critical": {}, "optional": 5}), "optional must be an object"),
    ],
)
def test_claims_that_are_refused(payload: bytes, match: str) -> None:
    with pytest.raises(TrustError, match=match):
        parse_claim(COSIGN, payload)


def test_claims() -> None:
    assert parse_claim(COSIGN, claim()) == (DIGEST, "ex.org/team/app:1")
    assert parse_claim(SIMPLE, claim(kind="atomic container signature", optional={"creator": "x"})) == (DIGEST, "ex.org/team/app:1")
    with pytest.raises(TrustError, match="optional must be an object"):
        parse_claim(SIMPLE, claim(kind="atomic container signature"))


def test_other_kinds_of_pem_keys() -> None:
    rsa_key = rsa.generate_private_key(65537, 2048)
    ed_key = ed25519.Ed25519PrivateKey.generate()
    short = ec.generate_private_key(ec.SECP192R1())
    texts = [k.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for k in (rsa_key, ed_key)]
    loaded = list(pem.load_keys(b"a comment\n" + b"".join(texts)).values())
    assert [pem.describe_key(k) for k in loaded] == ["RSA 2048", "Ed25519"]
    signed = [base64.b64encode(s) for s in (rsa_key.sign(b"x", padding.PKCS1v15(), SHA256()), ed_key.sign(b"x"))]
    assert [pem.is_signed(k, b"x", s) for k in loaded for s in signed] == [True, False, False, True]
    assert not pem.is_signed(loaded[0], b"y", signed[0])
    assert not pem.is_signed(loaded[0], b"x", b"no base64!")
    with pytest.raises(TrustError, match="of 192 bits, which is too short"):
        pem.load_keys(short.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(TrustError, match="no readable public key"):
        pem.load_keys(b"-----BEGIN PUBLIC KEY-----\nrubbish\n-----END PUBLIC KEY-----\n")


def test_proof_is_kept_and_asked_again(place: Place) -> None:
    file = place.write("prefix.d/ex.org/team/k", place.signer.pem)
    place.add(claim(identity="ex.org/team/app"))
    voucher = place.prove()
    assert (voucher.fingerprint, voucher.prefix, voucher.digest) == (place.signer.fingerprint, "ex.org/team", DIGEST)
    assert place.asked == [{"lookaside": "", "cosign": True, "known": []}]
    assert vouchers.find_voucher(place.layout, REFERENCE) is None
    vouchers.save_voucher(place.layout, voucher)
    assert vouchers.find_voucher(place.layout, REFERENCE) == voucher
    place.asked.clear()
    assert place.prove() == voucher
    assert place.asked == []
    place.found.clear()
    assert place.prove(renew=True) == voucher  # the tag has not moved: no signature is fetched again
    assert place.asked[-1]["known"] == [DIGEST]
    place.write("root.d/more", Signer().pem)
    assert vouchers.find_voucher(place.layout, REFERENCE) is None
    again = place.prove(offline=True)
    assert (again.fingerprint, again.keys == voucher.keys) == (voucher.fingerprint, False)
    file.unlink()
    with pytest.raises(UnprovenError, match="no signature of it here that holds, and its pull policy is Never") as caught:
        place.prove(offline=True)
    assert "the signature that is kept here: made by an unknown key" in str(caught.value)
    with pytest.raises(UnprovenError, match="it has no signature"):
        place.prove()
    place.error = TemporaryError("the network is down")
    with pytest.raises(UnprovenError, match="does not count any more, and no other can be looked for"):
        place.prove()


def test_voucher_of_another_reference_or_damaged(place: Place) -> None:
    place.write("root.d/k", place.signer.pem)
    place.add(claim(identity="ex.org/team/app"))
    voucher = place.prove()
    vouchers.save_voucher(place.layout, voucher)
    other = parse_reference("ex.org/team/app:2")
    assert vouchers.find_voucher(place.layout, other) is None
    path = next(Path(place.layout.vouchers).iterdir())
    name = Path(vouchers._path(place.layout, str(other)))
    name.write_bytes(path.read_bytes())
    assert vouchers.find_voucher(place.layout, other) is None
    path.write_text(path.read_text().replace(DIGEST, "sha256:" + "b" * 64))
    assert vouchers.find_voucher(place.layout, REFERENCE) is None
    assert vouchers.is_fresh(voucher, REFERENCE, "sha256:" + "c" * 64, DIGEST)
    assert not vouchers.is_fresh(voucher, REFERENCE, "sha256:" + "c" * 64)
    assert not vouchers.is_fresh(voucher, parse_reference("ex.org/team/other:1"), DIGEST)
    vouchers.save_voucher(place.layout, voucher._replace(expires=int(time.time()) - 1))
    assert vouchers.find_voucher(place.layout, REFERENCE) is None


def test_refusals(place: Place) -> None:
    with pytest.raises(UnprovenError, match=r"no key is trusted for ex.org/team/app"):
        place.prove()
    assert place.asked == []
    place.write("prefix.d/ex.org/k", place.signer.pem)
    with pytest.raises(UnprovenError, match="it has no signature") as caught:
        place.prove()
    assert caught.value.known == DIGEST
    assert "looked in ex.org/team/app:sha256-x.sig" in str(caught.value)
    assert f"trusted: {place.signer.fingerprint}, {place.layout.trusted_keys}/prefix.d/ex.org/k" in str(caught.value)
    place.add(claim(digest="sha256:" + "b" * 64, identity="ex.org/team/app"))
    place.add(claim(identity="ex.org/team/app-evil"))
    place.add(b"{}")
    place.add(claim(identity="ex.org/team/app"), Signer().sign(claim(identity="ex.org/team/app")))
    with pytest.raises(UnprovenError, match="none of its 4 signatures counts") as caught:
        place.prove()
    for fault in (
        "is of another image, sha256:b",
        "is for another name, 'ex.org/team/app-evil'",
        "must be an object of exactly",
        "unknown key",
    ):
        assert fault in str(caught.value)
    place.failures.append("https://sigs.ex.org: is away")
    with pytest.raises(TemporaryError, match=r"is not verified yet: https://sigs.ex.org: is away") as passing:
        place.prove()
    assert "is for another name, 'ex.org/team/app-evil'" in str(passing.value)  # what was found is not forgotten
    place.add(claim(identity="ex.org/team/app"))  # the last of five is enough, whatever else is away
    assert place.prove().digest == DIGEST
    with pytest.raises(UnprovenError, match="lies on this host"):
        find_proof(parse_reference("oci:/srv/x"), False, False, place.store, place.search)


def test_no_place_crowds_out_another(place: Place) -> None:
    """What this host itself has is looked at whatever the network brings, and one form leaves no other out."""
    place.write("root.d/k", place.signer.pem)
    place.write("root.d/gpg", b"an OpenPGP key")
    registries(place, "default-docker: {lookaside: 'file:///srv'}")
    directory = Path(f"{place.layout.root}/srv/team/app@sha256={'a' * 64}")
    directory.mkdir(parents=True)
    (directory / "signature-1").write_bytes(b"ours")
    place.found += [[COSIGN, "eA==", "eA==", f"reg {n}"] for n in range(500)] + [[SIMPLE, "eA==", "", "the last"]]
    seen: list[decide.Signature] = []

    def check(store: object, keys: object, signatures: Sequence[decide.Signature], data: str = "") -> decide.Checked:
        seen.extend(signatures)
        return decide.Checked((), (), ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decide, "check_signatures", check)
        with pytest.raises(UnprovenError, match="none of its 66 signatures counts"):
            place.prove()
    assert [s.place for s in seen[:3]] == [f"file:///srv/team/app@sha256={'a' * 64}/signature-1", "the last", "reg 0"]


def test_too_many_signatures_leave_no_others_out() -> None:
    """A lookaside that is full does not end the job, nor keep cosign's from being looked at."""
    image = make_image({"a": b"1"})
    payload = claim(image.digest)
    kind = "application/vnd.dev.cosign.simplesigning.v1+json"
    tag = f"{image.digest.replace(':', '-')}.sig"
    signed = dump({"schemaVersion": 2, "layers": [describe(payload, kind, annotations={"dev.cosignproject.cosign/signature": "c2ln"})]})
    index = make_index((image, {"os": "linux", "architecture": json.loads(image.config)["architecture"]}))
    registry: Any = FakeRegistry({"1": index, sha256(index): index, image.digest: image.manifest, tag: signed}, {sha256(payload): payload})

    class Web:
        def get(self, url: str, *, limit: int) -> Any:
            return Answer(b"x" * limit, {}, url)

    client: Any = Web()
    found = find_signatures(REFERENCE, [registry], client, {"lookaside": "https://sigs.org", "cosign": True, "known": []})
    forms = [form for form, *_ in found["signatures"]]
    assert (forms.count(SIMPLE), forms.count(COSIGN)) == (17, 1)
    assert sum("left out a signature of" in place for place in found["places"]) == 15
    assert found["failures"] == []
    assert len(json.dumps(found)) < 1 << 20


def test_names_that_would_be_paths_have_no_keys(place: Place) -> None:
    for name in ("../../tmp", "ex.org/../../x", "ex.org//x", "/etc", "."):
        with pytest.raises(TrustError, match="is no name that keys can be trusted for"):
            keys.find_keys(place.layout, name)


def test_a_lying_job_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("root.d/k", place.signer.pem)
    answers: list[dict[str, Any]] = [
        {},
        {"digests": 5},
        {"digests": [], "signatures": [], "places": [], "failures": []},
        {"digests": ["x"], "signatures": [["a"]]},
        {"digests": [[0] * 71], "signatures": [], "places": [], "failures": []},
    ]
    for value in answers:
        with pytest.raises(ImageError, match=r"find-signatures (left no sensible result|names no digest)"):
            find_proof(REFERENCE, False, False, place.store, lambda request, value=value: value)  # type: ignore[misc]
    key = keys.find_keys(place.layout, REFERENCE.name)
    signature = [decide.Signature(COSIGN, b"", b"", "x")]
    good = {"good": [["f", 0, 0]], "faults": [], "payload": ""}
    for value in (
        {"keys": [], "signatures": [good]},
        {"keys": [["f"]], "signatures": []},
        {"keys": [["f"]], "signatures": [{**good, "good": [["f", 1, 0]]}]},
        {"keys": [["f"]], "signatures": [{**good, "good": [["f", True, 0]]}]},
        {"keys": [["f"]], "signatures": [{**good, "good": [["../f", 0, 0]]}]},
        {"keys": [["f"]], "signatures": [{**good, "payload": "!"}]},
        {"keys": 5, "signatures": 5},
    ):
        with pytest.raises(ImageError, match="verify-signatures left no sensible result"):
            decide._read_verdict(jobs.Output(value, "", 0), key, signature)


class FakeRegistry:
    """What a registry has: manifests by name, blobs by digest."""

    def __init__(self, manifests: dict[str, bytes], blobs: dict[str, bytes]) -> None:
        self.manifests, self.blobs = manifests, blobs
        self.sent = 0  # manifests

    def manifest(self, name: str) -> tuple[bytes, str, str]:
        if name not in self.manifests:
            raise AbsentError(f"has no {name}", 404, "")
        self.sent += 1
        return self.manifests[name], sha256(self.manifests[name]), ""

    def manifest_digest(self, name: str) -> str:
        return sha256(self.manifests[name]) if name in self.manifests else ""

    def referrers(self, digest: str) -> bytes:
        return self.manifest(digest.replace(":", "-"))[0]

    def blob_bytes(self, descriptor: Any, limit: int) -> bytes:
        return self.blobs[descriptor.digest]


def test_fetching_signatures_of_index_and_manifest() -> None:
    here, there = make_image({"a": b"1"}), make_image({"a": b"2"}, architecture="mips")
    index = make_index(
        (here, {"os": "linux", "architecture": json.loads(here.config)["architecture"]}), (there, {"os": "linux", "architecture": "mips"})
    )
    payload = claim(here.digest)
    kind = "application/vnd.dev.cosign.simplesigning.v1+json"
    layers = [
        describe(payload, kind, annotations={"dev.cosignproject.cosign/signature": "c2ln"}),
        describe(payload, kind),
        describe(payload, "application/vnd.oci.image.layer.v1.tar", annotations={"dev.cosignproject.cosign/signature": "c2ln"}),
        {"mediaType": kind, "digest": sha256(b"big"), "size": 1 << 20, "annotations": {"dev.cosignproject.cosign/signature": "c2ln"}},
        5,
    ]
    signed = dump({"schemaVersion": 2, "layers": layers})
    tag = f"{here.digest.replace(':', '-')}.sig"
    registry: Any = FakeRegistry({"1": index, tag: signed}, {sha256(payload): payload})
    client: Any = None
    request = {"lookaside": "", "cosign": True, "known": []}
    found = find_signatures(REFERENCE, [registry], client, request)
    assert found["digests"] == [sha256(index), here.digest]
    assert found["signatures"] == [
        [COSIGN, base64.b64encode(b"c2ln").decode(), base64.b64encode(payload).decode(), f"ex.org/team/app:{tag}"]
    ]
    assert found["failures"] == []
    assert find_signatures(REFERENCE, [registry], client, {**request, "known": [here.digest]})["signatures"] == []
    del registry.manifests[tag]
    entry = describe(signed, "application/vnd.oci.image.manifest.v1+json", artifactType="application/vnd.dev.cosign.artifact.sig.v1+json")
    registry.manifests[tag.removesuffix(".sig")] = dump({"schemaVersion": 2, "manifests": [entry, 5, {**entry, "artifactType": "sbom"}]})
    registry.manifests[sha256(signed)] = signed
    (again,) = find_signatures(REFERENCE, [registry], client, request)["signatures"]
    assert again[:3] == found["signatures"][0][:3]
    registry.manifests[tag] = b"[]"
    found = find_signatures(REFERENCE, [registry], client, request)
    assert found["failures"] == []
    assert any("has no layers: it tells of no signatures" in place for place in found["places"])
    with pytest.raises(ImageError, match=r"ex.org/team/app:1: has no 1"):
        find_signatures(REFERENCE, [FakeRegistry({}, {})], client, request)  # type: ignore[list-item]


def test_a_tag_that_has_not_moved_costs_a_question() -> None:
    image = make_image({"a": b"1"})
    registry: Any = FakeRegistry({"1": image.manifest}, {})
    client: Any = None
    request = {"lookaside": "", "cosign": True, "known": [image.digest]}
    assert find_signatures(REFERENCE, [registry], client, request)["digests"] == [image.digest]
    assert registry.sent == 0
    registry.manifests["1"] = make_image({"a": b"2"}).manifest
    assert find_signatures(REFERENCE, [registry], client, request)["digests"] == [sha256(registry.manifests["1"])]
    assert registry.sent > 0


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (StatusError("https://sigs.org/x: answered 403 Forbidden", 403, ""), False),
        (ImageError("https://sigs.org/x: its certificate is refused: self-signed"), False),
        (TemporaryError("https://sigs.org/x: answered 503"), True),
    ],
    ids=["forbidden", "certificate", "busy"],
)
def test_a_place_that_says_no_for_good_is_not_waited_for(error: Exception, passes: bool) -> None:
    image = make_image({"a": b"1"})
    registry: Any = FakeRegistry({"1": image.manifest}, {})

    class Web:
        def get(self, url: str, *, limit: int) -> Any:
            raise error

    client: Any = Web()
    found = find_signatures(REFERENCE, [registry], client, {"lookaside": "https://sigs.org", "cosign": False, "known": []})
    assert (str(error) in found["failures"], str(error) in found["places"]) == (passes, not passes)


def registries(place: Place, text: str, name: str = "a") -> None:
    path = Path(place.layout.root, "etc/containers/registries.d", f"{name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_lookaside_of_the_most_precise_scope(place: Place) -> None:
    assert find_lookaside(REFERENCE, place.layout) == DEFAULT
    registries(
        place,
        "default-docker: {lookaside-staging: 'file:///x'}\ndocker:\n  ex.org: {sigstore: 'https://old.org/'}\n  ex.org/tea: {lookaside: 'https://no.org'}",
    )
    assert find_lookaside(REFERENCE, place.layout) == "https://old.org"
    registries(place, "docker:\n  ex.org/team/app: {lookaside: 'file:///srv'}\n  ex.org/team/app:2: {lookaside: 'file:///two'}\n", "b")
    assert find_lookaside(REFERENCE, place.layout) == "file:///srv"
    assert find_lookaside(parse_reference("ex.org/team/app:2"), place.layout) == "file:///two"
    registries(place, "docker: {'*.org': {lookaside: 'https://all.org'}, '*.ex.org': {lookaside: 'https://below.org'}}", "d")
    for name, url in (("a.org/b", "https://all.org"), ("a.b.ex.org:5000/c", "https://below.org"), ("ex.org/other", "https://old.org")):
        assert find_lookaside(parse_reference(name), place.layout) == url
    registries(place, "docker: {ex.org: {lookaside: 'https://a.org'}}", "c")
    with pytest.raises(ConfigError, match=r"'ex.org' is described in .*/a.yaml too"):
        find_lookaside(REFERENCE, place.layout)
    registries(place, "docker: [", "c")
    with pytest.raises(ConfigError, match="is not YAML"):
        find_lookaside(REFERENCE, place.layout)
    registries(place, "docker: {ex.org/team/app:1: {lookaside: 'ftp://a.org'}}", "c")
    with pytest.raises(TrustError, match="must be a file, http or https URL"):
        find_lookaside(REFERENCE, place.layout)


def test_local_lookaside(place: Place) -> None:
    first = next(signature_places("file:///srv", REFERENCE, DIGEST))
    assert first == f"file:///srv/team/app@sha256={'a' * 64}/signature-1"
    directory = Path(f"{place.layout.root}/srv/team/app@sha256={'a' * 64}")
    assert read_local("file:///srv", REFERENCE, DIGEST, place.layout) == []
    directory.mkdir(parents=True)
    for number, data in ((1, b"x"), (2, b"y" * 20_000), (3, b"z"), (5, b"unseen")):
        (directory / f"signature-{number}").write_bytes(data)
    assert [data for _, data in read_local("file:///srv", REFERENCE, DIGEST, place.layout)] == [b"x", b"z"]
    (directory / "signature-1").unlink()
    os.mkfifo(directory / "signature-1")
    with pytest.raises(ImageError, match="must be a regular file"):
        read_local("file:///srv", REFERENCE, DIGEST, place.layout)


KEY, SUBKEY = "A" * 40, "B" * 40
VALID = f"VALIDSIG {SUBKEY} 2026-01-01 1 0 4 0 22 10 00 {KEY}"


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        (["NEWSIG", f"GOODSIG {KEY} Some One", VALID], [""]),
        (["NEWSIG", f"EXPKEYSIG {KEY} x", VALID], [f"made by key {KEY}: the key has expired"]),
        (["NEWSIG", f"REVKEYSIG {KEY} x", VALID], [f"made by key {KEY}: the key has been revoked"]),
        (["NEWSIG", f"EXPSIG {KEY} x", VALID], [f"made by key {KEY}: the signature has expired"]),
        (["NEWSIG", f"BADSIG {KEY} x"], [f"made by key {KEY}: the signature does not fit: something was changed after it was made"]),
        (["NEWSIG", f"ERRSIG {KEY} 22 10 00 1 9 {SUBKEY}"], [f"made by an unknown key, {SUBKEY}"]),
        (["NEWSIG", f"ERRSIG {KEY} 22 1 00 1 5 -"], [f"made by key {KEY}: cannot be checked: weak or unknown algorithm"]),
        (["NEWSIG", f"GOODSIG {KEY} x", f"BADSIG {KEY} x", VALID], ["is not an OpenPGP signature"]),
        (["NEWSIG", f"GOODSIG {KEY} x", f"GOODSIG {KEY} y", VALID], ["is not an OpenPGP signature"]),
        (["NEWSIG", f"GOODSIG {KEY} x", VALID, VALID], ["is not an OpenPGP signature"]),
        ([f"GOODSIG {KEY} x", VALID], ["is not an OpenPGP signature"]),
        (["PLAINTEXT 62 0 ", "NEWSIG", f"GOODSIG {KEY} x", VALID, "PLAINTEXT 62 0 "], ["is not an OpenPGP signature"]),
        (["NODATA 4"], ["is not an OpenPGP signature"]),
        (["NEWSIG", f"ERRSIG {KEY} 22 10 00 1 9 -", "NEWSIG", f"GOODSIG {KEY} x", VALID], [f"made by an unknown key, {KEY}", ""]),
    ],
)
def test_status_of_gpg(lines: list[str], faults: list[str]) -> None:
    text = "gpg: [GNUPG:] GOODSIG not at the start\n" + "".join(f"[GNUPG:] {line}\n" for line in lines)
    assert [find_fault(group) for group in parse_status(text)] == faults


def test_admin_adds_lists_masks_and_removes(place: Place) -> None:
    first, second = Signer(), Signer()
    (info,) = admin.inspect_keys(first.pem)
    path = admin.add_key(place.layout, "ex.org/a", info)
    assert path == f"{place.layout.trusted_keys}/prefix.d/ex.org/a/{first.fingerprint}.pub"
    assert (Path(path).read_bytes(), Path(path).stat().st_mode & 0o777) == (first.pem, 0o644)
    place.write("root.d/both.pem", first.pem + second.pem, vendor=True)
    place.write("prefix.d/ex.org/bad", b"-----BEGIN PUBLIC KEY-----\n")
    listed = [(k.prefix, k.state, k.key.fingerprint if k.key else k.fault) for k in admin.list_keys(place.layout)]
    assert listed == [
        ("", "good", first.fingerprint),
        ("", "good", second.fingerprint),
        ("ex.org", "unreadable", "holds no readable public key"),
        ("ex.org/a", "good", first.fingerprint),
    ]
    with pytest.raises(TrustError, match="holds other keys too"):
        admin.remove_keys(place.layout, "", first.fingerprint)
    with pytest.raises(NotFoundError, match=r"no key 'ffffffff' is trusted for ex.org"):
        admin.remove_keys(place.layout, "ex.org", "ffffffff")
    assert admin.remove_keys(place.layout, "ex.org/a", first.fingerprint[:12].upper()) == [path]
    assert not Path(place.layout.trusted_keys, "prefix.d/ex.org/a").exists()
    (mask,) = admin.remove_keys(place.layout, None, "both.pem")
    assert Path(mask).read_bytes() == b""
    assert [k.state for k in admin.list_keys(place.layout) if k.vendor] == ["masked", "masked"]
    assert keys.find_keys(place.layout, "other.org/x") == ()


def test_records_are_documented(place: Place) -> None:
    place.write("root.d/k", place.signer.pem)
    place.write("root.d/bad", b"-----BEGIN PUBLIC KEY-----\n")
    for found in admin.list_keys(place.layout):
        check_record("key", cli_trust._record(found))


def test_admin_refuses(place: Place) -> None:
    with pytest.raises(TrustError, match="holds a private key"):
        admin.inspect_keys(b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n")
    for text, match in (
        ("oci:/srv", "can have no keys"),
        ("ex.org/a:1", "a tag is not part"),
        ("../x", "empty or '..'"),
        ("aci:a.org/b", "no keys"),
    ):
        with pytest.raises(UsageError, match=match):
            admin.canonical_prefix(text)
    assert [admin.canonical_prefix(t) for t in ("busybox", "ex.org", "127.0.0.1:5000/a/")] == [
        "docker.io/library/busybox",
        "ex.org",
        "127.0.0.1:5000/a",
    ]


def test_the_fast_path_imports_little() -> None:
    code = "import sys, rktd_units.trust.vouchers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"gnupg", "cryptography", "subprocess", "dbus_next", "yaml", "urllib3"}.isdisjoint(done.stdout.split())

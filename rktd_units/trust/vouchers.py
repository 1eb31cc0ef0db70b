# SPDX-License-Identifier: Apache-2.0
"""What was verified by which key, kept per reference, and whether it still holds. In every start of a signed image: imports little.

A voucher holds as long as nothing was done to any key file that counts for the name, neither key nor signature has expired, and the
signed identity is the wanted one. Whenever that is not so the signature itself, which the voucher keeps, is verified again (decide.py).
"""

import json
import os
import time
from typing import Any, NamedTuple

from rktd_units.errors import ImageError
from rktd_units.images.records import reference_name
from rktd_units.images.reference import Reference, parse_reference
from rktd_units.paths import Layout
from rktd_units.trust.keys import find_keys, stamp_keys

# Forms of signatures.
SIMPLE = "simple"  # containers' "simple signing": OpenPGP, with the claim inside
COSIGN = "cosign"  # a raw signature beside the claim
DETACHED = "detached"  # OpenPGP, of a file: .asc
_FORMS = {SIMPLE: "GPG key", COSIGN: "cosign key", DETACHED: "GPG key"}
_VERSION = 1


class Voucher(NamedTuple):
    """One signature that was verified. Its fields are believed: the file is root's."""

    version: int
    form: str  # SIMPLE, COSIGN or DETACHED
    fingerprint: str  # of the primary key, or sha256 of the public key (SubjectPublicKeyInfo, DER); hexadecimal
    prefix: str  # that the key is trusted for; "" is every name
    digest: str  # "sha256:HEX" of what was signed, an index or a manifest; of DETACHED the image ID of an ACI
    identity: str  # what the signer calls it; of DETACHED the name that it was verified for
    keys: str  # stamp of the key files
    expires: int  # when the first of key and signature does, seconds since the epoch; 0 is never
    signature: str  # base64
    payload: str  # the claim of COSIGN, base64; else ""

    def __str__(self) -> str:
        return f"signature of {_FORMS[self.form]} {self.fingerprint}, trusted for {self.prefix or 'every name'}"


def find_voucher(layout: Layout, reference: Reference) -> Voucher | None:
    """The voucher for a reference, if it still holds today: no key was touched, nothing has expired."""
    voucher = load_voucher(layout, str(reference))
    if voucher is None or (voucher.expires and time.time() >= voucher.expires):
        return None
    name = voucher.identity if voucher.form == DETACHED else reference.name
    return voucher if stamp_keys(find_keys(layout, name)) == voucher.keys else None


def load_voucher(layout: Layout, reference: str) -> Voucher | None:
    """Whether it holds or not. None for an absent, damaged or foreign file."""
    try:
        with open(_path(layout, reference), encoding="utf-8") as file:
            value = json.load(file)
    except (FileNotFoundError, ValueError):
        return None
    kinds = Voucher.__annotations__
    if not isinstance(value, dict) or set(value) != {*kinds, "reference"} or not all(type(value[key]) is kinds[key] for key in kinds):
        return None
    known = value["version"] == _VERSION and value["form"] in _FORMS and value.pop("reference") == reference
    return Voucher(**value) if known else None


def make_voucher(**fields: Any) -> Voucher:
    return Voucher(version=_VERSION, **fields)


def save_voucher(layout: Layout, reference: str, voucher: Voucher) -> None:
    """The caller holds the lock of the reference."""
    os.makedirs(layout.vouchers, mode=0o700, exist_ok=True)
    path = _path(layout, reference)
    temporary = f"{layout.vouchers}/.{os.path.basename(path)}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump({**voucher._asdict(), "reference": reference}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def prune_vouchers(layout: Layout, references: frozenset[str]) -> list[str]:
    """Remove the vouchers of all other references, and what a killed process left; gives the names of the files."""
    try:
        names = os.listdir(layout.vouchers)
    except FileNotFoundError:
        return []
    kept = {os.path.basename(_path(layout, reference)) for reference in references}
    removed = sorted(set(names) - kept)
    for name in removed:
        os.unlink(f"{layout.vouchers}/{name}")
    return removed


def matches_identity(form: str, identity: str, reference: Reference) -> bool:
    """Whether a signed identity means the wanted reference.

    Simple signing: containers-policy.json(5), matchRepoDigestOrExact: with a tag, exactly that one; with a digest alone, the repository.
    A reference with both counts as one with a tag. Cosign signs repositories without a tag: matchRepository.
    """
    try:
        signed = parse_reference(identity)
    except ImageError:
        return False
    if signed.kind != reference.kind or signed.name != reference.name:
        return False
    if form == COSIGN or not reference.tag:
        return True
    tagged = ":" in identity.partition("@")[0].rpartition("/")[2]
    return tagged and signed.tag == reference.tag


def is_fresh(voucher: Voucher, reference: Reference, *digests: str) -> bool:
    """Whether a voucher is one for this reference, and of one of these digests: of the index and of the manifest, if there are two."""
    if voucher.digest not in digests:
        return False
    return voucher.form == DETACHED or matches_identity(voucher.form, voucher.identity, reference)


def _path(layout: Layout, reference: str) -> str:
    return f"{layout.vouchers}/{reference_name(reference)}.json"

# SPDX-License-Identifier: Apache-2.0
"""What was verified by which key, kept per reference, and whether it still holds. In every start of a signed image: imports little.

A voucher holds as long as nothing was done to any key file that counts for the name, neither key nor signature has expired, and the
signed identity is the wanted one. Whenever that is not so the signature itself, which the voucher keeps, is verified again (decide.py).
"""

import os
import time

from rktd_units.errors import ImageError
from rktd_units.images.records import Voucher, load_record, reference_name, save_record
from rktd_units.images.reference import Reference, parse_reference
from rktd_units.paths import Layout
from rktd_units.runfiles import lock
from rktd_units.trust.keys import find_keys, stamp_keys

# Forms of signatures.
SIMPLE = "simple"  # containers' "simple signing": OpenPGP, with the claim inside
COSIGN = "cosign"  # a raw signature beside the claim
DETACHED = "detached"  # OpenPGP, of a file: .asc
_FORMS = {SIMPLE: "GPG key", COSIGN: "cosign key", DETACHED: "GPG key"}


def describe_voucher(voucher: Voucher) -> str:
    """Which key has vouched, for people."""
    return f"signature of {_FORMS[voucher.form]} {voucher.fingerprint}, trusted for {voucher.prefix or 'every name'}"


def find_voucher(layout: Layout, reference: Reference) -> Voucher | None:
    """The voucher for a reference, if it still holds today: no key was touched, nothing has expired."""
    voucher = load_voucher(layout, str(reference))
    if voucher is None or (voucher.expires and time.time() >= voucher.expires):
        return None
    name = detached_scope(reference, voucher.identity) if voucher.form == DETACHED else reference.name
    return voucher if stamp_keys(find_keys(layout, name)) == voucher.keys else None


def detached_scope(reference: Reference, name: str) -> str:
    """What a key must be trusted for to vouch for an ACI that calls itself `name`.

    Whoever serves a URL could put any other ACI there, whose own name has a key too: so it is HOST/PATH. A name that was asked for is the
    ACI's own, and a path is root's to write.
    """
    return reference.path.partition("://")[2] or name


def load_voucher(layout: Layout, reference: str) -> Voucher | None:
    """Whether it holds or not. None for an absent, damaged or foreign file."""
    voucher = load_record(_path(layout, reference), Voucher)
    return voucher if voucher and voucher.reference == reference and voucher.form in _FORMS else None


def save_voucher(layout: Layout, voucher: Voucher) -> None:
    os.makedirs(layout.vouchers, mode=0o700, exist_ok=True)
    with lock(layout, f"voucher-{reference_name(voucher.reference)}.lock"):
        save_record(_path(layout, voucher.reference), voucher)


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

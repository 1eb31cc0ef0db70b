# SPDX-License-Identifier: Apache-2.0
"""Whether somebody who is trusted vouches for an image. The privileged side: which keys count, what a claim must say, and the refusal.

Signatures are fetched by one sandboxed job and verified by another, without network; of that one only this is believed: which signature
was made by a key of which file, and what it says. docs/trust.md.
"""

import base64
import binascii
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from rktd_units.errors import ImageError, TemporaryError, TrustError, clean_text
from rktd_units.images.jobs import Limits, Output, finished_job
from rktd_units.images.records import VERSION, Voucher
from rktd_units.images.reference import REGISTRY, Reference, is_digest
from rktd_units.images.store import Store, hash_path
from rktd_units.trust.claims import PAYLOAD_MAX, Claim, parse_claim
from rktd_units.trust.keys import KeyFile, find_keys, is_pem, read_keys, stamp_keys
from rktd_units.trust.vouchers import COSIGN, DETACHED, SIMPLE, detached_scope, is_fresh, load_voucher, matches_identity

_LIMITS = Limits(4 << 20, 120)
_SIGNATURES_MAX = 64  # of one image and one form that the network brings; those of this host are besides
_LINES_MAX = 20  # of a refusal


class UnprovenError(TrustError):
    """Nobody who is trusted vouches for the image. `known` is the digest that it has now, as far as anybody asked; else ""."""

    def __init__(self, message: str, known: str = "") -> None:
        super().__init__(message)
        self.known = known


FindSignatures = Callable[[Mapping[str, Any]], dict[str, Any]]  # runs the job of that name; fetch.find_signatures says what is in and out


class Signature(NamedTuple):
    """A signature that nobody has looked at."""

    form: str
    data: bytes
    payload: bytes  # of COSIGN
    place: str  # for people


class Accepted(NamedTuple):
    """A signature of a trusted key."""

    signature: Signature
    key: KeyFile
    fingerprint: str
    expires: int
    payload: bytes


class Checked(NamedTuple):
    """What became of some signatures: those of trusted keys, what is wrong with the others, and the keys that were there, for people."""

    accepted: tuple[Accepted, ...]
    faults: tuple[str, ...]
    keys: tuple[str, ...]


def find_proof(reference: Reference, offline: bool, renew: bool, store: Store, find_signatures: FindSignatures) -> Voucher:
    """The voucher for an image of a registry, by a signature that is good now.

    The one that is kept is enough, unless `renew`; then, unless `offline`, all places are asked. Raises UnprovenError, whose
    text is the end of a refusal; TemporaryError if a place that could not be reached might have had one.
    """
    return _Proof(reference, store).find(offline, renew, find_signatures)


def verify_detached(store: Store, reference: str, name: str, path: str, digest: str, signature: bytes, place: str) -> Voucher:
    """The voucher for a file (an ACI), by an `.asc` beside it. Several signatures in it are all looked at.

    `name` is what keys are trusted for (`ex.org/etcd`, an appc name), `path` the file as it was signed, which nobody else can write,
    readable for all; `digest` what the image will be known by (its image ID), `signature` may be b"", `place` is where it was, or
    should be, for people. Raises UnprovenError.
    """
    keys = find_keys(store.layout, name)
    if not keys:
        raise UnprovenError(f"no key is trusted for {name}")
    if not signature:
        raise UnprovenError(f"it has no signature, {place}")
    checked = check_signatures(store, keys, [Signature(DETACHED, signature, b"", place)], path)
    for found in checked.accepted:
        return _voucher(reference, found, keys, digest, name)._replace(payload=f"sha256:{hash_path(path)}")
    raise UnprovenError(_render(f"{place}: no trusted key has signed it", checked.faults, (), checked.keys))


def renew_detached(store: Store, reference: Reference) -> Voucher | None:
    """The voucher of an ACI as the keys are now, by its file and signature that are kept; None where there are none.

    The caller holds the store. Raises UnprovenError where no trusted key has made the signature, or none counts any more.
    """
    kept = load_voucher(store.layout, str(reference))
    if kept is None or kept.form != DETACHED or not is_digest(kept.payload) or not store.has_blob(kept.payload):
        return None
    signature, name = base64.b64decode(kept.signature), detached_scope(reference, kept.identity)
    path = store.blob_path(kept.payload)
    return verify_detached(store, str(reference), name, path, kept.digest, signature, "the signature that is kept here")


def check_signatures(store: Store, keys: Sequence[KeyFile], signatures: Sequence[Signature], data: str = "") -> Checked:
    """Has the signatures verified, in a sandbox. `data` is the file that DETACHED ones are of."""
    request = {
        "keys": [_encode(read_keys(key.path)) for key in keys],
        "signatures": [[s.form, _encode(s.data), _encode(s.payload)] for s in signatures],
    }
    with finished_job(store, "verify-signatures", request, {"data": data} if data else {}, _LIMITS) as output:
        return _read_verdict(output, keys, signatures)


class _Proof:
    def __init__(self, reference: Reference, store: Store) -> None:
        self._reference = reference
        self._store = store
        self._keys = find_keys(store.layout, reference.name) if reference.kind == REGISTRY else ()
        self._faults: list[str] = []
        self._lost = False  # it was verified once, and that does not hold any more
        self._known: tuple[str, ...] = ()

    def find(self, offline: bool, renew: bool, find_signatures: FindSignatures) -> Voucher:
        if self._reference.kind != REGISTRY:
            raise UnprovenError("an image that lies on this host can have no signature")
        if not self._keys:
            raise UnprovenError(f"no key is trusted for {self._reference.name}")
        kept = load_voucher(self._store.layout, str(self._reference))
        if kept is not None:
            kept = self._renew(kept)
            self._lost = kept is None
            if kept is not None and not renew:
                return kept
        if offline:
            self._refuse("there is no signature of it here that holds, and its pull policy is Never", (), ())
        return self._search(kept, find_signatures)

    def _renew(self, kept: Voucher) -> Voucher | None:
        """The kept voucher as the keys are now; None when they do not accept it any more."""
        if kept.keys == stamp_keys(self._keys) and not (kept.expires and time.time() >= kept.expires):
            return kept if is_fresh(kept, self._reference, kept.digest) else None
        signature = Signature(
            kept.form, base64.b64decode(kept.signature), base64.b64decode(kept.payload), "the signature that is kept here"
        )
        return self._choose([signature], (kept.digest,))[0]

    def _search(self, kept: Voucher | None, find_signatures: FindSignatures) -> Voucher:
        from rktd_units.trust.lookaside import find_lookaside, read_local  # reads YAML, 10 ms that images without signatures need not pay

        has_pem = {is_pem(read_keys(key.path)) for key in self._keys}
        base = find_lookaside(self._reference, self._store.layout) if False in has_pem else ""
        request = {
            "lookaside": base if base.startswith("http") else "",
            "cosign": True in has_pem,
            "known": [kept.digest] if kept else [],
        }
        try:
            value = find_signatures(request)
        except TemporaryError:
            if self._lost:  # refused, whatever the network has: not a thing to wait for
                self._refuse("the signature that it was verified by does not count any more, and no other can be looked for", (), ())
            raise
        digests, signatures, places, failures = _read_found(value)
        if kept is not None and is_fresh(kept, self._reference, *digests):
            return kept
        if base.startswith("file://"):
            places = (*(f"{base}/{self._reference.path}@{digest.replace(':', '=')}" for digest in digests), *places)
            local = [found for digest in digests for found in read_local(base, self._reference, digest, self._store.layout)]
            signatures = [*(Signature(SIMPLE, data, b"", at) for at, data in local), *signatures]
        self._known = digests
        voucher, keys = self._choose(signatures, digests)
        if voucher is not None:
            return voucher
        if failures and not self._lost:
            raise TemporaryError(_render(f"{self._reference}: is not verified yet: {'; '.join(failures)}", self._faults, places, keys))
        return self._refuse(f"none of its {len(signatures)} signatures counts" if signatures else "it has no signature", places, keys)

    def _choose(self, signatures: Sequence[Signature], digests: tuple[str, ...]) -> tuple[Voucher | None, tuple[str, ...]]:
        """The first that is by a trusted key, of one of these digests and under the wanted name; and what keys there were."""
        checked = check_signatures(self._store, self._keys, signatures)
        self._faults += checked.faults
        for found in checked.accepted:
            by = f"{found.signature.place}: made by key {found.fingerprint}"
            try:
                claim = parse_claim(found.signature.form, found.payload)
            except TrustError as error:
                self._faults.append(f"{by}: {error}")
                continue
            fault = self._judge(found, claim, digests)
            if not fault:
                return _voucher(str(self._reference), found, self._keys, claim.digest, claim.identity), checked.keys
            self._faults.append(f"{by}: {fault}")
        return None, checked.keys

    def _judge(self, found: Accepted, claim: Claim, digests: tuple[str, ...]) -> str:
        if claim.digest not in digests:
            return f"is of another image, {claim.digest}"
        if not matches_identity(found.signature.form, claim.identity, self._reference):
            return f"is for another name, {clean_text(claim.identity, 300)!r}"
        return "has expired" if found.expires and time.time() >= found.expires else ""

    def _refuse(self, reason: str, places: Iterable[str], keys: Iterable[str]) -> NoReturn:
        raise UnprovenError(_render(reason, self._faults, places, keys), self._known[0] if self._known else "")


def _voucher(reference: str, found: Accepted, keys: Sequence[KeyFile], digest: str, identity: str) -> Voucher:
    form = found.signature.form
    return Voucher(
        version=VERSION,
        reference=reference,
        form=form,
        fingerprint=found.fingerprint,
        prefix=found.key.prefix,
        digest=digest,
        identity=identity,
        keys=stamp_keys(tuple(keys)),
        expires=found.expires,
        signature=_encode(found.signature.data),
        payload=_encode(found.payload) if form == COSIGN else "",
    )


def _render(reason: str, faults: Sequence[str], places: Iterable[str], keys: Iterable[str]) -> str:
    """The refusal: a line for each signature, then the places and the keys."""
    lines = [reason, *(f"  signature: {fault}" for fault in dict.fromkeys(faults))][: _LINES_MAX + 1]
    lines += [f"  looked in {place}" for place in places][:_LINES_MAX]
    lines += [f"  trusted: {key}" for key in keys][:_LINES_MAX]
    return "\n".join(lines)


def _read_found(value: dict[str, Any]) -> tuple[tuple[str, ...], list[Signature], tuple[str, ...], tuple[str, ...]]:
    """Digests, signatures, places and failures, as the fetching job tells them: hostile."""
    from rktd_units.trust.lookaside import SIGNATURE_MAX

    try:
        digests = tuple(digest for digest in value["digests"] if is_digest(digest))[:2]
        signatures = [
            Signature(form, _decode(data, SIGNATURE_MAX), _decode(payload, PAYLOAD_MAX), clean_text(place))
            for kind in (SIMPLE, COSIGN)  # many of one kind leave no other out
            for form, data, payload, place in [found for found in value["signatures"] if found[0] == kind][:_SIGNATURES_MAX]
        ]
        places = tuple(clean_text(place) for place in value["places"])
        failures = tuple(clean_text(failure) for failure in value["failures"])
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ImageError("the sandboxed job find-signatures left no sensible result") from None
    if not digests:
        raise ImageError("the sandboxed job find-signatures names no digest")
    return digests, signatures, places, failures


def _read_verdict(output: Output, keys: Sequence[KeyFile], signatures: Sequence[Signature]) -> Checked:
    accepted: list[Accepted] = []
    faults: list[str] = []
    there: list[str] = []
    try:
        for key, found in zip(keys, output.value["keys"], strict=True):
            told = [clean_text(found)] if isinstance(found, str) else [clean_text(fingerprint, 100) for fingerprint in found]
            there += [f"{each}, {clean_text(key.path)}" for each in told]
        for signature, result in zip(signatures, output.value["signatures"], strict=True):
            good = result.get("good", ())
            faults += [f"{signature.place}: {clean_text(fault, 300)}" for fault in result.get("faults", ())[:_LINES_MAX]]
            if not result:
                faults.append(f"{signature.place}: there is no key of its kind")
            for fingerprint, index, expires in good:
                if not (type(index) is int and 0 <= index < len(keys) and type(expires) is int and fingerprint.isalnum()):
                    raise ValueError("bad verdict")
                accepted.append(Accepted(signature, keys[index], fingerprint, expires, _decode(result["payload"], PAYLOAD_MAX)))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ImageError("the sandboxed job verify-signatures left no sensible result") from None
    return Checked(tuple(accepted), tuple(faults), tuple(there))


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str, limit: int) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("bad base64") from error
    if len(data) > limit:
        raise ValueError("too large")
    return data

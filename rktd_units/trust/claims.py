# SPDX-License-Identifier: Apache-2.0
"""What a signer claims, from the payload of a signature that has been verified. Pure.

containers-signature(5), "JSON processing", and cosign's specs/SIGNATURE_SPEC.md: whatever is not understood is refused.
"""

from typing import Any, NamedTuple

from rktd_units.errors import TrustError, clean_text
from rktd_units.images.manifest import load_json
from rktd_units.images.reference import is_digest
from rktd_units.trust.vouchers import COSIGN, SIMPLE

PAYLOAD_MAX = 16 << 10  # bytes
_TYPES = {SIMPLE: "atomic container signature", COSIGN: "cosign container image signature"}


class Claim(NamedTuple):
    digest: str  # "sha256:HEX" of an index or a manifest
    identity: str  # as it stands there; it may have a tag or none


def parse_claim(form: str, payload: bytes) -> Claim:
    """Raises TrustError that says what is wrong with it."""
    if len(payload) > PAYLOAD_MAX:
        raise TrustError(f"the signed claim is larger than {PAYLOAD_MAX} bytes")
    try:
        value = load_json(payload)
    except (ValueError, RecursionError) as error:
        raise TrustError(f"the signed claim is not valid JSON: {clean_text(error)}") from None
    top = _members(value, "the signed claim", "critical", "optional")
    if not isinstance(top["optional"], dict) and not (form == COSIGN and top["optional"] is None):
        raise TrustError("the signed claim: optional must be an object")
    critical = _members(top["critical"], "critical", "identity", "image", "type")
    if critical["type"] != _TYPES[form]:
        raise TrustError(f"critical.type must be {_TYPES[form]!r}, is {clean_text(critical['type'], 100)!r}")
    digest = _members(critical["image"], "critical.image", "docker-manifest-digest")["docker-manifest-digest"]
    identity = _members(critical["identity"], "critical.identity", "docker-reference")["docker-reference"]
    if not isinstance(digest, str) or not is_digest(digest):
        raise TrustError(f"critical.image: is no digest, {clean_text(digest, 100)!r}")
    if not isinstance(identity, str) or not identity:
        raise TrustError("critical.identity: must name the image")
    return Claim(digest, identity)


def _members(value: Any, what: str, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise TrustError(f"{what}: must be an object of exactly {', '.join(names)}")
    return value

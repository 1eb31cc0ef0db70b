# SPDX-License-Identifier: Apache-2.0
"""Public keys and signatures of cosign's kind, by python3-cryptography. Runs in the sandbox, and for key files in podctl.

cosign's specs/SIGNATURE_SPEC.md: SHA-256 of the payload, by ECDSA or RSA (PKCS #1 v1.5); Ed25519 over the payload itself.
"""

import base64
import binascii
import hashlib
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from rktd_units.errors import TrustError

_RSA_MIN = 2048  # bits
_CURVE_MIN = 256


def load_keys(data: bytes) -> dict[str, Any]:
    """The public keys of a file by fingerprint, the sha256 of their SubjectPublicKeyInfo. Raises TrustError if one is not usable."""
    found = {}
    for block in data.split(b"-----BEGIN ")[1:]:
        try:
            key = load_pem_public_key(b"-----BEGIN " + block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise TrustError("holds no readable public key") from error
        if isinstance(key, RSAPublicKey | EllipticCurvePublicKey):
            minimum = _RSA_MIN if isinstance(key, RSAPublicKey) else _CURVE_MIN
            if key.key_size < minimum:
                raise TrustError(f"holds a key of {key.key_size} bits, which is too short")
        elif not isinstance(key, Ed25519PublicKey):
            raise TrustError("holds a key that is neither ECDSA nor RSA nor Ed25519")
        found[hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()] = key
    return found


def export_key(key: Any) -> str:
    """One key as PEM."""
    return str(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def describe_key(key: Any) -> str:
    """For people: `ECDSA secp256r1`."""
    if isinstance(key, EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    return f"RSA {key.key_size}" if isinstance(key, RSAPublicKey) else "Ed25519"


def is_signed(key: Any, payload: bytes, signature: bytes) -> bool:
    """Whether base64 `signature` was made by the key over the payload."""
    try:
        raw = base64.b64decode(signature, validate=True)
        if isinstance(key, EllipticCurvePublicKey):
            key.verify(raw, payload, ECDSA(SHA256()))
        elif isinstance(key, RSAPublicKey):
            key.verify(raw, payload, PKCS1v15(), SHA256())
        else:
            key.verify(raw, payload)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True

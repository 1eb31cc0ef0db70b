# SPDX-License-Identifier: Apache-2.0
"""The job `verify-signatures`: which of some signatures were made by which of some keys. Runs in the sandbox, without network.

Decides nothing: which keys count for an image, and what the claim must say, is decide.py's, on the other side.
"""

import base64
from collections.abc import Sequence
from typing import Any

from rktd_units.errors import TrustError
from rktd_units.trust.claims import PAYLOAD_MAX
from rktd_units.trust.keys import is_pem
from rktd_units.trust.vouchers import COSIGN, SIMPLE


def verify_signatures(request: dict[str, Any], data: str) -> dict[str, Any]:
    """`request` has `keys`, the contents of key files, and `signatures`: form, signature and payload; all base64. `data` is what is signed.

    {"keys": for each file its fingerprints, or what is wrong with it; "signatures": for each {"good": [[fingerprint, index of a file with
    it, expiry]], "faults": [text], "payload": base64}}. Fingerprints of GPG keys are those of primary keys.
    """
    files = [base64.b64decode(text) for text in request["keys"]]
    signatures = [(form, base64.b64decode(signature), base64.b64decode(payload)) for form, signature, payload in request["signatures"]]
    keys: list[list[str] | str] = [""] * len(files)
    found: list[dict[str, Any]] = [{}] * len(signatures)
    for pem in (False, True):
        own = [index for index, content in enumerate(files) if is_pem(content) is pem]
        wanted = [index for index, (form, _, _) in enumerate(signatures) if (form == COSIGN) is pem]
        judge = _judge_cosign if pem else _judge_gpg
        for index in own:
            keys[index] = []
        if own:
            told, results = judge({index: files[index] for index in own}, [signatures[index] for index in wanted], data)
            for index, value in told.items():
                keys[index] = value
            for index, result in zip(wanted, results, strict=True):
                found[index] = result
    return {"keys": keys, "signatures": found}


_Signatures = Sequence[tuple[str, bytes, bytes]]
_Judged = tuple[dict[int, list[str] | str], list[dict[str, Any]]]


def _judge_gpg(files: dict[int, bytes], signatures: _Signatures, data: str) -> _Judged:
    from rktd_units.trust.gpg import temporary_keyring

    told: dict[int, list[str] | str] = {}
    results = []
    with temporary_keyring() as ring:
        for index, fingerprints in zip(files, ring.add(list(files.values())), strict=True):
            told[index] = list(fingerprints) or "holds no OpenPGP key"
        for form, signature, _ in signatures:
            verdict = ring.verify(signature, "" if form == SIMPLE else data)
            good = [
                [s.fingerprint, i, s.expires] for s in verdict.good for i, f in told.items() if isinstance(f, list) and s.fingerprint in f
            ]
            payload = verdict.content if len(verdict.content) <= PAYLOAD_MAX else b""
            results.append({"good": good, "faults": list(verdict.faults), "payload": base64.b64encode(payload).decode()})
    return told, results


def _judge_cosign(files: dict[int, bytes], signatures: _Signatures, data: str) -> _Judged:
    from rktd_units.trust import pem

    told: dict[int, list[str] | str] = {}
    keys: list[tuple[int, str, Any]] = []
    for index, content in files.items():
        try:
            found = pem.load_keys(content)
        except TrustError as error:
            told[index] = str(error)
            continue
        told[index] = list(found)
        keys += [(index, fingerprint, key) for fingerprint, key in found.items()]
    results = []
    for _, signature, payload in signatures:
        good = [[fingerprint, index, 0] for index, fingerprint, key in keys if pem.is_signed(key, payload, signature)]
        faults = [] if good else ["made by an unknown key, or over something else"]
        results.append({"good": good, "faults": faults, "payload": base64.b64encode(payload).decode()})
    return told, results

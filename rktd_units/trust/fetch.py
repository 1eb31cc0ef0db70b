# SPDX-License-Identifier: Apache-2.0
"""The job `find-signatures`: what a reference stands for, and the signatures of it that the network has. Runs in the sandbox.

It believes nothing and verifies nothing: what it brings is hostile to whoever takes it.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rktd_units.errors import ImageError, TemporaryError
from rktd_units.images.http import AbsentError, Client
from rktd_units.images.manifest import Descriptor, Index, choose_platform, parse_document
from rktd_units.images.reference import Reference, is_digest
from rktd_units.images.registry import Registry
from rktd_units.trust.claims import PAYLOAD_MAX
from rktd_units.trust.lookaside import SIGNATURE_MAX, SIGNATURES_MAX, signature_places
from rktd_units.trust.vouchers import COSIGN, SIMPLE

_PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
_ARTIFACT_TYPE = "application/vnd.dev.cosign.artifact.sig.v1+json"
_ANNOTATION = "dev.cosignproject.cosign/signature"
_TOTAL_MAX = 384 << 10  # characters of all signatures of one form together; a job's result may have 1 MiB
_T = TypeVar("_T")


def find_signatures(reference: Reference, registries: Sequence[Registry], client: Client, request: dict[str, Any]) -> dict[str, Any]:
    """`request`: `lookaside` a URL of http(s) or "", `cosign` whether signatures of that kind matter, `known` digests of no interest.

    {"digests": of the index and of this host's manifest, "signatures": [[form, base64, payload in base64, place]], "places": that were
    asked, and what those say that will not get better, "failures": what passes perhaps}. Raises ImageError and TemporaryError when the
    image itself cannot be found.
    """
    search = _Search(reference, registries, client)
    digests = search.find_digests(frozenset(request["known"]))
    if not set(digests) & set(request["known"]):
        for digest in digests:
            if request["lookaside"]:
                search.ask_lookaside(request["lookaside"], digest)
            if request["cosign"]:
                search.ask_registry(digest)
    return {"digests": digests, "signatures": search.signatures, "places": search.places, "failures": search.failures}


class _Search:
    def __init__(self, reference: Reference, registries: Sequence[Registry], client: Client) -> None:
        self._reference = reference
        self._registries = registries
        self._client = client
        self.signatures: list[list[str]] = []
        self.places: list[str] = []
        self.failures: list[str] = []
        self._left = {SIMPLE: _TOTAL_MAX, COSIGN: _TOTAL_MAX}

    def find_digests(self, known: frozenset[str]) -> list[str]:
        """A digest alone is asked for first, of a tag: where that is known there is nothing to fetch."""
        name = self._reference.digest or self._reference.tag
        try:
            stated = "" if self._reference.digest or not known else self._ask_each(lambda registry: registry.manifest_digest(name))
            if stated in known:
                return [stated]
            data, digest, _ = self._ask_each(lambda registry: registry.manifest(name))
            document = parse_document(data, digest)
            return [digest, choose_platform(document).digest] if isinstance(document, Index) else [digest]
        except (ImageError, TemporaryError) as error:
            kind = TemporaryError if isinstance(error, TemporaryError) else ImageError
            raise kind(f"{self._reference}: {error}", hint=error.hint) from error

    def ask_lookaside(self, base: str, digest: str) -> None:
        for number, place in enumerate(signature_places(base, self._reference, digest)):
            if not number:
                self.places.append(place)
            try:
                data = self._client.get(place, limit=SIGNATURE_MAX).data
            except AbsentError:
                return
            except TemporaryError as error:
                self.failures.append(str(error))
                return
            except ImageError as error:  # S3 answers 403 for what is not there
                self.places.append(str(error))
                return
            self._keep(SIMPLE, data, b"", place)

    def ask_registry(self, digest: str) -> None:
        """cosign's specs/SIGNATURE_SPEC.md: a manifest under a tag made of the digest, or among its referrers; a layer for each payload."""
        self._ask_manifest(f"{digest.replace(':', '-')}.sig", f"{self._reference.name}:{digest.replace(':', '-')}.sig")
        place = f"{self._reference.name}: referrers of {digest}"
        self.places.append(place)
        with self._told(place):
            entries = _items(self._ask_each(lambda registry: registry.referrers(digest)), "manifests")
            signed = [e for e in entries if isinstance(e, dict) and e.get("artifactType") == _ARTIFACT_TYPE]
            for name in [e["digest"] for e in signed if isinstance(e.get("digest"), str) and is_digest(e["digest"])][:SIGNATURES_MAX]:
                self._ask_manifest(name, f"{self._reference.name}@{name}")

    def _ask_manifest(self, name: str, place: str) -> None:
        self.places.append(place)
        with self._told(place):
            data, _, _ = self._ask_each(lambda registry: registry.manifest(name))
            for layer in _items(data, "layers")[:SIGNATURES_MAX]:
                self._take_layer(layer, place)

    @contextmanager
    def _told(self, place: str) -> Iterator[None]:
        """What is not there is no failure, and what will not get better only to be told."""
        try:
            yield
        except AbsentError:
            pass
        except TemporaryError as error:
            self.failures.append(f"{place}: {error}")
        except ImageError as error:
            self.places.append(f"{place}: {error}")

    def _take_layer(self, layer: Any, place: str) -> None:
        if not isinstance(layer, dict) or layer.get("mediaType") != _PAYLOAD_TYPE:
            return
        annotations, digest, size = layer.get("annotations"), layer.get("digest"), layer.get("size")
        signature = annotations.get(_ANNOTATION) if isinstance(annotations, dict) else None
        if not isinstance(signature, str) or len(signature) > SIGNATURE_MAX or not signature.isascii():
            return
        if not isinstance(digest, str) or not is_digest(digest) or type(size) is not int or not 0 < size <= PAYLOAD_MAX:
            return
        descriptor = Descriptor(_PAYLOAD_TYPE, digest, size)
        payload = self._ask_each(lambda registry: registry.blob_bytes(descriptor, PAYLOAD_MAX))
        self._keep(COSIGN, signature.encode(), payload, place)

    def _keep(self, form: str, data: bytes, payload: bytes, place: str) -> None:
        signature = [form, base64.b64encode(data).decode(), base64.b64encode(payload).decode(), place]
        size = sum(map(len, signature))
        if size > self._left[form]:
            self.places.append(f"{place}: left out a signature of {size} bytes, since there are more than {_TOTAL_MAX >> 10} KiB of them")
            return
        self._left[form] -= size
        self.signatures.append(signature)

    def _ask_each(self, call: Callable[[Registry], _T]) -> _T:
        """The answer of the first registry that has one. Where none has, what the first says, unless another one may have it later."""
        errors: list[ImageError | TemporaryError] = []
        for registry in self._registries:
            try:
                return call(registry)
            except (ImageError, TemporaryError) as error:
                errors.append(error)
        raise next((error for error in errors if isinstance(error, TemporaryError)), errors[0])


def _items(data: bytes, key: str) -> list[Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    items = value.get(key) if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise ImageError(f"has no {key}: it tells of no signatures")
    return items

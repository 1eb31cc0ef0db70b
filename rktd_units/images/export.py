# SPDX-License-Identifier: Apache-2.0
"""An image of the store as others take it: an OCI layout (directory or tar), or a tar as `docker load` reads it.

What is written is what was fetched, byte for byte, checked on the way. It appears whole, by one rename.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from typing import IO, Any, cast

from rktd_units.errors import ImageError
from rktd_units.images.manifest import DOCUMENT_MAX, OCI_INDEX, OCI_MANIFEST, REF_NAME, parse_manifest
from rktd_units.images.records import ImageRecord
from rktd_units.images.reference import REGISTRY, parse_reference
from rktd_units.images.store import Store, open_regular

OCI_ARCHIVE, OCI_LAYOUT, DOCKER_ARCHIVE = "oci-archive", "oci", "docker-archive"
FORMATS = (OCI_ARCHIVE, OCI_LAYOUT, DOCKER_ARCHIVE)


def export_image(store: Store, record: ImageRecord, path: str, form: str) -> None:
    """Write it to `path`, which must not exist for an OCI layout and is replaced otherwise. Raises ImageError for a damaged blob."""
    if form == OCI_LAYOUT and os.path.lexists(path):
        raise ImageError(f"{path}: exists already")
    # A directory of our own, 0700, since others may write beside the path.
    with tempfile.TemporaryDirectory(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path) or ".") as own:
        temporary = f"{own}/new"
        if form == OCI_LAYOUT:
            _write_layout(store, record, temporary)
        else:
            with open(temporary, "xb") as file:
                write_archive(store, record, file, form)
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, path)


def write_archive(store: Store, record: ImageRecord, file: IO[bytes], form: str) -> None:
    """The tar, as a stream."""
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, source, size in _members(store, record, form):
            member = tarfile.TarInfo(name)
            member.size, member.mode = size, 0o644
            tar.addfile(member, source)


def _write_layout(store: Store, record: ImageRecord, directory: str) -> None:
    os.makedirs(f"{directory}/blobs/sha256")
    for name, source, _ in _members(store, record, OCI_LAYOUT):
        with open(f"{directory}/{name}", "xb") as file:
            while chunk := source.read(1 << 20):
                file.write(chunk)


def _members(store: Store, record: ImageRecord, form: str) -> Iterator[tuple[str, IO[bytes], int]]:
    """Name, content and size of each file, in an order in which it can be read as a stream."""
    try:
        document = store.read_blob(record.manifest, DOCUMENT_MAX)
    except FileNotFoundError:
        raise damaged_blob(record, record.manifest) from None
    manifest = parse_manifest(document, record.manifest)
    blobs = {record.config: manifest.config.size, **{layer.digest: layer.size for layer in manifest.layers}}
    if form == DOCKER_ARCHIVE:
        paths = {record.config: f"{record.config[7:]}.json", **{layer.digest: f"{layer.digest[7:]}.tar" for layer in manifest.layers}}
        layers = [paths[layer.digest] for layer in manifest.layers]
        texts = {"manifest.json": _dump([{"Config": paths[record.config], "RepoTags": _tags(record), "Layers": layers}])}
    else:
        size = len(document)
        blobs = {record.manifest: size, **blobs}
        paths = {digest: f"blobs/sha256/{digest[7:]}" for digest in blobs}
        kind = json.loads(document).get("mediaType") or OCI_MANIFEST
        descriptor: dict[str, Any] = {"mediaType": kind, "digest": record.manifest, "size": size}
        if tag := parse_reference(record.reference).tag:
            descriptor["annotations"] = {REF_NAME: tag}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor]}
        texts = {"oci-layout": _dump({"imageLayoutVersion": "1.0.0"}), "index.json": _dump(index)}
    for name, text in texts.items():
        yield name, io.BytesIO(text), len(text)
    for digest, size in blobs.items():
        with _open_blob(store, record, digest) as source:
            yield str(paths[digest]), source, size


@contextlib.contextmanager
def _open_blob(store: Store, record: ImageRecord, digest: str) -> Iterator[IO[bytes]]:
    """A blob to be read once, whole: other bytes than the digest's are an error at its end."""
    try:
        file = open(open_regular(store.blob_path(digest)), "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise damaged_blob(record, digest) from None
    with file:
        checked = _Checked(file)
        yield cast("IO[bytes]", checked)
        if checked.digest.hexdigest() != digest[7:]:
            raise damaged_blob(record, digest)


class _Checked(io.RawIOBase):
    """Reads on behalf of another, and hashes what is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _tags(record: ImageRecord) -> list[str]:
    reference = parse_reference(record.reference)
    return [reference.unpinned] if reference.kind == REGISTRY and reference.tag else []


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def damaged_blob(record: ImageRecord, digest: str) -> ImageError:
    hint = f"podctl image verify --fetch {record.reference}"
    return ImageError(f"{record.reference}: blob {digest} is missing or damaged", hint=hint)

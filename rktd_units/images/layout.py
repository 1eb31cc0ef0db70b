# SPDX-License-Identifier: Apache-2.0
"""Images on this host's file system: OCI layouts as directory or tar, skopeo's `dir:`, and archives as `docker save` writes them.

`open_blob`, `open_directory_blob`, `read_index` and `hash_manifest` are for the privileged side, which believes nothing but digests.
The rest parses hostile files: sandbox only.
"""

import gzip
import hashlib
import json
import os
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NoReturn, Protocol

from rktd_units.errors import ImageError, TooLargeError, clean_text
from rktd_units.images import manifest
from rktd_units.images.store import open_regular

_CHUNK = 1 << 20
_LINKS_MAX = 16
_TOO_LARGE = "the archive: is larger than the limit for images"
_MEMBERS_MAX = 100_000
# What gzip and tarfile raise of their own for damaged files; the last four for numbers and headers that make no sense.
_UNREADABLE = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError, OverflowError, RecursionError, LookupError)


class SupportsRead(Protocol):
    def read(self, size: int, /) -> bytes: ...


def open_blob(path: str, digest: str) -> int:
    """A descriptor of the layout's blob, whose bytes nobody has checked. Raises ImageError that names both."""
    try:
        return open_regular(f"{path}/blobs/sha256/{digest[7:]}")
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.isdir(path):
            raise ImageError(f"oci:{path}: there is no such directory") from None
        raise ImageError(f"oci:{path}: has no blob {digest}") from None


def open_directory_blob(path: str, digest: str) -> int:
    """As `open_blob`, of a directory as skopeo's `dir:` writes it (containers-transports(5)): files named by hexadecimal digest."""
    for name in (digest[7:], f"{digest[7:]}.manifest.json", "manifest.json"):
        if name == "manifest.json" and hash_manifest(path) != digest:
            break
        try:
            return open_regular(f"{path}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            pass
    raise ImageError(f"dir:{path}: has no blob {digest}")


def read_index(path: str) -> bytes:
    """The bytes of a layout's index.json (OCI image-spec, image-layout.md)."""
    return _read_document(path, "index.json", "oci", "an OCI layout")


def hash_manifest(path: str) -> str:
    """The digest of the image that a `dir:` directory holds."""
    return manifest.digest_of(_read_document(path, "manifest.json", "dir", "an image's directory"))


def _read_document(path: str, name: str, kind: str, what: str) -> bytes:
    try:
        with open(open_regular(f"{path}/{name}"), "rb") as file:
            data = file.read(manifest.DOCUMENT_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        reason = f"is not {what}: it has no {name}" if os.path.isdir(path) else "there is no such directory"
        raise ImageError(f"{kind}:{path}: {reason}") from None
    if len(data) > manifest.DOCUMENT_MAX:
        raise ImageError(f"{kind}:{path}: {name} is larger than {manifest.DOCUMENT_MAX} bytes")
    return data


def find_digest(data: bytes, name: str) -> str:
    """The digest of the image called `name` in an index.json, or of the only one if `name` is empty. Raises ImageError."""
    index = manifest.parse_index(data, manifest.digest_of(data))
    entries = [d for d in index.manifests if d.ref_name == name] if name else list(index.manifests)
    digests = sorted({d.digest for d in entries})
    if len(digests) == 1:
        return digests[0]
    names = clean_text(", ".join(sorted({d.ref_name for d in index.manifests if d.ref_name})[:20])) or "none"
    if not digests:
        raise ImageError(f"index.json: has no image called {name!r}; names in it: {names}" if name else "index.json: has no image")
    reason = f"has {len(digests)} images" + (f" called {name!r}" if name else "")
    raise ImageError(f"index.json: {reason}; names in it: {names}", hint="name one: oci:PATH:NAME")


def check_name(name: str, found: str, pin: str) -> None:
    """A pin and a name, where there are both, must mean the same image. Raises ImageError."""
    if pin not in ("", found):
        raise ImageError(f"{name!r} is {found}, but the pinned digest is {pin}", hint="leave out the name, or pin what it is")


Progress = Callable[[int, int], None]  # bytes of the archive that are done, and all that it has


def unpack_archive(source: str, target: str, limit: int, progress: Progress = lambda done, total: None) -> str:
    """Write an archive's configuration and layers, and a manifest made of them, as target/HEX; returns the manifest's digest.

    The archive is a tar, or a gzipped one, that holds one image, as `docker save` or `skopeo copy ... docker-archive:` make it. Layers keep
    their bytes. `limit` is in bytes, for all files together. Raises ImageError.
    """
    with _open_archive(source, target, limit, "docker-archive", progress) as archive:
        return archive.unpack()


def unpack_layout(source: str, target: str, name: str, digest: str, limit: int, progress: Progress = lambda done, total: None) -> str:
    """Write what an image of an OCI layout in a tar, or a gzipped one, consists of as target/HEX; returns its manifest's or index's digest.

    The image is that called `name`, which must have the digest if there is one, else that of the digest, else the only one. Raises
    ImageError.
    """
    with _open_archive(source, target, limit, "oci-archive", progress) as archive:
        return archive.unpack_layout(name, digest)


@contextmanager
def _open_archive(source: str, target: str, limit: int, kind: str, progress: Progress) -> Iterator["_Archive"]:
    with open(source, "rb") as file:
        packed, size = file.read(2) == b"\x1f\x8b", os.fstat(file.fileno()).st_size
    plain = f"{target}/plain.tar"
    try:
        if packed:
            with open(source, "rb") as file, gzip.open(file) as inflated, open(plain, "wb") as out:
                _copy(inflated, out, limit, lambda: progress(file.tell(), size))
        with open(plain if packed else source, "rb") as file, tarfile.TarFile.open(fileobj=file, mode="r:") as tar:
            yield _Archive(tar, target, limit, lambda: None if packed else progress(file.tell(), size))
        if packed:
            os.unlink(plain)
    except _UNREADABLE as error:
        raise ImageError(f"{kind}: is not a readable tar archive: {clean_text(error, 300)}") from None


class _Archive:
    def __init__(self, tar: tarfile.TarFile, target: str, limit: int, advance: Callable[[], None]) -> None:
        self._target = target
        self._advance = advance
        self._left = limit
        self._tar = tar
        self._members: dict[str, tarfile.TarInfo] = {}
        for count, member in enumerate(self._tar):
            if count >= _MEMBERS_MAX:
                self._refuse(f"has more than {_MEMBERS_MAX} members")
            self._members[posixpath.normpath(member.name).lstrip("/")] = member

    def _refuse(self, reason: str) -> NoReturn:
        raise ImageError(f"the archive: {reason}")

    def unpack(self) -> str:
        entry = self._only_image()
        name, layers = entry.get("Config"), entry.get("Layers")
        if not isinstance(name, str) or not isinstance(layers, list) or not all(isinstance(n, str) for n in layers):
            self._refuse("manifest.json: Config must be a string and Layers a list of strings")
        if len(layers) > manifest.LAYERS_MAX:
            self._refuse(f"has {len(layers)} layers, at most {manifest.LAYERS_MAX} are supported")
        config = self._read(name)
        document = {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_MANIFEST,
            "config": self._write(config, manifest.OCI_CONFIG),
            "layers": [self._layer(n) for n in layers],
        }
        data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        return str(self._write(data, manifest.OCI_MANIFEST)["digest"])

    def unpack_layout(self, name: str, digest: str) -> str:
        top = digest
        if not digest or name:
            top = find_digest(self._read("index.json"), name)
            check_name(name, top, digest)
        document = manifest.parse_document(self._blob(top), top)
        if isinstance(document, manifest.Index):
            chosen = manifest.choose_platform(document).digest
            document = manifest.parse_manifest(self._blob(chosen), chosen)
        self._blob(document.config.digest)
        for layer in dict.fromkeys(layer.digest for layer in document.layers):
            self._layer(f"blobs/sha256/{layer[7:]}")
        return top

    def _blob(self, digest: str) -> bytes:
        """A small blob's bytes, written too."""
        data = self._read(f"blobs/sha256/{digest[7:]}")
        self._write(data, "")
        return data

    def _only_image(self) -> dict[str, Any]:
        try:
            value = json.loads(self._read("manifest.json"))
        except (ValueError, RecursionError) as error:
            self._refuse(f"manifest.json: is not valid JSON: {error}")
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            self._refuse("manifest.json: must be a list of objects")
        if len(value) != 1:
            self._refuse(f"must hold one image, has {len(value)}")
        entry: dict[str, Any] = value[0]
        return entry

    def _open(self, name: str) -> tuple[IO[bytes], int]:
        """A member's content and size; links inside the archive are followed."""
        path = posixpath.normpath(name).lstrip("/")
        for _ in range(_LINKS_MAX):
            member = self._members.get(path)
            if member is None:
                self._refuse(f"has no member {path[:200]!r}")
            if member.issym():
                path = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.linkname)).lstrip("/")
            elif member.islnk():
                path = posixpath.normpath(member.linkname).lstrip("/")
            else:
                break
        else:
            self._refuse(f"too many links at {name[:200]!r}")
        file = self._tar.extractfile(member) if member.isreg() and not member.issparse() else None
        if file is None:
            self._refuse(f"member {path[:200]!r} must be a regular file")
        return file, member.size

    def _read(self, name: str) -> bytes:
        file, size = self._open(name)
        if size > manifest.DOCUMENT_MAX:
            self._refuse(f"{name[:200]!r} is larger than {manifest.DOCUMENT_MAX} bytes")
        with file:
            data = file.read()
        if len(data) != size:
            self._refuse(f"{name[:200]!r} is cut short")
        return data

    def _write(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = manifest.digest_of(data)
        with open(f"{self._target}/{digest[7:]}", "wb") as out:
            out.write(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def _layer(self, name: str) -> dict[str, Any]:
        file, size = self._open(name)
        if size > self._left:
            raise TooLargeError(_TOO_LARGE)
        self._left -= size
        temporary = f"{self._target}/layer"
        with file, open(temporary, "wb") as out:
            head, digest, written = _copy(file, out, size, self._advance)
        if written != size:
            self._refuse(f"layer {name[:200]!r} is cut short")
        os.rename(temporary, f"{self._target}/{digest}")
        return {"mediaType": _layer_type(head), "digest": f"sha256:{digest}", "size": size}


def _layer_type(head: bytes) -> str:
    if head.startswith(b"\x1f\x8b"):
        return manifest.LAYER_GZIP
    return manifest.LAYER_ZSTD if head.startswith(b"\x28\xb5\x2f\xfd") else manifest.LAYER_TAR


def _copy(source: SupportsRead, target: IO[bytes], limit: int, advance: Callable[[], None]) -> tuple[bytes, str, int]:
    """First bytes, sha256 in hexadecimal, and size of what was copied."""
    digest, head, size = hashlib.sha256(), b"", 0
    while chunk := source.read(_CHUNK):
        head = head or chunk[:8]
        size += len(chunk)
        if size > limit:
            raise TooLargeError(_TOO_LARGE)
        digest.update(chunk)
        target.write(chunk)
        advance()
    return head, digest.hexdigest(), size

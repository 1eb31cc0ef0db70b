# SPDX-License-Identifier: Apache-2.0
"""Turns a layer's blob into a plain tar file and tells its digest. It believes no size that the blob states.

gzip by isal where that is installed (three times as fast), zstd by whichever module there is; the result stays an unnamed file.
"""

import contextlib
import functools
import hashlib
import importlib
import os
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any, BinaryIO, NamedTuple, cast

from rktd_units.errors import ImageError
from rktd_units.images.tree import Budget

CHUNK = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BZIP2_MAGIC = b"BZh"
XZ_MAGIC = b"\xfd7zXZ\0"
SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # zstd's skippable frames, after one byte of 0x50 to 0x5f
LAYER_TYPES = frozenset(
    (
        *(
            f"application/vnd.oci.image.layer.{kind}v1.tar{suffix}"
            for kind in ("", "nondistributable.")
            for suffix in ("", "+gzip", "+zstd")
        ),
        *(f"application/vnd.docker.image.rootfs.{kind}.tar{s}" for kind in ("diff", "foreign.diff") for s in ("", ".gzip", ".zstd")),
    )
)

_Opened = tuple[
    Callable[[BinaryIO], AbstractContextManager[BinaryIO]], tuple[type[Exception], ...]
]  # an opener, and what it raises when the data are bad
_PLAIN: _Opened = (contextlib.nullcontext, ())


class Spool(NamedTuple):
    """An uncompressed layer: `size` bytes from `start` on of an open file, which the owner closes."""

    file: BinaryIO
    start: int
    size: int
    diff_id: str  # "" where nobody asked for it


def inflate_layer(path: str, media_type: str, directory: str, budget: Budget, advance: Callable[[int], None] = lambda done: None) -> Spool:
    """Spools the blob at `path` into an unnamed file of `directory`, or gives the blob's own file where it is a plain tar.

    The magic bytes decide how it is compressed: registries' media types are wrong now and then, and the diff id proves the result.
    `advance` is told how many of the blob's bytes are done. Raises ImageError for an unknown media type, for damaged or cut
    off data, and when the budget is spent.
    """
    with ExitStack() as cleanup:
        source, opened = _open_blob(path, media_type)
        cleanup.callback(source.close)
        if opened is None:
            size = os.fstat(source.fileno()).st_size
            budget.take(size)
            diff_id = _copy(source, None, Budget(size), lambda: advance(source.tell()), hashlib.sha256())
            cleanup.pop_all()
            return Spool(source, 0, size, diff_id)
        target = cast("BinaryIO", tempfile.TemporaryFile(dir=directory, buffering=0))  # noqa: SIM115 - the spool's owner closes it
        with ExitStack() as failed:
            failed.callback(target.close)
            diff_id = _inflate(source, opened, target, budget, lambda: advance(source.tell()), hashlib.sha256())
            failed.pop_all()
        return Spool(target, 0, target.tell(), diff_id)


def inflate_into(target: BinaryIO, path: str, media_type: str, budget: Budget, advance: Callable[[int], None] = lambda done: None) -> Spool:
    """As inflate_layer, to where `target` is, a plain tar too. Nothing is hashed: whoever takes the file over has to do that."""
    source, opened = _open_blob(path, media_type)
    with source:
        start = target.tell()
        _inflate(source, opened or _PLAIN, target, budget, lambda: advance(source.tell()), None)
        return Spool(target, start, target.tell() - start, "")


def _open_blob(path: str, media_type: str) -> tuple[BinaryIO, _Opened | None]:
    """The blob, and how to open what is in it; None for a plain tar."""
    if media_type not in LAYER_TYPES:
        raise ImageError(f"unknown media type {media_type!r}")
    source = open(path, "rb")  # noqa: SIM115 - may be the spool
    try:
        head = source.read(512)
        source.seek(0)
        return source, find_inflater(head)
    except BaseException:
        source.close()
        raise


def inflate_aci(path: str, target: str, budget: Budget, advance: Callable[[int, int], None] = lambda done, size: None) -> None:
    """Write the tar that an ACI is when it is not compressed (appc spec, aci.md, Image Archives). Raises ImageError.

    `advance` is told how many of the file's bytes are done, and how many there are.
    """
    with open(path, "rb") as source, open(target, "wb") as out:
        head, size = source.read(512), os.fstat(source.fileno()).st_size
        source.seek(0)
        opened = find_inflater(head)
        for magic, name in ((BZIP2_MAGIC, "bz2"), (XZ_MAGIC, "lzma")):
            if opened is None and head.startswith(magic):
                module: Any = importlib.import_module(name)
                opened = module.open, (EOFError, OSError, ValueError, *((module.LZMAError,) if name == "lzma" else ()))
        opener, faults = opened or _PLAIN
        try:
            with opener(source) as stream:
                while chunk := stream.read(CHUNK):
                    budget.take(len(chunk))
                    out.write(chunk)
                    advance(source.tell(), size)
        except faults as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ImageError(f"compressed data is damaged or cut off: {error}") from error


def _inflate(
    source: BinaryIO, opened: _Opened, target: BinaryIO, budget: Budget, advance: Callable[[], None], digest: "hashlib._Hash | None"
) -> str:
    opener, faults = opened
    try:
        with opener(source) as stream:
            return _copy(stream, target, budget, advance, digest)
    except faults as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise ImageError(f"compressed data is damaged or cut off: {e}") from e


def _copy(stream: BinaryIO, target: BinaryIO | None, budget: Budget, advance: Callable[[], None], digest: "hashlib._Hash | None") -> str:
    """Copies and hashes one chunk while the next is inflated."""

    def keep(chunk: bytes) -> None:
        if digest is not None:
            digest.update(chunk)
        view = memoryview(chunk)
        while target is not None and view:
            view = view[target.write(view) :]

    pending: Future[None] | None = None
    with ThreadPoolExecutor(1) as keeper:
        while chunk := stream.read(CHUNK):
            budget.take(len(chunk))
            advance()
            if pending is not None:
                pending.result()
            pending = keeper.submit(keep, chunk)
        if pending is not None:
            pending.result()
    return "" if digest is None else f"sha256:{digest.hexdigest()}"


def find_inflater(head: bytes) -> _Opened | None:
    """How to open a blob that begins so, and what it raises when the blob is bad; None for a plain tar."""
    if head[257:262] == b"ustar":
        return None
    if head.startswith(GZIP_MAGIC):
        return _gzip_inflater()
    if head.startswith(ZSTD_MAGIC) or (head[1:4] == SKIPPABLE_MAGIC and head[0] & 0xF0 == 0x50):
        return _zstd_inflater()
    return None


def _gzip_inflater() -> _Opened:
    faults: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error)
    try:
        module: Any = importlib.import_module("isal.igzip")
        faults = (*faults, importlib.import_module("isal.isal_zlib").error)
    except ImportError:
        module = importlib.import_module("gzip")
    return module.open, faults


def _zstd_inflater() -> _Opened:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            continue
        return module.open, (EOFError, module.ZstdError)
    try:
        other: Any = importlib.import_module("zstandard")
    except ImportError:
        raise ImageError("layer is compressed with zstd", hint="install python3-zstandard") from None
    # It takes a cut off file for a complete one: the diff id then tells.
    reader = functools.partial(other.ZstdDecompressor().stream_reader, read_across_frames=True, closefd=False)
    return reader, (EOFError, other.ZstdError)

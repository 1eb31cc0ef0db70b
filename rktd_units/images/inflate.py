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


class Spool(NamedTuple):
    """An uncompressed layer: an open file of `size` bytes. The owner closes it."""

    file: BinaryIO
    size: int
    diff_id: str


def inflate_layer(path: str, media_type: str, directory: str, budget: Budget, advance: Callable[[int], None] = lambda done: None) -> Spool:
    """Spools the blob at `path` into `directory`, or gives the blob's own file where it is a plain tar.

    The magic bytes decide how it is compressed: registries' media types are wrong now and then, and the diff id proves the result.
    `advance` is told how many of the blob's bytes are done. Raises ImageError for an unknown media type, for damaged or cut
    off data, and when the budget is spent.
    """
    if media_type not in LAYER_TYPES:
        raise ImageError(f"unknown media type {media_type!r}")
    source = open(path, "rb")  # noqa: SIM115 - may be the spool
    try:
        head = source.read(512)
        source.seek(0)
        opened = _find_inflater(head)
        if opened is None:
            size = os.fstat(source.fileno()).st_size
            budget.take(size)
            return Spool(source, size, _copy(source, None, Budget(size), lambda: advance(source.tell())))
        with source:
            return _inflate(source, *opened, directory, budget, lambda: advance(source.tell()))
    except BaseException:
        source.close()
        raise


def inflate_aci(path: str, target: str, budget: Budget) -> None:
    """Write the tar that an ACI is when it is not compressed (appc spec, aci.md, Image Archives). Raises ImageError."""
    with open(path, "rb") as source, open(target, "wb") as out:
        head = source.read(512)
        source.seek(0)
        opened = _find_inflater(head)
        for magic, name in ((BZIP2_MAGIC, "bz2"), (XZ_MAGIC, "lzma")):
            if opened is None and head.startswith(magic):
                module: Any = importlib.import_module(name)
                opened = module.open, (EOFError, OSError, ValueError, *((module.LZMAError,) if name == "lzma" else ()))
        opener, faults = opened or (contextlib.nullcontext, ())
        try:
            with opener(source) as stream:
                while chunk := stream.read(CHUNK):
                    budget.take(len(chunk))
                    out.write(chunk)
        except faults as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ImageError(f"compressed data is damaged or cut off: {error}") from error


def _inflate(
    source: BinaryIO,
    opener: Callable[[BinaryIO], BinaryIO],
    faults: tuple[type[Exception], ...],
    directory: str,
    budget: Budget,
    advance: Callable[[], None],
) -> Spool:
    target = cast("BinaryIO", tempfile.TemporaryFile(dir=directory, buffering=0))  # noqa: SIM115 - the spool's owner closes it
    try:
        with opener(source) as stream:
            diff_id = _copy(stream, target, budget, advance)
        return Spool(target, target.tell(), diff_id)
    except faults as e:
        target.close()
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise ImageError(f"compressed data is damaged or cut off: {e}") from e
    except BaseException:
        target.close()
        raise


def _copy(stream: BinaryIO, target: BinaryIO | None, budget: Budget, advance: Callable[[], None]) -> str:
    """Copies and hashes one chunk while the next is inflated."""
    digest = hashlib.sha256()

    def keep(chunk: bytes) -> None:
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
    return f"sha256:{digest.hexdigest()}"


def _find_inflater(head: bytes) -> tuple[Callable[[BinaryIO], BinaryIO], tuple[type[Exception], ...]] | None:
    """How to open a blob that begins so, and what it raises when the blob is bad; None for a plain tar."""
    if head[257:262] == b"ustar":
        return None
    if head.startswith(GZIP_MAGIC):
        return _gzip_inflater()
    if head.startswith(ZSTD_MAGIC) or (head[1:4] == SKIPPABLE_MAGIC and head[0] & 0xF0 == 0x50):
        return _zstd_inflater()
    return None


def _gzip_inflater() -> tuple[Callable[[BinaryIO], BinaryIO], tuple[type[Exception], ...]]:
    faults: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error)
    try:
        module: Any = importlib.import_module("isal.igzip")
        faults = (*faults, importlib.import_module("isal.isal_zlib").error)
    except ImportError:
        module = importlib.import_module("gzip")
    return module.open, faults


def _zstd_inflater() -> tuple[Callable[[BinaryIO], BinaryIO], tuple[type[Exception], ...]]:
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

# SPDX-License-Identifier: Apache-2.0
"""The converter: from an image's layer blobs to EROFS images that, stacked by overlayfs, show what the image means.

It runs as an unprivileged user without a network and believes nothing that it reads. Each layer is inflated once, into what becomes its
image: erofs.py makes the file system around the tar.
"""

import errno
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO, NamedTuple

from rktd_units.errors import ImageError, TemporaryError
from rktd_units.images.entries import noted_entries, read_entries
from rktd_units.images.erofs import write_image
from rktd_units.images.inflate import Spool, inflate_into, inflate_layer
from rktd_units.images.records import TAR_START, chain_ids
from rktd_units.images.tarball import read_members
from rktd_units.images.tree import Budget, Tree

WORKERS = 2


Progress = Callable[[str, int, int], None]  # digest of a blob, bytes that are done, bytes of the whole; from any thread


class LayerInput(NamedTuple):
    path: str  # of the blob
    media_type: str  # OCI's or Docker's
    diff_id: str  # "sha256:HEX" of the uncompressed tar, from the image configuration
    entries: str = ""  # path of what was noted of the layer when it was converted: then the blob is not looked at
    coming: int = 0  # bytes that the blob will have, if it is not there yet


class LayerOutput(NamedTuple):
    """An image with the layer's tar in it: `size` bytes from TAR_START on. Whoever takes it over proves that the tar is the right one."""

    path: str
    size: int


def convert_layers(
    inputs: Sequence[LayerInput],
    wanted: Collection[int],
    directory: str,
    limit: int,
    progress: Progress = lambda digest, done, size: None,
    arrivals: Iterable[str] = (),
) -> tuple[LayerOutput, ...]:
    """Writes `directory`/INDEX.erofs and INDEX.entries for each index in `wanted`; `inputs` is the whole image, lowest layer first.

    `limit` is the most that the layers may unpack to, in bytes, holes of sparse files and what is written besides included; `progress`
    is told of the blobs' bytes. `arrivals` gives the names of the blobs that were still coming once they are there, and ends when nothing
    more comes. The result has the order of the indexes.
    Raises ImageError that names the layer and mostly the path, then none of the files is left; and EntriesError if the entries of a lower
    layer do not do, since a file of it is linked to: then its blob must be given instead.
    """
    chain = chain_ids([layer.diff_id for layer in inputs])
    budget = Budget(limit)
    tree = Tree(budget)
    needed = inputs[: max(wanted, default=-1) + 1]
    spools: dict[int, Future[Spool]] = {}
    outputs: list[LayerOutput] = []
    targets: list[BinaryIO] = []
    with ExitStack() as cleanup:
        made = cleanup.enter_context(_removed_on_failure())
        cleanup.callback(_close, spools, targets)
        inflaters = cleanup.enter_context(ThreadPoolExecutor(WORKERS))
        flushers = cleanup.enter_context(ThreadPoolExecutor(WORKERS))
        cleanup.callback(_cancel, spools)  # before it is waited for them
        absent: dict[str, list[Callable[[], object]]] = {}
        for index, layer in enumerate(needed):
            if index not in wanted and layer.entries:
                continue
            name = "sha256:" + os.path.basename(layer.path)
            size = layer.coming or os.stat(layer.path).st_size
            progress(name, 0, size)
            advance = functools.partial(_tell, progress, name, size)
            if index not in wanted:
                inflate = functools.partial(inflate_layer, layer.path, layer.media_type, directory, budget, advance)
            else:
                made += [os.path.join(directory, f"{index}.{kind}") for kind in ("erofs", "entries")]
                targets.append(open(made[-2], "x+b", buffering=0))  # noqa: SIM115 - _close() does
                targets[-1].seek(TAR_START)
                inflate = functools.partial(inflate_into, targets[-1], layer.path, layer.media_type, budget, advance)
            spools[index] = Future()
            begin = functools.partial(inflaters.submit, _fulfil, spools[index], inflate)
            if layer.coming:
                absent.setdefault(os.path.basename(layer.path), []).append(begin)
            else:
                begin()
        if absent:
            threading.Thread(target=_await, args=(arrivals, absent, dict(spools)), daemon=True).start()
        flushes = []
        for index, layer in enumerate(needed):
            with _naming(index, len(inputs)):
                if index not in spools:
                    with open(layer.entries, "rb") as file:
                        size, members = read_entries(file)
                        budget.take(size)
                        tree.apply(members)
                    continue
                try:
                    spool = spools[index].result()
                except CancelledError:
                    raise TemporaryError("the blob did not come") from None
                image = spool.file.fileno()
                members = read_members(image, spool.start, spool.size)
                if index not in wanted:
                    if spool.diff_id != layer.diff_id:
                        raise ImageError(f"content is {spool.diff_id}, but the image says {layer.diff_id}")
                    tree.apply(members)
                    continue
                with open(os.path.join(directory, f"{index}.entries"), "xb") as file:
                    tree.apply(noted_entries(members, spool.size, file, budget))
                write_image(tree, image, spool.start + spool.size, _name(chain[index]))
                outputs.append(LayerOutput(os.path.join(directory, f"{index}.erofs"), spool.size))
                flushes.append(flushers.submit(os.fdatasync, image))  # so that whoever takes it over need not wait for the disk
        for flush in flushes:
            flush.result()
    return tuple(outputs)


def _await(arrivals: Iterable[str], absent: dict[str, list[Callable[[], object]]], spools: Mapping[int, Future[Spool]]) -> None:
    """Begin with each layer when its blob arrives. Those that nobody waits for any more are left."""
    with suppress(RuntimeError):  # the pool of threads has gone, since the job has failed
        for name in arrivals:
            for begin in absent.pop(name, ()):
                begin()
            if not absent:
                return
    for spool in spools.values():
        spool.cancel()  # those that have begun are not


def _fulfil(spool: Future[Spool], inflate: Callable[[], Spool]) -> None:
    if spool.set_running_or_notify_cancel():
        try:
            spool.set_result(inflate())
        except BaseException as error:
            spool.set_exception(error)


def _tell(progress: Progress, digest: str, size: int, done: int) -> None:
    progress(digest, done, size)


def _close(spools: Mapping[int, Future[Spool]], targets: Iterable[BinaryIO]) -> None:
    """When no thread uses them any more."""
    for target in targets:
        target.close()
    for spool in spools.values():
        if not spool.cancelled() and spool.exception() is None:
            spool.result().file.close()


def _cancel(spools: Mapping[int, Future[Spool]]) -> None:
    for spool in spools.values():
        spool.cancel()


def _name(chain_id: str) -> bytes:
    """The file system's UUID, of version 5 (RFC 9562)."""
    name = bytearray(hashlib.sha256(f"rktd-units {chain_id}".encode()).digest()[:16])
    name[6], name[8] = name[6] & 0x0F | 0x50, name[8] & 0x3F | 0x80
    return bytes(name)


@contextmanager
def _removed_on_failure() -> Iterator[list[str]]:
    paths: list[str] = []
    try:
        yield paths
    except BaseException:
        for path in paths:
            with suppress(FileNotFoundError):
                os.unlink(path)
        raise


@contextmanager
def _naming(index: int, count: int) -> Iterator[None]:
    """Puts the layer's number before what goes wrong."""
    try:
        yield
    except ImageError as e:
        raise type(e)(f"layer {index + 1} of {count}: {e}", hint=e.hint) from e
    except MemoryError as e:
        raise ImageError(f"layer {index + 1} of {count}: image is too large: out of memory") from e
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TemporaryError(f"layer {index + 1} of {count}: {e}") from e
        raise

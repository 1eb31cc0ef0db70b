# SPDX-License-Identifier: Apache-2.0
"""The converter: from an image's layer blobs to EROFS images that, stacked by overlayfs, show what the image means.

It runs as an unprivileged user without a network and believes nothing that it reads. mkfs.erofs never sees a stranger's tar, only
the canonical one that is made here (see canonical.py): on raw tars version 1.8 gives wrong modes, corrupt images, or crashes.
"""

import errno
import fcntl
import functools
import hashlib
import os
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from rktd_units.errors import CommandError, ImageError, TemporaryError
from rktd_units.images.canonical import Delta, build_delta, send_delta
from rktd_units.images.entries import noted_entries, read_entries
from rktd_units.images.inflate import Spool, inflate_layer
from rktd_units.images.tarball import read_members
from rktd_units.images.tree import Budget, Tree

CONVERTER_VERSION = 2  # goes up with every change of what comes out
MKFS = "mkfs.erofs"
MKFS_OPTIONS = ("--tar=f", "-b4096", "-T0", "--mkfs-time", "--sort=none", "-Enoinline_data", "--quiet")
WORKERS = 2
PIPE_SIZE = 1 << 20
_FULL = 4 << 20  # bytes; with less than these, a disk is full


Progress = Callable[[str, int, int], None]  # digest of a blob, bytes that are done, bytes of the whole; from any thread


class LayerInput(NamedTuple):
    path: str  # of the blob
    media_type: str  # OCI's or Docker's
    diff_id: str  # "sha256:HEX" of the uncompressed tar, from the image configuration
    entries: str = ""  # path of what was noted of the layer when it was converted: then the blob is not looked at


class LayerOutput(NamedTuple):
    path: str
    size: int


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The chain id of each layer: it names the layer and all below it. OCI image-spec, config.md, Layer ChainID."""
    chain: list[str] = []
    for diff_id in diff_ids:
        both = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(both.encode()).hexdigest()}" if both else diff_id)
    return tuple(chain)


def layer_key(chain_id: str) -> str:
    """The cache key, in hex, of the EROFS image for a chain id: changes with the converter and its options."""
    return hashlib.sha256("\0".join((str(CONVERTER_VERSION), *MKFS_OPTIONS, chain_id)).encode()).hexdigest()


def convert_layers(
    inputs: Sequence[LayerInput], wanted: Collection[int], directory: str, limit: int, progress: Progress = lambda digest, done, size: None
) -> tuple[LayerOutput, ...]:
    """Writes `directory`/INDEX.erofs and INDEX.entries for each index in `wanted`; `inputs` is the whole image, lowest layer first.

    `limit` is the most that the layers may unpack to, in bytes, holes of sparse files included; `progress` is told of
    the blobs' bytes. The result has the order of the indexes.
    Raises ImageError that names the layer and mostly the path, then none of the files is left; and EntriesError if the entries of a lower
    layer do not do, since a file of it is linked to: then its blob must be given instead.
    """
    chain = chain_ids([layer.diff_id for layer in inputs])
    budget = Budget(limit)
    tree = Tree(budget)
    needed = inputs[: max(wanted, default=-1) + 1]
    outputs = {index: os.path.join(directory, f"{index}.erofs") for index in wanted}
    notes = {index: os.path.join(directory, f"{index}.entries") for index in wanted}
    work = _Work({}, [], [])
    with ExitStack() as cleanup:
        cleanup.push(lambda kind, _error, _trace: work.clear_away((*outputs.values(), *notes.values()) if kind else ()))
        inflaters = cleanup.enter_context(ThreadPoolExecutor(WORKERS))
        builders = cleanup.enter_context(ThreadPoolExecutor(WORKERS))
        cleanup.callback(work.cancel)
        for index, layer in enumerate(needed):
            if index not in outputs and layer.entries:
                continue
            name = "sha256:" + os.path.basename(layer.path)
            size = os.stat(layer.path).st_size
            progress(name, 0, size)
            advance = functools.partial(_tell, progress, name, size)
            work.spools[index] = inflaters.submit(inflate_layer, layer.path, layer.media_type, directory, budget, advance)
        for index, layer in enumerate(needed):
            with _naming(index, len(inputs)):
                if index not in work.spools:
                    with open(layer.entries, "rb") as file:
                        size, members = read_entries(file)
                        budget.take(size)
                        tree.apply(members)
                    continue
                spool = work.spools[index].result()
                if spool.diff_id != layer.diff_id:
                    raise ImageError(f"content is {spool.diff_id}, but the image says {layer.diff_id}")
                members = read_members(spool.file.fileno())
                if index not in outputs:
                    tree.apply(members)
                else:
                    with open(notes[index], "wb") as file:
                        tree.apply(noted_entries(members, spool.size, file))
                    work.deltas.append(build_delta(tree, directory))
                    work.jobs.append(builders.submit(_build, work.deltas[-1], outputs[index], chain[index]))
        return tuple(job.result() for job in work.jobs)


def _tell(progress: Progress, digest: str, size: int, done: int) -> None:
    progress(digest, done, size)


class _Work(NamedTuple):
    """What runs in other threads. Files are closed and removed only when none of them uses one any more."""

    spools: dict[int, Future[Spool]]  # by the index of the layer
    deltas: list[Delta]
    jobs: list[Future[LayerOutput]]

    def cancel(self) -> None:
        for spool in self.spools.values():
            spool.cancel()
        for job in self.jobs:
            job.cancel()

    def clear_away(self, outputs: Iterable[str]) -> None:
        for delta in self.deltas:
            delta.headers.close()
        for spool in self.spools.values():
            if not spool.cancelled() and spool.exception() is None:
                spool.result().file.close()
        for path in outputs:
            with suppress(FileNotFoundError):
                os.unlink(path)


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


def _build(delta: Delta, output: str, chain_id: str) -> LayerOutput:
    name = uuid.UUID(bytes=hashlib.sha256(f"rktd-units {chain_id}".encode()).digest()[:16], version=5)
    argv = (MKFS, *MKFS_OPTIONS, f"-U{name}", output)
    # mkfs.erofs keeps file contents in a temporary file for some options.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TMPDIR": os.path.dirname(output)}
    with tempfile.TemporaryFile(dir=os.path.dirname(output)) as complaint:
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=complaint, stderr=complaint, env=environment) as process:
            assert process.stdin is not None
            try:
                fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
                send_delta(delta, process.stdin.fileno())
            except BrokenPipeError:
                pass  # its own words are better
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            space = os.statvfs(os.path.dirname(output))
            if space.f_bavail * space.f_frsize < _FULL:
                raise TemporaryError(f"{MKFS}: {os.strerror(errno.ENOSPC)}")  # it does not say so itself
            complaint.seek(0)
            raise CommandError(argv, process.returncode, complaint.read().decode(errors="replace"))
    return LayerOutput(output, os.stat(output).st_size)

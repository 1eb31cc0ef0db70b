# SPDX-License-Identifier: Apache-2.0
"""Conversion of an image while it is still fetched: of each layer as soon as it is whole, in a sandbox of its own as ever.

The fetching job names what is whole; that is taken from it, hashed, and shown to the converting job, which waits for it. Nothing goes into
the store here: whoever fetches adopts what came of it once all is there and verified, or lets it go. Where anything goes wrong here,
nothing has: the layers are then converted afterwards, and that tells what is wrong with them.
"""

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from itertools import islice
from typing import Any, NamedTuple

from rktd_units.errors import ImageError, RktdError
from rktd_units.images.jobs import Limits, Output, finished_job, stop_job, work_directory
from rktd_units.images.manifest import (
    DOCUMENT_MAX,
    Contents,
    Index,
    Manifest,
    check_layers,
    choose_platform,
    digest_of,
    parse_config,
    parse_document,
    parse_manifest,
)
from rktd_units.images.progress import Event, Progress
from rktd_units.images.reference import is_digest
from rktd_units.images.store import Store, copy_hashed, hash_file, open_regular, own_file
from rktd_units.images.worker import ARRIVALS, BLOBS, WHOLE

_NAMES_MAX = 600  # that a job may tell of: more than an image has
_LINE_MAX = 80  # bytes


class Conversion(NamedTuple):
    """What the converting job is to do, and the digests of the blobs that are still on their way."""

    contents: Contents
    made: tuple[int, ...]  # the layers that are made, by index
    request: dict[str, Any]
    inputs: dict[str, str]
    limits: Limits
    coming: Mapping[str, int]  # and their sizes


class Ahead:
    """Follows one fetching job. `taken` are the blobs, by digest, that were taken from it and proven: paths of root's own files."""

    def __init__(
        self, store: Store, work: str, digest: str, plan: Callable[[Contents], Conversion | None], report: tuple[Progress, Event]
    ) -> None:
        """`work` is the job's directory, `digest` what it fetches, or "" if it says so itself."""
        self.taken: dict[str, str] = {}
        self._store, self._plan, self._report = store, plan, report
        self._out = f"{work}/root/out"
        self._wanted = digest  # the document that is needed next; "" for the first one that the job names
        self._documents: list[Index | Manifest] = []
        self._waiting: list[str] = []  # digests that were named, and are not taken
        self._conversion: Conversion | None = None
        self._output: Output | None = None
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._converter = threading.Thread(target=self._convert, daemon=True)
        self._flooded = False  # by the fetching job: then what it says is not listened to any more
        self._opened = ExitStack()
        self._directory = self._opened.enter_context(work_directory(store))
        self._job = self._opened.enter_context(work_directory(store))
        for name, mode in ((WHOLE, 0o622), (ARRIVALS, 0o444)):
            os.mkfifo(self._path(name))
            os.chmod(self._path(name), mode)
        os.mkdir(self._path(BLOBS))
        os.chmod(self._path(BLOBS), 0o755)
        # For both directions: what is in a pipe is lost when nobody has it open, and neither end need wait for the job's.
        self._whole = os.open(self._path(WHOLE), os.O_RDWR | os.O_CLOEXEC)
        self._arrivals = os.open(self._path(ARRIVALS), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._opened.callback(os.close, self._whole)
        self._opened.callback(os.close, self._arrivals)
        self._reader.start()

    @property
    def inputs(self) -> dict[str, str]:
        """For the fetching job."""
        return {WHOLE: self._path(WHOLE)}

    def stop(self) -> None:
        """The fetching job has ended: nothing more comes."""
        if self._reader.is_alive():
            end = os.open(self._path(WHOLE), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(end, b"\n\n")  # the first one may end a line that the job has begun
            except BlockingIOError:
                self._flooded = True
            finally:
                os.close(end)
            self._reader.join()

    def settle(self) -> None:
        """What was taken goes into the store."""
        for digest, path in self.taken.items():
            with suppress(FileNotFoundError):
                self._store.settle_blob(path, digest)

    def result(self) -> tuple[Conversion, Output] | None:
        """What came of it; None where nothing did. Waits for the converting job."""
        self.stop()
        self._end()
        return (self._conversion, self._output) if self._conversion and self._output else None

    def close(self) -> None:
        """All that is left of it goes, and a converting job that nobody has waited for."""
        self.stop()
        if self._converter.is_alive():
            with suppress(RktdError):
                stop_job(self._job)
        self._end()
        self._opened.close()

    def _end(self) -> None:
        """What has not come will not: the converting job ends then, if it still waits."""
        if self._converter.is_alive():
            with suppress(OSError):
                os.write(self._arrivals, b"\n")
            self._converter.join()

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def _follow(self) -> None:
        """Until the fetching job has ended. Whatever it does, it keeps nobody here."""
        with suppress(RktdError, OSError), open(os.dup(self._whole), "rb") as names:
            for line in islice(iter(lambda: names.readline(_LINE_MAX), b"\n"), _NAMES_MAX):
                digest = f"sha256:{line.strip().decode('ascii', 'replace')}"
                if self._flooded or not is_digest(digest):
                    return
                self._wanted = self._wanted or digest
                self._waiting.append(digest)
                self._advance()

    def _advance(self) -> None:
        while self._conversion is None and self._wanted in self._waiting:
            self._waiting.remove(self._wanted)
            self._read_document()
        if self._conversion:
            for digest in self._waiting:
                if digest in self._conversion.coming and digest not in self.taken:
                    self._take(digest, self._conversion.coming[digest])
                    os.write(self._arrivals, f"{digest[7:]}\n".encode())
            self._waiting.clear()

    def _read_document(self) -> None:
        """Of index, manifest and configuration the next one, and what is needed after it."""
        digest = self._wanted
        with open(open_regular(f"{self._out}/{digest[7:]}"), "rb") as file:
            data = file.read(DOCUMENT_MAX + 1)
        if digest_of(data) != digest:
            raise ImageError(f"{digest}: other bytes")
        if not self._documents or isinstance(self._documents[-1], Index):
            document = parse_document(data, digest) if not self._documents else parse_manifest(data, digest)
            self._documents.append(document)
            self._wanted = choose_platform(document).digest if isinstance(document, Index) else document.config.digest
            return
        manifest, config = self._documents[-1], parse_config(data, digest)
        check_layers(manifest, config)
        self._conversion = self._plan(Contents(manifest, config))
        if self._conversion is None:
            raise ImageError("nothing to convert")
        self._converter.start()

    def _take(self, digest: str, size: int) -> None:
        """Out of the job's reach, and only then hashed."""
        source, path = f"{self._out}/{digest[7:]}", f"{self._path(BLOBS)}/{digest[7:]}"
        fd = open_regular(source)
        try:
            if os.fstat(fd).st_size != size:
                raise ImageError(f"{digest}: has another size")
            if own_file(fd):
                os.rename(source, path)
                if not os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd)):
                    raise ImageError(f"{digest}: another file")
                actual = hash_file(fd)
            else:
                actual = self._copy(fd, path, size)
            if actual != digest[7:]:
                raise ImageError(f"{digest}: other bytes")
        finally:
            os.close(fd)
        self.taken[digest] = path

    def _copy(self, fd: int, path: str, size: int) -> str:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(target, 0o644)
            return copy_hashed(fd, target, size)[0]
        finally:
            os.close(target)

    def _convert(self) -> None:
        if not (conversion := self._conversion):
            return
        inputs = {**conversion.inputs, ARRIVALS: self._path(ARRIVALS), BLOBS: self._path(BLOBS)}
        with suppress(RktdError, OSError):
            limits = conversion.limits
            job = finished_job(self._store, "convert-layers", conversion.request, inputs, limits, self._job, report=self._report)
            output = self._opened.enter_context(job)
            if "lacking" not in output.value:
                self._output = output

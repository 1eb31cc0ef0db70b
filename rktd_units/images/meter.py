# SPDX-License-Identifier: Apache-2.0
"""How far a sandboxed job is: counted in it (Meter), passed out by a small file, read from there while it runs (Watch).

The file is one line for each blob, `HEX DONE TOTAL`, replaced whole; to its reader it is hostile input.
"""

import os
import threading
import time
from contextlib import suppress

from rktd_units.errors import ImageError
from rktd_units.images.manifest import LAYERS_MAX
from rktd_units.images.progress import Event, Part, Progress
from rktd_units.images.reference import is_digest
from rktd_units.images.store import open_regular

_INTERVAL = 0.2  # seconds between two files
_PARTS_MAX = LAYERS_MAX + 2  # blobs that are told of: its configuration, and one for luck
_LINE_MAX = 110  # bytes
_SIZE_MAX = 1 << 50


class Meter:
    """The job's side: notes how far each blob is, from any thread, and writes the file now and then."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._parts: dict[str, tuple[int, int]] = {}
        self._written = 0.0

    def update(self, digest: str, done: int, total: int) -> None:
        """Of a blob of `total` bytes so many are done."""
        with self._lock:
            self._parts[digest] = (done, total)
            now = time.monotonic()
            if now - self._written < _INTERVAL:
                return
            self._written = now
            text = "".join(f"{d.removeprefix('sha256:')} {done} {total}\n" for d, (done, total) in self._parts.items())
            with open(f"{self._path}.new", "w", encoding="ascii") as file:
                file.write(text)
            os.rename(f"{self._path}.new", self._path)


def read_parts(path: str) -> tuple[Part, ...]:
    """What the file says, as far as it makes sense; nothing where it does not."""
    try:
        with open(open_regular(path), "rb") as file:
            lines = file.read(_PARTS_MAX * _LINE_MAX).split(b"\n")[:_PARTS_MAX]
    except (OSError, ImageError):
        return ()
    parts = []
    for words in (line.split() for line in lines):
        if len(words) == 3 and is_digest(digest := "sha256:" + words[0].decode("ascii", "replace")):
            with suppress(ValueError):
                done, total = (int(w) for w in words[1:])
                if 0 <= done <= total <= _SIZE_MAX:
                    parts.append(Part(digest, done, total))
    return tuple(parts)


class Watch:
    """Tells `progress` of a job's file until the context ends, from a thread of its own."""

    def __init__(self, path: str, event: Event, progress: Progress) -> None:
        self._path, self._event, self._progress = path, event, progress
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        last, seen, rate = time.monotonic(), 0, 0.0
        while not self._end.wait(_INTERVAL):
            parts = read_parts(self._path)
            done, now = sum(p.done for p in parts), time.monotonic()
            if done != seen:
                fresh = max(done - seen, 0) / (now - last)
                rate = fresh if not rate else 0.7 * rate + 0.3 * fresh
                last, seen = now, done
                self._progress(self._event._replace(parts=parts, rate=rate))

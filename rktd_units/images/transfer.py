# SPDX-License-Identifier: Apache-2.0
"""One file on its way from a web server, through several connections perhaps (http.py): resume, limits, stalls. In the sandbox only."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from urllib3.exceptions import ProtocolError, ReadTimeoutError

from rktd_units.errors import ImageError
from rktd_units.images.urls import show_url

SLOW = 1024  # bytes a second, over the time that a stall takes; less is one
_CHUNK = 256 << 10


class Transfer:
    """A file on its way, through several connections perhaps."""

    def __init__(self, url: str, path: str, size: int, limit: int, stall: float, progress: Callable[[int, int], None]) -> None:
        self.path = path
        self._stall = stall
        self.done = 0
        self.hash = hashlib.sha256()
        self._url = show_url(url)
        self._size = size
        self._limit = limit if size < 0 else size
        self._expected = size
        self._progress = progress
        self._validator = ""  # RFC 9110, 8.8: a strong ETag, else the time
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()

    def headers(self) -> dict[str, str]:
        """What asks for the rest. Without a validator only a digest or nothing at all could tell that it is of another file."""
        if not self.done or not self._validator:
            return {}
        return {"Range": f"bytes={self.done}-", "If-Range": self._validator}

    def begin(self, response: Any) -> None:
        """Go on where it was, or start anew."""
        validator = _find_validator(response.headers)
        if response.status == 206:
            first, total = _parse_range(response.headers.get("Content-Range", ""))
            same = validator in ("", self._validator) and first == self.done and (self._size < 0 or total in (-1, self._size))
            if not self.done or not same:
                self._restart("")
                raise ProtocolError(f"another part than the one from byte {self.done} on")
        else:
            self._restart(validator)
            stated = response.headers.get("Content-Length", "")
            if stated.isascii() and stated.isdigit():
                self._expected = int(stated[:20])
                if self._size not in (-1, self._expected):
                    raise ImageError(f"{self._url}: the server says it has {self._expected} bytes, it should have {self._size}")

    def receive(self, response: Any) -> None:
        """To the end of the body, which must be that of the file."""
        for chunk in read_body(response, self._limit - self.done, self._url, self._stall, self._limit):
            self.hash.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[self._file.write(view) :]
            self.done += len(chunk)
            self._tell()
        if self._size >= 0 and self.done != self._size:
            raise ProtocolError(f"got {self.done} of {self._size} bytes")  # cut short: worth another try

    def close(self) -> None:
        self._file.close()
        if os.path.exists(self.path):  # else renamed
            os.unlink(self.path)

    def _restart(self, validator: str) -> None:
        self._validator = validator
        if self.done:
            self.done, self.hash = 0, hashlib.sha256()
            self._file.seek(0)
            self._file.truncate()
            self._tell()

    def _tell(self) -> None:
        self._progress(self.done, max(self.done, self._expected))


def _parse_range(text: str) -> tuple[int, int]:
    """First byte and size of the whole from Content-Range; -1 where it does not say."""
    unit, _, rest = text.strip().partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    if unit.lower() != "bytes":
        return -1, -1
    first_byte, whole = (int(n) if n.isascii() and n.isdigit() and len(n) < 20 else -1 for n in (first, total))
    return first_byte, whole


def _find_validator(headers: Mapping[str, str]) -> str:
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def read_body(response: Any, left: int, url: str, stall: float, limit: int = -1) -> Iterator[bytes]:
    """The body in pieces, as they come; `stall` seconds of nearly nothing are too many."""
    began, size = time.monotonic(), 0
    allowed = left
    while chunk := response.read1(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise ImageError(f"{show_url(url) if '?' in url else url}: the server sent more than {allowed if limit < 0 else limit} bytes")
        yield chunk
        size += len(chunk)
        if (passed := time.monotonic() - began) > stall:
            if size < SLOW * passed:
                raise ReadTimeoutError(response, url, f"the transfer stalled: {size} bytes in {passed:.0f} seconds")
            began, size = time.monotonic(), 0

# SPDX-License-Identifier: Apache-2.0
"""How far the making of an image is, as it is told to people. In every pod start: imports next to nothing (meter.py finds it out)."""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

FETCHING, CONVERTING, READY = "fetching", "converting", "ready"


class Part(NamedTuple):
    """One blob: bytes that are done and bytes that there are."""

    digest: str
    done: int
    total: int


class Event(NamedTuple):
    """What is being done for one image; as text, one line. `rate` is in bytes per second."""

    stage: str  # FETCHING, CONVERTING or READY
    reference: str
    parts: tuple[Part, ...] = ()
    rate: float = 0.0

    def __str__(self) -> str:
        line = f"{self.stage} {self.reference}"
        if not self.parts:
            return line
        done, total = sum(p.done for p in self.parts), sum(p.total for p in self.parts)
        complete = sum(p.done >= p.total for p in self.parts)
        rate = f", {format_size(self.rate)}/s" if self.rate else ""
        return f"{line}: {format_size(done)} of {format_size(total)}, {complete} of {len(self.parts)} blobs{rate}"


Progress = Callable[[Event], None]


class StatusLine:
    """All images that are being made now, in one line for `tell`."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._lines: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        self._lines.pop(event.reference, None)
        if event.stage != READY:
            self._lines[event.reference] = str(event)
        with suppress(RuntimeError):  # another thread's image came in between: its own call tells all
            self._tell("; ".join(self._lines.values()))


def format_size(size: float) -> str:
    """Three digits and a binary unit, as systemd has it: 812B, 4.5K, 12.3M, 1.1G."""
    for unit in "BKMGT":
        if size < 1024 or unit == "T":
            return f"{size:.0f}{unit}" if unit == "B" or size >= 100 else f"{size:.1f}{unit}"
        size /= 1024
    raise AssertionError("the last unit returns")

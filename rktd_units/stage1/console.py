# SPDX-License-Identifier: Apache-2.0
"""What a Xen guest's console says, taken apart: the JSON lines of stage1/guestlog.py, and everything else. Pure.

A guest is hostile: of a line of JSON a few fields of known form are taken, everything else on the console is text of the guest's kernel.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

KERNEL = "kernel"
POD = "pod"
LINE_MAX = 512 * 1024  # bytes: 48 KiB of a message, six for each as JSON has it
TEXT_MAX = 48 * 1024  # characters of a message
NOISE_MAX = 2048  # of a line that is not JSON
_TIME_MAX = 1 << 62
_MARK = b'{"n":'
_TERMINAL = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -~])")  # ECMA-48; systemd resets the console
_PID_MAX = 1 << 22
_WORDS = 3  # of how an app ended: `exited 3 exit-code`


class Line(NamedTuple):
    """A line of an app's, as the bytes that it wrote. `pid` is the guest's, `time` µs since 1970 of the guest's clock."""

    app: str
    priority: int
    pid: int
    time: int
    message: bytes


class Noise(NamedTuple):
    """Text that is no message: of the kernel, or of whoever has the console."""

    text: str


class Lost(NamedTuple):
    """Lines that are missing."""

    lines: int


class Ready(NamedTuple):
    """All apps run. When, in ms since the guest's kernel began: /init, PID 1 proper, and this."""

    init: int = 0
    systemd: int = 0
    ready: int = 0


class Failed(NamedTuple):
    """The pod cannot be set up."""

    reason: str


class Ended(NamedTuple):
    """How an app ended: three words."""

    app: str
    words: tuple[str, ...]


class Up(NamedTuple):
    """An app that had ended runs again."""

    app: str


class Probed(NamedTuple):
    """What an app's probes say: starting, ready or unready."""

    app: str
    state: str


class Exit(NamedTuple):
    """The pod has ended; nothing comes after it."""

    status: int


Record = Line | Noise | Lost | Ready | Failed | Ended | Up | Probed | Exit


class Reader:
    """Bytes in, records out. `apps`: the only names that are believed, besides those of the guest itself."""

    def __init__(self, apps: Iterable[str]) -> None:
        self._apps = frozenset(apps)
        self._rest = b""
        self._is_skipping = False  # the end of a line that was too long
        self._number = 0

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._is_skipping:
                self._is_skipping = False
            else:
                yield from self._read_line(line)
        if len(self._rest) > LINE_MAX:
            if not self._is_skipping:
                yield Noise(_clean(self._rest[:NOISE_MAX]))
            self._is_skipping = True
            self._rest = b""

    def flush(self) -> Iterator[Record]:
        """What is left at the end."""
        rest, self._rest = self._rest, b""
        if not self._is_skipping:
            yield from self._read_line(rest)

    def _read_line(self, line: bytes) -> Iterator[Record]:
        before, mark, rest = line.partition(_MARK)  # somebody may have left the cursor in the middle of a line
        before = _TERMINAL.sub(b"", before).strip(b"\r\0 ")
        if before:
            yield Noise(_clean(before))
        line = (mark + rest).rstrip(b"\r\0 ")
        if not line:
            return
        fields = _parse(line)
        number = fields.get("n")
        if type(number) is not int or not 0 < number < 1 << 62:
            yield Noise(_clean(line))
            return
        if number > self._number + 1:
            yield Lost(number - self._number - 1)
        self._number = number
        record = self._read_fields(fields)
        yield Noise(_clean(line)) if record is None else record

    def _read_fields(self, fields: dict[str, Any]) -> Record | None:
        app, message = fields.get("app"), fields.get("m")
        if isinstance(message, str):
            known = isinstance(app, str) and (app in self._apps or app in (KERNEL, POD))
            return Line(
                str(app) if known else KERNEL,
                max(_bounded(fields.get("p"), 7, 6), 1),  # 0 would go to all terminals of the host (ForwardToWall= of journald.conf(5))
                _bounded(fields.get("pid"), _PID_MAX),
                _bounded(fields.get("t"), _TIME_MAX),
                message[:TEXT_MAX].encode("utf-8", "surrogateescape" if _is_escaped(message) else "replace"),
            )
        if fields.get("ready") == 1:
            return Ready(*(_bounded(fields.get(key), _TIME_MAX) for key in ("init", "systemd", "now")))
        if isinstance(failed := fields.get("failed"), str):
            return Failed(_clean(failed.encode("utf-8", "replace")))
        if isinstance(app, str) and app in self._apps:
            return _read_app(app, fields)
        if type(status := fields.get("exit")) is int and 0 <= status <= 255:
            return Exit(status)
        return None


def _read_app(app: str, fields: dict[str, Any]) -> Record | None:
    result, probe = fields.get("result"), fields.get("probe")
    if isinstance(result, str):
        words = tuple(result[:NOISE_MAX].split())
        good = len(words) == _WORDS and all(word.isascii() and word.replace("-", "").isalnum() for word in words)
        return Ended(app, words) if good else None
    if isinstance(probe, str):
        return Probed(app, probe) if probe.isascii() and probe.isalpha() and len(probe) < 20 else None
    return Up(app) if fields.get("up") == 1 else None


def _parse(line: bytes) -> dict[str, Any]:
    """{} for what is not a JSON object."""
    if not line.startswith(b"{"):
        return {}
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _bounded(value: object, most: int, default: int = 0) -> int:
    return value if type(value) is int and 0 <= value <= most else default


def _is_escaped(text: str) -> bool:
    """Whether its lone surrogates are those that stand for bytes."""
    return all(not 0xD800 <= ord(c) <= 0xDFFF or 0xDC80 <= ord(c) <= 0xDCFF for c in text)


def _clean(line: bytes) -> str:
    """Without what a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in line[:NOISE_MAX].decode("utf-8", "replace"))

# SPDX-License-Identifier: Apache-2.0
"""`podctl exec` for an app in a Xen guest: the caller's streams, terminal and signals, as frames to its supervisor (docs/exec.md)."""

import fcntl
import os
import select
import signal
import socket
import sys
import termios
import time
from contextlib import suppress
from typing import Any

from rktd_units.enter import FORWARDED, raw_mode
from rktd_units.errors import UnavailableError
from rktd_units.stage1 import frames

_BLOCK = 64 * 1024
_INSIST = 1.0  # seconds
Streams = tuple[int, int, int]  # standard input, output and error


class Talk:
    """One session."""

    def __init__(self, path: str, pod: str, streams: Streams | None) -> None:
        self._pod = pod
        self._is_foreground = streams is None
        self._input, self._output, self._errors = streams or (0, 1, 2)
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._channel.connect(path)
        except OSError as error:
            self._channel.close()
            raise UnavailableError(f"pod {pod} does not run", hint=f"podctl start {pod}") from error
        self._splitter = frames.Splitter()
        self._allowance = frames.WINDOW
        self._signals: list[int] = []
        self._asked = 0.0  # to end, when

    def run(self, order: str, *, terminal: bool, interactive: bool) -> int:
        """The command's exit code."""
        for piece in frames.pieces(order.encode()):
            self._send(frames.OPEN, piece)
        self._send(frames.OPEN)
        wake, write = os.pipe()
        if self._is_foreground:  # else they end podctl, whatever the guest does
            os.set_blocking(write, False)
            signal.set_wakeup_fd(write)
            for number in (*FORWARDED, *((signal.SIGWINCH,) if terminal else ())):
                signal.signal(number, self._note_signal)
        before = None
        if terminal:
            self._tell_size()
            before = termios.tcgetattr(0)
            termios.tcsetattr(0, termios.TCSADRAIN, raw_mode(before))
        if not interactive:
            self._send(frames.END)
        try:
            return self._relay(wake, listens=interactive)
        finally:
            if before is not None:
                termios.tcsetattr(0, termios.TCSADRAIN, before)

    def _note_signal(self, number: int, _: object) -> None:
        """It goes to the command. Who asks for the end again within a second has it here and now: a hostile guest does not answer."""
        self._signals.append(number)
        if number in (signal.SIGINT, signal.SIGTERM):
            before, self._asked = self._asked, time.monotonic()
            if before and self._asked - before < _INSIST:
                raise SystemExit(128 + number)

    def _relay(self, wake: int, *, listens: bool) -> int:
        while True:
            wanted: list[Any] = [self._channel, wake, *([self._input] if listens and self._allowance else [])]
            ready, _, _ = select.select(wanted, [], [])
            if wake in ready:
                os.read(wake, _BLOCK)
                while self._signals:
                    self._tell_signal(self._signals.pop(0))
            if self._input in ready:
                listens = self._read_input()
            if self._channel in ready:
                data = b""
                with suppress(ConnectionResetError):
                    data = self._channel.recv(_BLOCK)
                for _, kind, part in self._splitter.feed(data):
                    if kind == frames.EXIT:
                        return part[0]
                    self._take(kind, part)
                if not data:
                    raise UnavailableError(f"the guest of pod {self._pod} has gone, or does not answer", hint=f"podctl status {self._pod}")

    def _take(self, kind: int, data: bytes) -> None:
        if kind == frames.GRANT:
            self._allowance += frames.granted(data)
        elif kind in (frames.OUTPUT, frames.ERROR):
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(self._output if kind == frames.OUTPUT else self._errors, view) :]
            except BrokenPipeError:
                if not self._is_foreground:
                    raise
                self._tell_signal(signal.SIGHUP)
            self._send(frames.GRANT, len(data).to_bytes(4, "little"))

    def _read_input(self) -> bool:
        """False when there is no more."""
        try:
            data = os.read(self._input, min(self._allowance, frames.DATA_MAX))
        except OSError:
            data = b""
        self._allowance -= len(data)
        self._send(frames.INPUT if data else frames.END, data)
        return bool(data)

    def _tell_signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self._tell_size()
        else:
            self._send(frames.SIGNAL, bytes((number,)))

    def _tell_size(self) -> None:
        with suppress(OSError):
            self._send(frames.SIZE, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))

    def _send(self, kind: int, data: bytes = b"") -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the end will be read
            self._channel.sendall(frames.frame(0, kind, data))


def run_in_guest(path: str, pod: str, order: str, *, terminal: bool, interactive: bool, streams: Streams | None = None) -> int:
    """`order`: what stage1/guestexec.py is to do. Raises UnavailableError where the pod or its guest does not answer.

    With `streams` in place of the caller's own ones no signal goes there, and BrokenPipeError is raised when nobody reads them any more.
    """
    sys.stdout.flush()
    return Talk(path, pod, streams).run(order, terminal=terminal, interactive=interactive)

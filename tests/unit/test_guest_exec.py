# SPDX-License-Identifier: Apache-2.0
"""The way of `podctl exec` into a Xen guest: client, supervisor's end and guest's agent, over a ring in this machine's own memory.

Only what enters the app is left out: the agent's child executes what it is told as it is.
"""

import asyncio
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rktd_units.cli.guest import Talk
from rktd_units.stage1 import frames, guestexec
from rktd_units.stage1.exechost import ExecHost
from rktd_units.xenring import Ring, RingError

SIZE = 32 * 1024


class LocalRing(Ring):
    """Between two processes of one machine: an eventfd for each direction instead of an event channel."""

    def __init__(self, memory: mmap.mmap, own: int, other: int, *, is_back: bool) -> None:
        words = memoryview(memory)[:4096].cast("I")
        super().__init__(words, memoryview(memory)[4096:], own, 0, is_back=is_back)
        self.other = other

    def call(self) -> None:
        os.eventfd_write(self.other, 1)

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._events)


def run_plain(order: dict[str, Any], standard: list[int]) -> NoReturn:
    try:
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        os.closerange(3, 256)
        os.execvp(order["argv"][0], order["argv"])
    finally:
        os._exit(127)


class Way:
    """A host's end with an agent behind it, each in a process of its own; `speak` is what runs in the guest."""

    def __init__(self, directory: Path, speak: Callable[[Ring], None]) -> None:
        self.socket = str(directory / "exec")
        memory = mmap.mmap(-1, 4096 + 2 * SIZE)
        front, back = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        up = os.eventfd(0)
        self.processes = [
            _fork(lambda: speak(LocalRing(memory, front, back, is_back=False))),
            _fork(lambda: asyncio.run(_serve(self.socket, LocalRing(memory, back, front, is_back=True), up))),
        ]
        assert select.select([up], [], [], 10)[0]
        os.close(up)

    def end(self) -> None:
        for process in self.processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _fork(action: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    return child


async def _serve(path: str, ring: Ring, up: int) -> None:
    async def open_ring() -> Ring:
        return ring

    opener: Callable[[], Awaitable[Ring]] = open_ring
    await ExecHost(path, opener).start()
    os.eventfd_write(up, 1)
    await asyncio.Event().wait()


CLIENT = """
import sys
from rktd_units.cli.guest import run_in_guest
from rktd_units.errors import RktdError
try:
    sys.exit(run_in_guest(sys.argv[1], "p", sys.argv[2], terminal=False, interactive=True))
except RktdError as error:
    sys.exit(str(error))
"""


def client(path: Way, *argv: str) -> "subprocess.Popen[bytes]":
    import json

    order = json.dumps({"terminal": False, "argv": argv})
    words = [sys.executable, "-c", CLIENT, path.socket, order]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    monkeypatch.setattr(guestexec, "_become", run_plain)
    made = Way(tmp_path, lambda ring: guestexec.Agent(ring).run())
    yield made
    made.end()


def test_streams_and_exit_code(path: Way) -> None:
    done = client(path, "sh", "-c", "cat; echo err >&2; exit 7")
    assert (*done.communicate(b"\0in\xff", timeout=20), done.returncode) == (b"\0in\xff", b"err\n", 7)
    killed = client(path, "sh", "-c", "kill -9 $$")
    assert (*killed.communicate(b"", timeout=20), killed.returncode) == (b"", b"", 137)


def test_much_both_ways_and_several_at_once(path: Way) -> None:
    """More than all buffers on the way, while another one's output is not read."""
    stuck = client(path, "sh", "-c", "yes")
    data = os.urandom(1 << 20)
    one, two = client(path, "cat"), client(path, "sh", "-c", "sleep 0.2; echo two")
    assert two.communicate(timeout=20)[0] == b"two\n"
    assert one.communicate(data, timeout=60)[0] == data
    stuck.kill()
    stuck.communicate(timeout=20)
    one = client(path, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do pgrep -x yes -P $PPID || exit 0; sleep 0.2; done; exit 1")
    assert one.wait(timeout=20) == 0  # its command ended with it
    one.communicate()


def test_a_signal_goes_on(path: Way) -> None:
    running = client(path, "sh", "-c", "trap 'echo got; exit 3' TERM; echo up; while :; do sleep 0.1; done")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    running.send_signal(signal.SIGTERM)
    assert (running.communicate(timeout=20)[0], running.returncode) == (b"got\n", 3)


def test_who_insists_leaves_a_guest_that_does_not_answer(tmp_path: Path) -> None:
    path = Way(tmp_path, lambda _: time.sleep(60))
    try:
        waiting = client(path, "true")
        handles = 1 << (signal.SIGTERM - 1)
        while not handles & int(Path(f"/proc/{waiting.pid}/status").read_text().partition("SigCgt:")[2].split()[0], 16):
            assert waiting.poll() is None
            time.sleep(0.01)
        while waiting.poll() is None:  # one alone goes to the command
            waiting.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert waiting.communicate(timeout=20) == (b"", b"")
        assert waiting.returncode == 128 + signal.SIGTERM
    finally:
        path.end()


def flood(session: int, kind: int, count: int, data: bytes = bytes(10_000)) -> Callable[[Ring], None]:
    def speak(ring: Ring) -> None:
        while not ring.available():
            time.sleep(0.01)
        for _ in range(count):
            while ring.space() < 20_000:
                time.sleep(0.001)
            ring.write(frames.frame(session, kind, data))
            ring.call()
        time.sleep(60)

    return speak


@pytest.mark.parametrize(
    "speak",
    [
        flood(1, frames.OUTPUT, 50),
        flood(1, frames.SIGNAL, 1),
        flood(1, 99, 1),
        flood(1, frames.OUTPUT, 1, b""),
        flood(1, frames.ERROR, 1, b""),
        flood(1, frames.GRANT, 1, b"\xff\xff\xff\xff"),
        flood(1, frames.GRANT, 1, bytes(4)),
        flood(1, frames.EXIT, 1, b""),
        flood(1, frames.EXIT, 1, b"12"),
    ],
    ids=[
        "more-than-granted",
        "to-the-guest",
        "unknown",
        "no-output",
        "no-errors",
        "grants-input",
        "grants-nothing",
        "no-code",
        "two-codes",
    ],
)
def test_a_hostile_guest_loses_its_channel(tmp_path: Path, speak: Callable[[Ring], None]) -> None:
    path = Way(tmp_path, speak)
    try:
        with socket.socket(socket.AF_UNIX) as first:  # grants nothing
            first.connect(path.socket)
            first.sendall(frames.frame(0, frames.OPEN, b"{}") + frames.frame(0, frames.OPEN))
            received = b"".join(iter(lambda: first.recv(65536), b""))
        assert len(received) <= frames.WINDOW + 7 * frames.HEAD.size
        second = client(path, "true")
        assert b"does not keep to the protocol" in second.communicate(timeout=20)[1]
    finally:
        path.end()


def test_a_guest_that_takes_nothing_has_nothing_kept_for_it(tmp_path: Path) -> None:
    """Its client is not read any more, and no other is let in."""

    def sleep(_: Ring) -> None:
        time.sleep(60)

    path = Way(tmp_path, sleep)
    try:
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path.socket)
            first.settimeout(1)
            sent = 0
            with suppress(TimeoutError):
                while sent < 100 * frames.WINDOW:
                    sent += first.send(frames.frame(0, frames.INPUT, bytes(frames.DATA_MAX)))
            assert frames.WINDOW < sent < 100 * frames.WINDOW
            second = client(path, "true")
            assert b"takes nothing" in second.communicate(timeout=20)[1]
    finally:
        path.end()


def test_frames_come_in_any_pieces() -> None:
    stream = frames.frame(5, frames.OPEN, b"abc") + frames.frame(6, frames.EXIT, b"\1") + frames.grant(7, 1000)
    splitter = frames.Splitter()
    found = [found for byte in stream for found in splitter.feed(bytes((byte,)))]
    assert found == [(5, frames.OPEN, b"abc"), (6, frames.EXIT, b"\1"), (7, frames.GRANT, (1000).to_bytes(4, "little"))]
    with pytest.raises(frames.FrameError, match="a frame of 65535 bytes"):
        list(splitter.feed(b"\1\0\0\0\1\xff\xff"))
    with pytest.raises(frames.FrameError, match="no number"):
        frames.granted(b"12345")


def test_no_pod_no_session(tmp_path: Path) -> None:
    from rktd_units.errors import UnavailableError

    with pytest.raises(UnavailableError, match="pod p does not run"):
        Talk(str(tmp_path / "none"), "p", None)
    assert issubclass(RingError, Exception)

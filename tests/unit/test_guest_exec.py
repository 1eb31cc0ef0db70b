# SPDX-License-Identifier: Apache-2.0
"""The way of `podctl exec` into a Xen guest: client, supervisor's end and guest's agent, over a ring in this machine's own memory.

Only what enters the app is left out: the agent's child executes what it is told as it is.
"""

import asyncio
import errno
import mmap
import os
import resource
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
from rktd_units.errors import TemporaryError
from rktd_units.stage1 import apart, exechost, frames, guestexec, guestprobes
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


def answers(path: Way) -> bool:
    done = client(path, "sh", "-c", "exit 7")
    done.communicate(timeout=20)
    return done.returncode == 7


def ask_raw(path: Way, text: bytes) -> bytes:
    """All that comes back for a request of any text."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(20)
        channel.connect(path.socket)
        for piece in frames.pieces(text):
            channel.sendall(frames.frame(0, frames.OPEN, piece))
        channel.sendall(frames.frame(0, frames.OPEN))
        return b"".join(iter(lambda: channel.recv(65536), b""))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", b"does not understand the request: Expecting property name"),
        (b"\xff", b"does not understand the request"),
        (b"[]", b"does not understand the request"),
        (b"{}", b"does not understand the request: 'terminal'"),
        (b'{"terminal": true}', b"does not understand the request: 'size'"),
        (b'{"terminal": true, "size": ["a", 1]}', b"does not understand the request"),
        (b"[" * 200_000, b"does not understand the request"),
        (b"1" * (2 << 20), b"it is longer than 1048576 bytes"),
    ],
    ids=["no JSON", "no text", "no object", "no terminal", "no size", "bad size", "deep", "long"],
)
def test_a_request_that_is_none_ends_nobody_else(path: Way, text: bytes, reason: bytes) -> None:
    (session, kind, said), last = list(frames.Splitter().feed(ask_raw(path, text)))
    assert (session, kind) == (0, frames.ERROR)
    assert reason in said
    assert last == (0, frames.EXIT, bytes((69,)))
    assert answers(path)


def test_a_guest_without_descriptors_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And has them again afterwards."""

    def speak(ring: Ring) -> None:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 8, free + 8))
        guestexec.Agent(ring).run()

    monkeypatch.setattr(guestexec, "_become", run_plain)
    path = Way(tmp_path, speak)
    try:
        first = client(path, "cat")  # six of eight while it starts, then four
        second = client(path, "cat")
        for each in (first, second):
            assert each.stdin is not None
        while first.poll() is second.poll() is None:
            time.sleep(0.01)
        refused, runs = (first, second) if first.poll() is not None else (second, first)
        assert refused.communicate(timeout=20) == (b"", b"podctl: the guest cannot start a command: Too many open files\n")
        assert refused.returncode == 69
        assert runs.communicate(b"in", timeout=20)[0] == b"in"
        for _ in range(3):
            assert answers(path)
    finally:
        path.end()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("call", ["fork", "pidfd_open"])
def test_a_start_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, call: str, terminal: bool) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(guestexec, "_become", lambda *_: time.sleep(60))
    monkeypatch.setattr(os, call, fail)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Cannot allocate memory"):
        guestexec.start({"terminal": terminal, "size": (3, 4)})
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError, match="No child processes"):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("name", ["guestexec", "guestprobes"])
def test_who_enters_has_an_interpreter_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Executed once, from a mount that nobody can write to: commands are its children (CVE-2019-5736)."""
    fake = tmp_path / f"rktd_units/stage1/{name}.py"
    fake.parent.mkdir(parents=True)
    (fake.parents[1] / "__init__.py").touch()
    (fake.parent / "__init__.py").touch()
    fake.write_text("import sys, os\ndef serve(*given): print(sys.executable, sys.path[-1], *given, open('/proc/self/comm').read())\n")
    monkeypatch.setattr(apart, "__file__", str(fake))

    def execute(program: str, argv: list[str], environment: dict[str, str]) -> NoReturn:
        assert program == os.path.realpath(sys.executable)
        os.dup2(write, 1)
        os.execve(program, argv, environment)

    monkeypatch.setattr("rktd_units.mounts.execute_apart", execute)
    read, write = os.pipe()
    given = os.dup(0)
    child = _fork(guestexec.main if name == "guestexec" else lambda: guestprobes.main("web", given))
    os.close(given)
    os.close(write)
    with open(read) as file:
        said = file.read()
    os.waitpid(child, 0)
    assert said == f"{sys.executable} {tmp_path} {'' if name == 'guestexec' else f'web {given} '}{name}\n\n"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's end that gives an agent one second instead of thirty."""
    monkeypatch.setattr(exechost, "_PING_STEP", 0.2)
    monkeypatch.setattr(exechost, "_SILENT_STEPS", 5)


@pytest.mark.usefixtures("hasty")
def test_an_agent_that_is_no_more(tmp_path: Path) -> None:
    """Nobody waits for it for ever, and who comes later does not wait at all."""
    path = Way(tmp_path, lambda _: time.sleep(60))
    try:
        first, second = client(path, "true"), client(path, "true")
        for each in (first, second):
            _, errors = each.communicate(timeout=20)
            assert b"podctl: the guest cannot be reached: its agent has taken nothing for 1 s\n" in errors
            assert b"does not answer" in errors
        assert b"its agent takes nothing" in client(path, "true").communicate(timeout=20)[1]
    finally:
        path.end()


@pytest.mark.usefixtures("hasty")
def test_an_agent_that_stops_while_a_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent command of an agent that lives is left alone; of one that does not it is given up. When it goes on, so does all else."""
    monkeypatch.setattr(guestexec, "_become", run_plain)
    path = Way(tmp_path, lambda ring: guestexec.Agent(ring).run())
    try:
        silent, ended = client(path, "sleep", "60"), client(path, "sleep", "2")
        assert ended.communicate(timeout=20) == (b"", b"")
        assert ended.returncode == 0
        assert silent.poll() is None
        os.kill(path.processes[0], signal.SIGSTOP)
        assert b"has taken nothing" in silent.communicate(timeout=20)[1]
        os.kill(path.processes[0], signal.SIGCONT)
        end = time.monotonic() + 20
        while not answers(path):
            assert time.monotonic() < end
    finally:
        path.end()


async def connect_and_open(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(frames.frame(0, frames.OPEN, b"{}") + frames.frame(0, frames.OPEN))
    await writer.drain()
    return reader, writer


def test_all_wait_once_for_an_agent_that_does_not_come_up(tmp_path: Path) -> None:
    """Podctl connects twice: once to see whether anybody listens."""
    calls: list[float] = []

    async def open_ring() -> Ring:
        calls.append(time.monotonic())
        await asyncio.sleep(1)
        raise RingError("its agent does not run")

    async def wait() -> None:
        host = ExecHost(str(tmp_path / "exec"), open_ring)
        await host.start()
        probe, first, second = [await connect_and_open(tmp_path / "exec") for _ in range(3)]
        probe[1].close()
        began = time.monotonic()
        for reader, writer in (first, second):
            assert b"its agent does not run" in await reader.read()
            writer.close()
        assert time.monotonic() - began < 1.8
        host.close()

    asyncio.run(wait())
    assert len(calls) == 1


def test_a_client_that_goes_ends_the_wait(tmp_path: Path) -> None:
    told: list[str] = []

    async def open_ring() -> Ring:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told.append("ended")
            raise
        raise AssertionError

    async def wait() -> None:
        host = ExecHost(str(tmp_path / "exec"), open_ring)
        await host.start()
        for _ in range(2):
            _, writer = await connect_and_open(tmp_path / "exec")
            await asyncio.sleep(0.1)
            writer.close()
            await asyncio.sleep(0.5)
        assert (told, host._clients, host._opening) == (["ended", "ended"], {}, None)
        host.close()

    asyncio.run(wait())


def test_an_xenstore_that_does_not_answer_is_told(tmp_path: Path) -> None:
    async def open_ring() -> Ring:
        raise TemporaryError("xenstored does not answer")

    async def wait() -> bytes:
        host = ExecHost(str(tmp_path / "exec"), open_ring)
        await host.start()
        reader, writer = await connect_and_open(tmp_path / "exec")
        said = await reader.read()
        writer.close()
        host.close()
        return said

    assert b"podctl: the guest cannot be reached: xenstored does not answer\n" in asyncio.run(wait())


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


def test_a_guest_that_takes_nothing_has_nothing_kept_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client is not read any more; another one waits, and is told in the end."""
    monkeypatch.setattr(exechost, "_PING_STEP", 0.2)

    def sleep(_: Ring) -> None:
        time.sleep(60)

    path = Way(tmp_path, sleep)
    try:
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path.socket)
            first.settimeout(1)
            sent = 0
            with suppress(TimeoutError, ConnectionError):
                while sent < 100 * frames.WINDOW:
                    sent += first.send(frames.frame(0, frames.INPUT, bytes(frames.DATA_MAX)))
            assert frames.WINDOW < sent < 100 * frames.WINDOW
            second = client(path, "true")
            assert b"the guest cannot be reached: its agent" in second.communicate(timeout=20)[1]
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

# SPDX-License-Identifier: Apache-2.0
"""Who may ask for exec probes, and what becomes of who only connects; the probes themselves are integration/test_probes.py's."""

import errno
import json
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rktd_units import enter, execprobes, prober
from rktd_units.paths import Layout


class Pod(NamedTuple):
    """A server whose pod has this uid as its root, until it is told another one."""

    server: execprobes.Server
    connect: Callable[[], socket.socket]
    be: Callable[[int], None]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    directory = Path(Layout(str(tmp_path)).pod("p"))
    directory.mkdir(parents=True)

    def be(base: int) -> None:
        (directory / "new").write_text(json.dumps({"idBase": base, "apps": []}))
        (directory / "new").rename(directory / "pod.json")

    be(os.getuid())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "socket"))
    listener.listen(100)

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(5)
        client.connect(str(tmp_path / "socket"))
        return client

    yield Pod(execprobes.Server("p", listener, Layout(str(tmp_path))), connect, be)
    listener.close()


def test_others_of_the_host_take_no_place(pod: Pod) -> None:
    """An unprivileged user who holds as many connections as there can be would have every probe of the pod fail."""
    pod.be(os.getuid() + 1)
    strangers = [pod.connect() for _ in range(execprobes._CONNECTIONS_MAX)]
    for stranger in strangers:
        pod.server._accept()
        assert stranger.recv(9) == b""
    assert not pod.server._connections
    pod.be(os.getuid())
    own = pod.connect()
    pod.server._accept()
    assert len(pod.server._connections) == 1
    for connection in (own, *strangers, *pod.server._connections.values()):
        connection.close()


def test_who_says_nothing_is_closed(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execprobes, "_SILENCE", 0.05)
    with pod.connect() as silent:
        pod.server.turn()
        pod.server.turn()
        assert silent.recv(99) == b"! the request has not come"
    with pod.connect() as wrong:
        pod.server.turn()
        wrong.send(b"app liveness 1")
        pod.server.turn()
        assert wrong.recv(99) == b"! the request is wrong"
    assert not pod.server._connections


def test_an_event_is_of_who_had_the_descriptor_then(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is closed in a turn may have its descriptor taken by another, of which that turn's events say nothing."""
    with pod.connect() as first, pod.connect() as second, pod.connect() as third:
        for _ in range(2):
            pod.server._accept()
        one, two = pod.server._connections
        first.send(b"a")
        second.send(b"b")
        answered: list[int] = []

        def answer(descriptor: int) -> None:
            answered.append(descriptor)
            pod.server._close(two, "")
            pod.server._accept()
            assert two in pod.server._connections  # the third's

        monkeypatch.setattr(pod.server, "_answer", answer)
        monkeypatch.setattr(pod.server, "_poll", Events(pod.server._poll, [(one, 1), (two, 1)]))
        pod.server.turn()
        assert answered == [one]
        third.send(b"c")
    for connection in pod.server._connections.values():
        connection.close()


class Events:
    """A poller whose next answer is this."""

    def __init__(self, poller: select.poll, answer: list[tuple[int, int]]) -> None:
        self._poller = poller
        self.poll = lambda _: answer
        self.register, self.unregister = poller.register, poller.unregister


def test_a_probe_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    order = enter.Order(1 << 30, 1, "/nowhere", ["true"], {}, "/", 0, 0, [], 0, terminal=False, interactive=False)
    before = sorted(os.listdir("/proc/self/fd"))

    def fail(*_: object) -> int:
        raise OSError(errno.EAGAIN, "no more")

    for name in ("pidfd_open", "fork"):
        monkeypatch.setattr(os, name, fail)
        with pytest.raises(OSError, match="no more"):
            execprobes._fork(("app", "liveness"), order, ("app", "1"), None)
        assert sorted(os.listdir("/proc/self/fd")) == before
        with pytest.raises(ChildProcessError, match="child"):
            os.waitpid(-1, os.WNOHANG)


def test_the_prober_passes_the_process_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look through an app's thousands for it would delay the probes of the pod's other apps."""
    monkeypatch.setattr(prober, "_ENTER_SOCKET", str(tmp_path / "socket"))
    pidfd = os.pidfd_open(os.getpid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(prober._ENTER_SOCKET)
        listener.listen()
        errand = prober.Errand("app", "liveness", 7, pidfd)
        with listener.accept()[0] as connection:
            text, given, _, _ = socket.recv_fds(connection, 512, 1)
        errand.close()
    assert text == b"app liveness 7"
    assert execprobes.read_pid(given[0]) == os.getpid()
    for descriptor in (pidfd, *given):
        os.close(descriptor)


def test_which_process_is_asked_for(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], int]] = []

    def start(words: list[str], pid: int) -> None:
        asked.append((words, pid))
        raise OSError(0, "seen")

    monkeypatch.setattr(pod.server, "_start", start)
    pidfd, null = os.pidfd_open(os.getpid()), os.open("/dev/null", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    for given, answer in (((pidfd,), b"! seen"), ((), b"! seen"), ((null,), b"! the request is wrong")):
        with pod.connect() as client:
            socket.send_fds(client, [b"app liveness 7"], list(given))
            pod.server.turn()
            pod.server.turn()
            assert client.recv(99) == answer
    assert asked == [(["app", "liveness", "7"], os.getpid()), (["app", "liveness", "7"], 0)]
    assert len(os.listdir("/proc/self/fd")) == before  # nothing of what was given is kept
    os.close(pidfd)
    os.close(null)


def test_a_process_that_has_ended_has_no_pid() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    pidfd = os.pidfd_open(child)
    os.waitpid(child, 0)
    with pytest.raises(ProcessLookupError, match="the app has ended"):
        execprobes.read_pid(pidfd)
    os.close(pidfd)


def test_the_status_is_told_in_nspawns_name(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the prober says is only that there is something to tell; the text is ours. Then there is nothing to do, and it ends."""
    directory = Path(Layout(str(tmp_path)).pod("p"))
    apps: list[dict[str, object]] = [{"name": name, "probes": {}} for name in ("web", "db", "plain")]
    (directory / "pod.json").write_text(json.dumps({"idBase": os.getuid(), "apps": apps}))
    (directory / "status").mkdir()
    (directory / "status/web.ready").write_text("ready\n")
    (directory / "status/db.ready").write_text("STATUS=evil\nREADY=1\n")
    told: list[tuple[int, str]] = []
    monkeypatch.setattr(execprobes, "speak_for", lambda pid, text: told.append((pid, text)))
    monkeypatch.setattr(execprobes, "leader_of", lambda _: os.getpid())
    monkeypatch.setattr(execprobes, "_IDLE", 0.05)
    monkeypatch.setattr(execprobes, "_STATUS_PAUSE", 0.3)
    monkeypatch.setattr(prober, "_ENTER_SOCKET", str(tmp_path / "socket"))
    prober._tell_host()
    assert pod.server.turn()
    assert pod.server.turn()
    assert told == [(os.getppid(), "STATUS=Not ready: db")]
    (directory / "status/db.ready").write_text("ready\n")
    for _ in range(20):  # however often it says so
        prober._tell_host()
    while pod.server.turn():
        pass
    assert told[1:] == [(os.getppid(), "STATUS=All apps are ready")]

# SPDX-License-Identifier: Apache-2.0
"""Who may ask for exec probes, and what becomes of who only connects; the probes themselves are integration/test_probes.py's."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rktd_units import execprobes
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

# SPDX-License-Identifier: Apache-2.0
"""What tells a guest's host of its apps: a process here, with a terminal for a console, and files for the kernel's."""

import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rktd_units.stage1 import guestlog


class Told:
    """A teller that runs, and its console."""

    def __init__(self, pid: int, console: int, app: socket.socket, status: Path, cgroup: Path, kernel: int) -> None:
        self.pid, self.console, self.app, self.status, self.cgroup, self.kernel = pid, console, app, status, cgroup, kernel
        self._rest = b""

    def read(self, seconds: float, enough: float = float("inf")) -> list[dict[str, Any]]:
        """What came in so long, or until that was enough."""
        end = time.monotonic() + seconds
        found: list[dict[str, Any]] = []
        while (left := end - time.monotonic()) > 0 and len(found) < enough:
            if select.select([self.console], [], [], left)[0]:
                *lines, self._rest = (self._rest + os.read(self.console, 65536)).split(b"\n")
                found += [json.loads(line) for line in lines if line.strip()]
        return found


@pytest.fixture
def teller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """One app, `a`."""
    master, slave = os.openpty()
    (tmp_path / "printk").touch()
    (tmp_path / "status").mkdir()
    cgroup = tmp_path / "cgroup" / "a.service"
    cgroup.mkdir(parents=True)
    (cgroup / "cgroup.events").write_text("populated 1\n")
    kernel_read, kernel = os.pipe()
    monkeypatch.setattr(guestlog, "CONSOLE", os.ttyname(slave))
    monkeypatch.setattr(guestlog, "_PRINTK", str(tmp_path / "printk"))
    monkeypatch.setattr(guestlog, "KERNEL_LOG", f"/proc/self/fd/{kernel_read}")
    monkeypatch.setattr(guestlog, "CGROUPS", str(tmp_path / "cgroup"))
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    note, notify = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pid = os.fork()
    if pid == 0:
        os.close(kernel)
        guestlog.main([guestlog.Channel(theirs, "a", 6)], notify, str(tmp_path / "status"), 0)
    theirs.close()
    for descriptor in (slave, kernel_read):
        os.close(descriptor)
    yield Told(pid, master, ours, tmp_path / "status", cgroup, kernel)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    note.close()
    notify.close()
    ours.close()
    for descriptor in (master, kernel):
        os.close(descriptor)


def test_an_app_that_runs_again_is_told_while_others_write(teller: Told) -> None:
    teller.app.sendall(b"a line\n")
    assert [record["m"] for record in teller.read(10, enough=1)] == ["a line"]  # it watches by now
    (teller.status / ".a").write_text("exited 3 exit-code\n")
    (teller.status / ".a").rename(teller.status / "a")
    seen: list[dict[str, Any]] = []
    end = time.monotonic() + 5
    while time.monotonic() < end and not any("up" in record for record in seen):
        teller.app.sendall(b"another line\n")
        seen += teller.read(0.2)
    kinds = [next(key for key in record if key in ("result", "up")) for record in seen if "m" not in record]
    assert kinds == ["result", "up"]


def test_kernel_messages(teller: Told) -> None:
    """With their own time; those that the kernel itself has put on the console are not told again; debug messages are none."""
    now = time.monotonic_ns() // 1000
    teller.app.sendall(b"here\n")
    assert [record["m"] for record in teller.read(10, enough=1)] == ["here"]
    records = [f"3,1,{now - 10**9},-;shown", f"4,2,{now - 10**9},-;early", f"3,3,{now + 10**6},-;late\n SUBSYSTEM=x", "6,4,1,-;information"]
    for record in (*records, f"27,5,{now},-;of systemd"):
        os.write(teller.kernel, record.encode())
        time.sleep(0.05)  # a record is what one read gives
    told = teller.read(5, enough=3)
    assert [(record["app"], record["p"], record["m"]) for record in told] == [
        ("kernel", 4, "early"),
        ("kernel", 3, "late"),
        ("pod", 3, "of systemd"),
    ]
    assert abs(told[0]["t"] - (time.time_ns() // 1000 - 10**9)) < 60 * 10**6

# SPDX-License-Identifier: Apache-2.0
"""The supervisor of a domain, against xl and xenstore as they fail, and against what a hostile guest says without end."""

import asyncio
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from rktd_units.errors import CommandError, RktdError, StateError, TemporaryError
from rktd_units.journal import Journal
from rktd_units.paths import Layout
from rktd_units.proc import start
from rktd_units.runfiles import lock, write_text
from rktd_units.stage1 import console, loops, supervisor
from rktd_units.stage1.supervisor import Supervisor, open_terminal


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr("rktd_units.stage1.supervisor.Journal", lambda: None)
    layout = Layout(str(tmp_path))
    orders = {"domain": "rktd-web", "machineId": "0" * 32, "graceSeconds": 1, "apps": ["web"], "exports": {}, "interface": None}
    orders |= {name: str(tmp_path / name) for name in ("ramdisk", "base", "archive")}
    os.makedirs(layout.pod("web"))
    Path(layout.pod("web"), "domain.json").write_text(json.dumps({"version": supervisor.VERSION, **orders}))
    return layout


def answering(*values: Any) -> Callable[..., Any]:
    """One after the other, the last one for ever."""
    left = list(values)

    async def answer(*_: Any, **__: Any) -> Any:
        value = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(value, RktdError):
            raise value
        return value

    return answer


LISTED = "Name ID Mem VCPUs State Time(s)\nrktd-web 3 256 1 r----- 1.0\n"


@pytest.mark.parametrize(
    ("found", "listed", "expected", "again"),
    [
        (3, LISTED, "", False),
        (3, CommandError(("xl",), 1, "libxl: cannot lock"), None, True),
        (3, TemporaryError("`xl list` did not end within 30 s"), None, True),
        (TemporaryError("xenstored does not answer"), LISTED, None, True),
        (None, CommandError(("xl",), 1, "invalid domain identifier"), "gone", False),
    ],
    ids=["runs", "xl fails", "xl hangs", "xenstored hangs", "gone"],
)
def test_a_domain_is_gone_when_xenstore_says_so(
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
    found: int | RktdError | None,
    listed: str | RktdError,
    expected: str | None,
    again: bool,
) -> None:
    """What xl does not tell is looked at again: a healthy domain was destroyed for it."""

    async def look() -> tuple[str | None, bool]:
        watcher = Supervisor("web", layout)
        monkeypatch.setattr(watcher._store, "find_domain", answering(found))
        monkeypatch.setattr(watcher, "_xl", answering(listed))
        state = await watcher._state()
        await asyncio.sleep(0.05)
        return state, watcher._changed.is_set()

    monkeypatch.setattr(supervisor, "_LOOK_AGAIN", 0.01)
    assert asyncio.run(look()) == (expected, again)


def test_a_guest_that_says_the_same_without_end_has_it_written_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    told: list[str] = []
    write = write_text

    def count(path: str, text: str) -> None:
        written.append(os.path.relpath(path, layout.pod("web")))
        write(path, text)

    async def flood() -> None:
        watcher = Supervisor("web", layout)
        watcher._created, watcher._began, watcher._number = 0.0, 0, 3
        for _ in range(500):
            for record in (console.Ended("web", ("exited", "1", "x")), console.Up("web"), console.Probed("web", "ready"), console.Ready()):
                watcher._take(record)
        assert len(written) < 10
        await asyncio.sleep(0.1)
        watcher._take(console.Probed("web", "unready"))
        await asyncio.sleep(0.1)

    monkeypatch.setattr(supervisor, "_NOTE_DELAY", 0.02)
    monkeypatch.setattr(supervisor, "write_text", count)
    monkeypatch.setattr(supervisor, "notify", told.append)
    asyncio.run(flood())
    assert {name: written.count(name) for name in written} == {"times": 1, "status/web": 2, "status/web.ready": 3, "states": 2}
    assert [text.rpartition("STATUS=")[2] for text in told] == ["All apps run in domain 3", "Not ready: web"]
    pod = Path(layout.pod("web"))
    assert json.loads((pod / "states").read_text()) == {"web": {"running": True, "restarts": 500}}
    assert (pod / "status/web").read_text() == "exited 1 x\n"
    assert (pod / "status/web.ready").read_text() == "unready\n"


def test_a_panic_behind_a_flood_is_found(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal takes nothing: the apps' lines are lost, and told; the kernel's last words are not."""
    line = b'{"n":%d,"app":"web","p":6,"pid":1,"t":1,"m":"flood"}\n'
    flood = b"".join(line % number for number in range(1, 200)) + b"\n[ 9.1] Kernel panic - not syncing: why\n"

    class Full:
        def send(self, fields: list[tuple[str, bytes]]) -> bool:
            return False

    async def end() -> supervisor.Outcome:
        watcher = Supervisor("web", layout)
        watcher._tty = tty
        watcher._read_console()
        return await watcher._outcome(False, "crashed")

    tty, other = os.pipe()
    os.set_blocking(tty, False)
    os.write(other, flood)
    monkeypatch.setattr(supervisor, "Journal", Full)
    monkeypatch.setattr(supervisor, "_READ_SIZE", 1000)
    monkeypatch.setattr(supervisor, "_LAST_WORDS", 0.5)
    monkeypatch.setattr(supervisor, "_QUIET", 0.1)
    outcome = asyncio.run(end())
    for descriptor in (tty, other):
        os.close(descriptor)
    assert outcome == supervisor.Outcome(1, "the guest's kernel has crashed: Kernel panic - not syncing: why")


def test_a_journal_that_takes_nothing_is_not_asked_all_the_time(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, whose queue others have filled; when it takes records again, all of them come, and the console is read on."""

    async def say() -> None:
        watcher = Supervisor("web", layout)
        watcher._journal = journal
        watcher._tty = tty
        watcher._take(console.Noise("first"))
        before = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before < 0.25
        receiver.setblocking(False)
        while watcher._pending:
            with suppress(BlockingIOError):
                while True:
                    received.append(receiver.recv(4096))
            await asyncio.sleep(0.01)
        os.write(other, b"second\n")
        while len(received) < full + 2:
            with suppress(BlockingIOError):
                received.append(receiver.recv(4096))
            await asyncio.sleep(0.01)

    place = Path(layout.root) / "journal"
    receiver, others = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(str(place))
    others.setblocking(False)
    journal = Journal(str(place))
    tty, other = os.pipe()
    received: list[bytes] = []
    full = 0
    with suppress(BlockingIOError):
        while True:
            others.sendto(b"x", str(place))
            full += 1
    asyncio.run(say())
    assert [b"MESSAGE=first\n" in received[full], b"MESSAGE=second\n" in received[full + 1]] == [True, True]
    for each in (receiver, others, journal._socket):
        each.close()
    os.close(tty)
    os.close(other)


@pytest.mark.parametrize(
    ("found", "destroy", "is_left"),
    [
        ((None,), AssertionError, False),
        ((3, None), "", False),
        ((3, 3), "", True),
        ((3,), CommandError(("xl",), 1, "libxl: cannot lock"), True),
        ((TemporaryError("xenstored does not answer"),), AssertionError, True),
    ],
    ids=["none", "destroyed", "still there", "xl fails", "xenstored hangs"],
)
def test_the_mark_goes_with_the_domain(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, found: tuple[Any, ...], destroy: Any, is_left: bool
) -> None:
    """Else nobody would look for the domain again. It is told."""

    async def end() -> None:
        watcher = Supervisor("web", layout)
        monkeypatch.setattr(watcher._store, "find_domain", answering(*found))
        monkeypatch.setattr(watcher, "_xl", answering(destroy))
        monkeypatch.setattr(watcher, "_say", lambda text, _: said.append(text))
        await watcher._clear()

    said: list[str] = []
    write_text(layout.domain("web"), "rktd-web\n")
    asyncio.run(end())
    assert os.path.exists(layout.domain("web")) == is_left
    assert [text.partition(":")[0] for text in said] == ["the domain is not destroyed"] * is_left


@pytest.mark.parametrize("hangs", [False, True], ids=["all goes", "xenstored hangs"])
def test_the_mark_outlives_what_is_in_xenstore(layout: Layout, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    """The nodes of the volumes' device are removed after the domain; until then the mark has the number that they are under."""

    def remove(number: int) -> None:
        marks.append(Path(layout.domain("web")).read_text())
        if hangs:
            raise TemporaryError("`xenstore-rm` did not end within 10 s")

    async def end() -> None:
        watcher = Supervisor("web", layout)
        monkeypatch.setattr(watcher._store, "find_domain", answering(7, None))
        monkeypatch.setattr(watcher, "_xl", answering(""))
        monkeypatch.setattr(watcher, "_say", lambda text, _: said.append(text))
        watcher._number = 7
        watcher._write_mark()
        watcher._share = start(("/bin/sleep", "0"))
        asyncio.get_running_loop().add_reader(watcher._share.stdout.fileno(), lambda: None)
        await watcher._clear()

    marks: list[str] = []
    said: list[str] = []
    monkeypatch.setattr("rktd_units.share.device.remove_nodes", remove)
    asyncio.run(end())
    assert marks == ["rktd-web\n7\n"]
    assert os.path.exists(layout.domain("web")) == hangs
    assert [text.partition(":")[0] for text in said] == ["the device of the pod's volumes stays in xenstore"] * hangs


def test_the_ramdisk_is_there_while_xl_reads_it(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """And at no other time; what secrets are in goes when the guest has it, and is there for the next try."""

    async def xl(*_: Any, **__: Any) -> str:
        status = (place / "ramdisk").stat()
        seen.append((oct(status.st_mode & 0o777), (place / "ramdisk").read_bytes()))
        if len(seen) == 1:
            raise CommandError(("xl",), 1, "libxl: because of timeout")
        return ""

    async def create() -> None:
        watcher = Supervisor("web", layout)
        monkeypatch.setattr(watcher, "_xl", xl)
        monkeypatch.setattr(watcher, "_say", lambda *_: None)
        await watcher._create()

    seen: list[tuple[str, bytes]] = []
    place = Path(layout.root)
    (place / "base").write_bytes(b"base!")
    (place / "archive").write_bytes(b"own")
    before = os.umask(0)
    asyncio.run(create())
    os.umask(before)
    assert seen == [("0o600", b"base!\0\0\0own")] * 2
    assert [(place / name).exists() for name in ("ramdisk", "base", "archive")] == [False, True, False]


def test_a_ramdisk_that_cannot_be_made_leaves_none(layout: Layout) -> None:
    async def create() -> None:
        await Supervisor("web", layout)._create()

    Path(layout.root, "base").write_bytes(b"base")
    with pytest.raises(FileNotFoundError, match="No such file"):
        asyncio.run(create())
    assert not Path(layout.root, "ramdisk").exists()


def test_loop_devices_that_no_domain_has(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pods have the same disk: the device of the one that runs is left alone, and so is what is not a guest's."""
    disk = f"{layout.disks}/a.img"
    for name, file, auto, read_only in (
        ("loop0", disk, 0, 1),
        ("loop1", disk, 0, 1),
        ("loop2", f"{layout.layers}/b.erofs (deleted)", 0, 1),
        ("loop3", disk, 1, 1),
        ("loop4", disk, 0, 0),
        ("loop5", "/srv/a.img", 0, 1),
    ):
        about = tmp_path / "block" / name
        (about / "loop").mkdir(parents=True)
        (about / "ro").write_text(f"{read_only}\n")
        (about / "loop/backing_file").write_text(f"{file}\n")
        (about / "loop/autoclear").write_text(f"{auto}\n")
    (tmp_path / "block/loop6").mkdir()
    (tmp_path / "block/sda").mkdir()
    directories = (layout.disks, layout.layers)
    assert loops.find_loops(directories, str(tmp_path / "block")) == ["/dev/loop0", "/dev/loop1", "/dev/loop2"]

    async def detach() -> None:
        watcher = Supervisor("web", layout)
        monkeypatch.setattr(watcher._store, "list_names", answering(["3"], ["51712", "51728"]))
        monkeypatch.setattr(watcher._store, "read", answering(None, "/dev/loop1"))
        await watcher._detach_loops()

    detached: list[str] = []
    monkeypatch.setattr(loops, "find_loops", lambda _: ["/dev/loop0", "/dev/loop1", "/dev/loop2"])
    monkeypatch.setattr(loops, "detach_loop", detached.append)
    asyncio.run(detach())
    assert detached == ["/dev/loop0", "/dev/loop2"]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("",), "the domain's console has ended, and with it the journal of its apps: does xenconsoled run?"),
        ((None, "gone"), "the domain was destroyed"),
    ],
    ids=["lives", "destroyed"],
)
def test_a_console_that_ends(layout: Layout, monkeypatch: pytest.MonkeyPatch, states: tuple[str | None, ...], expected: str) -> None:
    """Of a domain that lives on it is a failure: what its apps say would be lost, and their ends."""

    async def attend() -> supervisor.Outcome:
        watcher = Supervisor("web", layout)
        watcher._tty = tty
        asyncio.get_running_loop().add_reader(tty, watcher._read_console)
        monkeypatch.setattr(watcher, "_state", answering(*states))
        asyncio.get_running_loop().call_later(0.2, watcher._changed.set)
        return await watcher._attend()

    monkeypatch.setattr(supervisor, "_QUIET", 0.1)
    ours, tty = os.openpty()
    os.close(ours)
    assert asyncio.run(attend()) == supervisor.Outcome(1, expected)
    os.close(tty)


def test_a_stop_before_its_turn(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another domain is being created: none is created for it."""

    async def wait() -> bool:
        watcher = Supervisor("web", layout)
        asyncio.get_running_loop().call_later(0.05, watcher._stopping.set)
        try:
            return await watcher._await_turn(ExitStack())
        finally:
            turn.close()

    turn = ExitStack()
    turn.enter_context(lock(layout, "xl"))
    assert asyncio.run(wait()) is False


def test_no_domain_without_the_lock(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/run/rktd/locks/xl")

    async def wait() -> bool:
        return await Supervisor("web", layout)._await_turn(ExitStack())

    monkeypatch.setattr(supervisor, "lock", fail)
    with pytest.raises(PermissionError, match="locks/xl"):
        asyncio.run(wait())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/run/x"), "<3>cannot run pod web: /run/x: No space left on device\n"),
        (OSError(errno.EINVAL, "Invalid argument"), "<3>cannot run pod web: Invalid argument\n"),
        (OSError("no text of the kernel's"), "<3>cannot run pod web: no text of the kernel's\n"),
    ],
    ids=["file", "none", "text"],
)
def test_why_a_pod_does_not_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, said: str) -> None:
    async def run(pod: str) -> supervisor.Outcome:
        loops_made.append(asyncio.get_running_loop())
        raise error

    loops_made: list[asyncio.AbstractEventLoop] = []
    monkeypatch.setattr(supervisor, "_run", run)
    monkeypatch.setattr(os, "_exit", lambda _: None)
    supervisor.main(["supervisor", "web"])
    assert capsys.readouterr().err == said
    loops_made[0].close()


def test_threads_that_hang_do_not_hold_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to xenstored that never comes back."""

    async def run(pod: str) -> supervisor.Outcome:
        loop = asyncio.get_running_loop()
        loops.append(loop)
        with suppress(TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(None, lambda: answered.wait(20)), 0.05)
        return supervisor.Outcome(3)

    def leave(status: int) -> None:
        left.append((status, answered.is_set()))

    answered, left, loops = threading.Event(), list[tuple[int, bool]](), list[asyncio.AbstractEventLoop]()
    monkeypatch.setattr(supervisor, "_run", run)
    monkeypatch.setattr(os, "_exit", leave)
    began = time.monotonic()
    supervisor.main(["supervisor", "web"])
    assert time.monotonic() - began < 15
    assert left == [(3, False)]
    answered.set()
    loops[0].close()


def test_restarts_that_nobody_saw(layout: Layout) -> None:
    async def end_twice() -> dict[str, int]:
        watcher = Supervisor("web", layout)
        for status in ("1", "2"):
            watcher._take(console.Ended("web", ("exited", status, "exit-code")))
        return watcher._restarts

    assert asyncio.run(end_twice()) == {"web": 1}


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/dev/sda", "/dev/pts/../null", "/dev/pts/", "/dev/pts/1/", "pts/1", "", "/dev/pts/\u0661"]
)
def test_a_console_is_a_terminal(path: str) -> None:
    with pytest.raises(StateError, match="is no terminal"):
        open_terminal(path)


def test_a_terminal_is_opened() -> None:
    ours, theirs = os.openpty()
    os.close(open_terminal(os.ttyname(theirs)))
    os.close(ours)
    os.close(theirs)

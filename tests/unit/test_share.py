# SPDX-License-Identifier: Apache-2.0
"""The file server of Xen guests, as its client and as an attacker who is the guest's kernel; and the ring between them, in plain memory."""

import errno
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import struct
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pyxs

from rktd_units import mounts, tasks, xenring
from rktd_units.share import calls, device, wire
from rktd_units.share.device import Service
from rktd_units.share.files import check_name
from rktd_units.share.server import MAX_FIDS, Server
from rktd_units.share.wire import Fields, Kind, u16, u32, u64
from rktd_units.xenring import Ring, RingError

SIZE = 65536
ROOT = 1


class Client:
    """Sends requests as Linux does. Errors of the server are OSError."""

    def __init__(self, directory: Path, max_fids: int = MAX_FIDS) -> None:
        root = os.open(directory, os.O_PATH)
        self.server = Server(root, SIZE, max_fids)
        self.ask(Kind.VERSION, u32(SIZE) + wire.text(b"9P2000.L"))
        self.ask(Kind.ATTACH, u32(ROOT) + u32(wire.NO_FID) + wire.text(b"u") + wire.text(b"") + u32(os.getuid()))

    def ask(self, kind: int, body: bytes) -> Fields:
        answer = self.server.answer(wire.message(kind, 7, body))
        size, found, tag = wire.HEADER.unpack_from(answer)
        assert (size, tag) == (len(answer), 7)
        fields = Fields(answer[wire.HEADER.size :])
        if found == Kind.LERROR + 1:
            number = fields.u32()
            raise OSError(number, os.strerror(number))
        assert found == kind + 1
        return fields

    def walk(self, new: int, *names: bytes, start: int = ROOT) -> int:
        return self.ask(Kind.WALK, u32(start) + u32(new) + u16(len(names)) + b"".join(map(wire.text, names))).u16()

    def open(self, fid: int, flags: int = os.O_RDONLY) -> None:
        self.ask(Kind.LOPEN, u32(fid) + u32(flags))

    def create(self, fid: int, name: bytes, mode: int = 0o644) -> None:
        self.ask(Kind.LCREATE, u32(fid) + wire.text(name) + u32(os.O_RDWR) + u32(mode) + u32(os.getgid()))

    def read(self, fid: int, offset: int = 0, count: int = 1000) -> bytes:
        fields = self.ask(Kind.READ, u32(fid) + u64(offset) + u32(count))
        return fields.rest(fields.u32())

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        return self.ask(Kind.WRITE, u32(fid) + u64(offset) + u32(len(data)) + data).u32()

    def names(self, fid: int, count: int = 100) -> list[bytes]:
        """All that a directory has, by as many requests as it takes."""
        found: list[bytes] = []
        offset = 0
        while True:
            fields = self.ask(Kind.READDIR, u32(fid) + u64(offset) + u32(count))
            length = fields.u32()
            if not length:
                return found
            part = Fields(fields.rest(length))
            while length > 0:
                part.rest(13)
                offset = part.u64()
                part.u8()
                found.append(part.text())
                length -= 13 + 8 + 1 + 2 + len(found[-1])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What is exported, with something beside it that is not."""
    (tmp_path / "secret").write_text("the host's own")
    export = tmp_path / "export"
    (export / "sub").mkdir(parents=True)
    (export / "file").write_text("content")
    (export / "out").symlink_to(tmp_path / "secret")
    (export / "up").symlink_to("..")
    os.mkfifo(export / "fifo")
    return export


@pytest.fixture
def client(tree: Path) -> Iterator[Client]:
    client = Client(tree)
    yield client
    client.server.close()


def test_files_are_read_and_written(client: Client, tree: Path) -> None:
    assert client.walk(2, b"file") == 1
    client.open(2, os.O_RDWR)
    assert client.read(2, 3) == b"tent"
    assert client.write(2, b"XX", 7) == 2
    assert (tree / "file").read_bytes() == b"contentXX"
    assert client.walk(3, b"sub") == 1
    client.create(3, b"new", 0o4751)
    client.write(3, b"made")
    assert (tree / "sub/new").read_bytes() == b"made"
    assert stat.S_IMODE((tree / "sub/new").stat().st_mode) == 0o4751


def test_directories_are_listed_in_parts(client: Client, tree: Path) -> None:
    for number in range(50):
        (tree / f"sub/{number:03}").touch()
    client.walk(2, b"sub")
    client.open(2)
    assert sorted(client.names(2)) == [b".", b"..", *(f"{n:03}".encode() for n in range(50))]


def test_names_change(client: Client, tree: Path) -> None:
    client.walk(2, b"sub")
    root, sub, gid = u32(ROOT), u32(2), u32(os.getgid())
    client.ask(Kind.MKDIR, sub + wire.text(b"d") + u32(0o2775) + gid)
    assert stat.S_IMODE((tree / "sub/d").stat().st_mode) == 0o2775
    client.ask(Kind.SYMLINK, sub + wire.text(b"l") + wire.text(b"/etc/shadow") + gid)
    assert os.readlink(tree / "sub/l") == "/etc/shadow"
    client.ask(Kind.RENAMEAT, root + wire.text(b"file") + sub + wire.text(b"moved"))
    client.walk(3, b"sub", b"moved")
    client.ask(Kind.LINK, root + u32(3) + wire.text(b"hard"))
    assert (tree / "hard").samefile(tree / "sub/moved")
    client.ask(Kind.UNLINKAT, sub + wire.text(b"d") + u32(0x200))
    client.ask(Kind.UNLINKAT, sub + wire.text(b"l") + u32(0))
    assert sorted(os.listdir(tree / "sub")) == ["moved"]


def test_attributes_change(client: Client, tree: Path) -> None:
    client.walk(2, b"file")
    times = u64(0) * 2 + u64(1_000_000_000) + u64(5)
    client.ask(Kind.SETATTR, u32(2) + u32(1 | 8 | 32 | 256) + u32(0o600) + u32(0) + u32(0) + u64(3) + times)
    status = (tree / "file").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_size, status.st_mtime_ns) == (0o600, 3, 10**18 + 5)


def test_a_fid_is_the_file_and_not_its_name(client: Client, tree: Path) -> None:
    client.walk(2, b"file")
    (tree / "file").rename(tree / "elsewhere")
    (tree / "file").symlink_to("out")
    client.open(2)
    assert client.read(2) == b"content"


def test_links_are_the_guests_to_follow(client: Client, tree: Path) -> None:
    """Walked to, they are links; nothing is found below them, and they are not opened."""
    assert client.walk(2, b"out") == 1
    assert client.ask(Kind.READLINK, u32(2)).text() == os.fsencode(tree.parent / "secret")
    with pytest.raises(OSError, match="Permission denied"):
        client.open(2)
    assert client.walk(3, b"up", b"secret") == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        client.open(3)
    with pytest.raises(OSError, match="File exists"):
        client.create(ROOT, b"out")
    assert (tree.parent / "secret").read_text() == "the host's own"


@pytest.mark.parametrize("name", [b"..", b".", b"", b"sub/x", b"/etc", b"a\0b", b"x" * 256])
def test_names_have_one_component(client: Client, name: bytes) -> None:
    with pytest.raises(OSError, match=r"Invalid argument|File name too long"):
        client.walk(2, name)
    with pytest.raises(OSError, match=r"Invalid argument|File name too long"):
        client.create(ROOT, name)
    with pytest.raises(OSError, match=r"not a name|too long"):
        check_name(name)


def test_only_files_and_directories_are_opened(client: Client) -> None:
    """Opening a pipe would make the server wait for a process of the host."""
    client.walk(2, b"fifo")
    with pytest.raises(OSError, match="Permission denied"):
        client.open(2)


def test_no_device_nodes(client: Client, tree: Path) -> None:
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        with pytest.raises(OSError, match="Operation not permitted"):
            client.ask(Kind.MKNOD, u32(ROOT) + wire.text(b"dev") + u32(kind | 0o666) + u32(1) + u32(3) + u32(os.getgid()))
    client.ask(Kind.MKNOD, u32(ROOT) + wire.text(b"pipe") + u32(stat.S_IFIFO | 0o600) + u32(0) + u32(0) + u32(os.getgid()))
    assert (tree / "pipe").is_fifo()


def test_locks_are_the_hosts_too(client: Client, tree: Path) -> None:
    import fcntl

    client.walk(2, b"file")
    client.open(2, os.O_RDWR)
    lock = bytes((1,)) + u32(0) + u64(0) + u64(0) + u32(1) + wire.text(b"host")
    with (tree / "file").open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert client.ask(Kind.LOCK, u32(2) + lock).u8() == 1
        assert client.ask(Kind.GETLOCK, u32(2) + bytes((1,)) + u64(0) + u64(0) + u32(1) + wire.text(b"host")).u8() == 1
        fcntl.lockf(file, fcntl.LOCK_UN)
        assert client.ask(Kind.LOCK, u32(2) + lock).u8() == 0
        with pytest.raises(BlockingIOError, match="unavailable"):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("kind", "body", "number"),
    [
        (Kind.READ, u32(99) + u64(0) + u32(1), errno.EBADF),
        (Kind.READ, u32(ROOT) + u64(0) + u32(1), errno.EBADF),
        (Kind.WALK, u32(99) + u32(2) + u16(0), errno.EBADF),
        (Kind.WALK, u32(ROOT) + u32(2) + u16(17), errno.EINVAL),
        (Kind.CLUNK, u32(99), errno.EBADF),
        (Kind.AUTH, b"", errno.EOPNOTSUPP),
        (Kind.REMOVE, u32(99), errno.EBADF),
        (Kind.XATTRWALK, b"", errno.EOPNOTSUPP),
        (200, b"", errno.EOPNOTSUPP),
        (Kind.SETATTR, u32(ROOT) + u32(32 | 256) + bytes(20) + u64(0) * 2 + u64(2**64 - 1) + u64(0), errno.EINVAL),
    ],
)
def test_nonsense_is_refused(client: Client, kind: int, body: bytes, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        client.ask(kind, body)


@pytest.mark.parametrize("message", [b"", b"\x07\0\0\0\x76\1\0", wire.message(Kind.WALK, 1, u32(1) + u32(2) + u16(1) + u16(500))])
def test_broken_messages_end_it(client: Client, message: bytes) -> None:
    with pytest.raises(wire.WireError, match=r"ends too soon|without a header"):
        client.server.answer(message)


def test_fids_are_bounded(client: Client) -> None:
    client.server._max_fids = 10
    before = len(os.listdir("/proc/self/fd"))
    for fid in range(2, 11):
        client.walk(fid)
    for fid in range(11, 30):
        with pytest.raises(OSError, match="Too many open files"):
            client.walk(fid)
    assert len(os.listdir("/proc/self/fd")) == before + 9


def run_apart(action: Callable[[], None]) -> None:
    """In a process of its own, whose limits and powers are changed for good."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_service_of_systemd_may_have_all_fids(tree: Path) -> None:
    """Whose soft limit of descriptors is 1024. Two for each that is open."""

    def hold_many() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        allowed = device.allow_descriptors()
        assert allowed == min(MAX_FIDS, (hard - 64) // 2)
        client = Client(tree, allowed)
        before = len(os.listdir("/proc/self/fd"))
        for fid in range(2, 2002):
            client.walk(fid, b"file")
            client.open(fid)
        assert len(os.listdir("/proc/self/fd")) == before + 4000

    run_apart(hold_many)


def test_fewer_descriptors_mean_fewer_fids(tree: Path) -> None:
    """The hard limit is the administrator's. What is refused then is a fid, and never half of a request with one that is there."""

    def hold_few() -> None:
        os.closerange(3, 1 << 14)  # of other tests
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        client = Client(tree, device.allow_descriptors())
        last = (256 - 64) // 2
        for fid in range(2, last + 1):
            client.walk(fid)
        with pytest.raises(OSError, match="Too many open files"):
            client.walk(last + 1)
        for fid in range(2, last):
            client.open(fid)
        client.create(last, b"last")
        client.ask(Kind.MKDIR, u32(ROOT) + wire.text(b"made") + u32(0o755) + u32(os.getgid()))
        assert len(client.names(2)) == 9

    run_apart(hold_few)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter is of x86-64")
@pytest.mark.parametrize(
    "test",
    [
        test_files_are_read_and_written,
        test_directories_are_listed_in_parts,
        test_names_change,
        test_attributes_change,
        test_a_fid_is_the_file_and_not_its_name,
        test_links_are_the_guests_to_follow,
        test_no_device_nodes,
    ],
)
def test_the_servers_filter_lets_it_serve(tree: Path, test: Callable[[Client, Path], None]) -> None:
    def serve() -> None:
        client = Client(tree)
        tasks.forbid_new_privileges()
        tasks.install_filter(calls.render_filter())
        test(client, tree)
        fid = 99
        client.walk(fid)
        client.create(fid, b"whole")
        client.ask(Kind.STATFS, u32(fid))
        client.ask(Kind.GETATTR, u32(fid) + u64(0))
        lock = bytes((1,)) + u32(0) + u64(0) + u64(0) + u32(1) + wire.text(b"host")
        assert client.ask(Kind.LOCK, u32(fid) + lock).u8() == 0
        client.ask(Kind.GETLOCK, u32(fid) + bytes((1,)) + u64(0) + u64(0) + u32(1) + wire.text(b"host"))
        client.ask(Kind.FSYNC, u32(fid) + u32(0))
        assert len(bytearray(64 << 20)) == 64 << 20

    run_apart(serve)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter is of x86-64")
def test_the_servers_filter_refuses_what_leads_out() -> None:
    """Whoever has taken the server over is root, whom processes and sockets of the host's root obey."""

    def try_all() -> None:
        parent, (pipe, _) = os.getppid(), os.pipe()
        tasks.forbid_new_privileges()
        tasks.install_filter(calls.render_filter())
        for action in (
            lambda: os.kill(parent, 0),
            lambda: os.pidfd_open(parent),
            lambda: os.setpriority(os.PRIO_PROCESS, parent, 0),
            lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
            os.fork,
            lambda: os.execv("/bin/true", ["true"]),
            lambda: socket.socket(socket.AF_UNIX),
            lambda: mounts.clone_tree("/"),
            lambda: mounts.unshare(mounts.CLONE_NEWUSER),
            lambda: fcntl.fcntl(pipe, fcntl.F_SETOWN, parent),  # SIGIO, to whom it may concern
            lambda: fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL),
            lambda: fcntl.fcntl(pipe, 15, struct.pack("ii", 1, parent)),  # F_SETOWN_EX
        ):
            with pytest.raises(PermissionError, match="Operation not permitted"):
                action()
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_NONBLOCK)

    run_apart(try_all)


def test_listings_are_bounded_all_together(client: Client, tree: Path) -> None:
    """An open directory keeps its entries until they are read to the end, or it is closed."""
    for number in range(20):
        (tree / f"sub/{number:0200}").touch()
    per = 22 * (8 + 24) + 3 + 20 * 200 + 8  # with . and ..
    client.server._listings._left = 2 * per
    for fid in range(2, 6):
        client.walk(fid, b"sub")
        client.open(fid)

    def list_first(fid: int) -> int:
        return client.ask(Kind.READDIR, u32(fid) + u64(0) + u32(300)).u32()

    for _ in range(3):
        assert list_first(2) > 0
        assert list_first(3) > 0
        for _ in range(2):
            with pytest.raises(OSError, match="Cannot allocate memory"):
                list_first(4)
    client.ask(Kind.CLUNK, u32(2))
    assert len(client.names(3, 300)) == 22
    assert list_first(4) > 0
    assert list_first(5) > 0
    client.server.close()
    assert client.server._listings._left == 2 * per


def test_an_open_fid_is_neither_opened_nor_created_again(client: Client) -> None:
    client.walk(2, b"sub")
    client.open(2)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        with pytest.raises(OSError, match="Device or resource busy"):
            client.create(2, b"%d" % number)
        with pytest.raises(OSError, match="Device or resource busy"):
            client.open(2)
    assert len(os.listdir("/proc/self/fd")) == before


def make_pair(size: int) -> tuple[Ring, Ring]:
    words, data = memoryview(bytearray(4096)).cast("I"), memoryview(bytearray(2 * size))
    return Ring(words, data, -1, 0, is_back=False), Ring(words, data, -1, 0, is_back=True)


def test_rings_carry_bytes_around_their_end() -> None:
    front, back = make_pair(64)
    for number in range(100):
        text = bytes((number,)) * 48
        assert (front.space(), back.available()) == (64, 0)
        front.write(text)
        assert (front.space(), back.available()) == (16, 48)
        assert back.peek(48) == back.read(48) == text
        back.write(text[:5])
        assert front.read(5) == text[:5]


def test_nodes_are_removed_with_parents_that_are_empty_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the program that does it in a transaction: what another pod writes meanwhile is not among what goes."""
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr("rktd_units.proc.run", lambda argv, **_: ran.append(argv))
    device.remove_nodes(7)
    assert ran == [("/usr/bin/xenstore-rm", "-t", path) for path in device.nodes_of(7)]


def test_the_server_has_no_connection_to_xenstore(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection could write anywhere in xenstore, and its thread would keep all of root's powers: both go before it is confined."""
    told: list[str] = []

    class Store:
        def __enter__(self) -> "Store":
            return self

        def __exit__(self, *_: object) -> None:
            told.append("closed")

        def write(self, *_: bytes) -> None:
            told.append("announced")

        set_perms = write

        def read(self, path: bytes) -> bytes:
            return {b"state": b"3", b"version": b"1", b"num-rings": b"2"}.get(path.rpartition(b"/")[2], b"8")

    def confine(_: object) -> int:
        told.append("confined")
        return os.open(tree, os.O_PATH)

    monkeypatch.setattr("pyxs.Client", Store)
    monkeypatch.setattr(device, "map_ring", lambda *_: told.append("mapped"))
    monkeypatch.setattr(device, "clone_exports", lambda _: {})
    monkeypatch.setattr(device, "confine", confine)
    monkeypatch.setattr(device, "allow_descriptors", lambda: 100)
    monkeypatch.setattr(device, "give_up_powers", lambda _: told.append("powerless"))
    monkeypatch.setattr(device.Service, "serve", lambda *_: told.append("serves"))
    monkeypatch.setattr("os.umask", lambda _: 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert device.main(["share", "7", "{}"]) == 0
    assert list(dict.fromkeys(told)) == ["announced", "mapped", "closed", "confined", "powerless", "serves"]


class Nodes:
    """A xenstore in which a guest has written this."""

    def __init__(self, **values: str) -> None:
        self._values = {"state": "3", "version": "1", "num-rings": "2", "ring-ref0": "8", "event-channel-0": "9", **values}

    def read(self, path: bytes) -> bytes:
        return self._values[path.decode().rpartition("/")[2]].encode()


@pytest.mark.parametrize("value", ["", "-1", "x", "4294967296", "9" * 5000, "1 "])
@pytest.mark.parametrize("name", ["ring-ref0", "event-channel-0"])
def test_rings_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setattr(device, "map_ring", lambda *_: None)
    with pytest.raises(RingError, match=f"^{name} is '.{{0,40}}'$"):
        device.Device(Nodes(**{name: value}), 7).await_rings(select.poll())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOENT, "No such file or directory", "/srv/gone"), "/srv/gone: No such file or directory"),
        (OSError(errno.EINVAL, "Invalid argument"), "Invalid argument"),
        (pyxs.PyXSError("no xenstored"), "xenstore: no xenstored"),
        (RingError("a ring of order 9"), "the guest's kernel does not keep to the protocol: a ring of order 9"),
        (wire.WireError("a message of 3 bytes"), "the guest's kernel does not keep to the protocol: a message of 3 bytes"),
    ],
    ids=["hostPath", "call", "xenstore", "ring", "message"],
)
def test_what_ends_the_server_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(device, "serve_exports", fail)
    monkeypatch.setattr("os.umask", lambda _: 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert device.main(["share", "7", "{}"]) == 1
    assert capsys.readouterr().err == f"<3>the volumes of the pod cannot be served: {said}\n"


def test_a_ring_that_cannot_be_mapped_is_the_guests_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a device that the host lacks."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(device, "map_ring", fail)
    error = OSError(errno.EINVAL, "Invalid argument")
    with pytest.raises(RingError, match=r"^ring 0 \(grant 8, port 9\) cannot be had: Invalid argument$"):
        device.Device(Nodes(), 7).await_rings(select.poll())
    error = OSError(errno.ENOENT, "No such file or directory", "/dev/xen/gntdev")
    with pytest.raises(FileNotFoundError, match="gntdev"):
        device.Device(Nodes(), 7).await_rings(select.poll())


def test_a_guest_that_never_stops_asking_keeps_no_other_waiting(client: Client) -> None:
    """Nor the end: after some requests the other ring is looked at, and the pipe whose end says that it is over."""
    request = wire.message(Kind.CLUNK, 1, u32(99))
    reads, alive = os.pipe()
    answered: list[str] = []

    class Quiet(Ring):
        """Its event channel is an eventfd of this process, and nobody is called."""

        def __init__(self, name: str) -> None:
            self.name = name
            words, data = memoryview(bytearray(4096)).cast("I"), memoryview(bytearray(2 * 4096))
            self.front = Ring(words, data, -1, 0, is_back=False)
            self.front.write(request)
            super().__init__(words, data, os.eventfd(0, os.EFD_NONBLOCK), 0, is_back=True)

        def call(self) -> None:
            answered.append(self.name)
            assert len(answered) < 1000
            self.front.read(self.front.available())
            if self.name == "flood":
                self.front.write(request)
            else:  # who started us goes
                os.close(reads)

    rings = [Quiet("flood"), Quiet("other")]
    Service(client.server, [*rings]).serve(alive)
    assert answered.count("other") == 1
    for descriptor in (alive, *(ring.fileno() for ring in rings)):
        os.close(descriptor)


def test_a_bind_that_fails_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> tuple[int, bytes]:
        raise OSError(errno.EINVAL, "no such port")

    monkeypatch.setattr(xenring, "_EVTCHN", "/dev/null")
    monkeypatch.setattr(xenring, "_ioctl", fail)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no such port"):
        xenring._bind(0, b"")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("word", [0, 17])
def test_impossible_positions_are_found(word: int) -> None:
    """in_cons and out_prod, which the other domain writes."""
    words = memoryview(bytearray(4096)).cast("I")
    ring = Ring(words, memoryview(bytearray(128)), -1, 0, is_back=True)
    words[word] = 65
    with pytest.raises(RingError, match=r"bytes are said to be in a ring of 64"):
        ring.available() if word == 17 else ring.space()


def test_our_own_positions_are_not_the_other_domains_to_change() -> None:
    words = memoryview(bytearray(4096)).cast("I")
    ring = Ring(words, memoryview(bytearray(128)), -1, 0, is_back=True)
    words[16] = words[1] = 40
    assert (ring.available(), ring.space()) == (0, 64)

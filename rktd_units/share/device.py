# SPDX-License-Identifier: Apache-2.0
"""`share DOMAIN EXPORTS`: serves directories of the host to one Xen guest, behind its kernel's 9pfs device (docs/xen-volumes.md).

EXPORTS is a JSON object: name -> [path, "ro" or "rw"]. It runs until the guest, or who started it, has gone. Once it has mounted the
exports it sees nothing else of the host, and of root's powers it keeps those over files.
"""

import json
import os
import resource
import select
import signal
import stat
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyxs

from rktd_units import mounts, tasks
from rktd_units.share import calls, wire
from rktd_units.share.server import MAX_FIDS, Server
from rktd_units.xenring import MAX_ORDER, PAGE, Ring, RingError, map_ring

TAG = "rktd"  # what the guest mounts, once: the kernel has one client for each device. The exports are directories in it
_ALIVE = 1
RINGS = 2  # the Linux kernel insists
MAX_MESSAGE = PAGE << (MAX_ORDER - 2)  # half a ring
_INITIALISING, _INIT_WAIT, _INITIALISED, _CONNECTED, _CLOSING, _CLOSED = 1, 2, 3, 4, 5, 6
_HARMLESS = mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
_STEP = 200  # milliseconds between two looks while the guest boots
_XENSTORE_RM = "/usr/bin/xenstore-rm"
_RM_TIMEOUT = 10.0  # seconds
_DIGITS_MAX = 9  # of grants and ports: 32 bits
_SHOWN_MAX = 40  # characters of a guest's nonsense
_TURN = 64  # requests, after which the other ring, and whether we are to end, is looked at
_CLONE_NEWIPC, _CLONE_NEWUTS, _CLONE_NEWNET = 0x08000000, 0x04000000, 0x40000000
# CHOWN, DAC_OVERRIDE, FOWNER, FSETID. Not DAC_READ_SEARCH, with which open_by_handle_at(2) leads out of the exports.
_KEPT = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4
_MEMORY_MAX = 256 << 20  # of the process: some 100 MB with all fids and listings that a guest may have
_DESCRIPTORS_PER_FID = 2  # of an open one: its place (O_PATH), and the file
_DESCRIPTORS_SPARE = 64  # our own, and those of one request at a time


class Nodes(NamedTuple):
    """Where the device stands in xenstore."""

    back: str
    front: str


def nodes_of(domain: int) -> Nodes:
    return Nodes(f"/local/domain/0/backend/9pfs/{domain}/0", f"/local/domain/{domain}/device/9pfs/0")


def remove_nodes(domain: int) -> None:
    """For who started us. Parents that are empty then go in the same transaction, so that nobody's new nodes go with them.

    Nodes that are not there are fine. Raises RktdError where xenstored does not answer.
    """
    from rktd_units.proc import run

    for path in nodes_of(domain):
        run((_XENSTORE_RM, "-t", path), check=False, timeout=_RM_TIMEOUT)


class Device:
    """One guest's device."""

    def __init__(self, store: Any, domain: int) -> None:
        self._store = store
        self._domain = domain
        self._nodes = nodes_of(domain)

    def announce(self) -> None:
        """Writes what xl would; the guest's kernel finds it, at boot or later."""
        back, front = self._nodes
        domain = self._domain
        values = {"frontend": front, "frontend-id": str(domain), "online": "1", "versions": "1"}
        values |= {"max-rings": str(RINGS), "max-ring-page-order": str(MAX_ORDER), "state": str(_INIT_WAIT)}
        for path, permissions, entries in (
            (back, ("n0", f"r{domain}"), values),
            (front, (f"n{domain}", "r0"), {"backend": back, "backend-id": "0", "tag": TAG, "state": str(_INITIALISING)}),
        ):
            self._store.write(path.encode(), b"")
            self._store.set_perms(path.encode(), [word.encode() for word in permissions])
            for key, value in entries.items():
                self._store.write(f"{path}/{key}".encode(), value.encode())
                self._store.set_perms(f"{path}/{key}".encode(), [word.encode() for word in permissions])

    def await_rings(self, alive: select.poll) -> list[Ring]:
        """Until the guest's kernel has come up; none if the guest, or who started us, has gone."""
        while (state := self._read("state")) not in (str(_INITIALISED), str(_CLOSED), ""):
            if alive.poll(_STEP):
                return []
        if state != str(_INITIALISED):
            return []
        if self._read("version") != "1" or self._read("num-rings") != str(RINGS):
            raise RingError("another version of the protocol")
        rings = []
        for index in range(RINGS):
            reference, port = self._read_number(f"ring-ref{index}"), self._read_number(f"event-channel-{index}")
            try:
                rings.append(map_ring(self._domain, reference, port))
            except OSError as error:
                if error.filename:  # a device of the host's own
                    raise
                raise RingError(f"ring {index} (grant {reference}, port {port}) cannot be had: {error.strerror}") from error
        self._store.write(f"{self._nodes.back}/state".encode(), str(_CONNECTED).encode())
        return rings

    def _read_number(self, name: str) -> int:
        """What the guest has written there is a grant or a port, or RingError."""
        text = self._read(name)
        if not text.isdecimal() or len(text) > _DIGITS_MAX:
            raise RingError(f"{name} is {text[:_SHOWN_MAX]!r}")
        return int(text)

    def _read(self, name: str) -> str:
        try:
            return str(self._store.read(f"{self._nodes.front}/{name}".encode()).decode("ascii", "replace"))
        except pyxs.PyXSError:
            return ""


class Service:
    """Requests from the rings to the server, answers back: one after another, so that none needs a thread or a lock."""

    def __init__(self, server: Server, rings: list[Ring]) -> None:
        self._server = server
        self._rings = rings
        self._waiting: list[bytes] = [b""] * len(rings)  # an answer that its ring had no space for

    def serve_ring(self, index: int) -> bool:
        """Up to _TURN requests; whether there may be more. Raises RingError, WireError for nonsense."""
        ring = self._rings[index]
        for _ in range(_TURN):
            if answer := self._waiting[index]:
                if ring.space() < len(answer):
                    return False
                ring.write(answer)
                ring.call()
                self._waiting[index] = b""
            if ring.available() < wire.HEADER.size:
                return False
            size, _, _ = wire.HEADER.unpack(ring.peek(wire.HEADER.size))
            if not wire.HEADER.size <= size <= min(self._server.size, ring.size):
                raise wire.WireError(f"a message of {size} bytes")
            if ring.available() < size:
                return False
            self._waiting[index] = self._server.answer(ring.read(size))
        return True

    def serve(self, alive: int) -> None:
        """Until the pipe `alive` has no reader any more: who started us has gone."""
        poller = select.poll()
        poller.register(alive, 0)
        for ring in self._rings:
            poller.register(ring.fileno(), select.POLLIN)
        busy = set(range(len(self._rings)))
        while True:
            ready = {descriptor for descriptor, _ in poller.poll(0 if busy else None)}
            if alive in ready:
                return
            for index, ring in enumerate(self._rings):
                if ring.fileno() in ready:
                    ring.clear()
                    busy.add(index)
                if index in busy and not self.serve_ring(index):
                    busy.remove(index)


def clone_exports(exports: Mapping[str, tuple[str, bool]]) -> dict[str, int]:
    """A mount of each, detached."""
    trees = {}
    for name, (path, read_only) in exports.items():
        tree = mounts.clone_tree(os.path.realpath(path), recursive=True)
        mounts.set_attributes(tree, _HARMLESS | (mounts.ATTR_RDONLY if read_only else 0), recursive=True, what=path)
        trees[name] = tree
    return trees


def confine(trees: Mapping[str, int]) -> int:
    """Leaves the host's file systems but for the exports, the directories of one whose descriptor it gives. Later imports find nothing."""
    mounts.unshare(mounts.CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWNET)
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    mounts.set_attributes(root, 0, recursive=True)
    new = "/run"
    mounts.attach(mounts.new_mount("tmpfs", (("mode", "0755"), ("size", "64k")), _HARMLESS), new)
    os.chdir(new)
    for name in ("proc", "exports"):
        os.mkdir(name)
    # hidepid: of /proc it needs its own descriptors, and is to see no other process.
    mounts.attach(mounts.new_mount("proc", (("hidepid", "invisible"), ("subset", "pid")), _HARMLESS), "proc")
    mounts.attach(mounts.new_mount("tmpfs", (("mode", "0755"), ("size", "64k")), _HARMLESS), "exports")
    for name, tree in trees.items():
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.mkdir(f"exports/{name}")
        else:
            os.close(os.open(f"exports/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        mounts.attach(tree, f"exports/{name}")
        os.close(tree)
    mounts.pivot_root()
    exported = os.open("/exports", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.set_attributes(exported, mounts.ATTR_RDONLY)
    return exported


def allow_descriptors() -> int:
    """Raises our limit to what all fids may need, as far as the hard one allows it; how many fids that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FIDS * _DESCRIPTORS_PER_FID + _DESCRIPTORS_SPARE
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(limit - _DESCRIPTORS_SPARE, 0) // _DESCRIPTORS_PER_FID


def give_up_powers(last: int) -> None:
    """`last`: the last capability that the kernel knows."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_MAX, _MEMORY_MAX))
    tasks.limit_bounding_set(_KEPT, last)
    tasks.forbid_new_privileges()
    tasks.set_capabilities(_KEPT, _KEPT, 0, 0)
    tasks.forbid_dumps()
    tasks.install_filter(calls.render_filter())


def main(argv: list[str]) -> int:
    """Standard output is the life line, a pipe: when nobody reads it any more, we end."""
    exports = {name: (path, mode == "ro") for name, (path, mode) in json.loads(argv[2]).items()}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.umask(0)
    try:
        serve_exports(int(argv[1]), exports)
    except (RingError, wire.WireError) as error:
        reason = f"the guest's kernel does not keep to the protocol: {error}"
    except pyxs.PyXSError as error:
        reason = f"xenstore: {error}"
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    else:
        return 0
    sys.stderr.write(f"<3>the volumes of the pod cannot be served: {reason}\n")
    return 1


def serve_exports(domain: int, exports: Mapping[str, tuple[str, bool]]) -> None:
    """Until it is over. Raises what `main` tells."""
    trees = clone_exports(exports)
    alive = select.poll()
    alive.register(_ALIVE, 0)
    with pyxs.Client() as store:  # it may write to all of xenstore, from a thread of its own: both have gone before a request is read
        device = Device(store, domain)
        device.announce()
        rings = device.await_rings(alive)
    if not rings:
        return
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    server = Server(confine(trees), MAX_MESSAGE, allow_descriptors())
    give_up_powers(last)
    Service(server, rings).serve(_ALIVE)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

# SPDX-License-Identifier: Apache-2.0
"""A pair of byte rings in memory that two Xen domains share, and the event channel that wakes the other side (/dev/xen/*).

The layout is Xen's own (public/io/ring.h, DEFINE_XEN_FLEX_RING_AND_INTF), which the kernel's 9pfs device has, too. What the other domain
writes is hostile: positions are checked at each look, and data is copied before it is looked at.

Python has no memory barriers. On x86 none is needed: stores are seen in their order, and so are loads (Intel SDM 3A, 10.2.2). On others
a position could be seen before the data that it stands for: guests.check_host refuses them.
"""

import fcntl
import mmap
import os
import struct
from contextlib import suppress

PAGE = 4096
MAX_ORDER = 7  # 128 pages, half of them for each direction
_GNTDEV, _EVTCHN, _GNTALLOC = "/dev/xen/gntdev", "/dev/xen/evtchn", "/dev/xen/gntalloc"
# include/uapi/xen/{gntdev,evtchn,gntalloc}.h: _IOC(_IOC_NONE, letter, number, size)
_MAP_GRANT_REF, _BIND_INTERDOMAIN, _BIND_UNBOUND, _NOTIFY = 0x184700, 0x084501, 0x044502, 0x044504
_ALLOC_GREF = 0x184705
_WRITABLE = 1
# struct xen_9pfs_data_intf, in 32-bit words: in_cons, in_prod, ..., out_cons, out_prod, ..., ring_order, ref[]
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD, _RING_ORDER, _REFS = 0, 1, 16, 17, 32, 33
_WRAP = 1 << 32


class RingError(Exception):
    """The other domain does not keep to the protocol."""


class Ring:
    """One end. `is_back`: the end that maps what the other domain has granted; it reads from `out` and writes to `in`."""

    def __init__(self, words: "memoryview[int]", data: "memoryview[int]", events: int, port: int, *, is_back: bool) -> None:
        self._words = words
        self._size = len(data) // 2
        into, out = data[: self._size], data[self._size :]
        self._source, self._target = (out, into) if is_back else (into, out)
        self._read_cons, self._read_prod = (_OUT_CONS, _OUT_PROD) if is_back else (_IN_CONS, _IN_PROD)
        self._write_cons, self._write_prod = (_IN_CONS, _IN_PROD) if is_back else (_OUT_CONS, _OUT_PROD)
        # Our own positions are kept here: what stands in the shared page is for the other side.
        self._consumed = words[self._read_cons]
        self._produced = words[self._write_prod]
        self._events = events
        self._port = port

    @property
    def size(self) -> int:
        """How much one direction holds."""
        return self._size

    def fileno(self) -> int:
        """Readable when the other side has called."""
        return self._events

    def available(self) -> int:
        """How much can be read. Raises RingError for an impossible position."""
        return self._between(self._words[self._read_prod], self._consumed)

    def space(self) -> int:
        """How much can be written."""
        return self._size - self._between(self._produced, self._words[self._write_cons])

    def taken(self) -> int:
        """Another number as soon as the other side takes anything of what was written to it."""
        return self._words[self._write_cons]

    def _between(self, later: int, earlier: int) -> int:
        length = (later - earlier) % _WRAP
        if length > self._size:
            raise RingError(f"{length} bytes are said to be in a ring of {self._size}")
        return length

    def peek(self, length: int) -> bytes:
        """A copy of the next `length` bytes, which must be available."""
        start = self._consumed % self._size
        first = bytes(self._source[start : start + length])
        return first + bytes(self._source[: length - len(first)])

    def read(self, length: int) -> bytes:
        data = self.peek(length)
        self._consumed = (self._consumed + length) % _WRAP
        self._words[self._read_cons] = self._consumed
        return data

    def write(self, data: bytes) -> None:
        """All of it, for which there must be space; the other side sees it at once as a whole."""
        start = self._produced % self._size
        first = min(len(data), self._size - start)
        self._target[start : start + first] = data[:first]
        self._target[: len(data) - first] = data[first:]
        self._produced = (self._produced + len(data)) % _WRAP
        self._words[self._write_prod] = self._produced

    def call(self) -> None:
        """Tells the other side to look."""
        _ioctl(self._events, _NOTIFY, struct.pack("=I", self._port))

    def clear(self) -> None:
        """Takes a call; look at the ring after it, or one that comes meanwhile is lost."""
        with suppress(BlockingIOError):
            port = os.read(self._events, 4)
            os.write(self._events, port)


def map_ring(domain: int, reference: int, remote_port: int) -> Ring:
    """The ring that another domain has granted by its interface page and an unbound event channel. Raises RingError, OSError."""
    gntdev = os.open(_GNTDEV, os.O_RDWR | os.O_CLOEXEC)
    try:
        words = memoryview(_map(gntdev, domain, [reference])).cast("I")
        order = words[_RING_ORDER]
        if not 1 <= order <= MAX_ORDER:
            raise RingError(f"a ring of order {order}")
        data = memoryview(_map(gntdev, domain, list(words[_REFS : _REFS + (1 << order)])))
    finally:
        os.close(gntdev)  # the mappings keep it
    events, port = _bind(_BIND_INTERDOMAIN, struct.pack("=II", domain, remote_port))
    return Ring(words, data, events, port, is_back=True)


def grant_ring(domain: int, order: int) -> tuple[Ring, int, int]:
    """A new ring for another domain: the ring, and the grant reference and port by which that one maps it."""
    gntalloc = os.open(_GNTALLOC, os.O_RDWR | os.O_CLOEXEC)
    try:
        (reference,), page = _grant(gntalloc, domain, 1)
        references, pages = _grant(gntalloc, domain, 1 << order)
    finally:
        os.close(gntalloc)
    words = memoryview(page).cast("I")
    words[_RING_ORDER] = order
    words[_REFS : _REFS + len(references)] = memoryview(struct.pack(f"={len(references)}I", *references)).cast("I")
    events, port = _bind(_BIND_UNBOUND, struct.pack("=I", domain))
    return Ring(words, memoryview(pages), events, port, is_back=False), reference, port


def _bind(number: int, request: bytes) -> tuple[int, int]:
    """An event channel: its descriptor, and its port here."""
    events = os.open(_EVTCHN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        port, _ = _ioctl(events, number, request)
    except BaseException:
        os.close(events)
        raise
    return events, port


def _map(gntdev: int, domain: int, references: list[int]) -> mmap.mmap:
    """Pages that a domain has granted, one after another."""
    pairs = b"".join(struct.pack("=II", domain, reference) for reference in references)
    _, answer = _ioctl(gntdev, _MAP_GRANT_REF, struct.pack("=IIQ", len(references), 0, 0) + pairs)
    (index,) = struct.unpack_from("=Q", answer, 8)
    return mmap.mmap(gntdev, len(references) * PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=index)


def _grant(gntalloc: int, domain: int, count: int) -> tuple[list[int], mmap.mmap]:
    """Pages of our own that the domain may map, and their grant references."""
    _, answer = _ioctl(gntalloc, _ALLOC_GREF, struct.pack("=HHIQ", domain, _WRITABLE, count, 0) + bytes(4 * count + 4))
    (index,) = struct.unpack_from("=Q", answer, 8)
    references = list(struct.unpack_from(f"={count}I", answer, 16))
    return references, mmap.mmap(gntalloc, count * PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=index)


def _ioctl(descriptor: int, number: int, request: bytes) -> tuple[int, bytes]:
    """What it returns, and the request as the kernel has left it."""
    buffer = bytearray(request)
    return fcntl.ioctl(descriptor, number, buffer), bytes(buffer)

# SPDX-License-Identifier: Apache-2.0
"""What is spoken between `podctl exec`, a domain's supervisor and the agent in its guest: frames of many sessions on one stream. Pure.

A frame: session (32 bits), kind (8), length (16), data. Whoever sends INPUT, OUTPUT or ERROR may have WINDOW bytes of a session under way;
GRANT (32 bits) says how many more the other side has taken. So no session fills what all share, and nobody keeps more for any of them.
"""

import struct
from collections.abc import Iterator

HEAD = struct.Struct("<IBH")
NODE = "data/exec"  # in xenstore, below the guest's own: the grant reference and event channel of the ring between the two
WINDOW = 64 * 1024
DATA_MAX = 16 * 1024
# To the guest. OPEN: parts of a JSON object, a last one that is empty ends it.
OPEN, INPUT, END, SIGNAL, SIZE, HANGUP = 1, 2, 3, 4, 5, 6
# From the guest. EXIT: one byte.
OUTPUT, ERROR, EXIT = 16, 17, 18
# Either way.
GRANT = 32


class FrameError(Exception):
    """The other side does not keep to the protocol."""


class Splitter:
    """Frames out of a stream that comes in any pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """(session, kind, data) of what is whole now. Raises FrameError."""
        data = self._rest + data
        at = 0
        while len(data) - at >= HEAD.size:
            session, kind, length = HEAD.unpack_from(data, at)
            if length > DATA_MAX:
                raise FrameError(f"a frame of {length} bytes")
            if len(data) - at < HEAD.size + length:
                break
            at += HEAD.size + length
            yield session, kind, data[at - length : at]
        self._rest = data[at:]


def frame(session: int, kind: int, data: bytes = b"") -> bytes:
    return HEAD.pack(session, kind, len(data)) + data


def grant(session: int, count: int) -> bytes:
    return frame(session, GRANT, count.to_bytes(4, "little"))


def pieces(data: bytes) -> Iterator[bytes]:
    """Of DATA_MAX bytes at most."""
    for start in range(0, len(data), DATA_MAX):
        yield data[start : start + DATA_MAX]


def granted(data: bytes) -> int:
    """Raises FrameError."""
    if len(data) != 4:
        raise FrameError("a grant that is no number")
    return int.from_bytes(data, "little")

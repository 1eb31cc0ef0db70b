# SPDX-License-Identifier: Apache-2.0
"""The thin door to the journal, for records with fields of their own: its native protocol (systemd's JOURNAL_NATIVE_PROTOCOL.md)."""

import array
import errno
import os
import socket
from collections.abc import Sequence

SOCKET = "/run/systemd/journal/socket"


class Journal:
    """One socket. `send` says whether the journal took the record: it blocks nobody."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def send(self, fields: Sequence[tuple[str, bytes]]) -> bool:
        """False while its queue is full; True, too, when there is no journal, as everybody's lines are lost then."""
        data = render_record(fields)
        try:
            self._socket.sendto(data, self._path)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EMSGSIZE, errno.ENOBUFS):
                return self._send_sealed(data)
        return True

    def _send_sealed(self, data: bytes) -> bool:
        """A record that is too large for a datagram goes as a file that nobody can change."""
        descriptor = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(descriptor, data)
            _seal(descriptor)
            rights = array.array("i", [descriptor])
            self._socket.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, self._path)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return True


def _seal(descriptor: int) -> None:
    import fcntl

    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)


def render_record(fields: Sequence[tuple[str, bytes]]) -> bytes:
    """`NAME=value` where the value is of one line, else with its length: nothing in a value is another field."""
    parts = []
    for name, value in fields:
        if b"\n" in value:
            parts.append(name.encode("ascii") + b"\n" + len(value).to_bytes(8, "little") + value + b"\n")
        else:
            parts.append(name.encode("ascii") + b"=" + value + b"\n")
    return b"".join(parts)

# SPDX-License-Identifier: Apache-2.0
"""The kernels of Xen guests: the administrator's choice or the host's own, and such an image unpacked, once for all starts.

xl unpacks a compressed kernel at each start: two seconds of three and a half where the processor is emulated.
"""

import hashlib
import os
import struct
from contextlib import suppress
from typing import NamedTuple

from rktd_units.errors import RktdError, StateError
from rktd_units.images.inflate import ZSTD_MAGIC, find_inflater
from rktd_units.paths import Layout
from rktd_units.runfiles import keep_latest, lock

# Of a bzImage, Documentation/arch/x86/boot.rst: setup_sects, header, kernel_version, payload_offset and payload_length.
_SETUP_AT, _HEADER_AT, _VERSION_AT, _PAYLOAD_AT = 0x1F1, 0x202, 0x20E, 0x248
_SECTOR = 512
_BLOCK = 1 << 20
_SIZE_MAX = 1 << 28  # bytes of an unpacked kernel
_KEPT = 2


class Kernel(NamedTuple):
    """A kernel image and the version that its modules are filed under."""

    path: str
    version: str


def find_kernel(path: str) -> Kernel:
    """The administrator's choice, or the host's own kernel."""
    path = path or f"/boot/vmlinuz-{os.uname().release}"
    try:
        return Kernel(path, read_version(path))
    except OSError as error:
        hint = "name one as xen.kernel in /etc/rktd/rktd.yaml"
        raise StateError(f"no kernel for Xen guests: {path}: {error.strerror}", hint=hint) from error


def read_version(path: str) -> str:
    """Of a bzImage, the first word of its version text; of another kind of image what its name says."""
    with open(path, "rb") as file:
        head = file.read(64 * 1024)
    if head[_HEADER_AT : _HEADER_AT + 4] == b"HdrS":
        (offset,) = struct.unpack_from("<H", head, _VERSION_AT)
        text = head[offset + 0x200 :].split(b"\0", 1)[0].decode("ascii", "replace")
        if text.split():
            return text.split()[0]
    return os.path.basename(path).partition("-")[2]


def ready_image(layout: Layout, kernel: Kernel) -> str:
    """The path of the unpacked image; of the kernel's own where it cannot be unpacked here, which xl does then."""
    status = os.stat(kernel.path)
    key = hashlib.sha256(f"{kernel.path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}".encode()).hexdigest()
    target = f"{layout.guests}/{key}.kernel"
    with lock(layout, "kernel"):
        try:
            if not os.path.exists(target):
                os.makedirs(layout.guests, mode=0o700, exist_ok=True)
                if not _unpack(kernel.path, f"{layout.guests}/.kernel"):
                    return kernel.path
                os.rename(f"{layout.guests}/.kernel", target)
                keep_latest(layout.guests, ".kernel", _KEPT)
            os.utime(target)
        except OSError:  # no space, or a disk that cannot be written: a start without it is slower, no more
            with suppress(OSError):
                os.unlink(f"{layout.guests}/.kernel")
            return kernel.path
    return target


def _unpack(path: str, target: str) -> bool:
    """Whether it is a bzImage with an ELF image in it, compressed in a way that we know."""
    with open(path, "rb") as file:
        head = file.read(_PAYLOAD_AT + 8)
        if len(head) < _PAYLOAD_AT + 8 or head[_HEADER_AT : _HEADER_AT + 4] != b"HdrS":
            return False
        offset, length = struct.unpack_from("<II", head, _PAYLOAD_AT)
        start = ((head[_SETUP_AT] or 4) + 1) * _SECTOR + offset
        file.seek(start + length - 4)
        (size,) = struct.unpack("<I", file.read(4).ljust(4, b"\0"))  # stands after the compressed data
        file.seek(start)
        magic = file.read(_SECTOR)
        file.seek(start)
        try:
            inflater = find_inflater(magic) if magic.startswith(ZSTD_MAGIC) else None  # the others are seldom, and quicker to unpack
            if inflater is None or not 0 < size <= _SIZE_MAX:
                return False
            opener, faults = inflater
        except RktdError:  # a module is missing
            return False
        try:
            with opener(file) as source, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as sink:
                left = size
                while left and (part := source.read(min(left, _BLOCK))):
                    if left == size and not part.startswith(b"\x7fELF"):
                        return False
                    sink.write(part)
                    left -= len(part)
                sink.flush()
                os.fsync(sink.fileno())
        except faults:
            return False
        return not left

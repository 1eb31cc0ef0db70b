# SPDX-License-Identifier: Apache-2.0
"""The one disk of a Xen guest: all layers of a pod's images, as partitions of a raw image (UEFI specification 2.10, 5.3 GPT).

A disk for each layer would cost a domain's start some time for each, and there are names for few. The layers' EROFS images are in it byte
for byte, from files that were verified at this start. It is kept with the layers, sealed as they are, and goes when one of these goes.
"""

import hashlib
import os
import struct
import uuid
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress

from rktd_units.images.records import UNREADABLE, sync_directory
from rktd_units.images.store import Store, seal
from rktd_units.paths import Layout
from rktd_units.runfiles import list_names, lock, read_text, write_text

SECTOR = 512
ALIGNMENT = 4096 // SECTOR  # sectors
ENTRIES = 128  # the least that a table may have
_ENTRY = 128  # bytes
_LINUX_DATA = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_COPY = 1 << 30
_CHUNK = 1 << 20


def ready_disk(layout: Layout, keys: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The disk with these layers, and each layer's device beside it: partition suffixes, or "" where the disk is the one layer itself.

    Made where there is none, or another one than was made. The caller has verified the layers, and holds the store. Raises OSError, and
    TemporaryError where there is no space for it.
    """
    if len(keys) == 1:
        return f"{layout.layers}/{keys[0]}.erofs", ("",)
    name = hashlib.sha256("\0".join(keys).encode()).hexdigest()
    path = f"{layout.disks}/{name}.img"
    sources = [f"{layout.layers}/{key}.erofs" for key in keys]
    with lock(layout, "disks"):
        os.makedirs(layout.disks, mode=0o700, exist_ok=True)
        if read_text(f"{layout.disks}/{name}.made") != _stamp(path, sources):
            _make(layout, path, sources)
            write_text(f"{layout.disks}/{name}.layers", "".join(f"{key}\n" for key in keys))
            write_text(f"{layout.disks}/{name}.made", _stamp(path, sources))
        os.utime(f"{layout.disks}/{name}.layers")
    return path, tuple(str(number) for number in range(1, len(keys) + 1))


def forget_disks(layout: Layout) -> None:
    """Removes those of which a layer has gone, and what a crash left half made."""
    with lock(layout, "disks"):
        for name in os.listdir(layout.disks) if os.path.exists(layout.disks) else ():
            if name.startswith("."):
                os.unlink(f"{layout.disks}/{name}")
        for stem in _stems(layout):
            keys = read_text(f"{layout.disks}/{stem}.layers").split()
            if not keys or not all(os.path.exists(f"{layout.layers}/{key}.erofs") for key in keys):
                _remove(layout, stem)


def drop_damaged_disks(layout: Layout, keys: Collection[str]) -> dict[str, frozenset[str]]:
    """Removes those that have one of these layers, and are not what their layers are: their names, and the layers of each.

    The caller has verified the layers, and holds the store. The next start makes a new one.
    """
    damaged = {}
    for stem in _stems(layout):
        with lock(layout, "disks"):
            layers = read_text(f"{layout.disks}/{stem}.layers").split()
            if not set(layers).isdisjoint(keys) and not _is_whole(
                f"{layout.disks}/{stem}.img", [f"{layout.layers}/{key}.erofs" for key in layers]
            ):
                _remove(layout, stem)
                damaged[stem] = frozenset(layers)
    return damaged


def _stems(layout: Layout) -> list[str]:
    return sorted({name.partition(".")[0] for name in list_names(layout.disks)})


def _remove(layout: Layout, stem: str) -> None:
    for ending in ("made", "img", "layers"):
        with suppress(FileNotFoundError):
            os.unlink(f"{layout.disks}/{stem}.{ending}")


def _is_whole(path: str, sources: Sequence[str]) -> bool:
    """Compares all that a guest reads of the disk, byte for byte; True where a layer is absent, and the disk of no use."""
    try:
        first, last, begins = render_table([os.stat(source).st_size for source in sources])
    except FileNotFoundError:
        return True
    try:
        with open(path, "rb") as disk:
            if disk.read(len(first)) != first:
                return False
            for source, begin in zip(sources, begins, strict=True):
                disk.seek(begin * SECTOR)
                with open(source, "rb") as layer:
                    while data := layer.read(_CHUNK):
                        if disk.read(len(data)) != data:
                            return False
            disk.seek(-len(last), os.SEEK_END)
            return disk.read() == last
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return False


def _stamp(path: str, sources: Sequence[str]) -> str:
    """What the disk and its layers are: changed by whoever touches one of them. "-" where there is no disk."""
    lines = []
    for each in (path, *sources):
        try:
            status = os.stat(each)
        except FileNotFoundError:
            return "-"
        lines.append(f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n")
    return "".join(lines)


def _make(layout: Layout, path: str, sources: Sequence[str]) -> None:
    from rktd_units.images.jobs import require_space  # 20 ms that further starts need not pay

    temporary = f"{layout.disks}/.new"
    sizes = [os.stat(source).st_size for source in sources]
    require_space(Store(layout), sum(sizes))
    try:
        _write(temporary, sources, sizes)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    os.rename(temporary, path)
    seal(path)
    sync_directory(layout.disks)


def _write(path: str, sources: Sequence[str], sizes: Sequence[int]) -> None:
    first, last, begins = render_table(sizes)
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as disk:
        disk.write(first)
        for source, size, begin in zip(sources, sizes, begins, strict=True):
            with open(source, "rb") as layer:
                _copy(layer.fileno(), disk.fileno(), size, begin * SECTOR)
        disk.seek(0, os.SEEK_END)
        end = _align(-(-disk.tell() // SECTOR)) * SECTOR
        disk.seek(end)
        disk.write(last)
        disk.flush()
        os.fsync(disk.fileno())


def _copy(source: int, target: int, size: int, offset: int) -> None:
    """By the kernel; a file system that can will share the blocks."""
    done = 0
    while done < size:
        count = os.copy_file_range(source, target, min(size - done, _COPY), done, offset + done)
        if not count:
            raise OSError(5, "a layer became shorter while it was copied")
        done += count


def render_table(sizes: Sequence[int]) -> tuple[bytes, bytes, tuple[int, ...]]:
    """What comes before the layers, what comes after them, and the sector at which each begins. `sizes` in bytes."""
    count = max(len(sizes), ENTRIES)
    table_sectors = count * _ENTRY // SECTOR
    position = _align(2 + table_sectors)
    begins, entries = [], []
    for number, size in enumerate(sizes):
        sectors = -(-size // SECTOR)
        begins.append(position)
        own = uuid.uuid5(_LINUX_DATA, f"{number} {size}")
        name = f"layer {number}".encode("utf-16-le")
        entries.append(
            _LINUX_DATA.bytes_le + own.bytes_le + struct.pack("<QQQ", position, position + sectors - 1, 0) + name.ljust(72, b"\0")
        )
        position = _align(position + sectors)
    table = b"".join(entries).ljust(count * _ENTRY, b"\0")
    usable = (2 + table_sectors, position - 1)
    last = position + table_sectors
    identity = uuid.uuid5(_LINUX_DATA, " ".join(map(str, sizes)))
    shape = (usable, identity, count, table)
    first = _protective(last) + _header(1, last, 2, *shape) + table
    return first.ljust(begins[0] * SECTOR, b"\0") if begins else first, table + _header(last, 1, position, *shape), tuple(begins)


def _header(own: int, other: int, table_at: int, usable: tuple[int, int], identity: uuid.UUID, count: int, table: bytes) -> bytes:
    def render(checksum: int) -> bytes:
        start = struct.pack("<8sIIII", b"EFI PART", 0x00010000, 92, checksum, 0)
        return start + struct.pack("<QQQQ16sQIII", own, other, *usable, identity.bytes_le, table_at, count, _ENTRY, zlib.crc32(table))

    return render(zlib.crc32(render(0))).ljust(SECTOR, b"\0")


def _protective(last: int) -> bytes:
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    return (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"


def _align(sector: int) -> int:
    return -(-sector // ALIGNMENT) * ALIGNMENT

# SPDX-License-Identifier: Apache-2.0
"""Reads the headers of a layer's tar file, strictly; contents stay where they are and are told by offset.

The rules are those of Go's archive/tar (v7, ustar, star, GNU and pax headers, all GNU sparse forms), because registries and
image tools are written against it. Python's tarfile takes a damaged header for the end of the archive and recurses on chains
of extension headers: it must not read what a stranger wrote. Everything wrong is an ImageError that names path or offset.
"""

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from rktd_units.errors import ImageError

BLOCK = 512
HARD_LINK = 0  # `Member.kind` of a hard link; the others are stat.S_IF*
MAX_EXTENSION = 1 << 20  # bytes of a pax header or long name, as in Go
WINDOW = 1 << 16

KINDS = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"S": stat.S_IFREG,
    b"1": HARD_LINK,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
ZERO_BLOCK = bytes(BLOCK)

Segments = tuple[tuple[int, int, int], ...]  # (offset in the file, offset in the spool, length), ascending
Pax = dict[bytes, bytes]


class Content(NamedTuple):
    """The bytes of a regular file: `size` of them, all zero where no segment is."""

    spool: int  # file descriptor that the offsets are of
    size: int
    segments: Segments


class Member(NamedTuple):
    """One entry of the tar. Path and link are as written, not cleaned; `mtime` is in nanoseconds."""

    path: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    link: bytes
    device: tuple[int, int]
    xattrs: Pax
    content: Content | None


def show_path(path: bytes) -> str:
    """A path as text for a message: one line, whatever is in it."""
    text = path.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-100:]}"


def read_members(spool: int, start: int = 0, size: int = -1) -> Iterator[Member]:
    """The entries of the tar in the file open as `spool`, in order: of `size` bytes from `start` on, by default all that the file has.

    What follows its end mark is ignored.
    """
    reader = _Reader(spool, start, os.fstat(spool).st_size - start if size < 0 else size)
    while (member := reader.next_member()) is not None:
        yield member


class _Reader:
    """A position in the tar, with a window of it in memory. Offsets are of the tar, but in a Content."""

    def __init__(self, spool: int, base: int, size: int) -> None:
        self.spool = spool
        self.base = base
        self.end = size
        self.offset = 0
        self.window = b""
        self.start = 0

    def bytes_at(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; fewer only at the end of the tar."""
        at = offset - self.start
        if at < 0 or at + size > len(self.window):
            self.window = os.pread(self.spool, max(min(max(size, WINDOW), self.end - offset), 0), self.base + offset)
            self.start, at = offset, 0
        return self.window[at : at + size]

    def next_member(self) -> Member | None:
        pax: Pax = {}
        name = link = b""
        while True:
            at = self.offset
            block = self.next_header()
            if block is None:
                if pax or name or link:
                    raise ImageError(f"extension header without its entry at byte {at}")
                return None
            flag = block[156:157]
            if flag in b"xgLK":
                data = self.extension(block, at)
                if flag == b"x":
                    pax = parse_pax(data, at)
                elif flag == b"L":
                    name = data.partition(b"\0")[0]
                elif flag == b"K":
                    link = data.partition(b"\0")[0]
                continue
            return self.member(block, at, pax, name, link)

    def next_header(self) -> bytes | None:
        """The next header block, its checksum proven; None at the end mark or the end of the file."""
        at = self.offset
        block = self.bytes_at(at, BLOCK)
        if block == ZERO_BLOCK:
            block = self.bytes_at(at + BLOCK, BLOCK)
            if block and block != ZERO_BLOCK:
                raise ImageError(f"no tar header at byte {at}: one zero block is not an end mark")
            return None
        if not block:
            return None
        if len(block) < BLOCK:
            raise ImageError(f"tar ends within a header at byte {at}")
        told = parse_number(block[148:156], "checksum", f"tar header at byte {at}")
        field = block[148:156]
        if told != sum(block) - sum(field) + 256:
            signed = sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256
            if told != signed:
                raise ImageError(f"tar header at byte {at} has a wrong checksum")
        self.offset = at + BLOCK
        return block

    def skip(self, size: int, place: str) -> int:
        """Passes over `size` bytes of data and their padding; gives where the data starts."""
        start = self.offset
        if size < 0:
            raise ImageError(f"{place}: negative size")
        if start + size > self.end:
            raise ImageError(f"{place}: tar is cut off in the content, {start + size - self.end} bytes are missing")
        self.offset = start + (size + BLOCK - 1) // BLOCK * BLOCK
        return start

    def extension(self, block: bytes, at: int) -> bytes:
        place = f"extension header at byte {at}"
        size = parse_number(block[124:136], "size", place)
        if size > MAX_EXTENSION:
            raise ImageError(f"{place}: {size} bytes are too many")
        return self.bytes_at(self.skip(size, place), size)

    def member(self, block: bytes, at: int, pax: Pax, name: bytes, link: bytes) -> Member:
        flag = block[156:157]
        form = _sparse_form(pax) if pax and flag != b"S" else None
        path = (form and pax.get(b"GNU.sparse.name")) or name or pax.get(b"path") or _name(block)
        place = show_path(path) or f"entry at byte {at}"
        kind = KINDS.get(flag)
        if kind is None:
            raise ImageError(f"{place}: unknown tar entry type {show_path(flag)!r}")
        if flag == b"\0" and path.endswith(b"/"):
            kind = stat.S_IFDIR
        size = _pax_number(pax, b"size", place)
        if size is None:
            size = parse_number(block[124:136], "size", place)
        content = None
        if kind == stat.S_IFREG:
            content = self.content(block, pax, form, size, place)
        elif form:
            raise ImageError(f"{place}: only a regular file can be sparse")
        ids = [_pax_number(pax, key, place) for key in (b"uid", b"gid")]
        return Member(
            path,
            kind,
            parse_number(block[100:108], "mode", place),
            parse_number(block[108:116], "uid", place) if ids[0] is None else ids[0],
            parse_number(block[116:124], "gid", place) if ids[1] is None else ids[1],
            _mtime(block, pax, place),
            link or pax.get(b"linkpath") or block[157:257].partition(b"\0")[0],
            _device(block, place) if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0),
            {k[13:]: v for k, v in pax.items() if v and k.startswith(b"SCHILY.xattr.")} if pax else {},
            content,
        )

    def content(self, block: bytes, pax: Pax, form: int | None, size: int, place: str) -> Content:
        sparse: list[int] | None = None
        stored = size
        if block[156:157] == b"S":
            sparse = self.old_sparse_map(block, place)
            size = parse_number(block[483:495], "real size", place)
            start = self.skip(stored, place)
        elif form:
            start = self.skip(stored, place)
            for key in (b"GNU.sparse.realsize", b"GNU.sparse.size"):
                real = _pax_number(pax, key, place)
                size = size if real is None else real
            if form == 1:
                sparse, used = self.sparse_map_1_0(start, stored, place)
                start, stored = start + used, stored - used
            else:
                sparse = _sparse_map_0_x(pax, place)
        else:
            start = self.skip(size, place)
            return Content(self.spool, size, ((0, self.base + start, size),) if size else ())
        return Content(self.spool, size, _sparse_segments(sparse, size, self.base + start, stored, place))

    def old_sparse_map(self, block: bytes, place: str) -> list[int]:
        """GNU's old form: four extents in the header, more in blocks that follow while a flag says so."""
        numbers: list[int] = []
        table, more = block[386:482], block[482]
        while True:
            for at in range(0, len(table) // 24 * 24, 24):
                if not table[at]:
                    break
                numbers += (parse_number(table[at + i : at + i + 12], "sparse map", place) for i in (0, 12))
            if not more:
                return numbers
            table = self.bytes_at(self.skip(BLOCK, place), BLOCK)
            more, table = table[504], table[:504]

    def sparse_map_1_0(self, start: int, stored: int, place: str) -> tuple[list[int], int]:
        """Form 1.0: the map is decimal lines at the head of the data, padded to a block."""
        numbers: list[int] = []
        pending, at, wanted = b"", 0, 1
        while len(numbers) < wanted:
            line, newline, rest = pending.partition(b"\n")
            if newline:
                pending = rest
                numbers.append(_decimal(line, place))
                wanted = 1 + 2 * numbers[0]
            elif at + BLOCK > stored or len(pending) > BLOCK:
                raise ImageError(f"{place}: sparse map is cut off")
            else:
                pending += self.bytes_at(start + at, BLOCK)
                at += BLOCK
        return numbers[1:], at


def parse_pax(data: bytes, at: int) -> Pax:
    """The records `LENGTH KEY=VALUE\\n` of an extended header, the last of a key counting; pax(1), Extended Header."""
    place = f"pax header at byte {at}"
    records: Pax = {}
    sparse: list[bytes] = []
    start = 0
    while start < len(data):
        digits, space, _ = data[start : start + 20].partition(b" ")
        if not space or not digits.isdigit() or not 5 <= (length := int(digits)) <= len(data) - start:
            raise ImageError(f"{place}: malformed record")
        record = data[start + len(digits) + 1 : start + length]
        start += length
        key, equals, value = record[:-1].partition(b"=")
        if not record.endswith(b"\n") or not equals or not key or b"\0" in key:
            raise ImageError(f"{place}: malformed record")
        if b"\0" in value and key in (b"path", b"linkpath", b"uname", b"gname", b"GNU.sparse.name"):
            raise ImageError(f"{place}: NUL in {show_path(key)}")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (len(sparse) % 2 == 1) != (key == b"GNU.sparse.numbytes") or b"," in value:
                raise ImageError(f"{place}: malformed sparse map")
            sparse.append(value)
        else:
            records[key] = value
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def parse_number(field: bytes, what: str, place: str) -> int:
    """A number of a header: octal text, or GNU's base 256 with two's complement."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise ImageError(f"{place}: {what} out of range")
        return value
    digits = field.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise ImageError(f"{place}: {what} is not a number: {show_path(field)!r}")


def _decimal(text: bytes, place: str) -> int:
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > 19 or not -(1 << 63) <= (value := int(text)) < 1 << 63:
        raise ImageError(f"{place}: not a number in a pax header: {show_path(text)!r}")
    return value


def _pax_number(pax: Pax, key: bytes, place: str) -> int | None:
    text = pax.get(key) if pax else None
    return _decimal(text, place) if text else None


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":
        star = block[508:512] == b"tar\0"
        if prefix := block[345 : 476 if star else 500].partition(b"\0")[0]:
            return prefix + b"/" + name
    return name


def _mtime(block: bytes, pax: Pax, place: str) -> int:
    text = pax.get(b"mtime") if pax else None
    if not text:
        return parse_number(block[136:148], "mtime", place) * 1_000_000_000
    seconds, _, fraction = text.partition(b".")
    if fraction and not fraction.isdigit():
        raise ImageError(f"{place}: not a time in a pax header: {show_path(text)!r}")
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    sign = -1 if seconds[:1] == b"-" else 1
    return _decimal(seconds, place) * 1_000_000_000 + sign * nanoseconds


def _device(block: bytes, place: str) -> tuple[int, int]:
    if block[257:262] != b"ustar":
        return 0, 0
    return parse_number(block[329:337], "device major", place), parse_number(block[337:345], "device minor", place)


def _sparse_form(pax: Pax) -> int | None:
    """1 for the form that keeps its map in the data, 2 for those that keep it in records, None for a plain file."""
    version = pax.get(b"GNU.sparse.major", b""), pax.get(b"GNU.sparse.minor", b"")
    if version == (b"1", b"0"):
        return 1
    if version in ((b"0", b"0"), (b"0", b"1")) or (version == (b"", b"") and pax.get(b"GNU.sparse.map")):
        return 2
    return None


def _sparse_map_0_x(pax: Pax, place: str) -> list[int]:
    text = pax.get(b"GNU.sparse.map", b"")
    numbers = [_decimal(part, place) for part in text.split(b",")] if text else []
    if len(numbers) != 2 * _decimal(pax.get(b"GNU.sparse.numblocks", b""), place):
        raise ImageError(f"{place}: sparse map has not as many extents as it says")
    return numbers


def _sparse_segments(numbers: list[int], size: int, start: int, stored: int, place: str) -> Segments:
    segments: list[tuple[int, int, int]] = []
    end, at = 0, start
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if offset < end or length < 0 or offset + length > size:
            raise ImageError(f"{place}: extents of the sparse map overlap or leave the file")
        if length:
            segments.append((offset, at, length))
        end, at = offset + length, at + length
    if size < 0 or at != start + stored:
        raise ImageError(f"{place}: sparse map and stored size disagree")
    return tuple(segments)

# SPDX-License-Identifier: Apache-2.0
"""Layers for the converter's tests: a tar builder that can write wrong things, too, and the table of what comes of them.

`../shared/prototypes/hostile-layers.py` is where the first of the cases come from.
"""

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypedDict, Unpack

TAR = "application/vnd.oci.image.layer.v1.tar"
GZIP = TAR + "+gzip"
ZSTD = TAR + "+zstd"
END = bytes(1024)
TIME = 1234567890


class Origin(TypedDict, total=False):
    ids: tuple[int, int]
    mtime: int


class About(Origin, total=False):
    """What `entry` takes for every type."""

    mode: int | None
    pax: Iterable[tuple[bytes, bytes]]
    size: int | None


class Data(TypedDict):
    data: bytes


def entry(
    path: str | bytes,
    flag: str | bytes = "0",
    data: bytes = b"",
    *,
    mode: int | None = None,
    ids: tuple[int, int] = (0, 0),
    mtime: int = TIME,
    link: str | bytes = b"",
    device: tuple[int, int] = (0, 0),
    pax: Iterable[tuple[bytes, bytes]] = (),
    size: int | None = None,
    magic: bytes = b"ustar\x0000",
) -> bytes:
    """One entry with its pax header and its content. `pax` is pairs of bytes; names too long for the header go there by themselves."""
    path, link, flag = _raw(path), _raw(link), _raw(flag)
    records = list(pax)
    if len(path) > 100:
        records.append((b"path", path))
    if len(link) > 100:
        records.append((b"linkpath", link))
    if mode is None:
        mode = 0o755 if flag == b"5" else 0o644
    head = b"" if not records else pax_entry(records)
    block = struct.pack(
        "100s8s8s8s12s12s8sc100s8s64s8s8s167x",
        path[:100],
        *(b"%07o" % n for n in (mode, *ids)),
        b"%011o" % (len(data) if size is None else size),
        octal(mtime, 12),
        b" " * 8,
        flag,
        link[:100],
        magic,
        b"",
        *(b"%07o" % n for n in device),
    )
    return head + with_checksum(block) + padded(data)


def octal(number: int, size: int) -> bytes:
    """A number field: octal, or base 256 where that does not do."""
    if 0 <= number < 8 ** (size - 1):
        return b"%0*o" % (size - 1, number)
    return bytes([0x80 | (0x7F if number < 0 else 0)]) + (number & ((1 << 8 * (size - 1)) - 1)).to_bytes(size - 1, "big")


def with_checksum(block: bytes) -> bytes:
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax_entry(records: Iterable[tuple[bytes, bytes]], flag: str = "x") -> bytes:
    body = b""
    for key, value in records:
        record = b" %b=%b\n" % (key, value)
        length = len(record) + 1
        while length != len(record) + len(str(length)):
            length = len(record) + len(str(length))
        body += b"%d%b" % (length, record)
    return entry("pax", flag, body)


def layer(*entries: bytes) -> bytes:
    return b"".join(entries) + END


def _raw(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def xattr(name: str, value: bytes) -> tuple[bytes, bytes]:
    return (b"SCHILY.xattr." + _raw(name), value)


def directory(path: str, **extra: Unpack[About]) -> bytes:
    return entry(path, "5", **extra)


def link(path: str, target: str, **extra: Unpack[About]) -> bytes:
    return entry(path, "2", link=target, **extra)


def hard(path: str, target: str, **extra: Unpack[About]) -> bytes:
    return entry(path, "1", link=target, **extra)


def old_sparse(path: str, size: int, extents: Sequence[int], stored: Sequence[bytes]) -> bytes:
    """GNU's old sparse form: four extents in the header, 21 in each block that follows."""
    fields = [
        octal(offset, 12).ljust(12, b"\0") + octal(len(data), 12).ljust(12, b"\0") for offset, data in zip(extents, stored, strict=True)
    ]
    body = b"".join(stored)
    block = bytearray(entry(path, "S", size=len(body), magic=b"ustar  \0"))
    block[386 : 386 + 24 * 4] = b"".join(fields[:4]).ljust(96, b"\0")
    block[482] = len(fields) > 4
    block[483:495] = octal(size, 12).ljust(12, b"\0")
    more = b""
    rest = fields[4:]
    while rest:
        more += b"".join(rest[:21]).ljust(504, b"\0") + bytes([len(rest) > 21]) + bytes(7)
        rest = rest[21:]
    return with_checksum(bytes(block)) + more + padded(body)


def sparse_1_0(path: str, size: int, extents: Sequence[int], stored: Sequence[bytes]) -> bytes:
    numbers = [len(extents)]
    for offset, data in zip(extents, stored, strict=True):
        numbers += (offset, len(data))
    body = padded(b"".join(b"%d\n" % n for n in numbers)) + b"".join(stored)
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", _raw(path)),
        (b"GNU.sparse.realsize", b"%d" % size),
    ]
    return entry("GNUSparseFile.0/" + path, "0", body, pax=records)


def sparse_0_1(path: str, size: int, extents: Sequence[int], stored: Sequence[bytes]) -> bytes:
    text = b",".join(b"%d,%d" % (offset, len(data)) for offset, data in zip(extents, stored, strict=True))
    records = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(extents)), (b"GNU.sparse.map", text)]
    return entry(path, "0", b"".join(stored), pax=[*records, (b"GNU.sparse.name", _raw(path))])


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


NONE = 0xFFFFFFFF
NAMED_ACL = acl((1, 7, NONE), (2, 5, 1000), (4, 4, NONE), (16, 5, NONE), (32, 0, NONE))
PLAIN_ACL = acl((1, 6, NONE), (4, 4, NONE), (32, 0, NONE))
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep, with NULs in it

BASE = layer(
    directory("etc/", mtime=1000),
    entry("etc/passwd", data=b"root:x:0:0::/root:/bin/sh\n", mtime=1001),
    directory("root/", mode=0o700, mtime=1002),
    directory("usr/", mtime=1003),
    directory("usr/lib/", mtime=1004),
    entry("usr/lib/libc.so", data=b"elf" * 2000, mtime=1005),
    link("lib", "usr/lib", mtime=1006),
    link("absolute", "/usr/lib", mtime=1007),
    link("up", "../../../usr", mtime=1008),
    entry("in-lower-layer", data=b"lower", mode=0o600, ids=(7, 8), mtime=1009),
    directory("d/", mtime=1010, ids=(5, 6)),
    entry("d/a", data=b"lower a", mtime=1011),
    directory("d/sub/", mtime=1012),
    entry("d/sub/deep", data=b"lower deep", mtime=1013),
    entry("x", data=b"lower x", mtime=1014),
    directory("shared/", mode=0o2775, ids=(0, 50), mtime=1015),
    directory("tmp/", mode=0o1777, mtime=1016),
    hard("d/linked", "in-lower-layer"),
)


class Case(NamedTuple):
    """Layers, lowest first, and what umoci and we make of them: `refusal` is a pattern of our message, empty if we agree with umoci."""

    name: str
    layers: tuple[bytes, ...]
    refusal: str = ""
    umoci: bool = True
    why: str = ""  # where only one of the two refuses
    types: tuple[str, ...] = ()
    contents: tuple[bytes, ...] = ()  # uncompressed, where not the layers themselves


# What the files of hostile-layers.py hold: (entries, refusal alone, refusal over BASE). None: as umoci.
HOSTILE = {
    "dotdot": (layer(entry("../evil", data=b"x"), entry("a/../../evil2", data=b"x"), entry("ok", data=b"x")), "", ""),
    "absolute": (layer(entry("/etc/abs", data=b"x"), entry("./dot", data=b"x")), "", ""),
    "symlink-through": (layer(link("lnk", "/etc"), entry("lnk/passwd", data=b"pwn")), "", ""),
    "symlink-through-legal": (layer(directory("usr/lib/"), link("lib", "usr/lib"), entry("lib/foo", data=b"x")), "", ""),
    "duplicate": (layer(entry("f", data=b"one"), entry("f", data=b"two!")), "", ""),
    "hardlink-missing": (layer(hard("h", "nope")), "h: hard link to nope, which does not exist", "h: hard link to nope"),
    "hardlink-lower": (layer(hard("hl", "in-lower-layer")), "hl: hard link to in-lower-layer", ""),
    "opaque-late": (layer(directory("d/"), entry("d/a", data=b"x"), entry("d/.wh..wh..opq")), "", ""),
    "whiteout-own-layer": (layer(entry("d/x", data=b"x"), entry("d/.wh.x")), "", ""),
    "aufs-names": (layer(entry("d/.wh..wh.plnk"), entry(".wh..wh.aufs")), "", ""),
    "noparent": (layer(entry("p/q/r", data=b"x")), "", ""),
    "file-then-dir": (layer(entry("x", data=b"f"), entry("x/y", data=b"in")), "x/y: x is not a directory", "x/y: x is not a directory"),
    "wh-empty": (layer(entry(".wh."), entry("ok", data=b"x")), r"\.wh\.: a whiteout of nothing", r"\.wh\.: a whiteout of nothing"),
    "wh-dot": (layer(entry(".wh.."), entry("ok", data=b"x")), r"\.wh\.\.: a whiteout of nothing", r"\.wh\.\.: a whiteout of nothing"),
    "wh-dots": (layer(entry(".wh..."), entry("ok", data=b"x")), r"\.wh\.\.\.: a whiteout of nothing", r"\.wh\.\.\.: a whiteout of nothing"),
    "wh-dots-deep": (layer(entry("d/.wh..."), entry("ok", data=b"x")), r"d/\.wh\.\.\.: a whiteout of nothing", r"d/\.wh\.\.\.: a whiteout"),
    "long-name": (layer(entry("n" * 255, data=b"x")), "", ""),
    "too-long-name": (layer(entry("m" * 256, data=b"x")), "m+.*: a name of more than 255 bytes", "m+.*: a name of more than 255 bytes"),
    "ids": (layer(entry("u", ids=(100000, 70000))), "u: owner 100000:70000 is out of", "u: owner 100000:70000 is out of"),
    "implicit": (layer(entry("etc/app.conf", data=b"x"), entry("root/.cfg", data=b"x", mode=0o600)), "", ""),
}
# Where umoci goes on and we do not: file name to reason.
HOSTILE_UMOCI_ACCEPTS = {
    "ids-alone": "ids of a pod end at 65535",
    "ids-above": "ids of a pod end at 65535",
    "wh-dots-deep-alone": "umoci finds no such directory",
}


def _hostile() -> Iterator[Case]:
    for name, (tar, alone, above) in HOSTILE.items():
        for variant, layers, refusal in (("alone", (tar,), alone), ("above", (BASE, tar), above)):
            why = HOSTILE_UMOCI_ACCEPTS.get(f"{name}-{variant}", "")
            yield Case(f"{name}-{variant}", layers, refusal, bool(why) or not refusal, why)


def _over_base(name: str, *entries: bytes, refusal: str = "", umoci: bool = True) -> Case:
    return Case(name, (BASE, layer(*entries)), refusal, umoci)


X: Data = {"data": b"x"}
KEPT = [
    Case("base", (BASE,)),
    Case("empty-layer", (BASE, END)),
    Case("no-end-mark", (BASE, entry("f", **X))),
    Case("nothing-at-all", (BASE, b"")),
    _over_base("root-entry", directory("./", mode=0o711, ids=(3, 4), mtime=77)),
    _over_base("whiteout-file", entry(".wh.x")),
    _over_base("whiteout-directory", entry(".wh.d")),
    Case("whiteout-of-a-long-name", (layer(entry("n" * 255, data=b"n"), entry("m" * 255)), layer(entry(".wh." + "n" * 255)))),
    _over_base("whiteout-nested", entry("d/sub/.wh.deep"), entry(".wh.absolute")),
    _over_base("whiteout-through-link", entry("lib/.wh.libc.so")),
    _over_base("whiteout-of-absent", entry("nowhere/.wh.x"), entry("x/.wh.y"), entry(".wh.nope")),
    _over_base("whiteout-before", entry(".wh.x"), entry("x", data=b"new")),
    _over_base("whiteout-after", entry("x", data=b"new"), entry(".wh.x")),
    _over_base("whiteout-then-directory", entry(".wh.d"), directory("d/"), entry("d/new", **X)),
    _over_base("whiteout-spares-new-children", entry("d/sub/new", **X), entry(".wh.d")),
    _over_base("whiteout-with-slash-and-type", directory("d/.wh.sub/"), link(".wh.x", "y")),
    _over_base("opaque-early", entry("d/.wh..wh..opq"), entry("d/new", **X)),
    _over_base("opaque-only", entry("d/.wh..wh..opq")),
    _over_base("opaque-keeps-own", entry("d/sub/new", **X), entry("d/.wh..wh..opq")),
    _over_base("opaque-root", entry("new", **X), entry(".wh..wh..opq")),
    _over_base("opaque-below-opaque", entry("d/sub/new", **X), entry("d/sub/.wh.deep"), entry("d/.wh..wh..opq")),
    _over_base("opaque-of-absent", entry("nowhere/.wh..wh..opq"), entry("x/.wh..wh..opq")),
    Case("opaque-then-more", (BASE, layer(entry("d/.wh..wh..opq"), entry("d/b", **X)), layer(entry("d/.wh.b"), entry("d/sub/c", **X)))),
    Case("whiteout-and-back", (BASE, layer(entry(".wh.d")), layer(entry("d/sub/again", **X)), layer(entry("d/sub/.wh.again")))),
    _over_base("type-directory-to-file", entry("d", data=b"now a file")),
    _over_base("type-file-to-directory", directory("x/"), entry("x/y", **X)),
    _over_base("type-link-to-directory", directory("lib/"), entry("lib/own", **X)),
    _over_base("type-directory-to-link", link("d", "usr"), entry("d/through", **X)),
    _over_base("type-directory-to-link-and-back", link("d", "usr"), directory("d/"), entry("d/z", **X)),
    Case("type-three-layers", (BASE, layer(entry("d", **X)), layer(directory("d/", mode=0o750), entry("d/n", **X)))),
    _over_base("type-directory-to-fifo", entry("d", "6")),
    _over_base("directory-again", directory("d/", mode=0o700, ids=(9, 9), mtime=5)),
    _over_base("links-of-parents", entry("absolute/a", **X), entry("up/b", **X), entry("lib/../c", **X), entry("up/lib/c", **X)),
    _over_base("implied-in-set-group-id", entry("shared/a/b/c", **X)),
    _over_base("implied-then-named", entry("p/q", **X), directory("p/", mode=0o711, ids=(2, 2))),
    _over_base("implied-whiteout-name", entry("d/.wh.odd/x", **X)),
    _over_base("dangling-parent-link", link("gone", "some/where"), entry("gone/x", **X)),
    _over_base(
        "link-loop", link("l1", "l2"), link("l2", "l1"), entry("l1/x", **X), refusal="l1/x: more than 40 symbolic links", umoci=False
    ),
    _over_base("link-empty", link("l", ""), refusal="l: a symbolic link's target must have", umoci=False),
    _over_base("link-long", link("l", "t" * 4000), link("m", "t" * 101), link("n", "t" * 100)),
    _over_base("link-to-itself-as-file", entry("lib", data=b"file instead of link")),
    _over_base("link-with-mode-and-ids", link("l", "d", mode=0o600, ids=(1, 2))),
    Case("links-within", (layer(entry("a", data=b"one"), hard("b", "a"), hard("d/c", "/b"), link("s", "a"), hard("t", "s")),)),
    _over_base("links-across", hard("d/third", "d/linked"), hard("fourth", "/in-lower-layer")),
    Case(
        "links-across-twice",
        (BASE, layer(hard("third", "in-lower-layer")), layer(hard("d/sub/fourth", "third"), entry(".wh.in-lower-layer"))),
    ),
    _over_base("links-lower-then-replaced", hard("hl", "in-lower-layer"), entry("in-lower-layer", data=b"changed")),
    _over_base("links-lower-then-removed", hard("hl", "in-lower-layer"), entry(".wh.in-lower-layer")),
    _over_base("links-through-link", hard("hl", "lib/libc.so")),
    _over_base("links-of-removed-directory", entry(".wh.d"), hard("hl", "in-lower-layer")),
    Case("links-with-size", (layer(entry("a", data=b"one"), hard("b", "a", size=3), entry("c", **X)),)),
    _over_base("link-hard-to-directory", hard("h", "d"), refusal="h: hard link to d, which is a directory", umoci=False),
    _over_base("link-hard-to-root", hard("h", "/"), refusal="h: hard link to /, which is a directory", umoci=False),
    _over_base("link-hard-to-itself", hard("x", "x"), refusal="x: hard link to x, which does not exist", umoci=False),
    Case(
        "modes",
        (
            layer(
                entry("s", mode=0o4755),
                entry("g", mode=0o2711),
                directory("t/", mode=0o1777),
                entry("z", mode=0),
                entry("k", mode=0o100644),
            ),
        ),
    ),
    Case(
        "ids-kept",
        (layer(entry("a", ids=(1000, 65535)), directory("h/", ids=(65535, 1)), entry("b", pax=[(b"uid", b"33"), (b"gid", b"44")])),),
    ),
    Case(
        "times",
        (
            layer(
                entry("old", mtime=-86400),
                entry("pax", pax=[(b"mtime", b"1234.5")]),
                entry("before", pax=[(b"mtime", b"-1.25")]),
                entry("fine", pax=[(b"mtime", b"99.1234567899")]),
                entry("zero", mtime=0),
                directory("late/", mtime=1 << 33),
                entry("late/f", **X),
            ),
        ),
    ),
    Case(
        "fifo-and-devices",
        (layer(entry("p", "6", mode=0o620), entry("c", "3", device=(1, 3), mode=0o666), entry("b", "4", device=(259, 70000))),),
    ),
    Case(
        "devices-large",
        (
            layer(
                entry("c", "3", device=(4095, 0o1777777)),
            ),
        ),
    ),
    Case("block-zero", (layer(entry("b", "4", device=(0, 0))),)),
    Case(
        "names",
        (
            layer(
                entry("a" * 100, **X),
                entry("b" * 101, **X),
                entry("/".join(["c" * 90] * 20) + "/f", **X),
                hard("hard" + "h" * 200, "b" * 101),
                hard("hard", "/".join(["c" * 90] * 20) + "/f"),
                entry(b"\xff\xfe latin \n new line", **X),
                entry("tab\there = 'quoted' \"%s\" \\n é", **X),
                entry("with-slash/", data=b"a file all the same"),
                entry("old-directory/", "\0"),
                entry("v7", "\0", b"seven", magic=b""),
            ),
        ),
    ),
    Case(
        "gnu-long-names",
        (layer(entry("@LongLink", "L", b"l" * 150 + b"\0"), entry("l", **X), entry("@", "K", b"t" * 120 + b"\0"), link("k", "t")),),
    ),
    Case(
        "xattrs",
        (
            layer(
                entry("f", pax=[xattr("user.a", b"1"), xattr("user.b", bytes(range(256))), xattr("security.capability", CAPABILITY)], **X),
                directory("d/", pax=[xattr("user.dir", b"line\nline=\n")]),
                entry("d/f", **X),
                link("l", "f", pax=[xattr("security.foo", b"of a link")]),
                entry("empty", pax=[xattr("user.empty", b"")]),
                entry("big", pax=[xattr("user.big", b"v" * 2000)]),
                entry("unknown", pax=[xattr("system.nothing", b"1"), xattr("odd.name", b"1"), xattr("security.selinux", b"x:y:z")]),
                directory("./", pax=[xattr("user.root", b"r")]),
            ),
        ),
    ),
    _over_base("xattrs-replaced", directory("d/", pax=[xattr("user.one", b"1")]), directory("d/", pax=[xattr("user.two", b"2")])),
    _over_base("xattrs-with-opaque", directory("d/", pax=[xattr("user.one", b"1")]), entry("d/.wh..wh..opq")),
    Case(
        "acl",
        (
            layer(
                entry("f", mode=0o777, pax=[xattr("system.posix_acl_access", NAMED_ACL)]),
                directory("d/", pax=[xattr("system.posix_acl_default", NAMED_ACL)]),
            ),
        ),
    ),
    Case("acl-minimal", (layer(entry("f", mode=0o777, pax=[xattr("system.posix_acl_access", PLAIN_ACL)])),)),
    Case("sparse-1.0", (layer(sparse_1_0("s", 300000, (4096, 200000), (b"a" * 5000, b"b" * 700)), entry("after", **X)),)),
    Case(
        "sparse-1.0-many", (layer(sparse_1_0("s", 900000, range(0, 600000, 2048), [b"%d" % i for i in range(293)]), entry("after", **X)),)
    ),
    Case("sparse-0.1", (layer(sparse_0_1("s", 50000, (0, 40000), (b"a" * 600, b"b")), entry("after", **X)),)),
    Case("sparse-hole-only", (layer(sparse_1_0("s", 70000, (70000,), (b"",))),)),
    Case(
        "content",
        (
            layer(
                *(entry(f"f{n}", data=bytes([n % 251]) * (n * 1237)) for n in range(0, 100, 7)), entry("big", data=b"0123456789" * 500000)
            ),
        ),
    ),
]

OPAQUE_XATTR = xattr("trusted.overlay.opaque", b"y")
REFUSED = [
    ("root-as-file", layer(entry("./")), "/: the root must stay a directory", ""),
    ("whiteout-device", layer(entry("w", "3")), "w: a character device 0:0", "in our overlay it would be a deleted file"),
    ("overlay-xattr", layer(directory("o/", pax=[OPAQUE_XATTR])), r"o: extended attribute trusted\.overlay\.opaque", "umoci leaves it out"),
    ("trusted-xattr", layer(entry("t", pax=[xattr("trusted.x", b"1")])), r"t: extended attribute trusted\.x", "the host's, not an image's"),
    ("user-xattr-of-link", layer(link("l", "t", pax=[xattr("user.x", b"1")])), r"l: extended attribute user\.x: only files", ""),
    ("xattr-without-name", layer(entry("f", pax=[xattr("user.", b"1")])), r"f: extended attribute user\.: bad name", ""),
    (
        "bad-capability-flag",
        layer(entry("f", pax=[xattr("security.capability", b"\x01\x10" + CAPABILITY[2:])])),
        r"f: extended attribute security\.capability: malf",
        "",
    ),
    (
        "bad-capability",
        layer(entry("f", pax=[xattr("security.capability", b"1")])),
        r"f: extended attribute security\.capability: malf",
        "",
    ),
    ("bad-acl", layer(entry("f", pax=[xattr("system.posix_acl_access", b"1234")])), "f: extended .*: malformed", "umoci leaves it out"),
    (
        "bad-acl-entry",
        layer(entry("f", pax=[xattr("system.posix_acl_access", acl((1, 9, NONE)))])),
        "f: extended attribute .*: malformed",
        "",
    ),
    ("bad-acl-order", layer(entry("f", pax=[xattr("system.posix_acl_access", acl((4, 4, NONE), (1, 4, NONE)))])), "f: .*: malformed", ""),
    ("large-xattr", layer(entry("f", pax=[xattr("user.x", b"v" * 60000)])), "f: extended attributes of more than 20000 bytes", ""),
    ("many-xattrs", layer(entry("f", pax=[xattr(f"user.{n}", b"v") for n in range(3000)])), "f: extended attributes of more than", ""),
    (
        "sparse-directory",
        layer(directory("s/", pax=[(b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.numblocks", b"1")])),
        "s/: only a regular",
        "",
    ),
    (
        "default-acl-of-file",
        layer(entry("f", pax=[xattr("system.posix_acl_default", NAMED_ACL)])),
        "f: .*: only a directory has a default ACL",
        "",
    ),
    ("negative-id", layer(entry("f", pax=[(b"uid", b"-5")])), "f: owner -5:0 is out of the pod's range", "ids of a pod end at 65535"),
    ("unknown-type", layer(entry("f", "Z")), "f: unknown tar entry type 'Z'", ""),
    ("contiguous", layer(entry("f", "7")), "f: unknown tar entry type '7'", ""),
    ("nul-in-sparse-name", layer(sparse_0_1("a\0b", 9, (0,), (b"x",))), r"pax header at byte 0: NUL in GNU\.sparse\.name", ""),
    ("nul-in-pax-path", layer(entry("f", pax=[(b"path", b"a\0b")])), "pax header at byte 0: NUL in path", ""),
    ("pax-garbage", layer(entry("pax", "x", b"what is this\n"), entry("f")), "pax header at byte 0: malformed record", ""),
    ("pax-length", layer(entry("pax", "x", b"99999999 a=b\n"), entry("f")), "pax header at byte 0: malformed record", ""),
    ("pax-size-negative", layer(entry("f", pax=[(b"size", b"-512")])), "f: negative size", ""),
    ("pax-size-huge", layer(entry("f", pax=[(b"size", b"9223372036854775807")])), "f: tar is cut off in the content", ""),
    ("pax-mtime-text", layer(entry("f", pax=[(b"mtime", b"yesterday")])), "f: not a number in a pax header", ""),
    ("bad-checksum", layer(entry("f", **X), b"g" + entry("f", **X)[1:]), "tar header at byte 1024 has a wrong checksum", ""),
    ("garbage-between", layer(entry("f", **X), b"\1" * 512, entry("g")), "tar header at byte 1024", ""),
    ("bad-number", layer(with_checksum(entry("f")[:100] + b"0000zzz\0" + entry("f")[108:])), "f: mode is not a number", ""),
    ("huge-number", layer(with_checksum(entry("f")[:124] + b"\x80" + b"\xff" * 11 + entry("f")[136:])), "f: size out of range", ""),
    ("cut-in-header", entry("f", **X) + entry("g")[:200], "tar ends within a header at byte 1024", ""),
    ("cut-in-content", entry("f", data=b"x" * 2000)[:1024], "f: tar is cut off in the content, 1488 bytes are missing", ""),
    ("one-zero-block", entry("f", **X) + bytes(512) + entry("g") + END, "no tar header at byte 1024: one zero block", ""),
    ("sparse-overlap", layer(sparse_1_0("s", 9000, (0, 100), (b"a" * 200, b"b" * 10))), "s: extents of the sparse map overlap", ""),
    ("sparse-outside", layer(sparse_1_0("s", 100, (90,), (b"a" * 20,))), "s: extents of the sparse map overlap or leave the file", ""),
    (
        "sparse-map-endless",
        layer(entry("s", data=b"99999999\n" + b"1\n" * 200, pax=[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")])),
        "s: sparse map is cut off",
        "",
    ),
    (
        "sparse-map-count",
        layer(entry("s", pax=[(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.numblocks", b"7")])),
        "s: sparse map has not as many",
        "",
    ),
    ("path-too-long", layer(entry("/".join(["p" * 250] * 17), **X)), "p+.*: name or path is too long", ""),
    (
        "below-default-acl",
        layer(directory("d/", pax=[xattr("system.posix_acl_default", NAMED_ACL)]), entry("d/p/f", **X)),
        "d/p/f: the layer leaves out parents",
        "its ACL would have to be handed down",
    ),
    (
        "huge-mtime",
        layer(entry("f", pax=[(b"mtime", b"9223372036854775")])),
        "f: modification time is out of range",
        "out of a file system's range",
    ),
    ("large-major", layer(entry("f", "3", device=(70000, 1))), "f: device number 70000:1 is out of range", "the kernel cuts it off"),
    (
        "links-41",
        layer(*(link(f"l{n}", f"l{n + 1}") for n in range(41)), directory("l41/"), entry("l0/f")),
        "l0/f: more than 40",
        "umoci follows 255, the kernel 40",
    ),
]
OURS_ONLY = [
    Case(
        "old-sparse",
        (layer(old_sparse("s", 99999, (512, 50000), (b"a" * 512, b"b" * 99)), entry("after", **X)),),
        "",
        False,
        "umoci knows no type S",
    ),
    Case(
        "old-sparse-many",
        (layer(old_sparse("s", 99999, range(0, 90000, 1024), [b"%d" % n for n in range(88)]), entry("after", **X)),),
        "",
        False,
        "as above",
    ),
    Case(
        "global-pax-header",
        (layer(pax_entry([(b"comment", b"c0ffee")], "g"), entry("f", **X)),),
        "",
        False,
        "git archive writes it; Docker ignores it",
    ),
    Case("roomy-xattr", (layer(entry("f", pax=[xattr("user.x", b"v" * 19000)])),), "", False, "ext4 has no room for it"),
    Case("plain-called-gzip", (BASE,), "", False, "the magic bytes decide", (GZIP,)),
    Case("docker-type", (BASE,), "", False, "umoci knows OCI's types only", ("application/vnd.docker.image.rootfs.diff.tar.gzip",)),
]


def _compressed() -> Iterator[Case]:
    packed = gzip.compress(BASE)
    half = len(BASE) // 1024 * 512
    members = gzip.compress(BASE[:half]) + gzip.compress(BASE[half:])
    yield Case("gzip", (packed,), types=(GZIP,), contents=(BASE,))
    yield Case("gzip-members", (members,), types=(GZIP,), contents=(BASE,))
    yield Case("gzip-uncompressed-type", (packed,), "", False, "the magic bytes decide", (TAR,), (BASE,))
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 0xFF
    crc = packed[:-8] + struct.pack("<II", zlib.crc32(BASE) ^ 1, len(BASE))
    damaged = "layer 1 of 1: (compressed data is damaged or cut off|content is sha256:)"
    for name, blob in (
        ("cut", packed[:-20]),
        ("cut-in-trailer", packed[:-4]),
        ("flipped", bytes(broken)),
        ("crc", crc),
        ("empty", b"\x1f\x8b"),
    ):
        yield Case(f"gzip-{name}", (blob,), damaged, False, types=(GZIP,), contents=(BASE,))
    yield Case("gzip-cut-member", (members[:-20],), damaged, False, types=(GZIP,), contents=(BASE,))
    yield Case("unknown-media-type", (BASE,), "layer 1 of 1: unknown media type 'text/plain'", False, types=("text/plain",))


def _refused() -> Iterator[Case]:
    for name, tar, pattern, why in REFUSED:
        yield Case(name, (tar,), f"layer 1 of 1: {pattern}", bool(why), why)
        yield Case(f"{name}-above", (BASE, tar), f"layer 2 of 2: {pattern}", bool(why), why)


CASES = [*_hostile(), *KEPT, *_refused(), *OURS_ONLY, *_compressed()]

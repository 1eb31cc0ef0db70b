# SPDX-License-Identifier: Apache-2.0
"""Random layers for `tools/fuzz-layers`: whole ones of every kind of entry, and such as were damaged afterwards."""

import random
import zlib
from collections.abc import Callable

import zstandard

from tests.layer_cases import (
    CAPABILITY,
    CASES,
    NAMED_ACL,
    PLAIN_ACL,
    acl,
    directory,
    entry,
    hard,
    layer,
    link,
    old_sparse,
    pax_entry,
    sparse_0_1,
    sparse_1_0,
    with_checksum,
    xattr,
)

PARENTS = ["a", "b", "c", "d"]
LEAVES = ["a", "f", "g", "h", "é", "\n", "x" * 90, "n" * 255, "a:b,c\\", "dev", ".wh.a", ".wh.f", ".wh..wh..opq"]
LEAF_WEIGHTS = [20, 20, 20, 20, 2, 2, 2, 1, 2, 1, 8, 8, 6]
ODD_NAMES = [".", "..", "", ".wh.", ".wh..", "m" * 256, "\x7f"]
XATTRS = [
    ("user.x", b"1"),
    ("user.x", b"v" * 4000),
    ("user.y", bytes(range(256))),
    ("user." + "n" * 249, b"1"),
    ("security.capability", CAPABILITY),
    ("security.foo", b"bar"),
    ("security.selinux", b"x"),
    ("user.overlay.opaque", b"y"),
    ("odd", b"1"),
    ("system.posix_acl_access", NAMED_ACL),
    ("system.posix_acl_access", PLAIN_ACL),
    ("system.posix_acl_default", NAMED_ACL),
]
BAD_XATTRS = [
    ("system.posix_acl_access", acl((1, 7, 0), (32, 7, 0))),
    ("user." + "n" * 251, b"1"),
    ("trusted.overlay.opaque", b"y"),
    ("trusted.overlay.metacopy", b""),
    ("", b""),
]
NUMBERS = [0, 1, -1, 7, 255, 65535, 65536, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 33, (1 << 63) - 1, -(1 << 62)]


def random_image(chance: random.Random) -> list[bytes]:
    """One to four layers, lowest first."""
    if chance.random() < 0.2:
        layers = list(chance.choice(CASES).layers)
    else:
        files: list[str] = []
        layers = [_random_layer(chance, files) for _ in range(chance.randint(1, 4))]
    if chance.random() < 0.4:
        index = chance.randrange(len(layers))
        for _ in range(chance.choice([1, 1, 2, 5])):
            layers[index] = chance.choice(DAMAGES)(chance, layers[index])
    if chance.random() < 0.2:
        index = chance.randrange(len(layers))
        layers[index] = _packed(chance, layers[index])
    return layers


def _path(chance: random.Random) -> str:
    """Parents and leaves mostly have names of their own, so that not every image has a file where a directory must be."""
    names = chance.choices(PARENTS, k=chance.choice([0, 0, 1, 1, 2, 3, 11])) + chance.choices(LEAVES, LEAF_WEIGHTS)
    if chance.random() < 0.01:
        names[chance.randrange(len(names))] = chance.choice(ODD_NAMES)
    return "/".join(names)


def _random_layer(chance: random.Random, files: list[str]) -> bytes:
    """`files` collects the paths that hard links may have for targets."""
    entries = [_random_entry(chance, files) for _ in range(chance.choice([0, 1, 3, 8, 8, 20]))]
    tar = layer(*entries)
    return tar if chance.random() < 0.9 else tar[:-1024]


def _random_entry(chance: random.Random, files: list[str]) -> bytes:
    path, choice = _path(chance), chance.random()
    odd = chance.random() < 0.02
    ids = (chance.choice([0, 0, 1, 65535]), chance.choice([1, 65536] if odd else [0, 0, 1, 65535]))
    mtime = chance.choice([-1, 0, 1, 1 << 33, 1234567890, chance.choice(NUMBERS) if odd else 5])
    mode = chance.randrange(0o10000)
    pax = [xattr(*chance.choice(XATTRS)) for _ in range(chance.choice([0] * 6 + [1, 1, 2, 5]))]
    if odd:
        pax.append((chance.choice([b"mtime", b"size", b"uid", b"gid", b"path", b"linkpath", b"atime", b"GNU.sparse.major"]), _text(chance)))
        pax.append(xattr(*chance.choice(BAD_XATTRS)))
    if choice < 0.25:
        pax = [pair for pair in pax if b"posix_acl_default" not in pair[0] or chance.random() < 0.3]
        return directory(path.rpartition("/")[0] + "/", mode=mode, ids=ids, mtime=mtime, pax=pax)
    pax = [pair for pair in pax if b"default" not in pair[0]]
    if choice < 0.58:
        data = chance.randbytes(chance.choice([0, 1, 511, 512, 513, 4095, 4096, 4097, 40000, 300000] if chance.random() < 0.3 else [0, 9]))
        files.append(path)
        return entry(path, data=data, mode=mode, ids=ids, mtime=mtime, pax=pax)
    if choice < 0.68:
        target = chance.choice(["/", "../", "./", "../../../"]) + _path(chance)
        return link(path, target, ids=ids, mtime=mtime, pax=[pair for pair in pax if b"user" not in pair[0]])
    if choice < 0.79 and files:
        target = chance.choice(files) if chance.random() < 0.97 else _path(chance)
        files.append(path)
        return hard(path, target)
    if choice < 0.84:
        return entry(path, chance.choice("346"), device=(chance.choice([1, 4095]), chance.choice([0, 3, 255, 70000])), mode=mode)
    if choice < 0.90:
        return _sparse(chance, path)
    if choice < 0.92 and odd:
        return entry(path, chance.choice("\x00789LKVMANZ?"), _text(chance) + b"\0")
    return pax_entry([(b"comment", b"c"), xattr(*chance.choice(XATTRS))], "g")


def _text(chance: random.Random) -> bytes:
    number = chance.choice(NUMBERS)
    return chance.choice(
        [b"%d" % number, b"%d.%d" % (number, chance.choice([0, 5, 1234567890])), b"", b"x", chance.randbytes(9), b"../" * 9]
    )


def _sparse(chance: random.Random, path: str) -> bytes:
    offsets, at = [], 0
    stored = [chance.randbytes(chance.choice([0, 1, 512, 600])) for _ in range(chance.choice([0, 1, 2, 5, 30]))]
    for data in stored:
        at += chance.choice([0, 1, 512, 4096, 100000])
        offsets.append(at)
        at += len(data)
    if offsets and chance.random() < 0.02:
        offsets[-1] = abs(chance.choice(NUMBERS))
    size = at + chance.choice([0, 0, 1, 4096]) if chance.random() < 0.98 else abs(chance.choice(NUMBERS))
    return chance.choice([old_sparse, sparse_1_0, sparse_0_1])(path, size, offsets, stored)


def _flip(chance: random.Random, tar: bytes) -> bytes:
    """A byte changed; mostly in a header, and then mostly with a right checksum."""
    if not tar:
        return tar
    at = chance.randrange(len(tar))
    block = at - at % 512
    if chance.random() < 0.7:
        at = block + chance.choice(
            [0, 1, 99, 100, 107, 108, 116, 124, 125, 135, 136, 148, 156, 157, 257, 263, 329, 337, 345, 386, 482, 483]
        )
    if at >= len(tar):
        return tar
    tar = tar[:at] + bytes([chance.choice([0, 0x2F, 0x30, 0x37, 0x80, 0xFF, chance.randrange(256)])]) + tar[at + 1 :]
    if chance.random() < 0.8 and block + 512 <= len(tar):
        tar = tar[:block] + with_checksum(tar[block : block + 512]) + tar[block + 512 :]
    return tar


def _cut(chance: random.Random, tar: bytes) -> bytes:
    return tar[: chance.randrange(len(tar) + 1)]


def _splice(chance: random.Random, tar: bytes) -> bytes:
    """A block moved, doubled or left out."""
    blocks = [tar[i : i + 512] for i in range(0, len(tar), 512)] or [b""]
    at, to = chance.randrange(len(blocks)), chance.randrange(len(blocks))
    block = blocks[at] if chance.random() < 0.5 else blocks.pop(at)
    blocks.insert(to, block)
    return b"".join(blocks)


def _mix(chance: random.Random, tar: bytes) -> bytes:
    other = _random_layer(chance, [])
    return tar[: chance.randrange(len(tar) // 512 + 1) * 512] + other


DAMAGES: list[Callable[[random.Random, bytes], bytes]] = [_flip, _flip, _flip, _cut, _splice, _mix]


def _packed(chance: random.Random, tar: bytes) -> bytes:
    """gzipped, or by zstd in one frame or more, whole or damaged."""
    if chance.random() < 0.4:
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        blob = packer.compress(tar) + packer.flush()
    else:
        half = chance.choice([0, len(tar) // 2])
        frames = [zstandard.ZstdCompressor(1).compress(part) for part in (tar[:half], tar[half:]) if part or not half]
        skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"  # RFC 8878, 3.1.2
        blob = skipped.join(frames) if chance.random() < 0.3 else b"".join(frames)
    return blob if chance.random() < 0.5 else chance.choice([_flip, _cut])(chance, blob)

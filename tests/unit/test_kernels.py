# SPDX-License-Identifier: Apache-2.0
"""Kernel images of guests: which version they are, and that an unpacked one is what was packed, or is left to xl."""

import gzip
import os
import struct
from pathlib import Path

import pytest
import zstandard

from rktd_units import kernels
from rktd_units.paths import Layout

ELF = b"\x7fELF" + os.urandom(3_000_000)


def bz_image(payload: bytes, size: int) -> bytes:
    """What Linux' arch/x86/boot makes: a setup of four sectors, code, the compressed kernel, its size."""
    image = bytearray(5 * 512)
    image[0x1F1] = 4
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    image[0x300:0x310] = b"6.12.1-amd64 x\0\0"
    struct.pack_into("<II", image, 0x248, 1000, len(payload) + 4)
    return bytes(image) + bytes(1000) + payload + struct.pack("<I", size) + bytes(5000)


def unpacked(tmp_path: Path, image: bytes) -> Path:
    path = tmp_path / "vmlinuz-1"
    path.write_bytes(image)
    return Path(kernels.ready_image(Layout(str(tmp_path)), kernels.Kernel(str(path), "1")))


def test_an_unpacked_kernel_is_kept(tmp_path: Path) -> None:
    image = bz_image(zstandard.compress(ELF), len(ELF))
    found = unpacked(tmp_path, image)
    assert found.read_bytes() == ELF
    time = found.stat().st_ino
    assert kernels.ready_image(Layout(str(tmp_path)), kernels.Kernel(str(tmp_path / "vmlinuz-1"), "1")) == str(found)
    assert found.stat().st_ino == time
    for byte in b"abc":
        os.unlink(tmp_path / "vmlinuz-1")
        newest = unpacked(tmp_path, image + bytes((byte,)) * byte)
    assert newest != found
    assert len(list(found.parent.iterdir())) == 2


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\x7fELF" + bytes(5000),
        bz_image(zstandard.compress(ELF), len(ELF) + 1),
        bz_image(zstandard.compress(ELF)[:4] + b"\xff" * 100, 5000),
        bz_image(zstandard.compress(bytes(5000)), 5000),
        bz_image(zstandard.compress(ELF), 1 << 31),
        bz_image(gzip.compress(ELF), len(ELF)),
        bz_image(b"\xfd7zXZ\0" + bytes(100), 5000),
        bz_image(zstandard.compress(ELF), len(ELF))[:9000],
    ],
)
def test_what_cannot_be_unpacked_is_xls(tmp_path: Path, image: bytes) -> None:
    assert unpacked(tmp_path, image) == tmp_path / "vmlinuz-1"
    assert [path.name for path in tmp_path.rglob("*.kernel") if path.name != ".kernel"] == []


def test_a_version(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz-other"
    path.write_bytes(bz_image(b"", 0))
    assert kernels.read_version(str(path)) == "6.12.1-amd64"
    path.write_bytes(b"ARM64")
    assert kernels.read_version(str(path)) == "other"

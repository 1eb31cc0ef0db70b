# SPDX-License-Identifier: Apache-2.0
"""The pod's own filter of system calls, run by a little interpreter of such programs."""

import errno
import struct

import pytest

from rktd_units.stage1.calls import render_filter, render_users_filter

X86_64, I386, ARM64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
ALLOW = 0x7FFF0000


def run(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would do: seccomp(2), and linux/bpf_common.h."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    value, at = 0, 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif operation == 0x06:
            return int(operand)
        elif operation == 0x54:
            value &= operand
        else:
            assert operation in (0x15, 0x35, 0x45)
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[operation]
            at += if_true if holds else if_false


def refusal(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize(
    ("machine", "architecture", "refused", "allowed", "socket"),
    [
        ("x86_64", X86_64, (248, 250, 321, 298, 246, 175, 103, 153, 163, 447), (0, 1, 59, 56, 101, 165, 169, 317, 323, 425), 41),
        ("x86_64", I386, (286, 288, 357, 336, 283, 128, 103, 111, 51, 25, 113), (3, 4, 11, 120, 26, 21, 88, 354), 359),
        ("aarch64", ARM64, (217, 219, 280, 241, 104, 105, 116, 58, 89), (63, 64, 221, 220, 117, 40, 142, 277), 198),
        ("aarch64", ARM, (309, 311, 386, 364, 347, 128, 103, 111, 51), (3, 4, 11, 120, 26, 21, 88, 383), 281),
    ],
    ids=["x86-64", "i386", "arm64", "arm"],
)
def test_calls(machine: str, architecture: int, refused: tuple[int, ...], allowed: tuple[int, ...], socket: int) -> None:
    """Of keys, bpf, perf, kexec, modules, the log, terminals, accounting; not reading, executing, cloning, tracing, mounting, rebooting."""
    program = render_filter(machine)
    assert {run(program, architecture, number) for number in refused} == {refusal(errno.EPERM)}
    assert {run(program, architecture, number) for number in allowed} == {ALLOW}
    assert run(program, architecture, socket, 16, 3, 9) == refusal(errno.EAFNOSUPPORT)  # NETLINK_AUDIT
    assert run(program, architecture, socket, 16, 3, 0) == run(program, architecture, socket, 2, 1, 9) == ALLOW


def test_other_architectures() -> None:
    program = render_filter("x86_64")
    assert run(program, X86_64, 0x40000000) == refusal(errno.ENOSYS)  # x32
    assert run(program, ARM64, 63) == refusal(errno.ENOSYS)
    assert render_filter("riscv64") == b""


@pytest.mark.parametrize(
    ("machine", "architecture", "mmap", "memfd", "shmget"),
    [("x86_64", X86_64, 9, 319, 29), ("x86_64", I386, 192, 356, 395), ("aarch64", ARM64, 222, 279, 194), ("aarch64", ARM, 192, 385, 307)],
    ids=["x86-64", "i386", "arm64", "arm"],
)
def test_huge_pages(machine: str, architecture: int, mmap: int, memfd: int, shmget: int) -> None:
    """Without a file, whatever flags are there besides; not for pods that have limits of them."""
    program, with_limits = render_filter(machine), render_filter(machine, huge_pages=True)
    for number, plain, huge in (
        (mmap, (0, 4096, 3, 0x22), (0, 4096, 3, 0x40022)),
        (memfd, (0, 3), (0, 7)),
        (shmget, (0, 4096, 0o1600), (0, 4096, 0o5600)),
    ):
        assert run(program, architecture, number, *plain) == ALLOW
        assert run(program, architecture, number, *huge) == refusal(errno.ENOMEM)
        assert run(with_limits, architecture, number, *huge) == ALLOW


def test_huge_pages_by_old_calls() -> None:
    program = render_filter("x86_64")
    assert run(program, I386, 90, 0) == refusal(errno.ENOSYS)
    for version in (0, 1 << 16):
        assert run(program, I386, 117, version | 23, 0, 4096, 0o5600) == refusal(errno.ENOMEM)
        assert run(program, I386, 117, version | 23, 0, 4096, 0o1600) == ALLOW
        assert run(program, I386, 117, version | 11, 0, 4096, 0o4000) == ALLOW  # msgsnd, IPC_NOWAIT


@pytest.mark.parametrize(("machine", "architecture", "unshare"), [("x86_64", X86_64, 272), ("aarch64", ARM64, 97)], ids=["x86-64", "arm64"])
def test_no_other_users(machine: str, architecture: int, unshare: int) -> None:
    """unshare(2) of a user name space is refused, alone or with others; of others it is not."""
    program = render_users_filter(machine)
    for flags, result in ((0x10000000, refusal(errno.EPERM)), (0x10020000, refusal(errno.EPERM)), (0x00020000, ALLOW), (0, ALLOW)):
        assert run(program, architecture, unshare, flags) == result
    assert run(program, architecture, 56, 0x10000000) == ALLOW
    assert run(program, I386, unshare, 0x10000000) == ALLOW
    assert render_users_filter("riscv64") == b""

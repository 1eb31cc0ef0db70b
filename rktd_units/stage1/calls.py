# SPDX-License-Identifier: Apache-2.0
"""The system calls that no pod needs, as a seccomp program: what systemd-nspawn's own filters refuse in a user name space.

nspawn has libseccomp compile those anew at each start, for three architectures, of hundreds of calls that are allowed: 50 ms where many
pods start at once. This one is a table of what is refused, and shorter for each call of an app, too. Each app has a filter of its own
besides (confine.py); this one is for what has none, such as the pod's PID 1. Pure.
"""

import errno
import struct

# Of x86-64, i386, arm64 and arm; -1 where there is none. clock_settime64 and so on are of 32 bits.
_REFUSED = {
    "acct": (163, 51, 89, 51),
    "add_key": (248, 286, 217, 309),
    "adjtimex": (159, 124, 171, 124),
    "bpf": (321, 357, 280, 386),
    "clock_adjtime": (305, 343, 266, 372),
    "clock_adjtime64": (-1, 405, -1, 405),
    "clock_settime": (227, 264, 112, 262),
    "clock_settime64": (-1, 404, -1, 404),
    "delete_module": (176, 129, 106, 129),
    "fanotify_init": (300, 338, 262, 367),
    "finit_module": (313, 350, 273, 379),
    "init_module": (175, 128, 105, 128),
    "ioperm": (173, 101, -1, -1),
    "iopl": (172, 110, -1, -1),
    "kexec_file_load": (320, -1, 294, 401),
    "kexec_load": (246, 283, 104, 347),
    "keyctl": (250, 288, 219, 311),
    "lookup_dcookie": (212, 253, 18, 249),
    "map_shadow_stack": (453, 453, 453, 453),
    "memfd_secret": (447, 447, 447, -1),
    "modify_ldt": (154, 123, -1, -1),
    "open_by_handle_at": (304, 342, 265, 371),
    "perf_event_open": (298, 336, 241, 364),
    "pidfd_getfd": (438, 438, 438, 438),
    "process_mrelease": (448, 448, 448, 448),
    "quotactl": (179, 131, 60, 131),
    "quotactl_fd": (443, 443, 443, 443),
    "request_key": (249, 287, 218, 310),
    "settimeofday": (164, 79, 170, 79),
    "stime": (-1, 25, -1, -1),
    "swapoff": (168, 115, 225, 115),
    "swapon": (167, 87, 224, 87),
    "sysfs": (139, 135, -1, 135),
    "syslog": (103, 103, 116, 103),
    "uselib": (134, 86, -1, 86),
    "ustat": (136, 62, -1, 62),
    "vhangup": (153, 111, 58, 111),
    "vm86": (-1, 166, -1, -1),
    "vm86old": (-1, 113, -1, -1),
}
_SOCKET = (41, 359, 198, 281)
# Calls for huge pages without a file, in the same columns; the argument that says so, and MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB.
_HUGE = (((9, 192, 222, 192), 3, 0x40000), ((319, 356, 279, 385), 1, 0x4), ((29, 395, 194, 307), 2, 0x800))
_UNSHARE = (272, 310, 97, 337)
_NEW_USER = 0x10000000  # CLONE_NEWUSER
_I386 = 1  # its column: it has two calls of old for the same
_OLD_MMAP, _IPC, _IPC_SHMGET, _IPC_FLAGS = 90, 117, 23, 3  # the first has its arguments in memory, where no filter sees them
_AF_NETLINK, _NETLINK_AUDIT = 16, 9
# linux/audit.h: the machine's own architecture, that of its 32-bit programs, and their columns above.
_MACHINES = {"x86_64": ((0xC000003E, 0), (0x40000003, 1)), "aarch64": ((0xC00000B7, 2), (0x40000028, 3))}
_X32 = 0x40000000  # __X32_SYSCALL_BIT of asm/unistd.h
_AND, _ANY_OF = 0x54, 0x45  # BPF_ALU|AND|K, BPF_JMP|JSET|K
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K; linux/bpf_common.h
_NUMBER, _ARCHITECTURE, _FAMILY, _PROTOCOL = 0, 4, 16, 32  # offsets in struct seccomp_data; the low halves of arguments 0 and 2
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000  # SECCOMP_RET_*, linux/seccomp.h


def render_filter(machine: str, *, huge_pages: bool = False) -> bytes:
    """The program for a machine as uname(2) names it, in struct sock_filter (linux/filter.h); empty for one that is not known here.

    `huge_pages`: whether they may be had without a file, which no limit holds.
    """
    if machine not in _MACHINES:
        return b""
    program = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for architecture, column in _MACHINES[machine]:
        part = _render_part(column, huge_pages)
        program += [(_EQUAL, 0, len(part), architecture), *part]
    program.append((_RETURN, 0, 0, _FAIL | errno.ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def render_users_filter(machine: str) -> bytes:
    """Refuses to leave the user name space by unshare(2), to programs of the machine's own architecture; empty as `render_filter`'s."""
    if machine not in _MACHINES:
        return b""
    architecture, column = _MACHINES[machine][0]
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 0, 5, architecture), (_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 3, _UNSHARE[column])]
    program += [(_LOAD, 0, 0, _FAMILY), (_ANY_OF, 0, 1, _NEW_USER), (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _render_part(column: int, huge_pages: bool) -> list[tuple[int, int, int, int]]:
    """For calls of one architecture; it returns in any case."""
    numbers = [calls[column] for calls in _REFUSED.values() if calls[column] >= 0]
    audit = [
        (_EQUAL, 0, 5, _SOCKET[column]),
        (_LOAD, 0, 0, _FAMILY),
        (_EQUAL, 0, 3, _AF_NETLINK),
        (_LOAD, 0, 0, _PROTOCOL),
        (_EQUAL, 0, 1, _NETLINK_AUDIT),
        (_RETURN, 0, 0, _FAIL | errno.EAFNOSUPPORT),  # what programs take for a kernel without audit
    ]
    if not huge_pages:
        audit = [*_huge_checks(column), *audit]
    ends = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    refused = [(_EQUAL, len(numbers) - index - 1 + len(audit) + 1, 0, number) for index, number in enumerate(numbers)]
    checks = [(_AT_LEAST, len(refused) + len(audit) + 2, 0, _X32), *refused]
    return [(_LOAD, 0, 0, _NUMBER), *checks, *audit, *ends]


def _huge_checks(column: int) -> list[tuple[int, int, int, int]]:
    """ENOMEM, as where no huge pages are left: programs then take others. Goes on for all other calls."""
    found: list[tuple[int, int, int, int]] = []
    for calls, argument, flag in _HUGE:
        found += [(_EQUAL, 0, 4, calls[column]), (_LOAD, 0, 0, _FAMILY + 8 * argument), *_refuse_any(flag)]
    if column == _I386:
        found += [(_EQUAL, 0, 1, _OLD_MMAP), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
        found += [(_EQUAL, 0, 7, _IPC), (_LOAD, 0, 0, _FAMILY), (_AND, 0, 0, 0xFFFF), (_EQUAL, 0, 3, _IPC_SHMGET)]
        found += [(_LOAD, 0, 0, _FAMILY + 8 * _IPC_FLAGS), *_refuse_any(_HUGE[2][2])]
    return found


def _refuse_any(flag: int) -> list[tuple[int, int, int, int]]:
    return [(_ANY_OF, 0, 1, flag), (_RETURN, 0, 0, _FAIL | errno.ENOMEM), (_RETURN, 0, 0, _ALLOW)]

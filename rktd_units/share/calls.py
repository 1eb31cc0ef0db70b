# SPDX-License-Identifier: Apache-2.0
"""The system calls that the file server has no use for and root needs no capability for, as a seccomp program of x86-64. Pure.

Of other processes of the host, whose root it is too; of new processes, programs, name spaces and mounts; of sockets, which a volume may
have; of parts of the kernel that are seldom used, and often attacked. What needs a capability it cannot do anyway.
"""

import errno
import struct

# asm/unistd_64.h
REFUSED = {
    "add_key": 248,
    "bpf": 321,
    "clone": 56,
    "clone3": 435,
    "execve": 59,
    "execveat": 322,
    "fork": 57,
    "fsopen": 430,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "io_uring_setup": 425,
    "ioprio_set": 251,
    "kcmp": 312,
    "keyctl": 250,
    "kill": 62,
    "migrate_pages": 256,
    "move_pages": 279,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "open_tree": 428,
    "perf_event_open": 298,
    "pidfd_getfd": 438,
    "pidfd_open": 434,
    "pidfd_send_signal": 424,
    "prlimit64": 302,
    "process_madvise": 440,
    "process_mrelease": 448,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "ptrace": 101,
    "request_key": 249,
    "rt_sigqueueinfo": 129,
    "rt_tgsigqueueinfo": 297,
    "sched_setaffinity": 203,
    "sched_setattr": 314,
    "sched_setparam": 142,
    "sched_setscheduler": 144,
    "setns": 308,
    "setpriority": 141,
    "socket": 41,
    "socketpair": 53,
    "tgkill": 234,
    "tkill": 200,
    "unshare": 272,
    "userfaultfd": 323,
    "vfork": 58,
}
_FCNTL = 72
# F_SETOWN, F_SETSIG, F_SETOWN_EX (linux/fcntl.h, asm-generic/fcntl.h): with them the kernel sends a process of anybody's a signal.
_OWNERS = (8, 10, 15)
_X86_64 = 0xC000003E  # linux/audit.h
_X32 = 0x40000000  # __X32_SYSCALL_BIT of asm/unistd.h
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K; linux/bpf_common.h
_NUMBER, _ARCHITECTURE, _SECOND = 0, 4, 24  # offsets in struct seccomp_data; the last one is the low half of the second argument
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000 | errno.EPERM  # SECCOMP_RET_*, linux/seccomp.h


def render_filter() -> bytes:
    """In struct sock_filter (linux/filter.h). Calls of other architectures fail, too."""
    numbers = sorted(REFUSED.values())
    rest = [(_EQUAL, 0, len(_OWNERS) + 1, _FCNTL), (_LOAD, 0, 0, _SECOND)]
    rest += [(_EQUAL, len(_OWNERS) - index, 0, command) for index, command in enumerate(_OWNERS)]
    rest += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _FAIL)]
    left = len(numbers) + len(rest) - 1  # from the first comparison of a number to the failure
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 0, left + 2, _X86_64)]
    program += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, left, 0, _X32)]
    program += [(_EQUAL, left - index - 1, 0, number) for index, number in enumerate(numbers)]
    program += rest
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)

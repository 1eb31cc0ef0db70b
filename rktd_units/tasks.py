# SPDX-License-Identifier: Apache-2.0
"""System calls that `os` lacks, typed: name spaces of processes, capabilities, seccomp, the few of prctl(2), inotify. Twin of mounts.py.

Errors are OSError that name the call. Numbers are those of the kernel's uapi headers, the same on every architecture but for keyctl(2).
"""

import ctypes
import errno
import os

CLONE_NEWTIME = 0x80
CLONE_NEWPID = 0x20000000
# /proc/PID/ns/NAME -> the flag of setns(2)
NAMESPACES = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": CLONE_NEWPID,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": CLONE_NEWTIME,
}
_SEIZE_TRIES = 60
FILTER_MAX = 256  # seccomp filters of one process that are read; each has 32768 bytes at most
CAP_SYS_ADMIN = 1 << 21
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 8, 22, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_CAP_AMBIENT_RAISE, _CAP_AMBIENT_CLEAR_ALL = 2, 4
_SECCOMP_MODE_FILTER = 2
_PTRACE_DETACH, _PTRACE_SEIZE, _PTRACE_INTERRUPT, _PTRACE_SECCOMP_GET_FILTER = 17, 0x4206, 0x4207, 0x420C
_WALL = 0x40000000  # __WALL of waitpid(2)
_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.syscall.restype = ctypes.c_long


_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x8, 0x80


def watch_directory(path: str) -> int:
    """A descriptor that is readable when a file in the directory has been written, or moved there (inotify(7)). Non-blocking."""
    descriptor = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor < 0 or _libc.inotify_add_watch(descriptor, os.fsencode(path), _IN_CLOSE_WRITE | _IN_MOVED_TO) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return descriptor


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
    return int(result)


def _prctl(what: str, option: int, *values: int) -> None:
    padded = [*values, *([0] * (4 - len(values)))]
    _check(_libc.prctl(option, *(ctypes.c_ulong(v) for v in padded)), what)


def join_namespaces(descriptor: int, flags: int) -> None:
    """setns(2): of a pidfd, those name spaces of the process that `flags` names, all or none."""
    _check(_libc.setns(descriptor, ctypes.c_int(flags)), "setns")


def differing_namespaces(pid: int) -> int:
    """The flags of the name spaces of a process that are not ours: setns(2) refuses one's own user name space."""
    flags = 0
    for name, flag in NAMESPACES.items():
        try:
            theirs, ours = os.stat(f"/proc/{pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")
        except FileNotFoundError:
            continue
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            flags |= flag
    return flags


def forbid_dumps() -> None:
    """No other process, root of a pod included, may trace this one or look into it, until it executes something else."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def die_with_parent(signal: int) -> None:
    """The kernel sends this signal when the parent has gone; forgotten whenever ids change, so it comes after that."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal)


def keep_capabilities() -> None:
    """The next change of user ids leaves the permitted set as it is."""
    _prctl("PR_SET_KEEPCAPS", _PR_SET_KEEPCAPS, 1)


def forbid_new_privileges() -> None:
    """no_new_privs, for good."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def limit_bounding_set(kept: int, last: int) -> None:
    """Drops every capability that is not in the mask `kept` from the bounding set; `last` is the last one that the kernel knows."""
    for number in range(last + 1):
        if not kept >> number & 1:
            _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, number)


def set_capabilities(effective: int, permitted: int, inheritable: int, ambient: int) -> None:
    """capset(2), masks; and the ambient set."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low = 0xFFFFFFFF
    masks = (effective, permitted, inheritable)
    data = (ctypes.c_uint32 * 6)(*(m & low for m in masks), *(m >> 32 for m in masks))
    _check(_libc.capset(header, data), "capset")
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    for number in range(64):
        if ambient >> number & 1:
            _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _CAP_AMBIENT_RAISE, number)


def install_filter(program: bytes) -> None:
    """One seccomp filter, a sequence of struct sock_filter (8 bytes each)."""
    buffer = ctypes.create_string_buffer(program, len(program))
    record = _Program(len(program) // 8, ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(record), 0, 0), "PR_SET_SECCOMP")


def read_filters(pid: int, seconds: float = 1.0, *, unfiltered: bool = False) -> tuple[bytes, ...]:
    """The seccomp filters of a process, in the order in which they were installed. It stands still meanwhile, well below a millisecond.

    Needs CAP_SYS_ADMIN, a kernel with CONFIG_CHECKPOINT_RESTORE, and that we are under no filter ourselves: else EACCES or EIO.
    A process that has none at all is an error (EINVAL) but with `unfiltered`.
    """
    _seize(pid)
    try:
        _ptrace(_PTRACE_INTERRUPT, pid, 0, None, "PTRACE_INTERRUPT")
        _wait_stop(pid, seconds)
        filters: list[bytes] = []
        for index in range(FILTER_MAX):
            try:
                length = _ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index, None, "PTRACE_SECCOMP_GET_FILTER")
            except FileNotFoundError:
                return tuple(filters)
            except OSError as error:
                if unfiltered and error.errno == errno.EINVAL and not filters and not _is_filtered(pid):
                    return ()
                raise
            buffer = ctypes.create_string_buffer(length * 8)
            _ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index, ctypes.addressof(buffer), "PTRACE_SECCOMP_GET_FILTER")
            filters.append(buffer.raw)
        raise OSError(7, "too many seccomp filters", "PTRACE_SECCOMP_GET_FILTER")  # E2BIG
    finally:
        _libc.ptrace(ctypes.c_long(_PTRACE_DETACH), ctypes.c_long(pid), None, None)


def _seize(pid: int) -> None:
    """Again and again for a moment: somebody else may be looking at it."""
    import time

    for tries in range(_SEIZE_TRIES, -1, -1):
        try:
            _ptrace(_PTRACE_SEIZE, pid, 0, None, "PTRACE_SEIZE")
            return
        except PermissionError:
            if not tries:
                raise
            time.sleep(0.005)


def _is_filtered(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return "\nSeccomp:\t0\n" not in file.read()


def _wait_stop(pid: int, seconds: float) -> None:
    import time

    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, _WALL | os.WNOHANG)
        if found and os.WIFSTOPPED(status):
            return
        if found:
            raise ProcessLookupError(3, "the process has ended", f"process {pid}")
        if time.monotonic() > deadline:
            raise TimeoutError(110, "the process does not stop to be looked at", f"process {pid}")
        time.sleep(0.0002)


def _ptrace(request: int, pid: int, address: int, data: int | None, what: str) -> int:
    return _check(_libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), ctypes.c_void_p(data)), what)


def leave_keyring() -> None:
    """A session keyring of its own, empty. Where keyctl(2) does not exist or is denied to us, there is nothing to leave."""
    number = _KEYCTL.get(os.uname().machine)
    if number is None:
        return
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None)
    if result < 0 and ctypes.get_errno() not in (1, 38):  # EPERM, ENOSYS
        _check(result, "keyctl")

# SPDX-License-Identifier: Apache-2.0
"""The mount and name space system calls that `os` lacks, typed; tasks.py has those on processes; nothing else uses ctypes.

Numbers are those of include/uapi/asm-generic/unistd.h, the same on every architecture but for two. Errors are OSError with the path,
and with the kernel's own text from the file system context where there is one. Every descriptor is close-on-exec.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from typing import NoReturn

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC, ATTR_IDMAP = 1, 2, 4, 8, 0x00100000
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x01, 0x02, 0x04, 0x10
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
MS_PRIVATE, MS_SLAVE, MS_REC = 1 << 18, 1 << 19, 1 << 14
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 437, 442
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_PIVOT_ROOT = 155 if os.uname().machine == "x86_64" else 41
_FINIT_MODULE = 313 if os.uname().machine == "x86_64" else 273
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("userns", ctypes.c_uint64)]


def _call(number: int, *args: object, what: str) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
    return result


def _text(value: str) -> ctypes.c_char_p:
    return ctypes.c_char_p(os.fsencode(value))


def openat2(directory: int, path: str, flags: int, resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, mode: int = 0) -> int:
    """Opens `path` below the directory descriptor without ever leaving it: symbolic links and `..` stay inside (openat2(2))."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _call(_OPENAT2, directory, _text(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)), what=path)


def clone_tree(path: str, directory: int = AT_FDCWD, *, recursive: bool = False, what: str = "") -> int:
    """A detached copy of the mount at `path` (open_tree(2)); an empty path copies what the descriptor itself names, `what` in errors."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    return _call(_OPEN_TREE, directory, _text(path), ctypes.c_uint(flags), what=what or path)


def set_attributes(mount: int, attributes: int, *, userns: int = -1, recursive: bool = False, what: str = "") -> None:
    """Sets ATTR_* on a mount (mount_setattr(2)) and ends its propagation; with `userns`, id-maps a detached one by that name space."""
    attr = _MountAttr(attributes | (ATTR_IDMAP if userns >= 0 else 0), 0, MS_PRIVATE, max(userns, 0))
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _call(_MOUNT_SETATTR, mount, _text(""), ctypes.c_uint(flags), ctypes.byref(attr), ctypes.c_size_t(ctypes.sizeof(attr)), what=what)


def attach(mount: int, target: str, directory: int = AT_FDCWD) -> None:
    """Attaches a detached mount at `target` (move_mount(2)); an empty target is what `directory` itself names."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    _call(_MOVE_MOUNT, mount, _text(""), directory, _text(target), ctypes.c_uint(flags), what=target)


def new_mount(filesystem: str, options: tuple[tuple[str, str], ...], attributes: int = ATTR_NOSUID | ATTR_NODEV) -> int:
    """A detached new mount (fsopen(2)). An option with value "" is a flag, such as ("ro", "")."""
    context = _call(_FSOPEN, _text(filesystem), ctypes.c_uint(1), what=filesystem)
    try:
        for key, value in options:
            command, text = (_SET_STRING, _text(value)) if value else (_SET_FLAG, None)
            _call(_FSCONFIG, context, ctypes.c_uint(command), _text(key), text, 0, what=f"{filesystem}: {key}={value}")
        _call(_FSCONFIG, context, ctypes.c_uint(_CREATE), None, None, 0, what=filesystem)
        return _call(_FSMOUNT, context, ctypes.c_uint(1), ctypes.c_uint(attributes), what=filesystem)
    except OSError as error:
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)} ({_kernel_messages(context)})", error.filename) from error
    finally:
        os.close(context)


def _kernel_messages(context: int) -> str:
    lines: list[str] = []
    while len(lines) < 8:
        try:
            lines.append(os.read(context, 4096).decode("utf-8", "replace").strip())
        except OSError:
            break
    return "; ".join(lines) or "the kernel says no more"


def execute_apart(program: str, argv: list[str], environment: dict[str, str]) -> NoReturn:
    """Replaces this process by a program, which is executed from a read-only mount of its own.

    Where what it becomes is hostile, and has it executed again (`/proc/self/exe`, CVE-2019-5736), nobody can write to it.
    """
    clone = clone_tree(program)
    set_attributes(clone, ATTR_RDONLY, what=program)
    os.execve(clone, argv, environment)


def unmount(path: str, flags: int = UMOUNT_NOFOLLOW) -> None:
    """umount2(2)."""
    if _libc.umount2(_text(path), flags) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)


def pivot_root() -> None:
    """Makes the mount that is the working directory the root; the old root goes (pivot_root(2), NOTES: `.` for both)."""
    if _libc.syscall(ctypes.c_long(_PIVOT_ROOT), _text("."), _text(".")) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "pivot_root")
    unmount(".", MNT_DETACH)
    os.chdir("/")


def unshare(flags: int) -> None:
    """unshare(2), which `os` has from Python 3.12 on."""
    if _libc.unshare(flags) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "unshare")


def load_module(path: str) -> None:
    """Loads a kernel module from an uncompressed file (finit_module(2)); one that is there already is fine."""
    module = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(_FINIT_MODULE, module, _text(""), ctypes.c_int(0), what=path)
    except FileExistsError:
        pass
    finally:
        os.close(module)


def id_map_namespace(base: int, size: int) -> int:
    """A descriptor of a new user name space that maps ids 0..size-1 to host ids base.., for `set_attributes`."""
    alive_read, alive_write = os.pipe()
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            unshare(CLONE_NEWUSER)
            os.write(ready_write, b"1")
            os.close(alive_write)
            os.read(alive_read, 1)
        finally:
            os._exit(0)
    try:
        os.close(alive_read)
        os.close(ready_write)
        if not os.read(ready_read, 1):
            raise OSError(1, "cannot make a user name space", "unshare")
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
                file.write(f"0 {base} {size}\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(alive_write)
        os.close(ready_read)
        os.waitpid(child, 0)


def run_as_root_of(userns: int, action: Callable[[], object]) -> None:
    """Runs `action` in a child process that is root of that user name space, and has no power beyond it. Its OSError is raised here.

    For what host root cannot do in an id-mapped mount, having no id there.
    """
    child = os.fork()
    if child == 0:
        code = errno.EIO
        try:
            if _libc.setns(userns, CLONE_NEWUSER) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            os.setresgid(0, 0, 0)
            os.setgroups(())
            os.setresuid(0, 0, 0)
            action()
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        code = code if code > 0 else errno.EIO
        raise OSError(code, os.strerror(code))


def list_mounts() -> list[str]:
    """Every mount point of this name space, the last mounted first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file]
    return [point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\") for point in reversed(points)]


def filesystem_type(path: str) -> str:
    """The type of the file system that holds `path`, from mountinfo (proc_pid_mountinfo(5)); the longest mount point wins."""
    best, kind = "", "unknown"
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            point = fields[4]
            if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
                best, kind = point, fields[fields.index("-") + 1]
    return kind

# SPDX-License-Identifier: Apache-2.0
"""The first root of Xen guests: an archive of this host's own systemd, shell, python and kernel modules, and what those need.

Made of the host's files once per kernel and per state of those files, kept in /var/lib/rktd/xen; a pod's own archive is appended to it.
Not made by dracut: that takes a minute under emulation, and its initrds bring up a machine, of which a pod's guest has no need.
"""

import functools
import hashlib
import lzma
import marshal
import os
import signal
import stat
import struct
from collections.abc import Iterable, Iterator
from importlib.util import MAGIC_NUMBER
from typing import NamedTuple

from rktd_units.errors import StateError
from rktd_units.kernels import Kernel
from rktd_units.paths import Layout
from rktd_units.runfiles import keep_latest, list_names, lock
from rktd_units.stage1 import cpio

# What PID 1, its helpers and our units execute; libraries come with them.
PROGRAMS = (
    "/usr/lib/systemd/systemd",
    "/usr/lib/systemd/systemd-executor",
    "/usr/lib/systemd/systemd-shutdown",
    "/usr/bin/systemctl",
    "/usr/bin/sh",
    "/usr/bin/bash",
    "/usr/bin/cat",
    "/usr/bin/mv",
    "/usr/bin/sleep",
    "/usr/bin/true",
    "/usr/sbin/ip",
    "/usr/lib/rktd/prober",
    "/usr/lib/rktd/hook",
    "/usr/bin/python3",
)
# What the kernel calls when it is to end, in this root, where no socket of PID 1 is: signals do the same (systemd(1), SIGRTMIN+4 and +5).
_ENDS = (("usr/sbin/poweroff", signal.SIGRTMIN + 4), ("usr/sbin/reboot", signal.SIGRTMIN + 5))
# Libraries that systemd opens when it needs them, where it is not linked to them.
_OPENED = ("libkmod.so.2", "libseccomp.so.2", "libmount.so.1", "libblkid.so.1", "libacl.so.1")
_LIBRARY_PATH = ("/usr/lib64", "/usr/lib", "/lib64", "/lib")
# In the order in which they are loaded, each after what it needs; one that a kernel has built in is none.
MODULES = (
    "crc32c_generic",
    "libcrc32c",
    "erofs",
    "overlay",
    "xen-blkfront",
    "xen-netfront",
    "autofs4",
    "9p",
    "9pnet_xen",
    "xen-evtchn",
    "xen-gntalloc",
)
_SYSTEM_UNITS = "/usr/lib/systemd/system"
_MODULE_PLACE = "modules"  # in the archive
# What ends a guest early in its start must wait until systemd reads it: signals that PID 1 neither handles nor blocks are lost.
_INIT = f"""#!/usr/bin/python3 -IS
import _signal
import sys

_signal.pthread_sigmask(_signal.SIG_BLOCK, {[int(number) for _, number in _ENDS]})
sys.path += ["/usr/lib/rktd"]
from rktd_units.stage1.guest import main

main()
"""
_OUR_MODULES = (
    "rktd_units.stage1.guest",
    "rktd_units.stage1.guestexec",
    "rktd_units.stage1.guestprobes",
    "rktd_units.prober",
    "rktd_units.hook",
    "signal",
    "urllib.parse",
    "encodings.ascii",
    "encodings.latin_1",
)
_RECIPE = (__file__, cpio.__file__)  # other ones after an upgrade, which may put other entries into the archive
_KEPT = 3  # archives


class Initrd(NamedTuple):
    """An archive, and the paths in it of the modules that are to be loaded, in order."""

    path: str
    modules: tuple[str, ...]


def ready_initrd(layout: Layout, kernel: Kernel) -> Initrd:
    """The archive for that kernel and the host's present files; made where there is none. Killed at any point, the next one is right."""
    with lock(layout, "initrd"):
        sources = list(find_files(kernel.version))
        modules = tuple(f"/{entry}" for entry, _ in sources if entry.startswith(f"{_MODULE_PLACE}/"))
        key = _stamp(sources)
        target = f"{layout.guests}/{key}.cpio"
        if not os.path.exists(target):
            os.makedirs(layout.guests, mode=0o700, exist_ok=True)
            _write(target, sources)
            keep_latest(layout.guests, ".cpio", _KEPT)
        os.utime(target)
        return Initrd(target, modules)


def find_files(version: str) -> Iterator[tuple[str, str]]:
    """(path in the archive, path here): all that is copied. Python modules are (PATH.pyc, PATH.py)."""
    yield from _find_modules(version)
    seen: set[str] = set()
    directories: dict[str, None] = {}  # where libraries were found, or are looked for
    queue = list(PROGRAMS)
    while queue:
        path = queue.pop(0)
        if path in seen:
            continue
        seen.add(path)
        real = os.path.realpath(path)
        try:
            needed = read_needed(real)
        except OSError as error:
            raise StateError(f"a Xen guest needs {path}: {error.strerror}", hint="it is copied from this host") from error
        yield f"{os.path.realpath(os.path.dirname(path))}/{os.path.basename(path)}".removeprefix("/"), real
        directories.update(dict.fromkeys(needed.path))
        if needed.interpreter:
            directories[os.path.dirname(os.path.realpath(needed.interpreter))] = None
            queue.append(needed.interpreter)
        for library in needed.libraries:
            found = _find_library(library, directories)
            if not found:
                raise StateError(f"a Xen guest needs {library} for {path}, which this host has not")
            queue.append(found)
        if path == PROGRAMS[-1]:
            queue += [found for found in (_find_library(name, directories) for name in _OPENED) if found]
            yield from ((source.removeprefix("/") + "c", source) for source in _python_files() if source.endswith(".py"))
            queue += [source for source in _python_files() if source.endswith(".so")]


class Needed(NamedTuple):
    """What a program or library asks the dynamic linker for."""

    interpreter: str
    libraries: tuple[str, ...]
    path: tuple[str, ...]


def read_needed(path: str) -> Needed:
    """From its ELF headers (elf(5)), of 64 bits. A script needs nothing."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:5] != b"\x7fELF\2":
        return Needed("", (), ())
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    loads = [(address, address + length, at) for kind, _, at, address, _, length in headers if kind == 1]
    interpreter = next((data[at : at + length].rstrip(b"\0").decode() for kind, _, at, _, _, length in headers if kind == 3), "")
    entries: list[tuple[int, int]] = []
    for kind, _, at, _, _, length in headers:
        if kind == 2:
            entries += list(struct.iter_unpack("<qQ", data[at : at + length - length % 16]))
    strings = next((address for tag, address in entries if tag == 5), 0)
    strings = next((strings - begin + at for begin, end, at in loads if begin <= strings < end), 0)

    def text(value: int) -> str:
        return data[strings + value : data.index(b"\0", strings + value)].decode()

    libraries = tuple(text(value) for tag, value in entries if tag == 1)
    paths = tuple(part for tag, value in entries if tag in (15, 29) for part in text(value).split(":") if "$" not in part)
    return Needed(interpreter, libraries, paths)


def _find_library(name: str, directories: Iterable[str]) -> str:
    return next((f"{d}/{name}" for d in (*directories, *_LIBRARY_PATH) if os.path.exists(f"{d}/{name}")), "")


def _find_modules(version: str) -> Iterator[tuple[str, str]]:
    """MODULES and what they need, in the order in which they are loaded: modules.dep (depmod(8))."""
    base = f"/usr/lib/modules/{version}"
    needs: dict[str, tuple[str, list[str]]] = {}
    try:
        with open(f"{base}/modules.dep", encoding="utf-8") as file:
            for line in file:
                path, _, rest = line.partition(":")
                needs[_module_name(path)] = (path, [_module_name(word) for word in rest.split()])
    except FileNotFoundError:
        raise StateError(f"there are no modules of the kernel {version} in {base}", hint="xen.kernel in /etc/rktd/rktd.yaml") from None
    done: set[str] = set()
    for name in MODULES:
        wanted = needs.get(_module_name(name))
        for each in [*reversed(wanted[1]), _module_name(name)] if wanted else ():
            if each not in done:
                done.add(each)
                yield f"{_MODULE_PLACE}/{len(done):02}-{each}.ko", f"{base}/{needs[each][0]}"


def _module_name(path: str) -> str:
    return os.path.basename(path).partition(".")[0].replace("-", "_")


@functools.cache
def _python_files() -> tuple[str, ...]:
    """Of our programs in the guest, and of all that they import."""
    from rktd_units.proc import run

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    script = (
        f"import sys; sys.path.insert(0, {package!r}); import {', '.join(_OUR_MODULES)}; "
        "print(*sorted({f for m in sys.modules.values() if (f := getattr(m, '__file__', None))}), sep='\\n')"
    )
    found = run(("/usr/bin/python3", "-IS", "-c", script)).stdout.decode().split("\n")
    return tuple(path for path in found if path.endswith((".py", ".so")))


def _stamp(sources: list[tuple[str, str]]) -> str:
    """Another one as soon as any of the files is another one, or what makes the archive of them."""
    digest = hashlib.sha256()
    files = [(name, path, os.stat(path)) for name, path in (*sources, *(("", path) for path in _RECIPE))]
    files += [("", path, os.lstat(path)) for path in _unit_paths()]
    for name, path, status in files:
        digest.update(f"{name}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\n".encode())
    return digest.hexdigest()


def _write(target: str, sources: list[tuple[str, str]]) -> None:
    temporary = f"{os.path.dirname(target)}/.new"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        for part in cpio.pack_archive(_entries(sources)):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, target)


def _entries(sources: list[tuple[str, str]]) -> Iterator[cpio.Entry]:
    yield from (cpio.directory(name) for name in ("dev", "proc", "sys", "run", "etc", "usr"))
    yield cpio.Entry("tmp", stat.S_IFDIR | 0o1777)
    yield cpio.Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    yield cpio.Entry("dev/urandom", stat.S_IFCHR | 0o666, device=(1, 9))  # python wants it before anybody can mount anything
    for name in ("bin", "sbin", "lib", "lib64"):
        yield cpio.link(name, f"usr/{name}")
    yield cpio.file("init", _INIT.encode(), 0o755)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__))).removeprefix("/")
    for name, path in sources:
        with open(path, "rb") as file:
            data = file.read()
        if name.endswith(".pyc"):  # beside no source, this is what is imported
            place = f"usr/lib/rktd/{name.removeprefix(package)[1:]}" if name.startswith(f"{package}/rktd_units/") else name
            code = compile(data, f"/{place[:-1]}", "exec", dont_inherit=True)
            yield cpio.file(place, MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
        else:
            mode = 0o755 if os.stat(path).st_mode & 0o111 else 0o644
            yield cpio.file(name, lzma.decompress(data) if path.endswith(".xz") else data, mode)
    yield from (cpio.file(name, f"#!/usr/bin/sh\nkill -{number} 1\n".encode(), 0o755) for name, number in _ENDS)
    yield from _units()


def _units() -> Iterable[cpio.Entry]:
    for path in _unit_paths():
        if os.path.islink(path):
            yield cpio.link(path.removeprefix("/"), os.readlink(path))
        else:
            with open(path, "rb") as file:
                yield cpio.file(path.removeprefix("/"), file.read())


def _unit_paths() -> Iterator[str]:
    """Units of systemd itself, to which the pod's own /etc links."""
    for name in list_names(_SYSTEM_UNITS):
        path = f"{_SYSTEM_UNITS}/{name}"
        is_wanted = name.endswith(".target") or name.startswith(("systemd-exit.", "systemd-halt.", "systemd-poweroff.", "systemd-reboot."))
        if is_wanted and (os.path.isfile(path) or os.path.islink(path)):
            yield path

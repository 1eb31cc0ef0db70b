# SPDX-License-Identifier: Apache-2.0
"""`podctl cp`: files between the host and an app. No program of the app takes part, and no path leaves either side's directory.

The app's side is hostile, and may change while it is walked: each step is taken on descriptors, by openat2(2) inside the app's root; what
is not a directory, a regular file or a link is left out. What is written there is written as the app's user, who owns it then; what comes
from there belongs to root and has no set-user-ID bits.
"""

import argparse
import errno
import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rktd_units import mounts
from rktd_units.cgroups import app_cgroup
from rktd_units.cli.exec import require_root, wait_for_app
from rktd_units.cli.pods import Host, load_run_app
from rktd_units.enter import is_executor, is_in_cgroup
from rktd_units.errors import FailedError, UnavailableError, UsageError, clean_text

_BLOCK = 1 << 20
_DEPTH_MAX = 200
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE TARGET"""
    parser.add_argument("source", metavar="SOURCE", help="a path, or POD/APP:PATH")
    parser.add_argument("target", metavar="TARGET", help="the same; an existing directory is copied into")


def run(arguments: argparse.Namespace) -> int:
    """Exactly one of the two is in an app."""
    from_app, source = _split(arguments.source)
    to_app, target = _split(arguments.target)
    if bool(from_app) == bool(to_app):
        raise UsageError("one of source and target must be POD/APP:PATH, the other a path of the host")
    require_root("copy from and to apps")
    host = Host()
    pod, app = host.require_app(from_app or to_app)
    root = _open_root(host, pod, app)
    copy = Copy()
    try:
        if from_app:
            copy.copy_out(root, source, target)
        else:
            run_record, record = load_run_app(host.layout, pod, app)
            base = run_record["idBase"] or 0
            copy.copy_in(source, root, target, base + record["uid"], base + record["gid"])
    except OSError as error:
        raise FailedError(f"{clean_text(error.filename or arguments.target)}: {(error.strerror or '').lower()}") from error
    return 1 if copy.skipped else 0


def _open_root(host: Host, pod: str, app: str) -> int:
    """The app's root directory, of the app itself: after the pidfd was opened its pid is nobody else's while it is alive."""
    pid = wait_for_app(host, pod, app)
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise UnavailableError(f"app {app} of pod {pod} has ended") from None
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if is_in_cgroup(pid, app_cgroup(host.cgroup(pod), app)) and not is_executor(pid) and not select.select([process], [], [], 0)[0]:
            return root
        os.close(root)
    except FileNotFoundError:
        pass
    finally:
        os.close(process)
    raise UnavailableError(f"app {app} of pod {pod} has ended")


class Copy:
    """One run; `skipped` counts what is of no kind that is copied."""

    def __init__(self) -> None:
        self.skipped = 0
        self._user = (0, 0)

    def copy_out(self, root: int, source: str, target: str) -> None:
        """A path inside the root -> a path of the host."""
        opened = mounts.openat2(root, source, os.O_PATH, mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_MAGICLINKS)
        directory, name = _find_place(os.open(".", _READ_DIRECTORY), target, os.path.basename(source.rstrip("/")) or "root", inside=False)
        self._copy(opened, directory, name, 0)

    def copy_in(self, source: str, root: int, target: str, uid: int, gid: int) -> None:
        """The other way; `uid` and `gid` are host ids of who writes."""
        self._user = (uid, gid)
        opened = os.open(source, os.O_PATH | os.O_CLOEXEC)
        directory, name = _find_place(root, target, os.path.basename(os.path.abspath(source)), inside=True)
        self._copy(opened, directory, name, 0)

    def _copy(self, source: int, directory: int, name: str, depth: int) -> None:
        """What an O_PATH descriptor names, as `name` in a directory; takes the descriptor."""
        try:
            status = os.fstat(source)
            if stat.S_ISREG(status.st_mode):
                self._copy_file(source, status, directory, name)
            elif stat.S_ISDIR(status.st_mode) and depth < _DEPTH_MAX:
                self._copy_directory(source, status, directory, name, depth)
            elif stat.S_ISLNK(status.st_mode):
                with self._acting():
                    _remove(directory, name)
                    os.symlink(os.readlink("", dir_fd=source), name, dir_fd=directory)
            else:
                self.skipped += 1
                print(f"podctl: {clean_text(name)}: is not copied: neither file, directory nor link", file=sys.stderr)
        finally:
            os.close(source)

    def _copy_file(self, source: int, status: os.stat_result, directory: int, name: str) -> None:
        data = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_CLOEXEC)  # known to be a regular file
        temporary = f".podctl-{os.getpid()}"
        try:
            with self._acting():
                _remove(directory, temporary)
                new = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                while block := os.read(data, _BLOCK):
                    view = memoryview(block)
                    while view:
                        view = view[os.write(new, view) :]
                with self._acting():
                    os.fchmod(new, stat.S_IMODE(status.st_mode) & 0o777)
                    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
                    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            finally:
                os.close(new)
        except OSError as error:
            with self._acting():
                _remove(directory, temporary)
            raise OSError(error.errno, error.strerror, name) from error
        finally:
            os.close(data)

    def _copy_directory(self, source: int, status: os.stat_result, directory: int, name: str, depth: int) -> None:
        with self._acting():
            try:
                os.mkdir(name, 0o700, dir_fd=directory)
                made = True
            except FileExistsError:
                made = False
            inner = os.open(name, _READ_DIRECTORY, dir_fd=directory)
        listed = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for entry in sorted(os.listdir(listed)):
                try:
                    child = os.open(entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=listed)
                except FileNotFoundError:
                    continue  # it went while we looked
                self._copy(child, inner, entry, depth + 1)
            if made:
                with self._acting():
                    os.fchmod(inner, stat.S_IMODE(status.st_mode) & 0o777)
        finally:
            os.close(inner)
            os.close(listed)

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """As the user who writes; on an id-mapped volume the host's root is nobody."""
        uid, gid = self._user
        os.setegid(gid)
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)


def _find_place(root: int, target: str, name: str, *, inside: bool) -> tuple[int, str]:
    """The directory to write into, and the name there: of an existing directory `name` in it, as cp(1)."""
    resolve = mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_MAGICLINKS if inside else 0

    def open_directory(path: str) -> int:
        return mounts.openat2(root, path or ".", os.O_RDONLY | os.O_DIRECTORY, resolve)

    try:
        return open_directory(target), name
    except NotADirectoryError:
        pass
    except FileNotFoundError:
        if target.endswith("/"):
            raise
    parent, _, last = target.rstrip("/").rpartition("/")
    if last in ("", ".", ".."):
        raise OSError(errno.EISDIR, "is no name for a file", target)
    return open_directory(parent if parent or not target.startswith("/") else "/"), last


def _remove(directory: int, name: str) -> None:
    try:  # noqa: SIM105
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def _split(text: str) -> tuple[str, str]:
    """("POD/APP", path) or ("", path)."""
    head, colon, path = text.partition(":")
    if not colon or head.startswith((".", "/")):
        return "", text
    return head, path or "/"

# SPDX-License-Identifier: Apache-2.0
"""The layers' mounts, one per layer and host, and a look into an image's merged root before anything of it runs.

A layer is mounted once (shared page cache: two mounts of one EROFS file share none), nosuid, nodev, read-only, below a directory that only
root can enter; pods use clones. A mount is from the file itself (Linux 6.12), through a loop device where the kernel or the store's file
system cannot.
"""

import errno
import os
import stat
from contextlib import suppress
from itertools import islice

from rktd_units import mounts
from rktd_units.errors import ImageError
from rktd_units.paths import Layout
from rktd_units.runfiles import read_text, write_text

_STREAMS = frozenset(f"{path}{n}" for path in ("/proc/self/fd/", "/dev/fd/") for n in (1, 2)) | {"/dev/stdout", "/dev/stderr"}
_LOGS_MAX = 200  # entries below /var/log that are looked at
_READ_MAX = 1024 * 1024  # of one file of an image, such as its /etc/passwd


def mount_layer(layout: Layout, key: str) -> None:
    """Mounts layers/KEY.erofs, which was verified, at its place, unless that very file is mounted there.

    One that was built anew, or was touched, is mounted anew: running pods keep their clones of the old one. The caller holds the lock of
    layer mounts. Raises OSError.
    """
    target = f"{layout.layer_mounts}/{key}"
    source = f"{layout.layers}/{key}.erofs"
    os.makedirs(target, mode=0o700, exist_ok=True)
    status = os.stat(source)
    stamp = f"{status.st_dev} {status.st_ino} {status.st_ctime_ns}\n"
    if os.path.ismount(target):
        if read_text(f"{layout.layer_stamps}/{key}") == stamp:
            return
        mounts.unmount(target, mounts.UMOUNT_NOFOLLOW | mounts.MNT_DETACH)
    _mount_erofs(source, target)
    write_text(f"{layout.layer_stamps}/{key}", stamp)


def _mount_erofs(source: str, target: str) -> None:
    attributes = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV
    try:
        mount = mounts.new_mount("erofs", (("source", source), ("ro", "")), attributes)
    except OSError as error:
        if error.errno not in (errno.ENOTBLK, errno.EINVAL):
            raise
        from rktd_units.proc import run

        run(("mount", "-t", "erofs", "-o", "loop,ro,nosuid,nodev", source, target))
        return
    mounts.attach(mount, target)
    os.close(mount)


def unmount_layers(layout: Layout, wanted: set[str]) -> None:
    """Unmounts every layer that is not in `wanted`. The caller holds the lock of layer mounts."""
    try:
        present = os.listdir(layout.layer_mounts)
    except FileNotFoundError:
        return
    for key in present:
        target = f"{layout.layer_mounts}/{key}"
        if key not in wanted:
            if os.path.ismount(target):
                mounts.unmount(target, mounts.UMOUNT_NOFOLLOW | mounts.MNT_DETACH)
            os.rmdir(target)
            with suppress(FileNotFoundError):
                os.unlink(f"{layout.layer_stamps}/{key}")


class ImageRoot:
    """Read-only view of an image's root: an overlay that is attached nowhere. Paths never leave it. Use as a context manager."""

    def __init__(self, layout: Layout, keys: tuple[str, ...]) -> None:
        self._paths = [f"{layout.layer_mounts}/{key}" for key in reversed(keys)]
        self._fd = -1

    def __enter__(self) -> "ImageRoot":
        if len(self._paths) == 1:
            self._fd = os.open(self._paths[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        elif self._paths:
            lower = tuple(("lowerdir+", path) for path in self._paths)
            self._fd = mounts.new_mount("overlay", (*lower, ("ro", "")))
        else:
            self._fd = os.open(os.devnull, os.O_PATH | os.O_CLOEXEC)  # an image without layers has no files
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read_text(self, path: str) -> str:
        """The file's text, "" when there is none. Raises ImageError for what is no regular file or is too large."""
        try:
            descriptor = mounts.openat2(self._fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return ""
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _READ_MAX:
                raise ImageError(f"the image's {path} is no regular file of at most {_READ_MAX} bytes")
            return file.read(_READ_MAX).decode("utf-8", "replace")

    def links_logs(self) -> bool:
        """True if a symbolic link below /var/log leads to a standard stream, as in nginx's image: there, opening it must work."""
        try:
            top = mounts.openat2(self._fd, "var/log", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return False
        left, waiting = _LOGS_MAX, [top]
        try:
            while waiting:
                directory = waiting.pop()
                try:
                    with os.scandir(directory) as entries:
                        names = [entry.name for entry in islice(entries, left)]
                    left -= len(names)
                    for entry in names:
                        mode = os.stat(entry, dir_fd=directory, follow_symlinks=False).st_mode
                        if stat.S_ISLNK(mode) and os.readlink(entry, dir_fd=directory) in _STREAMS:
                            return True
                        if stat.S_ISDIR(mode):
                            waiting.append(os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory))
                finally:
                    os.close(directory)
        finally:
            for directory in waiting:
                os.close(directory)
        return False

    def status(self) -> os.stat_result:
        """Of the root directory itself."""
        if not self._paths:
            return os.stat("/usr")  # no layer says anything: 0755, root's
        return os.fstat(self._fd)

    def kind(self, path: str) -> str:
        """ "missing", "file", "executable", "directory" or "other" of what `path` leads to inside the root."""
        try:
            descriptor = mounts.openat2(self._fd, path, os.O_PATH)
        except OSError:
            return "missing"
        try:
            mode = os.fstat(descriptor).st_mode
        finally:
            os.close(descriptor)
        if stat.S_ISDIR(mode):
            return "directory"
        if not stat.S_ISREG(mode):
            return "other"
        return "executable" if mode & 0o111 else "file"

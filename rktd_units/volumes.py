# SPDX-License-Identifier: Apache-2.0
"""Persistent volumes, /var/lib/rktd/volumes/CLAIM: made when a pod first claims them, kept until `podctl volume rm`.

Ids in them are the pods' own, mapped by the mount, not the host ids of one pod: those may change from start to start, and pods may share a
volume. So root in a pod is root's id here: the directory above is closed to all but root, and pods mount them nosuid, nodev.
"""

import errno
import os
import stat
from collections.abc import Callable
from functools import partial

from rktd_units.paths import Layout
from rktd_units.runfiles import list_names, lock, remove_tree
from rktd_units.selinux import ATTRIBUTE

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o777  # of a new one, as of an emptyDir: whoever the app runs as can use it


def list_volumes(layout: Layout) -> list[str]:
    """Names, sorted."""
    return list_names(layout.volumes)


def ready_volume(layout: Layout, name: str, group: int | None, *, only_if_wrong: bool = False, label: str = "") -> None:
    """Makes it where it is not there; gives it to `group` (fsGroup, as the pod sees it). `only_if_wrong`: not if its root is right.

    `label`: SELinux's, which all in it gets if its root has another.
    """
    path = f"{layout.volumes}/{name}"
    with lock(layout, "volumes"):
        if not os.path.isdir(path):
            make_volume(layout, name)
    if group is not None and not (only_if_wrong and _has_group(os.stat(path), group)):
        _change(path, partial(_give, group))
    if label and os.getxattr(path, ATTRIBUTE).rstrip(b"\0") != label.encode():
        _change(path, partial(_label, label))


def make_volume(layout: Layout, name: str) -> None:
    """A new one, empty: whole or not at all. The caller holds the lock `volumes`."""
    os.rename(new_volume(layout), f"{layout.volumes}/{name}")


def new_volume(layout: Layout, name: str = ".new") -> str:
    """An empty directory to become a volume by a rename; what an earlier run left of it is gone. The caller holds a lock for `name`."""
    temporary = f"{layout.volumes}/{name}"
    os.makedirs(layout.volumes, mode=0o700, exist_ok=True)
    remove_tree(temporary)
    os.mkdir(temporary)
    os.chmod(temporary, _MODE)
    return temporary


def remove_volume(layout: Layout, name: str) -> None:
    """With all that is in it. Killed at any point, it is there or not, and the next one clears up. The caller holds the lock `volumes`."""
    removed = f"{layout.volumes}/.removed"
    remove_tree(removed)
    os.rename(f"{layout.volumes}/{name}", removed)
    remove_tree(removed)


def _has_group(status: os.stat_result, group: int) -> bool:
    return status.st_gid == group and status.st_mode & 0o2070 == 0o2070


def _give(group: int, itself: str, mode: int) -> None:
    """kubelet's SetVolumeOwnership: the group, rw for it, set-group-ID on directories."""
    if not stat.S_ISLNK(mode):  # who may read it does not depend on its group
        os.chown(itself, -1, group)
        os.chmod(itself, stat.S_IMODE(mode) | (0o2770 if stat.S_ISDIR(mode) else 0o660))


def _label(label: str, itself: str, _: int) -> None:
    os.setxattr(itself, ATTRIBUTE, label.encode())


def _change(path: str, change: Callable[[str, int], None]) -> None:
    """`change` is called with a path that names each file, and with its mode.

    What is in there is hostile, and may change meanwhile: everything by descriptor, no link followed. It may be deeper than there are
    descriptors: one is open, and the way up is by `..`. Raises OSError if that leads elsewhere by now. The top is last: see `_has_group`.
    """
    above: list[tuple[tuple[int, int], list[str]]] = []  # of each directory on the way: which it is, and what is left to enter in it
    here = os.open(path, _DIRECTORY)
    try:
        left = _change_entries(here, change)
        while left or above:
            itself = os.fstat(here)
            if left:
                try:
                    below = os.open(left.pop(), _DIRECTORY, dir_fd=here)
                except OSError:  # it has gone, or is something else now
                    continue
                above.append(((itself.st_dev, itself.st_ino), left))
                os.close(here)
                here, left = below, _change_entries(below, change)
            else:
                parent = os.open("..", _DIRECTORY, dir_fd=here)
                os.close(here)
                here, (known, left) = parent, above.pop()
                found = os.fstat(here)
                if (found.st_dev, found.st_ino) != known:
                    raise OSError(errno.ESTALE, "directories were moved while their group or label was set", path)
    finally:
        os.close(here)
    _change_one(path, None, change)


def _change_entries(directory: int, change: Callable[[str, int], None]) -> list[str]:
    """What is in it; gives the names of directories."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, _ in found:
        _change_one(name, directory, change)
    return [name for name, is_directory in found if is_directory]


def _change_one(name: str, directory: int | None, change: Callable[[str, int], None]) -> None:
    try:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        change(f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)

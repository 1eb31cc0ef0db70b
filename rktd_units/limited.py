# SPDX-License-Identifier: Apache-2.0
"""Directories that cannot grow beyond a size: each a file system of its own in a sparse file, whatever the disk below has.

Not project quotas: an overlay writes with its mounter's privileges, which ext4's quotas do not bind (ignore_hardlimit() of the kernel);
XFS and ext4 must have been mounted with them; and whoever owns a file may take it out of its project where there is no user name space.
"""

import os

from rktd_units import mounts
from rktd_units.errors import CommandError, StateError
from rktd_units.paths import LIMITED
from rktd_units.proc import run

_SIZE_MIN = 256 << 10  # of an ext4 that holds anything


def make_limited(storage: str, name: str, size: int) -> None:
    """The directory STORAGE/NAME, empty, 0755 root's; what is in it takes `size` bytes at most, inodes and directories among them.

    Raises StateError that says what is missing.
    """
    directory, files = f"{storage}/{name}", f"{storage}/{LIMITED}"
    os.makedirs(files, mode=0o700, exist_ok=True)
    os.makedirs(directory, exist_ok=True)
    path = f"{files}/{name.replace('/', '-')}"
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.truncate(max(size, _SIZE_MIN))
    # No journal, no reserve, and no check at any mount: it lives as long as the pod.
    options = [
        "-m",
        "0",
        "-O",
        "^has_journal,^resize_inode",
        "-E",
        "nodiscard,lazy_itable_init=1",
        "-b",
        "4096" if size >= 16 << 20 else "1024",
    ]
    try:
        run(["mkfs.ext4", "-q", "-F", *options, path])
        run(["mount", "-t", "ext4", "-o", "loop,nodev,nosuid,discard", path, directory])
    except CommandError as error:
        hint = "it is a file system of its own: mkfs.ext4, the module ext4 and free loop devices are needed"
        raise StateError(f"the size of {directory} cannot be limited: {error}", hint=hint) from error
    os.rmdir(f"{directory}/lost+found")


def unmount_limited(storage: str) -> None:
    """Before the directory `storage` is removed. The loop devices go with the mounts."""
    real = os.path.realpath(storage)
    for point in mounts.list_mounts():
        if point.startswith(f"{real}/"):
            mounts.unmount(point, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)

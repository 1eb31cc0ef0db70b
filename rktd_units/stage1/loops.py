# SPDX-License-Identifier: Apache-2.0
"""Loop devices that stage1/hotplug.sh has left: killed between losetup(8) and xenstore-write(1), it leaves one that nobody knows of."""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress

from rktd_units.runfiles import list_names, read_text

_LOOP_CLR_FD = 0x4C01  # linux/loop.h
_DELETED = " (deleted)"
_PARTS = 2  # of a directory's path: rktd/disks


def find_loops(directories: Sequence[str], blocks: str = "/sys/block") -> list[str]:
    """Paths of those that are read-only and of a file in one of the directories, as the script's are, whether a domain uses them or not.

    Those of mounts are none of them: they go by themselves (autoclear).
    """
    endings = tuple("/" + "/".join(os.path.realpath(directory).split("/")[-_PARTS:]) for directory in directories)
    names = (name for name in list_names(blocks) if name.startswith("loop"))
    return [f"/dev/{name}" for name in names if _is_script_s(f"{blocks}/{name}", endings)]


def _is_script_s(about: str, endings: tuple[str, ...]) -> bool:
    """A path that the kernel tells begins at a mount that may be of a name space that is no more: its end is what is known."""
    try:
        file = read_text(f"{about}/loop/backing_file").rstrip("\n").removesuffix(_DELETED)
        is_lasting = read_text(f"{about}/loop/autoclear").strip() == "0" and read_text(f"{about}/ro").strip() == "1"
    except OSError:  # it is detached meanwhile
        return False
    return is_lasting and os.path.dirname(file).endswith(endings)


def detach_loop(path: str) -> None:
    """One that is in use all the same goes when it is closed (loop.c, loop_clr_fd)."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _LOOP_CLR_FD)
        finally:
            os.close(descriptor)

# SPDX-License-Identifier: Apache-2.0
"""Loop devices that stage1/hotplug.sh has left: killed between losetup(8) and xenstore-write(1), it leaves one that nobody knows of."""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress

from rktd_units.runfiles import list_names, read_text

_LOOP_CLR_FD = 0x4C01  # linux/loop.h
_DELETED = " (deleted)"


def find_loops(directories: Sequence[str], blocks: str = "/sys/block") -> list[str]:
    """Paths of those that are read-only and of a file in one of the directories, as the script's are, whether a domain uses them or not.

    Those of mounts are none of them: they go by themselves (autoclear).
    """
    found = []
    for name in list_names(blocks):
        about = f"{blocks}/{name}"
        file = read_text(f"{about}/loop/backing_file").rstrip("\n").removesuffix(_DELETED) if name.startswith("loop") else ""
        if os.path.dirname(file) not in directories:
            continue
        if read_text(f"{about}/loop/autoclear").strip() == "0" and read_text(f"{about}/ro").strip() == "1":
            found.append(f"/dev/{name}")
    return found


def detach_loop(path: str) -> None:
    """One that is in use all the same goes when it is closed (loop.c, loop_clr_fd)."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _LOOP_CLR_FD)
        finally:
            os.close(descriptor)

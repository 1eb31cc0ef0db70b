# SPDX-License-Identifier: Apache-2.0
"""Reads the files that people write: pod files, settings. What lies there instead of a file neither blocks nor fills the memory."""

import os
import stat

from rktd_units.errors import Diagnostic

MAX_BYTES = 1 << 20


def read_source(path: str) -> tuple[bytes, os.stat_result] | Diagnostic:
    """The content and the status of the very file that was read (one byte more than MAX_BYTES at most), or why not.

    Never blocks: only regular files are read. /dev/null counts as an empty one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        return Diagnostic(path, 0, 0, "", f"cannot be read: {(error.strerror or str(error)).lower()}")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) and not (stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)):
        os.close(descriptor)
        return Diagnostic(path, 0, 0, "", "cannot be read: it is not a regular file")
    with open(descriptor, "rb", buffering=0) as stream:  # of a directory it raises
        try:
            return stream.read(MAX_BYTES + 1) or b"", status
        except OSError as error:
            return Diagnostic(path, 0, 0, "", f"cannot be read: {(error.strerror or str(error)).lower()}")

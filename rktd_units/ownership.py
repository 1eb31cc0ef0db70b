# SPDX-License-Identifier: Apache-2.0
"""Whose word a file is: what root believes may be written by nobody else. In every start: imports next to nothing."""

import os
import stat
from collections.abc import Iterator

HINT = "chown root and chmod go-w"


def find_fault(status: os.stat_result, owner: int = 0) -> str:
    """Why somebody else than root (or than `owner`) could change a file or directory, or ""."""
    mode = status.st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX) and not stat.S_ISCHR(mode):
        return f"must not be writable by group or others, has mode {stat.S_IMODE(mode):04o}"
    if status.st_uid not in (0, owner):
        return f"must be owned by root, is owned by uid {status.st_uid}"
    return ""


def parents(path: str) -> Iterator[str]:
    """The directories above, up to the root directory: whoever may write one of them may replace what is below."""
    directory = os.path.abspath(path)
    while directory != "/":
        directory = os.path.dirname(directory)
        yield directory

# SPDX-License-Identifier: Apache-2.0
"""The ramdisk of a domain, in the vault for as long as xl reads it: the guests' first root and the pod's own archive, one after the other.

It is as large as 40 MB, in memory that is never swapped out: so it is there for one pod at a time, whose turn it is to be created.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_BLOCK = 1 << 20


@contextmanager
def joined(path: str, archives: Sequence[str]) -> Iterator[None]:
    """There within, with all archives in it, each at a multiple of four bytes; only root may read it. Raises OSError."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as file:
            for archive in archives:
                with open(archive, "rb") as source:
                    file.write(bytes(-file.tell() % 4))
                    while part := source.read(_BLOCK):
                        file.write(part)
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)

# SPDX-License-Identifier: Apache-2.0
"""The administrator's settings, /etc/rktd/rktd.yaml."""

from typing import NamedTuple


class IdRange(NamedTuple):
    """Host ids that pods get theirs from: `base` and `size` are multiples of 65536."""

    base: int = 0x70000000
    size: int = 0x0FFE0000


class Settings(NamedTuple):
    """What /etc/rktd/rktd.yaml says, or the defaults."""

    insecure: tuple[str, ...] = ()
    id_range: IdRange = IdRange()
    max_image_bytes: int = 64 << 30

    def is_insecure(self, reference: str) -> bool:
        """True when a listed prefix covers the reference, by whole path components."""
        raise NotImplementedError


def load_settings(path: str = "/etc/rktd/rktd.yaml") -> Settings:
    """The file's settings; the defaults when there is no file. Raises ConfigError with all its diagnostics."""
    raise NotImplementedError

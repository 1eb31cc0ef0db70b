# SPDX-License-Identifier: Apache-2.0
"""Host id ranges of pods: 65536 ids each, the same for a name wherever it is free, none of them anybody else's.

A claim is a file RANGES/BASE that holds the pod's name, made exclusively (link(2)) and gone when the pod is. The default area is above
what systemd-nspawn picks from and below systemd's foreign range (systemd's UIDS-GIDS.md); it avoids the ranges of /etc/subuid and subgid.
"""

import os
import zlib

from rktd_units.errors import StateError
from rktd_units.settings import IdRange

COUNT = 65536


def claim_range(directory: str, name: str, area: IdRange, subordinate: tuple[str, ...] = ("/etc/subuid", "/etc/subgid")) -> int:
    """The first host id of the pod's range. The same pod gets the same again while it holds one. Raises StateError when all are taken."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    for base in _held(directory, name):
        return base
    taken = _subordinate_ranges(subordinate)
    slots = area.size // COUNT
    start = zlib.crc32(name.encode()) % slots
    for step in range(slots):
        base = area.base + (start + step) % slots * COUNT
        if not any(first < base + COUNT and base < first + count for first, count in taken) and _claim(directory, base, name):
            return base
    hint = "raise idRange.size in /etc/rktd/rktd.yaml"
    raise StateError(f"all {slots} id ranges from {area.base} on are taken", hint=hint)


def release_range(directory: str, name: str) -> None:
    """Gives up whatever the pod holds."""
    for base in _held(directory, name):
        os.unlink(f"{directory}/{base}")


def _held(directory: str, name: str) -> list[int]:
    held = []
    try:
        files = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    for file in files:
        if file.isdigit():
            try:
                with open(f"{directory}/{file}", encoding="utf-8") as claim:
                    if claim.read() == name:
                        held.append(int(file))
            except FileNotFoundError:
                continue
    return held


def _claim(directory: str, base: int, name: str) -> bool:
    """Whole or not at all: the claim appears with its content."""
    temporary = f"{directory}/.{name}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(name)
    try:
        os.link(temporary, f"{directory}/{base}")
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def _subordinate_ranges(files: tuple[str, ...]) -> list[tuple[int, int]]:
    """(first, count) of every line `name:first:count` (subuid(5)); lines of another form are no ranges."""
    ranges = []
    for path in files:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.readlines()
        except OSError:
            continue
        for line in lines:
            fields = line.strip().split(":")
            if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
                ranges.append((int(fields[1]), int(fields[2])))
    return ranges

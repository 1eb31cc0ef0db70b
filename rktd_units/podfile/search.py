# SPDX-License-Identifier: Apache-2.0
"""Finds pod files and their drop-ins in the search directories; opens none of them and knows no YAML.

First directory wins per pod. Drop-ins (`NAME.yaml.d/*.yaml`) come from all directories; of two with one file name the first one counts.
"""

import os
import stat
from typing import NamedTuple

from rktd_units.errors import ConfigError, Diagnostic
from rktd_units.names import is_pod_name

_SUFFIX = ".yaml"
_DROP_IN_SUFFIX = ".yaml.d"

Stamp = tuple[str, int, int, int, int]  # path, mtime in ns, ctime in ns, size in bytes, inode: all 0 for what cannot be looked at


class PodEntry(NamedTuple):
    """Where a pod is described: `path` is its file, `drop_ins` what is merged over it, in this order."""

    name: str
    path: str
    drop_ins: tuple[str, ...] = ()


class PodFiles(NamedTuple):
    """What a search found: `entries` sorted by name, `masked` pod names with the file that masks each."""

    entries: tuple[PodEntry, ...]
    masked: tuple[tuple[str, str], ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()


def find_pods(directories: tuple[str, ...]) -> PodFiles:
    """All pods of the search path. A directory that is not there is no fault; one that cannot be read is, and hides no other."""
    files: dict[str, str] = {}
    drop_ins: dict[str, dict[str, str]] = {}
    faults: list[Diagnostic] = []
    for directory in directories:
        for name in _list_directory(directory, faults):
            path = f"{directory}/{name}"
            if name.endswith(_DROP_IN_SUFFIX):
                _add_drop_ins(path, drop_ins.setdefault(name[: -len(_DROP_IN_SUFFIX)], {}), faults)
            elif name.endswith(_SUFFIX):
                files.setdefault(name[: -len(_SUFFIX)], path)
            elif name.endswith(".yml"):
                faults.append(_wrong_suffix(path))
    entries, masked = [], []
    for pod, path in sorted(files.items()):
        if not is_pod_name(pod):
            faults.append(_bad_name(path, pod))
        elif is_mask(path):
            masked.append((pod, path))
        else:
            entries.append(PodEntry(pod, path, _sorted_drop_ins(drop_ins.get(pod, {}))))
    for pod in sorted(set(drop_ins) - set(files)):
        faults += _orphans(drop_ins[pod], pod)
    return PodFiles(tuple(entries), tuple(masked), tuple(sorted(faults)))


def locate_pod(name: str, directories: tuple[str, ...]) -> tuple[PodEntry, tuple[Diagnostic, ...]]:
    """The files of one pod, without a look at the others, and what is said of those that are not read.

    Raises ConfigError when it has none, is masked or has no valid name.
    """
    if not is_pod_name(name):
        raise ConfigError(f"'{name}' is not a pod name", hint=_NAME_HINT)
    faults: list[Diagnostic] = []
    drop_ins: dict[str, str] = {}
    path = ""
    for directory in directories:
        candidate = f"{directory}/{name}{_SUFFIX}"
        if not path and os.path.lexists(candidate):
            path = candidate
        _add_drop_ins(f"{directory}/{name}{_DROP_IN_SUFFIX}", drop_ins, faults)
        if os.path.lexists(f"{directory}/{name}.yml"):
            faults.append(_wrong_suffix(f"{directory}/{name}.yml"))
    if not path:
        places = ", ".join(directories)
        raise ConfigError(f"there is no {name}{_SUFFIX} in {places}", tuple(faults), hint=faults[0].hint if faults else "")
    if is_mask(path):
        raise ConfigError(f"pod {name} is masked by {path}", hint=f"remove {path} to unmask it")
    return PodEntry(name, path, _sorted_drop_ins(drop_ins)), tuple(faults)


def stamp_sources(directories: tuple[str, ...]) -> tuple[Stamp, ...]:
    """A fingerprint of all that `find_pods` and `load_pod` would read: equal stamps mean that nothing was touched in between."""
    stamps: list[Stamp] = []
    for directory in directories:
        stamps.append(_stamp(directory))
        for path, name in _scan(directory):
            if name.endswith(_DROP_IN_SUFFIX):
                stamps.append(_stamp(path))
                stamps += [_stamp(inner) for inner, inner_name in _scan(path) if inner_name.endswith((_SUFFIX, ".yml"))]
            elif name.endswith((_SUFFIX, ".yml")):
                stamps.append(_stamp(path))
    return tuple(stamps)


def is_mask(path: str) -> bool:
    """True for an empty file and for a link to /dev/null (as systemd masks units: systemd.unit(5))."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == os.makedev(1, 3)
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _scan(directory: str) -> list[tuple[str, str]]:
    try:
        with os.scandir(directory) as found:
            return sorted((entry.path, entry.name) for entry in found if not entry.name.startswith("."))
    except OSError:
        return []


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return path, 0, 0, 0, 0
    return path, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _list_directory(directory: str, faults: list[Diagnostic]) -> list[str]:
    """Sorted names, without the hidden ones. Editors' and packagers' leavings (`x.yaml~`, `x.yaml.dpkg-old`) have no suffix of ours."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        faults.append(Diagnostic(directory, 0, 0, "", f"cannot be read: {(error.strerror or str(error)).lower()}"))
        return []
    return sorted(name for name in names if not name.startswith("."))


def _add_drop_ins(directory: str, found: dict[str, str], faults: list[Diagnostic]) -> None:
    for name in _list_directory(directory, faults):
        if name.endswith(_SUFFIX):
            found.setdefault(name, f"{directory}/{name}")
        elif name.endswith(".yml"):
            faults.append(_wrong_suffix(f"{directory}/{name}"))


def _sorted_drop_ins(found: dict[str, str]) -> tuple[str, ...]:
    return tuple(path for _, path in sorted(found.items()) if not is_mask(path))


def _orphans(found: dict[str, str], pod: str) -> list[Diagnostic]:
    message = f"has no effect: there is no {pod}{_SUFFIX} that it could change"
    return [Diagnostic(path, 0, 0, "", message, severity="warning") for path in found.values()]


_NAME_HINT = "lower case letters, digits, dashes and dots, 63 characters at most"


def _bad_name(path: str, pod: str) -> Diagnostic:
    return Diagnostic(path, 0, 0, "", f"'{pod}' is not a pod name", _NAME_HINT)


def _wrong_suffix(path: str) -> Diagnostic:
    base = path.rsplit("/", 1)[1]
    return Diagnostic(path, 0, 0, "", "is not read: the suffix must be .yaml", f"rename it to {base[:-4]}.yaml")

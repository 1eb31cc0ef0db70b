# SPDX-License-Identifier: Apache-2.0
"""The model of a pod whose files were not touched since they were last read: a start then imports and parses no YAML (15 ms).

A pickle in a directory that only root can enter, keyed by what stat(2) says of every file, and of who owns and may write the directories
above. Files changed within the last two seconds are not cached: two edits in one tick of the clock look alike.
"""

import os
import time

from rktd_units.errors import Diagnostic
from rktd_units.paths import product_stamp
from rktd_units.podfile.model import Pod
from rktd_units.podfile.search import PodEntry
from rktd_units.sourcefile import read_source

VERSION = 11
_SETTLED_NS = 2_000_000_000
_Key = tuple[object, ...]


def load_cached(path: str, entry: PodEntry) -> Pod | None:
    """The pod as it was read from exactly these files, or None."""
    import _pickle  # `pickle` costs 6 ms more

    try:
        with open(path, "rb") as file:
            key, pod = _pickle.load(file)
    except Exception:  # whatever is wrong with a cache: there is none
        return None
    return pod if isinstance(pod, Pod) and key == source_key(entry) else None


def save_cached(path: str, key: _Key, entry: PodEntry, pod: Pod) -> None:
    """`key` must be from before the files were read."""
    import _pickle

    newest = max((os.stat(file).st_ctime_ns for file in (entry.path, *entry.drop_ins)), default=0)
    if key != source_key(entry) or time.time_ns() - newest < _SETTLED_NS:
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.new"
    with open(temporary, "wb") as file:
        file.write(_pickle.dumps((key, pod), 5))
    os.rename(temporary, path)


def hash_sources(entry: PodEntry) -> str:
    """Another one when the text of a file differs, or which files there are."""
    import hashlib

    digest = hashlib.sha256()
    for path in (entry.path, *entry.drop_ins):
        source = read_source(path)
        data = source.message.encode() if isinstance(source, Diagnostic) else source[0]  # what reads them for the pod says the fault
        digest.update(f"{path}\0{len(data)}\0".encode("utf-8", "surrogateescape") + data)
    return digest.hexdigest()


def source_key(entry: PodEntry) -> _Key:
    """Equal keys: the same files, untouched, in directories of the same owners and modes."""
    files, directories = [], set()
    for path in (entry.path, *entry.drop_ins):
        real = os.path.realpath(path)
        try:
            status = os.stat(real)
        except OSError:  # what reads it says so
            continue
        files.append((path, real, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev))
        for name in (os.path.abspath(path), real):
            directory = name
            while directory != "/":
                directory = os.path.dirname(directory)
                directories.add(directory)
    owners = []
    for name in sorted(directories):
        status = os.stat(name)
        owners.append((name, status.st_uid, status.st_mode))
    return (VERSION, product_stamp()), tuple(files), tuple(owners)

# SPDX-License-Identifier: Apache-2.0
"""Small files and locks of stage0 in /run/rktd: whole or not at all, one at a time. In every start: imports next to nothing."""

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice

from rktd_units.paths import Layout

_NAMES_MAX = 10_000  # of a directory, at a time


@contextmanager
def lock(layout: Layout, name: str, *, wait: bool = True) -> Iterator[None]:
    """One at a time on this host; held by the descriptor, so that a killed process holds nothing. BlockingIOError, unless `wait`."""
    os.makedirs(layout.locks, mode=0o700, exist_ok=True)
    descriptor = os.open(f"{layout.locks}/{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def notify_status(text: str) -> None:
    """STATUS= of the unit, as `systemctl status` shows it (sd_notify(3)); nothing where nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        import _socket

        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        with suppress(OSError):
            channel.connect("\0" + path[1:] if path.startswith("@") else path)
            channel.send(f"STATUS={' '.join(text.split())}".encode())
        channel.close()


def describe_readiness(states: Mapping[str, str]) -> str:
    """For STATUS=: app -> what its probes say (prober.App.publish), "" for one without."""
    waiting = [app for app, state in states.items() if state not in ("", "ready")]
    return f"Not ready: {', '.join(waiting)}" if waiting else "All apps are ready"


def list_names(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except FileNotFoundError:
        return []


def read_text(path: str) -> str:
    """The text, or "" when there is no file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def read_untrusted(path: str) -> str:
    """At most 256 bytes of a regular file that the pod could write: no link followed, no pipe waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(descriptor, "rb") as file:
        return file.read(256).decode("ascii", "replace") if stat.S_ISREG(os.fstat(descriptor).st_mode) else ""


def write_text(path: str, text: str) -> None:
    """Whole or not at all."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.new"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
    os.rename(temporary, path)


def write_bytes(path: str, data: bytes, mode: int) -> None:
    """The same, for a file of any mode."""
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.new"
    with open(temporary, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
    os.rename(temporary, path)


def remove_tree(path: str, rounds: int = sys.maxsize) -> None:
    """The directory and all below it, links not followed; nothing where there is none.

    What is in it is hostile: a tree may be deeper than there are descriptors or than a path can be long, so directories are moved up
    into the top one before they are emptied, and two are open at a time. (shutil.rmtree fails there, and costs 7 ms to import.)
    `rounds` are for what somebody may be adding to meanwhile: a round is for one level, and for some thousand names; then OSError.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    moved = 0
    try:
        for _ in range(rounds):
            names = _some_names(top)
            if not names:
                break
            for name in names:
                moved = _remove_entry(top, name, moved)
    finally:
        os.close(top)
    os.rmdir(path)


def _remove_entry(top: int, name: str, moved: int) -> int:
    """What was added to a directory while it was emptied, or is too much for once, is left for the next round."""
    try:
        os.unlink(name, dir_fd=top)
        return moved
    except FileNotFoundError:
        return moved
    except IsADirectoryError:
        pass
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for child in _some_names(inner):
            try:
                os.unlink(child, dir_fd=inner)
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                moved = _move_up(inner, child, top, moved)
    finally:
        os.close(inner)
    try:
        os.rmdir(name, dir_fd=top)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
    return moved


def _some_names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in islice(entries, _NAMES_MAX)]


def _move_up(inner: int, child: str, top: int, moved: int) -> int:
    while True:
        moved += 1
        try:
            os.rename(child, f"moved-{moved}", src_dir_fd=inner, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EINVAL, errno.EBUSY):
                raise
        else:
            return moved


def keep_latest(directory: str, suffix: str, count: int) -> None:
    """Removes all files of that name's end but those touched last; one that is being read stays until its reader closes it."""
    times = sorted((os.stat(f"{directory}/{name}").st_mtime, name) for name in list_names(directory) if name.endswith(suffix))
    for _, name in times[:-count]:
        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")

# SPDX-License-Identifier: Apache-2.0
"""Where a pod's secrets lie while it runs: a tmpfs for all pods, which is never swapped out, below a directory that only root can enter.

It is mounted for the first pod that needs it and unmounted after the last. stage1 mounts parts of it into the pod.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from rktd_units import mounts
from rktd_units.paths import Layout
from rktd_units.runfiles import lock, remove_tree
from rktd_units.values import File


def pod_vault(layout: Layout, pod: str) -> str:
    """A pod's own directory in it: environment/APP (EnvironmentFile=), exec/APP (JSON, for `podctl exec`), volumes/NAME/..."""
    return f"{layout.vault}/{pod}"


def open_vault(layout: Layout, pod: str) -> str:
    """The pod's directory, made anew and empty. Raises OSError."""
    with lock(layout, "vault"):
        os.makedirs(layout.vault, mode=0o700, exist_ok=True)
        if not os.path.ismount(layout.vault):
            mount = mounts.new_mount("tmpfs", (("mode", "0700"), ("noswap", ""), ("source", "vault")))
            mounts.attach(mount, layout.vault)
            os.close(mount)
        directory = pod_vault(layout, pod)
        remove_tree(directory)
        os.mkdir(directory, 0o700)
    return directory


def clear_vault(layout: Layout, pod: str) -> None:
    """Takes away what the pod had there, and the tmpfs with the last pod."""
    if not os.path.lexists(layout.vault):
        return
    with lock(layout, "vault"):
        remove_tree(pod_vault(layout, pod))
        if os.listdir(layout.vault):
            return
        if os.path.ismount(layout.vault):
            mounts.unmount(layout.vault, mounts.UMOUNT_NOFOLLOW | mounts.MNT_DETACH)
        with suppress(OSError):  # another mount below it is nobody's of ours
            os.rmdir(layout.vault)


def write_files(directory: str, files: Sequence[File], owner: int, group: int | None) -> None:
    """The files of one volume, owned by host id `owner`; `group`: host id of the fsGroup, which may then read all, as kubelet has it."""
    with _umask(0):
        _make_directory(directory, owner, group)
        for file in files:
            parts = file.path.split("/")
            for count in range(1, len(parts)):
                parent = f"{directory}/{'/'.join(parts[:count])}"
                if not os.path.isdir(parent):
                    _make_directory(parent, owner, group)
            mode, of_group = (file.mode, owner) if group is None else (file.mode | 0o440, group)
            write_file(f"{directory}/{file.path}", file.data, owner, of_group, mode)


def write_variables(directory: str, variables: Mapping[str, Iterable[tuple[str, str]]]) -> None:
    """exec/APP: the secrets among each app's variables, for root's `podctl exec`."""
    os.mkdir(f"{directory}/exec", 0o700)
    for app, pairs in variables.items():
        if found := dict(pairs):
            write_file(f"{directory}/exec/{app}", json.dumps(found).encode(), 0, 0, 0o400)


def write_file(path: str, data: bytes, owner: int, group: int, mode: int) -> None:
    """A new file; nobody else sees it before it has its mode."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fchown(descriptor, owner, group)
        os.fchmod(descriptor, mode)


def _make_directory(path: str, owner: int, group: int | None) -> None:
    os.makedirs(path, mode=0o755)
    os.chown(path, owner, owner if group is None else group)
    if group is not None:
        os.chmod(path, 0o2755)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)

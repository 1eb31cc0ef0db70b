# SPDX-License-Identifier: Apache-2.0
"""What a pod has in its Xen guest: the tree and the plan that nspawn's pods have on the host, as an archive under the same paths. Pure.

So one text serves both. In the guest everything is in memory but for the images' layers, which are on the guest's disk: what apps write,
emptyDir volumes, and the files of ConfigMaps and Secrets, which therefore are on no disk.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence

from rktd_units import podtree
from rktd_units.paths import Layout
from rktd_units.podfile.model import ClaimVolume, EmptyDir
from rktd_units.podtree import Start
from rktd_units.stage1 import cpio
from rktd_units.stage1.guest import PLAN, SEED
from rktd_units.stage1.plan import render_plan
from rktd_units.stage1.xen import DISK
from rktd_units.stage2 import ENVIRONMENT_DIRECTORY, render_environment_file
from rktd_units.values import File

SYSTEMD = "/usr/lib/systemd/systemd"
_LAYOUT = Layout()


def layer_keys(start: Start) -> tuple[str, ...]:
    """All layers of the pod, each once, in the order in which they are on its disk."""
    return tuple(dict.fromkeys(key for keys in start.layers for key in keys))


def pack_guest(start: Start, roots: Sequence[os.stat_result], plan: str, record: str, seed: bytes, now: int) -> bytes:
    """The pod's archive. `roots`: the images' root directories; `plan`: of `render_guest_plan`; `record`: the text of pod.json; `seed`:
    random bytes for its kernel.
    """
    return b"".join(cpio.pack_archive(_entries(start, roots, plan, record, seed), now))


def render_guest_plan(start: Start, partitions: Sequence[str], modules: Sequence[str]) -> str:
    """What stage1/guest.py does. `partitions`: of each of `layer_keys`; `modules`: paths in the guest."""
    steps: list[tuple[str, ...]] = [("pod", start.pod.name)]
    steps += [("module", path) for path in modules]
    steps.append(("hostname", podtree.hostname(start.pod)))
    for key, partition in zip(layer_keys(start), partitions, strict=True):
        steps.append(("disk", f"/dev/{DISK}{partition}", f"{_LAYOUT.layer_mounts}/{key}"))
    if render_exports(_LAYOUT, start):
        steps.append(("share", _LAYOUT.shares))
    steps += podtree.render_root_steps(_LAYOUT, start)
    if start.enters:
        steps.append(("probes",))
    steps.append(("exec", SYSTEMD))
    return render_plan(tuple(steps))


def render_exports(layout: Layout, start: Start) -> dict[str, tuple[str, str]]:
    """What the host serves to the guest (share/device.py): volume -> its path there, and `ro` if no app may write to it."""
    writable = {mount.volume for container in start.pod.containers for mount in container.mounts if not mount.read_only}
    exports = {}
    for volume in start.pod.volumes:
        if path := podtree.host_directory(layout, volume):
            read_only = volume.name not in writable or (isinstance(volume, ClaimVolume) and volume.read_only)
            exports[volume.name] = (path, "ro" if read_only else "rw")
    return exports


def _entries(start: Start, roots: Sequence[os.stat_result], plan: str, record: str, seed: bytes) -> Iterator[cpio.Entry]:
    pod, directory = start.pod, _LAYOUT.pod(start.pod.name).removeprefix("/")
    tree = podtree.render_tree(start)
    yield cpio.file(PLAN.removeprefix("/"), plan.encode("utf-8", "surrogateescape"), 0o600)
    yield cpio.file(SEED.removeprefix("/"), seed, 0o600)
    yield cpio.directory(_LAYOUT.run.removeprefix("/"), 0o700)
    for name in (*tree.directories, "lower"):
        yield cpio.directory(f"{directory}/{name}")
    for name, text in tree.files:
        yield cpio.file(f"{directory}/{name}", text.encode("utf-8", "surrogateescape"))
    for name, target in tree.links:
        yield cpio.link(f"{directory}/{name}", target)
    for name in tree.pipes:
        yield cpio.Entry(f"{directory}/{name}", stat.S_IFIFO | 0o622)
    for app, status in zip(start.apps, roots, strict=True):
        own = f"{start.storage}/apps/{app.name}".removeprefix("/")
        for part in ("upper", "work"):
            mode = stat.S_IMODE(status.st_mode)
            yield cpio.directory(f"{own}/{part}", mode, status.st_uid, status.st_gid, int(status.st_mtime))
    for volume in pod.volumes:
        if isinstance(volume, EmptyDir):
            path = podtree.volume_path(start, volume.name).removeprefix("/")
            yield cpio.directory(path, int(podtree.empty_dir_mode(pod), 8), 0, pod.fs_group or 0)
    vault = f"{_LAYOUT.vault}/{pod.name}".removeprefix("/")
    for projected, files in start.files:
        yield from _files(f"{vault}/volumes/{projected.name}", files, pod.fs_group)
    yield from _secrets(start, vault)
    if start.enters:  # for guestprobes.py
        yield cpio.file(f"{directory}/pod.json", record.encode(), 0o600)


def _secrets(start: Start, vault: str) -> Iterator[cpio.Entry]:
    """Variables, as prepare.py has them on a host."""
    for app in start.apps:
        if app.secret_env:
            yield cpio.file(f"{vault}{ENVIRONMENT_DIRECTORY}/{app.name}", render_environment_file(app.secret_env).encode(), 0o400)
            if start.enters:
                yield cpio.file(f"{vault}/exec/{app.name}", json.dumps(dict(app.secret_env)).encode(), 0o400)


def _files(directory: str, files: Sequence[File], group: int | None) -> Iterator[cpio.Entry]:
    """As vault.write_files has them."""
    mode = 0o755 if group is None else 0o2755
    known = {directory}
    yield cpio.directory(directory, mode, 0, group or 0)
    for file in files:
        parts = file.path.split("/")
        for count in range(1, len(parts)):
            parent = f"{directory}/{'/'.join(parts[:count])}"
            if parent not in known:
                known.add(parent)
                yield cpio.directory(parent, mode, 0, group or 0)
        own = file.mode if group is None else file.mode | 0o440
        yield cpio.file(f"{directory}/{file.path}", file.data, own, 0, group or 0)

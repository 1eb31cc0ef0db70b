# SPDX-License-Identifier: Apache-2.0
"""seLinuxOptions where the host has SELinux: one label for the processes of a pod, one of the same level for its files.

Chosen as container runtimes do (opencontainers/selinux, InitLabels): what the pod file leaves open is of the policy's lxc_contexts.
"""

import errno
import os
from typing import NamedTuple

from rktd_units.cgroups import read_quietly
from rktd_units.errors import ConfigError
from rktd_units.podfile.model import Pod, SELinux

ATTRIBUTE = "security.selinux"
_FILESYSTEM = "/sys/fs/selinux"
_DEFAULTS = {
    "process": "system_u:system_r:container_t:s0",
    "file": "system_u:object_r:container_file_t:s0",
    "ro_file": "system_u:object_r:container_ro_file_t:s0",
}
_CATEGORIES = 1024


class Labels(NamedTuple):
    """Of all processes, of all files of a pod's own, and of the files that images' layers are in, which pods share."""

    process: str
    file: str
    layer: str


def ignored_options(pod: Pod) -> str:
    """Why the labels that a pod asks for are left out on this host, as Kubernetes does there; "" if they are not."""
    lacks = pod.selinux is not None and pod.runtime_class == "nspawn" and not os.path.exists(f"{_FILESYSTEM}/enforce")
    return "seLinuxOptions are ignored: this host has no SELinux" if lacks else ""


def find_labels(pod: str, options: SELinux) -> Labels:
    """Those of a pod on this host. Raises ConfigError for one that the loaded policy does not know."""
    kind = "default"
    for line in read_quietly("/etc/selinux/config").splitlines():
        key, _, value = line.partition("=")
        kind = value.strip() if key.strip() == "SELINUXTYPE" else kind
    has_levels = read_quietly(f"{_FILESYSTEM}/mls").strip() != "0"
    labels = choose_labels(pod, options, read_quietly(f"/etc/selinux/{kind}/contexts/lxc_contexts"), has_levels=has_levels)
    for label in labels:
        _check(pod, label)
    return labels


def choose_labels(pod: str, options: SELinux, contexts: str, *, has_levels: bool) -> Labels:
    """`contexts`: the text of lxc_contexts. Files have the user and the level of the processes, as with podman."""
    lines = (line.partition("=") for line in contexts.splitlines())
    found = {key.strip(): value.strip().strip('"') for key, _, value in lines if key.strip() in _DEFAULTS}
    known = _DEFAULTS | ({"ro_file": found["file"]} if "file" in found else {}) | found
    process, file = ([*known[key].split(":", 3), ""][:4] for key in ("process", "file"))
    level = options.level or own_level(pod)
    labels = (
        (options.user or process[0], options.role or process[1], options.type or process[2], level),
        (options.user or file[0], *file[1:3], level),
    )
    own, files = (":".join(label if has_levels or options.level else label[:3]) for label in labels)
    return Labels(own, files, known["ro_file"] if has_levels else ":".join(known["ro_file"].split(":")[:3]))


def own_level(pod: str) -> str:
    """Two categories, by which pods are apart that ask for none; the same at each start, so that the pod's volumes stay its own."""
    import hashlib

    digest = hashlib.sha256(pod.encode()).digest()
    first = int.from_bytes(digest[:4]) % _CATEGORIES
    second = (first + 1 + int.from_bytes(digest[4:8]) % (_CATEGORIES - 1)) % _CATEGORIES
    return "s0:c{},c{}".format(*sorted((first, second)))


def label_layer(path: str, label: str) -> None:
    """Of a layer's file: the kernel reads a mounted EROFS file as whoever reads in it (erofs, file-backed mounts)."""
    if os.getxattr(path, ATTRIBUTE).rstrip(b"\0") != label.encode():
        os.setxattr(path, ATTRIBUTE, label.encode(), follow_symlinks=False)


def set_label(path: str, label: str) -> None:
    """Of a file, or of a directory with all that is in it, which must be the host's own still: links are not followed, but may not move."""
    os.setxattr(path, ATTRIBUTE, label.encode(), follow_symlinks=False)
    for parent, directories, files in os.walk(path):
        for name in (*directories, *files):
            os.setxattr(f"{parent}/{name}", ATTRIBUTE, label.encode(), follow_symlinks=False)


def _check(pod: str, label: str) -> None:
    """The kernel says (security_check_context(3))."""
    try:
        with open(f"{_FILESYSTEM}/context", "r+b", buffering=0) as file:
            file.write(label.encode() + b"\0")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        message = f"pod {pod}: this host's SELinux policy has no label {label}"
        raise ConfigError(message, hint="securityContext.seLinuxOptions asks for it, or the policy's lxc_contexts") from error

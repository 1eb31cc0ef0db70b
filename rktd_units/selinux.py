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
_DEFAULTS = {"process": "system_u:system_r:container_t:s0", "file": "system_u:object_r:container_file_t:s0"}
_CATEGORIES = 1024


class Labels(NamedTuple):
    """Of all processes and of all files of a pod's own."""

    process: str
    file: str


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
    known = dict(_DEFAULTS)
    for line in contexts.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() in known:
            known[key.strip()] = value.strip().strip('"')
    process, file = ([*known[key].split(":", 3), ""][:4] for key in ("process", "file"))
    level = options.level or own_level(pod)
    labels = (
        (options.user or process[0], options.role or process[1], options.type or process[2], level),
        (options.user or file[0], *file[1:3], level),
    )
    return Labels(*(":".join(label if has_levels or options.level else label[:3]) for label in labels))


def own_level(pod: str) -> str:
    """Two categories, by which pods are apart that ask for none; the same at each start, so that the pod's volumes stay its own."""
    import hashlib

    digest = hashlib.sha256(pod.encode()).digest()
    first = int.from_bytes(digest[:4]) % _CATEGORIES
    second = (first + 1 + int.from_bytes(digest[4:8]) % (_CATEGORIES - 1)) % _CATEGORIES
    return "s0:c{},c{}".format(*sorted((first, second)))


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

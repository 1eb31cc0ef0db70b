# SPDX-License-Identifier: Apache-2.0
"""What a pod that runs as a virtual machine cannot have: told with the file's other faults, never at run time. Pure."""

from rktd_units.fields import Faults, Place, items_of, text_of
from rktd_units.podfile.annotations import PREFIX
from rktd_units.podfile.profiles import PREFIX as APPARMOR
from rktd_units.podfile.resources import PIDS
from rktd_units.strictyaml import Mapping, Node

_WHY = "not supported with runtimeClassName: xen"
_NO_PROFILES = f"{_WHY}: the host's profiles are not loaded in a virtual machine"
_FIELDS = {
    "hostIPC": "a virtual machine has its own kernel",
    "hostNetwork": "a virtual machine has its own kernel",
    "hostPID": "a virtual machine has its own kernel",
}
_HOST_TYPES = ("BlockDevice", "CharDevice", "Socket")  # of the host's kernel
_ANNOTATIONS = {
    "cpus": "a virtual machine has processors of its own",
    "ip-address-allow": "the unit's address filter does not see what a virtual machine sends",
    "ip-address-deny": "the unit's address filter does not see what a virtual machine sends",
    "journal-socket": "the host's journal is not in a virtual machine",
    "socket-activation": "the host's sockets are not in a virtual machine",
}


def check_machine(faults: Faults, spec: Mapping, annotations: Node | None) -> None:
    """Faults of a pod with runtimeClassName: xen."""
    here: Place = (None, "spec")
    for key, reason in _FIELDS.items():
        node = spec.get(key)
        if node is not None and text_of(spec, key) == "true":
            faults.error(node, (here, key), f"{_WHY}: {reason}")
    for index, volume in enumerate(items_of(spec, "volumes")):
        path = volume.get("hostPath") if isinstance(volume, Mapping) else None
        if isinstance(path, Mapping) and text_of(path, "type") in _HOST_TYPES:
            faults.error(path, ((((here, "volumes"), index), "hostPath"), "type"), f"{_WHY}: a virtual machine has its own kernel")
        directory = volume.get("emptyDir") if isinstance(volume, Mapping) else None
        if isinstance(directory, Mapping) and text_of(directory, "medium").startswith("HugePages"):
            faults.error(directory, ((((here, "volumes"), index), "emptyDir"), "medium"), f"{_WHY} yet")
    _check_apparmor(faults, spec, here)
    _check_selinux(faults, spec, here)
    for key in ("initContainers", "containers"):
        for index, container in enumerate(items_of(spec, key)):
            _check_resources(faults, container, ((here, key), index))
            _check_apparmor(faults, container, ((here, key), index))
            _check_selinux(faults, container, ((here, key), index))
    if text_of(spec, "hostUsers") == "true":
        faults.warning(spec.get("hostUsers") or spec, (here, "hostUsers"), "means nothing with runtimeClassName: xen")
    _check_annotations(faults, annotations, ((None, "metadata"), "annotations"))


def _check_annotations(faults: Faults, annotations: Node | None, place: Place) -> None:
    for key, (_, value) in annotations.entries.items() if isinstance(annotations, Mapping) else ():
        if reason := _ANNOTATIONS.get(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else None:
            faults.error(value, (place, key), f"{_WHY}: {reason}")
        elif key.startswith(APPARMOR) and text_of(annotations, key).startswith("localhost/"):
            faults.error(value, (place, key), _NO_PROFILES)


def _check_apparmor(faults: Faults, owner: Node, place: Place) -> None:
    """Of a pod's spec, or a container."""
    security = owner.get("securityContext") if isinstance(owner, Mapping) else None
    profile = security.get("appArmorProfile") if isinstance(security, Mapping) else None
    if isinstance(profile, Mapping) and text_of(profile, "type") == "Localhost":
        faults.error(profile, ((place, "securityContext"), "appArmorProfile"), _NO_PROFILES)


def _check_selinux(faults: Faults, owner: Node, place: Place) -> None:
    security = owner.get("securityContext") if isinstance(owner, Mapping) else None
    options = security.get("seLinuxOptions") if isinstance(security, Mapping) else None
    if options is not None:
        why = "means nothing with runtimeClassName: xen: a virtual machine has its own kernel"
        faults.warning(options, ((place, "securityContext"), "seLinuxOptions"), why)


def _check_resources(faults: Faults, container: Node, place: Place) -> None:
    """Processor, memory and processes are the guest's own to limit."""
    resources = container.get("resources") if isinstance(container, Mapping) else None
    for kind in ("limits", "requests"):
        amounts = resources.get(kind) if isinstance(resources, Mapping) else None
        for name, (node, _) in amounts.entries.items() if isinstance(amounts, Mapping) else ():
            if name == "ephemeral-storage" or name.startswith("hugepages-") or ("/" in name and name != PIDS):
                faults.error(node, (((place, "resources"), kind), name), f"{_WHY} yet")

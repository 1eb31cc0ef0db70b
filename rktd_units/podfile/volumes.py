# SPDX-License-Identifier: Apache-2.0
"""The `volumes` list of a pod file: every volume type of Kubernetes, and what becomes of it."""

from rktd_units.fields import Faults, Place, Table, not_supported, not_yet, read_choice, read_mapping
from rktd_units.podfile.containers import read_label, read_path, read_quantity
from rktd_units.podfile.model import EmptyDir, HostPath, Volume
from rktd_units.strictyaml import Mapping, Node

_HOST_PATH_TYPES = ("", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice")
_LATER = ("configMap", "downwardAPI", "image", "persistentVolumeClaim", "projected", "secret")
_NEVER = """awsElasticBlockStore azureDisk azureFile cephfs cinder csi ephemeral fc flexVolume flocker gcePersistentDisk gitRepo glusterfs
    iscsi nfs photonPersistentDisk portworxVolume quobyte rbd scaleIO storageos vsphereVolume"""


def read_volume(faults: Faults, node: Node, place: Place) -> Volume | None:
    """One volume; exactly one type must be given."""
    values = read_mapping(faults, node, place, _VOLUME, required=("name",))
    if not isinstance(node, Mapping):
        return None
    types = [key for key in node.entries if key != "name" and key in _VOLUME and node.get(key) is not None]
    if not types:
        faults.error(node, place, "has no type", "emptyDir: {} is an empty directory that lives as long as the pod")
    elif len(types) > 1:
        faults.error(node, place, f"must have one type, got {' and '.join(types)}", f"in a drop-in, `{types[0]}: null` takes one away")
    if "name" not in values:
        return None
    if "emptyDir" in values:
        return EmptyDir(values["name"], *values["emptyDir"])
    if "hostPath" in values:
        return HostPath(values["name"], *values["hostPath"])
    return None


def _read_empty_dir(faults: Faults, node: Node, place: Place) -> tuple[bool, int | None]:
    values = read_mapping(faults, node, place, _EMPTY_DIR)
    memory, limit = values.get("medium") == "Memory", values.get("sizeLimit")
    at = node.get("sizeLimit") if isinstance(node, Mapping) else None
    if at and limit is not None and not memory:
        faults.error(at, (place, "sizeLimit"), "not supported yet without medium: Memory")
    elif at and limit == 0:
        faults.error(at, (place, "sizeLimit"), "must be more than 0")
    return memory, limit


def _read_host_path(faults: Faults, node: Node, place: Place) -> tuple[str, str, tuple[int, int]] | None:
    values = read_mapping(faults, node, place, _HOST_PATH, required=("path",))
    at = node.get("path") if isinstance(node, Mapping) else None
    return (values["path"], values.get("type", ""), (at.line, at.column)) if at and "path" in values else None


_EMPTY_DIR: Table = {
    "medium": read_choice("", "Memory", later=("HugePages", "HugePages-2Mi", "HugePages-1Gi")),
    "sizeLimit": read_quantity,
}
_HOST_PATH: Table = {"path": read_path, "type": read_choice(*_HOST_PATH_TYPES)}
_VOLUME: Table = {
    "emptyDir": _read_empty_dir,
    "hostPath": _read_host_path,
    "name": read_label,
    **dict.fromkeys(_LATER, not_yet),
    **dict.fromkeys(_NEVER.split(), not_supported),
}

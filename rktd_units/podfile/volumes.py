# SPDX-License-Identifier: Apache-2.0
"""The `volumes` list of a pod file: every volume type of Kubernetes, and what becomes of it."""

from typing import Any

from rktd_units.fields import (
    Faults,
    Place,
    Table,
    describe,
    ignored,
    not_supported,
    not_yet,
    read_boolean,
    read_choice,
    read_list,
    read_mapping,
    read_table,
    refuse_repeated,
    text_of,
)
from rktd_units.podfile.containers import read_label, read_path, read_sub_path
from rktd_units.podfile.environment import (
    FILE_FIELD_PATHS,
    place_at,
    read_key,
    read_resource,
    read_subdomain,
    reader_of_field,
    reader_of_reference,
)
from rktd_units.podfile.model import HUGE_PAGES, ClaimVolume, EmptyDir, FieldFile, HostPath, Item, KeyFiles, Projected, Volume
from rktd_units.podfile.resources import read_quantity
from rktd_units.strictyaml import Mapping, Node, Scalar

_HOST_PATH_TYPES = ("", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice")
_LATER = ("image",)
_CLUSTER_CA = "kube-root-ca.crt"  # in every namespace of a cluster: the CA of its API server
_MODE_MAX = 0o777
Source = KeyFiles | FieldFile
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
    if "persistentVolumeClaim" in values:
        return ClaimVolume(values["name"], *values["persistentVolumeClaim"])
    for key in ("configMap", "downwardAPI", "projected", "secret"):
        if key in values:
            sources, mode = values[key]
            return Projected(values["name"], tuple(sources), mode, place_at(node))
    return None


def _read_claim(faults: Faults, node: Node, place: Place) -> tuple[str, bool] | None:
    values = read_mapping(faults, node, place, _CLAIM, required=("claimName",))
    return (values["claimName"], values.get("readOnly", False)) if "claimName" in values else None


def _read_config_map(faults: Faults, node: Node, place: Place) -> tuple[list[Source], int] | None:
    return _with_mode(_CONFIG_MAP(faults, node, place))


def _read_secret(faults: Faults, node: Node, place: Place) -> tuple[list[Source], int] | None:
    return _with_mode(_SECRET(faults, node, place))


def _with_mode(found: Any) -> tuple[list[Source], int] | None:
    return ([_key_files(found)], found[1].get("defaultMode", 0o644)) if found else None


def _key_files(found: Any) -> KeyFiles:
    reference, values = found
    return KeyFiles(reference, tuple(values["items"]) if values.get("items") else None)


def _read_downward(faults: Faults, node: Node, place: Place) -> tuple[list[Source], int]:
    values = read_mapping(faults, node, place, _DOWNWARD)
    _refuse_repeated_items(faults, node, place)
    return values.get("items", []), values.get("defaultMode", 0o644)


def _read_projected(faults: Faults, node: Node, place: Place) -> tuple[list[Source], int]:
    """The volume in which a cluster gives a pod its token: what of that has a meaning here is the namespace."""
    values = read_mapping(faults, node, place, _PROJECTED)
    groups: list[list[Source]] = values.get("sources", [])
    sources = [source for group in groups for source in group]
    items = node.get("sources") if isinstance(node, Mapping) else None
    if any(isinstance(item, Mapping) and item.get("serviceAccountToken") for item in getattr(items, "items", ())):
        sources = [source for source in sources if not (isinstance(source, KeyFiles) and source.source.name == _CLUSTER_CA)]
    return sources, values.get("defaultMode", 0o644)


def _read_source(faults: Faults, node: Node, place: Place) -> list[Source]:
    values = read_mapping(faults, node, place, _SOURCES)
    if isinstance(node, Mapping) and len(node.entries) != 1:
        faults.error(node, place, f"must have one of {', '.join(_SOURCES)}")
    found: list[Source] = [_key_files(values[key]) for key in ("configMap", "secret") if key in values]
    return found + list(values.get("downwardAPI", {}).get("items", ()))


def _read_item(faults: Faults, node: Node, place: Place) -> Item | None:
    values = read_mapping(faults, node, place, _ITEM, required=("key", "path"))
    return Item(values["key"], values["path"], values.get("mode")) if "key" in values and "path" in values else None


def _read_items(faults: Faults, node: Node, place: Place) -> list[Item] | None:
    refuse_repeated(faults, node, place, ("path",))
    items: list[Item] | None = read_list(_read_item)(faults, node, place)
    return items


def _refuse_repeated_items(faults: Faults, node: Node, place: Place) -> None:
    refuse_repeated(faults, node.get("items") if isinstance(node, Mapping) else None, (place, "items"), ("path",))


def _read_field_file(faults: Faults, node: Node, place: Place) -> FieldFile | None:
    values = read_mapping(faults, node, place, _FIELD_FILE, required=("path",))
    if isinstance(node, Mapping) and (node.get("fieldRef") is None) == (node.get("resourceFieldRef") is None):
        faults.error(node, place, "must have a fieldRef or a resourceFieldRef")
    resource = values.get("resourceFieldRef")
    if resource and not resource.container:
        faults.error(node, ((place, "resourceFieldRef"), "containerName"), "is required")
    return FieldFile(values["path"], values.get("fieldRef", ""), resource, values.get("mode")) if "path" in values else None


def _read_file_path(faults: Faults, node: Node, place: Place) -> str | None:
    path = read_sub_path(faults, node, place)
    if path == "":
        faults.error(node, place, "must not be empty")
        return None
    return path


def _read_mode(faults: Faults, node: Node, place: Place) -> int | None:
    """Permission bits: octal as kubectl reads it, with a leading 0, or decimal, as it prints it: 0644 is 420."""
    text = node.text if isinstance(node, Scalar) and node.plain else ""
    octal = text.removeprefix("0o") if text.startswith("0o") else text[1:] if len(text) > 1 and text.startswith("0") else ""
    value = -1
    if octal and set(octal) <= set("01234567") and len(octal) <= 4:
        value = int(octal, 8)
    elif not octal and text.isascii() and text.isdigit() and len(text) <= 4:
        value = int(text)
    if not 0 <= value <= _MODE_MAX:
        faults.error(node, place, f"must be between 0 and 0777, got {describe(node)}", "octal numbers have a leading 0: 0644")
        return None
    return value


def _read_empty_dir(faults: Faults, node: Node, place: Place) -> tuple[str, int | None]:
    values = read_mapping(faults, node, place, _EMPTY_DIR)
    at = node.get("sizeLimit") if isinstance(node, Mapping) else None
    if at and values.get("sizeLimit") == 0:
        faults.error(at, (place, "sizeLimit"), "must be more than 0")
    return values.get("medium", ""), values.get("sizeLimit")


def check_huge_pages(faults: Faults, volumes: list[Node], place: Place, sizes: frozenset[int]) -> None:
    """An emptyDir in huge pages needs a limit of theirs, as in Kubernetes. `sizes`: those of which the pod's containers have one."""
    for index, volume in enumerate(volumes):
        directory = volume.get("emptyDir") if isinstance(volume, Mapping) else None
        medium = text_of(directory, "medium")
        at = directory.get("medium") if isinstance(directory, Mapping) else None
        name = medium.replace("HugePages", "hugepages")
        wanted = HUGE_PAGES.get(name)
        here: Place = (((place, index), "emptyDir"), "medium")
        if at is None or not medium.startswith("HugePages"):
            continue
        if not sizes or (wanted and wanted not in sizes):
            faults.error(at, here, f"needs a container with resources.limits of {name if wanted else 'hugepages-2Mi or hugepages-1Gi'}")
        elif not wanted and len(sizes) > 1:
            faults.error(at, here, "the pod has huge pages of two sizes", "write HugePages-2Mi or HugePages-1Gi")


def _read_host_path(faults: Faults, node: Node, place: Place) -> tuple[str, str, tuple[int, int]] | None:
    values = read_mapping(faults, node, place, _HOST_PATH, required=("path",))
    at = node.get("path") if isinstance(node, Mapping) else None
    return (values["path"], values.get("type", ""), (at.line, at.column)) if at and "path" in values else None


_EMPTY_DIR: Table = {
    "medium": read_choice("", "Memory", "HugePages", *(f"HugePages-{name.partition('-')[2]}" for name in HUGE_PAGES)),
    "sizeLimit": read_quantity,
}
_HOST_PATH: Table = {"path": read_path, "type": read_choice(*_HOST_PATH_TYPES)}
_CLAIM: Table = {"claimName": read_subdomain, "readOnly": read_boolean}
_ITEM: Table = {"key": read_key, "mode": _read_mode, "path": _read_file_path}
_FIELD_FILE: Table = {
    "fieldRef": reader_of_field(FILE_FIELD_PATHS),
    "mode": _read_mode,
    "path": _read_file_path,
    "resourceFieldRef": read_resource,
}
_FILES: Table = {"items": _read_items}
_MODES: Table = {"defaultMode": _read_mode}
_CONFIG_MAP = reader_of_reference("ConfigMap", {**_FILES, **_MODES})
_SECRET = reader_of_reference("Secret", {**_FILES, **_MODES}, "secretName")
_DOWNWARD_ITEMS: Table = {"items": read_list(_read_field_file)}
_DOWNWARD: Table = {**_DOWNWARD_ITEMS, **_MODES}
_SOURCES: Table = {
    "clusterTrustBundle": not_supported,
    "configMap": reader_of_reference("ConfigMap", _FILES),
    "downwardAPI": read_table(_DOWNWARD_ITEMS),
    "podCertificate": not_supported,
    "secret": reader_of_reference("Secret", _FILES),
    "serviceAccountToken": ignored,
}
_PROJECTED: Table = {**_MODES, "sources": read_list(_read_source)}
_VOLUME: Table = {
    "configMap": _read_config_map,
    "downwardAPI": _read_downward,
    "emptyDir": _read_empty_dir,
    "hostPath": _read_host_path,
    "name": read_label,
    "persistentVolumeClaim": _read_claim,
    "projected": _read_projected,
    "secret": _read_secret,
    **dict.fromkeys(_LATER, not_yet),
    **dict.fromkeys(_NEVER.split(), not_supported),
}

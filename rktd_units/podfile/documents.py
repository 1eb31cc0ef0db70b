# SPDX-License-Identifier: Apache-2.0
"""What may stand beside the pod in its file: ConfigMap, Secret and PersistentVolumeClaim documents.

What a Secret holds is in no message: those go to the kernel's log and the journal.
"""

from rktd_units.fields import (
    Faults,
    Place,
    Table,
    describe,
    ignored,
    not_supported,
    read_boolean,
    read_choice,
    read_list,
    read_mapping,
    read_table,
    read_text,
    text_of,
)
from rktd_units.podfile.annotations import metadata_table
from rktd_units.podfile.environment import is_key, read_subdomain
from rktd_units.podfile.model import KINDS, Claim, DataMap, Documents
from rktd_units.podfile.resources import read_quantity
from rktd_units.strictyaml import Mapping, Node, Scalar


def read_beside(faults: Faults, documents: tuple[Node, ...]) -> Documents:
    """These documents, each of one of KINDS. Two of a kind with one name are a fault."""
    maps: list[DataMap] = []
    claims: list[Claim] = []
    seen: dict[tuple[str, str], Node] = {}
    for node in documents:
        kind = text_of(node, "kind")
        table = _CLAIM if kind == "PersistentVolumeClaim" else _SECRET if kind == "Secret" else _CONFIG_MAP
        values = read_mapping(faults, node, None, table, required=("apiVersion", "kind", "metadata"))
        name = values.get("metadata", {}).get("name")
        if name is None:
            continue
        if (kind, name) in seen:
            faults.error(node, ((None, "metadata"), "name"), f"a second {kind} '{name}'", "the first is in " + _place(seen[kind, name]))
        seen[kind, name] = node
        if kind == "PersistentVolumeClaim":
            claims.append(Claim(name, values.get("spec", {}).get("resources", {}).get("requests", {}).get("storage")))
        else:
            maps.append(DataMap(kind, name, _join_data(faults, node, kind, values)))
    return Documents(tuple(maps), tuple(claims))


def _place(node: Node) -> str:
    return f"{node.file}:{node.line}"


def _join_data(faults: Faults, node: Node, kind: str, values: dict[str, dict[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    """Both maps of a document as one. stringData wins over data, as in Kubernetes; a key in both maps of a ConfigMap is a fault."""
    first, second = values.get("data", {}), values.get("stringData" if kind == "Secret" else "binaryData", {})
    for key in sorted(set(first) & set(second)) if kind == "ConfigMap" else ():
        faults.error(node, ((None, "binaryData"), key), "is in data, too")
    return tuple(sorted({**first, **second}.items()))


def _read_strings(faults: Faults, node: Node, place: Place) -> dict[str, bytes]:
    """A map of texts, in a ConfigMap."""
    found = {}
    for key, value in _entries(faults, node, place, describe(node)):
        text = read_text(faults, value, (place, key))
        if text is not None:
            found[key] = text.encode()
    return found


def _read_secret_strings(faults: Faults, node: Node, place: Place) -> dict[str, bytes]:
    """The same in a Secret: no message repeats what it found."""
    found = {}
    for key, value in _entries(faults, node, place, node.kind):
        own = Faults()
        text = read_text(own, value, (place, key))
        if text is not None:
            found[key] = text.encode()
        elif isinstance(value, Scalar) and "\0" in value.text:
            faults.error(value, (place, key), "must not contain a NUL byte", "base64 in data can")
        else:
            faults.error(value, (place, key), "must be a string", "quote it" if isinstance(value, Scalar) else "")
    return found


def _read_bytes(faults: Faults, node: Node, place: Place) -> dict[str, bytes]:
    """A map of base64, as Go decodes it: line breaks do not count. No message repeats what it found."""
    from binascii import Error, a2b_base64

    found = {}
    for key, value in _entries(faults, node, place, node.kind):
        if not isinstance(value, Scalar):
            faults.error(value, (place, key), f"must be base64, got {value.kind}")
            continue
        try:
            found[key] = a2b_base64(value.text.replace("\n", "").replace("\r", "").encode(), strict_mode=True)
        except Error as error:
            faults.error(
                value, (place, key), f"is not base64: {str(error).lower()}", "text as it is goes into stringData or a ConfigMap's data"
            )
    return found


def _entries(faults: Faults, node: Node, place: Place, shown: str) -> list[tuple[str, Node]]:
    if not isinstance(node, Mapping):
        faults.error(node, place, f"must be a map, got {shown}")
        return []
    for key, (key_node, _) in node.entries.items():
        if not is_key(key):
            faults.error(key_node, (place, key), "is not a key", "letters, digits and -_. , 253 characters at most")
    return [(key, value) for key, (_, value) in node.entries.items() if not value.is_null]


def _read_size(faults: Faults, node: Node, place: Place) -> int | None:
    size = read_quantity(faults, node, place)
    if size is not None:
        faults.warning(node, place, "limits nothing: a volume may grow to what the file system has")
    return size


_METADATA: Table = metadata_table(read_subdomain)
_HEAD: Table = {"apiVersion": read_choice("v1"), "kind": read_choice(*KINDS), "metadata": read_table(_METADATA, required=("name",))}
_CONFIG_MAP: Table = {**_HEAD, "binaryData": _read_bytes, "data": _read_strings, "immutable": read_boolean}
_SECRET: Table = {**_HEAD, "data": _read_bytes, "immutable": read_boolean, "stringData": _read_secret_strings, "type": read_text}
_ACCESS_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany")
_CLAIM_SPEC: Table = {
    "accessModes": read_list(read_choice(*_ACCESS_MODES, later=("ReadWriteOncePod",))),
    "dataSource": not_supported,
    "dataSourceRef": not_supported,
    "resources": read_table({"limits": ignored, "requests": read_table({"storage": _read_size})}),
    "selector": ignored,
    "storageClassName": ignored,
    "volumeAttributesClassName": ignored,
    "volumeMode": read_choice("Filesystem", later=("Block",)),
    "volumeName": ignored,
}
_CLAIM: Table = {**_HEAD, "spec": read_table(_CLAIM_SPEC), "status": ignored}

# SPDX-License-Identifier: Apache-2.0
"""Lays a partial pod over a pod, on nodes: every value keeps the file and line that it came from, so that faults name the right one.

Kubernetes' strategic merge: maps key by key, lists of named things by their name, other lists as a whole, and `null` deletes.
"""

from rktd_units.strictyaml import Mapping, Node, Scalar, Sequence

# What makes two items of a list the same one, as in the patchMergeKey tags of k8s.io/api/core/v1.
_IDENTITY: dict[str, tuple[tuple[str, str], ...]] = {
    "containers": (("name", ""),),
    "initContainers": (("name", ""),),
    "volumes": (("name", ""),),
    "env": (("name", ""),),
    "imagePullSecrets": (("name", ""),),
    "volumeMounts": (("mountPath", ""),),
    "volumeDevices": (("devicePath", ""),),
    "hostAliases": (("ip", ""),),
    "ports": (("containerPort", ""), ("protocol", "TCP")),
}


def merge_nodes(base: Node, overlay: Node, key: str = "") -> Node:
    """A new tree; neither argument is changed. `key` is the one that both stand under."""
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        return _merge_mappings(base, overlay)
    if isinstance(base, Sequence) and isinstance(overlay, Sequence) and key in _IDENTITY:
        return _merge_lists(base, overlay, _IDENTITY[key])
    return overlay


def _merge_mappings(base: Mapping, overlay: Mapping) -> Mapping:
    directive = _directive(overlay)
    entries = {} if directive == "replace" else dict(base.entries)
    for key, (key_node, value) in overlay.entries.items():
        if key == "$patch" and directive == "replace":
            continue
        if value.is_null:
            entries.pop(key, None)
        elif key in entries:
            entries[key] = (key_node, merge_nodes(entries[key][1], value, key))
        else:
            entries[key] = (key_node, value)
    return Mapping(base.file, base.line, base.column, entries)


def _merge_lists(base: Sequence, overlay: Sequence, identity: tuple[tuple[str, str], ...]) -> Sequence:
    """Items of the overlay change the first item of the same identity, or are added at the end; `$patch: delete` takes one away."""
    items = list(base.items)
    for item in overlay.items:
        wanted = _identify(item, identity)
        found = next((i for i, known in enumerate(items) if wanted and _identify(known, identity) == wanted), None)
        if _directive(item) == "delete":
            if found is not None:
                del items[found]
        elif found is None:
            items.append(item)
        else:
            items[found] = merge_nodes(items[found], item)
    return Sequence(base.file, base.line, base.column, items)


def _identify(item: Node, identity: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """The values of the identifying keys, () when one is missing."""
    if not isinstance(item, Mapping):
        return ()
    values = []
    for key, default in identity:
        value = item.get(key)
        text = value.text if isinstance(value, Scalar) else default if value is None else ""
        if not text:
            return ()
        values.append(text)
    return tuple(values)


def _directive(item: Node) -> str:
    value = item.get("$patch") if isinstance(item, Mapping) else None
    return value.text if isinstance(value, Scalar) else ""

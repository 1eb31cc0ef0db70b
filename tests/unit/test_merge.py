# SPDX-License-Identifier: Apache-2.0
from rktd_units.podfile.merge import merge_nodes
from rktd_units.strictyaml import Mapping, Node, Scalar, Sequence, parse_yaml


def plain(node: Node) -> object:
    if isinstance(node, Mapping):
        return {key: plain(value) for key, (_, value) in node.entries.items()}
    return [plain(item) for item in node.items] if isinstance(node, Sequence) else node.text if isinstance(node, Scalar) else None


def merged(base: str, overlay: str) -> object:
    return plain(merge_nodes(parse_yaml(base.encode(), "base")[0][0], parse_yaml(overlay.encode(), "over")[0][0]))


def test_maps_merge_and_null_deletes() -> None:
    assert merged("{a: {x: 1, y: 2}, b: 3}", "{a: {y: 4}, b: null, c: 5}") == {"a": {"x": "1", "y": "4"}, "c": "5"}


def test_named_lists_merge_by_name() -> None:
    base = "containers: [{name: a, image: x, command: [p, q]}, {name: b, image: y}]"
    overlay = "containers: [{name: b, image: z}, {name: c, image: w}, {name: a, command: [r]}]"
    assert merged(base, overlay) == {
        "containers": [{"name": "a", "image": "x", "command": ["r"]}, {"name": "b", "image": "z"}, {"name": "c", "image": "w"}]
    }


def test_mounts_and_ports_have_their_own_identity() -> None:
    assert merged("volumeMounts: [{name: a, mountPath: /x}]", "volumeMounts: [{name: b, mountPath: /x}]") == {
        "volumeMounts": [{"name": "b", "mountPath": "/x"}]
    }
    base, overlay = (
        "ports: [{containerPort: 53, protocol: UDP}, {containerPort: 53}]",
        "ports: [{containerPort: 53, protocol: TCP, name: d}]",
    )
    assert merged(base, overlay) == {
        "ports": [{"containerPort": "53", "protocol": "UDP"}, {"containerPort": "53", "protocol": "TCP", "name": "d"}]
    }


def test_patch_directives() -> None:
    assert merged("env: [{name: A}, {name: B}]", "env: [{name: A, $patch: delete}]") == {"env": [{"name": "B"}]}
    assert merged("s: {a: 1, b: 2}", "s: {$patch: replace, c: 3}") == {"s": {"c": "3"}}


def test_values_keep_their_file() -> None:
    node = merge_nodes(parse_yaml(b"a: 1\nb: 2", "base")[0][0], parse_yaml(b"b: 3", "over")[0][0])
    assert isinstance(node, Mapping)
    assert [value.file for _, value in node.entries.values()] == ["base", "over"]

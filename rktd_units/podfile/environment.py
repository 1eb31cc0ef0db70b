# SPDX-License-Identifier: Apache-2.0
"""Where values come from: `env`, `envFrom`, and the fields, resources and keys that variables and files of volumes refer to."""

from rktd_units.fields import (
    Faults,
    Place,
    Reader,
    Table,
    describe,
    not_yet,
    read_boolean,
    read_choice,
    read_mapping,
    read_table,
    read_text,
    render_place,
    suggest,
)
from rktd_units.podfile.model import At, EnvFrom, EnvVar, Reference, ResourceRef
from rktd_units.podfile.quantities import parse_bytes, parse_millicores
from rktd_units.strictyaml import Mapping, Node, Scalar

FIELD_PATHS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels['KEY']",
    "metadata.annotations['KEY']",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
FILE_FIELD_PATHS = (*FIELD_PATHS[:5], "metadata.labels", "metadata.annotations")
RESOURCES = ("limits.cpu", "limits.memory", "requests.cpu", "requests.memory")
_RESOURCES_LATER = ("limits.ephemeral-storage", "requests.ephemeral-storage")
# k8s.io/kubernetes pkg/apis/core/validation: containerResourceDivisorForCPU and ...ForMemory; the default is written as 0.
_CPU_DIVISORS = ("0", "1", "1m")
_BYTE_DIVISORS = ("0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")
_ENV_NAME_HINT = "letters, digits and underscores; others by `command: [env, NAME=VALUE, PROGRAM]`, where the image has env"
_ENV_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_KEY = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._")
_SUBDOMAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")


def place_at(node: Node) -> At:
    """Where a node stands, for what is found wrong only at the start."""
    return node.file, node.line, node.column


def read_subdomain(faults: Faults, node: Node, place: Place) -> str | None:
    """The name of a ConfigMap, Secret or PersistentVolumeClaim: a DNS subdomain."""
    text = read_text(faults, node, place)
    if text is not None and not is_subdomain(text):
        faults.error(node, place, f"'{text}' is not a valid name", "lower case letters, digits, dashes and dots, 253 characters at most")
        return None
    return text


def is_subdomain(text: str) -> bool:
    """A DNS subdomain as Kubernetes has it."""
    return 0 < len(text) <= 253 and set(text) <= _SUBDOMAIN and all(p and p[0] != "-" and p[-1] != "-" for p in text.split("."))


def is_key(text: str) -> bool:
    """IsConfigMapKey of Kubernetes."""
    return 0 < len(text) <= 253 and set(text) <= _KEY and text != "." and not text.startswith("..")


def read_key(faults: Faults, node: Node, place: Place) -> str | None:
    """A key of a ConfigMap or Secret."""
    text = read_text(faults, node, place)
    if text is not None and not is_key(text):
        faults.error(node, place, f"'{text}' is not a key", "letters, digits and -_. , 253 characters at most")
        return None
    return text


def reader_of_reference(kind: str, more: Table | None = None, name: str = "name") -> Reader:
    """A reader of references to a `kind`: a Reference and the values of `more`, the keys that stand beside it."""
    table: Table = {name: read_subdomain, "optional": read_boolean, **(more or {})}
    required = (name, "key") if more and "key" in more else (name,)

    def read(faults: Faults, node: Node, place: Place) -> tuple[Reference, dict[str, object]] | None:
        values = read_mapping(faults, node, place, table, required)
        if any(key not in values for key in required):
            return None
        found = Reference(kind, values[name], values.get("key", ""), values.get("optional", False), render_place(place), place_at(node))
        return found, values

    return read


def read_pull_secret(faults: Faults, node: Node, place: Place) -> Reference | None:
    """One of `imagePullSecrets`. As in Kubernetes it may be missing: the image may be here, or need none."""
    name = read_mapping(faults, node, place, {"name": read_subdomain}, ("name",)).get("name")
    return None if name is None else Reference("Secret", name, "", True, render_place(place), place_at(node))


def read_env(faults: Faults, node: Node, place: Place) -> EnvVar | None:
    """One of `env`."""
    values = read_mapping(faults, node, place, _ENV, required=("name",))
    if "value" in values and isinstance(node, Mapping) and node.get("valueFrom"):
        faults.error(node, place, "has both value and valueFrom")
    if "name" not in values:
        return None
    found: EnvVar = values.get("valueFrom", EnvVar(""))
    return found._replace(name=values["name"], value=values.get("value", ""))


def read_env_from(faults: Faults, node: Node, place: Place) -> EnvFrom | None:
    """One of `envFrom`."""
    values = read_mapping(faults, node, place, _ENV_FROM)
    sources = [values[key][0] for key in ("configMapRef", "secretRef") if key in values]
    if isinstance(node, Mapping) and sum(node.get(key) is not None for key in ("configMapRef", "secretRef")) != 1:
        faults.error(node, place, "must have a configMapRef or a secretRef")
    return EnvFrom(sources[0], values.get("prefix", "")) if sources else None


def reader_of_field(paths: tuple[str, ...]) -> Reader:
    """A reader of fieldRef: the path, one of `paths`."""

    def read_path(faults: Faults, node: Node, place: Place) -> str | None:
        text = read_text(faults, node, place)
        if text is None or text in paths:
            return text
        base, bracket, key = text.partition("['")
        if bracket and f"{base}['KEY']" in paths and key.endswith("']") and len(key) > 2:
            return text
        faults.error(node, place, f"must be one of {', '.join(paths)}, got '{text}'", suggest(text, paths))
        return None

    table = read_table({"apiVersion": read_choice("v1"), "fieldPath": read_path}, required=("fieldPath",))

    def read(faults: Faults, node: Node, place: Place) -> str | None:
        found = table(faults, node, place).get("fieldPath")
        return found if isinstance(found, str) else None

    return read


def read_resource(faults: Faults, node: Node, place: Place) -> ResourceRef | None:
    """A resourceFieldRef."""
    values = read_mapping(faults, node, place, _RESOURCE, required=("resource",))
    if "resource" not in values:
        return None
    cpu = values["resource"].endswith(".cpu")
    text = values.get("divisor", "0")
    allowed = _CPU_DIVISORS if cpu else _BYTE_DIVISORS
    if text not in allowed:
        faults.error(node, (place, "divisor"), f"must be one of {', '.join(allowed)}, got '{text}'")
        return None
    text = "1" if text == "0" else text
    divisor = parse_millicores(text) if cpu else parse_bytes(text)
    return ResourceRef(values.get("containerName", ""), values["resource"], divisor, render_place(place), place_at(node))


def _read_divisor(faults: Faults, node: Node, place: Place) -> str | None:
    if not isinstance(node, Scalar):
        faults.error(node, place, f"must be a quantity, got {describe(node)}")
        return None
    return node.text


def _read_env_name(faults: Faults, node: Node, place: Place) -> str | None:
    name = read_text(faults, node, place)
    if name is not None and not (name and set(name) <= _ENV_NAME and not name[0].isdigit()):
        faults.error(node, place, f"'{name}' is not the name of a variable", _ENV_NAME_HINT)
        return None
    return name


def _read_prefix(faults: Faults, node: Node, place: Place) -> str | None:
    """The start of a variable's name."""
    text = read_text(faults, node, place)
    return text if text == "" or text is None else _read_env_name(faults, node, place)


def _read_value_from(faults: Faults, node: Node, place: Place) -> EnvVar | None:
    values = read_mapping(faults, node, place, _VALUE_FROM)
    if isinstance(node, Mapping) and len(node.entries) != 1:
        faults.error(node, place, f"must have one of {', '.join(key for key in _VALUE_FROM if key != 'fileKeyRef')}")
    for key, value in values.items():
        if key == "fieldRef":
            return EnvVar("", field=value)
        if key == "resourceFieldRef":
            return EnvVar("", resource=value)
        return EnvVar("", key=value[0])
    return None


_RESOURCE: Table = {
    "containerName": read_text,
    "divisor": _read_divisor,
    "resource": read_choice(*RESOURCES, later=_RESOURCES_LATER),
}
_VALUE_FROM: Table = {
    "configMapKeyRef": reader_of_reference("ConfigMap", {"key": read_key}),
    "fieldRef": reader_of_field(FIELD_PATHS),
    "fileKeyRef": not_yet,
    "resourceFieldRef": read_resource,
    "secretKeyRef": reader_of_reference("Secret", {"key": read_key}),
}
_ENV: Table = {"name": _read_env_name, "value": read_text, "valueFrom": _read_value_from}
_ENV_FROM: Table = {
    "configMapRef": reader_of_reference("ConfigMap"),
    "prefix": _read_prefix,
    "secretRef": reader_of_reference("Secret"),
}

# SPDX-License-Identifier: Apache-2.0
"""securityContext.sysctls: those of Kubernetes' safe list, all of which belong to the pod's network or IPC name space."""

from rktd_units.fields import Faults, Place, Table, read_mapping, read_text, suggest
from rktd_units.strictyaml import Node

# k8s.io/kubernetes pkg/kubelet/sysctl/safe_sysctls.go
OF_IPC = frozenset({"kernel.shm_rmid_forced"})
SAFE = (
    *OF_IPC,
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
)
_VALUE = frozenset("0123456789 \t,-")  # numbers, and lists and ranges of them


def read_sysctl(faults: Faults, node: Node, place: Place) -> tuple[str, str] | None:
    """Name, with dots, and value."""
    values = read_mapping(faults, node, place, _SYSCTL, required=("name", "value"))
    return (values["name"], values["value"]) if "name" in values and "value" in values else None


def _read_name(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    name = None if text is None else text.replace("/", ".")
    if name is None or name in SAFE:
        return name
    faults.error(node, place, f"'{name}' is not a sysctl that a pod may set", suggest(name, SAFE) or f"one of {', '.join(SAFE)}")
    return None


def _read_value(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is not None and not (text and set(text) <= _VALUE):
        faults.error(node, place, f"must be numbers, got '{text}'")
        return None
    return text


_SYSCTL: Table = {"name": _read_name, "value": _read_value}

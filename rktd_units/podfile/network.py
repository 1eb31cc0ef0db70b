# SPDX-License-Identifier: Apache-2.0
"""What a pod file says of its network: host ports, DNS, aliases, and the annotations `network` and `address`."""

from collections.abc import Iterable
from typing import NamedTuple

from rktd_units.fields import (
    Faults,
    Place,
    Table,
    describe,
    items_of,
    place_of,
    read_integer,
    read_list,
    read_mapping,
    read_text,
    shorten,
    text_of,
)
from rktd_units.names import is_label
from rktd_units.podfile.model import Dns, Port
from rktd_units.podfile.ports import overlap, parse_port, port_names
from rktd_units.strictyaml import Mapping, Node, Scalar

FIRST_FREE_PORT = 1024  # net.ipv4.ip_unprivileged_port_start of the host
NETWORK_NAME_MAX = 10  # its bridge is pods-NAME, and the name of an interface has 15 bytes
_PORTS_PER_POD = 256  # the sockets of a pod's host ports are started one by one
_SEARCHES_MAX, _NAMESERVERS_MAX = 32, 3  # of Kubernetes; the C library looks at three servers


def read_address(faults: Faults, node: Node, place: Place) -> str | None:
    """An IPv4 or IPv6 address, in its usual form."""
    text = read_text(faults, node, place)
    if text is None:
        return None
    address = normal_address(text)
    if not address:
        faults.error(node, place, f"must be an IP address, got {describe(node)}")
        return None
    return address


def read_host_ip(faults: Faults, node: Node, place: Place) -> str | None:
    """As `read_address`; "" for `::`."""
    address = read_address(faults, node, place)
    return "" if address == "::" else address


def normal_address(text: str) -> str:
    """An address as it is usually written, "" when it is none."""
    from ipaddress import ip_address  # only for pods that use it: the generator starts without it

    try:
        return "" if "%" in text else str(ip_address(text))
    except ValueError:
        return ""


def read_domain(faults: Faults, node: Node, place: Place) -> str | None:
    """A DNS name (RFC 1123), without a dot at its end."""
    text = read_text(faults, node, place)
    if text is not None and not is_domain(text):
        faults.error(node, place, f"must be a DNS name, got {describe(node)}")
        return None
    return text


def is_domain(text: str) -> bool:
    """Lower-case labels with dots between, 253 characters at most."""
    return len(text) <= 253 and all(is_label(part) for part in text.split("."))


def _read_search(faults: Faults, node: Node, place: Place) -> str | None:
    """A domain, perhaps with a dot at its end or an underscore in a label; `.` alone is the root."""
    text = read_text(faults, node, place)
    if text is None or text == ".":
        return text
    if not is_domain(text.removesuffix(".").replace("_", "a")):
        faults.error(node, place, f"must be a DNS name, got {describe(node)}")
        return None
    return text


def _read_option(faults: Faults, node: Node, place: Place) -> str | None:
    """An option of resolv.conf(5), as it stands there."""
    values = read_mapping(faults, node, place, _OPTION, required=("name",))
    option = ":".join(values[key] for key in ("name", "value") if values.get(key))
    if not option.isprintable() or " " in option:
        faults.error(node, place, "must be without space", "one option an item")
        return None
    return option or None


def read_dns_config(faults: Faults, node: Node, place: Place) -> Dns:
    """dnsConfig, within the limits of Kubernetes."""
    values = read_mapping(faults, node, place, _DNS)
    for key, most in (("nameservers", _NAMESERVERS_MAX), ("searches", _SEARCHES_MAX)):
        if len(values.get(key, ())) > most:
            faults.error(node, (place, key), f"must have {most} at most, got {len(values[key])}")
    return Dns(tuple(values.get("nameservers", ())), tuple(values.get("searches", ())), tuple(values.get("options", ())))


def _read_alias(faults: Faults, node: Node, place: Place) -> tuple[str, tuple[str, ...]] | None:
    values = read_mapping(faults, node, place, _ALIAS, required=("ip", "hostnames"))
    return (values["ip"], tuple(values["hostnames"])) if values.get("ip") and values.get("hostnames") else None


def check_dns(faults: Faults, spec: Mapping, policy: str, dns: Dns, *, host_network: bool) -> None:
    """dnsPolicy None says that all is in dnsConfig."""
    at = spec.get("dnsPolicy")
    if policy == "None" and not dns.nameservers and at:
        faults.error(at, ((None, "spec"), "dnsPolicy"), "with None, dnsConfig must have nameservers")
    if policy == "ClusterFirstWithHostNet" and host_network and at:
        message = (
            "a pod with hostNetwork does not know the names of pods: the name server of their network is there only as long as they are"
        )
        faults.error(at, ((None, "spec"), "dnsPolicy"), message, "Default: the host's name servers")


class PortRules(NamedTuple):
    """What the pod has in common with its host. `isolated`: it has no network at all. `activated`: ports on which the host listens."""

    host_network: bool
    host_users: bool
    isolated: bool
    activated: frozenset[str] = frozenset()


def check_ports(faults: Faults, containers: Iterable[tuple[Node, Place]], rules: PortRules) -> None:
    """The `ports` of all containers; on nodes, so that one fault does not make others."""
    seen: list[tuple[Port, Node]] = []
    for container, here in containers:
        for position, node in enumerate(items_of(container, "ports")):
            if not isinstance(node, Mapping):
                continue
            place: Place = ((here, "ports"), position)
            is_own = rules.activated.isdisjoint(port_names(*(text_of(node, key) for key in ("name", "containerPort", "protocol"))))
            if rules.host_network:
                _check_own_port(faults, node, place, may_be_low=rules.host_users or not is_own)
            else:
                _check_host_port(faults, node, place, isolated=rules.isolated and is_own)
            number = parse_port(text_of(node, "hostPort"))
            if number and (host := node.get("hostPort")):
                protocol = text_of(node, "protocol") or "TCP"
                address = normal_address(text_of(node, "hostIP"))
                port = Port(0, protocol, "", number, "" if address == "::" else address)
                first = next((at for other, at in seen if overlap(port, other)), None)
                if first:
                    message = f"{protocol} port {number} of the host is wanted twice, first in {place_of(first, node)}"
                    faults.error(host, (place, "hostPort"), message)
                seen.append((port, node))
    if len(seen) > _PORTS_PER_POD:
        faults.error(seen[_PORTS_PER_POD][1], (None, "spec"), f"a pod has {_PORTS_PER_POD} host ports at most, got {len(seen)}")


def _check_own_port(faults: Faults, port: Mapping, place: Place, *, may_be_low: bool) -> None:
    """With hostNetwork a containerPort is the host's, and a hostPort only says so again."""
    number, host_port = text_of(port, "containerPort"), port.get("hostPort")
    if isinstance(host_port, Scalar) and host_port.text != number:
        faults.error(
            host_port,
            (place, "hostPort"),
            f"must be the containerPort {shorten(number)} when hostNetwork is true, got {shorten(host_port.text)}",
        )
    if not may_be_low and 0 < parse_port(number) < FIRST_FREE_PORT:
        message = (
            f"port {number} of the host is out of reach: below {FIRST_FREE_PORT} it takes a capability that the pod's user namespace lacks"
        )
        hint = f"hostUsers: true, or a port from {FIRST_FREE_PORT} up"
        faults.error(port.get("containerPort") or port, (place, "containerPort"), message, hint)


def _check_host_port(faults: Faults, port: Mapping, place: Place, *, isolated: bool) -> None:
    host_port, host_ip = port.get("hostPort"), port.get("hostIP")
    if host_ip and not host_port:
        faults.error(host_ip, (place, "hostIP"), "says nothing without a hostPort")
    if host_port and text_of(port, "protocol") == "SCTP":
        faults.error(host_port, (place, "hostPort"), "SCTP ports of the host are not supported", "TCP or UDP, or hostNetwork: true")
    if host_port and isolated:
        faults.error(host_port, (place, "hostPort"), "the pod has no network: systemd.io/network is none")


def check_network_name(word: str) -> str:
    """What is wrong with the annotation `network`, or "". `none` is only lo."""
    if is_label(word) and len(word) <= NETWORK_NAME_MAX:
        return ""
    return f"'{word}' is not the name of a network: {NETWORK_NAME_MAX} lower-case letters, digits and inner dashes at most"


def check_pod_address(word: str) -> str:
    """What is wrong with the annotation `address`, or ""."""
    address = normal_address(word)
    return "" if address and "." in address and ":" not in address else f"must be an IPv4 address, got '{word}'"


_OPTION: Table = {"name": read_text, "value": read_text}
_DNS: Table = {"nameservers": read_list(read_address), "options": read_list(_read_option), "searches": read_list(_read_search)}
_ALIAS: Table = {"hostnames": read_list(read_domain), "ip": read_address}
read_host_aliases = read_list(_read_alias)
read_host_port = read_integer(1, 65535)

# SPDX-License-Identifier: Apache-2.0
"""The ports of the host that pods ask for: which exclude each other. In every start: knows no YAML."""

from typing import NamedTuple

from rktd_units.errors import Diagnostic
from rktd_units.podfile.model import Pod, Port

WILDCARD4 = "0.0.0.0"  # every IPv4 address; `::` is read as every address, since such a socket takes both families


class _Held(NamedTuple):
    """A port of the host and where a file asks for it."""

    port: Port
    pod: str
    source: str


def parse_port(text: str) -> int:
    """The number of a port, 0 when the text is none; of raw text, which may be anything (int() refuses more than 4300 digits)."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else 0
    return number if number <= 65535 else 0


def overlap(one: Port, other: Port) -> bool:
    """True when both cannot have their port of the host."""
    if (one.host_port, one.protocol) != (other.host_port, other.protocol):
        return False
    first, second = one.host_ip, other.host_ip
    if not first or not second or first == second:
        return True
    return WILDCARD4 in (first, second) and ":" not in first + second


def host_ports(pod: Pod) -> tuple[Port, ...]:
    """All ports of the host that the pod asks for."""
    return tuple(port for container in pod.containers for port in container.ports if port.host_port)


def activated_ports(pod: Pod) -> tuple[Port, ...]:
    """Those of them on which pod@NAME.socket listens, in the file's order."""
    return tuple(port for port in host_ports(pod) if port.activation)


def forwarded_ports(pod: Pod) -> tuple[Port, ...]:
    """All others."""
    return tuple(port for port in host_ports(pod) if not port.activation)


def port_names(name: str, number: str, protocol: str = "TCP") -> frozenset[str]:
    """How the annotation `socket-activation` may call a port: NAME, NUMBER/PROTOCOL, for TCP also NUMBER."""
    protocol = protocol.lower() or "tcp"
    return frozenset({f"{number}/{protocol}", *([number] if protocol == "tcp" else []), *([name] if name else [])})


class PortBook:
    """Who wants which port of the host; the first one to say so has it."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], list[_Held]] = {}

    def enter(self, pod: Pod) -> tuple[Diagnostic, ...]:
        """Notes the pod's ports, or gives what another pod has of them; then none of them is noted."""
        faults = []
        for port in host_ports(pod):
            for held in self._held.get((port.host_port, port.protocol), ()):
                if overlap(port, held.port):
                    message = f"{port.protocol} port {port.host_port} of the host is wanted by pods {held.pod} and {pod.name}"
                    faults.append(Diagnostic(pod.source, *port.mark, "hostPort", message, f"the first of them has it: {held.source}"))
                    break
        if not faults:
            for port in host_ports(pod):
                self._held.setdefault((port.host_port, port.protocol), []).append(_Held(port, pod.name, pod.source))
        return tuple(faults)

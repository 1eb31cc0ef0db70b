# SPDX-License-Identifier: Apache-2.0
"""Which ports of a pod are the host's to listen on: what the annotations `socket-activation` and `idle-stop` say, and may not say."""

from rktd_units.fields import Faults, Place, suggest
from rktd_units.podfile.annotations import PREFIX
from rktd_units.podfile.model import Container, Port, Systemd
from rktd_units.podfile.ports import port_names
from rktd_units.strictyaml import Mapping, Node


def activate_ports(
    faults: Faults, annotations: Node | None, place: Place, systemd: Systemd, containers: tuple[Container, ...], *, host_network: bool
) -> tuple[Container, ...]:
    """The containers with `activation` in those of their ports that the annotations, a map at `place`, name."""
    if not isinstance(annotations, Mapping):
        return containers
    at, here = annotations.get(PREFIX + "socket-activation"), (place, PREFIX + "socket-activation")
    idle = annotations.get(PREFIX + "idle-stop")
    if systemd.idle_stop and idle and (not systemd.activation or any(mode != "proxy" for _, mode in systemd.activation)):
        message = "needs systemd.io/socket-activation with PORT=proxy, and no other port in it"
        faults.error(idle, (place, PREFIX + "idle-stop"), message, "an app that gets the socket itself ends itself when nobody comes")
    modes: dict[tuple[int, int], str] = {}
    known = sorted({name for container in containers for port in container.ports for name in _names(port)})
    for word, mode in systemd.activation if at else ():
        found = [
            (index, position)
            for index, container in enumerate(containers)
            for position, port in enumerate(container.ports)
            if word in _names(port)
        ]
        assert at is not None
        if len(found) != 1:
            message = f"the pod has no port '{word}'" if not found else f"'{word}' is more than one port of the pod"
            faults.error(at, here, message, suggest(word, known) if not found else "give them names, and use those")
        elif found[0] in modes:
            faults.error(at, here, f"port '{word}' is named twice")
        else:
            index, position = found[0]
            modes[found[0]] = mode
            if problem := _find_problem(containers[index], containers[index].ports[position], mode, host_network=host_network):
                faults.error(at, here, f"port '{word}' of container {containers[index].name}: {problem}")
    return tuple(
        container._replace(ports=tuple(_activate(port, modes.get((index, position), "")) for position, port in enumerate(container.ports)))
        for index, container in enumerate(containers)
    )


def _activate(port: Port, mode: str) -> Port:
    return port._replace(activation=mode, host_port=port.host_port or port.container_port) if mode else port


def _names(port: Port) -> frozenset[str]:
    return port_names(port.name, str(port.container_port), port.protocol)


def _find_problem(container: Container, port: Port, mode: str, *, host_network: bool) -> str:
    if container.role == "init":
        return "an init container is through when somebody connects"
    if port.protocol == "SCTP":
        return "SCTP is not supported"
    if mode == "proxy" and port.protocol != "TCP":
        return "the proxy is for TCP only: without =proxy the app gets it"
    if mode == "proxy" and host_network:
        return "hostNetwork is true: app and proxy would want the same port of the host"
    return "" if port.host_port or host_network else "needs a hostPort: there the socket listens"

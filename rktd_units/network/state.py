# SPDX-License-Identifier: Apache-2.0
"""Which networks there are and which pod has which address, names and ports of the host. Pure: text <-> records.

One small file, rewritten whole under the lock `network`, is all that the kernel's side is made from: an entry is written before what it
stands for is made, and goes after that is gone. In every start: imports next to nothing.
"""

import _socket  # `socket` costs 8 ms more
from typing import NamedTuple

VERSION = "1"
DOMAIN = "pods.internal"
COMMON_BRIDGE = "pods0"
GATEWAY = 1  # the number of the bridge's own addresses in its networks


class Network(NamedTuple):
    """One bridge. `ipv4` and `ipv6` are the networks' base addresses as numbers, `prefix` the length of the IPv4 one; IPv6 has 64.

    `ipv6` is 0 on a host whose kernel has none.
    """

    bridge: str
    ipv4: int
    prefix: int
    ipv6: int
    mtu: int

    @property
    def gateway4(self) -> str:
        return ipv4_text(self.ipv4 + GATEWAY)

    @property
    def gateways(self) -> tuple[str, ...]:
        """The bridge's own addresses: IPv4 and, where there is any, IPv6."""
        return (self.gateway4, ipv6_text(self.ipv6 + GATEWAY)) if self.ipv6 else (self.gateway4,)

    @property
    def last(self) -> int:
        """The highest number that a pod can have: the one above is the broadcast address."""
        return (1 << (32 - self.prefix)) - 2


class HostPort(NamedTuple):
    """A port of the host that leads to `port` of a pod. `protocol`: tcp or udp; `address` "" is every one of the host."""

    protocol: str
    address: str
    host_port: int
    port: int


class Member(NamedTuple):
    """A pod on a bridge; `number` makes its addresses, its MAC and the names of its interfaces. `names` are DNS names of its own."""

    pod: str
    bridge: str
    number: int
    names: tuple[str, ...] = ()
    ports: tuple[HostPort, ...] = ()


class Attachment(NamedTuple):
    """A member with its network: what stage1 and the pod need to know."""

    network: Network
    member: Member

    @property
    def address4(self) -> str:
        return ipv4_text(self.network.ipv4 + self.member.number)

    @property
    def addresses(self) -> tuple[str, ...]:
        """IPv4 and, where there is any, IPv6."""
        ipv6 = self.network.ipv6
        return (self.address4, ipv6_text(ipv6 + self.member.number)) if ipv6 else (self.address4,)

    @property
    def mac(self) -> bytes:
        """Locally administered, and as unique on this host as the address."""
        return b"\x02\x70" + (self.network.ipv4 + self.member.number).to_bytes(4, "big")

    @property
    def port(self) -> str:
        """The interface on the bridge, on the host's side."""
        return f"vpod{self.network.ipv4 + self.member.number:08x}"

    @property
    def peer(self) -> str:
        """The other end, until it is in the pod."""
        return "c" + self.port[1:]


class State(NamedTuple):
    """All networks and members, in the order in which they came."""

    networks: tuple[Network, ...] = ()
    members: tuple[Member, ...] = ()

    def network(self, bridge: str) -> Network | None:
        return next((n for n in self.networks if n.bridge == bridge), None)

    def members_of(self, bridge: str) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.bridge == bridge)

    def attachments(self) -> tuple[Attachment, ...]:
        known = {n.bridge: n for n in self.networks}
        return tuple(Attachment(known[m.bridge], m) for m in self.members)

    def find(self, pod: str) -> Attachment | None:
        return next((a for a in self.attachments() if a.member.pod == pod), None)

    def without(self, pod: str) -> "State":
        """Without the pod, and without a network that then has none."""
        members = tuple(m for m in self.members if m.pod != pod)
        used = {m.bridge for m in members}
        return State(tuple(n for n in self.networks if n.bridge in used), members)


def bridge_name(network: str) -> str:
    """The bridge of a network, by the annotation `network`."""
    return f"pods-{network}" if network else COMMON_BRIDGE


def ipv4_text(number: int) -> str:
    return _socket.inet_ntop(_socket.AF_INET, number.to_bytes(4, "big"))


def ipv6_text(number: int) -> str:
    return _socket.inet_ntop(_socket.AF_INET6, number.to_bytes(16, "big"))


def ipv4_number(text: str) -> int:
    return int.from_bytes(_socket.inet_pton(_socket.AF_INET, text), "big")


def render_state(state: State) -> str:
    """A line for each network and member, tab-separated; nothing in them has a tab or a comma."""
    lines = [f"version\t{VERSION}"]
    lines += [f"network\t{n.bridge}\t{ipv4_text(n.ipv4)}\t{n.prefix}\t{ipv6_text(n.ipv6)}\t{n.mtu}" for n in state.networks]
    for m in state.members:
        ports = ",".join(f"{p.protocol} {p.host_port} {p.port} {p.address}" for p in m.ports)
        lines.append(f"pod\t{m.pod}\t{m.bridge}\t{m.number}\t{','.join(m.names)}\t{ports}")
    return "".join(f"{line}\n" for line in lines)


def parse_state(text: str) -> State:
    """The opposite of `render_state`; "" is an empty state. Raises ValueError for anything else."""
    networks, members = [], []
    lines = [line.split("\t") for line in text.split("\n")[:-1]]
    if lines and lines[0] != ["version", VERSION]:
        raise ValueError(f"not of version {VERSION}")
    for kind, name, *rest in lines[1:]:
        if kind == "network":
            base, prefix, base6, mtu = rest
            number6 = int.from_bytes(_socket.inet_pton(_socket.AF_INET6, base6), "big")
            networks.append(Network(name, ipv4_number(base), int(prefix), number6, int(mtu)))
        else:
            bridge, number, names, ports = rest
            members.append(Member(name, bridge, int(number), tuple(names.split(",")) if names else (), _parse_ports(ports)))
    return State(tuple(networks), tuple(members))


def _parse_ports(text: str) -> tuple[HostPort, ...]:
    ports = []
    for item in text.split(",") if text else ():
        protocol, host_port, port, address = item.split(" ")
        ports.append(HostPort(protocol, address, int(host_port), int(port)))
    return tuple(ports)

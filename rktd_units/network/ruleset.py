# SPDX-License-Identifier: Apache-2.0
"""Our two nftables tables as one script, and their elements for one pod as the kernel takes them. Pure.

`inet rktd`: ports of the host (dnat), what may be forwarded, masquerading. `bridge rktd`: a pod speaks with its own addresses only.
"""

import _socket

from rktd_units.network.state import Attachment, HostPort, State, ipv4_text, ipv6_text

TABLES = ("inet rktd", "bridge rktd")
Element = tuple[str, bytes, bytes]  # set, key, data ("" in a set that is no map)
_PROTOCOLS = {"tcp": 6, "udp": 17}

# A pod that asks for its own port, or that of a pod beside it, comes back to the bridge: then the answers must pass here too, hence
# masquerade, by address (`spans`): bridged frames, which pass here too where bridge-nf-call-iptables is set, have no iifname at the end.
# `loops` is what never leaves its bridge.
_INET = """
table inet rktd {
  set bridges { type ifname; ELEMENTS bridges }
  set loops { type ifname . ifname; ELEMENTS loops }
  set spans4 { type ifname . ipv4_addr; flags interval; ELEMENTS spans4 }
  set spans6 { type ifname . ipv6_addr; flags interval; ELEMENTS spans6 }
  set gateways4 { type ipv4_addr; ELEMENTS gateways4 }
  set gateways6 { type ipv6_addr; ELEMENTS gateways6 }
  map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; ELEMENTS ports4 }
  map ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; ELEMENTS ports6 }
  map hosts4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; ELEMENTS hosts4 }
  map hosts6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; ELEMENTS hosts6 }
  chain guard {
    type filter hook prerouting priority raw; policy accept;
    iifname @bridges ip daddr 127.0.0.0/8 drop
    iifname "lo" accept
    ip daddr @gateways4 fib daddr . iif type != local drop
    ip6 daddr @gateways6 fib daddr . iif type != local drop
  }
  chain incoming {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump ports
  }
  chain own {
    type nat hook output priority dstnat; policy accept;
    fib daddr type local jump ports
  }
  chain ports {
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    meta l4proto != { tcp, udp } return
    dnat ip to ip daddr . meta l4proto . th dport map @hosts4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @hosts6
    dnat ip to meta l4proto . th dport map @ports4
    dnat ip6 to meta l4proto . th dport map @ports6
  }
  chain passing {
    type filter hook forward priority filter; policy accept;
    oifname != @bridges accept
    ct state established,related accept
    ct status dnat accept
    iifname . oifname @loops accept
    drop
  }
  chain leaving {
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat oifname . ip saddr @spans4 masquerade
    ct status dnat oifname . ip6 saddr @spans6 masquerade
    iifname @bridges oifname != @bridges ip daddr != 224.0.0.0/4 masquerade
    iifname @bridges oifname != @bridges ip6 daddr != ff00::/8 masquerade
  }
}
"""
_BRIDGE = """
table bridge rktd {
  set sources4 { type ifname . ether_addr . ipv4_addr; ELEMENTS sources4 }
  set sources6 { type ifname . ether_addr . ipv6_addr; ELEMENTS sources6 }
  chain incoming {
    type filter hook prerouting priority -300; policy accept;
    iifname "vpod*" jump from_pod
  }
  chain from_pod {
    ether type arp iifname . ether saddr . arp saddr ip @sources4 iifname . arp saddr ether . arp saddr ip @sources4 accept
    ether type ip iifname . ether saddr . ip saddr @sources4 accept
    ether type ip6 iifname . ether saddr . ip6 saddr @sources6 jump from_pod6
    drop
  }
  chain from_pod6 {
    icmpv6 type { nd-router-advert, nd-redirect } drop
    icmpv6 type nd-neighbor-advert iifname . ether saddr . icmpv6 taddr != @sources6 drop
    accept
  }
}
"""


def render_tables(state: State) -> str:
    """A script for `nft -f` that replaces both tables, whole or not at all."""
    elements: dict[str, list[str]] = {}
    for network in state.networks:
        for name, text in (
            ("bridges", f'"{network.bridge}"'),
            ("loops", f'"{network.bridge}" . "{network.bridge}"'),
            ("spans4", f'"{network.bridge}" . {ipv4_text(network.ipv4)}/{network.prefix}'),
            *((("spans6", f'"{network.bridge}" . {ipv6_text(network.ipv6)}/64'),) if network.ipv6 else ()),
            *((f"gateways{_version(gateway)}", gateway) for gateway in network.gateways),
        ):
            elements.setdefault(name, []).append(text)
    for attachment in state.attachments():
        mac = ":".join(f"{byte:02x}" for byte in attachment.mac)
        for address in attachment.addresses:
            elements.setdefault(f"sources{_version(address)}", []).append(f'"{attachment.port}" . {mac} . {address}')
        for name, where, port, target in _forwarded(attachment):
            key = f"{where} . " if where else ""
            elements.setdefault(name, []).append(f"{key}{port.protocol} . {port.host_port} : {target} . {port.port}")
    lines = []
    for line in (_INET + _BRIDGE).split("\n"):
        head, mark, rest = line.partition(" ELEMENTS ")
        found = elements.get(rest.removesuffix(" }"), []) if mark else []
        lines.append(f"{head}{' elements = { ' + ', '.join(found) + ' }' if found else ''} }}" if mark else line)
    clear = "".join(f"table {table} {{ }}\ndelete table {table}\n" for table in TABLES)
    return clear + "\n".join(lines)


def bridge_elements(attachment: Attachment) -> tuple[Element, ...]:
    """What lets a pod speak, for table `bridge rktd`."""
    start = attachment.port.encode().ljust(16, b"\0") + attachment.mac.ljust(8, b"\0")
    return tuple((f"sources{_version(address)}", start + _packed(address), b"") for address in attachment.addresses)


def port_elements(attachment: Attachment) -> tuple[Element, ...]:
    """The pod's ports of the host, for table `inet rktd`."""
    found = []
    for name, where, port, target in _forwarded(attachment):
        key = (_packed(where) if where else b"") + bytes((_PROTOCOLS[port.protocol], 0, 0, 0)) + _service(port.host_port)
        found.append((name, key, _packed(target) + _service(port.port)))
    return tuple(found)


def _forwarded(attachment: Attachment) -> list[tuple[str, str, HostPort, str]]:
    """(map, address of the host or "", port, the pod's address); those on a loopback address are the sockets' alone."""
    found = []
    for port in attachment.member.ports:
        for target in attachment.addresses:
            version = _version(target)
            if port.address in ("", "0.0.0.0" if version == "4" else ""):
                found.append((f"ports{version}", "", port, target))
            elif _version(port.address) == version and not is_loopback(port.address):
                found.append((f"hosts{version}", port.address, port, target))
    return found


def is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")


def _version(address: str) -> str:
    return "6" if ":" in address else "4"


def _packed(address: str) -> bytes:
    return _socket.inet_pton(_socket.AF_INET6 if ":" in address else _socket.AF_INET, address)


def _service(port: int) -> bytes:
    return port.to_bytes(2, "big") + b"\0\0"

# SPDX-License-Identifier: Apache-2.0
"""What the kernel of this host is told, and asked, for a network: bridges, cables, forwarding, routes. Every call may be repeated."""

import _socket  # `socket` costs 8 ms more
import os
from contextlib import suppress

from rktd_units.network.netlink import Route
from rktd_units.network.state import Attachment, Network

_SYSCTL = "/proc/sys/net"
_MTU = 1500
_LINK_LOCAL = "fe80::1"


def make_bridge(network: Network) -> None:
    """The bridge with its two addresses, up; what is there already stays."""
    route = Route()
    try:
        if not has_interface(network.bridge):
            route.add_bridge(network.bridge, b"\x02\x70" + (network.ipv4 + 1).to_bytes(4, "big"), network.mtu)
        # A host may have switched IPv6 off for its interfaces by default: this one is the pods'.
        for key, value in (("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_dad", "0")):
            _write_sysctl(f"ipv6/conf/{network.bridge}/{key}", value)
        route.add_address(network.bridge, _socket.inet_pton(_socket.AF_INET, network.gateway4), network.prefix)
        for gateway in network.gateways[1:]:
            # Without a link-local address the kernel does not ask for the MAC of a pod on behalf of others (ndisc_send_ns).
            for address in (_LINK_LOCAL, gateway):
                route.add_address(network.bridge, _socket.inet_pton(_socket.AF_INET6, address), 64)
        route.set_up(network.bridge)
    finally:
        route.close()


def make_cable(attachment: Attachment) -> None:
    """The pair of interfaces of a pod, one end on its bridge; in the place of whatever an earlier run left."""
    route = Route()
    try:
        route.remove(attachment.port)
        route.add_pair(attachment.port, attachment.peer, attachment.mac, attachment.network.mtu)
        _write_sysctl(f"ipv6/conf/{attachment.port}/disable_ipv6", "1")
        route.enslave(attachment.port, attachment.network.bridge, attachment.mac)
    finally:
        route.close()


def rejoin_cable(attachment: Attachment) -> None:
    """Puts a running pod's interface back on its bridge."""
    route = Route()
    try:
        if has_interface(attachment.port):
            route.enslave(attachment.port, attachment.network.bridge, attachment.mac)
    finally:
        route.close()


def remove_interface(name: str) -> None:
    """Nothing where there is none; of a pair, the other end goes with it."""
    route = Route()
    try:
        route.remove(name)
    finally:
        route.close()


def has_interface(name: str) -> bool:
    try:
        _socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    return os.path.exists(f"{_SYSCTL}/ipv6")


def allow_forwarding() -> None:
    """Without it nothing goes out or comes in. A host that takes its IPv6 routes from advertisements goes on doing so (ip-sysctl.rst)."""
    if _read_sysctl("ipv4/ip_forward") != "1":
        _write_sysctl("ipv4/ip_forward", "1")
    if has_ipv6() and _read_sysctl("ipv6/conf/all/forwarding") != "1":
        for name in os.listdir(f"{_SYSCTL}/ipv6/conf"):
            if _read_sysctl(f"ipv6/conf/{name}/accept_ra") == "1":
                _write_sysctl(f"ipv6/conf/{name}/accept_ra", "2")
        _write_sysctl("ipv6/conf/all/forwarding", "1")


def own_networks() -> tuple[tuple[int, int], ...]:
    """(address, prefix length) of every IPv4 route of the host but the default one: proc_net_route, numbers in host byte order."""
    found = []
    for fields in _routes():
        mask = int.from_bytes(bytes.fromhex(fields[7])[::-1], "big")
        if mask:
            found.append((int.from_bytes(bytes.fromhex(fields[1])[::-1], "big"), mask.bit_count()))
    return tuple(found)


def uplink_mtu() -> int:
    """The MTU of the interface with the default route, so that what a pod sends fits; 1500 when there is none."""
    for fields in _routes():
        if fields[7] == "00000000":
            with suppress(OSError, ValueError), open(f"/sys/class/net/{fields[0]}/mtu", encoding="ascii") as file:
                return min(max(int(file.read()), 1280), 65535)
    return _MTU


def _routes() -> list[list[str]]:
    try:
        with open("/proc/net/route", encoding="ascii") as file:
            return [fields for fields in (line.split() for line in file.readlines()[1:]) if len(fields) > 7]
    except FileNotFoundError:
        return []


def default_ipv6_pool() -> int:
    """A /48 of this host's own (RFC 4193), from its machine id."""
    import hashlib

    try:
        with open("/etc/machine-id", "rb") as file:
            seed = file.read().strip()
    except FileNotFoundError:
        seed = os.uname().nodename.encode()
    return int.from_bytes(b"\xfd" + hashlib.sha256(b"rktd-units" + seed).digest()[:5] + bytes(10), "big")


def _read_sysctl(name: str) -> str:
    try:
        with open(f"{_SYSCTL}/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _write_sysctl(name: str, value: str) -> None:
    """A setting that this kernel does not have is none that it needs."""
    with suppress(FileNotFoundError), open(f"{_SYSCTL}/{name}", "w", encoding="ascii") as file:
        file.write(value)

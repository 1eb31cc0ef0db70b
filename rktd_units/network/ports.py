# SPDX-License-Identifier: Apache-2.0
"""The ports of the host that pods ask for, as systemd sockets: they hold the port, and serve those who come by loopback.

All others are forwarded by nftables (ruleset.py) before they get here. An instance of rktd-port-tcp@.socket or rktd-port-udp@.socket is
named after what it listens on; its service, a proxy, runs while somebody talks to it.
"""

import _socket  # `socket` costs 8 ms more
import os
import sys
import time
from contextlib import suppress

from rktd_units import systemd
from rktd_units.errors import StateError
from rktd_units.names import listen_address
from rktd_units.network.state import Attachment, HostPort
from rktd_units.paths import Layout
from rktd_units.podfile.ports import WILDCARD4
from rktd_units.runfiles import read_text, write_text

_PATIENCE = 10.0  # seconds
_TCP_LISTEN = "0A"  # include/net/tcp_states.h


def open_ports(layout: Layout, attachment: Attachment) -> None:
    """Raises StateError when something else of this host listens there."""
    with systemd.Manager() as manager:
        for port in attachment.member.ports:
            unit = socket_unit(port)
            target = f"{attachment.address4}:{port.port}"
            write_text(f"{layout.network_ports}/{_file(port)}", f"TARGET={target}\n")
            with suppress(StateError):  # where it is not loaded there is nothing to reset
                manager.reset_failed(unit)
            if port.protocol == "udp":
                _refuse_shared(manager, unit, port, attachment.member.pod)
            manager.start_unit(unit)
        for port in attachment.member.ports:
            await_socket(manager, socket_unit(port), attachment.member.pod, (port,))


def close_ports(layout: Layout, attachment: Attachment) -> None:
    with suppress(StateError), systemd.Manager() as manager:
        for port in attachment.member.ports:
            for unit in (socket_unit(port), socket_unit(port).removesuffix("socket") + "service"):
                with suppress(StateError):
                    manager.stop_unit(unit)
                    manager.reset_failed(unit)
    for port in attachment.member.ports:
        with suppress(FileNotFoundError):
            os.unlink(f"{layout.network_ports}/{_file(port)}")


def socket_unit(port: HostPort) -> str:
    """The instance is escaped as systemd.unit(5) has it."""
    return f"rktd-port-{port.protocol}@{_escape(_listen(port))}.socket"


def _listen(port: HostPort) -> str:
    return listen_address(port.address, port.host_port)


def _escape(text: str) -> str:
    return "".join(c if c.isalnum() or c in ":._" else f"\\x{ord(c):02x}" for c in text)


def _file(port: HostPort) -> str:
    """What EnvironmentFile=tcp-%i of the units finds: that is a pattern, in which a backslash stands for itself only when doubled."""
    return f"{port.protocol}-{_escape(_listen(port))}".replace("\\", "")


def await_socket(manager: systemd.Manager, unit: str, pod: str, ports: tuple[HostPort, ...]) -> None:
    """Until a socket unit listens. Raises StateError that says who has one of its ports, when it fails."""
    deadline = time.monotonic() + _PATIENCE
    while (state := manager.get_property(unit, "Unit", "ActiveState")) not in ("active", "failed"):
        if time.monotonic() > deadline:
            raise StateError(f"{unit} is still {state} after {_PATIENCE:g} s")
        time.sleep(0.002)
    if state == "failed":
        listeners = [(port, find_listener(port)) for port in ports]
        port, who = next((found for found in listeners if found[1]), listeners[0])
        raise _taken(unit, port, pod, who)


def _taken(unit: str, port: HostPort, pod: str, who: str) -> StateError:
    hint = f"stop it, or choose another hostPort; systemctl status '{unit}'" if who else f"systemctl status '{unit}'"
    message = f"pod {pod} cannot have {port.protocol.upper()} port {_listen(port)} of the host"
    return StateError(f"{message}: {who} listens there" if who else message, hint=hint, event="port-taken")


def _refuse_shared(manager: systemd.Manager, unit: str, port: HostPort, pod: str) -> None:
    """Two sockets with SO_REUSEADDR, which systemd's have, can be bound to one port of UDP (socket(7)): one of them gets nothing then."""
    deadline = time.monotonic() + _PATIENCE
    while manager.get_property(unit.removesuffix("socket") + "service", "Unit", "ActiveState") == "deactivating":  # our own relay's
        if time.monotonic() > deadline:
            break
        time.sleep(0.002)
    if manager.get_property(unit, "Unit", "ActiveState") != "active" and (who := find_listener(port)):
        raise _taken(unit, port, pod, who)


def _address(text: str) -> str:
    """Of proc_net_tcp: words of 32 bits, each in the host's byte order."""
    packed = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    return _socket.inet_ntop(_socket.AF_INET6 if len(packed) == 16 else _socket.AF_INET, packed)


def _excludes(wanted: str, found: str) -> bool:
    """Whether who listens on `found` has of the port what a pod wants; `::` takes both families, mostly."""
    if wanted in ("", found) or found == "::":
        return True
    return WILDCARD4 in (wanted, found) and ":" not in wanted + found


def find_listener(port: HostPort) -> str:
    """`NAME (pid N)` of a process of this host that has the port, or "" if none is found: proc_net_tcp, and the links in /proc/PID/fd."""
    inodes = set()
    for file in (port.protocol, f"{port.protocol}6"):
        for line in read_text(f"/proc/net/{file}").split("\n")[1:]:
            fields = line.split()
            if len(fields) <= 9:
                continue
            address, _, number = fields[1].partition(":")
            if int(number, 16) != port.host_port or not _excludes(port.address, _address(address)):
                continue
            if port.protocol == "udp" or fields[3] == _TCP_LISTEN:
                inodes.add(f"socket:[{fields[9]}]")
    for pid in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with suppress(FileNotFoundError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") in inodes:
                        name = read_text(f"/proc/{pid}/comm").strip()
                        return f"{''.join(c if c.isprintable() else '?' for c in name)} (pid {pid})"
    return ""

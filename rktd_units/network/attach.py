# SPDX-License-Identifier: Apache-2.0
"""Puts a pod on its network and takes it off again; stage0's door to this package.

The state file says what ought to be there; it is written first when something comes, and last when it goes. So whatever is killed half-way,
the next call for the pod, or `restore`, makes the kernel's side what the file says.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rktd_units.errors import ConfigError, Diagnostic, StateError
from rktd_units.network import addresses, host, names, ruleset
from rktd_units.network.netlink import remove_table, set_elements
from rktd_units.network.state import (
    Attachment,
    HostPort,
    Member,
    Network,
    State,
    bridge_name,
    parse_state,
    render_state,
)
from rktd_units.paths import Layout
from rktd_units.podfile.model import Pod
from rktd_units.podfile.ports import WILDCARD4, forwarded_ports, host_ports, overlap
from rktd_units.runfiles import lock, read_text, remove_tree, write_text
from rktd_units.settings import AddressPool

RESOLVED = "/usr/lib/systemd/systemd-resolved"
_DNS = 53
_HOST_VIEWS = ("host-etc", "host-resolve")  # rktd-names@.service has the host's directories there


def attach(layout: Layout, pool: AddressPool, pod: Pod) -> Attachment:
    """Address, cable, ports and names for a pod. Raises ConfigError when it asks for what another pod has.

    A Xen guest has no cable: its interface comes with the domain, and its stage1 puts it on the bridge.
    """
    with _changed(layout) as (found, save):
        state = _withdraw(layout, found, pod.name, save) if found.find(pod.name) else found
        _refuse_ports(state, pod)
        bridge = bridge_name(pod.systemd.network)
        network = state.network(bridge) or _new_network(state, pool, bridge)
        _refuse_name_server(network, pod)
        number = addresses.choose_number(state, network, pod.name, pod.systemd.address)
        ports = tuple(HostPort(p.protocol.lower(), p.host_ip, p.host_port, p.container_port) for p in forwarded_ports(pod))
        member = Member(pod.name, bridge, number, names.own_names(pod), ports)
        is_new = state.network(bridge) is None
        after = State((*state.networks, network) if is_new else state.networks, (*state.members, member))
        save(after)
        attachment = Attachment(network, member)
        is_missing = is_new or not host.has_interface(bridge)
        if is_missing:
            host.make_bridge(network)
        _write_names(layout, after, network, anew=is_new)  # the name server comes up while the rest is done
        if is_missing:
            host.allow_forwarding()
            _load_tables(after)
            for other in after.members_of(bridge)[:-1]:  # whose bridge somebody has removed
                host.rejoin_cable(Attachment(network, other))
        else:
            _admit(after, attachment)
        if pod.runtime_class == "nspawn":
            host.make_cable(attachment)
    if ports:
        from rktd_units.network.ports import open_ports

        open_ports(layout, attachment)
    return attachment


def detach(layout: Layout, name: str) -> None:
    """Takes away all that a pod has of a network; nothing where it has none."""
    if not os.path.exists(layout.network_state):
        return
    with _changed(layout) as (state, save):
        if state.find(name):
            _withdraw(layout, state, name, save)


def restore(layout: Layout) -> None:
    """Makes bridges, tables and names of all running pods anew, as after somebody's `nft flush ruleset`. Nothing without pods."""
    with _changed(layout) as (state, _):
        for network in state.networks:
            host.make_bridge(network)
        if not state.networks:
            return
        host.allow_forwarding()
        _load_tables(state)
        for attachment in state.attachments():
            host.rejoin_cable(attachment)
        for network in state.networks:
            _write_names(layout, state, network, anew=True)


def members(layout: Layout) -> tuple[str, ...]:
    """The pods that have something of a network."""
    return tuple(member.pod for member in _load(layout).members)


@contextmanager
def _changed(layout: Layout) -> Iterator[tuple[State, "_Save"]]:
    """The state, and how to write another one, with nobody else at it."""
    with lock(layout, "network"):
        yield _load(layout), _Save(layout)


class _Save:
    def __init__(self, layout: Layout) -> None:
        self._path = layout.network_state

    def __call__(self, state: State) -> None:
        if state.networks:
            write_text(self._path, render_state(state))
        else:
            with suppress(FileNotFoundError):
                os.unlink(self._path)


def _load(layout: Layout) -> State:
    try:
        return parse_state(read_text(layout.network_state))
    except ValueError as error:
        raise StateError(f"{layout.network_state}: {error}", hint="stop all pods and remove it") from error


def _new_network(state: State, pool: AddressPool, bridge: str) -> Network:
    ours = {(n.ipv4, n.prefix) for n in state.networks}
    taken = tuple(found for found in host.own_networks() if found not in ours)
    if host.has_interface(bridge):  # left by a run whose state is lost
        host.remove_interface(bridge)
        taken = tuple(found for found in host.own_networks() if found not in ours)
    ipv6 = (pool.ipv6 or host.default_ipv6_pool()) if host.has_ipv6() else 0
    return addresses.choose_network(state, pool, bridge, taken, ipv6, pool.mtu or host.uplink_mtu())


def _refuse_ports(state: State, pod: Pod) -> None:
    for wanted in host_ports(pod):
        for member in state.members:
            for held in member.ports:
                if overlap(wanted, wanted._replace(host_port=held.host_port, host_ip=held.address, protocol=held.protocol.upper())):
                    message = f"{wanted.protocol} port {wanted.host_port} of the host, which pod {pod.name} wants, has pod {member.pod}"
                    fault = Diagnostic(pod.source, *wanted.mark, "hostPort", message, f"stop pod@{member.pod}")
                    raise ConfigError(message, (fault,), event="port-taken")


def _refuse_name_server(network: Network, pod: Pod) -> None:
    """The network's own name server has port 53 of the gateways: every address of the host cannot be had there."""
    if not has_names():
        return
    for wanted in host_ports(pod):
        if wanted.host_port == _DNS and (not wanted.host_ip or wanted.host_ip in (WILDCARD4, *network.gateways)):
            message = f"{wanted.protocol} port {_DNS} of {network.gateway4} is that of the name server of {network.bridge}"
            hint = "hostIP: ADDRESS takes the port of one other address of the host"
            raise ConfigError(message, (Diagnostic(pod.source, *wanted.mark, "hostPort", message, hint),), event="port-taken")


def _admit(state: State, attachment: Attachment) -> None:
    """The elements of one pod; the tables as a whole where somebody has removed them, or where old elements are in the way."""
    try:
        set_elements(ruleset.TABLES[1], ruleset.bridge_elements(attachment))
        if attachment.member.ports:
            set_elements(ruleset.TABLES[0], ruleset.port_elements(attachment))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EEXIST, errno.EBUSY):
            raise
        _load_tables(state)


def _load_tables(state: State) -> None:
    from rktd_units import proc

    proc.run(["/usr/sbin/nft", "-f", "-"], input=ruleset.render_tables(state).encode())


def _withdraw(layout: Layout, state: State, name: str, save: _Save) -> State:
    """All of a pod, and of its network when that has no other pod. The state without them."""
    attachment = state.find(name)
    if attachment is None:
        return state
    if attachment.member.ports:
        from rktd_units.network.ports import close_ports

        close_ports(layout, attachment)
    host.remove_interface(attachment.port)
    left = state.without(name)
    network = attachment.network
    for table, elements in zip(ruleset.TABLES, (ruleset.port_elements(attachment), ruleset.bridge_elements(attachment)), strict=True):
        try:
            set_elements(table, elements, remove=True)
        except OSError:  # one of them, or the table, is not there: what counts is that all are gone
            for element in elements:
                with suppress(OSError):
                    set_elements(table, (element,), remove=True)
    if left.network(network.bridge):
        write_text(f"{layout.network(network.bridge)}/etc/hosts", names.render_names(left, network.bridge))
    else:
        _remove_network(layout, left, network)
    save(left)
    return left


def _remove_network(layout: Layout, left: State, network: Network) -> None:
    if os.path.exists(RESOLVED):
        from rktd_units import systemd

        with suppress(StateError), systemd.Manager() as manager:
            manager.stop_unit(names_unit(network.bridge))
    host.remove_interface(network.bridge)
    remove_tree(layout.network(network.bridge))
    if left.networks:
        _load_tables(left)
    else:
        for table in ruleset.TABLES:
            remove_table(table)


def names_unit(bridge: str) -> str:
    """The network's own systemd-resolved."""
    return f"rktd-names@{bridge}.service"


def _write_names(layout: Layout, state: State, network: Network, *, anew: bool) -> None:
    """The hosts file of the network's systemd-resolved, which looks at it within 2 s; and that itself, with `anew` or when it is not up.

    A soft reboot ends it, and keeps /run.
    """
    if not os.path.exists(RESOLVED):
        if anew:
            sys.stderr.write(
                f"<4>pods of {network.bridge} do not know each other by name: there is no {RESOLVED} (Debian: systemd-resolved)\n"
            )
        return
    place = layout.network(network.bridge)
    write_text(f"{place}/etc/hosts", names.render_names(state, network.bridge))
    if anew or not os.path.exists(layout.names_ready(network.bridge)):
        write_text(f"{place}/etc/systemd/resolved.conf", names.render_resolved(network))
        with suppress(FileNotFoundError):
            os.unlink(f"{place}/etc/resolv.conf")
        for directory in _HOST_VIEWS:
            os.makedirs(f"{place}/{directory}", exist_ok=True)
        os.symlink(f"{place}/{_upstream()}/resolv.conf", f"{place}/etc/resolv.conf")
        from rktd_units import systemd

        with systemd.Manager() as manager:
            manager.start_unit(names_unit(network.bridge))


def _upstream() -> str:
    """Where the network's systemd-resolved finds the host's name servers: the host's own one refuses another's questions (a loop)."""
    return _HOST_VIEWS[os.path.realpath("/etc/resolv.conf").startswith("/run/systemd/resolve/")]


def has_names() -> bool:
    """True where networks have a systemd-resolved of their own."""
    return os.path.exists(RESOLVED)

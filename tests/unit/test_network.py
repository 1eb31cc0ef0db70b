# SPDX-License-Identifier: Apache-2.0
"""Networks of pods without a kernel: addresses, the state file, rules, names, ports."""

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rktd_units import podtree
from rktd_units.errors import ConfigError, StateError
from rktd_units.network import addresses, names, ports, ruleset
from rktd_units.network.relay import Relay
from rktd_units.network.state import (
    Attachment,
    HostPort,
    Member,
    Network,
    State,
    bridge_name,
    ipv4_number,
    ipv4_text,
    parse_state,
    render_state,
)
from rktd_units.podfile.model import Dns, Pod, Port, Systemd
from rktd_units.podfile.ports import overlap
from rktd_units.settings import AddressPool

POOL = AddressPool()
ULA = int.from_bytes(socket.inet_pton(socket.AF_INET6, "fd00:1:2::"), "big")
COMMON = Network("pods0", ipv4_number("10.112.0.0"), 20, ULA, 1500)
SMALL = Network("pods-s", ipv4_number("192.168.7.0"), 29, ULA + (5 << 64), 1400)
WEB = Member("web", "pods0", 5, ("web.pods.internal", "web"), (HostPort("tcp", "", 8080, 80), HostPort("udp", "192.0.2.1", 53, 5353)))
POD = Pod("web", "/etc/pods/web.yaml", ("/etc/pods/web.yaml",), ())


@given(st.lists(st.tuples(st.sampled_from(["a", "b.c", "d-e"]), st.integers(2, 4000), st.booleans()), max_size=3, unique_by=lambda m: m[0]))
def test_state_survives(found: list[tuple[str, int, bool]]) -> None:
    members = tuple(Member(pod, "pods0", number, (pod,), WEB.ports if has_ports else ()) for pod, number, has_ports in found)
    state = State((COMMON, SMALL), members)
    assert parse_state(render_state(state)) == state


def test_state_of_nothing_and_of_another_version() -> None:
    assert parse_state("") == State()
    with pytest.raises(ValueError, match="not of version 1"):
        parse_state("version\t2\n")


def test_a_network_goes_with_its_last_pod() -> None:
    state = State((COMMON, SMALL), (WEB, Member("s", "pods-s", 2)))
    assert state.without("s") == State((COMMON,), (WEB,))
    assert state.without("s").without("web") == State()


def test_the_common_network_is_the_first_of_the_pool() -> None:
    network = addresses.choose_network(State(), POOL, "pods0", (), ULA, 1500)
    assert network == COMMON
    assert network.gateways == ("10.112.0.1", "fd00:1:2::1")


def test_the_common_network_does_not_move() -> None:
    taken = ((ipv4_number("10.0.0.0"), 8),)
    with pytest.raises(ConfigError, match=r"10\.112\.0\.0/20 of pods overlaps 10\.0\.0\.0/8, which this host has"):
        addresses.choose_network(State(), POOL, "pods0", taken, ULA, 1500)


def test_other_networks_avoid_each_other_and_the_host() -> None:
    pool = AddressPool(ipv4_number("10.112.0.0"), 22, 24)  # four of them
    state = State()
    for name in ("a", "b"):
        network = addresses.choose_network(state, pool, bridge_name(name), ((ipv4_number("10.112.2.0"), 24),), ULA, 1500)
        state = State((*state.networks, network))
    assert {ipv4_text(n.ipv4) for n in state.networks} == {"10.112.1.0", "10.112.3.0"}
    with pytest.raises(StateError, match=r"no network of the pool 10\.112\.0\.0/22 is free for pods-c"):
        addresses.choose_network(state, pool, "pods-c", ((ipv4_number("10.112.2.0"), 24),), ULA, 1500)


def test_an_address_is_stable_and_never_given_twice() -> None:
    state = State((SMALL,))
    for pod in ("a", "b", "c", "d", "e"):
        number = addresses.choose_number(state, SMALL, pod, "")
        assert number == addresses.choose_number(state, SMALL, pod, "")
        state = State((SMALL,), (*state.members, Member(pod, "pods-s", number)))
    assert {m.number for m in state.members} == {2, 3, 4, 5, 6}  # neither network, bridge nor broadcast
    with pytest.raises(StateError, match="all 5 addresses of pods-s are taken"):
        addresses.choose_number(state, SMALL, "f", "")
    assert addresses.choose_number(state.without("c"), SMALL, "c", "") == next(m.number for m in state.members if m.pod == "c")


def test_a_wanted_address() -> None:
    state = State((SMALL,), (Member("a", "pods-s", 3),))
    assert addresses.choose_number(state, SMALL, "b", "192.168.7.4") == 4
    with pytest.raises(ConfigError, match=r"pod b asks for the address 192\.168\.7\.3, which pod a has"):
        addresses.choose_number(state, SMALL, "b", "192.168.7.3")
    for wrong in ("192.168.7.1", "192.168.7.7", "10.0.0.1"):
        with pytest.raises(ConfigError, match=r"but pods-s has 192\.168\.7\.2 to 192\.168\.7\.6"):
            addresses.choose_number(state, SMALL, "b", wrong)


def test_interfaces_fit_and_differ() -> None:
    found = Attachment(COMMON, WEB)
    assert (found.port, found.peer, found.mac) == ("vpod0a700005", "cpod0a700005", bytes.fromhex("02700a700005"))
    assert found.addresses == ("10.112.0.5", "fd00:1:2::5")


def test_rules() -> None:
    text = ruleset.render_tables(State((COMMON, SMALL), (WEB, Member("s", "pods-s", 2))))
    for line in (
        'set bridges { type ifname; elements = { "pods0", "pods-s" } }',
        "map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; elements = { tcp . 8080 : 10.112.0.5 . 80 } }",
        "map ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; elements = { tcp . 8080 : fd00:1:2::5 . 80 } }",
        "elements = { 192.0.2.1 . udp . 53 : 10.112.0.5 . 5353 } }",
        "map hosts6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }",
        'elements = { "vpod0a700005" . 02:70:0a:70:00:05 . 10.112.0.5, "vpodc0a80702" . 02:70:c0:a8:07:02 . 192.168.7.2 } }',
    ):
        assert line in text
    assert text.startswith("table inet rktd { }\ndelete table inet rktd\n")
    assert "ELEMENTS" not in text


def test_a_host_without_ipv6() -> None:
    """Nothing of it anywhere: `ip -batch`, nft and systemd-resolved would fail."""
    network = addresses.choose_network(State(), POOL, "pods0", (), 0, 1500)
    assert parse_state(render_state(State((network,)))) == State((network,))
    found = Attachment(network, WEB)
    assert (network.gateways, found.addresses) == (("10.112.0.1",), ("10.112.0.5",))
    assert podtree._network_batch(found) == (
        "link set lo up\naddr add 10.112.0.5/20 dev eth0\nlink set eth0 up\nroute add default via 10.112.0.1\n"
    )
    state = State((network,), (WEB,))
    text = ruleset.render_tables(state)
    assert [line for line in text.split("\n") if "6 {" in line and "elements" in line] == []
    assert {name for name, *_ in (*ruleset.bridge_elements(found), *ruleset.port_elements(found))} == {"sources4", "ports4", "hosts4"}
    assert names.render_names(state, "pods0") == "10.112.0.5\tweb.pods.internal web\n"
    assert names.render_resolved(network).count("DNSStubListenerExtra=") == 1
    assert names.render_resolved(COMMON).endswith("DNSStubListenerExtra=10.112.0.1\nDNSStubListenerExtra=fd00:1:2::1\n")
    assert podtree._network_batch(Attachment(COMMON, WEB)).split("\n")[2:4] == [
        "link set eth0 addrgenmode none",
        "addr add fd00:1:2::5/64 dev eth0 nodad",
    ]


def test_elements_as_the_kernel_takes_them() -> None:
    found = {name: key for name, key, _ in ruleset.bridge_elements(Attachment(COMMON, WEB))}
    assert found["sources4"] == b"vpod0a700005\0\0\0\0" + bytes.fromhex("02700a700005 0000 0a700005")
    assert len(found["sources6"]) == 16 + 8 + 16
    ports4, ports6, hosts4 = ruleset.port_elements(Attachment(COMMON, WEB))
    assert ports4 == ("ports4", bytes.fromhex("06000000 1f900000"), bytes.fromhex("0a700005 00500000"))
    assert ports6[0] == "ports6"
    assert hosts4 == ("hosts4", bytes.fromhex("c0000201 11000000 00350000"), bytes.fromhex("0a700005 14e90000"))


@pytest.mark.parametrize(
    ("address", "maps"),
    [
        ("", ["ports4", "ports6"]),
        ("0.0.0.0", ["ports4"]),
        ("192.0.2.1", ["hosts4"]),
        ("2001:db8::1", ["hosts6"]),
        ("127.0.0.1", []),
        ("::1", []),
    ],
)
def test_what_is_forwarded(address: str, maps: list[str]) -> None:
    member = WEB._replace(ports=(HostPort("tcp", address, 80, 80),))
    assert [name for name, _, _ in ruleset.port_elements(Attachment(COMMON, member))] == maps


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("TCP", 80, ""), ("TCP", 80, "192.0.2.1"), True),
        (("TCP", 80, "0.0.0.0"), ("TCP", 80, "192.0.2.1"), True),
        (("TCP", 80, "0.0.0.0"), ("TCP", 80, "2001:db8::1"), False),
        (("TCP", 80, "192.0.2.2"), ("TCP", 80, "192.0.2.1"), False),
        (("TCP", 80, ""), ("UDP", 80, ""), False),
        (("TCP", 80, ""), ("TCP", 81, ""), False),
    ],
)
def test_overlapping_ports(one: tuple[str, int, str], other: tuple[str, int, str], expected: bool) -> None:
    first, second = (Port(1, protocol, "", number, address) for protocol, number, address in (one, other))
    assert overlap(first, second) == overlap(second, first) == expected


def test_hosts() -> None:
    pod = POD._replace(hostname="front", subdomain="site", host_aliases=(("192.0.2.9", ("db", "db.example.org")),))
    text = names.render_hosts(pod, "front", Attachment(COMMON, WEB), "")
    assert text.startswith("# Written by rktd-units when the pod started.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost")
    assert text.endswith(
        "10.112.0.5\tfront.site.pods.internal\tfront\nfd00:1:2::5\tfront.site.pods.internal\tfront\n"
        "\n# Entries added by HostAliases.\n192.0.2.9\tdb\tdb.example.org\n"
    )
    assert "127.0.0.1\tlocalhost web\n" in names.render_hosts(POD, "web", None, "")
    own = names.render_hosts(pod._replace(host_network=True), "front", None, "127.0.0.1 localhost\n192.0.2.7 printer")
    assert own == (
        "# Written by rktd-units when the pod started.\n127.0.0.1 localhost\n192.0.2.7 printer\n127.0.0.1\tfront\n"
        "\n# Entries added by HostAliases.\n192.0.2.9\tdb\tdb.example.org\n"
    )
    assert names.own_names(pod) == ("web.pods.internal", "web", "front.site.pods.internal")


HOST = "# a comment\nnameserver 127.0.0.1\nnameserver 192.0.2.53\nsearch example.org .\noptions edns0 # not for all\n"


@pytest.mark.parametrize(
    ("change", "attached", "has_names", "expected"),
    [
        ({}, True, True, "nameserver 10.112.0.1\nsearch pods.internal example.org\n"),
        ({}, True, False, "nameserver 192.0.2.53\nsearch pods.internal example.org\n"),
        ({"subdomain": "s"}, True, True, "nameserver 10.112.0.1\nsearch s.pods.internal pods.internal example.org\n"),
        ({"dns_policy": "Default"}, True, True, "nameserver 192.0.2.53\nsearch example.org\noptions edns0\n"),
        (
            {"dns": Dns(("192.0.2.1",), ("a.org",), ("ndots:5", "edns0"))},
            True,
            True,
            "nameserver 10.112.0.1\nnameserver 192.0.2.1\nsearch pods.internal example.org a.org\noptions ndots:5 edns0\n",
        ),
        ({"dns_policy": "None", "dns": Dns(("192.0.2.1",))}, True, True, "nameserver 192.0.2.1\n"),
        ({"host_network": True}, False, True, "nameserver 127.0.0.1\nnameserver 192.0.2.53\nsearch example.org\noptions edns0\n"),
        ({"systemd": Systemd(network="none")}, False, True, ""),
    ],
    ids=["cluster-first", "no-name-server", "subdomain", "default", "config", "none", "host", "isolated"],
)
def test_resolv_conf(change: dict[str, object], attached: bool, has_names: bool, expected: str) -> None:
    attachment = Attachment(COMMON, WEB) if attached else None
    pod = POD._replace(**change)  # type: ignore[arg-type]
    assert names.render_resolv_conf(pod, attachment, HOST, has_names=has_names) == expected


def test_names_are_of_one_network() -> None:
    state = State((COMMON, SMALL), (WEB, Member("s", "pods-s", 2, ("s.pods.internal", "s"))))
    assert names.render_names(state, "pods0") == "10.112.0.5\tweb.pods.internal web\nfd00:1:2::5\tweb.pods.internal web\n"


@pytest.mark.parametrize(
    ("port", "unit"),
    [
        (HostPort("tcp", "", 80, 1), "rktd-port-tcp@80.socket"),
        (HostPort("udp", "192.0.2.1", 53, 1), "rktd-port-udp@192.0.2.1:53.socket"),
        (HostPort("tcp", "2001:db8::1", 80, 1), "rktd-port-tcp@\\x5b2001:db8::1\\x5d:80.socket"),
    ],
)
def test_socket_units(port: HostPort, unit: str) -> None:
    assert ports.socket_unit(port) == unit


def test_a_listener_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for address in ("", "0.0.0.0", "127.0.0.1"):
            assert "(pid " in ports.find_listener(HostPort("tcp", address, port, 80)), address
        for protocol, address in (("udp", ""), ("tcp", "192.0.2.1"), ("tcp", "::1")):
            assert ports.find_listener(HostPort(protocol, address, port, 80)) == "", address
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        assert "(pid " in ports.find_listener(HostPort("tcp", "::1", port, 80))
        assert ports.find_listener(HostPort("tcp", "127.0.0.1", port, 80)) == ""


def test_relay_passes_datagrams_both_ways() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        for door in (listener, target):
            door.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=Relay(listener, target.getsockname()).run, args=(0.3,))
        thread.start()
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        for number, client in enumerate(clients):
            client.settimeout(5)
            client.sendto(b"%d" % number, listener.getsockname())
            data, back = target.recvfrom(100)
            target.sendto(data * 2, back)
            assert client.recv(100) == b"%d%d" % (number, number)
            client.close()
        thread.join(10)
        assert not thread.is_alive()  # it ends when nobody talks

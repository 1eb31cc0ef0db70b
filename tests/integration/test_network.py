# SPDX-License-Identifier: Apache-2.0
"""Networks of pods on a real kernel: addresses, ports of the host, names, isolation, and that nothing is left.

"Outside" is a second network name space, beyond a cable from the testbed: 192.0.2.2 and 2001:db8:1::2.
"""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.pods import Pods

HTTP = (
    "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo NAME $REMOTE_ADDR\\n' >/www/cgi-bin/who; chmod +x /www/cgi-bin/who; "
    "exec httpd -f -p 80 -h /www"
)
CABLE = """
ip netns add outside
ip link add up0 type veth peer name eth0 netns outside
ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8:1::1/64 dev up0 nodad; ip link set up0 up
ip -n outside addr add 192.0.2.2/24 dev eth0; ip -n outside addr add 2001:db8:1::2/64 dev eth0 nodad
ip -n outside link set lo up; ip -n outside link set eth0 up
"""
UDP = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
door = socket.socket(family, socket.SOCK_DGRAM); door.settimeout(4); door.connect((sys.argv[1], int(sys.argv[2])))
for _ in range(3):
    try:
        door.send(b"ask"); print(door.recv(100).decode()); break
    except OSError as error:
        print(error)
"""
ECHO = """
import select, socket
doors = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
doors[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
for door in doors:
    door.bind(("", 53))
while True:
    for door in select.select(doors, [], [])[0]:
        door.sendto(*door.recvfrom(512))
"""
FRAME = """
import socket, sys
door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); door.bind(("eth0", 0))
for last in range(16):
    door.send(bytes.fromhex(f"0180c20000{last:02x}" + sys.argv[1].replace(":", "") + "8809") + bytes(46))
"""
TAKER = """
import socket, time
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
door.bind(("127.0.0.1", 5353)); time.sleep(1000)
"""
# Writes down what comes to port 7070, by whatever address.
EAR = """
import socket
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); door.bind(("", 7070))
while True:
    with open("/run/heard", "ab") as file:
        file.write(door.recv(100) + b" ")
"""
# A datagram to each of these addresses, through the interface whose peer has that MAC: the pod's own routes do not matter.
MOUTH = """
import socket, struct, sys
mac, source, *targets = sys.argv[1:]
door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); door.bind(("eth0", 0x800))
for target in targets:
    text = target.encode()
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(text), 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target))
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    ethernet = bytes.fromhex(mac.replace(":", "")) + door.getsockname()[4] + b"\\x08\\0"
    door.send(ethernet + head + struct.pack("!HHHH", 7070, 7070, 8 + len(text), 0) + text)
"""
# One more name space, beyond `outside`, which becomes a router: 198.51.100.2 and 2001:db8:2::2, by a link of 1300 bytes.
FAR = """
ip netns add far
ip -n outside link add down0 mtu 1300 type veth peer name eth0 mtu 1300 netns far
ip -n outside addr add 198.51.100.1/24 dev down0; ip -n outside addr add 2001:db8:2::1/64 dev down0 nodad; ip -n outside link set down0 up
ip -n far addr add 198.51.100.2/24 dev eth0; ip -n far addr add 2001:db8:2::2/64 dev eth0 nodad; ip -n far link set eth0 up
ip -n far route add default via 198.51.100.1; ip -n far -6 route add default via 2001:db8:2::1
ip netns exec outside sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
ip route add 198.51.100.0/24 via 192.0.2.2; ip -6 route add 2001:db8:2::/64 via 2001:db8:1::2
"""
# Sends back all that it gets when it has got 3000000 bytes.
SWALLOW = """
import socket, threading
door = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
def talk(peer):
    data = b""
    while len(data) < 3000000 and (part := peer.recv(65536)):
        data += part
    peer.sendall(data); peer.close()
while True:
    threading.Thread(target=talk, args=(door.accept()[0],), daemon=True).start()
"""
DNS = """
import socket
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); door.bind(("192.0.2.2", 53))
while True:
    data, client = door.recvfrom(512)
    end = data.index(0, 12) + 5
    known = data[12:end].startswith(b"\\3www\\7example")
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4\\xcb\\0\\x71\\7" if known and data[end - 4 : end - 2] == b"\\0\\1" else b""
    head = data[:2] + (b"\\x81\\x80" if known else b"\\x81\\x83") + b"\\0\\1\\0" + (b"\\1" if answer else b"\\0") + b"\\0\\0\\0\\0"
    door.sendto(head + data[12:end] + answer, client)
"""


@pytest.fixture(scope="module")
def outside(pods_session: Pods) -> Iterator[None]:
    bed = pods_session.bed
    bed.sh(CABLE)
    bed.write("/opt/udp.py", UDP)
    bed.write("/opt/dns.py", DNS)
    bed.write("/opt/echo.py", ECHO)
    yield
    bed.sh("ip netns del outside; ip link del up0", check=False)


def app(pods: Pods, script: str = HTTP, name: str = "app", **fields: Any) -> dict[str, Any]:
    return pods.app(script, name, **fields)


def write_http(pods: Pods, name: str, annotations: dict[str, str] | None = None, ports: list[dict[str, Any]] | None = None) -> None:
    pods.write(name, {"containers": [app(pods, HTTP.replace("NAME", name), ports=ports or [])]}, annotations)


def network_of(pods: Pods, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pods.bed.read(f"/run/rktd/pods/{name}/pod.json"))["network"]
    return found


def address_of(pods: Pods, name: str, version: int = 4) -> str:
    address: str = network_of(pods, name)["addresses"][version == 6]
    return address.partition("/")[0]


def inside(pods: Pods, name: str, script: str) -> str:
    """What a script says on stdout, in an app's name spaces."""
    group = f"/sys/fs/cgroup/pods.slice/pod@{name}.service/payload/system.slice/app.service/cgroup.procs"
    pid = pods.bed.run("head", "-n1", group).stdout.strip()
    return pods.bed.run("nsenter", "-t", pid, "-a", "/bin/busybox", "sh", "-c", script, check=False, timeout=60).stdout.strip()


def ask(pods: Pods, url: str, *, prefix: str = "") -> str:
    """Who answers and whom it sees, or "" if nobody does."""
    return pods.bed.sh(f"{prefix} curl -s -m 4 '{url}/cgi-bin/who' || true").stdout.strip()


def refusal(pods: Pods, name: str) -> str:
    done = pods.start(name, check=False)
    assert done.returncode == 1
    return pods.bed.run("systemctl", "status", f"pod@{name}", "--no-pager", "--full", check=False).stdout


def leftovers(pods: Pods) -> str:
    """What networks may leave anywhere; waits for the release of the last pod."""
    script = (
        "for i in $(seq 100); do [ -e /run/rktd/network/state ] || break; sleep 0.1; done; sleep 0.5; ip -o link | grep -o 'pods[^:@]*\\|"
        "[vc]pod[0-9a-f]*'; nft list tables | grep rktd; find /run/rktd/network /run/rktd-names -mindepth 2; "
        "systemctl list-units --no-legend --plain 'rktd-names@*' 'rktd-port-*'; ls /run/rktd/network | grep -v ports"
    )
    return pods.bed.sh(script, check=False).stdout


def test_one_interface_with_stable_addresses(pods: Pods, outside: None) -> None:
    """IPv4 and IPv6, default routes, MTU of the way out, the same address at every start; the outside is reached through NAT."""
    pods.bed.sh("ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8:1::2; ip link set up0 mtu 1400")
    try:
        write_http(pods, "p")
        pods.start("p")
        network = network_of(pods, "p")
        found = inside(pods, "p", "ip -o addr show eth0; ip route; ip -6 route; cat /sys/class/net/eth0/mtu; ls /sys/class/net")
        assert f"inet {network['addresses'][0]}" in found
        assert f"inet6 {network['addresses'][1]}" in found
        assert "fe80" not in found
        assert f"default via {network['gateways'][0]} dev eth0" in found
        assert f"default via {network['gateways'][1]} dev eth0" in found
        assert found.split()[-3:] == ["1400", "eth0", "lo"]
        assert "1 packets received" in inside(pods, "p", "ping -c1 -W3 192.0.2.2")
        assert "1 packets received" in inside(pods, "p", "ping -6 -c1 -W3 2001:db8:1::2")
        pods.bed.run("systemctl", "restart", "pod@p")
        assert network_of(pods, "p") == network
    finally:
        pods.bed.sh("ip route del default; ip -6 route del default; ip link set up0 mtu 1500", check=False)


def test_a_requested_address(pods: Pods) -> None:
    write_http(pods, "p", {"systemd.io/address": "10.112.0.77"})
    write_http(pods, "q", {"systemd.io/address": "10.112.0.77"})
    write_http(pods, "r", {"systemd.io/address": "10.9.9.9"})
    pods.start("p")
    assert address_of(pods, "p") == "10.112.0.77"
    assert "pod q asks for the address 10.112.0.77, which pod p has" in refusal(pods, "q")
    assert "pod r asks for the address 10.9.9.9, but pods0 has 10.112.0.2 to 10.112.15.254" in refusal(pods, "r")
    pods.stop("p")
    pods.wait_end("p")
    pods.start("q")
    assert address_of(pods, "q") == "10.112.0.77"


def test_another_pool_on_a_host_that_has_ipv6_off(pods: Pods) -> None:
    """`network:` of rktd.yaml. IPv6 is off for interfaces by default, but not for what pods have of their own."""
    pool = "network: {ipv4: 172.30.0.0/16, size: 24, ipv6: 'fd00:1:2::/48', mtu: 1400}\n"
    pods.bed.write("/etc/rktd/rktd.yaml", pool)
    pods.bed.sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
    try:
        write_http(pods, "p")
        pods.start("p")
        network = network_of(pods, "p")
        assert (network["mtu"], network["gateways"]) == (1400, ["172.30.0.1", "fd00:1:2::1"])
        assert re.fullmatch(r"172\.30\.0\.\d+/24 fd00:1:2::[0-9a-f]+/64", " ".join(network["addresses"]))
        for version, gateway in ((4, "172.30.0.1"), (6, "fd00:1:2::1")):
            assert "1 packets received" in inside(pods, "p", f"ping -{version} -c1 -W3 {gateway}")
        pods.stop("p")
        pods.wait_end("p")
    finally:
        pods.bed.sh("echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6; rm /etc/rktd/rktd.yaml")


def test_ports_of_the_host(pods: Pods, outside: None) -> None:
    """From outside and by the host's addresses with the client's address kept; by loopback; from other pods and from the pod itself."""
    ports: list[dict[str, Any]] = [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "hostPort": 5353, "protocol": "UDP"}]
    ports.append({"containerPort": 53, "hostPort": 53, "hostIP": "192.0.2.1", "protocol": "UDP"})
    write_http(pods, "p", ports=ports)
    one = [{"containerPort": 80, "hostPort": 8081, "hostIP": "192.0.2.1"}, {"containerPort": 80, "hostPort": 8082, "hostIP": "::1"}]
    write_http(pods, "q", ports=one)
    pods.start("p")
    pods.start("q")
    leader = pods.bed.run("machinectl", "show", "p", "-P", "Leader").stdout.strip()  # busybox has no UDP server
    pods.bed.run("systemd-run", "--unit=echo", "nsenter", "-t", leader, "-n", "python3", "/opt/echo.py")
    out, gateway = "ip netns exec outside", network_of(pods, "p")["gateways"][0]
    assert ask(pods, "http://192.0.2.1:8080", prefix=out).endswith("192.0.2.2]")
    assert "2001:db8:1::2" in ask(pods, "http://[2001:db8:1::1]:8080", prefix=out)
    assert "192.0.2.1" in ask(pods, "http://192.0.2.1:8080")
    for url in ("http://127.0.0.1:8080", "http://[::1]:8080", f"http://{gateway}:8080", "http://[2001:db8:1::1]:8080"):
        assert ask(pods, url).startswith("p "), url
    for name in ("p", "q"):
        for url in ("http://192.0.2.1:8080", f"http://{gateway}:8080"):
            assert inside(pods, name, f"wget -T 4 -qO- {url}/cgi-bin/who").startswith("p "), (name, url)
        assert inside(pods, name, "wget -T 4 -qO- http://[2001:db8:1::1]:8080/cgi-bin/who").startswith("p "), name
        own = pods.bed.run("machinectl", "show", name, "-P", "Leader").stdout.strip()
        for address in ("192.0.2.1", gateway, "2001:db8:1::1"):
            assert pods.bed.sh(f"nsenter -t {own} -n python3 /opt/udp.py {address} 5353").stdout.split()[-1:] == ["ask"], (name, address)
    assert ask(pods, "http://192.0.2.1:8081", prefix=out).startswith("q ")
    assert ask(pods, "http://127.0.0.1:8081") == ""  # its hostIP is another one
    assert ask(pods, "http://[::1]:8082").startswith("q ")
    assert ask(pods, "http://192.0.2.1:8082", prefix=out) == ""
    for prefix, address in ((out, "192.0.2.1"), (out, "2001:db8:1::1"), ("", "192.0.2.1"), ("", "127.0.0.1"), ("", "::1")):
        assert pods.bed.sh(f"{prefix} python3 /opt/udp.py {address} 5353").stdout.split()[-1:] == ["ask"], (prefix, address)
    assert pods.bed.sh(f"{out} python3 /opt/udp.py 192.0.2.1 53").stdout.split()[-1:] == ["ask"]
    assert "Address: 10.112." in inside(pods, "q", "nslookup p.pods.internal")  # port 53 of the gateway is still the name server's
    pods.bed.run("systemctl", "stop", "echo")


def test_a_port_that_another_pod_wants(pods: Pods) -> None:
    """The second one, by name, is refused by generator, `podctl check` and start, whether the first one runs or not."""
    for name in ("p", "q"):
        write_http(pods, name, ports=[{"containerPort": 80, "hostPort": 8080}])
    pods.bed.run("systemctl", "daemon-reload")
    message = "TCP port 8080 of the host is wanted by pods p and q"
    assert "/etc/pods/q.yaml:" in pods.bed.run("podctl", "check", check=False).stdout
    assert message in pods.bed.run("podctl", "check", check=False).stdout
    assert message in refusal(pods, "q")
    pods.start("p")
    assert message in refusal(pods, "q")
    assert ask(pods, "http://127.0.0.1:8080").startswith("p ")
    write_http(pods, "r", ports=[{"containerPort": 80, "hostPort": 53}])
    assert "TCP port 53 of 10.112.0.1 is that of the name server of pods0" in refusal(pods, "r")


def test_a_port_that_a_program_of_the_host_has(pods: Pods) -> None:
    write_http(pods, "p", ports=[{"containerPort": 80, "hostPort": 8080}])
    pods.bed.run("systemd-run", "--unit=taker", "python3", "-m", "http.server", "8080", "--bind", "127.0.0.1")
    try:
        for _ in range(100):
            if ask(pods, "http://127.0.0.1:8080"):
                break
            time.sleep(0.05)
        assert re.search(r"pod p cannot have TCP port 8080 of the host: python3 \(pid \d+\) listens there", refusal(pods, "p"))
    finally:
        pods.bed.run("systemctl", "stop", "taker")
    assert leftovers(pods) == ""
    pods.start("p")
    pods.stop("p")
    write_http(pods, "p", ports=[{"containerPort": 53, "hostPort": 5353, "protocol": "UDP"}])
    pods.bed.run("systemd-run", "--unit=taker", "python3", "-c", TAKER)
    try:
        pods.bed.sh("for i in $(seq 100); do ss -Hlun sport = :5353 | grep -q . && break; sleep 0.05; done")
        assert re.search(r"pod p cannot have UDP port 5353 of the host: python3 \(pid \d+\) listens there", refusal(pods, "p"))
    finally:
        pods.bed.run("systemctl", "stop", "taker")


def test_what_is_too_large_for_the_way_passes(pods: Pods, outside: None) -> None:
    """Path MTU discovery through NAT, both families: a narrow link beyond the next router, then the host's own that has become narrow."""
    bed = pods.bed
    bed.sh(FAR)
    bed.write("/opt/swallow.py", SWALLOW)
    bed.run("systemd-run", "--unit=swallow", "ip", "netns", "exec", "far", "python3", "/opt/swallow.py")
    try:
        bed.sh("for i in $(seq 100); do ip netns exec far ss -Hltn sport = :7000 | grep -q . && break; sleep 0.05; done")
        write_http(pods, "p")
        pods.start("p")
        assert network_of(pods, "p")["mtu"] == 1500
        for narrow in ("true", "ip link set up0 mtu 1290; ip -n outside link set eth0 mtu 1290"):
            bed.sh(narrow)
            for address in ("198.51.100.2", "2001:db8:2::2"):
                script = f"head -c 3000000 /dev/zero | timeout 20 nc {address} 7000 | wc -c"
                assert inside(pods, "p", script) == "3000000", (narrow, address)
    finally:
        bed.sh("systemctl stop swallow; ip netns del far; ip link set up0 mtu 1500; ip -n outside link set eth0 mtu 1500", check=False)
        bed.sh("ip route del 198.51.100.0/24; ip -6 route del 2001:db8:2::/64", check=False)


def test_names(pods: Pods, outside: None) -> None:
    """Pods by short and full name, to running pods too; the outside by the host's name servers; host name, subdomain, aliases."""
    pods.bed.run("systemd-run", "--unit=dns", "ip", "netns", "exec", "outside", "python3", "/opt/dns.py")
    pods.bed.run("resolvectl", "dns", "up0", "192.0.2.2")
    try:
        spec: dict[str, Any] = {
            "hostname": "front",
            "subdomain": "site",
            "hostAliases": [{"ip": "203.0.113.9", "hostnames": ["old.example.org"]}],
        }
        spec["dnsConfig"] = {"options": [{"name": "ndots", "value": "2"}]}
        pods.write("p", {"containers": [app(pods, HTTP.replace("NAME", "p"))], **spec})
        pods.start("p")
        write_http(pods, "q")
        pods.start("q")
        deadline = time.monotonic() + 6  # systemd-resolved looks at the file every 2 s
        while not inside(pods, "p", "wget -qO- http://q/cgi-bin/who").startswith("q "):
            assert time.monotonic() < deadline
        for name in ("q.pods.internal", "p", "front.site.pods.internal"):
            assert inside(pods, "q" if name != "q.pods.internal" else "p", f"wget -qO- http://{name}/cgi-bin/who"), name
        assert "203.0.113.7" in inside(pods, "q", "nslookup www.example.org")
        hosts = inside(pods, "p", "cat /etc/hosts /etc/resolv.conf; hostname")
        assert f"{address_of(pods, 'p')}\tfront.site.pods.internal\tfront" in hosts
        assert "203.0.113.9\told.example.org" in hosts
        assert hosts.split("\n")[-2:] == ["options ndots:2", "front"]
        pods.stop("q")
        deadline = time.monotonic() + 6
        while "Address: 10.112." in inside(pods, "p", "nslookup q.pods.internal"):
            assert time.monotonic() < deadline
    finally:
        pods.bed.sh("systemctl stop dns; resolvectl revert up0", check=False)


def test_a_host_without_resolved(pods: Pods) -> None:
    """Pods start, and do not know each other by name: the first one's start says so, and what helps."""
    place = "/usr/lib/systemd/systemd-resolved"
    pods.bed.sh(f"mv {place} {place}.away")
    try:
        for name in "ab":
            write_http(pods, name)
            pods.start(name)
        assert inside(pods, "a", f"wget -qO- http://{address_of(pods, 'b')}/cgi-bin/who").startswith("b ")
        said = [
            entry["MESSAGE"]
            for name in "ab"
            for entry in pods.bed.journal("-u", f"pod-stage0@{name}", "PRIORITY=4", f"--after-cursor={pods.cursor}")
        ]
        assert said == [f"pods of pods0 do not know each other by name: there is no {place} (Debian: systemd-resolved)"]
    finally:
        pods.bed.sh(f"mv {place}.away {place}")


def test_networks_are_apart(pods: Pods, outside: None) -> None:
    """No way from one network to another, to another's name server, to the host's loopback, or from outside to a pod's address."""
    write_http(pods, "p")
    write_http(pods, "q", {"systemd.io/network": "db"})
    write_http(pods, "r", {"systemd.io/network": "db"})
    for name in ("p", "q", "r"):
        pods.start(name)
    assert network_of(pods, "q")["bridge"] == "pods-db"
    assert inside(pods, "r", f"wget -T 4 -qO- http://{address_of(pods, 'q')}/cgi-bin/who").startswith("q ")
    for version in (4, 6):
        target = address_of(pods, "q", version)
        url = f"http://[{target}]" if version == 6 else f"http://{target}"
        assert inside(pods, "p", f"wget -T 2 -qO- {url}/cgi-bin/who") == ""
    assert inside(pods, "p", f"nslookup q.pods.internal {network_of(pods, 'q')['gateways'][0]} | grep Name") == ""
    assert inside(pods, "p", "nslookup q.pods.internal | grep Name") == ""
    pods.bed.run("systemd-run", "--unit=ear", "python3", "-c", EAR)
    try:  # with what CNI plugins switch on for their bridges, the host would take 127.0.0.1 from there
        pods.bed.sh("for i in $(seq 100); do ss -Hlun sport = :7070 | grep -q . && break; sleep 0.05; done")
        pods.bed.sh("echo 1 >/proc/sys/net/ipv4/conf/pods0/route_localnet")
        pods.bed.write("/opt/mouth.py", MOUTH)
        leader, mac = (
            pods.bed.sh(command).stdout.strip() for command in ("machinectl show p -P Leader", "cat /sys/class/net/pods0/address")
        )
        targets = ("127.0.0.1", "127.0.0.1", "10.112.0.1")
        pods.bed.run("nsenter", "-t", leader, "-n", "python3", "/opt/mouth.py", mac, address_of(pods, "p"), *targets)
        pods.bed.sh("for i in $(seq 100); do [ -s /run/heard ] && break; sleep 0.05; done")
        assert pods.bed.read("/run/heard") == "10.112.0.1 "
    finally:
        pods.bed.sh("systemctl stop ear; rm -f /run/heard")
    pods.bed.sh("ip -n outside route add 10.112.0.0/12 via 192.0.2.1")
    assert ask(pods, f"http://{address_of(pods, 'p')}", prefix="ip netns exec outside") == ""
    gateway = network_of(pods, "p")["gateways"][0]
    connect = f"python3 -c \"import socket; socket.create_connection(('{gateway}', 53), 2)\""
    pods.bed.sh(connect)
    assert "TimeoutError" in pods.bed.sh(f"ip netns exec outside {connect}", check=False).stderr


def test_a_pod_that_may_reach_nobody_starts(pods: Pods) -> None:
    """IPAddressDeny= of the unit holds for what readies the pod, too."""
    write_http(pods, "p", {"systemd.io/ip-address-deny": "any"})
    begin = time.monotonic()
    pods.start("p")
    assert time.monotonic() - begin < 8  # the wait for the name server ends in 10
    assert ask(pods, f"http://{address_of(pods, 'p')}") == ""


def test_a_pod_speaks_with_its_own_address_only(pods: Pods) -> None:
    """Even with CAP_NET_ADMIN: another pod's address, MAC, neighbour answers and router advertisements do not get past its port."""
    admin = {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}}
    write_http(pods, "p")
    pods.write("q", {"containers": [app(pods, HTTP.replace("NAME", "q"), securityContext=admin)]})
    pods.start("p")
    pods.start("q")
    victim, victim6, gateway = address_of(pods, "p"), address_of(pods, "p", 6), network_of(pods, "p")["gateways"][0]
    assert ask(pods, f"http://{victim}").startswith("p ")
    before = pods.bed.run("ip", "neigh", "show", victim).stdout.split()[4]
    assert before == network_of(pods, "p")["mac"]
    steal = f"ip addr add {victim}/32 dev eth0; ip addr add {victim6}/128 dev eth0 nodad; "
    assert "1 packets received" in inside(pods, "q", f"ping -c1 -W2 {gateway}")
    assert "0 packets received" in inside(pods, "q", steal + f"ping -c1 -W1 -I {victim} {gateway}")
    inside(pods, "q", f"arping -c 2 -U -I eth0 {victim}; arping -c 2 -A -I eth0 {victim}")
    pods.bed.sh(f"ip neigh flush dev pods0; curl -s -m 4 http://{victim}/")
    assert pods.bed.run("ip", "neigh", "show", victim).stdout.split()[4] == before
    assert ask(pods, f"http://{victim}").startswith("p ")
    pods.bed.write("/opt/frame.py", FRAME)
    leader = pods.bed.run("machinectl", "show", "q", "-P", "Leader").stdout.strip()
    pods.bed.run("nsenter", "-t", leader, "-n", "python3", "/opt/frame.py", before)
    fdb = pods.bed.run("bridge", "fdb", "show", "br", "pods0").stdout
    assert [line.split()[2] for line in fdb.splitlines() if line.startswith(before)] == [network_of(pods, "p")["interface"]]
    other = f"ip link set eth0 down; ip link set eth0 address {before}; ip link set eth0 up; "
    assert "0 packets received" in inside(pods, "q", other + f"ping -c1 -W1 {gateway}")
    assert ask(pods, f"http://{victim}").startswith("p ")


def test_accidents_are_mended(pods: Pods, outside: None) -> None:
    """`nft flush ruleset`, a removed bridge: `systemctl restart rktd-network` makes all as it was, for pods that run."""
    write_http(pods, "p", ports=[{"containerPort": 80, "hostPort": 8080}])
    pods.start("p")
    before = pods.bed.run("nft", "list", "ruleset").stdout
    out = "ip netns exec outside"
    for accident in ("nft flush ruleset", "ip link del pods0", "systemctl kill -s KILL rktd-names@pods0; systemctl stop rktd-names@pods0"):
        pods.bed.sh(accident)
        pods.bed.run("systemctl", "restart", "rktd-network")
        assert pods.bed.run("nft", "list", "ruleset").stdout == before, accident
        assert ask(pods, "http://192.0.2.1:8080", prefix=out).startswith("p "), accident
        pods.bed.sh("until nslookup p.pods.internal 10.112.0.1; do sleep 0.1; done".replace("nslookup", "busybox nslookup"), timeout=20)
    pods.bed.sh("nft flush ruleset")
    write_http(pods, "q")  # a start mends the tables by itself
    pods.start("q")
    assert ask(pods, "http://192.0.2.1:8080", prefix=out).startswith("p ")
    pods.bed.sh("ip link del pods0")
    write_http(pods, "r")  # and the bridge, with those that run on it
    pods.start("r")
    assert ask(pods, "http://192.0.2.1:8080", prefix=out).startswith("p ")


def test_nothing_is_left_after_kills(pods: Pods) -> None:
    write_http(pods, "p", ports=[{"containerPort": 80, "hostPort": 8080}])
    for _ in range(2):
        pods.start("p")
        before = pods.show("p", "InvocationID")["InvocationID"]
        pods.bed.run("systemctl", "kill", "--signal=KILL", "pod@p")
        deadline = time.monotonic() + 40
        while (now := pods.show("p", "InvocationID", "ActiveState"))["InvocationID"] == before or now["ActiveState"] != "active":
            assert time.monotonic() < deadline, now
            time.sleep(0.05)
        assert ask(pods, "http://127.0.0.1:8080").startswith("p ")
        pods.stop("p")
    assert leftovers(pods) == ""
    # A stage0 that is killed and whose release is, too: the sweep finds the lease.
    pods.start("p")
    pods.bed.write("/run/systemd/system/pod-stage0@p.service.d/x.conf", "[Service]\nExecStopPost=\n")
    pods.bed.run("systemctl", "daemon-reload")
    pods.stop("p")
    assert "vpod" in pods.bed.run("ip", "-o", "link").stdout
    pods.bed.sh(
        "rm -r /run/systemd/system/pod-stage0@p.service.d; systemctl daemon-reload; touch -d '1 hour ago' /run/rktd/pods/p; podctl gc"
    )
    assert leftovers(pods) == ""


def test_many_pods_at_once(pods: Pods) -> None:
    """Fifty at the same time: no address twice, each reaches the next by name, and all down leaves nothing."""
    names = [f"p{number}" for number in range(50)]
    for name in names:
        write_http(pods, name)
    units = [f"pod@{name}" for name in names]
    pods.bed.run("systemctl", "start", *units, timeout=300)
    found = [address_of(pods, name, version) for name in names for version in (4, 6)]
    assert len(set(found)) == 100
    time.sleep(2.5)  # systemd-resolved looks at the file every 2 s
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        answer = inside(pods, name, f"wget -T 5 -qO- http://{following}/cgi-bin/who")
        assert answer.startswith(f"{following} "), (name, answer)
        assert answer.endswith((address_of(pods, name), address_of(pods, name, 6) + "]")), (name, answer)
    pods.bed.run("systemctl", "stop", *units, timeout=300)
    assert leftovers(pods) == ""

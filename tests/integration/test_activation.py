# SPDX-License-Identifier: Apache-2.0
"""Pods that a socket of the host's systemd starts: the app gets the socket, or a proxy in the pod; nothing that anybody sends is lost."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.layers import Entry, compile_program, write_layer
from tests.integration.pods import Pods

# Says what it was given, then answers each connection with the number of its descriptor and the client's address, and datagrams with
# themselves. Ends when nobody has come for argv[1] seconds.
SERVER = r"""
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
static volatile int stopped;
static struct sockaddr_in6 lure = {.sin6_family = AF_INET6};
/* Makes a way to the lure of a socket that was given to answer by; 0 or what the kernel says. */
static int leave(int fd) {
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    struct timeval limit = {1, 0};
    connect(fd, &none, sizeof none);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    int failed = connect(fd, (void *)&lure, sizeof lure) ? errno : 0;
    if (!failed && write(fd, "tcp\n", 4) < 0) failed = errno;
    connect(fd, &none, sizeof none);
    return failed;
}
static void stop(int number) { stopped = number; }
int main(int argc, char **argv) {
    struct pollfd doors[8];
    int count = atoi(getenv("LISTEN_FDS") ? getenv("LISTEN_FDS") : "0"), names = 0, type;
    socklen_t size = sizeof type;
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    printf("fds %d pid %s names %s", count, atoi(getenv("LISTEN_PID") ? getenv("LISTEN_PID") : "0") == getpid() ? "mine" : "wrong",
           getenv("LISTEN_FDNAMES") ? getenv("LISTEN_FDNAMES") : "none");
    for (int fd = 3; fd < 64; fd++) {
        struct sockaddr_in6 own = {0};
        socklen_t length = sizeof own;
        if (fcntl(fd, F_GETFD) < 0) continue;
        if (getsockname(fd, (void *)&own, &length)) printf(" %d:other", fd);
        else printf(" %d:%d", fd, ntohs(own.sin6_port));
        names++;
    }
    printf("\n"); fflush(stdout);
    if (argc > 2) {
        int zero = 0;
        inet_pton(AF_INET6, "::ffff:127.0.0.1", &lure.sin6_addr);
        lure.sin6_port = htons(atoi(argv[2]));
        for (int fd = 3; fd < 3 + count; fd++) setsockopt(fd, SOL_SOCKET, SO_MARK, &zero, sizeof zero);
        printf("listener %d", leave(3));
        printf(" again %d", listen(3, 64));
        printf(" datagram %d\n", sendto(4, "udp\n", 4, 0, (void *)&lure, sizeof lure) < 0 ? errno : 0); fflush(stdout);
    }
    for (int i = 0; i < count; i++) doors[i] = (struct pollfd){.fd = 3 + i, .events = POLLIN};
    while (!stopped && poll(doors, count, atoi(argv[1]) * 1000) > 0)
        for (int i = 0; i < count; i++) {
            struct sockaddr_in6 peer;
            socklen_t length = sizeof peer;
            char text[INET6_ADDRSTRLEN], line[256];
            if (!doors[i].revents) continue;
            getsockopt(doors[i].fd, SOL_SOCKET, SO_TYPE, &type, &size);
            if (type == SOCK_DGRAM) {
                ssize_t got = recvfrom(doors[i].fd, line, sizeof line, 0, (void *)&peer, &length);
                sendto(doors[i].fd, line, got, 0, (void *)&peer, length);
                continue;
            }
            int client = accept(doors[i].fd, (void *)&peer, &length);
            void *address = peer.sin6_family == AF_INET ? (void *)&((struct sockaddr_in *)&peer)->sin_addr : (void *)&peer.sin6_addr;
            inet_ntop(peer.sin6_family, address, text, sizeof text);
            int made = snprintf(line, sizeof line, "%d %s\n", doors[i].fd, text);
            if (write(client, line, made) < 0) perror("write");
            if (argc > 2) {
                shutdown(client, SHUT_WR);
                while (read(client, line, sizeof line) > 0);
                printf("accepted %d\n", leave(client)); fflush(stdout);
            }
            close(client);
        }
    return 0;
}
"""
# Connects COUNT times at once, and prints what came back, each answer with its number.
CROWD = """
import collections, socket, sys, threading
address, port, count, ask = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode().decode("unicode_escape").encode()
found = collections.Counter()
def talk():
    try:
        with socket.create_connection((address, port), timeout=100) as door:
            if ask:
                door.sendall(ask)
            answer = b""
            while data := door.recv(4096):
                answer += data
            found[answer.decode().strip().split("\\n")[-1]] += 1
    except OSError as error:
        found[repr(error)] += 1
threads = [threading.Thread(target=talk) for _ in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for answer, number in sorted(found.items()): print(number, answer)
"""
UDP = """
import socket, sys
door = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM); door.settimeout(30)
door.sendto(b"hello", (sys.argv[1], int(sys.argv[2]))); print(door.recv(100).decode())
"""
# What listens on the host's loopback only; prints who got there.
LURE = """
import select, socket, sys
doors = [socket.create_server(("127.0.0.1", 9999)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
doors[1].bind(("127.0.0.1", 9999))
while True:
    for door in select.select(doors, [], [])[0]:
        print(door.recv(100).decode() if door is doors[1] else door.accept()[0].recv(100).decode(), end="", flush=True)
"""
ADDRESS = "ip addr add 192.0.2.9/32 dev lo"
HTTPD = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo from $REMOTE_ADDR\\n' >/www/cgi-bin/who; chmod +x /www/cgi-bin/who; "
ASK = r"GET /cgi-bin/who HTTP/1.0\r\n\r\n"


@pytest.fixture(scope="module")
def image(pods_session: Pods) -> Iterator[str]:
    bed = pods_session.bed
    bed.write("/opt/crowd.py", CROWD)
    bed.write("/opt/udp1.py", UDP)
    bed.write("/opt/lure.py", LURE)
    bed.sh(ADDRESS)
    program = compile_program(bed, "server", SERVER)
    layer = write_layer(bed, "/srv/server.tar", Entry("bin/server", program))
    yield pods_session.make_image("server", None, (layer,))
    bed.sh("ip addr del 192.0.2.9/32 dev lo", check=False)


def crowd(pods: Pods, address: str, port: int, count: int, ask: str = "") -> dict[str, int]:
    """Answer -> how many got it."""
    lines = pods.bed.run("python3", "/opt/crowd.py", address, str(port), str(count), ask, timeout=120).stdout.splitlines()
    return {line.partition(" ")[2]: int(line.partition(" ")[0]) for line in lines}


def listen(pods: Pods, name: str) -> None:
    pods.bed.sh(f"systemctl daemon-reload; systemctl start pod@{name}.socket")


def log_of(pods: Pods, name: str) -> list[str]:
    pods.bed.sh("sleep 0.2")
    return pods.lines(name)


def test_the_app_gets_its_sockets_and_nothing_else(pods: Pods, image: str) -> None:
    """Two apps, TCP and UDP, both families, one address of the host; LISTEN_* are exact; hundreds at once are all answered, and seen."""
    one: list[dict[str, Any]] = [
        {"name": "web", "containerPort": 80, "hostPort": 8080},
        {"name": "dns", "containerPort": 53, "hostPort": 5353, "protocol": "UDP"},
        {"containerPort": 9000, "hostPort": 9000, "hostIP": "192.0.2.9"},
        {"containerPort": 7000, "hostPort": 7000},
    ]
    server = pods.app(["server", "600"], "server", ports=one, securityContext={"runAsUser": 1000}) | {"image": image}
    second = pods.app(["server", "600"], "second", ports=[{"name": "b", "containerPort": 81, "hostPort": 81}]) | {"image": image}
    plain = pods.app("env | grep -c LISTEN; exec sleep 1000", "plain")
    annotations = {"systemd.io/socket-activation": "web dns 9000 b"}
    pods.write("p", {"containers": [server, second, plain]}, annotations)
    listen(pods, "p")
    assert pods.show("p", "ActiveState")["ActiveState"] == "inactive"
    assert "listening" in pods.bed.run("podctl", "list", "p").stdout
    before = time.monotonic()
    found = crowd(pods, "127.0.0.1", 8080, 400)
    print(f"400 connections to a stopped pod: {time.monotonic() - before:.2f} s")
    assert found == {"3 ::ffff:127.0.0.1": 400}
    assert pods.show("p", "ActiveState")["ActiveState"] == "active"
    assert crowd(pods, "::1", 8080, 3) == {"3 ::1": 3}
    assert crowd(pods, "192.0.2.9", 9000, 3) == {"5 192.0.2.9": 3}
    assert "ConnectionRefusedError" in str(crowd(pods, "127.0.0.1", 9000, 1))
    assert crowd(pods, "127.0.0.1", 81, 3) == {"3 ::ffff:127.0.0.1": 3}
    for address in ("127.0.0.1", "::1"):
        assert pods.bed.run("python3", "/opt/udp1.py", address, "5353").stdout == "hello\n"
    lines = {e["SYSLOG_IDENTIFIER"]: e["MESSAGE"] for e in pods.bed.journal("-u", "pod@p", f"--after-cursor={pods.cursor}", "-p6..6")}
    assert re.fullmatch(r"fds 3 pid mine names web:dns:9000 3:8080 4:5353 5:9000", lines["server"]), lines
    assert re.fullmatch(r"fds 1 pid mine names b 3:81", lines["second"]), lines
    assert lines["plain"] == "0"
    record = json.loads(pods.bed.read("/run/rktd/pods/p/pod.json"))
    assert [port["host_port"] for port in record["network"]["ports"]] == [7000]  # forwarded as ever; the others have one listener only


def test_it_ends_and_starts_again(pods: Pods, image: str) -> None:
    """An app that ends itself ends the pod; the socket goes on, through a stop, a restart and a crash of stage1."""
    app = pods.app(["server", "1"], ports=[{"containerPort": 80, "hostPort": 8080}]) | {"image": image}
    pods.write("p", {"restartPolicy": "OnFailure", "containers": [app]}, {"systemd.io/socket-activation": "80"})
    listen(pods, "p")
    for _ in range(2):
        assert crowd(pods, "127.0.0.1", 8080, 50) == {"3 ::ffff:127.0.0.1": 50}
        assert pods.wait_state("p", "inactive", "failed") == "inactive"
        assert pods.show("p", "Result")["Result"] == "success"
    pods.start("p")  # by hand: gets the socket, too
    assert crowd(pods, "127.0.0.1", 8080, 1) == {"3 ::ffff:127.0.0.1": 1}
    done = pods.bed.run("systemctl", "stop", "pod@p")
    assert "pod@p.socket" in done.stderr  # systemd says that it still listens
    assert crowd(pods, "127.0.0.1", 8080, 1) == {"3 ::ffff:127.0.0.1": 1}
    script = "systemctl restart pod@p & python3 /opt/crowd.py 127.0.0.1 8080 1 ''; wait"
    assert "3 ::ffff" in pods.bed.sh(script).stdout
    pods.bed.run("systemctl", "kill", "--kill-whom=main", "-sKILL", "pod@p")
    assert crowd(pods, "127.0.0.1", 8080, 1) == {"3 ::ffff:127.0.0.1": 1}
    pods.bed.run("podctl", "stop", "p")  # with its socket
    assert pods.show("pod@p.socket", "ActiveState")["ActiveState"] == "inactive"
    assert "ConnectionRefusedError" in str(crowd(pods, "127.0.0.1", 8080, 1))
    pods.start("p")  # opens it again
    assert crowd(pods, "127.0.0.1", 8080, 1) == {"3 ::ffff:127.0.0.1": 1}


def test_networks_and_name_spaces(pods: Pods, image: str) -> None:
    """hostNetwork with a port below 1024 and no privilege; no network at all; one process name space."""
    annotation = {"systemd.io/socket-activation": "80"}
    app = {"image": image}
    pods.write("own", {"hostNetwork": True, "containers": [pods.app(["server", "600"], ports=[{"containerPort": 80}]) | app]}, annotation)
    port = [{"containerPort": 80, "hostPort": 8081}]
    spec = {"shareProcessNamespace": True, "containers": [pods.app(["server", "600"], ports=port) | app]}
    pods.write("none", spec, annotation | {"systemd.io/network": "none"})
    for name, number in (("own", 80), ("none", 8081)):
        listen(pods, name)
        assert crowd(pods, "127.0.0.1", number, 20) == {"3 ::ffff:127.0.0.1": 20}
        assert log_of(pods, name) == [f"fds 1 pid mine names 80 3:{number}"]
    assert json.loads(pods.bed.read("/run/rktd/pods/none/pod.json"))["network"] is None


def test_sockets_are_no_way_out(pods: Pods, image: str) -> None:
    """An app that connects what it was given elsewhere reaches nothing of the host's, with a network and without; in hostNetwork it may."""
    bed = pods.bed
    bed.run("systemd-run", "--unit=lure", "--property=StandardOutput=file:/run/reached", "python3", "/opt/lure.py")
    try:
        for name, fields, more, failures in (
            ("own", {"hostNetwork": True}, {}, ("0", "0", "0")),
            ("private", {}, {}, ("115", "1", "115")),
            ("none", {}, {"systemd.io/network": "none"}, ("115", "1", "115")),
        ):
            bed.sh("for i in $(seq 100); do ss -Hlt src 127.0.0.1:9999 | grep -q . && break; sleep 0.1; done; truncate -s0 /run/reached")
            ports = [{"containerPort": 8080, "hostPort": 8080}, {"containerPort": 5353, "hostPort": 5353, "protocol": "UDP"}]
            app = pods.app(["server", "600", "9999"], ports=ports) | {"image": image}
            pods.write(name, {**fields, "containers": [app]}, {"systemd.io/socket-activation": "8080 5353/udp"} | more)
            pods.start(name)
            if name == "private":  # as who flushes all rules has to do for pods anyway
                bed.sh("nft flush ruleset; systemctl restart rktd-network")
            wait_for(pods, f"journalctl -u pod@{name} --output=cat | grep -q '^listener'")
            assert crowd(pods, "127.0.0.1", 8080, 1) == {"3 ::ffff:127.0.0.1": 1}
            assert bed.run("python3", "/opt/udp1.py", "127.0.0.1", "5353").stdout == "hello\n"
            wait_for(pods, f"journalctl -u pod@{name} --output=cat | grep -q '^accepted'")
            listener, datagram, accepted = failures
            assert log_of(pods, name)[1:] == [f"listener {listener} again 0 datagram {datagram}", f"accepted {accepted}"]
            assert sorted(bed.read("/run/reached").split()) == (["tcp", "tcp", "udp"] if name == "own" else [])
            assert ("rktd-sockets" in bed.sh("nft list tables").stdout) == (name != "own")
            bed.run("podctl", "stop", name)
            bed.sh(f"rm /etc/pods/{name}.yaml")
        wait_for(pods, "! nft list tables | grep -q rktd-sockets")
    finally:
        bed.run("systemctl", "stop", "lure")


@pytest.mark.usefixtures("image")
def test_a_proxy_and_its_idle_stop(pods: Pods) -> None:
    """An app that knows nothing of it; slow to listen; two ports; the pod stops when nobody talks to it, also when nobody ever did."""
    slow = pods.app(f"{HTTPD} sleep 1; httpd -p 81 -h /www; exec httpd -f -p 80 -h /www", ports=[
        {"name": "a", "containerPort": 80, "hostPort": 8080}, {"name": "b", "containerPort": 81, "hostPort": 8081},
    ])  # fmt: skip
    annotations = {"systemd.io/socket-activation": "a=proxy b=proxy", "systemd.io/idle-stop": "2s"}
    pods.write("p", {"containers": [slow]}, annotations)
    listen(pods, "p")
    before = time.monotonic()
    assert crowd(pods, "127.0.0.1", 8080, 60, ASK) == {"from [::ffff:127.0.0.1]": 60}  # it has room for nine at once
    print(f"60 connections by the proxy to a stopped pod whose app sleeps for 1 s: {time.monotonic() - before:.2f} s")
    for _ in range(4):  # one port is enough to keep it
        assert crowd(pods, "::1", 8081, 1, ASK) == {"from [::ffff:127.0.0.1]": 1}
        time.sleep(1)
    assert pods.show("p", "ActiveState")["ActiveState"] == "active"
    assert pods.wait_state("p", "inactive", "failed") == "inactive"
    assert pods.show("p", "Result")["Result"] == "success"
    assert crowd(pods, "127.0.0.1", 8080, 1, ASK) == {"from [::ffff:127.0.0.1]": 1}
    pods.wait_state("p", "inactive")
    pods.start("p")
    began = time.monotonic()
    assert pods.wait_state("p", "inactive", "failed") == "inactive"
    assert time.monotonic() - began > 1


def test_edits_removal_and_what_is_wrong(pods: Pods, image: str) -> None:
    """The socket follows its file, at once or when the pod has ended; a pod that cannot start is no busy loop; a port that is taken."""
    annotation = {"systemd.io/socket-activation": "80"}

    def write(port: int, **fields: Any) -> None:
        app = pods.app(["server", "600"], ports=[{"containerPort": 80, "hostPort": port}], **fields) | {"image": image}
        pods.write("p", {"containers": [app]}, annotation)

    write(8080)
    listen(pods, "p")
    write(8081)
    wait_for(pods, "python3 /opt/crowd.py 127.0.0.1 8081 1 '' | grep -q ffff")
    write(8082)  # while it runs
    time.sleep(1)
    assert crowd(pods, "127.0.0.1", 8081, 1) == {"3 ::ffff:127.0.0.1": 1}
    pods.stop("p")
    wait_for(pods, "python3 /opt/crowd.py 127.0.0.1 8082 1 '' | grep -q ffff")
    assert "ConnectionRefusedError" in str(crowd(pods, "127.0.0.1", 8081, 1))
    pods.stop("p")
    pods.bed.write("/etc/pods/p.yaml", "broken: [")
    time.sleep(1)
    before = pods.bed.journal("-n1")[0]["__CURSOR"]
    pods.bed.sh("timeout 8 curl -s 127.0.0.1:8082", check=False)
    starts = [e for e in pods.bed.journal("-u", "pod-stage0@p", f"--after-cursor={before}") if e["MESSAGE"].startswith("Starting ")]
    assert 1 <= len(starts) <= 4
    assert pods.show("pod@p.socket", "ActiveState")["ActiveState"] == "active"
    pods.bed.sh("rm /etc/pods/p.yaml")
    wait_for(pods, "! systemctl -q is-active pod@p.socket")
    assert pods.bed.sh("ls /run/rktd/sockets").stdout == ""
    write(8083)
    pods.bed.run("systemd-run", "--unit=squatter", "python3", "-m", "http.server", "8083")
    wait_for(pods, "curl -s 127.0.0.1:8083 | grep -q Directory")
    assert pods.start("p", check=False).returncode == 1
    status = pods.bed.run("systemctl", "status", "pod@p", "--no-pager", "--full", check=False).stdout
    assert re.search(r"pod p cannot have TCP port 8083 of the host: python3 \(pid \d+\) listens there", status)
    pods.bed.run("systemctl", "stop", "squatter")


def test_edits_in_a_row(pods: Pods, image: str) -> None:
    """Each while the reload for the one before ends, or the socket is opened anew: the last one counts."""

    def write(port: int) -> None:
        app = pods.app(["server", "600"], ports=[{"containerPort": 80, "hostPort": port}]) | {"image": image}
        pods.write("p", {"containers": [app]}, {"systemd.io/socket-activation": "80"})

    write(9000)
    listen(pods, "p")
    for port in range(9001, 9013):
        write(port)
        if port % 3:  # the next one as soon as this one's reload is nearly through
            stamp = pods.bed.sh("stat -c %y /run/rktd/generator.cache").stdout.strip()
            pods.bed.sh(f"for i in $(seq 300); do [ \"$(stat -c %y /run/rktd/generator.cache)\" = '{stamp}' ] || break; sleep 0.01; done")
        else:
            wait_for(pods, f"grep -qx ListenStream={port} /run/rktd/sockets/p && ss -Hltn sport = :{port} | grep -q .")


def wait_for(pods: Pods, condition: str) -> None:
    pods.bed.sh(f"for i in $(seq 600); do if {condition}; then exit 0; fi; sleep 0.1; done; echo 'not so: {condition}' >&2; exit 1")

# SPDX-License-Identifier: Apache-2.0
"""Probes: what the pod file may say, what is said to servers, and what becomes of their answers. Servers are real ones on loopback."""

import datetime
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rktd_units import prober, stage2
from rktd_units.confine import Confinement
from rktd_units.podfile.model import Probe
from rktd_units.probetalk import GrpcTalk, HttpTalk
from tests.unit.test_schema import C, of_container, pod_of

TCP = "tcpSocket: {port: 80}"


def probe_of(fields: str, key: str = "readinessProbe", container: str = "") -> Probe:
    (probe,) = pod_of(f"{container}{key}: {{{fields}}}").containers[0].probes
    return probe


def test_defaults_are_those_of_kubernetes() -> None:
    zeros = ", ".join(
        f"{key}: 0" for key in ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold")
    )
    for fields in (TCP, f"{TCP}, {zeros}"):
        assert probe_of(fields) == Probe("tcp", "readiness", port=80, delay=0, period=10, timeout=1, successes=1, failures=3)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("exec: {command: [a, '']}", Probe("exec", "readiness", ("a", ""))),
        ("tcpSocket: {port: web, host: '::1'}", Probe("tcp", "readiness", host="::1", port=8080)),
        ("httpGet: {port: web}", Probe("http", "readiness", port=8080, path="/")),
        (
            "httpGet: {port: 1, host: localhost, path: a?b=%20, scheme: HTTPS, httpHeaders: [{name: A, value: 'b c'}]}",
            Probe("http", "readiness", host="127.0.0.1", port=1, path="/a?b=%20", tls=True, headers=(("A", "b c"),)),
        ),
        ("grpc: {port: 5, service: ''}", Probe("grpc", "readiness", port=5)),
        ("grpc: {port: 5, service: db}, exec: null, periodSeconds: 7", Probe("grpc", "readiness", port=5, path="db", period=7)),
    ],
    ids=["exec", "tcp", "http", "https", "grpc", "service"],
)
def test_handlers(fields: str, expected: Probe) -> None:
    assert probe_of(fields, container="ports: [{name: web, containerPort: 8080}], ") == expected


P = C + "livenessProbe"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("periodSeconds: 1", f"{P}: needs one of exec, grpc, httpGet, tcpSocket"),
        ("tcpSocket: {port: 1}, exec: {command: [a]}", f"{P}: has exec and tcpSocket: only one of them can be"),
        ("exec: {command: []}", f"{P}.exec.command: must name a program"),
        ("exec: {command: ['']}", f"{P}.exec.command: must name a program"),
        ("tcpSocket: {port: 70000}", f"{P}.tcpSocket.port: must be between 1 and 65535, got 70000"),
        ("tcpSocket: {port: '80'}", f"{P}.tcpSocket.port: must be a number or the name of a port, got the string '80'\n  hint: write 80"),
        ("tcpSocket: {port: ''}", f"{P}.tcpSocket.port: must not be empty"),
        ("httpGet: {port: web}", f"{P}.httpGet.port: the container has no port called 'web'"),
        ("tcpSocket: {port: 1, host: db}", f"{P}.tcpSocket.host: must be an IP address or localhost, got 'db'"),
        ("httpGet: {port: 1, path: 'a b'}", f"{P}.httpGet.path: must be a path as in a URL, got 'a b'"),
        ('httpGet: {port: 1, path: "/\\r\\nA: b"}', f"{P}.httpGet.path: must be a path as in a URL, got '/\\r\\nA: b'"),
        (
            "httpGet: {port: 1, httpHeaders: [{name: 'a b', value: c}]}",
            "httpHeaders[0].name: must be letters, digits and dashes, got 'a b'",
        ),
        ('httpGet: {port: 1, httpHeaders: [{name: a, value: "b\\nc"}]}', "httpHeaders[0].value: must not contain control characters"),
        ("grpc: {port: web}", f"{P}.grpc.port: must be a whole number, got 'web'"),
        (f"grpc: {{port: 1, service: {'a' * 1025}}}", f"{P}.grpc.service: must not be longer than 1024 bytes"),
        (f"{TCP}, successThreshold: 2", f"{P}.successThreshold: must be 1 for a livenessProbe"),
        (f"{TCP}, periodSeconds: -1", f"{P}.periodSeconds: must be between 0 and 2147483647, got -1"),
        (f"{TCP}, terminationGracePeriodSeconds: 0", f"{P}.terminationGracePeriodSeconds: must be between 1"),
        (f"{TCP}, interval: 3", f"{P}.interval: unknown field"),
    ],
)
def test_mistakes(fields: str, message: str) -> None:
    (found,) = of_container(f"livenessProbe: {{{fields}}}")
    assert message in found


def test_a_readiness_probe_ends_nothing() -> None:
    (found,) = of_container(f"readinessProbe: {{{TCP}, terminationGracePeriodSeconds: 3}}")
    assert found == C + "readinessProbe.terminationGracePeriodSeconds: must not be set for a readinessProbe: it ends nothing"


def test_an_init_container_has_none() -> None:
    init = "initContainers: [{name: i, image: 'a:1', startupProbe: {tcpSocket: {port: 80}}%s}]"
    (found,) = of_container("", init % "")
    assert found.endswith("startupProbe: an init container has no probes, unless its restartPolicy is Always")
    assert pod_of(spec=init % ", restartPolicy: Always").containers[0].probes[0].kind == "startup"


def attempt(handler: str, *target: str, timeout: float = 5) -> str:
    """One attempt of the prober's, driven as its loop drives it."""
    connection = prober.Connection(handler, list(target))
    end = time.monotonic() + timeout
    try:
        while True:
            poll = select.poll()
            poll.register(connection.descriptor, connection.events)
            if not poll.poll(max(end - time.monotonic(), 0) * 1000):
                return "timeout"
            verdict = connection.step()
            if verdict is not None:
                return verdict
    finally:
        connection.close()


@contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that gives each connection to `talk`; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection, suppress(OSError):
                talk(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield str(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


class Web(BaseHTTPRequestHandler):
    """Answers /N with status N, and notes what it was asked."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        if self.path == "/early":
            self.send_response_only(103)
            self.end_headers()
        word, _, where = self.path[1:].partition("?")
        self.send_response(int(word) if word.isdigit() else 200)
        if where:
            self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate that nobody has reason to believe."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody")])
    past = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, past, past + datetime.timedelta(1))
    path = tmp_path_factory.mktemp("tls") / "pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(params=["HTTP", "HTTPS"])
def web(request: pytest.FixtureRequest, certificate: Path) -> Iterator[tuple[str, str]]:
    """(port, whether TLS) of a real web server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    if request.param == "HTTPS":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield str(server.server_port), "yes" if request.param == "HTTPS" else "no"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("/200", ""),
        ("/204", ""),
        ("/301", ""),
        ("/399", ""),
        ("/399?/400", ""),
        ("/400", "HTTP status 400"),
        ("/503", "HTTP status 503"),
        ("/early", ""),
    ],
)
def test_http(web: tuple[str, str], path: str, verdict: str) -> None:
    assert attempt("http", "127.0.0.1", web[0], web[1], path) == verdict


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("/302?/204", ""),
        ("/307?/503", "HTTP status 503"),
        ("/301?404", "HTTP status 404"),  # relative to the path
        ("/308?http://192.0.2.1/", ""),  # another host: kubelet warns, and takes it
        ("/303?ftp://127.0.0.1/", ""),
        ("/301?http://127.0.0.1:99999/", ""),
        ("/302?/302?/302?/500", "HTTP status 500"),
    ],
)
def test_redirects(web: tuple[str, str], path: str, verdict: str) -> None:
    assert attempt("http", "127.0.0.1", web[0], web[1], path) == verdict


def test_a_redirect_to_another_port_and_one_without_end(web: tuple[str, str]) -> None:
    scheme = "https" if web[1] == "yes" else "http"

    def talk(connection: socket.socket) -> None:
        path = connection.recv(4096).split()[1]
        where = b"/again" if path == b"/again" else f"{scheme}://127.0.0.1:{web[0]}/418".encode()
        connection.sendall(b"HTTP/1.1 302 Found\r\nlocation: " + where + b"\r\n\r\n")

    with serving(talk) as port:
        assert attempt("http", "127.0.0.1", port, "no", "/") == "HTTP status 418"
        assert attempt("http", "127.0.0.1", port, "no", "/again") == "more than 10 redirects"


def test_http_headers(web: tuple[str, str]) -> None:
    Web.seen.clear()
    assert attempt("http", "127.0.0.1", web[0], web[1], "/", "Host", "shop.test", "X-A", "\u00e4") == ""
    (seen,) = Web.seen
    assert (seen["host"], seen["accept"], seen["user-agent"]) == ("shop.test", "*/*", "kube-probe/rktd")
    assert seen["x-a"].encode("latin-1").decode() == "\u00e4"


def test_tls_to_one_who_does_not_speak_it() -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")

    with serving(talk) as port:
        assert attempt("http", "127.0.0.1", port, "yes", "/").startswith("TLS: ")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"", "the connection was closed without an answer"),
        (b"HTTP/1.1 200", "the connection was closed without an answer"),
        (b"HTTP/1.0 200 OK\n", ""),
        (b"SSH-2.0-x\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 2000 OK\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1\r\n", "the answer is not HTTP"),
        (b"x" * 100000, "the answer is not HTTP"),
        (b"HTTP/1.1 100 Continue\r\n" + b"a: b\r\n" * 3000, "the answer's head is too long"),
    ],
    ids=["nothing", "half", "old", "other", "status", "no-status", "endless-line", "endless-head"],
)
def test_http_answers(answer: bytes, verdict: str) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    with serving(talk) as port:
        assert attempt("http", "127.0.0.1", port, "no", "/") == verdict


def test_bytes_that_come_one_by_one() -> None:
    talk = HttpTalk("a:1", "/", [])
    answer = b"HTTP/1.1 102 Wait\r\nA: b\r\n\r\nHTTP/1.1 404 No\r\n"
    verdicts = [talk.feed(bytes((byte,))) for byte in answer]
    assert (set(verdicts[:-1]), verdicts[-1]) == ({None}, "HTTP status 404")


def test_tcp() -> None:
    with serving(lambda c: None) as port:
        assert attempt("tcp", "127.0.0.1", port) == ""
    assert attempt("tcp", "127.0.0.1", port) == "cannot connect: connection refused"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def message(*payload: int) -> bytes:
    return b"\0" + len(payload).to_bytes(4, "big") + bytes(payload)


SETTINGS = frame(4, 0, 0)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (frame(1, 4, 1, b"\x88") + frame(0, 0, 1, message(8, 1)), ""),
        (frame(6, 0, 0, b"12345678") + frame(8, 0, 0, bytes(4)) + frame(0, 0, 1, message(8, 1)), ""),
        (frame(0, 8, 1, b"\x03" + message(8, 1) + b"\0\0\0"), ""),
        (frame(0, 0, 1, message(8, 1)[:3]) + frame(0, 0, 1, message(8, 1)[3:]), ""),
        (frame(0, 0, 1, message(8, 2)), "the status is NOT_SERVING"),
        (frame(0, 0, 1, message(8, 3)), "the status is SERVICE_UNKNOWN"),
        (frame(0, 0, 1, message()), "the status is UNKNOWN"),
        (frame(0, 0, 1, message(8, 9)), "the status is 9"),
        (frame(1, 5, 1, b"\x88"), "the server does not answer grpc.health.v1.Health/Check for this service"),
        (frame(3, 0, 1, bytes(4)), "the server ended the call"),
        (frame(7, 0, 0, bytes(8)), "the server ended the call"),
        (frame(0, 0, 1, b"\1" + message(8, 1)[1:]), "the answer is no HealthCheckResponse"),
        (frame(0, 0, 1, b"\0\xff\xff\xff\xff"), "the answer is no HealthCheckResponse"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer is not HTTP/2"),
        (frame(6, 0, 0, bytes(8)) * 5000, "the answer is too long"),
    ],
)
def test_grpc_answers(answer: bytes, verdict: str) -> None:
    talk = GrpcTalk("127.0.0.1:1", "")
    assert talk.feed((b"" if answer.startswith(b"HTTP") else SETTINGS) + answer) == verdict


def test_grpc_says_what_it_must() -> None:
    """To a server that reads the frames: preface, SETTINGS and their acknowledgement, the call, the service's name."""
    got = bytearray()

    def talk(connection: socket.socket) -> None:
        connection.sendall(SETTINGS)
        while frame(4, 1, 0) not in got:
            got.extend(connection.recv(4096))
        connection.sendall(frame(1, 4, 1, b"\x88") + frame(0, 0, 1, message(8, 1)))

    with serving(talk) as port:
        assert attempt("grpc", "127.0.0.1", port, "db") == ""
    assert got.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
    assert frame(0, 1, 1, message(10, 2, *b"db")) in got
    assert b"\x05:path\x1c/grpc.health.v1.Health/Check" in got


def notes(probe: prober.Probe, *attempts: tuple[float, str]) -> list[tuple[bool, bool, float]]:
    """(passed, lost, seconds until the next) after each attempt at a time."""
    found = []
    for now, reason in attempts:
        probe.began = now
        probe.note(reason, now)
        found.append((probe.passed, probe.lost, round(probe.due - now, 3)))
    return found


def test_thresholds() -> None:
    numbers = ["0", "10", "1", "2", "3", "-1"]
    probe = prober.Probe("liveness", "tcp", numbers, [])
    assert notes(probe, (0, "no"), (10, "no"), (20, "no")) == [(False, False, 10), (False, False, 10), (False, True, 10)]
    probe = prober.Probe("readiness", "tcp", numbers, [])
    assert notes(probe, (0, ""), (10, "no"), (20, ""), (30, "")) == [
        (False, False, 10),
        (False, False, 0.1),
        (False, False, 10),
        (True, False, 10),
    ]


def test_what_has_never_succeeded_is_tried_again_soon_without_counting() -> None:
    probe = prober.Probe("startup", "tcp", ["0", "1", "1", "1", "2", "-1"], [])
    assert notes(probe, (0, "no"), (0.1, "no"), (0.3, "no"), (0.7, "no"), (1, "no")) == [
        (False, False, 0.1),
        (False, False, 0.2),
        (False, False, 0.4),
        (False, False, 0.3),
        (False, True, 1),
    ]


def test_what_is_not_the_apps_fault_does_not_count() -> None:
    """As kubelet throws such a result away: neither failure nor success, and another try soon."""
    probe = prober.Probe("liveness", "enter", ["0", "10", "1", "1", "2", "-1"], [])
    trouble = prober.Trouble("no answer")
    assert notes(probe, (0, ""), (10, trouble), (11, trouble), (12, "no"), (22, trouble), (23, "no")) == [
        (True, False, 10),
        (True, False, 1),
        (True, False, 1),
        (True, False, 10),
        (True, False, 1),
        (True, True, 10),
    ]


def test_trouble_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens where exec probes are to be run: the app is left alone, however long that lasts."""
    told: list[str] = []
    monkeypatch.setattr(prober, "say", lambda level, text: told.append(text))
    monkeypatch.setattr(prober, "_ENTER_SOCKET", "/nonexistent/socket")
    app = prober.App("web", "Always", "15", "yes", "30", "no", "no")
    app.probes["liveness"] = probe = prober.Probe("liveness", "enter", ["0", "1", "1", "1", "1", "-1"], [])
    app.publish = lambda **_: None  # type: ignore[method-assign]
    loop = prober.Prober([app])
    for _ in range(4):
        loop._start(app, probe, time.monotonic())
    assert told == ["the liveness probe of app web cannot be done, which does not count: no such file or directory"]
    assert not app.ending
    probe.note("", time.monotonic())
    assert probe.troubles == 0


def test_stage2_and_the_prober_agree() -> None:
    app = stage2.App(
        "a", "/a", ("a",), (), "/", 0, 0, (), "SIGTERM", Confinement(()), checks=(stage2.Check(Probe("tcp", "startup", port=9)),)
    )
    pod = stage2.PodSettings("p", "OnFailure", 0, False, "/io")
    (found,) = prober.parse_config(stage2.render_probes(pod, (app,)))
    assert (found.name, found.restart, found.signal, found.has_default, found.grace, found.shared) == ("a", "OnFailure", 15, True, 1, False)
    assert found.probes["startup"].target == ["127.0.0.1", "9"]
    assert (prober.CONFIG, prober.STATUS_DIRECTORY) == (stage2.PROBES_FILE, stage2.STATUS_DIRECTORY)

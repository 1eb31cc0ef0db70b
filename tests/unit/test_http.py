# SPDX-License-Identifier: Apache-2.0
"""The HTTP client against a server of the test's own: what goes wrong with transfers, and where servers may lead."""

import hashlib
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("urllib3")

from rktd_units.errors import ImageError, TemporaryError
from rktd_units.images import http
from rktd_units.images.http import Client, Config, StatusError
from rktd_units.images.urls import GLOBAL, LINK_LOCAL, LOOPBACK, PRIVATE, reach_of_address
from tests.servers import serving

BODY = bytes(range(256)) * 1024
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
LIMIT = 1 << 20


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no news."""


class Server:
    """`answer` is called with the handler for each request; `seen` has the requests' headers."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.answer: Callable[[Any], None] = lambda handler: reply(handler, BODY)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5

            def do_GET(self) -> None:
                outer.seen.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                outer.answer(self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


def reply(handler: Any, body: bytes, status: int = 200, cut: int = -1, **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body if cut < 0 else body[:cut])
    handler.close_connection = cut >= 0


def resumable(handler: Any, *, tag: str, cut: int = -1) -> None:
    """As a good server: a part only if the validator is its own."""
    wanted = handler.headers.get("Range", "")
    if wanted and handler.headers.get("If-Range") == tag:
        first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        return reply(handler, BODY[first:], 206, cut, ETag=tag, Content_Range=f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")
    return reply(handler, BODY, 200, cut, ETag=tag)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "PAUSE", 0.001)
    server = Server()
    with serving(server.http):
        yield server


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


def download(client: Client, server: Server, path: Path, **options: Any) -> list[int]:
    """What progress was told."""
    told: list[int] = []
    options = {"limit": LIMIT, "size": len(BODY), "digest": DIGEST, **options}
    assert client.download(f"{server.url}/x", str(path), progress=lambda done, size: told.append(done), **options) == DIGEST
    assert path.read_bytes() == BODY
    return told


def test_resume(server: Server, client: Client, tmp_path: Path) -> None:
    server.answer = lambda handler: resumable(handler, tag='"a"', cut=100_000 if len(server.seen) < 3 else -1)
    told = download(client, server, tmp_path / "f")
    assert [(s.get("range"), s.get("if-range")) for s in server.seen] == [(None, None), ("bytes=100000-", '"a"'), ("bytes=200000-", '"a"')]
    assert told == sorted(told)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(lambda h: resumable(h, tag='"b"'), id="another file now"),
        pytest.param(lambda h: reply(h, b"x", 206, ETag='"a"', Content_Range="bytes 5-5/262144"), id="another part"),
        pytest.param(lambda h: reply(h, BODY[100_000:], 206, ETag='"b"', Content_Range="bytes 100000-262143/262144"), id="part of another"),
        pytest.param(lambda h: reply(h, BODY[100_000:], 206, ETag='"a"', Content_Range="bytes 100000-262143/300000"), id="another size"),
        pytest.param(lambda h: reply(h, b"", 416), id="no such part"),
    ],
)
def test_restart(server: Server, client: Client, tmp_path: Path, second: Callable[[Any], None]) -> None:
    def answer(handler: Any) -> None:
        if len(server.seen) == 2:
            second(handler)
        else:
            resumable(handler, tag='"a"', cut=100_000 if len(server.seen) == 1 else -1)

    server.answer = answer
    assert len(download(client, server, tmp_path / "f")) > 1


@pytest.mark.parametrize("tag", ["", 'W/"a"'], ids=["none", "weak"])
def test_without_a_strong_validator_there_is_no_resume(server: Server, client: Client, tmp_path: Path, tag: str) -> None:
    server.answer = lambda handler: reply(handler, BODY, cut=100_000 if len(server.seen) < 3 else -1, ETag=tag)
    assert 0 in download(client, server, tmp_path / "f")
    assert not any("range" in seen for seen in server.seen)


def test_starting_anew_is_no_progress(server: Server, client: Client, tmp_path: Path) -> None:
    """Else a server that always cuts at the same place would keep us busy for ever."""
    server.answer = lambda handler: reply(handler, BODY, cut=100_000)
    with pytest.raises(TemporaryError, match="100000 bytes read"):
        client.download(f"{server.url}/x", f"{tmp_path}/f", limit=LIMIT)
    assert len(server.seen) == 1 + http.TRIES - 1
    assert list(tmp_path.iterdir()) == []


def test_size_of_the_whole_is_told(server: Server, client: Client, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    client.download(f"{server.url}/x", str(tmp_path / "f"), limit=LIMIT, progress=lambda done, size: told.append((done, size)))
    assert {size for _, size in told} == {len(BODY)}
    assert told[-1] == (len(BODY), len(BODY))


def test_stall(server: Server, tmp_path: Path) -> None:
    """A server that says nothing more, and one that says a byte now and then."""
    client = Client(Config(stall=0.2))

    def answer(handler: Any) -> None:
        if len(server.seen) > 2:
            return resumable(handler, tag='"a"')
        handler.send_response(200)
        handler.send_header("ETag", '"a"')
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY[: 10 * len(server.seen)])
        for n in range(30):
            time.sleep(0.05)
            if len(server.seen) == 2:
                handler.wfile.write(BODY[20 + n : 21 + n])
        handler.close_connection = True
        return None

    server.answer = answer
    began = time.monotonic()
    download(client, server, tmp_path / "f")
    assert time.monotonic() - began < 3
    server.seen.clear()
    server.answer = lambda handler: time.sleep(0.5)
    with pytest.raises(TemporaryError, match=r"/x: Read timed out"):
        client.get(f"{server.url}/x", limit=1)


def test_chunked_and_cut(server: Server, client: Client, tmp_path: Path) -> None:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(BODY), BODY))
        handler.wfile.write(b"0\r\n\r\n" if len(server.seen) > 1 else b"5\r\nab")
        handler.close_connection = True

    server.answer = answer
    download(client, server, tmp_path / "f", size=-1)
    assert len(server.seen) == 2


def test_limits(server: Server, client: Client, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"http://127.0.0.1:\d+/x: the server sent more than 1000 bytes"):
        client.get(f"{server.url}/x?signature", limit=1000)
    with pytest.raises(ImageError, match="the server sent more than 1000 bytes"):
        client.download(f"{server.url}/x", f"{tmp_path}/f", limit=1000)
    with pytest.raises(ImageError, match=f"the server says it has {len(BODY)} bytes, it should have 7"):
        client.download(f"{server.url}/x", f"{tmp_path}/f", limit=LIMIT, size=7)
    with pytest.raises(ImageError, match=f"the server sent other bytes, {DIGEST}"):
        client.download(f"{server.url}/x", f"{tmp_path}/f", limit=LIMIT, digest="sha256:0")
    server.answer = lambda handler: reply(handler, b"", 206)
    with pytest.raises(ImageError, match="answered with a part that nobody asked for"):
        client.get(f"{server.url}/x", limit=LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_retry_after(server: Server, client: Client) -> None:
    later = formatdate(time.time() + 3, usegmt=True)
    server.answer = lambda handler: reply(handler, b"", 503, Retry_After=later) if len(server.seen) == 1 else reply(handler, b"ok")
    began = time.monotonic()
    assert client.get(f"{server.url}/x", limit=LIMIT).data == b"ok"
    assert 1.5 < time.monotonic() - began < 10
    assert http._parse_pause("Sun, 06 Nov 1994 08:49:37 GMT") == 0
    assert http._parse_pause("nonsense") == 0


def test_pauses_grow(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as long each time, give or take a third, so that many clients do not come back all at once."""
    pauses: list[float] = []
    monkeypatch.setattr(http, "PAUSE", 1.0)
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.answer = lambda handler: reply(handler, b"", 503)
    with pytest.raises(TemporaryError, match="answered 503"):
        client.get(f"{server.url}/x", limit=LIMIT)
    assert [0.7 <= pause / 2**count <= 1.3 for count, pause in enumerate(pauses)] == [True] * (http.TRIES - 1)
    assert len(server.seen) == http.TRIES


class Auth:
    """Accepted at the second try."""

    def __init__(self) -> None:
        self.value = ""

    def header(self) -> str:
        return self.value

    def renew(self, challenge: str, used: str) -> bool:
        self.value = "Basic secret"
        return challenge == "Basic realm=x"


def test_authorization_stays_with_its_host(server: Server, client: Client) -> None:
    other = Server()
    with serving(other.http):

        def answer(handler: Any) -> None:
            if "Authorization" not in handler.headers:
                reply(handler, b"", 401, WWW_Authenticate="Basic realm=x")
            elif handler.path == "/x":
                reply(handler, b"", 302, Location="/same")
            else:
                reply(handler, b"", 307, Location=f"{other.url}/other")

        server.answer = answer
        answered = client.get(f"{server.url}/x", limit=LIMIT, auth=Auth())
        assert (answered.data, answered.url) == (BODY, f"{other.url}/other")
        assert [(s["path"], s.get("authorization")) for s in server.seen] == [
            ("/x", None),
            ("/x", "Basic secret"),
            ("/same", "Basic secret"),
        ]
        assert [(s["path"], s.get("authorization")) for s in other.seen] == [("/other", None)]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("ftp://ex.org/", "is redirected to a bad URL: 'ftp://ex.org/'"),
        ("http://user:password@ex.org/", "is redirected to a bad URL: http://ex.org/: must not hold a user or password"),
        ("http://[::1/", "is redirected to a bad URL"),
        ("/x", "is redirected too often"),
    ],
)
def test_bad_redirects(server: Server, client: Client, location: str, message: str) -> None:
    server.answer = lambda handler: reply(handler, b"", 302, Location=location)
    with pytest.raises(ImageError, match=message):
        client.get(f"{server.url}/x", limit=LIMIT)


def test_a_form_is_not_redirected(server: Server, client: Client) -> None:
    server.answer = lambda handler: reply(handler, b"", 307, Location="/y")
    with pytest.raises(ImageError, match=r"/x: is redirected to ://"):
        client.post(f"{server.url}/x", {"refresh_token": "secret"}, limit=LIMIT)
    assert len(server.seen) == 1


@pytest.mark.parametrize("origin", ["https://93.184.216.34/", "https://ex.org/", "http://10.0.0.1/", "http://169.254.1.1/"])
def test_what_a_remote_server_names_is_no_nearer(server: Server, client: Client, origin: str) -> None:
    with pytest.raises(ImageError, match=r"a remote server leads to 127.0.0.1 \(this machine\), which is nearer to this host than itself"):
        client.get(f"{server.url}/x", limit=LIMIT, origin=origin)
    assert server.seen == []
    assert client.get(f"{server.url}/x", limit=LIMIT, origin="http://localhost:99/").data == BODY


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("93.184.216.34", GLOBAL),
        ("2606:2800:220:1::1", GLOBAL),
        ("10.0.0.1", PRIVATE),
        ("192.168.1.1", PRIVATE),
        ("100.64.0.1", PRIVATE),
        ("fd00::1", PRIVATE),
        ("224.0.0.1", PRIVATE),
        ("169.254.169.254", LINK_LOCAL),
        ("fe80::1%eth0", LINK_LOCAL),
        ("127.0.0.1", LOOPBACK),
        ("127.8.8.8", LOOPBACK),
        ("0.0.0.0", LOOPBACK),
        ("::1", LOOPBACK),
        ("::", LOOPBACK),
        ("::ffff:127.0.0.1", LOOPBACK),
        ("::ffff:169.254.169.254", LINK_LOCAL),
        ("64:ff9b::7f00:1", LOOPBACK),
        ("2002:a00:1::1", PRIVATE),
    ],
)
def test_nearness(address: str, reach: int) -> None:
    assert reach_of_address(address) == reach


def test_proxy(server: Server) -> None:
    proxies = {"http": server.url.replace("http://", "http://me:word@"), "no": "near.test"}
    with Client(Config(proxies=proxies)) as client:
        assert client.get("http://far.test/y", limit=LIMIT).data == BODY
        assert (server.seen[0]["path"], server.seen[0]["proxy-authorization"]) == ("http://far.test/y", "Basic bWU6d29yZA==")
        assert client.get(f"{server.url}/z", limit=LIMIT).data == BODY  # this machine never by the proxy
        assert server.seen[1]["path"] == "/z"
        assert client._find_proxy(urlsplit("http://near.test/")) == ""
        server.answer = lambda handler: reply(handler, b"", 302, Location="http://169.254.169.254/latest")
        with pytest.raises(ImageError, match=r"leads to 169.254.169.254, which is nearer"):
            client.get("http://far.test/y", limit=LIMIT)


def test_status(server: Server, client: Client) -> None:
    server.answer = lambda handler: reply(handler, b'{"errors":[{"message":"no\\n\\u001b[31m"}]}', 403)
    with pytest.raises(StatusError, match=r"/x: answered 403 Forbidden: no \?\[31m$") as caught:
        client.get(f"{server.url}/x", limit=LIMIT)
    assert (caught.value.status, caught.value.detail) == (403, "no ?[31m")
    server.answer = lambda handler: reply(handler, b"[" * 100_000, 410)
    with pytest.raises(http.AbsentError, match=r"answered 410 Gone$"):
        client.get(f"{server.url}/x", limit=LIMIT)


def test_not_tls(server: Server, client: Client) -> None:
    server.http.RequestHandlerClass.rbufsize = 1  # type: ignore[attr-defined]
    with pytest.raises(TemporaryError, match=r"does not speak TLS|Connection"):
        client.get(server.url.replace("http:", "https:") + "/x", limit=LIMIT)


@pytest.mark.parametrize("url", ["", "x", "file:///etc/passwd", "http://", "http://a b/", "http://a/\x1b", "http://me:word@ex.org/"])
def test_bad_urls(client: Client, url: str) -> None:
    with pytest.raises(ImageError, match=r"must be an http or https URL|must not hold a user"):
        client.get(url, limit=1)

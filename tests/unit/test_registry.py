# SPDX-License-Identifier: Apache-2.0
"""The registry client, against a server of the test's own on the loopback interface."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

pytest.importorskip("urllib3")

from rktd_units.errors import ImageError, TemporaryError, TooLargeError
from rktd_units.images import http, manifest, registry, urls
from rktd_units.images.reference import parse_reference
from tests.image_cases import MadeImage, make_image, make_index, sha256
from tests.servers import serving

LIMIT = 1 << 20


class Server:
    """Answers from `pages` (path -> body); `faults` (path -> statuses) come first; a wanted `token` is given to whoever asks."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.faults: dict[str, list[int]] = {}
        self.cut: dict[str, int] = {}  # path -> how often the body is cut in half
        self.token = ""
        self.seen: list[str] = []
        self.forms: list[dict[str, list[str]]] = []
        self.heads = True  # whether a HEAD is answered
        self.meeting: threading.Barrier | None = None  # of requests for blobs
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def do_POST(self) -> None:
                outer.forms.append(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.http.server_port}"

    def answer(self, request: Any) -> None:
        path = request.path
        if path != "/v2/":
            self.seen.append(path if request.command == "GET" else f"{request.command} {path}")
        status, body, headers = 200, self.pages.get(path), {}
        if self.meeting and "/blobs/" in path:
            self.meeting.wait(10)
        if path.startswith("/token"):
            body = json.dumps({"token" if "?" in path else "access_token": self.token}).encode()
        elif self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            status, headers["WWW-Authenticate"] = 401, f'Bearer realm="http://{self.host}/token",service="s",scope="repository:a/b:pull"'
        elif self.faults.get(path):
            status = self.faults[path].pop(0)
        elif body is None:
            status = 404
        elif request.command == "HEAD":
            status = 200 if self.heads else 405
            headers["Docker-Content-Digest"] = sha256(body)
        if status != 200:
            body = json.dumps({"errors": [{"code": "X", "message": "said so"}]}).encode()
        assert body is not None
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        if self.cut.get(path):
            self.cut[path] -= 1
            body, request.close_connection = body[: len(body) // 2], True
        if request.command != "HEAD":
            request.wfile.write(body)

    def publish(self, image: MadeImage, tag: str = "t", repository: str = "a/b") -> None:
        base = f"/v2/{repository}"
        self.pages |= {f"{base}/blobs/{digest}": data for digest, data in image.blobs.items()}
        self.pages[f"{base}/manifests/{tag}"] = self.pages[f"{base}/manifests/{image.digest}"] = image.manifest


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "PAUSE", 0.001)
    server = Server()
    with serving(server.http):
        yield server


def pull(server: Server, out: Path, name: str = ":t", have: tuple[str, ...] = (), limit: int = LIMIT, space: int = LIMIT) -> str:
    with http.Client() as client:
        place = registry.Registry(registry.Endpoint(server.host, "a/b"), client)
        return registry.pull_image(parse_reference(f"{server.host}/a/b{name}"), [place], have, str(out), limit, space=space)


def names(path: Path) -> set[str]:
    return {f"sha256:{p.name}" for p in path.iterdir()}


def test_pull(server: Server, tmp_path: Path) -> None:
    image = make_image({"a": b"1"}, {"b": b"2"})
    server.publish(image)
    assert pull(server, tmp_path) == image.digest
    assert names(tmp_path) == set(image.blobs)
    assert all((tmp_path / digest[7:]).read_bytes() == data for digest, data in image.blobs.items())


def test_pull_by_digest_of_an_index(server: Server, tmp_path: Path) -> None:
    image, other, host = make_image({"a": b"1"}), make_image({"a": b"2"}), manifest.host_platform()
    index = make_index((other, {"os": "linux", "architecture": "m68k"}), (image, {"os": "linux", "architecture": host.architecture}))
    server.publish(image)
    server.pages[f"/v2/a/b/manifests/{sha256(index)}"] = index
    assert pull(server, tmp_path, f"@{sha256(index)}") == sha256(index)
    assert names(tmp_path) == {*image.blobs, sha256(index)}


def test_blobs_that_are_there_are_not_asked_for(server: Server, tmp_path: Path) -> None:
    image = make_image()
    server.publish(image)
    pull(server, tmp_path, have=tuple(image.blobs))
    assert len(server.seen) == 2
    assert len(names(tmp_path)) == 2


def test_token(server: Server, tmp_path: Path) -> None:
    server.publish(make_image())
    server.token = "secret"
    pull(server, tmp_path)
    assert len(names(tmp_path)) == 3


def test_identity_token(server: Server, tmp_path: Path) -> None:
    """An OAuth 2 refresh token is never shown to the registry, and goes to its token server in a form (distribution-spec, auth/oauth)."""
    image = make_image()
    server.publish(image)
    server.token = "secret"
    credential = registry.Credential("", "", "refresh", "auth.json")
    with http.Client() as client:
        place = registry.Registry(registry.Endpoint(server.host, "a/b", credential=credential), client)
        registry.pull_image(parse_reference(f"{server.host}/a/b:t"), [place], (), str(tmp_path), LIMIT)
    assert names(tmp_path) == set(image.blobs)
    more = {"grant_type": ["refresh_token"], "refresh_token": ["refresh"], "client_id": ["rktd-units"]}
    assert server.forms[0] == {"service": ["s"], "scope": ["repository:a/b:pull"], **more}
    assert "POST /token" in server.seen


def test_blobs_are_fetched_at_the_same_time(server: Server, tmp_path: Path) -> None:
    """The server sends none before all have been asked for."""
    image = make_image({"a": b"1"}, {"b": b"2"}, {"c": b"3"})
    server.publish(image)
    server.meeting = threading.Barrier(4)
    assert pull(server, tmp_path) == image.digest
    assert names(tmp_path) == set(image.blobs)


@pytest.mark.parametrize("heads", [True, False])
def test_tag_that_has_not_moved(server: Server, tmp_path: Path, heads: bool) -> None:
    """Only its digest is asked for, where the registry tells that."""
    image, server.heads = make_image(), heads
    server.publish(image)
    reference = parse_reference(f"{server.host}/a/b:t")
    with http.Client() as client:
        place = registry.Registry(registry.Endpoint(server.host, "a/b"), client)
        assert registry.pull_image(reference, [place], (), str(tmp_path), LIMIT, known=image.digest) == image.digest
        assert registry.find_manifest(reference, [place], str(tmp_path), (image.digest, "sha256:x")) == (
            "sha256:x" if heads else image.digest
        )
        assert names(tmp_path) == (set() if heads else set(image.blobs))
        assert set(server.seen) == {"HEAD /v2/a/b/manifests/t"} if heads else "/v2/a/b/manifests/t" in server.seen
        moved = make_image({"moved": b"1"})
        server.publish(moved)
        assert registry.pull_image(reference, [place], (), str(tmp_path), LIMIT, known=image.digest) == moved.digest
        assert registry.find_manifest(reference, [place], str(tmp_path), (image.digest, "sha256:x")) == moved.digest


def test_referrers(server: Server) -> None:
    """By the API, or by the tag that stands for it, whatever the registry says that it does not know the path."""
    digest = "sha256:" + "1" * 64
    server.pages[f"/v2/a/b/manifests/sha256-{'1' * 64}"] = make_index()
    with http.Client() as client:
        place = registry.Registry(registry.Endpoint(server.host, "a/b"), client)
        for status in (400, 404, 405, 406, 410):
            server.faults[f"/v2/a/b/referrers/{digest}"] = [status]
            assert place.referrers(digest) == make_index()
        server.faults[f"/v2/a/b/referrers/{digest}"] = [403]
        with pytest.raises(ImageError, match="refuses anonymous access"):
            place.referrers(digest)


def test_faults_that_pass(server: Server, tmp_path: Path) -> None:
    image = make_image()
    server.publish(image)
    blob = f"/v2/a/b/blobs/{list(image.blobs)[-1]}"
    server.faults = {"/v2/a/b/manifests/t": [503, 429]}
    server.cut = {blob: 2}
    assert pull(server, tmp_path) == image.digest
    assert names(tmp_path) == set(image.blobs)


def test_fault_that_stays(server: Server, tmp_path: Path) -> None:
    server.faults = {"/v2/a/b/manifests/t": [500] * 10}
    with pytest.raises(TemporaryError, match=r"answered 500 .*: said so"):
        pull(server, tmp_path)


@pytest.mark.parametrize(
    ("status", "match"),
    [
        (404, r"127.0.0.1:\d+/a/b:t: 127.0.0.1:\d+/a/b: has no image t: said so"),
        (403, "refuses anonymous access.*: said so"),
        (400, "answered 400"),
    ],
)
def test_fault_for_good(server: Server, tmp_path: Path, status: int, match: str) -> None:
    server.faults = {"/v2/a/b/manifests/t": [status]}
    with pytest.raises(ImageError, match=match):
        pull(server, tmp_path)
    assert len(server.seen) == 1


def test_refused_token(server: Server, tmp_path: Path) -> None:
    server.token = "bad\ntoken"
    with pytest.raises(ImageError, match="gave no usable token"):
        pull(server, tmp_path)


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE", 0.001)
    with pytest.raises(TemporaryError, match=r"127.0.0.1:1/v2/: Failed to establish a new connection: \[Errno 111\]"):
        registry.Registry(registry.Endpoint("127.0.0.1:1", "a"), http.Client()).manifest("t")


def test_no_more_is_fetched_than_there_is_space_for(server: Server, tmp_path: Path) -> None:
    image = make_image({"a": b"1"}, {"b": b"2"})
    server.publish(image)
    layers = list(image.blobs)[2:]
    size = sum(len(image.blobs[digest]) for digest in layers)
    with pytest.raises(TooLargeError, match=f": {size} bytes of it must be fetched"):
        pull(server, tmp_path, space=size - 1)
    pull(server, tmp_path, have=tuple(layers[:1]), space=len(image.blobs[layers[1]]))


def test_other_bytes(server: Server, tmp_path: Path) -> None:
    image = make_image()
    server.publish(image)
    digest = list(image.blobs)[-1]
    server.pages[f"/v2/a/b/blobs/{digest}"] = bytes(len(image.blobs[digest]))
    with pytest.raises(ImageError, match=f"{digest}: the server sent other bytes"):
        pull(server, tmp_path)
    server.pages[f"/v2/a/b/manifests/{image.digest}"] = b"{}"
    with pytest.raises(ImageError, match="the registry sent other bytes"):
        pull(server, tmp_path, f"@{image.digest}")


def test_sizes(server: Server, tmp_path: Path) -> None:
    image = make_image()
    server.publish(image)
    with pytest.raises(ImageError, match="the limit is 10"):
        pull(server, tmp_path, limit=10)
    digest = list(image.blobs)[-1]
    server.pages[f"/v2/a/b/blobs/{digest}"] += b"more"
    with pytest.raises(ImageError, match="the server says it has 110 bytes, it should have 106"):
        pull(server, tmp_path)
    server.pages["/v2/a/b/manifests/t"] = b" " * (manifest.DOCUMENT_MAX + 1)
    with pytest.raises(ImageError, match="sent more than 4194304 bytes"):
        pull(server, tmp_path)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [(host, True) for host in ("127.0.0.1:5000", "127.9.9.9", "[::1]:5000", "localhost", "localhost:1")]
    + [(host, False) for host in ("128.0.0.1", "localhost.ex.org", "x.localhost:1", "localhost.")]
    + [(host, False) for host in ("ex.org:5000", "127.0.0.1.ex.org", "10.0.0.1")],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert urls.is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("text", "challenges"),
    [
        (
            'Bearer realm="https://a/t",service=reg, scope="repository:x:pull,push"',
            {"bearer": {"realm": "https://a/t", "service": "reg", "scope": "repository:x:pull,push"}},
        ),
        ('Basic realm="x \\"y\\"", Bearer realm=z', {"basic": {"realm": 'x "y"'}, "bearer": {"realm": "z"}}),
        ("Negotiate, Basic realm=x , charset=utf-8", {"negotiate": {}, "basic": {"realm": "x", "charset": "utf-8"}}),
        ('Bearer realm="unfinished', {"bearer": {"realm": "unfinished"}}),
        ("NTLM abc==", {"ntlm": {}, "abc": {}, "=": {}}),
        ("", {}),
        (",,= =", {"=": {}}),
    ],
)
def test_challenges(text: str, challenges: dict[str, dict[str, str]]) -> None:
    assert registry.parse_challenges(text) == challenges

# SPDX-License-Identifier: Apache-2.0
"""What a probe says to a server and how it takes the answer: HTTP/1.1, and gRPC's health check. Bytes in, bytes out; no I/O.

The server is hostile. A talk keeps a few kilobytes at most, whatever comes. It ends with a verdict: "" is a success, a text says what is
wrong; None while it goes on.
"""

_HTTP_HEAD_MAX = 8192
_REDIRECTS = (301, 302, 303, 307, 308)
_FRAME_MAX = 16384  # SETTINGS_MAX_FRAME_SIZE at its default, RFC 9113, 6.5.2
_GRPC_MAX = 65536  # of everything; the default window, too
_MESSAGE_MAX = 4096
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_STATUS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}  # grpc/health/v1/health.proto


class HttpTalk:
    """GET; the status line is all that counts: 200 to 399 is a success. `location` is where a redirect leads."""

    def __init__(self, authority: str, path: str, headers: list[tuple[str, str]]) -> None:
        given = {name.lower() for name, _ in headers}
        defaults = (("Host", authority), ("User-Agent", "kube-probe/rktd"), ("Accept", "*/*"), ("Connection", "close"))
        lines = [f"GET {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (*(d for d in defaults if d[0].lower() not in given), *headers)]
        self.outgoing = ("\r\n".join(lines) + "\r\n\r\n").encode()
        self._seen = b""
        self.location = ""

    def feed(self, data: bytes) -> str | None:
        """Takes what has come."""
        self._seen += data
        while True:
            line, is_whole, _ = self._seen.partition(b"\n")
            if not is_whole:
                return None if len(self._seen) <= _HTTP_HEAD_MAX else "the answer is not HTTP"
            words = line.split(None, 2)
            if not line.startswith(b"HTTP/1.") or len(words) < 2 or len(words[1]) != 3 or not words[1].isdigit():
                return "the answer is not HTTP"
            status = int(words[1])
            if status in _REDIRECTS:
                return self._take_location()
            if not 100 <= status < 200:
                return "" if 200 <= status < 400 else f"HTTP status {status}"
            _, is_whole, rest = self._seen.partition(b"\r\n\r\n")  # an interim response, such as 103: the real one comes
            if not is_whole:
                return None if len(self._seen) <= _HTTP_HEAD_MAX else "the answer's head is too long"
            self._seen = rest

    def _take_location(self) -> str | None:
        head, is_whole, _ = self._seen.replace(b"\r\n", b"\n").partition(b"\n\n")
        if not is_whole:
            return None if len(self._seen) <= _HTTP_HEAD_MAX else "the answer's head is too long"
        for line in head.split(b"\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"location":
                self.location = value.strip().decode("latin-1")
        return ""

    def end(self) -> str:
        """The server has closed the connection."""
        return "the connection was closed without an answer"


def redirected(target: list[str], location: str) -> list[str] | None:
    """A request's target (host, port, tls, path, headers...) after a redirect; None where that leads to another host, or nowhere."""
    from urllib.parse import urljoin, urlsplit  # 1 MB, for apps that redirect only

    host, port, tls, path, *headers = target
    name = f"[{host}]" if ":" in host else host
    try:
        url = urlsplit(urljoin(f"{'https' if tls == 'yes' else 'http'}://{name}:{port}{path}", location))
        number = url.port or {"http": 80, "https": 443}[url.scheme]
    except (ValueError, KeyError):
        return None
    if url.hostname != host:
        return None
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return [host, str(number), "yes" if url.scheme == "https" else "no", path.replace(" ", "%20"), *headers]


class GrpcTalk:
    """grpc.health.v1.Health/Check: a success is the message SERVING. Of headers is read only whether the stream ends with them."""

    def __init__(self, authority: str, service: str) -> None:
        name = service.encode()
        request = b"\x0a" + _varint(len(name)) + name if name else b""
        fields = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "kube-probe/rktd"),
        )
        # Literal fields without indexing, RFC 7541, 6.2.2; no string here has 127 bytes.
        block = b"".join(b"\0" + bytes((len(k),)) + k.encode() + bytes((len(v),)) + v.encode() for k, v in fields)
        body = b"\0" + len(request).to_bytes(4, "big") + request
        self.outgoing = _PREFACE + _frame(_SETTINGS, 0, 0) + _frame(_HEADERS, _END_HEADERS, 1, block) + _frame(_DATA, _END_STREAM, 1, body)
        self._seen = b""
        self._total = 0
        self._message = b""

    def feed(self, data: bytes) -> str | None:
        """Takes what has come; what is to be sent in turn is added to `outgoing`."""
        self._total += len(data)
        if self._total > _GRPC_MAX:
            return "the answer is too long"
        self._seen += data
        while len(self._seen) >= 9:
            length = int.from_bytes(self._seen[:3], "big")
            if length > _FRAME_MAX:
                return "the answer is not HTTP/2"
            if len(self._seen) < 9 + length:
                return None
            kind, flags, stream = self._seen[3], self._seen[4], int.from_bytes(self._seen[5:9], "big") & 0x7FFFFFFF
            payload, self._seen = self._seen[9 : 9 + length], self._seen[9 + length :]
            verdict = self._take(kind, flags, stream, payload)
            if verdict is not None:
                return verdict
        return None

    def end(self) -> str:
        return "the connection was closed without an answer"

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> str | None:
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self.outgoing += _frame(kind, _ACK, 0, payload if kind == _PING else b"")
        elif kind == _GOAWAY or (kind == _RESET and stream == 1):
            return "the server ended the call"
        elif kind == _DATA and stream == 1:
            self._message += payload[1 : len(payload) - payload[0]] if flags & _PADDED and payload else payload
            verdict = _judge(self._message)
            if verdict is not None:
                return verdict
        if kind in (_DATA, _HEADERS) and stream == 1 and flags & _END_STREAM:
            return "the server does not answer grpc.health.v1.Health/Check for this service"
        return None


def _judge(message: bytes) -> str | None:
    """A length-prefixed HealthCheckResponse, or the beginning of one."""
    length = int.from_bytes(message[1:5], "big")
    if length > _MESSAGE_MAX or len(message) > _MESSAGE_MAX + 5 or message[:1] not in (b"", b"\0"):
        return "the answer is no HealthCheckResponse"
    if len(message) < 5 or len(message) < 5 + length:
        return None
    status = message[6] if length >= 2 and message[5] == 0x08 else 0  # field 1, a varint; every value of the enumeration is one byte
    return "" if status == 1 else f"the status is {_STATUS.get(status, status)}"


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes((number & 127 | 128,))
        number >>= 7
    return out + bytes((number,))

# SPDX-License-Identifier: Apache-2.0
"""A reverse proxy that misbehaves: `faulty_proxy.py ADDRESS PORT UPSTREAM DIRECTORY`. Runs inside the testbed, standard library only.

It is a forward proxy, too: it connects whom CONNECT names, and what is asked by a whole URL UPSTREAM answers.

DIRECTORY/faults.json is a list of objects, read at each request; the first whose `path` (a regular expression) fits and whose `times` are
not used up is done, counting in DIRECTORY/used. Keys: `status`, `headers` (replace the upstream's), `body`, `cut` (close after so many
bytes of the body), `stall` (say nothing for so many seconds before that), `rate` (bytes a second), `flip` (change that byte), `token`
(demand that bearer token, which /token gives to the login `user:word`). DIRECTORY/log gets a line of JSON per request, {"method", "path",
"range", "authorization", "status", "sent", "time"}, where the authorization of CONNECT is the proxy's own, and DIRECTORY/connections a
dot each.
"""

import base64
import http.client
import json
import re
import select
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOCK = threading.Lock()
HOP = ("connection", "transfer-encoding", "keep-alive", "content-length")


def find_fault(directory: Path, path: str) -> dict[str, Any]:
    with LOCK:
        faults = json.loads((directory / "faults.json").read_text()) if (directory / "faults.json").exists() else []
        used_file = directory / "used"
        used = json.loads(used_file.read_text()) if used_file.exists() else {}
        for index, fault in enumerate(faults):
            if re.search(fault["path"], path) and used.get(str(index), 0) < fault.get("times", 1 << 30):
                used[str(index)] = used.get(str(index), 0) + 1
                used_file.write_text(json.dumps(used))
                return dict(fault)
    return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: str
    directory: Path

    def setup(self) -> None:
        with LOCK, (self.directory / "connections").open("a") as file:
            file.write(".")
        super().setup()

    def do_GET(self) -> None:
        fault = find_fault(self.directory, self.path)
        status, headers, body = self.answer(fault)
        if "flip" in fault:
            changed = bytearray(body)
            changed[fault["flip"]] ^= 1
            body = bytes(changed)
        headers = {"Content-Length": str(len(body)), **headers, **fault.get("headers", {})}
        sent = body[: fault.get("cut", len(body))]
        self.record(status, len(sent))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send(sent, fault.get("rate", 0))
        time.sleep(fault.get("stall", 0))
        self.close_connection = len(sent) != int(headers["Content-Length"])

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            self.record(200, 0)
            self.send_response(200)
            self.end_headers()
            peers = {self.connection: upstream, upstream: self.connection}
            data = b"all"
            while data:
                for end in select.select(peers, [], [])[0]:
                    data = end.recv(1 << 16)
                    peers[end].sendall(data)
        self.close_connection = True

    def send(self, body: bytes, rate: int) -> None:
        step = rate // 10 or len(body) or 1
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            self.wfile.flush()
            time.sleep(0.1 if rate else 0)

    def answer(self, fault: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        authorization = self.headers.get("Authorization", "")
        if self.path.startswith("/token"):
            if authorization != f"Basic {base64.b64encode(b'user:word').decode()}":
                return 401, {}, b"{}"
            return 200, {}, json.dumps({"token": fault["token"]}).encode()
        if "token" in fault and authorization != f"Bearer {fault['token']}":
            realm = f"http://{self.headers['Host']}/token"
            return 401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="test",scope="repository:x:pull"'}, b"{}"
        if "status" in fault:
            return fault["status"], {}, fault.get("body", "{}").encode()
        connection = http.client.HTTPConnection(self.upstream)
        passed = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization", "connection")}
        connection.request("GET", self.path, headers=passed)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        body = fault["body"].encode() if "body" in fault else body
        return response.status, {k: v for k, v in response.getheaders() if k.lower() not in HOP}, body

    def record(self, status: int, sent: int) -> None:
        line = {
            "method": self.command,
            "path": self.path,
            "range": self.headers.get("Range", ""),
            "authorization": self.headers.get("Proxy-Authorization" if self.command == "CONNECT" else "Authorization", ""),
            "status": status,
            "sent": sent,
            "time": time.time(),
        }
        with LOCK, (self.directory / "log").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


def main() -> None:
    address, port, Handler.upstream, directory = sys.argv[1:]
    Handler.directory = Path(directory)
    Handler.directory.mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer((address, int(port)), Handler)
    server.serve_forever()


if __name__ == "__main__":
    main()

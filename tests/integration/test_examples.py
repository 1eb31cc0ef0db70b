# SPDX-License-Identifier: Apache-2.0
"""docs/examples: each pod, started as its file has it with an image that a drop-in names, made of Debian's packages, works."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.pods import Pods

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
POSTGRES = {"Env": ["PATH=/usr/lib/postgresql/17/bin:/bin:/usr/bin"], "StopSignal": "SIGINT"}
NGINX = {"Cmd": ["/usr/sbin/nginx", "-e", "stderr", "-c", "/config/nginx.conf"]}
COLLECTOR = """
import socketserver, sys
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            print(line.decode(), end="")
socketserver.TCPServer(("10.99.0.1", 5170), Handler).serve_forever()
"""


class Examples:
    """Puts example files where pod files are."""

    def __init__(self, pods: Pods) -> None:
        self.pods = pods

    def install(self, name: str, overlay: str) -> None:
        """The file, byte for byte, and a drop-in with the spec that a machine of its own has. systemd has nothing to say of its units."""
        text = (EXAMPLES / f"{name}.yaml").read_text()
        self.pods.bed.write(f"/etc/pods/{name}.yaml", text)
        self.pods.bed.write(f"/etc/pods/{name}.yaml.d/50-here.yaml", overlay)
        done = self.pods.bed.run("podctl", "check", f"/etc/pods/{name}.yaml")
        assert (done.stdout, done.stderr) == ("", "")
        self.pods.verify(name)

    def curl(self, url: str, *options: str) -> str:
        return self.pods.bed.run("curl", "-s", "--max-time", "10", *options, url, check=False).stdout


@pytest.fixture
def examples(pods: Pods) -> Iterator[Examples]:
    yield Examples(pods)
    pods.clean()
    pods.bed.sh("for v in $(podctl volume list --no-legend | awk '{print $1}'); do podctl volume rm --force $v; done")


def wait_for(what: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_web(examples: Examples) -> None:
    """Pages, and each request at the collector, the last one before the stop, too."""
    pods = examples.pods
    nginx = pods.make_package_image("nginx", "nginx-common", config=NGINX)
    examples.install(
        "web",
        f"""
spec:
  initContainers: [{{name: shipper, image: "{pods.image}", env: [{{name: COLLECTOR, value: 10.99.0.1}}]}}]
  containers: [{{name: nginx, image: "{nginx}"}}]
""",
    )
    bed = pods.bed
    bed.sh("ip address replace 10.99.0.1/32 dev lo")
    bed.run("systemd-run", "--quiet", "--unit=collector", "python3", "-u", "-c", COLLECTOR)
    try:
        pods.start("web")
        pods.verify_inside("web")
        assert "It runs" in examples.curl("http://127.0.0.1/")
        assert examples.curl("http://127.0.0.1/nothing", "-o", "/dev/null", "-w", "%{http_code}") == "404"
        pods.stop("web")
        requests = [json.loads(entry["MESSAGE"]) for entry in bed.journal("-u", "collector") if entry["MESSAGE"].startswith("{")]
        assert [(r["request"], r["status"]) for r in requests] == [("GET / HTTP/1.1", 200), ("GET /nothing HTTP/1.1", 404)]
    finally:
        bed.sh("systemctl stop collector; ip address del 10.99.0.1/32 dev lo", check=False)


def test_postgres(examples: Examples) -> None:
    """The password is a credential; data are there after a restart."""
    pods = examples.pods
    image = pods.make_package_image("postgresql-17", "postgresql-client-17", "tzdata", "libc-bin", config=POSTGRES)
    examples.install("postgres", f'spec: {{containers: [{{name: postgres, image: "{image}"}}]}}\n')
    pods.bed.sh(
        "mkdir -p /etc/credstore.encrypted; "
        "printf secret123 | systemd-creds encrypt --name=postgres@password - /etc/credstore.encrypted/postgres@password"
    )

    def ask(query: str, password: str = "secret123") -> str:
        words = ["env", f"PGPASSWORD={password}", "/usr/lib/postgresql/17/bin/psql", "-h", "127.0.0.1", "-U", "owner", "-d", "postgres"]
        return pods.bed.run(*words, "-qAtc", query, check=False).stdout.strip()

    try:
        pods.start("postgres")
        pods.verify_inside("postgres")
        assert ask("create table t (x text); insert into t values ('kept'); select x from t") == "kept"
        assert ask("select 1", "wrong") == ""
        pods.bed.run("systemctl", "restart", "pod@postgres", timeout=60)
        assert ask("select x from t") == "kept"
    finally:
        pods.bed.run("rm", "-f", "/etc/credstore.encrypted/postgres@password")


def test_visits(examples: Examples) -> None:
    """Migrated once, counted over a restart; when it hangs, the liveness probe has it started again."""
    pods = examples.pods
    python = pods.make_package_image("python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib")
    overlay = '{{name: {}, image: "' + python + '"}}'
    examples.install("visits", f"spec:\n  initContainers: [{overlay.format('migrate')}]\n  containers: [{overlay.format('app')}]\n")
    pods.start("visits")
    pods.verify_inside("visits")
    assert [examples.curl("http://127.0.0.1:8000/a") for _ in range(2)] == ["1\n", "2\n"]
    pods.bed.run("systemctl", "restart", "pod@visits", timeout=60)
    assert examples.curl("http://127.0.0.1:8000/a") == "3\n"
    migrations = pods.bed.journal("-u", "pod@visits", "-t", "migrate", f"--after-cursor={pods.cursor}")
    assert [entry["MESSAGE"][-1] for entry in migrations if "version" in entry["MESSAGE"]] == ["0", "1"]
    examples.curl("http://127.0.0.1:8000/hang")
    wait_for(lambda: pods.bed.run("systemctl", "-M", "visits", "show", "app", "--property=NRestarts").stdout == "NRestarts=1\n")
    wait_for(lambda: examples.curl("http://127.0.0.1:8000/a") == "4\n")


def test_notes(examples: Examples) -> None:
    """The first connection starts the pod; it stops when it is idle."""
    pods = examples.pods
    overlay = f"""
metadata: {{annotations: {{systemd.io/idle-stop: 1s}}}}
spec: {{containers: [{{name: server, image: "{pods.image}"}}]}}
"""
    examples.install("notes", overlay)
    pods.bed.write("/srv/notes/index.html", "remember the milk\n")
    pods.bed.run("systemctl", "daemon-reload")
    pods.bed.run("systemctl", "start", "pod@notes.socket")
    try:
        assert pods.show("notes", "ActiveState")["ActiveState"] == "inactive"
        assert examples.curl("http://127.0.0.1:8088/") == "remember the milk\n"
        assert pods.show("notes", "ActiveState")["ActiveState"] == "active"
        pods.wait_state("notes", "inactive")
        assert examples.curl("http://127.0.0.1:8088/") == "remember the milk\n"
    finally:
        pods.bed.run("systemctl", "stop", "pod@notes.socket")


def test_no_example_is_left_out() -> None:
    elsewhere = (EXAMPLES.parents[1] / "tests/xen/test_examples.py").read_text()
    names = {path.stem for path in EXAMPLES.glob("*.yaml") if f"def test_{path.stem}" not in elsewhere}
    assert [name for name in sorted(names) if f"test_{name}" not in globals()] == []

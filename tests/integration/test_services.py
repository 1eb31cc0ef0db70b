# SPDX-License-Identifier: Apache-2.0
"""Servers that people run, from Debian's own packages: nginx in front of a Python program, PostgreSQL with a Secret and a claim."""

import base64
import json
from typing import Any

import pytest

from tests.integration.pods import Pods
from tests.integration.test_network import inside

PASSWORD = "correct horse, 'battery'"
# What an image of a server brings along, docker-entrypoint.sh.
POSTGRES = (
    "[ -s $PGDATA/PG_VERSION ] || initdb --username=$POSTGRES_USER --pwfile=/secret/password --auth=scram-sha-256 --no-locale -E UTF8 "
    ">/dev/null && exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c hba_file=/config/pg_hba.conf -c jit=off"
)
NGINX = """
daemon off; error_log stderr; pid /tmp/nginx.pid;
events {}
http {
  access_log /dev/stdout; client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u;
  scgi_temp_path /tmp/s;
  server { listen 80; location /program/ { proxy_pass http://program:8000/; proxy_set_header X-Client $remote_addr; }
    location / { root /pages; } }
}
"""
PROGRAM = """
import http.server, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(f"program on {socket.gethostname()} for {self.headers['X-Client']}".encode())
http.server.HTTPServer(("", 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def postgres(pods_session: Pods) -> str:
    """An image of postgresql-17, its programs in PATH."""
    config = {"Env": ["PATH=/usr/lib/postgresql/17/bin:/bin:/usr/bin"], "StopSignal": "SIGINT"}
    return pods_session.make_package_image("postgresql-17", "postgresql-client-17", "tzdata", "libc-bin", config=config)


def write_documents(pods: Pods, name: str, *documents: dict[str, Any]) -> None:
    pods.bed.write(f"/etc/pods/{name}.yaml", "\n---\n".join(json.dumps(document, indent=1) for document in documents))


def postgres_documents(image: str) -> tuple[dict[str, Any], ...]:
    container = {
        "name": "postgres",
        "image": image,
        "command": ["sh", "-c", POSTGRES.replace("$", "$$")],
        "env": [{"name": "PGDATA", "value": "/data/17"}, {"name": "POSTGRES_USER", "value": "owner"}],
        "ports": [{"containerPort": 5432, "hostPort": 5432}],
        "volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in ("data", "secret", "config", "tmp")],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "readinessProbe": {"exec": {"command": ["pg_isready", "-h", "/tmp", "-U", "owner", "-d", "postgres"]}, "periodSeconds": 1},
    }
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": "db"}},
        {"name": "secret", "secret": {"secretName": "db", "defaultMode": 0o440}},
        {"name": "config", "configMap": {"name": "db"}},
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
    ]
    # Always would open the data to the group at each start, and postgres refuses that.
    security = {"fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "db"},
        "spec": {"containers": [container], "volumes": volumes, "securityContext": security},
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "db"},
        "data": {"password": base64.b64encode(PASSWORD.encode()).decode()},
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "db"},
        "data": {"pg_hba.conf": "local all all trust\nhost all all all scram-sha-256\n"},
    }
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "db"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
    return pod, secret, config, claim


def test_postgresql_keeps_its_data(pods: Pods, postgres: str) -> None:
    """Password from a Secret, data in a claim, over a restart, a kill of the whole pod, and a stop; from the host and from another pod."""
    write_documents(pods, "db", *postgres_documents(postgres))

    def ask(query: str, password: str = PASSWORD) -> str:
        words = ["env", f"PGPASSWORD={password}", "/usr/lib/postgresql/17/bin/psql", "-h", "127.0.0.1", "-U", "owner", "-d", "postgres"]
        return pods.bed.run(*words, "-Atc", query, check=False).stdout.strip()

    pods.start("db")
    try:
        assert (
            ask("create table found (how text); insert into found values ('first'); select how from found")
            == "CREATE TABLE\nINSERT 0 1\nfirst"
        )
        assert ask("select 1", "wrong") == ""
        pods.bed.run("systemctl", "restart", "pod@db", timeout=60)
        assert ask("insert into found values ('restarted'); select count(*) from found").split() == ["INSERT", "0", "1", "2"]
        pods.bed.run("systemctl", "kill", "--signal=KILL", "pod@db")
        pods.wait_state("db", "activating", "failed")
        pods.wait_state("db", "active")
        assert ask("insert into found values ('killed'); select count(*) from found").split()[-1] == "3"
        pods.stop("db")
        assert "shut down" in "\n".join(pods.lines("db", stream=3))
        pods.start("db")
        assert ask("select how from found").split() == ["first", "restarted", "killed"]
        client = {"name": "app", "image": postgres, "command": ["sleep", "1000"]}
        pods.write("client", {"containers": [client], "terminationGracePeriodSeconds": 0})
        pods.start("client")
        script = "; ".join(
            f"export {word}" for word in ("PGPASSWORD=\"correct horse, 'battery'\"", "PATH=/usr/lib/postgresql/17/bin:$PATH")
        )
        found = inside(
            pods, "client", f"{script}; until psql -h db -U owner -d postgres -Atc 'select count(*) from found'; do sleep 0.3; done"
        )
        assert found.split()[-1] == "3"
        text = pods.bed.sh("grep -r battery /run/rktd/pods/db || true; journalctl -u pod@db | grep battery || true").stdout
        assert text == ""
    finally:
        pods.stop("db")
        pods.wait_end("db")
        pods.bed.sh("podctl volume rm db", check=False)


def test_nginx_before_a_program(pods: Pods) -> None:
    """Pages of nginx' own, and those of a Python program in another pod, from the host; the access log, a link to /dev/stdout, is there."""
    nginx = pods.make_package_image(
        "nginx", "nginx-common", config={"Cmd": ["/usr/sbin/nginx", "-e", "stderr", "-c", "/config/nginx.conf"]}
    )
    python = pods.make_package_image("python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib")
    program = {"name": "app", "image": python, "command": ["python3.13", "-u", "-c", PROGRAM]}
    pods.write("program", {"containers": [program], "terminationGracePeriodSeconds": 0})
    server = {
        "name": "app",
        "image": nginx,
        "ports": [{"containerPort": 80, "hostPort": 8090}],
        "volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in ("config", "pages")],
        "readinessProbe": {"httpGet": {"port": 80, "path": "/index.html"}},
    }
    volumes = [{"name": "config", "configMap": {"name": "nginx"}}, {"name": "pages", "configMap": {"name": "pages"}}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "front", "annotations": {"systemd.io/log-pipe": "app"}}}
    maps = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        for name, data in (("nginx", {"nginx.conf": NGINX}), ("pages", {"index.html": "hello\n"}))
    ]
    spec = {"containers": [server], "volumes": volumes, "dnsPolicy": "ClusterFirst", "hostAliases": []}
    pods.start("program")
    write_documents(pods, "front", {**pod, "spec": spec}, *maps)
    pods.start("front")
    assert pods.bed.run("curl", "-s", "http://127.0.0.1:8090/").stdout == "hello\n"
    found = pods.bed.run("curl", "-s", "http://127.0.0.1:8090/program/").stdout
    assert found.startswith("program on program for ")
    pods.stop("front")
    log = pods.lines("front")
    assert [line.split('"')[1] for line in log if "curl" in line] == ["GET / HTTP/1.1", "GET /program/ HTTP/1.1"]

# SPDX-License-Identifier: Apache-2.0
"""Startup, readiness and liveness probes against real servers in pods."""

import json
import time
from typing import Any

from tests.integration.pods import Pods

WAIT = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
HTTPD = "mkdir -p /www; echo fine >/www/index.html; sleep {delay}; echo up; exec busybox httpd -f -p 8080 -h /www"


def said(pods: Pods, name: str) -> list[str]:
    """What the pod itself has said of its apps since the test began."""
    entries = pods.bed.journal("-u", f"pod@{name}", "_TRANSPORT=stdout", f"--after-cursor={pods.cursor}")
    return [e["MESSAGE"] for e in entries if e.get("SYSLOG_IDENTIFIER") == "pod"]


def inside(pods: Pods, name: str, app: str, script: str) -> str:
    """Run a script in the mount and process name spaces of an app, as podctl exec does."""
    return pods.bed.run("podctl", "exec", f"{name}/{app}", "--", "sh", "-c", script).stdout


def restarts(pods: Pods, name: str, *apps: str) -> list[int]:
    return [int(pods.bed.run("systemctl", "-M", name, "show", app, "-PNRestarts").stdout) for app in apps]


def wait_for(condition: Any, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ready(pods: Pods, name: str) -> dict[str, bool]:
    (record,) = json.loads(pods.bed.run("podctl", "list", name, "--output=json").stdout)
    return {app["name"]: app["ready"] for app in record["apps"]}


def test_start_waits_for_readiness(pods: Pods) -> None:
    probe = {"httpGet": {"port": "web"}, "periodSeconds": 60, "failureThreshold": 1}
    app = pods.app(HTTPD.format(delay=1.5), ports=[{"name": "web", "containerPort": 8080}], readinessProbe=probe)
    pods.write("p", {"containers": [app, pods.app(WAIT, "plain")]})
    begin = time.monotonic()
    pods.start("p")
    assert 1.5 < time.monotonic() - begin < 8  # far less than the period
    assert said(pods, "p") == ["app app is not ready: cannot connect: connection refused", "app app is ready"]
    assert ready(pods, "p") == {"app": True, "plain": True}


def test_readiness_comes_and_goes(pods: Pods) -> None:
    probe = {"httpGet": {"port": 8080, "path": "/ok"}, "periodSeconds": 1, "failureThreshold": 2, "successThreshold": 2}
    pods.write("p", {"containers": [pods.app("mkdir -p /www; touch /www/ok; " + HTTPD.format(delay=0), readinessProbe=probe)]})
    pods.start("p")
    assert ready(pods, "p") == {"app": True}
    inside(pods, "p", "app", "rm /www/ok")
    wait_for(lambda: ready(pods, "p") == {"app": False})
    assert pods.bed.run("podctl", "list", "p").stdout.split("\n")[1].split()[3] == "0/1"
    assert "app: active (running), not ready, pid" in pods.bed.run("podctl", "status", "p").stdout
    wait_for(lambda: 'Status: "Not ready: app"' in pods.bed.run("systemctl", "status", "pod@p", check=False).stdout)
    inside(pods, "p", "app", "touch /www/ok")
    wait_for(lambda: ready(pods, "p") == {"app": True})
    wait_for(lambda: pods.show("p", "StatusText") == {"StatusText": "All apps are ready"})
    assert restarts(pods, "p", "app") == [0]
    lines = [line for line in said(pods, "p") if "refused" not in line]
    assert lines == ["app app is ready", "app app is not ready: HTTP status 404", "app app is ready"]


def test_a_failed_liveness_probe_restarts_that_app_only(pods: Pods) -> None:
    probe = {"exec": {"command": ["cat", "/tmp/healthy"]}, "periodSeconds": 1, "failureThreshold": 2}
    app = pods.app(
        "trap 'echo bye; exit 0' TERM; mkdir -p /tmp; touch /tmp/healthy; echo up; while :; do sleep 0.05; done", livenessProbe=probe
    )
    pods.write("p", {"containers": [app, pods.app(WAIT, "plain")]})
    pods.start("p")
    time.sleep(3)
    assert restarts(pods, "p", "app", "plain") == [0, 0]
    inside(pods, "p", "app", "rm /tmp/healthy")
    wait_for(lambda: restarts(pods, "p", "app", "plain") == [1, 0])
    wait_for(lambda: pods.lines("p", "SYSLOG_IDENTIFIER=app") == ["up", "bye", "up"])
    time.sleep(3)
    assert restarts(pods, "p", "app", "plain") == [1, 0]
    assert said(pods, "p") == ["app app is ended: its liveness probe failed 2 times: the command ended with exit code 1"]


def test_under_on_failure_it_starts_again_whatever_it_ends_with(pods: Pods) -> None:
    probe = {"exec": {"command": ["cat", "/tmp/healthy"]}, "periodSeconds": 1, "failureThreshold": 1}
    script = "trap 'echo bye; rm /tmp/first; exit 0' TERM; mkdir -p /tmp; [ -e /tmp/up ] || touch /tmp/first; "
    script += "touch /tmp/up /tmp/healthy; echo up; while [ -e /tmp/first ]; do sleep 0.05; done; sleep 3; echo done"
    pods.write("p", {"restartPolicy": "OnFailure", "containers": [pods.app(script, livenessProbe=probe)]})
    pods.start("p")
    inside(pods, "p", "app", "rm /tmp/healthy")
    assert pods.wait_end("p") == "inactive"
    assert pods.lines("p") == ["up", "bye", "up", "done"]


def test_a_prober_that_is_killed_comes_again(pods: Pods) -> None:
    """What listens at the port sends without end: that is a failure of the probe, and no more."""
    probe = {"httpGet": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    app = pods.app("mkdir -p /www; touch /www/index.html; " + HTTPD.format(delay=0), readinessProbe=probe)
    endless = pods.app(
        "while :; do yes | nc -l -p 7000 >/dev/null; done",
        "endless",
        livenessProbe={"httpGet": {"port": 7000}, "failureThreshold": 1000, "periodSeconds": 1},
    )
    pods.write("p", {"containers": [app, endless]})
    pods.start("p")
    pid = pods.bed.run("systemctl", "-M", "p", "show", "Probes", "-PMainPID").stdout.strip()
    pods.bed.run("systemctl", "-M", "p", "kill", "-sKILL", "Probes")
    wait_for(lambda: pods.bed.run("systemctl", "-M", "p", "show", "Probes", "-PMainPID").stdout.strip() not in ("0", pid))
    inside(pods, "p", "app", "rm /www/index.html")
    wait_for(lambda: ready(pods, "p") == {"app": False, "endless": True})
    assert restarts(pods, "p", "app", "endless") == [0, 0]
    assert pods.show("p", "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}


def test_an_app_that_ignores_its_stop_signal_is_killed_after_the_probes_grace(pods: Pods) -> None:
    probe = {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1, "terminationGracePeriodSeconds": 3}
    app = pods.app("trap 'echo no' TERM; echo up; while :; do sleep 0.05; done", livenessProbe=probe)
    pods.write("p", {"restartPolicy": "Never", "containers": [app]})
    pods.start("p")
    assert pods.wait_end("p") == "failed"
    assert pods.lines("p") == ["up", "no"]
    assert pods.result("p")["apps"]["app"] == {"code": "killed", "status": "KILL", "result": "signal"}


def test_a_startup_probe_holds_back_the_others(pods: Pods) -> None:
    script = "while :; do nc -l -p 7000; done & sleep 2.5; rm /tmp/no; touch /tmp/up; wait"
    start = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 30}
    live = {"exec": {"command": ["test", "!", "-e", "/tmp/no"]}, "periodSeconds": 1, "failureThreshold": 1}
    app = pods.app(
        "mkdir -p /tmp; touch /tmp/no; " + script, startupProbe=start, livenessProbe=live, readinessProbe={"tcpSocket": {"port": 7000}}
    )
    pods.write("p", {"containers": [app]})
    begin = time.monotonic()
    pods.start("p")
    assert 2.5 < time.monotonic() - begin < 10
    assert restarts(pods, "p", "app") == [0]
    assert said(pods, "p") == ["app app is ready"]


def test_a_startup_probe_that_fails_ends_the_app(pods: Pods) -> None:
    probe = {"tcpSocket": {"port": 7000}, "periodSeconds": 1, "failureThreshold": 2}
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app("echo up; exec sleep 100", startupProbe=probe)]})
    assert pods.start("p", check=False).returncode == 1
    assert pods.wait_end("p") == "failed"
    assert pods.show("p", "ExecMainStatus") == {"ExecMainStatus": "137"}  # sleep has no handler: SIGTERM would do nothing
    assert "app app is ended: its startup probe failed 2 times: cannot connect: connection refused" in said(pods, "p")


def test_a_pod_that_never_gets_ready_stops_quickly(pods: Pods) -> None:
    probe = {"httpGet": {"port": 8080, "scheme": "HTTPS"}, "periodSeconds": 1}
    pods.write("p", {"containers": [pods.app(HTTPD.format(delay=0), readinessProbe=probe)]})
    pods.bed.run("systemctl", "start", "--no-block", "pod@p")
    wait_for(lambda: any(line.startswith("app app is not ready: ") for line in said(pods, "p")))
    assert pods.show("p", "ActiveState") == {"ActiveState": "activating"}
    begin = time.monotonic()
    pods.stop("p")
    assert time.monotonic() - begin < 5


def test_a_job_that_is_through_before_it_is_ready(pods: Pods) -> None:
    probe = {"tcpSocket": {"port": 7000}}
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app("echo done", readinessProbe=probe)]})
    pods.start("p")
    assert pods.wait_end("p") == "inactive"


def test_what_comes_after_a_sidecar_waits_for_its_startup_probe(pods: Pods) -> None:
    probe = {"exec": {"command": ["test", "-e", "/tmp/up"]}}
    side = pods.app("mkdir -p /tmp; sleep 1; echo side; touch /tmp/up; sleep 100", "side", restartPolicy="Always", startupProbe=probe)
    pods.write("p", {"initContainers": [side], "containers": [pods.app("echo app; sleep 100")]})
    pods.start("p")
    assert pods.lines("p") == ["side", "app"]


def spent(pods: Pods, name: str) -> int:
    """Microseconds of CPU time of a pod, and of who runs its exec probes."""
    groups = (
        f"pods.slice/pod@{name}.service",
        f"system.slice/rktd-exec@{name}.service",
    )
    script = " ".join(f"/sys/fs/cgroup/{group}/cpu.stat" for group in groups)
    lines = pods.bed.sh(f"cat {script} 2>/dev/null || true").stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("usage_usec "))


def test_exec_probes_are_cheap_and_see_the_app(pods: Pods) -> None:
    """Each is one fork on the host that enters the app: its processes, user, environment, limits. A unit for each took 47 ms."""
    look = 'tr "\\0" " " </proc/1/cmdline | grep -q one-app && [ $(id -u) = 1000 ] && [ "$MINE" = "a b" ] && echo >>/tmp/runs'
    probe = {"exec": {"command": ["sh", "-c", look]}, "periodSeconds": 1, "timeoutSeconds": 5}
    app = pods.app("echo up; while :; do sleep 100; done", args=["one-app"], env=[{"name": "MINE", "value": "a b"}])
    app |= {"readinessProbe": probe, "livenessProbe": probe, "securityContext": {"runAsUser": 1000}}
    pods.write("p", {"containers": [app]})
    pods.start("p")
    time.sleep(1.5)
    runs, before = len(inside(pods, "p", "app", "cat /tmp/runs")), spent(pods, "p")
    time.sleep(8)
    after = spent(pods, "p")
    done = len(inside(pods, "p", "app", "cat /tmp/runs")) - runs
    assert done >= 10
    each = (after - before) / 1000 / done
    print(f"{done} exec probes: {each:.1f} ms of CPU time each, of the command too")
    assert each < 20
    assert [line for line in said(pods, "p") if "refused" not in line] == ["app app is ready"]
    # who is nobody on the host cannot reach the socket, and if he could, would take no place of a probe's
    path = "/run/rktd/exec/p/socket"
    hold = f"import socket, time; s = [socket.socket(1, 5) for _ in range(64)]; [c.connect('{path}') for c in s]; time.sleep(4.5)"
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "python3", "-c", hold)
    assert "PermissionError" in pods.bed.run(*nobody, check=False).stderr
    pods.bed.run("chmod", "755", "/run/rktd/exec")
    pods.bed.run(*nobody)
    pods.bed.run("chmod", "700", "/run/rktd/exec")
    assert [line for line in said(pods, "p") if "refused" not in line] == ["app app is ready"]
    assert restarts(pods, "p", "app") == [0]
    pods.stop("p")
    pods.wait_end("p")
    wait_for(lambda: not pods.bed.sh("ls /run/rktd/exec; systemctl list-units --no-legend --plain 'rktd-exec@*'", check=False).stdout)


def test_an_exec_probe_that_takes_too_long_leaves_nothing(pods: Pods) -> None:
    """Not even what it put into the background; and who runs it may be killed."""
    probe = {"exec": {"command": ["sh", "-c", "sleep 1000 & sleep 1000"]}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1}
    fine = {"exec": {"command": ["cat", "/tmp/fine"]}, "periodSeconds": 1, "failureThreshold": 60}
    app = pods.app("mkdir -p /tmp; touch /tmp/fine; echo up; exec sleep 500", startupProbe=fine, readinessProbe=probe)
    pods.write("p", {"containers": [app]})
    pods.bed.run("systemctl", "start", "--no-block", "pod@p")
    wait_for(lambda: "app app is not ready: the command took too long" in said(pods, "p"))
    group = "/sys/fs/cgroup/pods.slice/pod@p.service/payload/system.slice/app.service"

    def processes() -> set[str]:
        return set(pods.bed.sh(f"cat {group}/cgroup.procs {group}/*/cgroup.procs 2>/dev/null", check=False).stdout.split())

    seen = [processes()]

    def sees_a_run() -> bool:
        seen[0] = processes()
        return len(seen[0]) >= 3  # the app, and the two of one run of the probe

    wait_for(sees_a_run)
    wait_for(lambda: len(seen[0] & processes()) == 1)
    pid = pods.show("rktd-exec@p.service", "MainPID")["MainPID"]
    pods.bed.run("systemctl", "kill", "-sKILL", "rktd-exec@p.service")
    wait_for(lambda: pods.show("rktd-exec@p.service", "MainPID")["MainPID"] not in (pid, "0"))  # the next probe wakes it
    # a socket that is restarted comes where the pod sees it: the next probe wakes the service
    pods.bed.run("systemctl", "restart", "rktd-exec@p.socket")
    pods.bed.run("systemctl", "stop", "rktd-exec@p.service")
    wait_for(lambda: pods.show("rktd-exec@p.service", "MainPID")["MainPID"] != "0")
    assert restarts(pods, "p", "app") == [0]


NGINX = """daemon off; error_log stderr; pid /tmp/nginx.pid; worker_processes 1; events { worker_connections 64; }
http { access_log off; client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3; uwsgi_temp_path /tmp/4;
scgi_temp_path /tmp/5; types { } default_type application/grpc; root /www; server { listen 443 ssl; ssl_certificate /tmp/pem;
ssl_certificate_key /tmp/key; location / { } } server { listen 50051; http2 on; location / { error_page 405 =200 $uri;
add_trailer grpc-status 0; } } }
"""


def test_tls_and_grpc_of_a_real_server(pods: Pods) -> None:
    """nginx with TLS and a certificate that nobody trusts, and nginx' HTTP/2 with the answer of a gRPC health service."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=nobody -keyout /tmp/key -out /tmp/pem 2>/dev/null; "
    pem = pods.bed.sh(f"{make}cat /tmp/key /tmp/pem").stdout
    image = pods.make_package_image("nginx", "nginx-common")
    serving = "mkdir -p /www/grpc.health.v1.Health; printf '\\0\\0\\0\\0\\2\\b\\1' >/www/grpc.health.v1.Health/Check; touch /www/ok; "
    common = {"image": image, "volumeMounts": [{"name": "conf", "mountPath": "/conf"}]}
    tls = {"httpGet": {"port": 443, "scheme": "HTTPS", "path": "/ok"}, "periodSeconds": 1, "failureThreshold": 5}
    rpc = {"grpc": {"port": 50052, "service": "db"}, "periodSeconds": 1, "failureThreshold": 5}
    tls_app = (
        pods.app(
            f"cp /conf/key /conf/pem /tmp; {serving}exec /usr/sbin/nginx -e stderr -c /conf/nginx.conf",
            "web",
            readinessProbe=tls,
            livenessProbe=tls,
        )
        | common
    )
    there = "cp /conf/key /conf/pem /tmp; sed 's/443/444/; s/50051/50052/' /conf/nginx.conf >/tmp/conf; "
    health = (
        pods.app(f"{there}{serving}exec /usr/sbin/nginx -e stderr -c /tmp/conf", "health", readinessProbe=rpc, livenessProbe=rpc) | common
    )
    data = {"nginx.conf": NGINX, "key": pem[: pem.index("-----BEGIN CERT")], "pem": pem[pem.index("-----BEGIN CERT") :]}
    pods.write("p", {"containers": [tls_app, health], "volumes": [{"name": "conf", "configMap": {"name": "conf"}}]})
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": data}
    pods.bed.write("/etc/pods/p.yaml", pods.bed.read("/etc/pods/p.yaml") + "\n---\n" + json.dumps(document))
    pods.start("p")
    assert ready(pods, "p") == {"web": True, "health": True}
    time.sleep(2)
    assert restarts(pods, "p", "web", "health") == [0, 0]
    inside(pods, "p", "health", "printf '\\0\\0\\0\\0\\2\\b\\2' >/www/grpc.health.v1.Health/Check")
    wait_for(lambda: restarts(pods, "p", "web", "health") == [0, 1])
    assert "app health is ended: its liveness probe failed 5 times: the status is NOT_SERVING" in said(pods, "p")
    inside(pods, "p", "web", "rm /www/ok")
    wait_for(lambda: restarts(pods, "p", "web", "health") == [1, 1])
    assert "app web is ended: its liveness probe failed 5 times: HTTP status 404" in said(pods, "p")

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
    inside(pods, "p", "app", "touch /www/ok")
    wait_for(lambda: ready(pods, "p") == {"app": True})
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
    probe = {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1, "terminationGracePeriodSeconds": 1}
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

# SPDX-License-Identifier: Apache-2.0
"""postStart and preStop hooks, and lifecycle.stopSignal."""

import json
import time
from typing import Any

from tests.integration.pods import Pods

MOUNT = [{"name": "v", "mountPath": "/v"}]
VOLUMES = [{"name": "v", "emptyDir": {}}]
WAIT = "trap 'cat /v/text; exit 0' TERM; echo up; while :; do sleep 0.05; done"


def run(*command: str) -> dict[str, Any]:
    return {"exec": {"command": list(command)}}


def said(pods: Pods, name: str, text: str) -> list[str]:
    """What the pod itself says of its apps."""
    lines = [e["MESSAGE"] for e in pods.bed.journal("-u", f"pod@{name}", "-t", "pod", f"--after-cursor={pods.cursor}")]
    return [line for line in lines if text in line]


def test_hooks_run_as_the_app_does(pods: Pods) -> None:
    """The start waits for postStart, the signal for preStop; user, volumes and privileges are the app's; a server is asked; a sleep."""
    script = "sleep 1; echo post $(id -u) $(grep -c . /proc/1/cmdline) $(grep CapEff /proc/self/status | cut -f2) >/v/text"
    hooks = {"postStart": run("sh", "-c", script), "preStop": run("sh", "-c", "sleep 0.5; echo pre >>/v/text")}
    app = pods.app(WAIT, lifecycle=hooks, volumeMounts=MOUNT, securityContext={"runAsUser": 1000})
    cgi = (
        "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho $HTTP_X_WHO >>/v/asked; echo; echo' >/www/cgi-bin/bye; chmod +x /www/cgi-bin/bye; "
    )
    get = {"httpGet": {"port": "web", "path": "/cgi-bin/bye", "httpHeaders": [{"name": "X-Who", "value": "hook"}]}}
    web = pods.app(
        f"{cgi} trap 'cat /v/asked; exit 0' USR1; httpd -p 80 -h /www; while :; do sleep 0.05; done",
        "web",
        ports=[{"name": "web", "containerPort": 80}],
        lifecycle={"postStart": {"sleep": {"seconds": 1}}, "preStop": get, "stopSignal": "SIGUSR1"},
        volumeMounts=MOUNT,
    )
    quits = pods.app(  # as `nginx -s quit`: the hook ends with the app, which is no failure of it
        "trap 'echo quit; exit 0' QUIT; while :; do sleep 0.05; done",
        "quits",
        lifecycle={"preStop": run("sh", "-c", "kill -QUIT 1; sleep 99")},
    )
    pods.write("p", {"containers": [app, web, quits], "volumes": VOLUMES})
    began = time.monotonic()
    pods.start("p")
    assert time.monotonic() - began > 2  # one after the other, as kubelet starts containers
    pods.stop("p")
    assert pods.lines("p", "SYSLOG_IDENTIFIER=app") == ["up", "post 1000 1 0000000000000000", "pre"]
    assert pods.lines("p", "SYSLOG_IDENTIFIER=web") == ["hook"]
    assert pods.lines("p", "SYSLOG_IDENTIFIER=quits") == ["quit"]
    assert said(pods, "p", "hook") == []
    assert pods.show("p", "Result")["Result"] == "success"


def test_a_hook_that_fails(pods: Pods) -> None:
    """postStart: its app is ended, after its preStop hook, and its policy decides; preStop: it is told, and the stop goes on."""
    first = "if [ -e /v/once ]; then exit 0; fi; touch /v/once; exit 7"
    hooks = {"postStart": run("sh", "-c", first), "preStop": run("sh", "-c", "echo pre >>/v/text; exit 3")}
    app = pods.app(WAIT, lifecycle=hooks, volumeMounts=MOUNT)
    beside = pods.app("echo other; exec sleep 1000", "beside")
    pods.write("p", {"containers": [app, beside], "volumes": VOLUMES})
    pods.start("p")
    pods.bed.sh("for i in $(seq 100); do [ $(systemctl -M p show -PNRestarts app) = 0 ] || exit 0; sleep 0.1; done; exit 1")
    pods.bed.sh("sleep 1")
    assert pods.lines("p", "SYSLOG_IDENTIFIER=app") == ["up", "pre", "up"]
    assert pods.lines("p", "SYSLOG_IDENTIFIER=beside") == ["other"]
    ended = ["app app is ended: its postStart hook failed: the command ended with exit code 7"]
    failed = ["the preStop hook of app app failed: the command ended with exit code 3"]
    assert said(pods, "p", "hook") == [*failed, *ended] or said(pods, "p", "hook") == [*ended, *failed]
    pods.stop("p")
    assert pods.lines("p", "SYSLOG_IDENTIFIER=app")[-2:] == ["pre", "pre"]
    missing = pods.app("exec sleep 1000", lifecycle={"postStart": run("/no/such")})
    pods.write("q", {"restartPolicy": "Never", "containers": [missing]})
    pods.start("q", check=False)
    assert pods.wait_end("q") == "failed"
    assert "cannot be executed" in said(pods, "q", "is ended")[0]
    refused = {"httpGet": {"port": 81}}
    pods.write("r", {"restartPolicy": "Never", "containers": [pods.app("exec sleep 1000", lifecycle={"postStart": refused})]})
    pods.start("r", check=False)
    assert pods.wait_end("r") == "failed"
    assert "cannot connect: connection refused" in said(pods, "r", "is ended")[0]


def test_the_grace_period_is_for_both(pods: Pods) -> None:
    """preStop counts: what is over is killed; a failed liveness probe ends an app by the same way."""
    deaf = "trap 'echo never' TERM; echo up; while :; do sleep 0.05; done"
    hanging = pods.app(deaf, lifecycle={"preStop": run("sleep", "1000")})
    slow = pods.app(deaf, "slow", lifecycle={"preStop": {"sleep": {"seconds": 1}}})
    pods.write("p", {"terminationGracePeriodSeconds": 3, "containers": [hanging, slow]})
    pods.start("p")
    began = time.monotonic()
    pods.stop("p")
    assert 2.5 < time.monotonic() - began < 6
    assert pods.lines("p", "SYSLOG_IDENTIFIER=app") == ["up"]
    assert pods.lines("p", "SYSLOG_IDENTIFIER=slow") == ["up", "never"]
    probe = {"exec": {"command": ["test", "!", "-e", "/v/sick"]}, "periodSeconds": 1, "failureThreshold": 1}
    script = f"echo pre >/v/text; rm -f /v/sick; {WAIT}"
    hooks = {"preStop": run("sh", "-c", "echo hook >>/v/text")}
    app = pods.app(script, lifecycle=hooks, livenessProbe=probe, volumeMounts=MOUNT)
    pods.write("q", {"containers": [app], "volumes": VOLUMES})
    pods.start("q")
    pods.bed.run("podctl", "exec", "q", "--", "touch", "/v/sick")
    pods.bed.sh("for i in $(seq 100); do [ $(systemctl -M q show -PNRestarts app) = 0 ] || exit 0; sleep 0.1; done; exit 1")
    pods.bed.sh("sleep 0.5")
    assert pods.lines("q", "SYSLOG_IDENTIFIER=app")[:3] == ["up", "pre", "hook"]


def test_the_back_off_begins_again(pods: Pods) -> None:
    """What Calm@APP.timer does after ten minutes of an app's run; the timer is there after an end, and podctl counts on."""
    app = pods.app("[ -e /v/2 ] && exec sleep 1000; [ -e /v/1 ] && touch /v/2; touch /v/1; exit 1", volumeMounts=MOUNT)
    pods.write("p", {"containers": [app], "volumes": VOLUMES})
    pods.start("p")
    show = "systemctl -M p show -P"
    pods.bed.sh(f"for i in $(seq 100); do [ $({show} NRestarts app) = 2 ] && break; sleep 0.1; done")
    assert pods.bed.sh(f"{show} ActiveState Calm@app.timer; {show} RestartUSecNext app").stdout.startswith("active\n4.")
    pods.bed.run("systemctl", "-M", "p", "start", "Calm@app.service")
    assert pods.bed.sh(f"{show} NRestarts app; {show} ActiveState Calm@app.timer").stdout.split() == ["2", "active"]
    drop_in = "/run/rktd/pods/p/root/etc/systemd/system/Calm@app.service.d/now.conf"
    pods.bed.write(drop_in, "[Service]\nEnvironment=CALM=0\n")
    pods.bed.sh(f"chmod -R a+rX {drop_in.rpartition('/')[0]}; systemctl -M p daemon-reload; systemctl -M p start Calm@app.service")
    assert pods.bed.sh(f"{show} NRestarts app; {show} RestartUSecNext app; {show} ActiveState app Calm@app.timer").stdout.split() == [
        "0",
        "1s",
        "active",
        "inactive",
    ]
    assert json.loads(pods.bed.run("podctl", "list", "--output=json", "p").stdout)[0]["restarts"] == 2

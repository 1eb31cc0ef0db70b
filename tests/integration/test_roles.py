# SPDX-License-Identifier: Apache-2.0
"""Init containers, sidecars, deadlines and apps that say themselves that they are ready."""

import time
from typing import Any

import pytest

from tests.integration.layers import Entry, compile_program, write_layer
from tests.integration.pods import Pods

WAIT = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
MOUNT = [{"name": "v", "mountPath": "/v"}]
VOLUMES = [{"name": "v", "emptyDir": {}}]
NOTIFIER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static void say(const char *text) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    strncpy(to.sun_path, getenv("NOTIFY_SOCKET"), sizeof(to.sun_path) - 1);
    if (sendto(fd, text, strlen(text), 0, (void *)&to, sizeof(to)) < 0) perror("notify");
    close(fd);
}
int main(int argc, char **argv) {
    int beats = argc > 2 ? atoi(argv[2]) : 0;
    usleep(atoi(argv[1]) * 1000);
    puts("ready"); fflush(stdout);
    say("READY=1");
    for (int i = 0; i < beats; i++) { usleep(200000); say("WATCHDOG=1"); }
    puts("silent"); fflush(stdout);
    for (;;) pause();
}
"""


def order(pods: Pods, name: str) -> list[str]:
    """The apps' lines, all of one run, in the order in which they were written."""
    entries = pods.bed.journal("-u", f"pod@{name}", "_TRANSPORT=stdout", f"--after-cursor={pods.cursor}", "-p", "6..6")
    return [f"{e['SYSLOG_IDENTIFIER']}: {e['MESSAGE']}" for e in entries]


def init(pods: Pods, script: str, name: str, **fields: Any) -> dict[str, Any]:
    return pods.app(script, name, volumeMounts=MOUNT, **fields)


def test_init_containers_run_in_order_and_once(pods: Pods) -> None:
    first = init(pods, "sleep 0.3; echo one >/v/text; echo done", "first")
    second = init(pods, "cat /v/text; echo two >>/v/text", "second")
    app = init(pods, "cat /v/text; echo end; exit 1", "app")
    pods.write("p", {"restartPolicy": "OnFailure", "initContainers": [first, second], "containers": [app], "volumes": VOLUMES})
    pods.start("p")
    time.sleep(2.5)
    assert int(pods.bed.run("systemctl", "-M", "p", "show", "app", "-PNRestarts").stdout) >= 1
    assert pods.bed.run("systemctl", "-M", "p", "show", "second", "-PActiveState").stdout == "active\n"
    pods.stop("p")
    said = order(pods, "p")
    assert said[:5] == ["first: done", "second: one", "app: one", "app: two", "app: end"]
    assert said.count("first: done") == 1
    assert said.count("app: end") >= 2
    assert said.count("app: two") == said.count("app: end")


def test_the_pod_ends_with_its_apps_whatever_init_containers_did(pods: Pods) -> None:
    pods.write("p", {"restartPolicy": "Never", "initContainers": [pods.app("echo i", "i")], "containers": [pods.app("echo a; exit 4")]})
    pods.start("p")
    assert pods.wait_end("p") == "failed"
    assert pods.show("p", "ExecMainStatus") == {"ExecMainStatus": "4"}
    assert order(pods, "p") == ["i: i", "app: a"]


def test_a_failed_init_container_fails_the_start_under_never(pods: Pods) -> None:
    inits = [pods.app("echo no; exit 7", "bad"), pods.app("echo later", "later")]
    pods.write("p", {"restartPolicy": "Never", "initContainers": inits, "containers": [pods.app("echo app")]})
    assert pods.start("p", check=False).returncode == 1
    assert pods.wait_end("p") == "failed"
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "7"}
    assert order(pods, "p") == ["bad: no"]


def test_an_init_container_is_tried_again_otherwise(pods: Pods) -> None:
    retry = init(pods, "echo try >>/v/n; [ $(wc -l </v/n) -ge 2 ] || exit 1; echo enough", "retry")
    pods.write("p", {"initContainers": [retry], "containers": [pods.app(WAIT)], "volumes": VOLUMES})
    pods.start("p")
    time.sleep(0.2)
    assert order(pods, "p") == ["retry: enough", "app: up"]
    assert pods.bed.run("systemctl", "-M", "p", "show", "retry", "-PNRestarts").stdout == "1\n"


def test_a_stop_during_an_init_container(pods: Pods) -> None:
    pods.write("p", {"initContainers": [pods.app("echo i; sleep 100", "i")], "containers": [pods.app("echo app")]})
    pods.bed.run("systemctl", "start", "--no-block", "pod@p")
    deadline = time.monotonic() + 20
    while order(pods, "p") != ["i: i"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    begin = time.monotonic()
    pods.stop("p")
    assert time.monotonic() - begin < 5
    assert order(pods, "p") == ["i: i"]


def test_an_init_container_has_the_grace_period(pods: Pods) -> None:
    """Also at a later try: its stop signal is felt, and waited for."""
    script = "trap 'sleep 0.5; echo bye; exit 0' TERM; [ -e /v/once ] || { touch /v/once; exit 1; }; echo i; while :; do sleep 0.05; done"
    pods.write("p", {"initContainers": [init(pods, script, "i")], "containers": [pods.app("echo app")], "volumes": VOLUMES})
    pods.bed.run("systemctl", "start", "--no-block", "pod@p")
    deadline = time.monotonic() + 20
    while order(pods, "p") != ["i: i"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    begin = time.monotonic()
    pods.stop("p")
    assert 0.4 < time.monotonic() - begin < 5
    assert order(pods, "p") == ["i: i", "i: bye"]


def test_a_sidecar_is_there_from_before_until_after_the_apps(pods: Pods) -> None:
    side = init(
        pods, "trap 'echo last; exit' TERM; echo up >/v/up; echo first; while :; do sleep 0.05; done", "side", restartPolicy="Always"
    )
    check = init(pods, "until cat /v/up; do sleep 0.05; done", "check")
    app = init(pods, "sleep 0.5; echo app", "app")
    pods.write("p", {"restartPolicy": "Never", "initContainers": [side, check], "containers": [app], "volumes": VOLUMES})
    pods.start("p")
    assert pods.wait_end("p") == "inactive"
    assert order(pods, "p") == ["side: first", "check: up", "app: app", "side: last"]


def test_a_stop_ends_the_apps_before_their_sidecar(pods: Pods) -> None:
    side = pods.app("trap 'echo last; exit' TERM; while :; do sleep 0.05; done", "side", restartPolicy="Always")
    app = pods.app("trap 'sleep 0.7; echo bye; exit' TERM; while :; do sleep 0.05; done")
    pods.write("p", {"initContainers": [side], "containers": [app]})
    pods.start("p")
    pods.stop("p")
    assert order(pods, "p") == ["app: bye", "side: last"]


def test_a_sidecar_that_ends_starts_again(pods: Pods) -> None:
    side = pods.app("echo side; sleep 0.2; exit 3", "side", restartPolicy="Always")
    pods.write("p", {"restartPolicy": "Never", "initContainers": [side], "containers": [pods.app("sleep 2.5; echo app")]})
    pods.start("p")
    assert pods.wait_end("p") == "inactive"
    assert order(pods, "p").count("side: side") >= 2
    assert pods.show("p", "Result") == {"Result": "success"}


def test_a_sidecar_that_cannot_be_executed_fails_the_start(pods: Pods) -> None:
    pods.bed.sh("mkdir -p /run/prog && printf '#!/nonexistent\\n' >/run/prog/x && chmod 755 /run/prog/x")
    side = init(pods, "", "side", restartPolicy="Always") | {"command": ["/v/x"]}
    volumes = [{"name": "v", "hostPath": {"path": "/run/prog"}}]
    pods.write("p", {"restartPolicy": "Never", "initContainers": [side], "containers": [pods.app(WAIT)], "volumes": volumes})
    assert pods.start("p", check=False).returncode == 1


def test_a_deadline(pods: Pods) -> None:
    """It counts from the start of the pod, whatever of that its init containers take, and ends the pod as a stop does."""
    spec = {"activeDeadlineSeconds": 4, "initContainers": [pods.app("sleep 2.5", "first")], "containers": [pods.app(WAIT)]}
    pods.write("p", spec)
    pods.start("p")
    begin = time.monotonic()
    assert pods.wait_end("p") == "failed"
    assert time.monotonic() - begin < 3.5  # less than all of it
    expected = {"Result": "exit-code", "ExecMainStatus": "124", "NRestarts": "0"}
    assert pods.show("p", *expected) == expected
    assert order(pods, "p") == ["app: up", "app: bye"]
    lines = [e["MESSAGE"] for e in pods.bed.journal("-u", "pod@p", "-t", "pod", f"--after-cursor={pods.cursor}")]
    assert "the pod is ended: its activeDeadlineSeconds of 4 are over" in lines
    pods.write("q", spec | {"activeDeadlineSeconds": 1})
    assert pods.start("q", check=False).returncode == 1
    assert pods.show("q", *expected) == expected


@pytest.fixture(scope="module")
def notifier(pods_session: Pods) -> str:
    program = compile_program(pods_session.bed, "notifier", NOTIFIER)
    layer = write_layer(pods_session.bed, "/opt/layers/notifier.tar", Entry("bin/notifier", program))
    return pods_session.make_image("notifier", {}, (layer,))


@pytest.mark.parametrize("more", [{}, {"hostPID": True, "hostUsers": True}], ids=["own-processes", "host-pid"])
def test_ready_is_what_the_app_says(pods: Pods, notifier: str, more: dict[str, bool]) -> None:
    app = {"name": "app", "image": notifier, "command": ["/bin/notifier", "1500"], "securityContext": {"runAsUser": 1000}}
    pods.write("p", {**more, "containers": [app, pods.app(WAIT, "plain")]}, {"systemd.io/notify": "app"})
    begin = time.monotonic()
    pods.start("p")
    assert time.monotonic() - begin > 1.5
    assert "app: ready" in order(pods, "p")


def test_an_app_that_dies_before_it_is_ready_fails_the_start(pods: Pods) -> None:
    apps = [pods.app("sleep 0.2; exit 6", "dies"), pods.app(WAIT, "plain")]
    pods.write("p", {"restartPolicy": "Never", "containers": apps}, {"systemd.io/notify": "dies"})
    assert pods.start("p", check=False).returncode == 1
    assert pods.wait_end("p") == "failed"
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "6"}


def test_a_watchdog_restarts_that_app_only(pods: Pods, notifier: str) -> None:
    app = {"name": "app", "image": notifier, "command": ["/bin/notifier", "0", "5"]}
    pods.write("p", {"containers": [app, pods.app(WAIT, "plain")]}, {"systemd.io/notify": "app=500ms"})
    pods.start("p")
    time.sleep(4)
    shown = pods.bed.run("systemctl", "-M", "p", "show", "app", "plain", "-PNRestarts").stdout.split()
    assert int(shown[0]) >= 1
    assert shown[1] == "0"
    assert order(pods, "p").count("plain: up") == 1

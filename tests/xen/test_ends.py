# SPDX-License-Identifier: Apache-2.0
"""Xen guests that end in ways that nobody asked for: the unit says why, and nothing is left.

A panic is in test_together.py, `xl destroy` in test_exec.py.
"""

from typing import Any

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import left_overs

START = 400.0  # seconds
NO_RELEASE = "/run/systemd/system/pod-stage0@gone.service.d/90-no-release.conf"


def said(pods: Pods, pod: str) -> list[str]:
    return [str(entry["MESSAGE"]) for entry in pods.bed.journal("-u", f"pod@{pod}", "-t", "pod", f"--after-cursor={pods.cursor}")]


def how(pods: Pods, pod: str) -> list[str]:
    found = pods.show(pod, "ActiveState", "Result", "ExecMainStatus")
    return [found[key] for key in ("ActiveState", "Result", "ExecMainStatus")]


def test_a_power_off_and_killed_supervisors(pods: Pods) -> None:
    """One guest has its kernel power off. Of another one the supervisor is killed, first when nobody is there to release the pod, as when
    all of the host dies but Xen: then its domain stays until the next start.
    """
    bed = pods.bed
    off = pods.app("until [ -e /off ]; do sleep 1; done; echo o >/proc/sysrq-trigger; sleep 100", securityContext={"privileged": True})
    never: dict[str, Any] = {"runtimeClassName": "xen", "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
    pods.write("off", {**never, "containers": [off]})
    pods.write("gone", {**never, "containers": [pods.app("while :; do sleep 1000; done")]})
    bed.write(NO_RELEASE, "[Service]\nExecStopPost=\n")
    bed.run("systemctl", "daemon-reload")
    bed.run("systemctl", "start", "pod@off", "pod@gone", timeout=2 * START)
    bed.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pod@gone")
    pods.wait_end("gone", timeout=60)
    assert how(pods, "gone") == ["failed", "signal", "9"]
    left = bed.run("xl", "domid", "rktd-gone").stdout
    bed.run("podctl", "exec", "off", "--", "touch", "/off")
    pods.wait_end("off", timeout=120)
    assert how(pods, "off") == ["failed", "exit-code", "1"]
    assert "the guest has ended without a word of how its apps did" in said(pods, "off")
    assert "ended without a word" in bed.run("systemctl", "status", "pod@off", "--no-pager", "--full", check=False).stdout
    assert bed.run("xl", "domid", "rktd-gone").stdout == left
    bed.sh(f"rm {NO_RELEASE}; systemctl daemon-reload")
    pods.start("gone", timeout=START)
    assert bed.run("xl", "domid", "rktd-gone").stdout not in ("", left)
    assert len(bed.run("xl", "list").stdout.splitlines()) == 3
    bed.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pod@gone")
    pods.wait_end("gone", timeout=60)
    assert how(pods, "gone") == ["failed", "signal", "9"]
    assert left_overs(bed) == ""


@pytest.mark.slow
def test_nothing_is_left_of_ten_starts(pods: Pods) -> None:
    """A pod with a volume of the host's, an address and a secret."""
    bed = pods.bed
    bed.sh("mkdir -p /srv/ten")
    app = pods.app("trap 'exit 0' TERM; sleep 1000 & wait", volumeMounts=[{"name": "v", "mountPath": "/v"}])
    volumes = [{"name": "v", "hostPath": {"path": "/srv/ten"}}]
    pods.write("ten", {"runtimeClassName": "xen", "terminationGracePeriodSeconds": 5, "containers": [app], "volumes": volumes})
    pods.start("ten", timeout=START)
    bed.run("systemctl", "stop", "pod@ten", timeout=120)

    def count() -> str:
        return bed.sh("ls /proc/self/fd /dev/loop* /sys/class/net | wc -l; mount | wc -l; xenstore-ls | wc -l").stdout

    before = count()
    bed.sh("for i in $(seq 9); do systemctl start pod@ten; systemctl is-active -q pod@ten; systemctl stop pod@ten; done", timeout=900)
    pods.wait_end("ten", timeout=60)
    assert left_overs(bed) == ""
    assert count() == before

# SPDX-License-Identifier: Apache-2.0
"""Xen guests that end in ways that nobody asked for: the unit says why, and nothing is left.

More of them: a panic and a killed supervisor in test_together.py, `xl destroy` in test_exec.py, a power-off in test_volumes.py.
"""

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import left_overs

pytestmark = pytest.mark.slow
START = 400.0  # seconds
NO_RELEASE = "/run/systemd/system/pod-stage0@gone.service.d/90-no-release.conf"


def how(pods: Pods, pod: str) -> list[str]:
    found = pods.show(pod, "ActiveState", "Result", "ExecMainStatus")
    return [found[key] for key in ("ActiveState", "Result", "ExecMainStatus")]


def test_a_domain_that_is_left(pods: Pods) -> None:
    """A supervisor is killed when nobody is there to release the pod, as when all of the host dies but Xen: its domain stays until the
    next start. Then all of the unit is killed.
    """
    bed = pods.bed
    app = pods.app("while :; do sleep 1000; done")
    pods.write("gone", {"runtimeClassName": "xen", "restartPolicy": "Never", "containers": [app]})
    bed.write(NO_RELEASE, "[Service]\nExecStopPost=\n")
    bed.run("systemctl", "daemon-reload")
    pods.start("gone", timeout=START)
    bed.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pod@gone")
    pods.wait_end("gone", timeout=60)
    assert how(pods, "gone") == ["failed", "signal", "9"]
    left = bed.run("xl", "domid", "rktd-gone").stdout
    bed.sh(f"rm {NO_RELEASE}; systemctl daemon-reload")
    pods.start("gone", timeout=START)
    assert bed.run("xl", "domid", "rktd-gone").stdout not in ("", left)
    assert len(bed.run("xl", "list").stdout.splitlines()) == 3
    bed.run("systemctl", "kill", "--kill-whom=all", "--signal=KILL", "pod@gone")
    pods.wait_end("gone", timeout=60)
    assert how(pods, "gone") == ["failed", "signal", "9"]
    assert left_overs(bed) == ""


def test_nothing_is_left_of_ten_starts(pods: Pods) -> None:
    """A pod with a volume of the host's, an address and a secret."""
    bed = pods.bed
    bed.sh("mkdir -p /srv/ten")
    app = pods.app("trap 'exit 0' TERM; sleep 1000 & wait", volumeMounts=[{"name": "v", "mountPath": "/v"}])
    volumes = [{"name": "v", "hostPath": {"path": "/srv/ten"}}]
    pods.write("ten", {"runtimeClassName": "xen", "terminationGracePeriodSeconds": 5, "containers": [app], "volumes": volumes})
    pods.start("ten", timeout=START)
    bed.run("systemctl", "stop", "pod@ten", timeout=120)
    pods.wait_end("ten", timeout=60)

    def count() -> str:
        return bed.sh("ls /proc/self/fd /dev/loop* /sys/class/net | wc -l; mount | wc -l; xenstore-ls | wc -l").stdout

    before = count()
    bed.sh("for i in $(seq 9); do systemctl start pod@ten; systemctl is-active -q pod@ten; systemctl stop pod@ten; done", timeout=900)
    pods.wait_end("ten", timeout=60)
    assert left_overs(bed) == ""
    assert count() == before

# SPDX-License-Identifier: Apache-2.0
"""Memory limits of pods on nspawn take effect. Here, since dom0 has the memory controller of cgroup v2, which a container may not have."""

import pytest

from tests.integration.pods import Pods

EAT = "cat /sys/fs/cgroup/memory.max; exec tail /dev/zero"  # keeps all of a line that has no end


HOST_PID = pytest.param({"hostPID": True, "hostUsers": True}, id="host-pid", marks=pytest.mark.slow)


@pytest.mark.parametrize("more", [pytest.param({}, id="own-processes"), HOST_PID])
def test_an_app_over_its_limit_is_killed_alone(pods: Pods, more: dict[str, bool]) -> None:
    limits = {"limits": {"memory": "24Mi"}}
    eater = pods.app(EAT, name="eater", resources=limits)
    other = pods.app("trap 'exit 0' TERM; sleep 1000 & wait", name="other", resources={"limits": {"memory": "32Mi"}})
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "hostNetwork": True, **more}
    pods.write("eats", {**spec, "containers": [eater, other]})
    pods.start("eats", timeout=300)
    pods.bed.sh("for i in $(seq 300); do grep -q . /run/rktd/pods/eats/status/eater && break; sleep 0.2; done")
    assert pods.bed.read("/run/rktd/pods/eats/status/eater").split() == ["killed", "KILL", "oom-kill"]
    assert pods.show("eats", "ActiveState", "MemoryMax") == {
        "ActiveState": "active",
        "MemoryMax": str((56 + 32) << 20),
    }  # 32: the pod's own
    pods.stop("eats")
    pods.wait_end("eats", timeout=120)  # the record is made when stage0 releases it
    assert pods.result("eats")["apps"]["eater"]["result"] == "oom-kill"


def test_the_pods_own_limit_covers_its_apps(pods: Pods) -> None:
    pods.write("whole", {"restartPolicy": "Never", "hostNetwork": True, "containers": [pods.app("sleep 15; exec tail /dev/zero")]})
    pods.start("whole", timeout=300)
    pods.bed.run("systemctl", "set-property", "--runtime", "pod@whole.service", "MemoryMax=64M", "MemorySwapMax=0")
    pods.wait_end("whole", timeout=120)
    shown = pods.show("whole", "Result", "ExecMainStatus")
    assert shown in ({"Result": "exit-code", "ExecMainStatus": "137"}, {"Result": "oom-kill", "ExecMainStatus": "137"})

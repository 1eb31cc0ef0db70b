# SPDX-License-Identifier: Apache-2.0
"""seLinuxOptions, on a dom0 of its own with SELinux: permissive, but for a moment, since Debian's policy lets nspawn run no pod."""

import os
from collections.abc import Iterator

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import XenBed

pytestmark = pytest.mark.slow
START = 240.0  # seconds
LABEL = "tr -d '\\000' </proc/self/attr/current; echo"
SCRIPT = f"{LABEL}; until [ -e /host/go ]; do sleep 1; done; while :; do cat /host/ours /host/theirs 2>&1; sleep 1; done"
LABELS = {"one": "container_t:s0:c1,c2", "two": "container_t:s0:c254,c836"}
# Below the app's root: whatever is new in there has the pod's label.
OWN = ("", "x", "etc/hosts", "disk", "disk/x", "memory", "memory/x", "claim", "claim/x", "dev", "dev/null", "dev/shm/x", "dev/pts")


@pytest.fixture(scope="module")
def pods(require_root: None) -> Iterator[Pods]:
    """Pods `one`, which asks for a level, and `two`, each of whose apps asks for a type."""
    if os.uname().machine != "x86_64":
        pytest.skip("the Xen testbed is an amd64 machine")
    bed = XenBed(os.environ.get("RKTD_TESTBED_NAME", "tests") + "-selinux")
    bed.boot(selinux=True)
    found = Pods(bed)
    found.clean()
    for name in LABELS:
        volumes = [
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "host", "hostPath": {"path": "/srv/files"}},
            {"name": "claim", "persistentVolumeClaim": {"claimName": name}},
        ]
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}}
        app = found.app(SCRIPT, volumeMounts=[{"name": v["name"], "mountPath": f"/{v['name']}"} for v in volumes])
        pod = {"terminationGracePeriodSeconds": 1, "containers": [app], "volumes": volumes}
        if name == "one":
            pod["securityContext"] = {"seLinuxOptions": {"level": "s0:c1,c2"}}
        else:
            app["securityContext"] = {"seLinuxOptions": {"type": "container_t"}}
        found.write(name, pod, beside=(claim,))
    bed.sh("mkdir -p /srv/files; echo ours >/srv/files/ours; echo theirs >/srv/files/theirs")
    bed.run("systemctl", "start", "pod@one", "pod@two", timeout=START)
    yield found
    if os.environ.get("RKTD_TESTBED_KEEP") != "1":
        bed.stop()


@pytest.mark.parametrize("name", LABELS)
def test_a_pod_has_one_label(pods: Pods, name: str) -> None:
    """Its systemd, its app, what is executed in that; files have the level, but for the host's own."""
    bed, label = pods.bed, f"system_u:system_r:{LABELS[name]}"
    leader = bed.run("machinectl", "show", "--property=Leader", "--value", name).stdout.strip()
    assert bed.read(f"/proc/{leader}/attr/current").rstrip("\0") == label
    assert pods.lines(name) == [label]
    script = f"touch /x /disk/x /memory/x /claim/x /dev/shm/x; {LABEL}"
    assert bed.run("podctl", "exec", f"{name}/app", "sh", "-c", script).stdout == f"{label}\n"
    root = f"/proc/{leader}/root/apps/app/rootfs"
    found = bed.sh(f"cd {root}; stat -c %C ./{' ./'.join(OWN)} host/ours").stdout.splitlines()
    level = label.partition("container_t:")[2]
    assert found == [f"system_u:object_r:container_file_t:{level}"] * len(OWN) + ["system_u:object_r:var_t:s0"]


def test_it_is_enforced(pods: Pods) -> None:
    """While dom0 enforces, an app reads a file of its own level, and none of another."""
    kind = "system_u:object_r:container_file_t:s0"
    pods.bed.sh(f"""
        cd /srv/files; chcon {kind} .; chcon {kind}:c1,c2 ours; chcon {kind}:c3 theirs; setenforce 1; touch go
        sleep 10; setenforce 0; rm go
    """)
    assert pods.lines("one")[1:3] == ["ours", "cat: can't open '/host/theirs': Permission denied"]


def test_a_label_that_the_policy_does_not_know(pods: Pods) -> None:
    pods.write("three", {"securityContext": {"seLinuxOptions": {"type": "nobody_t"}}, "containers": [pods.app("true")]})
    assert pods.start("three", check=False, timeout=START).returncode == 1
    status = pods.bed.run("systemctl", "status", "pod@three", "--no-pager", "--full", check=False).stdout
    assert "pod three: this host's SELinux policy has no label system_u:system_r:nobody_t:s0:c" in status

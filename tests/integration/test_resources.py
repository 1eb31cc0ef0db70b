# SPDX-License-Identifier: Apache-2.0
"""Limits beyond memory and CPU: disk, processes, huge pages, devices, CPU sets, and whom the OOM killer takes first."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import lack
from tests.integration.pods import Pods

HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


def run_pod(pods: Pods, containers: list[dict[str, Any]], volumes: list[dict[str, Any]] | None = None, **more: Any) -> None:
    pods.write("p", {"restartPolicy": "Never", "containers": containers, "volumes": volumes or [], **more})
    pods.start("p")
    pods.wait_end("p")


def refusal(pods: Pods) -> str:
    assert pods.start("p", check=False).returncode == 1
    return pods.bed.run("systemctl", "status", "pod@p", "--no-pager", "--full", check=False).stdout


def test_disk_limits(pods: Pods) -> None:
    """ephemeral-storage holds for the root, sizeLimit for an emptyDir; each alone, exactly; nothing is left, also after a kill."""
    fill = "dd if=/dev/zero of=AT/x bs=64k 2>&1 | grep -o 'No space left'; stat -c %s AT/x; stat -c '%a %u' AT; ls -A AT | grep -v lib"
    script = "; ".join(fill.replace("AT", place) for place in ("/var", "/small", "/big"))
    limited = pods.app(script, "limited", resources={"limits": {"ephemeral-storage": "8Mi"}})
    limited["volumeMounts"] = [{"name": name, "mountPath": f"/{name}"} for name in ("small", "big")]
    limited["securityContext"] = {"runAsUser": 0}
    free = pods.app("dd if=/dev/zero of=/x bs=1M count=40 2>/dev/null; stat -c %s /x", "free")
    volumes = [{"name": "small", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "big", "emptyDir": {"sizeLimit": "24Mi"}}]
    run_pod(pods, [limited, free], volumes)
    lines = pods.lines("p", "-t", "limited")
    for mib, (error, size, owner, names) in zip((8, 1, 24), zip(*[iter(lines)] * 4, strict=True), strict=True):
        assert error == "No space left"
        assert 0.8 * mib < int(size) / (1 << 20) <= mib, (mib, size)
        assert owner == ("755 0" if mib == 8 else "777 0")
        assert names == "x"
    assert pods.lines("p", "-t", "free") == [str(40 << 20)]
    loops = "losetup --list --noheadings --output=BACK-FILE | grep rktd/pods || true"
    left = f"ls -A /var/lib/rktd/pods; {loops}; grep -c limited /proc/self/mountinfo || true"
    assert pods.bed.sh(left).stdout.split() == ["0"]
    pods.write("p", {"containers": [pods.app("sleep 1000", resources={"limits": {"ephemeral-storage": "8Mi"}})]})
    pods.start("p")
    pods.bed.run("systemctl", "kill", "--signal=KILL", "pod@p")
    pods.wait_state("p", "activating", "failed")
    pods.wait_state("p", "active")
    pods.stop("p")
    pods.wait_end("p")
    assert pods.bed.sh(left).stdout.split() == ["0"]


def test_processes_cpus_and_scores(pods: Pods) -> None:
    """In the app's unit and the pod's; an app cannot take itself out of the OOM killer's way beyond the least of the pod."""
    adjust = "cd /proc/self; cat oom_score_adj; (echo -900 >oom_score_adj) 2>/dev/null && echo lowered; "
    low = pods.app(adjust + "exec sleep 1000", "low", resources={"limits": {"systemd.io/pids": 20}})
    high = pods.app(adjust + "exec sleep 1000", "high", resources={"limits": {"systemd.io/pids": "1k"}, "requests": {"memory": "1Gi"}})
    annotations = {"systemd.io/cpus": "0-1 low=0"}
    pods.write("p", {"containers": [low, high], "terminationGracePeriodSeconds": 0}, annotations)
    pods.start("p")
    assert pods.show("p", "TasksMax", "AllowedCPUs") == {"TasksMax": str(20 + 1000 + 64), "AllowedCPUs": "0-1"}
    inside = pods.bed.run("systemctl", "-M", "p", "show", "low", "-pTasksMax", "-pAllowedCPUs").stdout
    assert dict(line.split("=") for line in inside.splitlines()) == {"TasksMax": "20", "AllowedCPUs": "0"}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    expected = 1000 - 1000 * (1 << 30) // memory
    assert pods.lines("p", "-t", "low") == ["999"]
    assert pods.lines("p", "-t", "high") == [str(expected)]
    leader = pods.bed.run("machinectl", "show", "p", "-P", "Leader").stdout.strip()
    for pid in (leader, pods.show("p", "MainPID")["MainPID"]):
        assert pods.bed.read(f"/proc/{pid}/oom_score_adj").strip() == str(expected)
    full = {"limits": {"memory": "64Mi", "cpu": "1"}}
    may = pods.bed.sh("sh -c 'echo -997 >/proc/self/oom_score_adj'", check=False).returncode == 0  # not where "host root" is not quite that
    assert pods.run("q", "cat /proc/self/oom_score_adj", resources=full) == ("-997" if may else "0")
    assert pods.run("q", "cat /proc/self/oom_score_adj") == "1000"
    assert int(pods.show("q", "TasksMax")["TasksMax"]) < 1 << 22


def test_devices(pods: Pods) -> None:
    """By a limit and by hostPath, elsewhere and under another name; root and others of the pod may use them; siblings have none."""
    look = "for d in /dev/fuse /dev/net/tun /dev/disk /srv/fuse; do [ -e $d ] && stat -c '%n %F %a %u %g %t:%T' $d; done; "
    opened = "(: <>/dev/net/tun) 2>&1; (: <>/dev/fuse) && echo opened fuse; (: <>/srv/fuse) && echo opened srv; "
    user = pods.app(look + opened, "user", resources={"limits": {"systemd.io/device-net-tun": 1, "systemd.io/device-fuse": "1"}})
    user["securityContext"] = {"runAsUser": 1000, "runAsGroup": 1000}
    user["volumeMounts"] = [{"name": "fuse", "mountPath": "/srv/fuse"}, {"name": "loop", "mountPath": "/dev/disk", "readOnly": True}]
    other = pods.app(look + "echo none", "other")
    volumes = [
        {"name": "fuse", "hostPath": {"path": "/dev/fuse", "type": "CharDevice"}},
        {"name": "loop", "hostPath": {"path": "/dev/loop7", "type": "BlockDevice"}},
    ]
    run_pod(pods, [user, other], volumes)
    assert pods.lines("p", "-t", "user", stream=None) == [
        "/dev/fuse character special file 660 1000 1000 a:e5",
        "/dev/net/tun character special file 660 1000 1000 a:c8",
        "/dev/disk block special file 660 1000 1000 7:7",
        "/srv/fuse character special file 660 1000 1000 a:e5",
        "opened fuse",
        "opened srv",
    ]
    assert pods.lines("p", "-t", "other") == ["none"]
    assert "/dev/loop7 rm" in pods.bed.read("/run/systemd/generator/pod@p.service.d/50-pod.conf")
    volumes = [{"name": "fuse", "hostPath": {"path": "/dev/fuse"}}]
    pods.write("p", {"containers": [pods.app("true", volumeMounts=[{"name": "fuse", "mountPath": "/dev/fuse"}])], "volumes": volumes})
    assert "hostPath /dev/fuse is a device" in (message := refusal(pods))
    assert "type: CharDevice lets the pod use it" in message
    pods.write("p", {"containers": [pods.app("true", resources={"limits": {"systemd.io/device-gone": 1}})]})
    assert "the pod asks for the device /dev/gone: no such file or directory" in refusal(pods)


@pytest.fixture
def huge_pages(require_root: None) -> Iterator[None]:
    """Four huge pages of this machine, for as long as the test."""
    before = HUGE.read_text()
    HUGE.write_text(str(int(before) + 4))
    if int(HUGE.read_text()) < int(before) + 4:
        lack("needs 8 MiB of memory in one piece for huge pages")
    yield
    HUGE.write_text(before)


def test_huge_pages(pods: Pods, huge_pages: None) -> None:
    """An emptyDir of them is a hugetlbfs of the limit's size; more than are free are refused."""
    script = "grep ' /huge ' /proc/mounts | cut -d' ' -f3,4; stat -c '%a %u' /huge; fallocate -l 6M /huge/x"
    limits = {"hugepages-2Mi": "4Mi"}
    mounts = [{"name": "huge", "mountPath": "/huge"}]
    volumes = [{"name": "huge", "emptyDir": {"medium": "HugePages"}}]
    run_pod(pods, [pods.app(script, volumeMounts=mounts, resources={"limits": limits})], volumes)
    lines = pods.lines("p", stream=None)
    assert lines[0].startswith("hugetlbfs rw,nosuid,nodev,")
    assert "pagesize=2M,size=4194304" in lines[0]
    assert lines[1] == "777 0"
    assert "No space left" in lines[2]
    limits["hugepages-2Mi"] = "1Gi"
    pods.write("p", {"containers": [pods.app("true", volumeMounts=mounts, resources={"limits": limits})], "volumes": volumes})
    assert "volume huge is to hold 512 huge pages of 2048 KiB, of which" in refusal(pods)

# SPDX-License-Identifier: Apache-2.0
"""Starts of Xen guests that are not as usual: a kernel and an initrd of the administrator's, what cannot start, a stop before the guest is
up.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import PARAVIRTUALISED, left_overs

START = 400.0  # seconds
FAILED = {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "1"}


def status(pods: Pods, pod: str) -> str:
    return pods.bed.run("systemctl", "status", f"pod@{pod}", "--no-pager", "--full", check=False).stdout


def too_large(pods: Pods) -> dict[str, Any]:
    """An app with more memory than the machine has."""
    return pods.app("exec sleep 1000", resources={"limits": {"memory": "64Gi"}})


@pytest.fixture
def overridden(pods: Pods) -> Iterator[Pods]:
    """rktd.yaml with an unpacked kernel, as Xen boots it, and an initrd with one file more. Both are what this host's are made of."""
    bed = pods.bed
    if bed.sh("ls /var/lib/rktd/xen/*.kernel", check=False).returncode:  # no test has started a guest yet
        pods.write("warm", {"runtimeClassName": "xen", "restartPolicy": "Never", "containers": [too_large(pods)]})
        pods.start("warm", check=False, timeout=START)
    bed.sh("""
        cd /var/lib/rktd/xen; mkdir -p /srv/own/usr/lib
        cp "$(ls -t *.kernel | head -1)" /srv/own/vmlinux-$(uname -r)
        cd /srv/own; echo of the administrator >usr/lib/mark; find usr | cpio --quiet -H newc -o >mark.cpio
        cat "$(ls -t /var/lib/rktd/xen/*.cpio | head -1)" mark.cpio >initrd
    """)
    kernel = f"/srv/own/vmlinux-{bed.run('uname', '-r').stdout.strip()}"
    bed.write("/etc/rktd/rktd.yaml", f"xen: {{type: pv, kernel: {kernel}, initrd: /srv/own/initrd}}\n")
    yield pods
    bed.write("/etc/rktd/rktd.yaml", PARAVIRTUALISED)


@pytest.mark.slow
def test_a_kernel_and_an_initrd_of_the_administrators(overridden: Pods) -> None:
    """The domain boots them: the mark is in its first root, which only a privileged app can see. That keeps the guest from shutting down,
    too: it is destroyed, and the unit has failed.
    """
    pods, bed = overridden, overridden.bed
    script = "echo /bin/true >/proc/sys/kernel/poweroff_cmd; cat /proc/1/root/usr/lib/mark; uname -r; exec sleep 1000"
    app = pods.app(script, securityContext={"privileged": True})
    spec = {"runtimeClassName": "xen", "restartPolicy": "Never", "shareProcessNamespace": True, "terminationGracePeriodSeconds": 1}
    pods.write("own", {**spec, "containers": [app]})
    pods.start("own", timeout=START)
    bed.wait_for("journalctl -u pod@own -t app -o cat | grep -q '^[0-9]'", timeout=60)
    release = bed.run("uname", "-r").stdout.strip()
    assert pods.lines("own") == ["of the administrator", release]
    (domain,) = json.loads(bed.run("xl", "list", "-l", "rktd-own").stdout)
    assert domain["config"]["b_info"]["kernel"] == f"/srv/own/vmlinux-{release}"
    bed.run("systemctl", "stop", "pod@own", timeout=120)
    pods.wait_end("own", timeout=60)
    assert pods.show("own", "ActiveState", "Result", "ExecMainStatus") == FAILED
    assert "the guest does not shut down: its domain is destroyed" in status(pods, "own")
    assert left_overs(bed) == ""
    for key in ("kernel", "initrd"):
        bed.write("/etc/rktd/rktd.yaml", f"xen: {{type: pv, {key}: /srv/none}}\n")
        assert pods.start("own", check=False).returncode == 1
        said = status(pods, "own")
        assert f"no {key} for Xen guests: /srv/none: No such file or directory" in said
        assert f"xen.{key} in /etc/rktd/rktd.yaml" in said
    assert left_overs(bed) == ""


@pytest.mark.slow
def test_an_app_that_cannot_be_executed(pods: Pods) -> None:
    """The same exit statuses as with nspawn (test_lifecycle.py)."""
    mounts = [{"name": "v", "mountPath": "/v"}]
    apps = [pods.app(["/v/x"], name="broken", volumeMounts=mounts), pods.app("exec sleep 1000", name="other")]
    spec = {"runtimeClassName": "xen", "restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": apps}
    values = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"x": "#!/none\n"}}
    volume = {"name": "v", "configMap": {"name": "c", "defaultMode": 0o755}}
    pods.write("none", {**spec, "volumes": [volume]}, beside=(values,))
    assert pods.start("none", check=False, timeout=START).returncode == 1
    pods.wait_end("none", timeout=60)
    assert pods.show("none", "ActiveState", "Result", "ExecMainStatus") == FAILED | {"ExecMainStatus": "203"}
    said = [entry["MESSAGE"] for entry in pods.bed.journal("-u", "pod@none", "-t", "pod", f"--after-cursor={pods.cursor}")]
    assert "app broken failed: exited 203 exit-code: cannot execute /v/x" in said
    assert left_overs(pods.bed) == ""


def test_more_memory_than_there_is(pods: Pods) -> None:
    """What xl says is in the unit's status, and nothing is left."""
    pods.write("huge", {"runtimeClassName": "xen", "restartPolicy": "Never", "containers": [too_large(pods)]})
    assert pods.start("huge", check=False, timeout=START).returncode == 1
    pods.wait_end("huge", timeout=60)
    assert pods.show("huge", "ActiveState", "Result", "ExecMainStatus") == FAILED
    assert "xl create" in status(pods, "huge")
    assert "memory" in status(pods, "huge")
    assert left_overs(pods.bed) == ""


@pytest.mark.parametrize("text", [pytest.param("Creating the domain", marks=pytest.mark.slow), "is starting"])
def test_a_stop_while_the_guest_boots(pods: Pods, text: str) -> None:
    """It ends as any stop does, long before the apps' start and the end of the grace period."""
    bed = pods.bed
    pods.write("early", {"runtimeClassName": "xen", "terminationGracePeriodSeconds": 60, "containers": [pods.app("exec sleep 1000")]})
    bed.sh(f"""
        systemctl start --no-block pod@early
        for i in $(seq 1000); do systemctl show -P StatusText pod@early | grep -q '{text}' && exit; sleep 0.1; done; exit 1
    """)
    began = bed.read("/proc/uptime").split()[0]
    bed.run("systemctl", "stop", "pod@early", timeout=240)
    assert float(bed.read("/proc/uptime").split()[0]) - float(began) < 60
    pods.wait_end("early", timeout=60)
    assert pods.show("early", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    said = "\n".join(str(entry["MESSAGE"]) for entry in bed.journal("-u", "pod@early", f"--after-cursor={pods.cursor}"))
    assert "does not shut down" not in said
    assert left_overs(bed) == ""

# SPDX-License-Identifier: Apache-2.0
"""Xen guests that end in ways that nobody asked for: the unit says why, and nothing is left.

More of them: a panic and a killed supervisor in test_together.py, `xl destroy` in test_exec.py, a power-off in test_volumes.py.
"""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import PARAVIRTUALISED, XenBed, left_overs

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


@pytest.fixture
def machine() -> Iterator[XenBed]:
    """Another one, that stays when dom0 reboots: QEMU resets it, and its disk keeps what was written."""
    bed = XenBed("tests-reboot")
    bed.boot()
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(f"/run/rktd-testbed-xen/{bed.name}/qmp")
        for command, arguments in (("qmp_capabilities", {}), ("set-action", {"reboot": "reset"})):
            monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
            while b'"return"' not in monitor.recv(4096):
                pass
    yield bed
    bed.stop()


def test_a_reboot_of_the_host(machine: XenBed) -> None:
    """Guests are stopped in order, while Xen's daemons still run; one that is enabled comes back; of the earlier boot nothing is left."""
    machine.write("/etc/rktd/rktd.yaml", PARAVIRTUALISED)
    machine.sh("mkdir -p /var/log/journal /srv/v; systemctl restart systemd-journald; journalctl --flush")
    pods = Pods(machine)
    pods.clean()
    mounts = [{"name": "v", "mountPath": "/v"}]
    app = pods.app("trap 'echo bye; echo bye >>/v/said; exit 0' TERM; echo up; while :; do sleep 1; done", volumeMounts=mounts)
    volumes = [{"name": "v", "hostPath": {"path": "/srv/v"}}]
    pods.write("boots", {"runtimeClassName": "xen", "terminationGracePeriodSeconds": 20, "containers": [app], "volumes": volumes})
    machine.run("systemctl", "enable", "pod@boots")
    pods.start("boots", timeout=START)
    before = machine.read("/proc/sys/kernel/random/boot_id")
    machine.sh("systemctl reboot", check=False)
    connection = Path(f"/run/rktd-testbed-xen/{machine.name}/ssh")
    end = time.monotonic() + 600
    while machine.run("cat", "/proc/sys/kernel/random/boot_id", check=False).stdout in ("", before):
        assert time.monotonic() < end
        connection.unlink(missing_ok=True)  # that of the boot that is over
        time.sleep(5)
    pods.wait_state("boots", "active", timeout=START)
    assert machine.read("/srv/v/said") == "bye\n"
    assert len(machine.run("xl", "list").stdout.splitlines()) == 3
    said = [entry["MESSAGE"] for entry in machine.journal("-b", "-1", "-u", "pod@boots", "-t", "app")]
    assert said == ["up", "bye"]
    assert not machine.sh("ls /var/lib/xen/save 2>/dev/null", check=False).stdout
    machine.run("systemctl", "stop", "pod@boots", timeout=120)
    pods.wait_end("boots", timeout=60)
    assert left_overs(machine) == ""

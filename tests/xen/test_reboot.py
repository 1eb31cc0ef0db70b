# SPDX-License-Identifier: Apache-2.0
"""A reboot of dom0, and of Xen with it. The last test of all (tests/conftest.py): what a testbed has set up since its boot is gone."""

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import XenBed, left_overs

START = 400.0  # seconds
BYE = "trap 'echo bye; echo bye >>/v/said; exit 0' TERM; echo up; while :; do sleep 1000 & wait $!; done"


@pytest.mark.slow
def test_guests_end_in_order_and_come_back(bed: XenBed, pods: Pods) -> None:
    """They are stopped while Xen's daemons still run, none is saved to a disk; one that is enabled is back; of the earlier boot nothing is
    left.
    """
    bed.sh("mkdir -p /var/log/journal /srv/v; rm -f /srv/v/said; systemctl restart systemd-journald; journalctl --flush")
    app = pods.app(BYE, volumeMounts=[{"name": "v", "mountPath": "/v"}])
    volumes = [{"name": "v", "hostPath": {"path": "/srv/v"}}]
    pods.write("boots", {"runtimeClassName": "xen", "terminationGracePeriodSeconds": 20, "containers": [app], "volumes": volumes})
    bed.run("systemctl", "enable", "pod@boots")
    pods.start("boots", timeout=START)
    before = bed.read("/proc/sys/kernel/random/boot_id")
    bed.reboot()
    assert bed.read("/proc/sys/kernel/random/boot_id") != before
    pods.wait_state("boots", "active", timeout=START)
    assert bed.read("/srv/v/said") == "bye\n"
    assert len(bed.run("xl", "list").stdout.splitlines()) == 3
    said = [[entry["MESSAGE"] for entry in bed.journal("-b", boot, "-u", "pod@boots", "-t", "app")] for boot in ("-1", "0")]
    assert said == [["up", "bye"], ["up"]]
    assert bed.sh("ls /var/lib/xen/save 2>/dev/null", check=False).stdout == ""
    bed.run("pkill", "-KILL", "-f", "/usr/lib/rktd/share")  # the server of its volume: without it the guest's apps would wait for ever
    bed.wait_for("journalctl -b -u pod@boots -o cat | grep -q 'the server of the pod.s volumes has ended'", timeout=60)
    pods.wait_state("boots", "activating", "active", timeout=120)  # again, as after any failure
    bed.run("systemctl", "disable", "--now", "pod@boots", timeout=120)
    pods.wait_end("boots", timeout=60)
    assert left_overs(bed) == ""

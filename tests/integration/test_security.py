# SPDX-License-Identifier: Apache-2.0
"""systemd-analyze security of our units: what each may score at most (docs/security.md says why), and that they do their work."""

import re

from tests.integration.pods import Pods

# Exposure, 0 is none and 10 all.
BOUNDS = {
    "pod@x": 8.8,
    "pod-stage0@x": 8.9,
    "pods-recheck": 7.4,
    "pods-reload": 7.4,
    "rktd-exec@x": 8.1,
    "rktd-gc": 5.7,
    "rktd-images@x": 1.4,
    "rktd-incoming": 5.5,
    "rktd-names@x": 2.0,
    "rktd-network": 6.3,
    "rktd-port-tcp@80": 3.5,
    "rktd-port-udp@80": 3.5,
    "rktd-update": 8.9,
    "rktd-verify": 5.5,
}


def test_exposure(pods: Pods) -> None:
    pods.write("x", {"containers": [pods.app("sleep 1000")]})
    pods.bed.run("systemctl", "daemon-reload")
    units = [f"{name}.service" for name in BOUNDS]
    found = {}
    for unit in units:
        text = pods.bed.run("systemd-analyze", "security", "--no-pager", unit).stdout
        match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
        assert match, text
        found[unit.removesuffix(".service")] = float(match[1])
    assert {name: level for name, level in found.items() if level > BOUNDS[name]} == {}, found


def test_confined_units_work(pods: Pods) -> None:
    """Each with something to do: layers to unmount, a table to mend, an image to hash, a pod file that is new."""
    bed = pods.bed
    pods.write(
        "net", {"containers": [pods.app("sleep 1000", ports=[{"containerPort": 80, "hostPort": 8077}])], "terminationGracePeriodSeconds": 0}
    )
    pods.start("net")
    bed.run("nft", "flush", "ruleset")
    gone = pods.make_image("gone", {"Labels": {"is": "gone"}})
    bed.run("podctl", "fetch", "--quiet", gone)
    bed.run("touch", "--date=-30days", *bed.sh("ls -d /var/lib/rktd/images/*").stdout.split())
    for unit in ("rktd-network", "rktd-verify", "rktd-gc", "pods-reload", "pods-recheck", "rktd-incoming", "rktd-update"):
        bed.run("systemctl", "start", f"{unit}.service")
        text = "\n".join(entry["MESSAGE"] for entry in bed.journal("-u", f"{unit}.service", f"--after-cursor={pods.cursor}"))
        assert not re.search(r"denied|not permitted|Traceback|Bad system call", text), text
    assert "8077" in bed.run("nft", "list", "ruleset").stdout
    assert bed.run("systemctl", "is-active", "pod@net").stdout == "active\n"


def test_hosts_users_have_all_capabilities(pods: Pods) -> None:
    """A privileged app without a user namespace is not held by the unit's bounding set; one with it has them all anew."""
    script = "grep CapEff /proc/self/status"
    host = re.search(r"CapBnd:\s*(\w+)", pods.bed.read("/proc/1/status"))
    last = int(pods.bed.read("/proc/sys/kernel/cap_last_cap"))
    assert host
    for host_users, everything in ((True, host[1]), (False, f"{(2 << last) - 1:016x}")):
        app = pods.app(script, securityContext={"privileged": True})
        pods.write("all", {"restartPolicy": "Never", "hostUsers": host_users, "containers": [app]})
        pods.start("all")
        pods.wait_end("all")
        assert pods.lines("all") == [f"CapEff:\t{everything}"]

# SPDX-License-Identifier: Apache-2.0
"""systemd-analyze security of our units: what each may score at most, and why, is in docs/security.md; and that they do their work."""

import json
import re
from pathlib import Path

from tests.integration.pods import Pods

CHECKOUT = Path(__file__).resolve().parents[2]


def read_bounds(page: str) -> dict[str, float]:
    """The table of docs/security.md: unit -> exposure, 0 is none and 10 all."""
    rows = re.findall(r"^\| (`[^|]+`) \| ([0-9.]+) \|", page, re.MULTILINE)
    return {name: float(level) for names, level in rows for name in re.findall(r"`([^`]+)`", names)}


def test_exposure(pods: Pods) -> None:
    """Each unit has its row; and each thing that is said against pod@ stands on the page, where the reason for it is."""
    page = (CHECKOUT / "docs/security.md").read_text(encoding="utf-8")
    bounds = read_bounds(page)
    assert {f"{name}.service" for name in bounds} == {path.name for path in (CHECKOUT / "units").glob("*.service")}
    pods.write("x", {"containers": [pods.app("sleep 1000")]})
    pods.bed.run("systemctl", "daemon-reload")
    found = {}
    for name in bounds:
        instance = ("80" if "port" in name else "x") if name.endswith("@") else ""
        text = pods.bed.run("systemd-analyze", "security", "--no-pager", f"{name}{instance}.service").stdout
        match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
        assert match, text
        found[name] = float(match[1])
    assert {name: level for name, level in found.items() if level > bounds[name]} == {}, found
    items = json.loads(pods.bed.run("systemd-analyze", "security", "--json=short", "pod@x.service").stdout)
    left = [str(item["name"]) for item in items if float(item["exposure"] or 0)]
    assert len(left) > 20
    names = {name.partition("~")[2] if name.startswith("CapabilityBoundingSet") else f"{name.partition('=')[0]}=" for name in left}
    section = page.partition("## What is left of pod@")[2].partition("\n## ")[0]
    assert names - set(re.findall(r"`([^`]+)`", section)) == set()


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

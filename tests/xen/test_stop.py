# SPDX-License-Identifier: Apache-2.0
"""The end of a Xen guest that is stopped: its apps get their signal and their time, and not a line of theirs is lost."""

import time

from tests.integration.pods import Pods
from tests.xen.bed import left_overs

START = 400.0  # seconds
LAST_WORDS = "trap 'i=0; while [ $i -lt 500 ]; do echo last $i; i=$((i+1)); done; exit 0' TERM; echo up; while :; do sleep 1; done"


def test_a_graceful_stop_and_the_end_of_the_grace_period(pods: Pods) -> None:
    """One guest with both; what dom0 shows of it while it runs and after."""
    brief = pods.app("echo run; [ -e /shared/ran ] && exec sleep 1000; touch /shared/ran", name="brief")
    brief["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
    stubborn = pods.app("trap '' TERM; echo up; while :; do sleep 1; done", name="stubborn")
    containers = [pods.app(LAST_WORDS, name="polite"), stubborn, brief]
    spec = {"runtimeClassName": "xen", "terminationGracePeriodSeconds": 15, "containers": containers}
    pods.write("guest", spec | {"volumes": [{"name": "shared", "emptyDir": {}}]})
    pods.start("guest", timeout=START)
    for _ in range(60):
        if pods.lines("guest", "SYSLOG_IDENTIFIER=brief") == ["run", "run"]:  # under Always it starts again, whatever its exit code
            break
        time.sleep(1)
    assert "rktd-guest" in pods.bed.run("xl", "list").stdout
    assert pods.bed.run("machinectl", "list", "--no-legend").stdout.split()[:2] == ["guest", "vm"]
    assert pods.show("guest", "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    pods.bed.wait_for("journalctl -u pod@guest -t brief --output=cat | grep -c run | grep -qx 2", timeout=60)
    pods.bed.run("systemctl", "stop", "pod@guest", timeout=240)
    pods.wait_end("guest", timeout=60)
    assert pods.show("guest", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    said = [entry["MESSAGE"] for entry in pods.bed.journal("-u", "pod@guest", "-t", "polite", f"--after-cursor={pods.cursor}")]
    assert said == ["up", *(f"last {n}" for n in range(500))]
    apps = pods.result("guest")["apps"]
    assert pods.lines("guest", "SYSLOG_IDENTIFIER=brief") == ["run", "run"]
    assert (apps["polite"]["code"], apps["polite"]["status"]) == ("exited", "0")
    assert (apps["stubborn"]["code"], apps["stubborn"]["status"]) == ("killed", "KILL")
    everything = "\n".join(str(entry["MESSAGE"]) for entry in pods.bed.journal("-u", "pod@guest", f"--after-cursor={pods.cursor}"))
    assert "does not shut down" not in everything
    assert left_overs(pods.bed) == ""

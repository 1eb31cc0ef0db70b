# SPDX-License-Identifier: Apache-2.0
"""A machine that loses its power while pods run: what is in /run is gone, what is in /var stays, and the enabled pods come again.

The pods are killed without a release and all runtime state is wiped; then systemd itself starts anew (systemctl soft-reboot), with the
generator and the boot's own transaction.
"""

import json
import time
from typing import Any

from tests.integration.pods import Pods

# Killed is killed: no restart, and nobody tidies up.
BREAK = """
for unit in pod@ pod-stage0@; do
    mkdir -p /run/systemd/system/$unit.service.d
    printf '[Service]\\nRestart=no\\nExecStopPost=\\n' >/run/systemd/system/$unit.service.d/90-break.conf
done
systemctl daemon-reload
systemctl kill --signal=KILL 'pod@*'
for i in $(seq 100); do
    [ -z "$(systemctl list-units --plain --no-legend --state=active,deactivating 'pod@*' 'pod-stage0@*')" ] && break; sleep 0.1
done
rm -r /run/systemd/system/pod@.service.d /run/systemd/system/pod-stage0@.service.d
systemctl stop 'rktd-names@*' rktd-network 'rktd-port-*'
for link in $(ip -o link | grep -o 'pods[a-z0-9-]*\\|[vc]pod[0-9a-f]*' | sort -u); do ip link del $link; done
nft flush ruleset
umount -R -l $(grep -o ' /run/rktd/[^ ]*' /proc/self/mountinfo | sort -u)
rm -rf /run/rktd /run/rktd-names /run/systemd/machines/* /run/systemd/nspawn
# The testbed's own mounts, which no boot makes again.
for unit in var-lib-rktd.mount var-lib-containers.mount; do
    mkdir -p /run/systemd/system/$unit.d
    printf '[Unit]\\nDefaultDependencies=no\\n' >/run/systemd/system/$unit.d/keep.conf
done
systemctl reset-failed
systemctl daemon-reload
"""


def test_enabled_pods_come_back(pods: Pods) -> None:
    """One by `systemctl enable`, one by its annotation; a claim is as it was, scratch is not; the third leaves nothing that gc leaves."""
    bed = pods.bed
    script = "ls /scratch /claim; touch /scratch/x /claim/$$(hostname); exec sleep 1000"
    for name in ("byhand", "byfile", "never"):
        app: dict[str, Any] = {"name": "app", "image": pods.image, "command": ["sh", "-c", script.replace("$$", "$")]}
        app["volumeMounts"] = [{"name": "scratch", "mountPath": "/scratch"}, {"name": "claim", "mountPath": "/claim"}]
        volumes = [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}}]
        spec = {"containers": [app], "volumes": volumes, "terminationGracePeriodSeconds": 0}
        pod: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        if name == "byfile":
            pod["metadata"] = {"name": name, "annotations": {"systemd.io/wanted-by": "multi-user.target"}}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
        bed.write(f"/etc/pods/{name}.yaml", "\n---\n".join(json.dumps(document) for document in (pod, claim)))
        pods.start(name)
    bed.run("systemctl", "enable", "pod@byhand")
    try:
        bed.sh(BREAK, check=False)
        assert bed.sh("ls /var/lib/rktd/pods").stdout.split() == ["byfile", "byhand", "never"]
        hook = {"preStop": {"exec": {"command": ["touch", "/claim/stopped"]}}}
        app = pods.app("exec sleep 1000", lifecycle=hook, volumeMounts=[{"name": "claim", "mountPath": "/claim"}])
        volumes = [{"name": "claim", "persistentVolumeClaim": {"claimName": "d"}}]
        pods.write("hooked", {"containers": [app], "volumes": volumes})
        pods.start("hooked")  # its hook is run by a service of the host while that goes down
        bed.run("systemctl", "soft-reboot", check=False)
        deadline = time.monotonic() + 60
        while bed.run("systemctl", "is-system-running", check=False).stdout.strip() not in ("running", "degraded"):
            assert time.monotonic() < deadline, bed.run("systemctl", "list-jobs", check=False).stdout
            time.sleep(0.2)
        assert bed.run("systemctl", "show", "-PSoftRebootsCount").stdout.strip() != "0"
        assert bed.sh("ls /var/lib/rktd/volumes/d").stdout == "stopped\n"
        for name, state in {"byhand": "active", "byfile": "active", "never": "inactive"}.items():
            pods.wait_state(name, state)
        for name in ("byhand", "byfile"):
            lines = [line for line in pods.lines(name) if line]
            assert lines == ["/claim:", "byfile", "byhand", "never", "/scratch:"]
        addresses = {json.loads(bed.read(f"/run/rktd/pods/{name}/pod.json"))["network"]["addresses"][0] for name in ("byhand", "byfile")}
        assert len(addresses) == 2
        assert "never" in bed.run("podctl", "gc").stdout
        assert bed.sh("ls /var/lib/rktd/pods").stdout.split() == ["byfile", "byhand"]
        assert "limited/volumes" in bed.run("losetup", "--list", "--noheadings", "--output=BACK-FILE").stdout
    finally:
        bed.sh("rm -r /run/systemd/system/var-lib-*.mount.d; systemctl disable pod@byhand", check=False)
        pods.clean()
        bed.sh("podctl volume rm c d", check=False)

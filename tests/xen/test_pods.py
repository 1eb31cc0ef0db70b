# SPDX-License-Identifier: Apache-2.0
"""Pods as Xen guests. Guests take half a minute to come up in emulation: each is asked for many things at once."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import PARAVIRTUALISED, XenBed, left_overs

START = 400.0  # seconds
FACTS = """
echo out; echo err >&2; echo '<2>critical'; printf 'no end'; echo
pwd; id; cat /proc/self/status | grep -E '^(Groups|Cap[PEBA]|NoNewPrivs|Seccomp:)'; env | sort; for a; do echo "arg $a"; done
cat /etc/hostname; sed 's/^[^ \t]*//' /etc/hosts; cat /etc/resolv.conf
cat /config/key; cat /secret/password; ls -ln /config/ /secret/ | sed 1d | sed 's/ [A-Z][a-z][a-z] .*:.. / /'
cat /shared/init; echo mine >/shared/$(id -u); stat -c '%a %u %g' /shared /mem; unshare -U true 2>&1
cat /host/file; touch /fixed/x 2>&1; id -u >>/host/seen; id -u >>/claim/seen; cat /claim/kept
mount -t tmpfs x /mnt 2>&1; touch /usr/x /config/x 2>&1; ls /dev | sort | tr '\\n' ' '; cat /proc/1/comm; stat -c %F /proc/kallsyms
"""
RUNTIMES = ("nspawn", "xen")
BUILDER = Path(__file__).resolve().parents[2] / "tools/guest-kernel"


def records(pods: Pods, pod: str, app: str) -> list[dict[str, Any]]:
    """What the journal has of an app since the test began."""
    return pods.bed.journal("-u", f"pod@{pod}", f"SYSLOG_IDENTIFIER={app}", f"--after-cursor={pods.cursor}")


def by_priority(entries: list[dict[str, Any]], pod: str) -> dict[str, list[str]]:
    """Of two streams nobody knows the order."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(entry["PRIORITY"], []).append(entry["MESSAGE"].replace(pod, "POD"))
    return found


def spec(pods: Pods, runtime: str) -> dict[str, Any]:
    """One file for both."""
    mounts: list[dict[str, Any]] = [
        {"name": name, "mountPath": f"/{name}"} for name in ("shared", "mem", "config", "secret", "host", "claim")
    ]
    mounts.append({"name": "host", "mountPath": "/fixed", "readOnly": True})
    security = {"runAsUser": 1000, "runAsGroup": 1001, "capabilities": {"add": ["NET_ADMIN"], "drop": ["CHOWN"]}}
    root = pods.app(["sh", "-c", FACTS.replace("$", "$$"), "sh", "one two", "'"], name="root", volumeMounts=mounts, workingDir="/srv/new")
    user = pods.app(FACTS, name="user", volumeMounts=mounts, securityContext=security, env=[{"name": "A", "value": "b c"}])
    secret = {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}}
    root["env"] = [secret, {"name": "EMPTY", "value": ""}]
    return {
        "runtimeClassName": runtime,
        "restartPolicy": "Never",
        "hostname": "same",
        "securityContext": {"supplementalGroups": [7, 8], "fsGroup": 9},
        "initContainers": [pods.app("sleep 1; echo first >/shared/init", name="first", volumeMounts=mounts[:1])],
        "containers": [
            root,
            user,
            pods.app("uname -r >&2; exit 7", name="seven"),
            pods.app("kill -9 $$", name="killed"),
            pods.app(["/bin/true"], name="good"),
        ],
        "volumes": [
            {"name": "shared", "emptyDir": {}},
            {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "config", "configMap": {"name": "c"}},
            {"name": "secret", "secret": {"secretName": "s", "defaultMode": 0o400}},
            {"name": "host", "hostPath": {"path": f"/srv/{runtime}", "type": "Directory"}},
            {"name": "claim", "persistentVolumeClaim": {"claimName": runtime}},
        ],
    }


@pytest.fixture(params=["host", pytest.param("own", marks=pytest.mark.slow)])
def kernel(request: pytest.FixtureRequest, bed: XenBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the guests, what `uname -r` ends with: the host's, or that of tools/guest-kernel, which takes minutes to build."""
    if request.param == "host":
        yield bed.run("uname", "-r").stdout.strip()
        return
    made = Path(os.environ.get("RKTD_TEST_GUEST_KERNEL") or tmp_path_factory.mktemp("kernel"))
    if not list(made.glob("usr/local/lib/rktd/vmlinux-*")):
        subprocess.run([BUILDER], check=True, stdin=subprocess.DEVNULL, env=os.environ | {"DESTDIR": str(made)})
    (image,) = made.glob("usr/local/lib/rktd/vmlinux-*")
    bed.bind(made, "/srv/made", read_only=True)
    bed.sh("cp -r /srv/made/usr /; umount /srv/made")
    bed.write("/etc/rktd/rktd.yaml", f"xen: {{type: pv, kernel: /usr/local/lib/rktd/{image.name}}}\n")
    yield "-rktd"
    bed.write("/etc/rktd/rktd.yaml", PARAVIRTUALISED)


def test_one_file_is_the_same_pod(pods: Pods, kernel: str) -> None:
    """Environment, arguments, directory, ids, capabilities, system calls, volumes, results, journal."""
    beside = (
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"key": "value\n"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"password": "hunter2\n"}},
    )
    found: dict[str, Any] = {}
    for runtime in RUNTIMES:
        pods.bed.sh(f"""
            for d in /srv/{runtime} /var/lib/rktd/volumes/{runtime}; do
                mkdir -p $d; chmod 777 $d; echo of the host >$d/file; echo kept >$d/kept; install -m 666 /dev/null $d/seen
            done
        """)
        pods.write(runtime, spec(pods, runtime), beside=beside)
        pods.start(runtime, check=False, timeout=START)
        pods.wait_end(runtime, timeout=120)
        entries = {app: records(pods, runtime, app) for app in ("root", "user", "seven", "killed", "good", "first")}
        assert {e["POD"] for found_entries in entries.values() for e in found_entries} == {runtime}
        assert {e["_SYSTEMD_UNIT"] for found_entries in entries.values() for e in found_entries} == {f"pod@{runtime}.service"}
        found[runtime] = {
            "journal": {app: by_priority(own, runtime) for app, own in entries.items()},
            "results": pods.result(runtime)["apps"],
            "unit": pods.show(runtime, "Result", "ExecMainCode", "ExecMainStatus", "ActiveState"),
            "host": pods.bed.sh(f"sort /srv/{runtime}/seen; sort /var/lib/rktd/volumes/{runtime}/seen").stdout.split(),
        }
    (release,) = found["xen"]["journal"]["seven"].pop("3")
    assert release.endswith(kernel)
    del found["nspawn"]["journal"]["seven"]["3"]
    assert found["nspawn"]["journal"]["root"]["3"][0] == "err"
    assert found["nspawn"]["journal"]["user"]["2"] == ["critical"]
    assert found["nspawn"]["host"] == ["0", "1000"] * 2
    assert found["xen"] == found["nspawn"]
    assert found["xen"]["unit"]["ExecMainStatus"] == "7"
    assert {entry["RKTD_GUEST_PID"].isdigit() for entry in records(pods, "xen", "root")} == {True}
    assert left_overs(pods.bed) == ""
    assert "hunter2" not in pods.bed.sh("journalctl -b -u pod-stage0@xen; grep -r hunter2 /var/lib/rktd /run/rktd || true").stdout

# SPDX-License-Identifier: Apache-2.0
"""Pods as Xen guests. Guests take half a minute to come up in emulation: each is asked for many things at once."""

from typing import Any

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import left_overs

START = 400.0  # seconds
GRACE = 15  # seconds
LIMIT = 24  # MiB, of each app
OWN = 32  # MiB of a pod's systemd, beyond what its apps are allowed
GUEST = 128  # MiB of a guest's kernel and systemd, beyond that
FACTS = """
echo out; echo err >&2; echo '<2>critical'; printf 'no end'; echo
pwd; id; cat /proc/self/status | grep -E '^(Groups|Cap[PEBA]|NoNewPrivs|Seccomp:)'; env | sort; for a; do echo "arg $a"; done
cat /etc/hostname; cat /config/key; cat /secret/password; ls -ln /config/ /secret/ | sed 1d | sed 's/ [A-Z][a-z][a-z] .*:.. / /'
cat /shared/init; echo mine >/shared/$(id -u); stat -c '%a %u %g' /shared /mem; unshare -U true 2>&1
cat /host/file; touch /fixed/x 2>&1; id -u >>/host/seen; id -u >>/claim/seen; cat /claim/kept
mount -t tmpfs x /mnt 2>&1; touch /usr/x /config/x 2>&1; ls /dev | sort | tr '\\n' ' '; cat /proc/1/comm; stat -c %F /proc/kcore
"""

# Apps of a pod that is stopped while they run. What each app says does not depend on how fast the machine is.
REST = "while :; do sleep 1; done"
FAILS = f"echo run; n=$(cat /shared/runs 2>/dev/null || echo 0); echo $((n+1)) >/shared/runs; [ $n -lt 2 ] && exit 3; {REST}"
ENDS = f"echo run; [ -e /shared/ended ] || {{ touch /shared/ended; exit 0; }}; {REST}"
EATS = f"echo up; [ -e /shared/eaten ] || {{ touch /shared/eaten; exec tail /dev/zero; }}; {REST}"
POLITE = f"trap 'cat /shared/hooks; i=0; while [ $i -lt 300 ]; do echo last $i; i=$((i+1)); done; exit 0' TERM; echo up; {REST}"
SICK = f"[ -e /shared/sick ] && touch /shared/cured; touch /shared/sick; echo up; {REST}"
STUBBORN = f"trap 'echo no' TERM; echo up; {REST}"
RUNTIMES = ("nspawn", "xen")


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
            pods.app("exit 7", name="seven"),
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


def test_one_file_is_the_same_pod(pods: Pods) -> None:
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
    assert found["nspawn"]["journal"]["root"]["3"][0] == "err"
    assert found["nspawn"]["journal"]["user"]["2"] == ["critical"]
    assert found["nspawn"]["host"] == ["0", "1000"] * 2
    assert found["xen"] == found["nspawn"]
    assert found["xen"]["unit"]["ExecMainStatus"] == "7"
    assert {entry["RKTD_GUEST_PID"].isdigit() for entry in records(pods, "xen", "root")} == {True}
    assert left_overs(pods.bed) == ""
    assert "hunter2" not in pods.bed.sh("journalctl -b -u pod-stage0@xen; grep -r hunter2 /var/lib/rktd /run/rktd || true").stdout


def busy_spec(pods: Pods, runtime: str, policy: str) -> dict[str, Any]:
    """Apps that fail, end, eat more memory than they may, are probed, and take their stop well or badly."""

    def app(script: str, name: str, **fields: Any) -> dict[str, Any]:
        mounts = [{"name": "shared", "mountPath": "/shared"}]
        return pods.app(script, name, volumeMounts=mounts, resources={"limits": {"memory": f"{LIMIT}Mi"}}, **fields)

    def probe(*command: str, **fields: int) -> dict[str, Any]:
        return {"exec": {"command": command}, "periodSeconds": 2, "timeoutSeconds": 60, **fields}

    hooks = {kind: {"exec": {"command": ["sh", "-c", f"echo {kind} >>/shared/hooks"]}} for kind in ("postStart", "preStop")}
    good = probe("test", "-e", "/shared/hooks", failureThreshold=100)
    return {
        "runtimeClassName": runtime,
        "restartPolicy": policy,
        "terminationGracePeriodSeconds": GRACE,
        "containers": [
            app(FAILS, "fails"),
            app(ENDS, "ends"),
            app(EATS, "eats"),
            app(POLITE, "polite", lifecycle=hooks, startupProbe=good, readinessProbe=good),
            app(SICK, "sick", livenessProbe=probe("test", "-e", "/shared/cured", initialDelaySeconds=5, failureThreshold=1)),
            app(STUBBORN, "stubborn"),
        ],
        "volumes": [{"name": "shared", "emptyDir": {}}],
    }


@pytest.mark.parametrize("policy", ["OnFailure", "Always"])
def test_one_file_restarts_and_stops_alike(pods: Pods, policy: str) -> None:
    """Back-off, probes, hooks, memory limits, a stop within its time and beyond it. Under Never, what test_one_file_is_the_same_pod has."""
    runs = {"fails": 3, "ends": 1 + (policy == "Always"), "eats": 2, "polite": 1, "sick": 2, "stubborn": 1}
    found: dict[str, Any] = {}
    for runtime in RUNTIMES:
        pods.write(runtime, busy_spec(pods, runtime, policy))
        pods.start(runtime, timeout=START)
        await_lines(pods, runtime, sum(runs.values()) + 1, "app polite is ready")
        shown = next(line.split() for line in pods.bed.run("podctl", "list", runtime).stdout.splitlines() if line.startswith(runtime))
        running = pods.show(runtime, "ActiveState", "SubState", "NRestarts")
        times = [int(entry.get("RKTD_GUEST_TIME_USEC", entry["__REALTIME_TIMESTAMP"])) / 1e6 for entry in records(pods, runtime, "fails")]
        assert [later - earlier > least for earlier, later, least in zip(times, times[1:], (0.9, 1.7), strict=False)] == [True, True]
        if runtime == "xen":
            assert pods.bed.run("xl", "list", "rktd-xen").stdout.split()[-4] == str(len(runs) * LIMIT + GUEST)
        else:
            assert pods.show(runtime, "MemoryMax") == {"MemoryMax": str((len(runs) * LIMIT + OWN) << 20)}
        pods.bed.run("systemctl", "stop", f"pod@{runtime}", timeout=240)
        pods.wait_end(runtime, timeout=60)
        said = sorted(entry["MESSAGE"] for entry in records(pods, runtime, "pod") if entry["MESSAGE"].startswith("app "))
        found[runtime] = {
            "lines": {app: [entry["MESSAGE"] for entry in records(pods, runtime, app)] for app in runs},
            "pod": said,
            "results": pods.result(runtime)["apps"],
            "list": shown[2:5],
            "running": running,
            "unit": pods.show(runtime, "Result", "ExecMainCode", "ExecMainStatus", "ActiveState"),
        }
    own = found["nspawn"]
    assert own["lines"]["fails"] == ["run"] * 3
    assert own["lines"]["ends"] == ["run"] * runs["ends"]
    assert own["lines"]["eats"] == own["lines"]["sick"] == ["up"] * 2
    assert own["lines"]["polite"] == ["up", "postStart", "preStop", *(f"last {n}" for n in range(300))]
    assert own["lines"]["stubborn"] == ["up", "no"]
    ends = {name: (end["code"], end["status"]) for name, end in own["results"].items()}
    assert (ends["polite"], ends["stubborn"]) == (("exited", "0"), ("killed", "KILL"))
    assert "app eats failed: killed KILL oom-kill: out of memory" in own["pod"]
    assert own["pod"].count("app fails failed: exited 3 exit-code") == 2
    assert any(line.startswith("app sick ") for line in own["pod"])
    assert own["unit"] == {"Result": "success", "ExecMainCode": "1", "ExecMainStatus": "0", "ActiveState": "inactive"}
    assert found["xen"] == own
    assert left_overs(pods.bed) == ""


def await_lines(pods: Pods, pod: str, number: int, last: str) -> None:
    """Until apps have written so many lines, and the pod itself that one."""
    script = f"""for i in $(seq 120); do
        [ "$(journalctl -u pod@{pod} --after-cursor='{pods.cursor}' -o cat | grep -cxE 'run|up|{last}')" = {number} ] && exit; sleep 1
    done; exit 1"""
    pods.bed.sh(script, timeout=300)

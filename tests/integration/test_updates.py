# SPDX-License-Identifier: Apache-2.0
"""podctl update with Debian's docker-registry: images that moved, are bad, or nobody vouches for; files that changed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rktd_units.events import EVENTS
from tests.integration.bed import Bed
from tests.integration.pods import Pods
from tests.output_schema import check_record

REGISTRY = "127.0.0.1:5011"
CONFIG = f"""version: 0.1
storage: {{filesystem: {{rootdirectory: /srv/updates}}}}
http: {{addr: {REGISTRY}}}
"""
TRUST = f"insecure: [{REGISTRY}]\n"
WAIT = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def registry(pods_session: Pods) -> Iterator[Bed]:
    bed = pods_session.bed
    bed.write("/run/updates.yaml", CONFIG)
    bed.write("/etc/rktd/rktd.yaml", TRUST)
    bed.start_registry("updates-registry", "/run/updates.yaml", REGISTRY)
    yield bed
    bed.sh("systemctl stop updates-registry; rm -f /etc/rktd/rktd.yaml; rm -rf /var/lib/rktd/updates")


def push(pods: Pods, name: str, script: str) -> str:
    """An image whose entry point is a script, as NAME:1; its digest."""
    pods.make_image("moving", {"Entrypoint": ["/bin/sh", "-c", script]})
    target = f"docker://{REGISTRY}/{name}:1"
    pods.bed.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", "oci:/srv/images/moving:latest", target)
    return pods.bed.run("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", target).stdout.strip()


def write(pods: Pods, name: str, source: str = "registry", policy: str = "Always", **fields: Any) -> None:
    app = {"name": "app", "image": f"{REGISTRY}/{name}:1", "imagePullPolicy": policy, **fields}
    pods.write(name, {"containers": [app]}, {"systemd.io/auto-update": source})


def update(pods: Pods, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and records."""
    done = pods.bed.run("podctl", "update", "--output=json", "--quiet", *arguments, check=False)
    records: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    for record in records:
        check_record("update", record)
    return done.returncode, records


def states(pods: Pods, *arguments: str) -> tuple[int, list[str]]:
    code, records = update(pods, *arguments)
    return code, [record["state"] for record in records]


def running(pods: Pods, name: str) -> str:
    digest: str = json.loads(pods.bed.read(f"/run/rktd/pods/{name}/pod.json"))["apps"][0]["digest"]
    return digest


def told(pods: Pods, name: str) -> list[str]:
    entries = pods.bed.journal("-u", f"pod@{name}", "SYSLOG_IDENTIFIER=podctl", f"--after-cursor={pods.cursor}")
    return [entry["MESSAGE"] for entry in entries]


def test_a_moved_tag_a_bad_image_and_the_way_back(pods: Pods, registry: Bed) -> None:
    first = push(pods, "p", f"echo one; {WAIT}")
    write(pods, "p")
    pods.start("p")
    assert states(pods) == (0, ["unchanged"])
    second = push(pods, "p", f"echo two; {WAIT}")
    code, (record,) = update(pods, "--dry-run")
    assert (code, record["state"], record["running"], record["digest"]) == (0, "pending", first, second)
    assert running(pods, "p") == first
    assert pods.bed.sh(f"podctl images -q {REGISTRY}/p:1").stdout.strip() == first
    assert states(pods, "p") == (0, ["updated"])
    assert running(pods, "p") == second
    assert pods.lines("p") == ["two"]
    third = push(pods, "p", "echo three; sleep 0.3; exit 7")
    code, (record,) = update(pods)
    assert (code, record["state"], record["digest"]) == (1, "rolledBack", third)
    assert record["message"] == "its app app has ended with exit code 7"
    assert running(pods, "p") == second
    assert f"rolled back, {third}: its app app has ended with exit code 7" in told(pods, "p")[-1]
    rolled_back = pods.bed.journal(f"MESSAGE_ID={EVENTS['update-rolled-back']}", f"--after-cursor={pods.cursor}")
    assert [(entry["POD"], entry["APP"]) for entry in rolled_back] == [("p", "app")]
    assert states(pods) == (0, ["held"])
    pods.bed.run("systemctl", "restart", "pod@p")  # though its policy is Always
    assert running(pods, "p") == second
    pods.stop("p")
    pods.bed.run("podctl", "gc", "--grace=0")
    pods.start("p")
    assert running(pods, "p") == second
    fourth = push(pods, "p", f"echo four; {WAIT}")
    assert states(pods) == (0, ["updated"])
    assert running(pods, "p") == fourth
    assert pods.bed.sh("ls /var/lib/rktd/updates").stdout == ""
    pods.bed.write("/etc/pods/p.yaml.d/a.yaml", "metadata: {labels: {a: b}}\n")  # a restart would try that along
    fifth = push(pods, "p", f"echo five; {WAIT}")
    code, (record,) = update(pods)
    assert (code, record["state"], record["digest"], running(pods, "p")) == (0, "pending", fifth, fourth)
    assert "its file has changed since it was started" in record["message"]
    assert "its file has changed" in told(pods, "p")[-1]


def test_a_job_that_is_soon_done(pods: Pods, registry: Bed) -> None:
    """Its end is no reason to go back."""
    push(pods, "j", f"echo one; {WAIT}")
    pods.write(
        "j", {"restartPolicy": "Never", "containers": [{"name": "app", "image": f"{REGISTRY}/j:1"}]}, {"systemd.io/auto-update": "registry"}
    )
    pods.start("j")
    push(pods, "j", "echo done")
    assert states(pods, "j") == (0, ["updated"])
    assert pods.wait_end("j") == "inactive"
    assert pods.lines("j") == ["done"]


def test_refused_local_and_by_timer(pods: Pods, registry: Bed) -> None:
    """What nobody vouches for leaves the pod alone; `local` waits for a fetch; the timer's service does the same."""
    first = push(pods, "r", f"echo one; {WAIT}")
    write(pods, "r", policy="IfNotPresent")
    write(pods, "q", "local", "IfNotPresent")
    pods.bed.run("skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", *(f"docker://{REGISTRY}/{n}:1" for n in "rq"))
    pods.start("r")
    pods.start("q")
    since = pods.show("r", "ActiveEnterTimestampMonotonic")
    second = push(pods, "r", f"echo two; {WAIT}")
    pods.bed.run("skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", *(f"docker://{REGISTRY}/{n}:1" for n in "rq"))
    registry.write("/etc/rktd/rktd.yaml", "")
    code, (other, record) = update(pods)
    assert (code, record["pod"], record["state"], other["state"]) == (1, "r", "refused", "unchanged")
    assert "is not verified" in record["message"]
    assert pods.show("r", "ActiveEnterTimestampMonotonic") == since
    registry.write("/etc/rktd/rktd.yaml", TRUST)
    assert pods.bed.sh(f"podctl images -q {REGISTRY}/r:1").stdout.strip() == first
    pods.bed.run("systemctl", "start", "rktd-update.service")
    assert (running(pods, "r"), running(pods, "q")) == (second, first)
    assert any(f"updated, {second}" in line for line in told(pods, "r"))
    pods.bed.run("podctl", "fetch", "--quiet", f"{REGISTRY}/q:1")
    assert states(pods, "q") == (0, ["updated"])
    assert running(pods, "q") == second
    assert pods.bed.run("systemctl", "is-enabled", "rktd-update.timer").stdout.strip() in ("static", "enabled")
    assert pods.bed.run("systemctl", "is-active", "rktd-update.timer").stdout.strip() == "active"


def test_killed_half_way(pods: Pods, registry: Bed) -> None:
    """When the note is written, while the pod stops, waits to become ready (which it never will), and goes back: whatever the next run
    finds, it ends with what ran before, and the bad image is known as such.
    """
    first = push(pods, "k", f"sleep 0.7; touch /ready; {WAIT}")
    write(pods, "k", readinessProbe={"exec": {"command": ["test", "-e", "/ready"]}})
    pods.start("k")
    runs = "grep -q {} /run/rktd/pods/k/pod.json 2>/dev/null && [ $(systemctl show -P ActiveState pod@k) = activating ]"
    stages = {
        "noted": "[ -e /var/lib/rktd/updates/k.json ]",
        "stopping": "! [ -e /run/rktd/pods/k/plan ]",
        "waiting": runs.format("BAD"),
        "going back": f"grep -q BAD /run/rktd/pods/k/pod.json && touch /run/seen; [ -e /run/seen ] && {runs.format(first)}",
    }
    for number, (stage, condition) in enumerate(stages.items()):
        bad = push(pods, "k", f"echo {number}; {WAIT}")
        pods.bed.run("systemd-run", "--quiet", "--collect", f"--unit=killed-{number}", "podctl", "update", "--quiet", "--timeout=2s")
        wait = f"rm -f /run/seen; for i in $(seq 1000); do if {condition.replace('BAD', bad)}; then break; fi; sleep 0.02; done"
        killed = pods.bed.sh(f"{wait}; systemctl kill -s KILL killed-{number}", check=False)
        assert killed.returncode == 0, (stage, killed.stderr)  # else it had ended
        found = states(pods, "--timeout=2s")
        assert found in ((1, ["rolledBack"]), (0, ["held"])), (stage, found)
        assert running(pods, "k") == first, stage
        assert states(pods) == (0, ["held"]), stage
        pods.wait_state("k", "active")


def test_a_changed_file_is_told(pods: Pods) -> None:
    pods.write("p", {"containers": [pods.app("exec sleep 1000")]})
    pods.start("p")
    show = ("podctl", "list", "--output=json", "p")
    assert json.loads(pods.bed.run(*show).stdout)[0]["changed"] is False
    pods.bed.sh("touch /etc/pods/p.yaml")
    assert json.loads(pods.bed.run(*show).stdout)[0]["changed"] is False
    pods.bed.write("/etc/pods/p.yaml.d/a.yaml", "metadata: {labels: {a: b}}\n")
    assert json.loads(pods.bed.run(*show).stdout)[0]["changed"] is True
    assert "active (changed)" in pods.bed.run("podctl", "list").stdout
    assert "changed on disk: systemctl restart pod@p applies it" in pods.bed.run("podctl", "status", "p").stdout
    pods.bed.run("systemctl", "restart", "pod@p")
    assert json.loads(pods.bed.run(*show).stdout)[0]["changed"] is False

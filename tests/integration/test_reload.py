# SPDX-License-Identifier: Apache-2.0
"""Pod files that come, change and go, without a daemon-reload by hand, on a real systemd: DESIGN section 2."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rktd_units.translate import POD_OVERHEAD_BYTES
from tests.integration.bed import Bed
from tests.integration.pods import Pods

MIB = 1024 * 1024
WAIT = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"
GENERATED = "/run/systemd/generator"
DENY = {"systemd.io/ip-address-deny": "any"}
# What changes by itself while a unit runs; all other properties must not.
VOLATILE = (
    "Current",
    "USec",
    "NSec",
    "Bytes",
    "Packets",
    "Operations",
    "Available",
    "Peak",
    "Timestamp",
    "TimestampMonotonic",
    "EffectiveMemoryHigh",
)
CONFIGURED = (
    "TimeoutStopUSec",
    "TimeoutStartUSec",
    "RestartUSec",
    "RuntimeMaxUSec",
    "WatchdogUSec",
    "CPUQuotaPerSecUSec",
    "LogRateLimitIntervalUSec",
)


def spec(pods: Pods, megabytes: int = 0, **fields: Any) -> dict[str, Any]:
    limits = {"limits": {"memory": f"{megabytes}Mi"}} if megabytes else {}
    return {"containers": [pods.app(WAIT, resources=limits)], **fields}


def render(name: str, body: dict[str, Any], annotations: dict[str, str]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations}, "spec": body})


def has_limits(pods: Pods, name: str, megabytes: int) -> None:
    """In systemd's mind, and, on a machine that has the controller, in the control group that the pod really runs in."""
    limit = str(megabytes * MIB + POD_OVERHEAD_BYTES)
    shown = pods.show(name, "ActiveState", "MemoryMax", "IPAddressDeny", "NeedDaemonReload", "ControlGroup", "LogExtraFields")
    assert shown["ActiveState"] == "active"
    assert shown["MemoryMax"] == limit
    assert "0.0.0.0/0" in shown["IPAddressDeny"].split()
    assert "::/0" in shown["IPAddressDeny"].split()
    assert shown["LogExtraFields"] == f"POD={name}"
    if "memory" in pods.bed.read("/sys/fs/cgroup/cgroup.controllers").split():
        assert pods.bed.read(f"/sys/fs/cgroup{shown['ControlGroup']}/memory.max").strip() == limit


@contextmanager
def no_path_unit(bed: Bed) -> Iterator[None]:
    """Nobody reloads but stage0: as when the path unit has lost an event."""
    bed.sh("systemctl stop pods.path; systemctl stop pods-reload.service pods-recheck.service")
    try:
        yield
    finally:
        bed.sh("systemctl start pods.path")


@contextmanager
def reloading(bed: Bed) -> Iterator[None]:
    """A daemon-reload is under way at any time."""
    bed.sh("systemd-run --quiet --unit=reloads --property=StartLimitIntervalSec=0 bash -c 'while :; do systemctl daemon-reload; done'")
    try:
        yield
        assert bed.run("systemctl", "is-active", "reloads", check=False).stdout == "active\n"
    finally:
        bed.sh("systemctl stop reloads", check=False)


def drop_and_start(pods: Pods, count: int, prefix: str = "p") -> list[str]:
    """Files dropped one after the other, each started in the same breath."""
    names = [f"{prefix}{index}" for index in range(count)]
    for index, name in enumerate(names):
        pods.bed.write(f"/run/dropped/{name}.yaml", render(name, spec(pods, 10 + index), DENY))
    pods.bed.sh(f"for n in {' '.join(names)}; do cp /run/dropped/$n.yaml /etc/pods/; systemctl start pod@$n; done")
    return names


def test_twenty_files_dropped_and_started(pods: Pods) -> None:
    for index, name in enumerate(drop_and_start(pods, 20)):
        has_limits(pods, name, 10 + index)


def test_dropped_and_started_without_the_path_unit(pods: Pods) -> None:
    with no_path_unit(pods.bed):
        for index, name in enumerate(drop_and_start(pods, 3)):
            has_limits(pods, name, 10 + index)


def test_dropped_during_a_reload(pods: Pods) -> None:
    with reloading(pods.bed):
        names = drop_and_start(pods, 4)
        for index, name in enumerate(names):
            has_limits(pods, name, 10 + index)


@pytest.mark.parametrize("path_unit", [True, False], ids=["path-unit", "no-path-unit"])
def test_an_edit_beside_the_file(pods: Pods, path_unit: bool) -> None:
    """NAME.yaml.d/ did not exist when the pod was started."""
    pods.write("x", spec(pods, 20))
    pods.start("x")
    edits = [
        {"metadata": {"annotations": DENY}, "spec": {"containers": [{"name": "app", "resources": {"limits": {"memory": f"{m}Mi"}}}]}}
        for m in (30, 40)
    ]

    def edit_and_restart() -> None:
        for edit, megabytes in zip(edits, (30, 40), strict=True):
            pods.bed.sh(f"mkdir -p /etc/pods/x.yaml.d; echo '{json.dumps(edit)}' >/etc/pods/x.yaml.d/10.yaml; systemctl restart pod@x")
            has_limits(pods, "x", megabytes)

    if path_unit:
        edit_and_restart()
    else:
        with no_path_unit(pods.bed):
            edit_and_restart()


def test_an_edit_beside_the_file_is_seen_by_the_path_unit(pods: Pods) -> None:
    pods.write("x", spec(pods, 20))
    pods.bed.sh("mkdir /etc/pods/x.yaml.d")
    dropin = f"{GENERATED}/pod@x.service.d/50-pod.conf"
    pods.bed.wait_for(f"[ -e {dropin} ]")
    time.sleep(1)
    for seconds in (7, 8):
        pods.bed.sh(f"echo 'spec: {{terminationGracePeriodSeconds: {seconds}}}' >/etc/pods/x.yaml.d/10.yaml")
        pods.bed.wait_for(f"grep -qx TimeoutStopSec={seconds + 10} {dropin}")
        time.sleep(1)


def test_no_edit_is_lost(pods: Pods) -> None:
    """An edit when the reload service has done its work and has not ended yet: systemd's path unit does not see it."""
    pods.write("x", spec(pods, 20))
    pods.bed.write("/run/dropped/x.yaml", render("x", spec(pods, 20, terminationGracePeriodSeconds=1), {}))
    cache = "/run/rktd/generator.cache"
    pods.bed.sh(f"""
        edit() {{ sed "s/PeriodSeconds.: 1/PeriodSeconds\\": $1/" /run/dropped/x.yaml >/etc/pods/x.yaml; }}
        for i in $(seq 10); do
            until [ "$(systemctl is-active pods-reload pods-recheck | sort -u)" = inactive ]; do sleep 0.1; done
            touch {cache}; old=$(stat -c %i {cache}); edit $((2 * i))
            for t in $(seq 1000); do [ "$(stat -c %i {cache})" = $old ] || break; done
            sleep $(printf 0.%03d $((i * 4 - 4))); edit $((2 * i + 1))
            for t in $(seq 100); do
                grep -qx TimeoutStopSec=$((2 * i + 11)) {GENERATED}/pod@x.service.d/50-pod.conf && continue 2; sleep 0.1
            done
            echo "the edit $((i * 4 - 4)) ms after a reload is lost" >&2; exit 1
        done
    """)


def test_units_of_a_removed_file_go(pods: Pods) -> None:
    pods.write("x", spec(pods), {"systemd.io/wanted-by": "multi-user.target"})
    dropin, link = f"{GENERATED}/pod@x.service.d/50-pod.conf", f"{GENERATED}/multi-user.target.wants/pod@x.service"
    pods.bed.wait_for(f"[ -e {dropin} ] && [ -e {link} ]")
    pods.bed.wait_for("systemctl show -PWants multi-user.target | grep -qw pod@x.service")
    time.sleep(1)
    pods.bed.sh("rm /etc/pods/x.yaml")
    pods.bed.wait_for(f"[ ! -e {dropin} ] && [ ! -L {link} ]")
    pods.bed.wait_for("! systemctl show -PWants multi-user.target | grep -qw pod@x.service")


def settings(pods: Pods, name: str) -> dict[str, list[str]]:
    """All properties that do not change by themselves, the process among them."""
    shown = pods.show(name)
    assert len(shown) > 200
    # At a reload systemd itself forgets when a command was started, and the order of dependencies.
    # It also says, rightly, that a unit needs a reload while its source is not there.
    shown.pop("NeedDaemonReload")
    return {k: sorted(v.split(" ; start_time=")[0].split()) for k, v in shown.items() if k in CONFIGURED or not k.endswith(VOLATILE)}


def test_a_running_pod_is_never_disarmed(pods: Pods) -> None:
    body = spec(pods, 20, terminationGracePeriodSeconds=3, restartPolicy="OnFailure")
    pods.write("x", body, DENY)
    pods.start("x")
    has_limits(pods, "x", 20)
    before = settings(pods, "x")
    assert before["MainPID"] != ["0"]
    assert {"MemoryMax", "IPAddressDeny", "KillMode", "TimeoutStopUSec", "LogExtraFields", "DropInPaths", "SourcePath"} <= set(before)
    pods.bed.write("/run/dropped/x.yaml", render("x", spec(pods, 10, terminationGracePeriodSeconds=1), {}))  # valid, and less strict
    changes = ["cp /run/dropped/x.yaml /etc/pods/x.yaml", "echo 'spec: [' >/etc/pods/x.yaml", ": >/etc/pods/x.yaml"]
    for change in (*changes, "ln -sf /dev/null /etc/pods/x.yaml", "rm /etc/pods/x.yaml"):
        pods.bed.sh(f"{change}; systemctl daemon-reload")
        assert settings(pods, "x") == before, change
    has_limits(pods, "x", 20)
    pods.stop("x")
    pods.wait_end("x")
    pods.bed.sh("systemctl daemon-reload")
    assert pods.show("x", "MemoryMax", "ActiveState") == {"MemoryMax": "infinity", "ActiveState": "inactive"}
    assert pods.bed.sh(f"ls {GENERATED}").stdout.find("pod@x") == -1


def test_the_same_files_give_the_same_bytes(pods: Pods) -> None:
    for name in ("a", "b"):
        pods.write(name, spec(pods, 20), {**DENY, "systemd.io/wanted-by": "multi-user.target pods.target"})
    pods.write("broken", {"x": 1})
    look = f"cd {GENERATED}; find . -path '*pod@*' ! -type d -printf '%p %m %l\\n' | sort; "
    look += "find . -type f -path '*pod@*' | sort | xargs sha256sum"
    with no_path_unit(pods.bed):  # a reload begins with an empty directory: nobody's but our own
        pods.bed.sh("systemctl daemon-reload")
        first = pods.bed.sh(look).stdout
        assert first.count("\n") == 2 * 3 + 2
        pods.bed.sh("systemctl start pods-reload.service; [ -s /run/rktd/generator.cache ]; systemctl daemon-reload")  # from the cache
        assert pods.bed.sh(look).stdout == first
        pods.bed.sh("touch /etc/pods/*.yaml; rm /run/rktd/generator.cache; systemctl daemon-reload")
        assert pods.bed.sh(look).stdout == first


def start_fails_at_once(pods: Pods, name: str, reason: str) -> str:
    begin = time.monotonic()
    assert pods.start(name, check=False).returncode == 1
    assert time.monotonic() - begin < 2
    failed = {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78", "NRestarts": "0"}
    assert pods.show(name, *failed) == failed
    assert pods.show(f"pod-stage0@{name}.service", *failed) == failed
    assert reason in pods.bed.run("systemctl", "status", "--full", "--no-pager", f"pod@{name}", check=False).stdout
    status = pods.bed.run("systemctl", "status", "--full", "--no-pager", f"pod-stage0@{name}", check=False).stdout
    assert reason in status
    told = [e for e in pods.bed.journal("-u", f"pod-stage0@{name}") if reason in e["MESSAGE"]]
    assert told
    assert all(e["PRIORITY"] == "3" for e in told)
    return status


def test_a_broken_file_beside_good_ones(pods: Pods) -> None:
    pods.bed.write("/etc/pods/broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: broken\nspec:\n  contaners: []\n")
    pods.write("a", spec(pods, 20), DENY)
    pods.write("z", spec(pods, 20), DENY)
    status = start_fails_at_once(pods, "broken", "/etc/pods/broken.yaml:6:3: spec.contaners: unknown field")
    assert "did you mean 'containers'?" in status
    for name in ("a", "z"):
        pods.start(name)
        has_limits(pods, name, 20)


def test_a_pod_that_has_no_file(pods: Pods) -> None:
    start_fails_at_once(pods, "typo", "there is no typo.yaml in /etc/pods, /run/pods, /usr/local/lib/pods, /usr/lib/pods")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        ("mkfifo", "/etc/pods/x.yaml: cannot be read: it is not a regular file"),
        ("ln -s /dev/zero", "/etc/pods/x.yaml: cannot be read: it is not a regular file"),
        ("ln -s nowhere", "/etc/pods/x.yaml: cannot be read: no such file or directory"),
    ],
    ids=["fifo", "endless", "dangling"],
)
def test_what_is_no_file(pods: Pods, make: str, reason: str) -> None:
    pods.bed.sh(f"{make} /etc/pods/x.yaml")
    start_fails_at_once(pods, "x", reason)


def test_a_drop_in_that_is_not_read(pods: Pods) -> None:
    pods.write("x", spec(pods, 20))
    pods.bed.sh("mkdir /etc/pods/x.yaml.d; echo '{}' >/etc/pods/x.yaml.d/10.yml")
    pods.start("x")
    said = [e for e in pods.bed.journal("-u", "pod-stage0@x") if "x.yaml.d/10.yml: is not read: the suffix must be .yaml" in e["MESSAGE"]]
    assert [e["PRIORITY"] for e in said] == ["4"]


def test_a_masked_pod(pods: Pods) -> None:
    pods.bed.sh("ln -s /dev/null /etc/pods/masked.yaml")
    start_fails_at_once(pods, "masked", "pod masked is masked by /etc/pods/masked.yaml")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("chown 1000 /etc/pods/x.yaml", "/etc/pods/x.yaml: must be owned by root, is owned by uid 1000"),
        ("chmod g+w /etc/pods/x.yaml", "/etc/pods/x.yaml: must not be writable by group or others, has mode 0664"),
        ("chmod o+w /etc/pods", "/etc/pods: must not be writable by group or others, has mode 0757"),
    ],
    ids=["owner", "group", "directory"],
)
def test_a_file_that_others_could_write(pods: Pods, change: str, reason: str) -> None:
    pods.write("x", spec(pods))
    pods.bed.sh(change)
    try:
        start_fails_at_once(pods, "x", reason)
        pods.bed.sh(f"systemctl daemon-reload; [ ! -e {GENERATED}/pod@x.service.d ]")
    finally:
        pods.bed.sh("chmod 755 /etc/pods")


def test_check_says_what_generator_and_stage0_say(pods: Pods) -> None:
    pods.bed.write(
        "/etc/pods/broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: broken}\nspec: {x: 1, nodeName: y, containers: []}\n"
    )
    pods.bed.write("/etc/pods/other.yaml", "[")
    pods.write("good", spec(pods))
    checked = pods.bed.run("podctl", "check", check=False)
    assert checked.returncode == 78
    assert checked.stdout.count("/etc/pods/") >= 4
    assert "good.yaml" not in checked.stdout
    generator = "SYSTEMD_LOG_TARGET=console /usr/lib/systemd/system-generators/rktd-generator"
    script = f"mkdir -p /run/out; {generator} /run/out; echo $? >&2; rm -r /run/out"
    *generated, code = pods.bed.sh(script, check=False).stderr.splitlines()
    assert code == "1"
    assert sorted(line.removeprefix("rktd-generator: ") for line in generated) == sorted(checked.stdout.splitlines())
    status = start_fails_at_once(pods, "broken", "/etc/pods/broken.yaml:4:8: spec.x: unknown field")
    one = pods.bed.run("podctl", "check", "/etc/pods/broken.yaml", check=False)
    assert one.returncode == 78
    assert all(line in status for line in one.stdout.splitlines())
    assert pods.bed.run("podctl", "check", "/etc/pods/good.yaml").stdout == ""


def test_enable_and_disable(pods: Pods) -> None:
    pods.write("web", spec(pods, 20), DENY)
    pods.write("other", spec(pods))
    pods.bed.sh("systemctl enable pod@web; systemctl is-enabled pod@web")
    try:
        pods.bed.sh("systemctl stop pods.target; systemctl start pods.target")
        pods.wait_state("web", "active")
        has_limits(pods, "web", 20)
        assert pods.show("other", "ActiveState") == {"ActiveState": "inactive"}
    finally:
        pods.bed.sh("systemctl disable pod@web")
    pods.stop("web")
    pods.bed.sh("systemctl stop pods.target; systemctl start pods.target; sleep 0.5")
    assert pods.show("web", "ActiveState") == {"ActiveState": "inactive"}


def test_wanted_by(pods: Pods) -> None:
    pods.write("x", spec(pods), {"systemd.io/wanted-by": "hooked.target"})
    pods.bed.write("/run/systemd/system/hooked.target", "[Unit]\n")
    pods.bed.sh(f"systemctl daemon-reload; [ -e {GENERATED}/hooked.target.wants/pod@x.service ]; systemctl start hooked.target")
    pods.wait_state("x", "active")


def test_a_required_unit_is_started_too(pods: Pods) -> None:
    for index, annotations in enumerate(({}, {"systemd.io/after": "dependency.service"})):
        with no_path_unit(pods.bed):
            pods.bed.sh("systemctl stop dependency.service 2>/dev/null || true")
            unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sleep 0.5\n"
            pods.bed.write("/run/systemd/system/dependency.service", unit)
            name = f"x{index}"
            pods.write(name, spec(pods), {"systemd.io/requires": "dependency.service", **annotations})
            pods.start(name)
            if annotations:
                assert pods.show("dependency.service", "ActiveState") == {"ActiveState": "active"}
            pods.wait_state("dependency.service", "active")
            assert "dependency.service" in pods.show(name, "Requires")["Requires"].split()


def test_two_starts_at_once_make_one_pod(pods: Pods) -> None:
    pods.write("x", spec(pods, 20), DENY)
    pods.bed.sh("systemctl start pod@x & a=$!; systemctl start pod@x & b=$!; wait $a; wait $b")
    assert pods.lines("x") == ["up"]
    assert pods.bed.sh("pgrep -fc -- '--machine=x '").stdout == "1\n"
    has_limits(pods, "x", 20)

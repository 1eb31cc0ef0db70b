# SPDX-License-Identifier: Apache-2.0
"""How pods start, end and stop: docs/lifecycle.md, on a real systemd."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.pods import Pods

WAIT = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
LOAD = "for i in 1 2 3 4; do timeout 60 sh -c 'while :; do :; done' & done; echo $! $(jobs -p) >/run/load"


def test_never_ends_with_the_first_failure(pods: Pods) -> None:
    apps = [pods.app("sleep 0.3; exit 0", "one"), pods.app("sleep 0.6; exit 5", "two"), pods.app("sleep 0.3; exit 6", "three")]
    pods.write("p", {"restartPolicy": "Never", "containers": apps})
    pods.start("p")
    assert pods.wait_end("p") == "failed"
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "5"}
    assert {name: app["status"] for name, app in pods.result("p")["apps"].items()} == {"one": "0", "two": "5", "three": "6"}


@pytest.mark.parametrize(
    ("script", "state", "result", "status"),
    [
        pytest.param("sleep 0.2; exit 0", "inactive", "success", "0", id="0"),
        pytest.param("sleep 0.2; exit 5", "failed", "exit-code", "5", id="5"),
        pytest.param("sleep 0.2; exit 137", "failed", "exit-code", "137", id="137"),
        pytest.param("sleep 0.2; exit 133", "failed", "exit-code", "1", id="133"),  # nspawn's own code for a reboot
    ],
)
def test_exit_code_under_never(pods: Pods, script: str, state: str, result: str, status: str) -> None:
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app(script)]})
    pods.start("p")
    assert pods.wait_end("p") == state
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": result, "ExecMainStatus": status}


def test_killed_app_under_never(pods: Pods) -> None:
    """From outside: from inside of its name space, PID 1 of it cannot be killed."""
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app(WAIT)]})
    pods.start("p")
    pods.bed.run("systemctl", "-M", "p", "kill", "--signal=KILL", "app")
    assert pods.wait_end("p") == "failed"
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "137"}
    assert pods.result("p")["apps"]["app"] == {"code": "killed", "status": "KILL", "result": "signal"}


def test_killed_pid_1_of_a_pod_under_never(pods: Pods) -> None:
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app(WAIT)]})
    pods.start("p")
    pods.bed.sh("kill -9 $(machinectl show p --property=Leader --value)")
    assert pods.wait_end("p") == "failed"
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "1"}


def test_brief_apps_keep_their_status_on_a_busy_machine(pods: Pods) -> None:
    """Each is through within milliseconds, often before the pod's PID 1 has seen that it was executed."""
    codes = {"a": 0, "b": 0, "c": 5, "d": 0}
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app(["/bin/sh", "-c", f"exit {c}"], n) for n, c in codes.items()]})
    pods.bed.sh(f"({LOAD}) >/dev/null 2>&1 &")
    try:
        for _ in range(15):
            pods.start("p")
            pods.wait_end("p")
            assert {name: app["status"] for name, app in pods.result("p")["apps"].items()} == {n: str(c) for n, c in codes.items()}
            assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "5"}
    finally:
        pods.bed.sh("kill $(cat /run/load)", check=False)


@pytest.mark.parametrize(
    ("on_signal", "grace", "rounds", "end"),
    [("", 1, 4, ("killed", "KILL")), ("exit 3", 30, 6, ("exited", "3"))],
    ids=["killed", "exited"],
)
def test_stopped_apps_keep_their_status_on_a_busy_machine(
    pods: Pods, on_signal: str, grace: int, rounds: int, end: tuple[str, str]
) -> None:
    """PID 1 kills them when their time is over, or they end by themselves before; it may see the empty cgroup before the status."""
    names = [f"a{n}" for n in range(8)]
    script = f"trap '{on_signal}' TERM; sleep 1000 & sleep 1001 & sleep 1002 & wait; sleep 1003"
    pods.write("p", {"terminationGracePeriodSeconds": grace, "containers": [pods.app(script, name) for name in names]})
    pods.bed.sh(f"({LOAD}) >/dev/null 2>&1 &")
    try:
        for _ in range(rounds):
            pods.start("p")
            pods.stop("p")
            pods.wait_end("p")
            ends = {name: (app["code"], app["status"]) for name, app in pods.result("p")["apps"].items()}
            assert ends == dict.fromkeys(names, end)
    finally:
        pods.bed.sh("kill $(cat /run/load)", check=False)


def test_a_start_during_a_stop_has_a_root_of_its_own(pods: Pods) -> None:
    """It takes back the stop of stage0 that waits for the pod's. What runs is the file as it is now, without what the last run left."""
    ends = "while [ -e /hold/on ]; do sleep 0.1; done; exit 0"
    script = f"[ -e /left ] && echo left; touch /left; trap '{ends}' TERM; echo $RUN; sleep 1000 & wait"
    pods.bed.sh("mkdir -p /run/hold; touch /run/hold/on")
    hold = {"volumes": [{"name": "hold", "hostPath": {"path": "/run/hold"}}]}
    for run in ("one", "two"):
        app = pods.app(script, env=[{"name": "RUN", "value": run}], volumeMounts=[{"name": "hold", "mountPath": "/hold", "readOnly": True}])
        pods.write("p", {"restartPolicy": "Never", "containers": [app], **hold})
        if run == "two":
            pods.bed.run("systemctl", "stop", "--no-block", "pod@p")
            pods.wait_state("p", "deactivating")
        before = pods.show("pod-stage0@p.service", "InvocationID")
        pods.bed.run("systemctl", "start", "--no-block", "pod@p")
        if run == "two":
            assert pods.show("p", "ActiveState") == {"ActiveState": "deactivating"}
            pods.bed.sh("rm /run/hold/on")
        pods.start("p")  # waits for the job that there is
        pods.bed.wait_for(f"journalctl -u pod@p --after-cursor='{pods.cursor}' -o cat | grep -qx {run}")
        assert pods.lines("p") == [run]
        assert pods.show("pod-stage0@p.service", "InvocationID") != before
    pods.stop("p")
    pods.wait_end("p")
    assert pods.show("p", "Result") == {"Result": "success"}


@pytest.mark.parametrize("code", [5, 137])
def test_on_failure_restarts_failures_only(pods: Pods, code: int) -> None:
    pods.write("good", {"restartPolicy": "OnFailure", "containers": [pods.app("sleep 0.2; exit 0")]})
    apps = [pods.app(f"sleep 0.2; exit {code}", "bad"), pods.app("echo once; sleep 0.3; exit 0", "good")]
    pods.write("bad", {"restartPolicy": "OnFailure", "containers": apps})
    pods.start("good")
    pods.start("bad")
    assert pods.wait_end("good") == "inactive"
    pods.bed.wait_for("[ $(systemctl -M bad show bad -PNRestarts) -ge 1 ]")
    assert pods.show("bad", "ActiveState")["ActiveState"] == "active"
    shown = pods.bed.run("systemctl", "-M", "bad", "show", "bad", "good", "-PNRestarts").stdout.split()
    assert int(shown[0]) >= 1
    assert shown[1] == "0"
    pods.bed.wait_for("[ $(systemctl -M bad show bad -PNRestarts) -ge 2 ]")
    time.sleep(0.5)
    assert pods.lines("bad", "SYSLOG_IDENTIFIER=good") == ["once"]


@pytest.mark.parametrize("code", [0, 5, 137])
def test_always_restarts(pods: Pods, code: int) -> None:
    pods.write("p", {"containers": [pods.app(f"echo run; sleep 0.1; exit {code}"), pods.app(WAIT, "other")]})
    pods.start("p")
    pods.bed.wait_for("[ $(systemctl -M p show app -PNRestarts) -ge 1 ]")
    assert pods.show("p", "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    restarts, status = pods.bed.run("systemctl", "-M", "p", "show", "app", "-PNRestarts", "-PExecMainStatus").stdout.split()
    assert 1 <= int(restarts) <= 2  # back-off: 1 s and more
    assert status in (str(code), "0")  # 0 while it runs
    result = "success" if code == 0 else "exit-code"
    assert pods.bed.read("/run/rktd/pods/p/status/app") == f"exited {code} {result}\n"
    assert pods.lines("p", "-t", "other") == ["up"]  # untouched


def test_start_fails_when_an_app_cannot_be_executed(pods: Pods) -> None:
    pods.bed.sh("mkdir -p /run/prog && printf '#!/nonexistent\\n' >/run/prog/x && chmod 755 /run/prog/x")
    mount = [{"name": "v", "mountPath": "/v", "readOnly": True}]
    for policy in ("Never", "Always"):
        apps = [pods.app(["/v/x"], "broken", volumeMounts=mount), pods.app(WAIT, "fine")]
        spec: dict[str, Any] = {"restartPolicy": policy, "containers": apps, "volumes": [{"name": "v", "hostPath": {"path": "/run/prog"}}]}
        pods.write("p", spec)
        assert pods.start("p", check=False).returncode == 1
        assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "203"}
        said = [e["MESSAGE"] for e in pods.bed.journal("-u", "pod@p", "-p", "err", f"--after-cursor={pods.cursor}")]
        assert "app broken failed: exited 203 exit-code: cannot execute /v/x" in said
        pods.clean()
    spec["containers"][0] = pods.app(WAIT, "broken", volumeMounts=mount, workingDir="/v/x")  # a file
    pods.write("p", spec)
    assert pods.start("p", check=False).returncode == 1
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "200"}
    said = [e["MESSAGE"] for e in pods.bed.journal("-u", "pod@p", "-p", "err", f"--after-cursor={pods.cursor}")]
    assert "app broken failed: exited 200 exit-code" in said


def test_restart_after_an_edit_runs_the_new_file(pods: Pods) -> None:
    for text in ("first", "second"):
        pods.write("p", {"containers": [pods.app(f"echo {text}; {WAIT}")]})
        pods.bed.run("systemctl", "restart", "pod@p")
        assert pods.lines("p")[0] == text


def test_graceful_stop(pods: Pods) -> None:
    script = "trap 'echo got term; sleep 1; echo last; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    pods.write("p", {"terminationGracePeriodSeconds": 10, "containers": [pods.app(script)]})
    pods.start("p")
    begin = time.monotonic()
    pods.stop("p")
    assert 1 <= time.monotonic() - begin < 4
    assert pods.lines("p") == ["up", "got term", "last"]
    assert pods.show("p", "Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}


def test_kill_at_the_end_of_the_grace_period(pods: Pods) -> None:
    pods.write("p", {"terminationGracePeriodSeconds": 2, "containers": [pods.app("trap 'echo no' TERM; while :; do sleep 0.05; done")]})
    pods.start("p")
    begin = time.monotonic()
    pods.stop("p")
    assert 2 <= time.monotonic() - begin < 5
    assert pods.lines("p") == ["no"]


def test_idle_pod_stops_fast(pods: Pods) -> None:
    pods.write("p", {"containers": [pods.app(WAIT)]})
    pods.start("p")
    begin = time.monotonic()
    pods.stop("p")
    assert time.monotonic() - begin < 1


STOP_AT_BOOT = """
import glob, subprocess, time
subprocess.run(["systemctl", "start", "--no-block", "pod@p"])
deadline = time.monotonic() + 10
while time.monotonic() < deadline:  # until the halt signal is blocked in what will be the pod's PID 1
    for group in glob.glob("/sys/fs/cgroup/pods.slice/pod@p.service/payload/**/cgroup.procs", recursive=True):
        try:
            pid = open(group).read().split()[0]
            blocked = [int(line.split()[1], 16) for line in open(f"/proc/{pid}/status") if line.startswith("SigBlk")][0]
        except (OSError, IndexError):
            continue
        if blocked >> 36 & 1:
            begin = time.monotonic()
            subprocess.run(["systemctl", "stop", "pod@p"], check=True)
            print(time.monotonic() - begin)
            raise SystemExit
raise SystemExit("never seen")
"""


def test_stop_while_the_pod_boots(pods: Pods) -> None:
    """A halt that comes before the pod's PID 1 listens is kept for it; only before it is executed is it lost (docs/lifecycle.md)."""
    pods.write("p", {"terminationGracePeriodSeconds": 5, "containers": [pods.app("sleep 1000")]})
    pods.start("p")
    pods.stop("p")
    took = [float(pods.bed.run("python3", "-c", STOP_AT_BOOT).stdout) for _ in range(5)]
    assert max(took) < 3, took


def test_killed_nspawn_fails_and_restarts(pods: Pods) -> None:
    pods.write("never", {"restartPolicy": "Never", "containers": [pods.app(WAIT)]})
    pods.write("always", {"containers": [pods.app(WAIT)]})
    for name in ("never", "always"):
        pods.start(name)
        pods.bed.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", f"pod@{name}")
    assert pods.wait_end("never") == "failed"
    assert pods.show("never", "Result", "ExecMainStatus") == {"Result": "signal", "ExecMainStatus": "9"}
    stale = "grep never /proc/self/mountinfo; machinectl list --no-legend | grep never; ls -d /sys/fs/cgroup/pods.slice/pod@never.service"
    left = pods.bed.sh(f"{stale}; ls -A /run/rktd/pods /var/lib/rktd/pods /run/rktd/ids | grep never", check=False)
    assert left.stdout == ""
    pods.wait_state("always", "active", timeout=30)
    pods.start("never")
    assert pods.show("never", "ActiveState") == {"ActiveState": "active"}


# Runs stage0, and once, MILLISECONDS after its beginning, has it killed; /run/kill-at holds MILLISECONDS, until then.
KILL_AT = """#!/bin/sh
if read -r seconds </run/kill-at && rm /run/kill-at; then (sleep "$seconds"; kill -KILL $$) & fi 2>/dev/null
exec /usr/lib/rktd/stage0 "$@"
"""


@pytest.fixture
def kill_at(pods: Pods) -> Iterator[Callable[[str, int], None]]:
    """A function: has stage0's next run of `ExecStart` or `ExecStopPost` killed after so many milliseconds."""
    directory = "/run/systemd/system/pod-stage0@p.service.d"
    pods.bed.write("/run/stage0", KILL_AT)

    def arm(step: str, milliseconds: int) -> None:
        verb = {"ExecStart": "prepare", "ExecStopPost": "release"}[step]
        pods.bed.write(f"{directory}/kill.conf", f"[Service]\n{step}=\n{step}=/bin/sh /run/stage0 {verb} p\n")
        pods.bed.sh(f"systemctl daemon-reload; echo 0.{milliseconds:03} >/run/kill-at")

    yield arm
    pods.bed.sh(f"rm -rf {directory} /run/stage0 /run/kill-at; systemctl daemon-reload")


def list_left(pods: Pods) -> list[str]:
    directories = "/var/lib/rktd/work /run/rktd/pods /run/rktd/layers /run/rktd/ids"
    left = pods.bed.sh(f"ls -A {directories}; findmnt -rno TARGET | grep /run/rktd", check=False).stdout.splitlines()
    return [line for line in left if line and not line.endswith(":")]


def was_killed(pods: Pods, cursor: str) -> bool:
    return bool(pods.bed.journal("-u", "pod-stage0@p", "_PID=1", "EXIT_CODE=killed", "EXIT_STATUS=9", f"--after-cursor={cursor}"))


def test_killed_stage0(pods: Pods, kill_at: Callable[[str, int], None]) -> None:
    """At whatever point stage0 is killed, systemd tries again and the pod starts."""
    for milliseconds in (5, 25, 45, 65, 85, 120, 160):
        image = pods.make_image(f"killed{milliseconds}", {"Env": [f"N={time.time_ns()}"]})
        pods.write("p", {"restartPolicy": "Never", "containers": [{**pods.app("echo ok"), "image": image}]})
        kill_at("ExecStart", milliseconds)
        cursor = pods.bed.journal("-n1")[0]["__CURSOR"]
        pods.start("p")
        pods.wait_end("p")
        assert pods.lines("p", "-t", "app") == ["ok"]
        assert list_left(pods) == []
        assert was_killed(pods, cursor) or milliseconds > 85  # it may have ended by then


def test_killed_release(pods: Pods, kill_at: Callable[[str, int], None]) -> None:
    """What a killed release leaves is no obstacle to the next start, and goes with it."""
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app("echo ok")]})
    for milliseconds in (5, 15, 25, 35, 50):
        kill_at("ExecStopPost", milliseconds)
        cursor = pods.bed.journal("-n1")[0]["__CURSOR"]
        for _ in range(2):
            pods.start("p")
            pods.wait_end("p")
            assert pods.lines("p", "-t", "app") == ["ok"]
        assert list_left(pods) == []
        assert was_killed(pods, cursor) or milliseconds > 15


def test_stage0_fails_for_a_while(pods: Pods) -> None:
    """A passing failure (75) is tried again while the start waits; here what stands in its place says so. test_store has a full disk."""
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app("echo ok")]})
    pods.bed.sh(
        "mkdir -p /run/systemd/system/pod-stage0@p.service.d; "
        "printf '[Service]\\nExecStart=\\nExecStart=/bin/sh -c \"[ -e /run/may ] || exit 75; exec /usr/lib/rktd/stage0 prepare p\"\\n' "
        ">/run/systemd/system/pod-stage0@p.service.d/x.conf; "
        "systemctl daemon-reload; (sleep 1.5; touch /run/may) & systemctl start pod@p; wait"
    )
    pods.wait_end("p")
    assert pods.lines("p") == ["ok"]
    pods.bed.sh("rm -r /run/may /run/systemd/system/pod-stage0@p.service.d; systemctl daemon-reload")


def test_stage0_fails_once_during_auto_restart(pods: Pods) -> None:
    pods.write("p", {"containers": [pods.app(WAIT)]})
    pods.bed.sh(
        "mkdir -p /run/systemd/system/pod-stage0@p.service.d; touch /run/may; "
        "printf '[Service]\\nExecStart=\\nExecStart=/bin/sh -c \"[ -e /run/may ] || exit 75; exec /usr/lib/rktd/stage0 prepare p\"\\n' "
        ">/run/systemd/system/pod-stage0@p.service.d/x.conf; systemctl daemon-reload"
    )
    try:
        pods.start("p")
        pods.bed.sh("rm /run/may; systemctl kill --kill-whom=main --signal=KILL pod@p")
        deadline = time.monotonic() + 20
        while pods.show("pod-stage0@p.service", "NRestarts") == {"NRestarts": "0"}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pods.bed.sh("touch /run/may")
        pods.wait_state("p", "active", timeout=30)
        assert pods.lines("p") == ["up"]
    finally:
        pods.bed.sh("rm -rf /run/may /run/systemd/system/pod-stage0@p.service.d; systemctl daemon-reload")


def test_stage0_fails_for_good_during_auto_restart(pods: Pods) -> None:
    """The file breaks while the pod runs; nspawn dies; the automatic restart ends in both failed, for one reason: not stuck."""
    pods.write("p", {"containers": [pods.app(WAIT)]})
    pods.start("p")
    pods.bed.write("/etc/pods/p.yaml", "kind: Pod\n")
    pods.bed.run("systemctl", "daemon-reload")  # not while nothing of the pod is there: then its unit has no Restart= any more
    pods.bed.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pod@p")
    pods.wait_state("pod-stage0@p.service", "failed", timeout=30)
    pods.wait_state("p", "failed")
    assert "/etc/pods/p.yaml:1:1: " in pods.bed.run("systemctl", "status", "pod@p", check=False).stdout
    assert pods.show("pod-stage0@p.service", "ExecMainStatus") == {"ExecMainStatus": "78"}


def test_two_starts_at_once(pods: Pods) -> None:
    pods.write("p", {"containers": [pods.app(WAIT)]})
    pods.bed.sh("systemctl start pod@p & systemctl start pod@p & wait")
    assert pods.lines("p") == ["up"]


def test_the_unit_covers_all_that_runs(pods: Pods) -> None:
    """MemoryMax=, IPAddressDeny=, kill and status of pod@ are about the apps too; each app is a unit inside."""
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app(WAIT, "one"), pods.app(WAIT, "two")]})
    pods.start("p")
    group = pods.show("p", "ControlGroup")["ControlGroup"]
    assert group == "/pods.slice/pod@p.service"
    status = pods.bed.run("systemctl", "status", "pod@p", "--no-pager", "--full").stdout
    assert "one.service" in status
    assert "two.service" in status
    inside = pods.bed.run("systemctl", "-M", "p", "is-active", "one", "two").stdout.split()
    assert inside == ["active", "active"]
    assert "p " in pods.bed.run("machinectl", "list", "--no-legend").stdout
    assert "pods.slice/pod@p.service" in pods.bed.run("systemd-cgtop", "-b", "-n2", "-d0.1", "--depth=2").stdout
    # As the host numbers them: the pod's systemd has numbers of its own.
    listed = f"cat $(find /sys/fs/cgroup{group} -name cgroup.procs)"
    everyone = set(pods.bed.sh(listed).stdout.split())
    for app in ("one", "two"):  # their shells stay, what those wait for comes and goes
        own = set(pods.bed.sh(f"{listed.removesuffix(')')} -path '*/{app}.service/*')").stdout.split())
        assert own & everyone
    assert len(everyone) >= 4  # nspawn and the pod's PID 1 besides
    pods.bed.run("systemctl", "kill", "--signal=KILL", "pod@p")
    assert pods.wait_end("p") == "failed"
    assert pods.bed.sh(f"for pid in {' '.join(everyone)}; do ! kill -0 $pid || echo $pid; done 2>/dev/null").stdout == ""


def test_the_units_address_filter_covers_the_apps(pods: Pods) -> None:
    """IPAddressDeny= of a drop-in for pod@: the app reaches a listener of the host without it, and not with it."""
    script = "for i in 1 2 3 4 5; do nc -w 2 127.0.0.1 7077 </dev/null && exit; sleep 0.2; done; echo none"
    pods.bed.write("/run/greet", "#!/bin/sh\necho hello\n", 0o755)
    pods.bed.run("systemd-run", "--unit=greeter", "systemd-socket-activate", "--inetd", "-a", "-l", "127.0.0.1:7077", "/run/greet")
    try:
        pods.write("p", {"restartPolicy": "Never", "hostNetwork": True, "containers": [pods.app(script)]})
        for deny, expected in (("", ["hello"]), ("any", ["none"])):
            pods.bed.write("/run/systemd/system/pod@p.service.d/deny.conf", f"[Service]\nIPAddressDeny={deny}\n")
            pods.bed.run("systemctl", "daemon-reload")
            pods.start("p")
            pods.wait_end("p")
            assert pods.lines("p") == expected
    finally:
        pods.bed.sh("systemctl stop greeter; rm -r /run/systemd/system/pod@p.service.d; systemctl daemon-reload")


def test_a_xen_pod_where_there_is_no_xen(pods: Pods) -> None:
    """Told before its image is looked for, and for good: the unit is not started again."""
    pods.write("p", {"runtimeClassName": "xen", "containers": [pods.app(WAIT) | {"image": f"oci:/srv/none@sha256:{'0' * 64}"}]})
    assert pods.start("p", check=False).returncode == 1
    assert pods.show("p", "ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "78",
    }
    status = pods.bed.run("systemctl", "status", "pod@p", "--no-pager", "--full", check=False).stdout
    is_on_xen = pods.bed.run("cat", "/sys/hypervisor/type", check=False).stdout == "xen\n"  # a machine hired somewhere
    assert f"runtimeClassName: xen: {'there is no /usr/sbin/xl' if is_on_xen else 'this host does not run on Xen'}\n" in status
    assert "hint: " in status
    assert "/srv/none" not in status


def test_a_hostile_tree_is_removed(pods: Pods) -> None:
    """An app makes directories deeper than there are descriptors and than a path can be; the pod is released and starts again."""
    script = "cd /tmp; i=0; while [ $i -lt 1500 ]; do mkdir d && cd d; i=$((i+1)); done; echo deep $i"
    for _ in range(2):
        pods.write("p", {"restartPolicy": "Never", "containers": [pods.app(script, securityContext={"runAsUser": 1000})]})
        pods.start("p")
        pods.wait_end("p")
        assert pods.lines("p") == ["deep 1500"]
        assert pods.bed.sh("ls -A /var/lib/rktd/pods /run/rktd/pods /run/rktd/ids /run/rktd/layer-claims").stdout.count("\np") == 0
    assert pods.bed.sh("stat -c %a /run/rktd/pods /var/lib/rktd/pods").stdout.split() == ["700", "700"]


def test_nothing_is_left(pods: Pods) -> None:
    """A hundred starts and stops leave mounts, groups, machines, ranges, directories and units as they were. Loop devices are the whole
    machine's, of other testbeds too: those with files of the pod count.
    """
    snapshot = (
        "findmnt -rno TARGET | sort; find /sys/fs/cgroup -path '*pod@*' | sort; machinectl list --no-legend; "
        "ls -A /run/rktd/ids /run/rktd/pods "
        "/run/rktd/layers /run/rktd/layer-claims /var/lib/rktd/pods /var/lib/rktd/work /run/systemd/nspawn/* /run/systemd/machines "
        "2>/dev/null; losetup -lnO BACK-FILE | grep /hundred/; ip -o link | wc -l; "
        "systemctl list-units --all --no-legend 'run-rktd*' 'pod*' | sort"
    )
    volume = {"volumes": [{"name": "v", "emptyDir": {}}]}
    pods.write(
        "hundred", {"containers": [pods.app(WAIT, "one", volumeMounts=[{"name": "v", "mountPath": "/v"}]), pods.app(WAIT, "two")], **volume}
    )
    pods.start("hundred")
    pods.stop("hundred")
    pods.wait_end("hundred")
    before = pods.bed.sh(snapshot, check=False).stdout
    pods.bed.sh("for i in $(seq 100); do systemctl start pod@hundred; systemctl stop pod@hundred; done", timeout=300)
    pods.wait_end("hundred")
    assert pods.bed.sh(snapshot, check=False).stdout == before


WAITS = """
#include <signal.h>
#include <stdio.h>
#include <time.h>
int main(void) {
    sigset_t all;
    struct timespec second = {1, 0};
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, 0);
    puts("up");
    fflush(stdout);
    while (sigtimedwait(&all, 0, &second) != SIGTERM) ;
    puts("told");
    return 0;
}
"""


def test_init_programs_are_told_to_stop(pods: Pods) -> None:
    """They have no handlers: catatonit, as podman's --init, reads a signalfd; tini waits in sigtimedwait(2)."""
    pods.bed.write("/srv/waits/waits.c", WAITS)
    pods.bed.sh("cd /srv/waits; gcc -static -o waits waits.c; tar -cf layer.tar waits")
    image = pods.make_image("init", None, ("/srv/waits/layer.tar",), "--package=catatonit")
    script = "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    init = pods.app(["catatonit", "--", "sh", "-c", script], "init", image=image)
    pods.write("init", {"restartPolicy": "Never", "containers": [init, pods.app(["/waits"], "waits", image=image)]})
    pods.start("init")
    pods.bed.sh("until [ $(podctl logs --current init | grep -c up) = 2 ]; do sleep 0.05; done")
    pods.stop("init")
    pods.wait_end("init")
    assert sorted(pods.lines("init")) == ["told", "told", "up", "up"]
    assert {app: (end["code"], end["status"]) for app, end in pods.result("init")["apps"].items()} == {
        "init": ("exited", "0"),
        "waits": ("exited", "0"),
    }

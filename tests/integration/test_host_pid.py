# SPDX-License-Identifier: Apache-2.0
"""Pods with hostPID: their apps are processes of the host, and all else is as in other pods."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.pods import Pods

HOST = {"hostPID": True, "hostUsers": True}
WAIT = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
UIDS = (0, 1000, 1001)


@pytest.fixture
def witnesses(pods: Pods) -> Iterator[dict[int, int]]:
    """Processes of the host: uid -> pid."""
    found = {}
    for uid in UIDS:
        user = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
        pods.bed.run("systemd-run", "--quiet", f"--unit=witness-{uid}", *user, "sleep", "4242")
        found[uid] = int(pods.bed.run("systemctl", "show", "--property=MainPID", "--value", f"witness-{uid}").stdout)
        pods.bed.wait_for(f"[ $(cat /proc/{found[uid]}/comm) = sleep ]")
    yield found
    pods.bed.sh("systemctl stop 'witness-*'; systemctl reset-failed", check=False)


def write(pods: Pods, *apps: dict[str, Any], annotations: dict[str, str] | None = None, **fields: Any) -> None:
    pods.write("p", {**HOST, **fields, "containers": list(apps)}, annotations)


def run(pods: Pods, *apps: dict[str, Any], **fields: Any) -> None:
    write(pods, *apps, restartPolicy="Never", **fields)
    pods.start("p")
    pods.wait_end("p")


def leader(pods: Pods) -> int:
    return int(pods.bed.run("machinectl", "show", "p", "--property=Leader", "--value").stdout)


def main_pid(pods: Pods, app: str) -> int:
    return int(pods.bed.run("systemctl", "-M", "p", "show", app, "-PMainPID").stdout)


def test_an_app_is_a_process_of_the_host(pods: Pods, witnesses: dict[int, int]) -> None:
    """It sees PID 1 and all others, its own pid is the host's, and so are its users; nothing is said that other pods do not say."""
    look = f"cat /proc/1/comm /proc/{witnesses[1000]}/comm; echo $$; for n in pid user; do readlink /proc/self/ns/$n; done"
    write(pods, pods.app(f"{look}; {WAIT}"), pods.app(f"id -u; {WAIT}", "user", securityContext={"runAsUser": 1000}))
    pods.start("p")
    pids = {app: main_pid(pods, app) for app in ("app", "user")}
    spaces = pods.bed.sh("readlink /proc/self/ns/pid /proc/self/ns/user").stdout.split()
    assert pods.lines("p", "-t", "app") == ["systemd", "sleep", str(pids["app"]), *spaces, "up"]
    assert pods.lines("p", "-t", "user") == ["1000", "up"]
    assert pods.bed.read(f"/proc/{pids['app']}/cgroup").endswith("/pod@p.service/payload/system.slice/app.service\n")
    assert pods.bed.sh(f"stat -c %u /proc/{pids['user']}").stdout.split() == ["1000"]
    script = "id -u; cat /proc/1/comm; readlink /proc/self/ns/user; kill -0 $1"
    done = pods.bed.run("podctl", "exec", "p/app", "--", "sh", "-c", script, "sh", str(witnesses[0]))
    assert done.stdout.split() == ["0", "systemd", spaces[1]]
    assert pods.bed.run("machinectl", "list", "--no-legend").stdout.split()[:3] == ["p", "container", "systemd-nspawn"]
    assert f"pid {pids['app']}," in pods.bed.run("podctl", "status", "p").stdout
    assert pods.bed.journal("-u", "pod@p", "-t", "pod", f"--after-cursor={pods.cursor}") == []


def test_signals(pods: Pods, witnesses: dict[int, int]) -> None:
    """As the kernel allows: to processes of the same user, or by CAP_KILL; never by an app to the pod's own systemd otherwise."""
    wait = "until [ -e /v/go ]; do sleep 0.05; done; read -r manager nspawn sibling </v/go; "
    everyone = {
        **{f"w{uid}": str(pid) for uid, pid in witnesses.items()},
        "host": "1",
        **{n: f"${n}" for n in ("manager", "nspawn", "sibling")},
    }
    kill = wait + " ".join(f"kill -CONT {pid} 2>/dev/null && echo {name};" for name, pid in everyone.items())
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    plain, none = {"runAsUser": 1000}, {"runAsUser": 0, "capabilities": {"drop": ["ALL"]}}
    apps = [pods.app(kill, name, securityContext=security, **mount) for name, security in (("user", plain), ("none", none), ("root", {}))]
    sibling = pods.app("sleep 1000", "sibling", securityContext={"runAsUser": 1002})
    write(pods, *apps, sibling, restartPolicy="Never", volumes=[{"name": "v", "emptyDir": {}}])
    pods.start("p")
    nspawn = int(pods.show("p", "MainPID")["MainPID"])
    pids = f"{leader(pods)} {nspawn} {main_pid(pods, 'sibling')}"
    pods.bed.write("/var/lib/rktd/pods/p/volumes/v/go", pids)
    pods.bed.wait_for("[ $(ls /run/rktd/pods/p/status | grep -c -e '^user$' -e '^none$' -e '^root$') = 3 ]")
    assert pods.lines("p", "-t", "user") == ["w1000"]
    assert pods.lines("p", "-t", "none") == ["w0", "host", "manager", "nspawn"]  # root's, for it is root of the host
    assert pods.lines("p", "-t", "root") == list(everyone)


def test_other_processes_are_closed(pods: Pods, witnesses: dict[int, int]) -> None:
    """Without CAP_SYS_PTRACE no app, root with the usual capabilities included, gets into what has more of them, or than its user."""
    closed = "for f in root cwd exe fd/0; do readlink /proc/$p/$f; done; ls /proc/$p/root/; cat /proc/$p/environ; head -c1 /proc/$p/mem"
    look = f"(for p in $pids; do {closed}; done) 2>/dev/null"
    script = f"until [ -e /v/go ]; do sleep 0.05; done; read -r pids </v/go; {look}; echo through"
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    apps = [pods.app(script, "root", **mount), pods.app(script, "user", securityContext={"runAsUser": 1000}, **mount)]
    piped = pods.app("sleep 1000", "piped", lifecycle={"preStop": {"sleep": {"seconds": 20}}})
    write(
        pods,
        *apps,
        piped,
        annotations={"systemd.io/log-pipe": "piped"},
        restartPolicy="Never",
        volumes=[{"name": "v", "emptyDir": {}}],
        terminationGracePeriodSeconds=20,
    )
    pods.start("p")
    pods.bed.run("systemctl", "-M", "p", "start", "--no-block", "PreStop-piped")
    pods.bed.wait_for("[ $(systemctl -M p show PreStop-piped -PMainPID) != 0 ]")
    helpers = [main_pid(pods, unit) for unit in ("Pipe-piped-out", "PreStop-piped")]
    assert 0 not in helpers
    pids = [1, leader(pods), int(pods.show("p", "MainPID")["MainPID"]), *helpers, witnesses[1001]]
    pods.bed.write("/var/lib/rktd/pods/p/volumes/v/go", " ".join(map(str, pids)) + "\n")
    pods.bed.wait_for("[ $(ls /run/rktd/pods/p/status | grep -c -e '^user$' -e '^root$') = 2 ]")
    assert pods.lines("p", "-t", "user") == ["through"]
    assert pods.lines("p", "-t", "root") == ["through"]
    pods.bed.run("systemctl", "kill", "--signal=KILL", "pod@p")


@pytest.mark.parametrize(
    "security",
    [{}, {"runAsUser": 1000}, {"privileged": True}, {"seccompProfile": {"type": "Unconfined"}}],
    ids=["root", "user", "privileged", "unconfined"],
)
def test_confined_as_other_pods(pods: Pods, security: dict[str, Any]) -> None:
    """Capabilities, filters, limits, scores, umask, environment, mounts: nothing differs but what is asked for."""
    script = (
        "env | sort; umask; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Sig[BIC])' /proc/self/status; cat /proc/self/limits; "
        "cat /proc/self/oom_score_adj; "
        "awk '{print $2, $4}' /proc/mounts | grep -v /run/systemd/incoming | sed s/,size=[^,]*//; "
        "ulimit -a; readlink /proc/self/ns/user; nice; cat /proc/self/cgroup; "
        "ls /sys/fs/cgroup /proc/acpi /proc/self/fd 2>&1; cat /proc/keys 2>&1"
    )
    found = []
    for more in ({}, HOST):
        resources = {"limits": {"systemd.io/pids": "50"}}
        pods.write(
            "p",
            {
                "restartPolicy": "Never",
                "hostUsers": True,
                **more,
                "containers": [pods.app(script, securityContext=security, resources=resources), pods.app(["env"], "env")],
            },
        )
        pods.start("p")
        pods.wait_end("p")
        found.append((pods.lines("p", "-t", "app"), sorted(pods.lines("p", "-t", "env"))))
    assert len(found[0][0]) > 40
    assert len(found[0][1]) > 2
    assert found[1] == found[0]


@pytest.mark.parametrize(
    ("script", "state", "result", "status"),
    [
        pytest.param("sleep 0.2; exit 0", "inactive", "success", "0", id="0"),
        pytest.param("exit 5", "failed", "exit-code", "5", id="5"),
        pytest.param("sleep 0.2; kill -KILL $$", "failed", "exit-code", "137", id="KILL"),
        pytest.param("sleep 0.2; exit 133", "failed", "exit-code", "1", id="133"),  # nspawn's own code for a reboot
    ],
)
def test_exit_code_under_never(pods: Pods, script: str, state: str, result: str, status: str) -> None:
    write(pods, pods.app(script), restartPolicy="Never")
    pods.start("p")
    assert pods.wait_end("p") == state
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": result, "ExecMainStatus": status}


@pytest.mark.parametrize(("policy", "code"), [("OnFailure", 5), ("Always", 0), ("Always", 137)])
def test_restarts(pods: Pods, policy: str, code: int) -> None:
    """Of that app only."""
    write(pods, pods.app(f"sleep 0.1; exit {code}"), pods.app(WAIT, "other"), restartPolicy=policy)
    pods.start("p")
    pods.bed.wait_for("[ $(systemctl -M p show app -PNRestarts) -ge 1 ]")
    assert pods.show("p", "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    result = "success" if code == 0 else "exit-code"
    assert pods.bed.read("/run/rktd/pods/p/status/app") == f"exited {code} {result}\n"
    assert pods.lines("p", "-t", "other") == ["up"]


def test_cannot_be_executed(pods: Pods) -> None:
    pods.bed.sh("mkdir -p /run/prog && printf '#!/nonexistent\\n' >/run/prog/x && chmod 755 /run/prog/x")
    broken = pods.app(["/v/x"], "broken", volumeMounts=[{"name": "v", "mountPath": "/v", "readOnly": True}])
    write(pods, broken, pods.app(WAIT, "fine"), volumes=[{"name": "v", "hostPath": {"path": "/run/prog"}}])
    assert pods.start("p", check=False).returncode == 1
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "203"}


def test_stop(pods: Pods) -> None:
    """The last lines arrive; who does not end is killed after its grace period."""
    slow = "trap 'echo got term; sleep 1; echo last; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    write(pods, pods.app(slow), pods.app("trap 'echo no' TERM; while :; do sleep 0.05; done", "deaf"), terminationGracePeriodSeconds=3)
    pods.start("p")
    begin = time.monotonic()
    pods.stop("p")
    assert 3 <= time.monotonic() - begin < 6
    pods.wait_end("p")
    assert pods.lines("p", "-t", "app") == ["up", "got term", "last"]
    assert pods.result("p")["apps"] == {
        "app": {"code": "exited", "status": "3", "result": "exit-code"},
        "deaf": {"code": "killed", "status": "KILL", "result": "signal"},
    }
    assert pods.show("p", "Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}


@pytest.mark.parametrize("end", ["app", "stop", "manager", "nspawn", "unit"])
def test_no_process_outlives_the_pod(pods: Pods, end: str) -> None:
    """Not one either that has detached itself from all others, whoever else is killed."""
    write(
        pods,
        pods.app("(setsid sh -c 'sleep 31337 & exec sleep 31338' &); sleep 1000"),
        restartPolicy="Never",
        terminationGracePeriodSeconds=1,
    )
    pods.start("p")
    pods.bed.wait_for("pgrep -fx 'sleep 31337' && pgrep -fx 'sleep 31338'")
    if end == "stop":
        pods.stop("p")
    else:
        nspawn = int(pods.show("p", "MainPID")["MainPID"])
        victim = {"app": main_pid(pods, "app"), "manager": leader(pods), "nspawn": nspawn, "unit": -1}[end]
        kill = ("systemctl", "kill", "--signal=KILL", "pod@p") if victim < 0 else ("kill", "-KILL", str(victim))
        pods.bed.run(*kill)
    assert pods.wait_end("p") == ("inactive" if end == "stop" else "failed")
    left = (
        "pgrep -fx 'sleep (3133[78]|1000)'; ls -d /sys/fs/cgroup/pods.slice/pod@p.service; machinectl list --no-legend; ls /run/rktd/pods"
    )
    assert pods.bed.sh(left, check=False).stdout == ""
    pods.start("p")  # nothing is in its way
    assert pods.show("p", "ActiveState") == {"ActiveState": "active"}


def test_stop_while_it_boots(pods: Pods) -> None:
    """At any moment: it never takes the time after which the pod would be killed."""
    write(pods, pods.app("sleep 1000"), terminationGracePeriodSeconds=5)
    for pause in (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
        pods.bed.sh(f"systemctl start --no-block pod@p; sleep {pause}")
        begin = time.monotonic()
        pods.stop("p")
        assert time.monotonic() - begin < 4
        pods.wait_end("p")
    assert pods.bed.sh("ls /run/rktd/pods; pgrep -fx 'sleep 1000'", check=False).stdout == ""


def test_probes_hooks_and_exec(pods: Pods) -> None:
    """Commands are run in the app; a liveness probe that fails restarts it; readiness is in the list."""
    run_in = {"exec": {"command": ["sh", "-c", "echo $(id -u) $(cat /proc/1/comm) >>/tmp/ran; [ -e /tmp/ok ]"]}}
    hooks = {"postStart": {"exec": {"command": ["sh", "-c", "id -u >/tmp/post; touch /tmp/ok"]}}}
    hooks["preStop"] = {"exec": {"command": ["sh", "-c", "echo pre >>/tmp/post"]}}
    app = pods.app(
        "trap 'cat /tmp/post; head -n1 /tmp/ran; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        readinessProbe={**run_in, "periodSeconds": 1, "failureThreshold": 1},
        livenessProbe={**run_in, "periodSeconds": 1, "failureThreshold": 2, "initialDelaySeconds": 2},
        lifecycle=hooks,
    )
    write(pods, app, terminationGracePeriodSeconds=5)
    pods.start("p")
    assert "1/1" in pods.bed.run("podctl", "list", "p").stdout
    pods.bed.run("podctl", "exec", "p/app", "--", "rm", "/tmp/ok")
    pods.bed.wait_for("[ \"$(systemctl show pod@p -PStatusText)\" = 'Not ready: app' ]")
    pods.bed.wait_for("[ $(systemctl -M p show app -PNRestarts) -ge 1 ]")
    assert pods.bed.run("podctl", "exec", "p/app", "--", "sh", "-c", "exit 7", check=False).returncode == 7
    pods.stop("p")
    lines = pods.lines("p", "-t", "app")
    assert lines == ["up", "0", "pre", "0 systemd"] * 2


def test_roles(pods: Pods) -> None:
    """Init containers, sidecars, an app behind a pipe, the pod's own network, its deadline."""
    init = pods.app("echo first >/v/x", "init", volumeMounts=[{"name": "v", "mountPath": "/v"}])
    side = pods.app(WAIT, "side", restartPolicy="Always")
    app = pods.app("cat /v/x; ip -o -4 addr show dev eth0 | wc -l; echo one >/dev/stderr; sleep 0.3", volumeMounts=init["volumeMounts"])
    spec = {
        **HOST,
        "restartPolicy": "Never",
        "initContainers": [init, side],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [app],
    }
    pods.write("p", spec, {"systemd.io/log-pipe": "app"})
    pods.start("p")
    assert pods.wait_end("p") == "inactive"
    assert pods.lines("p", "-t", "app") == ["first", "1"]
    assert pods.lines("p", "-t", "app", stream=3) == ["one"]
    assert pods.lines("p", "-t", "side") == ["up", "bye"]
    write(pods, pods.app("sleep 1000"), activeDeadlineSeconds=2, restartPolicy="Never", terminationGracePeriodSeconds=1)
    pods.start("p")
    assert pods.wait_end("p") == "failed"
    assert pods.show("p", "ExecMainStatus") == {"ExecMainStatus": "124"}


def test_journal(pods: Pods) -> None:
    """Its lines have the fields of other pods' lines."""
    kept = []
    for more in ({}, HOST):
        pods.write(
            "p",
            {
                "restartPolicy": "Never",
                "hostUsers": True,
                **more,
                "containers": [pods.app("echo '<4>out'; sleep 0.2; echo err >&2; sleep 0.2; exit 3")],
            },
        )
        pods.start("p")
        pods.wait_end("p")
        entries = pods.bed.journal("-u", "pod@p", "_TRANSPORT=stdout", f"--after-cursor={pods.cursor}")
        last = entries[-1]["_SYSTEMD_INVOCATION_ID"]
        entries = [entry for entry in entries if entry["_SYSTEMD_INVOCATION_ID"] == last]
        names = ("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "POD", "_SYSTEMD_UNIT", "_UID", "_TRANSPORT")  # not what goes with its writer
        kept.append([[entry.get(name) for name in names] for entry in entries])
    assert [line[0] for line in kept[0]] == ["out", "err", "app app failed: exited 3 exit-code"]
    assert kept[1] == kept[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"hostPID": True}, "spec.hostPID: needs hostUsers: true", id="users"),
        pytest.param({**HOST, "runtimeClassName": "xen"}, "spec.hostPID: not supported with runtimeClassName: xen", id="xen"),
        pytest.param({**HOST, "shareProcessNamespace": True}, "spec.shareProcessNamespace: cannot be with hostPID: true", id="shared"),
    ],
)
def test_refused(pods: Pods, fields: dict[str, Any], said: str) -> None:
    pods.write("p", {**fields, "containers": [pods.app(WAIT)]})
    done = pods.bed.run("podctl", "check", "/etc/pods/p.yaml", check=False)
    assert done.returncode == 78
    assert any(line.startswith("/etc/pods/p.yaml:") and said in line for line in (done.stdout + done.stderr).splitlines())

# SPDX-License-Identifier: Apache-2.0
"""podctl exec: the command is held by all that holds the app, compared with what the app itself sees; nothing of the host comes with it."""

import json
import re
import time
from typing import Any

import pytest

from tests.integration.pods import Pods

pytestmark = pytest.mark.integration

FACTS = """
grep -E "^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|Seccomp_filters|Umask):" /proc/self/status | tr -s " \\t" " "
for n in user mnt pid net ipc uts cgroup time; do echo ns $(readlink /proc/self/ns/$n); done
echo root $(stat -c %d:%i /) cwd $(pwd)
echo cgroup $(grep ^0:: /proc/self/cgroup)
env | grep -v -e ^SHLVL= -e ^PWD= -e ^_= | sort
ulimit -a
cat /proc/self/oom_score_adj
mount -t tmpfs none /tmp 2>&1
unshare -m true 2>&1
chroot / true 2>&1
nice
echo END
"""
# stay: an app that waits, and ends when told
STAY = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "root": ({}, {}),
    "user": ({"supplementalGroups": [5, 6]}, {"runAsUser": 1000, "runAsGroup": 1001}),
    "setuid": ({}, {"runAsUser": 1000, "allowPrivilegeEscalation": True}),
    "setuid-root": ({}, {"allowPrivilegeEscalation": True}),
    "dropped": ({}, {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "readOnlyRootFilesystem": True}),
    "unconfined": ({}, {"seccompProfile": {"type": "Unconfined"}}),
    "privileged": ({}, {"privileged": True}),
}


def write(pods: Pods, security: dict[str, Any], **spec: Any) -> None:
    script = f"({FACTS}) | sed 's/^/FACT /'; {STAY}"
    app = pods.app(script, env=[{"name": "A", "value": 'x y"$z'}, {"name": "EMPTY"}], workingDir="/tmp", securityContext=security)
    pods.write("enter", {"containers": [app], **spec})
    pods.start("enter")


def facts_of_app(pods: Pods) -> list[str]:
    deadline = time.monotonic() + 15
    while True:
        lines = [line.removeprefix("FACT ") for line in pods.lines("enter") if line.startswith("FACT ")]
        if "END" in lines:
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)


FILTERS = """
import sys; sys.path.insert(0, "/usr/lib/rktd")
from rktd_units import tasks
import hashlib
for pid in sys.argv[1:]: print(hashlib.sha256(b"|".join(tasks.read_filters(int(pid)))).hexdigest(), len(tasks.read_filters(int(pid))))
"""


@pytest.mark.parametrize(
    ("pod", "security"),
    [*CASES.values(), ({"hostUsers": True, "hostNetwork": True}, {}), ({"shareProcessNamespace": True}, {"runAsUser": 1000})],
    ids=[*CASES, "host-users", "shared"],
)
def test_equals_the_app(pods: Pods, pod: dict[str, Any], security: dict[str, Any]) -> None:
    pod = dict(pod)
    groups = pod.pop("supplementalGroups", None)
    if groups:
        pod["securityContext"] = {"supplementalGroups": groups}
    write(pods, security, **pod)
    expected = facts_of_app(pods)
    output = pods.bed.run("podctl", "exec", "enter/app", "--", "sh", "-c", FACTS).stdout
    found = [line.rstrip() for line in output.splitlines()]
    assert found == expected
    assert sum(line.startswith("ns ") for line in found) == 8
    assert 'A=x y"$z' in found
    # the filters themselves, byte for byte, and the cgroup as the host sees it
    bed = pods.bed
    bed.write("/root/filters.py", FILTERS)
    script = (
        "podctl exec enter/app -- sh -c 'echo; exec sleep 30' | { read -r; g=/sys/fs/cgroup; [ -e $g/cgroup.procs ] || g=$g/unified; "
        "d=$g$(systemctl show -P ControlGroup pod@enter)/payload/system.slice/app.service; "
        "for p in $(cat $d/cgroup.procs); do [ \"$(tr '\\0' ' ' </proc/$p/cmdline)\" = 'sleep 30 ' ] && pids=$p; done; "
        "python3 /root/filters.py $(head -n1 $d/cgroup.procs) $pids; kill $pids; }"
    )
    lines = bed.sh(script).stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]


def test_no_descriptor_leaks(pods: Pods) -> None:
    write(pods, {})
    bed = pods.bed
    bed.write("/root/secret", "s3cret")
    script = (
        "exec 7</root/secret 8<>/root/secret 9</; podctl exec -i enter/app -- sh -c 'ls -l /proc/self/fd; cat <&7; cat <&0' </root/secret"
    )
    done = bed.sh(script, check=False)
    links = re.findall(r"(\d+) -> (\S+)", done.stdout)
    assert [name for name, _ in links] == ["0", "1", "2"], done.stdout
    assert all(target.startswith("pipe:") for _, target in links)
    assert done.stdout.endswith("s3cret")  # what was read came through a pipe
    # and the pipes are the user's to open again
    assert bed.run("podctl", "exec", "enter/app", "--", "sh", "-c", "echo again >/dev/stderr").stderr == "again\n"


def test_exit_codes_and_signals(pods: Pods) -> None:
    write(pods, {"runAsUser": 1000})
    bed = pods.bed
    for command, code in (("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)):
        assert bed.run("podctl", "exec", "enter", "--", "sh", "-c", command, check=False).returncode == code
    assert bed.run("podctl", "exec", "enter", "--", "nothing-such", check=False).returncode == 127
    assert bed.run("podctl", "exec", "enter", "--", "/etc/hosts", check=False).returncode == 126
    assert bed.run("podctl", "exec", "enter", check=False).returncode == 64
    script = (
        "podctl exec enter -- sh -c 'trap \"echo told; exit 4\" USR1; echo up; while :; do sleep 0.05; done' >/tmp/out & p=$!; "
        "until grep -q up /tmp/out; do sleep 0.05; done; kill -USR1 $p; wait $p; echo code $?; cat /tmp/out"
    )
    assert bed.sh(script, check=False).stdout == "code 4\nup\ntold\n"
    # podctl killed: the command goes with it
    script = (
        "podctl exec enter -- sh -c 'echo up; exec sleep 987' >/tmp/out & p=$!; until grep -q up /tmp/out; do sleep 0.05; done; "
        "kill -9 $p; for i in $(seq 40); do pgrep -f '^sleep 987' || { echo gone; break; }; sleep 0.05; done"
    )
    assert bed.sh(script, check=False).stdout.endswith("gone\n")


def test_streams(pods: Pods) -> None:
    """Megabytes both ways, an end of file, and a reader that leaves."""
    write(pods, {})
    done = pods.bed.sh("head -c 3000000 /dev/zero | podctl exec -i enter -- sh -c 'cat; echo end >&2' | wc -c")
    assert (done.stdout.strip(), done.stderr) == ("3000000", "end\n")
    assert pods.bed.sh("podctl exec enter -- yes | head -n1").stdout == "y\n"
    done = pods.bed.run("podctl", "exec", "enter", "--", "sh", "-c", "yes & exit 3", check=False, timeout=30)  # who stays writes for ever
    assert done.returncode == 3
    assert pods.bed.run("podctl", "exec", "enter", "--", "cat", timeout=20).stdout == ""  # without -i there is nothing to read


TERMINAL = """
import fcntl, os, pty, struct, sys, termios, time, signal, select
child, master = pty.fork()
if child == 0:
    os.execvp("podctl", ["podctl", "exec", "-it", "enter", "--", "sh"])
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
got = b""
def until(mark, seconds=15):
    global got
    end = time.time() + seconds
    while mark not in got:
        assert select.select([master], [], [], end - time.time())[0], got
        got += os.read(master, 4096)
def say(text):
    os.write(master, text.encode())
time.sleep(1.0)
say("stty size; echo one$((1+1))\\n"); until(b"one2")
assert b"33 101" in got, got
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
os.kill(child, signal.SIGWINCH); time.sleep(0.3)
say("stty size; tty; echo two$((1+1))\\n"); until(b"two2")
assert b"20 60" in got, got
assert b"/dev/pts/" in got, got
say("sleep 100\\n"); time.sleep(0.5); say("\\x03"); say("echo three$((1+1)) $TERM\\n"); until(b"three2 xterm")
say("exit 9\\n")
try:
    while os.read(master, 4096): pass
except OSError: pass
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_terminal(pods: Pods) -> None:
    write(pods, {"runAsUser": 1000})
    pods.bed.write("/root/terminal.py", TERMINAL)
    assert pods.bed.run("env", "TERM=xterm", "python3", "/root/terminal.py", timeout=60).stdout == "9\n"
    assert pods.bed.run("podctl", "exec", "-t", "enter", "--", "true", check=False).returncode == 64


# The command's exit code, and after its output the milliseconds that it took, without the way into the testbed.
TIMED = "before=$(date +%s%N); {}; code=$?; echo $((($(date +%s%N) - before) / 1000000)); (exit $code)"


def test_waits_for_a_pod_that_starts(pods: Pods) -> None:
    pods.write("enter", {"initContainers": [pods.app("sleep 2", name="slow")], "containers": [pods.app(STAY)]})
    script = f"systemctl start --no-block pod@enter; podctl list --no-legend enter; {TIMED.format('podctl exec enter/app -- echo here')}"
    listed, here, spent = pods.bed.sh(script).stdout.splitlines()
    assert listed.split()[2] == "activating"
    assert here == "here"
    assert int(spent) > 1000


def test_apps_that_are_starting(pods: Pods) -> None:
    """An init container as long as it runs, and an app that has not said yet that it is ready."""
    init = pods.app("until [ -e /tmp/go ]; do sleep 0.05; done", name="init")
    pods.write("enter", {"initContainers": [init], "containers": [pods.app(STAY)]}, {"systemd.io/notify": "app"})
    try:
        pods.bed.run("systemctl", "start", "--no-block", "pod@enter")
        pods.bed.run("podctl", "exec", "enter/init", "--", "touch", "/tmp/go")
        assert pods.bed.run("podctl", "exec", "enter/app", "--", "echo", "here").stdout == "here\n"
        done = pods.bed.run("podctl", "exec", "enter/init", "--", "true", check=False, timeout=30)
        assert (done.returncode, "has ended" in done.stderr) == (69, True), done.stderr  # though the pod is starting still
        assert pods.show("enter", "ActiveState")["ActiveState"] == "activating"
    finally:
        pods.stop("enter")


def test_as_kubectl_has_it(pods: Pods) -> None:
    """Options between the pod and `--`, and the app apart; what is behind the program's name is the program's."""
    write(pods, {})
    bed = pods.bed
    for words in ("enter -c app -i", "-i enter --container app", "enter/app -i -w /"):
        assert bed.run("podctl", "exec", *words.split(), "--", "cat", input="said").stdout == "said"
    assert bed.run("podctl", "exec", "enter", "echo", "-i", "--", "x").stdout == "-i -- x\n"
    for words, message in (("enter -i cat", "is no program"), ("enter/app -c app -- id", "two apps"), ("enter -i id -- x", "options only")):
        done = bed.run("podctl", "exec", *words.split(), check=False)
        assert (done.returncode, message in done.stderr) == (64, True), done.stderr


def test_fails_at_once_when_dead(pods: Pods) -> None:
    bed = pods.bed
    pods.write("enter", {"restartPolicy": "Never", "containers": [pods.app("exit 3", name="dead"), pods.app(STAY, name="alive")]})
    pods.start("enter")
    time.sleep(0.5)
    done = bed.sh(TIMED.format("podctl exec enter/dead -- true"), check=False)
    assert int(done.stdout) < 1000
    assert (done.returncode, "has ended" in done.stderr) == (69, True), done.stderr
    done = bed.run("podctl", "exec", "enter/deat", "--", "true", check=False)
    assert (done.returncode, "did you mean 'dead'?" in done.stderr) == (66, True), done.stderr
    assert bed.run("podctl", "exec", "enter", "--", "true", check=False).returncode == 64
    # a pod whose nspawn was killed waits two seconds to be started again
    pods.write("again", {"restartPolicy": "Always", "containers": [pods.app(STAY)]})
    pods.start("again")
    bed.sh("kill -9 $(systemctl show -P MainPID pod@again)")
    bed.sh("until [ $(systemctl show -P SubState pod@again) = auto-restart ]; do sleep 0.02; done")
    done = bed.sh(TIMED.format("podctl exec again -- true"), check=False)
    assert int(done.stdout) < 1000
    assert (done.returncode, "waits to be started again" in done.stderr) == (69, True), done.stderr
    # so does an app that fails, for a second or more
    pods.write("again", {"restartPolicy": "Always", "containers": [pods.app("sleep 0.5; exit 3", name="brief"), pods.app(STAY)]})
    bed.run("systemctl", "restart", "pod@again")
    bed.sh("until podctl list -o json again | grep -q auto-restart; do sleep 0.02; done")
    done = bed.sh(TIMED.format("podctl exec again/brief -- true"), check=False)
    assert int(done.stdout) < 1000
    assert (done.returncode, "has ended, and waits to be started again" in done.stderr) == (69, True), done.stderr
    pods.stop("enter")
    done = bed.sh(TIMED.format("podctl exec enter/alive -- true"), check=False)
    assert int(done.stdout) < 1000
    assert (done.returncode, "does not run" in done.stderr) == (69, True), done.stderr


def test_the_interpreter_cannot_be_written(pods: Pods) -> None:
    """CVE-2019-5736: `/proc/self/exe` of an image leads to what executed it; here to a read-only mount, even without a user name space."""
    write(pods, {}, hostUsers=True, hostNetwork=True)
    bed = pods.bed
    before = bed.sh("sha256sum $(readlink -f /usr/bin/python3)").stdout
    script = 'printf \'#!/proc/self/exe\\nopen("/proc/self/exe", "r+b")\\n\' >/evil; chmod +x /evil'
    bed.run("podctl", "exec", "enter", "--", "sh", "-c", script)
    done = bed.run("podctl", "exec", "enter", "--", "/evil", check=False)
    assert done.returncode != 0
    assert bed.sh("sha256sum $(readlink -f /usr/bin/python3)").stdout == before


ENTER = """
import os, sys, time; sys.path.insert(0, "/usr/lib/rktd")
from rktd_units import cgroups, enter
group = cgroups.app_cgroup(cgroups.pod_cgroup("enter"), "app")
app = cgroups.list_pids(group)[0]
ours = os.fork()  # as a child of podctl exec that the pod's root has frozen
if not ours: time.sleep(1000)
try:
    open(group + "/cgroup.procs", "w").write(str(ours))
    for pid in (ours, app):
        order = enter.Order(pid, cgroups.leader_of("enter"), group, ["id", "-u"], {"PATH": "/bin"}, "/", 7, 7, [], %s, False, False)
        try:
            print(enter.Enter(order).run(), flush=True)
        except OSError as error:
            print(error.strerror, flush=True)
finally:
    os.kill(ours, 9)
"""


@pytest.mark.parametrize("pod", [{}, {"hostUsers": True, "hostNetwork": True}], ids=["user-namespace", "host-users"])
def test_what_enters_an_app_is_not_the_app(pods: Pods, pod: dict[str, Any]) -> None:
    """The pod's root chooses what is called the app's process; ours join its cgroup only when all that holds the app holds them."""
    write(pods, {}, **pod)
    base = json.loads(pods.bed.run("cat", "/run/rktd/pods/enter/pod.json").stdout)["idBase"] or 0
    pods.bed.write("/root/enter.py", ENTER % base)
    refused, uid, code = pods.bed.run("python3", "/root/enter.py").stdout.splitlines()
    assert "only enters the app" in refused
    assert (uid, code) == ("7", "0")


def test_other_users_are_refused(pods: Pods) -> None:
    write(pods, {})
    done = pods.bed.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "podctl", "exec", "enter", "--", "id", check=False)
    assert (done.returncode, "only root may" in done.stderr) == (77, True), done.stderr


def test_speed(pods: Pods) -> None:
    write(pods, {})
    best = min(json.loads(pods.bed.sh("s=$(date +%s%N); podctl exec enter -- true; echo $(($(date +%s%N)-s))").stdout) for _ in range(5))
    assert best < 400e6

# SPDX-License-Identifier: Apache-2.0
"""podctl run, attach, cp and events, and the completion scripts, on real pods."""

import json
import time

import pytest
import yaml

from tests.integration.pods import Pods
from tests.integration.test_podctl_pods import podctl, records
from tests.output_schema import check_record

pytestmark = pytest.mark.integration
STAY = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"


def require_nothing(pods: Pods) -> None:
    """Of a pod that was run with --rm, once podctl has returned: no pod, no file, no unit, no process."""
    assert records(pods, "pod", "list") == []
    assert pods.bed.run("ls", "-A", "/run/pods").stdout == ""
    assert pods.bed.sh("ls /run/rktd/pods").stdout == ""
    # the scope goes when the caller has seen podctl's end, a moment later
    listed = "systemctl list-units --all --no-legend 'podctl-run-*'"
    pods.bed.sh(f'for i in $(seq 100); do [ "$({listed})" ] || break; sleep 0.05; done; [ ! "$({listed})" ]')
    assert pods.bed.run("pgrep", "-f", "podctl run|rktd_units.enter", check=False).stdout == ""


def test_run_in_the_foreground(pods: Pods) -> None:
    script = "echo $A; echo err >&2; id -u; id -g; cat; printf 'no line'; exit 4"
    argv = ("podctl", "run", "--rm", "--name=adhoc", "-e", "A=$(x) $y", "-u", "1000:1001", pods.image, "sh", "-c", script)
    done = pods.bed.run(*argv, input="not for it", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("$(x) $y\n1000\n1001\nno line", "err\n", 4)
    require_nothing(pods)
    assert pods.bed.run("podctl", "run", "--rm", "--name=adhoc", "-i", pods.image, "wc", "-c", input="12345").stdout == "5\n"
    require_nothing(pods)
    assert podctl(pods, "run", "--rm", pods.image, "no-such-program", code=127).stderr.startswith("podctl: no-such-program:")
    require_nothing(pods)


# A command that takes half a second to end when told, and podctl that runs it; p is podctl, once the command is up.
BACKGROUND = (
    "rm -f /tmp/out; podctl run {} --name adhoc {} sh -c "
    "'trap \"sleep 0.5; echo bye; exit 9\" {}; echo up; while :; do sleep 0.1; done' >/tmp/out & p=$!; "
    "until grep -q up /tmp/out; do sleep 0.1; done; "
)


def test_run_is_a_scope_of_its_caller(pods: Pods) -> None:
    """The process that the caller has started is in the scope, is told signals, once, and ends when the pod has."""
    start = BACKGROUND.format("--rm", pods.image, "INT")
    script = f"{start} grep -o '[^/]*$' /proc/$p/cgroup | sort -u; kill -INT $p; wait $p; echo code $?; cat /tmp/out"
    assert pods.bed.sh(script, check=False).stdout.splitlines()[-4:] == ["podctl-run-adhoc.scope", "code 9", "up", "bye"]
    require_nothing(pods)
    # a signal to all of its process group, as timeout(1) and the keys of a terminal send it, comes once, too
    count = "trap 'echo told' TERM; echo up; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done"
    pods.bed.write("/tmp/count", count)
    script = (
        f'rm -f /tmp/out; setsid podctl run --rm --name adhoc {pods.image} sh -c "$(cat /tmp/count)" >/tmp/out & p=$!; '
        "until grep -q up /tmp/out; do sleep 0.1; done; kill -TERM -- -$p; wait $p; echo code $?; cat /tmp/out"
    )
    assert pods.bed.sh(script, check=False).stdout == "code 0\nup\ntold\n"
    require_nothing(pods)


def test_run_ends_with_podctl_and_with_its_pod(pods: Pods) -> None:
    start = BACKGROUND.format("--rm", pods.image, "TERM")
    # SIGKILL: the command goes at once, and the pod with it
    script = (
        f"{start} c=$(pgrep -f '^sh -c trap'); kill -9 $p; podctl wait adhoc --for=deleted --timeout=20; kill -0 $c; echo $?; cat /tmp/out"
    )
    assert pods.bed.sh(script, check=False).stdout == "1\nup\n"
    require_nothing(pods)
    # a stop of the pod, and one of the scope, tell the command, and give it its time
    for unit in ("pod@adhoc.service", "podctl-run-adhoc.scope"):
        done = pods.bed.sh(f"{start} systemctl stop {unit}; wait $p; echo code $?; cat /tmp/out", check=False)
        assert done.stdout == "code 9\nup\nbye\n", done.stderr
        require_nothing(pods)


def test_run_without_rm_can_be_started_again(pods: Pods) -> None:
    script = BACKGROUND.format("", pods.image, "TERM") + "kill -TERM $p; wait $p; echo code $?"
    assert pods.bed.sh(script, check=False).stdout == "code 9\n"
    assert records(pods, "pod", "list", "adhoc")[0]["state"] == "inactive"
    assert "is a pod adhoc already" in podctl(pods, "run", "--name=adhoc", pods.image, code=64).stderr
    assert pods.bed.run("stat", "-c", "%n %a", "/run/pods/adhoc.yaml").stdout == "/run/pods/adhoc.yaml 600\n"
    assert pods.bed.run("ls", "-A", "/run/pods").stdout == "adhoc.yaml\n"
    pods.start("adhoc")  # now it is a pod as all others are
    pods.stop("adhoc")
    assert pods.lines("adhoc") == ["up", "bye"]


def test_run_detached(pods: Pods) -> None:
    pods.bed.sh("mkdir -p /srv/shared; echo host >/srv/shared/file")
    options = (
        "-v",
        "/srv/shared:/shared:ro",
        "-v",
        "/scratch",
        "-v",
        "kept:/kept",
        "--network=none",
        "-m",
        "64m",
        "--cpus",
        "0.5",
        "--read-only",
        "-w",
        "/scratch",
    )
    done = podctl(pods, "run", "-d", "--rm", *options, pods.image, "--", "sh", "-c", f"pwd; cat /shared/file; touch x /kept/y; {STAY}")
    name = done.stdout.strip()
    assert name.startswith("base-")
    assert records(pods, "pod", "list", name)[0]["state"] == "active"
    assert pods.bed.run("stat", "-c", "%a", f"/run/pods/{name}.yaml").stdout == "600\n"
    assert pods.show(f"podctl-run-{name}.service", "ActiveState", "Transient") == {"ActiveState": "active", "Transient": "yes"}
    time.sleep(0.5)
    assert podctl(pods, "logs", f"{name}/app").stdout == "/scratch\nhost\nup\n"
    assert podctl(pods, "exec", name, "ls", "/sys/class/net").stdout == "lo\n"
    podctl(pods, "stop", name)
    podctl(pods, "wait", name, "--for=deleted", "--timeout=10")
    assert pods.bed.run("ls", "/var/lib/rktd/volumes/kept").stdout == "y\n"
    podctl(pods, "volume", "rm", "kept")


def test_run_refuses(pods: Pods) -> None:
    assert "for the foreground" in podctl(pods, "run", "-itd", pods.image, "sh", code=64).stderr
    assert "for --detach" in podctl(pods, "run", "--restart=always", pods.image, "sh", code=64).stderr
    assert "not a terminal" in podctl(pods, "run", "-it", pods.image, "sh", code=64).stderr
    assert "limits.cpu" in podctl(pods, "run", "--cpus=zz", "--name=x", pods.image, code=78).stderr
    podctl(pods, "run", "--name=Bad_", pods.image, code=64)
    done = podctl(pods, "run", "--rm", "--name=x", "oci:/srv/none@sha256:" + "0" * 64, code=1)
    assert "did not start" in done.stderr
    require_nothing(pods)
    unpinned = podctl(pods, "run", "--rm", "--name=x", pods.image.partition("@")[0], code=1)
    assert "\n  hint: pin what is there now" in unpinned.stderr
    require_nothing(pods)
    assert json.loads(podctl(pods, "run", "--print", "--name=x", pods.image, "ls").stdout)["spec"]["containers"][0]["args"] == ["ls"]


TERMINAL = """
import os, pty, select, sys, time
child, master = pty.fork()
if child == 0:
    os.execvp("podctl", ["podctl", "run", "--rm", "--name=adhoc", "-e", "A=b", "-u", "1000", "-it", sys.argv[1], "sh"])
got = b""
def until(mark):
    global got
    end = time.time() + 30
    while mark not in got:
        assert select.select([master], [], [], max(end - time.time(), 0))[0], got
        got += os.read(master, 4096)
until(b"$ ")
os.write(master, b"tty; id -u; echo $A$((1+1)); exit 9\\n")
until(b"b2")
try:
    while os.read(master, 4096): pass
except OSError: pass
assert b"/dev/pts/" in got and b"1000" in got, got
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_run_with_a_terminal(pods: Pods) -> None:
    pods.bed.write("/root/terminal.py", TERMINAL)
    assert pods.bed.run("env", "TERM=xterm", "python3", "/root/terminal.py", pods.image, timeout=60).stdout == "9\n"
    require_nothing(pods)


def test_attach(pods: Pods) -> None:
    script = "echo first; until [ -e /tmp/go ]; do sleep 0.05; done; seq 2000; exit 6"
    for options, expected in (("--from-start", ["first"]), ("", [])):
        pods.write("web", {"restartPolicy": "Never", "containers": [pods.app(script)]})
        pods.start("web")
        pods.bed.sh("until podctl logs web --current | grep -q first; do sleep 0.05; done")
        script_here = (
            f"podctl attach web {options} >/tmp/out & p=$!; until pgrep -f 'journalctl.*--follow' >/dev/null; do sleep 0.05; done; "
            "podctl exec web -- touch /tmp/go; wait $p; echo $?; cat /tmp/out"
        )
        done = pods.bed.sh(script_here, check=False)
        assert done.stdout.splitlines() == ["6", *expected, *(str(number) for number in range(1, 2001))], done.stderr
        pods.wait_end("web")
    podctl(pods, "attach", "web", code=69)


def test_events(pods: Pods) -> None:
    pods.write("web", {"restartPolicy": "Never", "containers": [pods.app("exit 3")]})
    pods.start("web")
    pods.wait_end("web")
    pods.bed.run("journalctl", "--sync")
    found = [json.loads(line) for line in podctl(pods, "events", "web", "-o", "json", "-n", "20").stdout.splitlines()]
    for event in found:
        check_record("event", event)
    kinds = [(event["stage"], event["event"]) for event in found]
    assert {("stage0", "started"), ("pod", "started"), ("app", "failed"), ("pod", "failed")} <= set(kinds)
    assert "EVENT" in podctl(pods, "events", "-n", "3").stdout.splitlines()[0]
    script = "timeout 6 podctl events -f web -o json >/tmp/events & sleep 1.5; systemctl start pod@web; wait; tail -n3 /tmp/events"
    assert '"pod": "web"' in pods.bed.sh(script, check=False).stdout
    assert podctl(pods, "events", "--since=rubbish", code=1).stdout == ""
    assert len(yaml.safe_load(podctl(pods, "events", "-n", "2", "-o", "yaml").stdout)) == 2
    assert podctl(pods, "events", "-n", "0", "--no-legend").stdout == ""


def test_events_of_a_pod_that_is_new(pods: Pods) -> None:
    """Nobody has heard of its name when --follow begins; and of the past there is no more than was asked for."""
    name = f"new-{time.time_ns()}"
    for lines in (0, 2):
        script = f"exec podctl events --follow --lines={lines} --output=json >/tmp/events.{lines}"
        pods.bed.run("systemd-run", "--quiet", f"--unit=events-{lines}", "sh", "-c", script)
    try:
        pods.bed.wait_for("[ $(pgrep -c -f 'journalctl.*--[f]ollow.*MESSAGE_ID') = 2 ]")
        assert pods.bed.sh("wc -l </tmp/events.0; wc -l </tmp/events.2").stdout.split() == ["0", "2"]
        pods.write(name, {"restartPolicy": "Never", "containers": [pods.app("exit 3")]})
        pods.start(name)
        for lines in (0, 2):
            pods.bed.wait_for(f'grep -q \'"pod": "{name}", "stage": "app", "event": "failed"\' /tmp/events.{lines}')
    finally:
        pods.bed.run("systemctl", "stop", "events-0", "events-2")


def test_cp(pods: Pods) -> None:
    bed = pods.bed
    app = pods.app(STAY, securityContext={"runAsUser": 1000}, workingDir="/tmp")
    app["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
    security = {"fsGroup": 2000, "supplementalGroups": [3000]}
    pods.write("web", {"securityContext": security, "volumes": [{"name": "shared", "emptyDir": {}}], "containers": [app]})
    pods.start("web")
    bed.sh("rm -rf /srv/cp; mkdir -p /srv/cp/tree/inner; cd /srv/cp/tree; echo one >a; chmod 4755 a; ln -s /etc/passwd link")
    bed.sh("head -c 3000000 /dev/urandom >/srv/cp/tree/inner/big")
    podctl(pods, "cp", "/srv/cp/tree", "web/app:/tmp/")
    listing = podctl(
        pods, "exec", "web", "--", "sh", "-c", "cd /tmp/tree; stat -c '%n %a %u' a inner link; readlink link; sha256sum <inner/big"
    ).stdout.splitlines()
    assert listing[:4] == ["a 755 1000", "inner 755 1000", "link 777 1000", "/etc/passwd"]
    assert listing[4].split()[0] == bed.sh("sha256sum </srv/cp/tree/inner/big").stdout.split()[0]
    podctl(pods, "cp", "web:/tmp/tree", "/srv/cp/back")
    assert bed.sh("cd /srv/cp; diff -r --no-dereference tree back && stat -c '%a %u' back/a").stdout == "755 0\n"
    # one file onto a name; what the app's user may not write; what is not there
    podctl(pods, "cp", "/srv/cp/tree/a", "web/app:/tmp/b")
    assert podctl(pods, "exec", "web", "cat", "/tmp/b").stdout == "one\n"
    assert "permission denied" in podctl(pods, "cp", "/srv/cp/tree/a", "web/app:/etc/b", code=1).stderr
    podctl(pods, "cp", "/srv/cp/tree/a", "web/app:/shared/")  # which its fsGroup lets it write to
    assert podctl(pods, "exec", "web", "stat", "-c", "%u %g", "/shared/a").stdout == "1000 2000\n"
    assert "no such file" in podctl(pods, "cp", "web/app:/none", "/srv/cp/", code=1).stderr
    podctl(pods, "cp", "/a", "/b", code=64)
    podctl(pods, "cp", "web:/a", "web:/b", code=64)
    # a hostile app: links that lead out of its root stay inside it, pipes are left out, a link at the target is replaced, not followed
    bed.sh("echo host >/srv/cp/secret; rm -rf /srv/cp/out; mkdir /srv/cp/out; ln -s /srv/cp/secret /srv/cp/out/x")
    script = "mkdir /tmp/evil; cd /tmp/evil; ln -s /../../../srv/cp/secret out; ln -s /srv /tmp/dir; mkfifo pipe; echo x >x"
    podctl(pods, "exec", "web", "--", "sh", "-c", script)
    assert "is not copied" in podctl(pods, "cp", "web:/tmp/evil/pipe", "/srv/cp/p", code=1).stderr
    podctl(pods, "cp", "web:/tmp/evil/out", "/srv/cp/got", code=1)
    podctl(pods, "cp", "web:/tmp/dir/cp/secret", "/srv/cp/got", code=1)
    podctl(pods, "cp", "web:/tmp/evil/x", "/srv/cp/out/x")
    assert bed.sh("cat /srv/cp/secret /srv/cp/out/x").stdout == "host\nx\n"


COMPLETE = """
source /usr/share/bash-completion/completions/podctl
ask() { COMP_LINE="podctl $1"; COMP_POINT=${#COMP_LINE}; COMPREPLY=(); _podctl || true; echo "${COMPREPLY[@]}"; }
ask sta; ask "status "; ask "logs web/"; ask "list --no"; ask "image "; ask "image li"; ask "exec "
ask "list --output=j"; ask "list -o "; ask "logs --since "; ask "fetch oci:/srv/images/base@"; ask "image rm $IMAGE"
"""


def test_completion(pods: Pods) -> None:
    pods.write("web", {"containers": [pods.app(STAY, "server")]})
    podctl(pods, "fetch", pods.image)
    lines = pods.bed.sh(f"IMAGE={pods.image[:-8]}; {COMPLETE}").stdout.splitlines()
    assert lines[0].split() == ["status", "start", "stats"]
    assert lines[1] == "web"
    assert lines[2] == "web/server"
    assert lines[3].split() == ["--no-legend", "--no-pager"]
    assert {"list", "rm", "verify"} <= set(lines[4].split())
    assert lines[5] == "list"
    assert lines[6].split() == ["web/server", "web"]
    # the values of options, and of words with colons what bash would replace
    assert lines[7].split() == ["json", "json-pretty"]
    assert lines[8].split() == ["table", "json", "json-pretty", "yaml"]
    assert lines[9] == ""
    assert lines[10] == pods.image.partition("@")[2]
    assert lines[11] == pods.image.rpartition(":")[2]

# SPDX-License-Identifier: Apache-2.0
"""podctl run, attach, cp and events, and the completion scripts, on real pods."""

import json
import time

import pytest

from tests.integration.pods import Pods
from tests.integration.test_podctl_pods import podctl, records
from tests.output_schema import check_record

pytestmark = pytest.mark.integration
STAY = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"


def test_run_in_the_foreground(pods: Pods) -> None:
    script = "echo $A; echo err >&2; id -u; id -g; exit 4"
    done = podctl(pods, "run", "--rm", "--name=adhoc", "-e", "A=$(x) $y", "-u", "1000:1001", pods.image, "sh", "-c", script, code=4)
    assert sorted(done.stdout.splitlines()) == ["$(x) $y", "1000", "1001", "err"]  # two streams: their order is journald's
    podctl(pods, "wait", "adhoc", "--for=deleted", "--timeout=10")
    assert records(pods, "pod", "list") == []
    assert pods.bed.run("ls", "/run/pods").stdout == ""
    assert pods.bed.run("systemctl", "list-units", "--all", "--no-legend", "podctl-run-*").stdout == ""


def test_run_ends_by_signal(pods: Pods) -> None:
    script = (
        f"podctl run --name adhoc {pods.image} sh -c 'trap \"exit 9\" TERM; echo up; while :; do sleep 0.1; done' >/tmp/out & p=$!; "
        "until grep -q up /tmp/out; do sleep 0.1; done; kill -INT $p; wait $p; echo code $?"
    )
    assert pods.bed.sh(script, check=False).stdout == "code 9\n"
    assert records(pods, "pod", "list", "adhoc")[0]["state"] != "active"
    assert "is a pod adhoc already" in podctl(pods, "run", "--name=adhoc", pods.image, code=64).stderr


def test_run_detached(pods: Pods) -> None:
    pods.bed.sh("mkdir -p /srv/shared; echo host >/srv/shared/file")
    options = ("-v", "/srv/shared:/shared:ro", "-v", "/scratch", "-m", "64m", "--cpus", "0.5", "--read-only", "-w", "/scratch")
    done = podctl(pods, "run", "-d", "--rm", *options, pods.image, "--", "sh", "-c", f"pwd; cat /shared/file; touch x; {STAY}")
    name = done.stdout.strip()
    assert name.startswith("base-")
    assert records(pods, "pod", "list", name)[0]["state"] == "active"
    assert pods.bed.run("stat", "-c", "%a", f"/run/pods/{name}.yaml").stdout == "600\n"
    assert pods.show(f"podctl-run-{name}.service", "ActiveState", "Transient") == {"ActiveState": "active", "Transient": "yes"}
    time.sleep(0.5)
    assert podctl(pods, "logs", f"{name}/app").stdout == "/scratch\nhost\nup\n"
    podctl(pods, "stop", name)
    podctl(pods, "wait", name, "--for=deleted", "--timeout=10")


def test_run_refuses(pods: Pods) -> None:
    assert "for the foreground" in podctl(pods, "run", "-itd", pods.image, "sh", code=64).stderr
    assert "not a terminal" in podctl(pods, "run", "-it", pods.image, "sh", code=64).stderr
    assert "limits.cpu" in podctl(pods, "run", "--cpus=zz", "--name=x", pods.image, code=78).stderr
    podctl(pods, "run", "--name=Bad_", pods.image, code=64)
    done = podctl(pods, "run", "--rm", "--name=x", "oci:/srv/none@sha256:" + "0" * 64, code=1)
    assert "did not start" in done.stderr
    assert pods.bed.run("ls", "/run/pods").stdout == ""
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
    podctl(pods, "wait", "adhoc", "--for=deleted", "--timeout=10")
    done = pods.bed.run("podctl", "run", "--rm", "--name=adhoc", "-i", pods.image, "cat", input="in")
    assert done.stdout == "in"
    # podctl killed: its scope is empty then, and the pod goes
    script = (
        f"mkfifo /tmp/fifo; podctl run --rm --name adhoc -i {pods.image} sh -c 'echo up; exec sleep 1000' <>/tmp/fifo >/tmp/out & p=$!; "
        "until grep -q up /tmp/out; do sleep 0.1; done; kill -9 $p; rm /tmp/fifo; podctl wait adhoc --for=deleted --timeout=20; echo $?"
    )
    assert pods.bed.sh(script, check=False).stdout == "0\n"


def test_attach(pods: Pods) -> None:
    pods.write("web", {"restartPolicy": "Never", "containers": [pods.app("for i in 1 2 3; do echo $i; sleep 1; done; exit 6")]})
    pods.start("web")
    done = podctl(pods, "attach", "web", "--from-start", code=6)
    assert done.stdout == "1\n2\n3\n"
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


def test_cp(pods: Pods) -> None:
    bed = pods.bed
    pods.write("web", {"containers": [pods.app(STAY, securityContext={"runAsUser": 1000}, workingDir="/tmp")]})
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
ask() { COMP_WORDS=(podctl "$@"); COMP_CWORD=$#; COMPREPLY=(); _podctl; echo "${COMPREPLY[@]}"; }
ask sta; ask status ""; ask logs web/; ask list --no; ask image ""; ask image li; ask exec ""
"""


def test_completion(pods: Pods) -> None:
    pods.write("web", {"containers": [pods.app(STAY, "server")]})
    lines = pods.bed.sh(COMPLETE).stdout.splitlines()
    assert lines[0].split() == ["status", "start", "stats"]
    assert lines[1] == "web"
    assert lines[2] == "web/server"
    assert lines[3].split() == ["--no-legend", "--no-pager"]
    assert {"list", "rm", "verify"} <= set(lines[4].split())
    assert lines[5] == "list"
    assert lines[6].split() == ["web/server", "web"]

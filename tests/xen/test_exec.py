# SPDX-License-Identifier: Apache-2.0
"""`podctl exec` into a Xen guest: one pod for all of it, since a start takes long here."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import left_overs


@pytest.fixture(scope="module")
def guest(pods_session: Pods) -> Iterator[Pods]:
    """Pod `vm`, with app `one` that is a user's and confined, and app `two`."""
    pods = pods_session
    pods.clean()
    security = {"runAsUser": 1000, "runAsGroup": 1000, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    script = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"
    one = pods.app(script, name="one", securityContext=security, env=[{"name": "COLOUR", "value": "a 'b' $$c"}], workingDir="/tmp")
    one["env"].append({"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "hunter2"}}
    one["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
    spec = {"runtimeClassName": "xen", "restartPolicy": "Never", "containers": [one, pods.app(script, name="two")]}
    shared = {"securityContext": {"fsGroup": 2000}, "volumes": [{"name": "shared", "emptyDir": {}}]}
    pods.write("vm", spec | shared, beside=(secret,))
    pods.start("vm", timeout=400)
    yield pods
    pods.clean()


def run(pods: Pods, *argv: str, data: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*pods.bed.prefix, "podctl", "exec", *argv], input=data or b"", capture_output=True, check=False, timeout=120)


def test_streams_and_exit_code(guest: Pods) -> None:
    done = run(guest, "-i", "vm/one", "sh", "-c", 'cat; echo "$COLOUR $SECRET"; pwd; echo "$1" >&2; exit 7', "sh", "a  b", data=b"\0\xff\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"\0\xff\na 'b' $c hunter2\n/tmp\n", b"a  b\n")
    assert run(guest, "vm/one", "cat").stdout == b""
    assert run(guest, "vm/one", "sh", "-c", "kill -9 $$").returncode == 137
    missing = run(guest, "vm/one", "nothere")
    assert (missing.returncode, missing.stderr) == (127, b"podctl: nothere: no such program in PATH\n")


def test_a_command_is_held_by_what_holds_its_app(guest: Pods) -> None:
    """Compared with the app's own main process, which is PID 1 of its name space."""
    keys = "Uid Gid CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters"
    script = f"for p in 1 self; do for k in {keys}; do grep ^$k: /proc/$p/status; done; cat /proc/$p/cgroup; echo --; done; touch /x; "
    script += "ls /proc | grep -c '^[0-9]'"
    done = run(guest, "vm/one", "sh", "-c", script)
    main, own, rest = done.stdout.decode().split("--\n")
    assert main == own
    assert "CapBnd:\t0000000000000000" in own
    assert "Uid:\t1000" in own
    assert b"touch: /x: Read-only file system" in done.stderr
    assert int(rest) < 8  # its own processes, not the guest's
    assert "CapBnd:\t00000000a80425fb" in run(guest, "vm/two", "cat", "/proc/self/status").stdout.decode()


def test_much_in_both_directions_and_several_at_once(guest: Pods) -> None:
    data = bytes(range(256)) * 2048
    others = [
        subprocess.Popen([*guest.bed.prefix, "podctl", "exec", "vm/two", "sh", "-c", f"sleep 2; echo {n}"], stdout=subprocess.PIPE)
        for n in range(3)
    ]
    assert run(guest, "-i", "vm/one", "cat", data=data).stdout == data
    assert [other.communicate(timeout=120)[0] for other in others] == [b"0\n", b"1\n", b"2\n"]


def test_a_reader_that_goes_ends_its_command(guest: Pods) -> None:
    guest.bed.sh("podctl exec vm/two sh -c 'echo on >/tmp/on; yes' | head -1", timeout=120)
    look = 'for p in /proc/[0-9]*; do read -r name <$p/comm && [ "$name" = yes ] && exit 3; done; exit 0'
    for _ in range(20):
        if run(guest, "vm/two", "sh", "-c", look).returncode == 0:
            return
    raise AssertionError("the command runs still")


def test_files_are_copied(guest: Pods) -> None:
    """There and back; written as the app's user, with the app's groups; no link leads out on either side."""
    bed = guest.bed
    bed.sh("""
        rm -rf /srv/cp; mkdir -p /srv/cp/tree/inner; cd /srv/cp/tree; echo one >a; chmod 4755 a; ln -s /etc/passwd link; mkfifo pipe
        head -c 200000 /dev/urandom >inner/big; echo secret >/srv/cp/secret; mkdir /srv/cp/out; ln -s /srv/cp/secret /srv/cp/out/x
    """)
    there = bed.sh("podctl cp /srv/cp/tree vm/two:/tmp/", check=False)
    assert (there.returncode, there.stderr) == (1, "podctl: pipe: is not copied: neither file, directory nor link\n")
    assert (
        bed.sh("podctl cp vm/two:/tmp/tree /srv/cp/back; rm /srv/cp/tree/pipe; cd /srv/cp; diff -r --no-dereference tree back").stdout == ""
    )
    assert bed.sh("stat -c '%a %u' /srv/cp/back/a").stdout == "755 0\n"
    refused = bed.sh("podctl cp /srv/cp/tree/a vm/one:/tmp/b", check=False)
    assert (refused.returncode, "read-only file system" in refused.stderr) == (1, True)
    bed.sh("podctl cp /srv/cp/tree/a vm/one:/shared/")
    assert run(guest, "vm/one", "stat", "-c", "%u %g", "/shared/a").stdout == b"1000 2000\n"
    missing = bed.sh("podctl cp vm/two:/none /srv/cp/", check=False)
    assert (missing.returncode, "no such file" in missing.stderr) == (1, True)
    run(guest, "vm/two", "sh", "-c", "ln -s /srv /tmp/out; ln -s /srv/cp/secret /tmp/evil; echo mine >/tmp/x")
    assert bed.sh("podctl cp vm/two:/tmp/out/cp/secret /srv/cp/got", check=False).returncode == 1
    assert bed.sh("podctl cp vm/two:/tmp/x /srv/cp/out/x; cat /srv/cp/secret /srv/cp/out/x").stdout == "secret\nmine\n"
    assert bed.sh("podctl cp vm/two:/tmp/evil /srv/cp/got", check=False).returncode == 1


def test_a_terminal(guest: Pods) -> None:
    script = "stty size; tty; [ -t 0 ] && echo is one"
    done = guest.bed.sh(
        f"script -qec 'stty rows 33 cols 99; podctl exec -t -i vm/two sh -c \"{script}\"' /dev/null </dev/null", timeout=120
    )
    # ^@: what script(1) makes of the end of its own input, at any place.
    assert done.stdout.replace("\r", "").replace("^@", "").split("\n")[:3] == ["33 99", "/dev/pts/0", "is one"]


def test_who_may_not_and_what_does_not_run(guest: Pods) -> None:
    bed = guest.bed
    assert bed.sh("stat -c '%a %U' /run/rktd/pods/vm/exec").stdout == "600 root\n"
    assert b"there is no app in pod vm called 'three'" in run(guest, "vm/three", "true").stderr


def test_somebody_destroys_the_domain(guest: Pods) -> None:
    """The last test of this guest: the unit says why it has failed, podctl that the pod does not run, and nothing is left."""
    bed = guest.bed
    bed.run("xl", "destroy", "rktd-vm")
    guest.wait_end("vm", timeout=60)
    assert guest.show("vm", "ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "1",
    }
    assert "the domain was destroyed" in bed.run("systemctl", "status", "pod@vm", "--no-pager", "--full", check=False).stdout
    gone = run(guest, "vm/one", "true")
    assert (gone.returncode, b"does not run" in gone.stderr) == (69, True)
    assert left_overs(bed) == ""

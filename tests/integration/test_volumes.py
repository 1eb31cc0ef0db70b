# SPDX-License-Identifier: Apache-2.0
"""Volumes on a real kernel: owners on both sides, read-only, sub paths, volumes in volumes and below /dev."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.pods import Pods


@pytest.fixture
def host(pods: Pods) -> Iterator[str]:
    """A directory of the host on a file system with id-mapped mounts."""
    pods.bed.sh("mkdir -p /mnt/host && mount -t tmpfs tmpfs /mnt/host")
    yield "/mnt/host"
    pods.clean()
    pods.bed.sh("umount -R /mnt/host")


def run(pods: Pods, script: str, mounts: list[dict[str, Any]], volumes: list[dict[str, Any]], **fields: Any) -> list[str]:
    """What a script wrote to stdout, with these mounts, in pod `v` under Never."""
    pods.write("v", {"restartPolicy": "Never", "volumes": volumes, "containers": [pods.app(script, volumeMounts=mounts, **fields)]})
    pods.start("v")
    pods.wait_end("v")
    return pods.lines("v")


def refusal(pods: Pods, host_path: dict[str, str]) -> str:
    app = pods.app("true", volumeMounts=[{"name": "h", "mountPath": "/h"}])
    pods.write("v", {"restartPolicy": "Never", "volumes": [{"name": "h", "hostPath": host_path}], "containers": [app]})
    assert pods.start("v", check=False).returncode == 1
    return pods.bed.run("systemctl", "status", "--full", "pod@v", check=False).stdout


def host_volume(path: str) -> list[dict[str, Any]]:
    return [{"name": "h", "hostPath": {"path": path}}]


MOUNT: list[dict[str, Any]] = [{"name": "h", "mountPath": "/h"}]


def test_read_only_submounts_included(pods: Pods, host: str) -> None:
    pods.bed.sh(f"mkdir {host}/sub && mount -t tmpfs tmpfs {host}/sub && echo x >{host}/sub/x")
    script = (
        "cat /h/sub/x; for p in /h/new /h/sub/new /h/sub/x; do (echo >$p) 2>&1 | grep -o 'Read-only file system'; done; "
        "mount -o remount,rw /h 2>/dev/null; (echo >/h/new) 2>/dev/null || echo still"
    )
    mount = [{"name": "h", "mountPath": "/h", "readOnly": True}]
    lines = run(pods, script, mount, host_volume(host), securityContext={"privileged": True})
    assert lines == ["x", *["Read-only file system"] * 3, "still"]


def test_overlayfs_is_refused_by_path_and_type_unless_read_only(pods: Pods, host: str) -> None:
    pods.bed.sh("mkdir -p /srv/over && echo x >/srv/over/x")
    assert pods.bed.sh("stat -f -c %T /srv/over").stdout == "overlayfs\n"
    said = refusal(pods, {"path": "/srv/over"})
    assert "/srv/over: a file system of type overlay cannot be id-mapped" in said
    mount = [{"name": "h", "mountPath": "/h", "readOnly": True}]
    assert run(pods, "cat /h/x", mount, host_volume("/srv/over")) == ["x"]
    pods.bed.sh(f"mkdir {host}/below && mount --bind /srv/over {host}/below")
    assert f"{host}/below: a file system of type overlay cannot be id-mapped" in refusal(pods, {"path": host})


def test_sub_path_stays_inside_the_volume(pods: Pods, host: str) -> None:
    """A link that leads out leads nowhere: `..` stops at the volume, an absolute one starts there. Refused by path."""
    pods.bed.sh(
        f"mkdir -p {host}/v/in/etc {host}/secret; echo in >{host}/v/in/f; echo secret >{host}/secret/f; "
        f"ln -s ../secret {host}/v/out; ln -s /etc {host}/v/abs; ln -s /in/etc {host}/v/fine"
    )
    mounts = [{"name": "h", "mountPath": f"/m{i}", "subPath": sub} for i, sub in enumerate(("in", "in/f", "fine", "new/made"))]
    assert run(pods, "cat /m0/f /m1; echo x >/m2/x; echo y >/m3/y", mounts, host_volume(f"{host}/v")) == ["in", "in"]
    assert pods.bed.sh(f"cat {host}/v/in/etc/x {host}/v/new/made/y").stdout == "x\ny\n"
    for sub in ("out", "abs"):
        app = pods.app("true", volumeMounts=[{"name": "h", "mountPath": "/h", "subPath": sub}])
        pods.write("v", {"restartPolicy": "Never", "volumes": host_volume(f"{host}/v"), "containers": [app]})
        assert pods.start("v", check=False).returncode == 1
        assert f"/{sub}" in pods.bed.run("systemctl", "status", "--full", "pod@v", check=False).stdout
    assert pods.bed.sh(f"ls {host}/secret").stdout == "f\n"


def test_empty_dirs(pods: Pods) -> None:
    """Shared both ways, mode 0777, in memory with a size, fresh at each start and gone at the end."""
    volumes = [{"name": "d", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]
    mounts = [{"name": "d", "mountPath": "/d"}, {"name": "m", "mountPath": "/m"}]
    one = (
        "stat -c %a /d; stat -f -c %T /m; dd if=/dev/zero of=/m/x bs=64k count=40 2>&1 | grep -o 'No space left'; "
        "echo ping >/d/a; while ! [ -e /d/b ]; do sleep 0.02; done; cat /d/b"
    )
    two = "while ! [ -s /d/a ]; do sleep 0.02; done; cat /d/a; echo pong >/d/c; mv /d/c /d/b"
    apps = [pods.app(one, "one", volumeMounts=mounts), pods.app(two, "two", volumeMounts=mounts)]
    for _ in range(2):
        pods.write("v", {"restartPolicy": "Never", "volumes": volumes, "containers": apps})
        pods.start("v")
        pods.wait_end("v")
        assert pods.lines("v", "-t", "one") == ["777", "tmpfs", "No space left", "pong"]
        assert pods.lines("v", "-t", "two") == ["ping"]
        assert pods.bed.sh("ls -A /var/lib/rktd/pods").stdout == ""


def refused(pods: Pods, mounts: list[dict[str, Any]], volumes: list[dict[str, Any]]) -> str:
    """The error of a start that must fail."""
    pods.write("v", {"restartPolicy": "Never", "volumes": volumes, "containers": [pods.app("echo ran", volumeMounts=mounts)]})
    assert pods.start("v", check=False).returncode == 1
    entries = pods.bed.journal("-u", "pod@v", "-p", "err", f"--after-cursor={pods.cursor}")
    said: str = [e["MESSAGE"] for e in entries if e["MESSAGE"].startswith("cannot set up")][-1]
    assert pods.show("v", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "1"}
    return said


EMPTY: dict[str, Any] = {"name": "e", "emptyDir": {}}


@pytest.mark.parametrize("owner", [0, 1000])
def test_targets_missing_in_a_host_path_are_made_by_the_root_of_the_pod(pods: Pods, host: str, owner: int) -> None:
    """As the app's own root could: on the host root's, whoever has the directory. Links that stay in the volume are followed."""
    pods.bed.sh(f"cd {host}; mkdir v v/have; ln -s have/../made v/in; chown -R {owner}:{owner} v; chmod 700 v; echo text >file")
    mounts = [*MOUNT, *({"name": "e", "mountPath": f"/h/{at}"} for at in ("cache", "a/b/c", "in", "have"))]
    mounts += [{"name": "f", "mountPath": "/h/etc/file"}, {"name": "m", "mountPath": "/h/cache/m/n"}]
    volumes = [
        *host_volume(f"{host}/v"),
        EMPTY,
        {"name": "m", "emptyDir": {"medium": "Memory"}},
        {"name": "f", "hostPath": {"path": f"{host}/file", "type": "File"}},
    ]
    script = (
        "cd /h; touch cache/x; ls a/b/c made/x have/x etc/file; cat etc/file; stat -c '%u %g %a' a etc cache/m; stat -f -c %T cache/m/n"
    )
    for _ in range(2):  # the second time all of it is there
        lines = run(pods, script, mounts, volumes)
        assert lines[-5:] == ["text", *["0 0 755"] * 3, "tmpfs"]
        assert {"a/b/c:"[:-1], "have/x", "made/x", "etc/file"} <= {line.strip(":") for line in (*lines, "a/b/c")}
    found = pods.bed.sh(f"cd {host}/v; stat -c '%n %u %g %a %s' a/b/c cache made etc/file | cut -d' ' -f1-4; find . | wc -l").stdout
    assert found.splitlines() == ["a/b/c 0 0 755", "cache 0 0 755", "made 0 0 755", "etc/file 0 0 644", "10"]


def test_no_target_is_outside_of_the_volume_that_it_is_in(pods: Pods, host: str) -> None:
    """Whoever has the volume may have put links there: they must not move another volume to elsewhere in the app's root, or on the host."""
    pods.bed.sh(
        f"cd {host}; mkdir -p v/sub out; ln -s /etc v/abs; ln -s ../../bin v/sub/up; ln -s sub/../../bin v/over; ln -s {host}/out v/host; "
        "ln -s /proc/self/root v/magic; ln -s loop v/loop; touch v/file; mkfifo v/fifo"
    )
    before = pods.bed.sh(f"find {host} | sort").stdout
    for at, reason in (
        *(
            (at, "a symbolic link there leads out of the volume that it is in")
            for at in ("abs", "abs/x", "sub/up", "over/x", "host", "magic/x")
        ),
        ("loop", "Too many levels of symbolic links"),
        ("file", "there is something else than a directory"),
        ("fifo/x", "Not a directory"),
    ):
        mounts = [*MOUNT, {"name": "e", "mountPath": f"/h/{at}"}]
        said = refused(pods, mounts, [*host_volume(f"{host}/v"), EMPTY])
        assert said == f"cannot set up pod v: app app: /h/{at}: volume e cannot be mounted: {reason}"
    assert pods.bed.sh(f"find {host} | sort").stdout == before


def test_a_target_missing_in_a_volume_where_nobody_can_make_it(pods: Pods, host: str) -> None:
    mounts: list[dict[str, Any]] = [{"name": "h", "mountPath": "/srv/h", "readOnly": True}, {"name": "e", "mountPath": "/srv/h/a/b"}]
    said = (
        "cannot set up pod v: app app: /srv/h/a/b: volume e cannot be mounted: there is no a/b in volume h at /srv/h, which is read-only: "
    )
    assert refused(pods, mounts, [*host_volume(host), EMPTY]) == said + "make it there first, or mount elsewhere"
    assert pods.bed.sh(f"ls -A {host}").stdout == ""
    pods.bed.sh(f"chown 70000 {host}")  # beyond the pod's ids
    mounts[0]["readOnly"] = False
    said = said.replace("is read-only", "does not let the pod's root make it (Permission denied)")
    assert refused(pods, mounts, [*host_volume(host), EMPTY]) == said + "make it there first, or mount elsewhere"
    pods.bed.sh(f"mkdir -p {host}/a/b && chmod 777 {host}/a/b")
    assert run(pods, "echo x >/srv/h/a/b/x; cat /srv/h/a/b/x", mounts, [*host_volume(host), EMPTY]) == ["x"]


def test_sub_paths_are_as_open_as_their_volume(pods: Pods, host: str) -> None:
    """As kubelet makes them: mode of the volume's root, with fsGroup its group too; a host path's stay as closed as it is."""
    pods.bed.sh(f"mkdir -m 0750 {host}/closed; mkdir {host}/group; chown 5:7 {host}/group; chmod 2775 {host}/group")
    volumes = [
        EMPTY,
        {"name": "m", "emptyDir": {"medium": "Memory"}},
        {"name": "c", "hostPath": {"path": f"{host}/closed"}},
        {"name": "g", "hostPath": {"path": f"{host}/group"}},
    ]
    mounts = [{"name": v, "mountPath": f"/{v}", "subPath": "a/b"} for v in "emcg"]
    mounts += [{"name": v, "mountPath": f"/all-{v}"} for v in "em"]
    script = "stat -c '%u %g %a' /e /all-e/a /m /all-m/a; touch /e/x /m/x && echo wrote; ls /c 2>&1 | grep -o denied"
    for fields, expected in (({}, "0 0 777"), ({"fsGroup": 2000}, "0 2000 2777")):
        app = pods.app(script, volumeMounts=mounts, securityContext={"runAsUser": 1000, "runAsGroup": 1000})
        pods.write("v", {"restartPolicy": "Never", "volumes": volumes, "containers": [app], "securityContext": fields})
        pods.start("v")
        pods.wait_end("v")
        assert pods.lines("v") == [*[expected] * 4, "wrote", "denied"]
        found = pods.bed.sh(f"cd {host}; stat -c '%u %g %a' closed/a closed/a/b group/a group/a/b; rm -r closed/a group/a").stdout
        assert found.splitlines() == ["0 0 750", "0 0 750", "0 7 2775", "0 7 2775"]


def test_volumes_below_dev(pods: Pods, host: str) -> None:
    pods.bed.sh(f"echo text >{host}/file")
    volumes = [
        {"name": "s", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        *host_volume(host),
        EMPTY,
        {"name": "f", "hostPath": {"path": f"{host}/file"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "s", "mountPath": "/dev/shm"},
        {"name": "h", "mountPath": "/dev/host/deep", "readOnly": True},
        {"name": "e", "mountPath": "/dev/shm/in"},
        {"name": "e", "mountPath": "/dev/e"},
        {"name": "f", "mountPath": "/dev/file", "readOnly": True},
    ]
    own = (
        "cat /dev/host/deep/file /dev/file; dd if=/dev/zero of=/dev/shm/x bs=64k count=40 2>&1 | grep -o 'No space left'; "
        "touch /dev/shm/in/y; ls /dev/e; (: >/dev/x) 2>&1 | grep -o Read-only; grep -c ' /dev/pts ' /proc/mounts"
    )
    apps = [
        pods.app(own, "own", volumeMounts=mounts, securityContext={"runAsUser": 1000}),
        pods.app("echo common >/dev/shm/c; sleep 0.5; ls -A /dev/shm", "common"),
        pods.app("while ! [ -e /dev/shm/c ]; do sleep 0.02; done; cat /dev/shm/c", "too", securityContext={"readOnlyRootFilesystem": True}),
    ]
    pods.write("v", {"restartPolicy": "Never", "volumes": volumes, "containers": apps})
    pods.start("v")
    pods.wait_end("v")
    assert pods.lines("v", "-t", "own") == ["text", "text", "No space left", "y", "Read-only", "1"]
    assert pods.lines("v", "-t", "common") == ["c"]
    assert pods.lines("v", "-t", "too") == ["common"]
    mounts = [{"name": "e", "mountPath": "/dev/stdout"}]
    assert refused(pods, mounts, [EMPTY]).startswith(
        "cannot set up pod v: app app: /dev/stdout: volume e cannot be mounted: a symbolic link"
    )


def test_files_of_proc_can_be_mounted_over(pods: Pods, host: str) -> None:
    pods.bed.sh(f"cd {host}; echo one CPU >cpuinfo; echo 17.00 1.00 >uptime; mkdir dir")
    mounts: list[dict[str, Any]] = [{"name": "h", "mountPath": f"/proc/{f}", "subPath": f} for f in ("cpuinfo", "uptime")]
    mounts[0]["readOnly"] = True
    script = (
        "cat /proc/cpuinfo /proc/uptime; echo changed >/proc/uptime; (echo >/proc/cpuinfo) 2>&1 | grep -o Read-only; "
        "grep -c : /proc/meminfo"
    )
    for fields in ({}, {"runAsUser": 1000}):
        lines = run(pods, script, mounts, host_volume(host), securityContext=fields)
        assert lines[:3] == ["one CPU", "17.00 1.00" if not fields else "changed", "Read-only"]
        assert int(lines[-1]) > 10
    mounts = [{"name": "h", "mountPath": "/proc/uptime", "subPath": "dir"}]
    expected = "cannot set up pod v: app app: /proc/uptime: volume h cannot be mounted: there is something else than a directory"
    assert refused(pods, mounts, host_volume(host)) == expected

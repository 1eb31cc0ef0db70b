# SPDX-License-Identifier: Apache-2.0
"""Volumes on a real kernel: owners on both sides, read-only, sub paths, and mount targets that an image bends."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.layers import Entry, write_layer
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


def host_volume(path: str, kind: str = "") -> list[dict[str, Any]]:
    return [{"name": "h", "hostPath": {"path": path, **({"type": kind} if kind else {})}}]


MOUNT = [{"name": "h", "mountPath": "/h"}]


def test_both_sides_use_the_files(pods: Pods, host: str) -> None:
    pods.bed.sh(f"echo from host >{host}/a; chown 1000:1000 {host}/a; chmod 600 {host}/a; chmod 777 {host}")
    script = "stat -c '%u %g' /h/a; cat /h/a; echo from pod >/h/b"
    assert run(pods, script, MOUNT, host_volume(host), securityContext={"runAsUser": 1000, "runAsGroup": 1000}) == [
        "1000 1000",
        "from host",
    ]
    assert pods.bed.sh(f"stat -c '%u %g' {host}/b; cat {host}/b").stdout == "1000 1000\nfrom pod\n"


def test_missing_and_wrong_host_paths_are_refused_by_path(pods: Pods, host: str) -> None:
    assert f"hostPath {host}/absent: no such file or directory" in refusal(pods, {"path": f"{host}/absent"})
    pods.bed.sh(f"echo >{host}/file")
    assert f"hostPath {host}/file is no directory" in refusal(pods, {"path": f"{host}/file", "type": "Directory"})
    assert f"hostPath {host} is no file" in refusal(pods, {"path": host, "type": "File"})


def test_or_create(pods: Pods, host: str) -> None:
    assert run(pods, "ls -d /h; echo x >/h/x", MOUNT, host_volume(f"{host}/a/b", "DirectoryOrCreate")) == ["/h"]
    assert pods.bed.sh(f"stat -c %a {host}/a/b; cat {host}/a/b/x").stdout == "755\nx\n"
    assert run(pods, "echo y >/h; cat /h", MOUNT, host_volume(f"{host}/f", "FileOrCreate")) == ["y"]
    assert pods.bed.read(f"{host}/f") == "y\n"


def test_read_only_submounts_included(pods: Pods, host: str) -> None:
    pods.bed.sh(f"mkdir {host}/sub && mount -t tmpfs tmpfs {host}/sub && echo x >{host}/sub/x")
    script = (
        "cat /h/sub/x; for p in /h/new /h/sub/new /h/sub/x; do (echo >$p) 2>&1 | grep -o 'Read-only file system'; done; "
        "mount -o remount,rw /h 2>/dev/null; (echo >/h/new) 2>/dev/null || echo still"
    )
    mount = [{"name": "h", "mountPath": "/h", "readOnly": True}]
    lines = run(pods, script, mount, host_volume(host), securityContext={"privileged": True})
    assert lines == ["x", *["Read-only file system"] * 3, "still"]


def test_overlayfs_is_refused_by_path_and_type_unless_read_only(pods: Pods) -> None:
    pods.bed.sh("mkdir -p /srv/over && echo x >/srv/over/x")
    assert pods.bed.sh("stat -f -c %T /srv/over").stdout == "overlayfs\n"
    said = refusal(pods, {"path": "/srv/over"})
    assert "/srv/over: a file system of type overlay cannot be id-mapped" in said
    mount = [{"name": "h", "mountPath": "/h", "readOnly": True}]
    assert run(pods, "cat /h/x", mount, host_volume("/srv/over")) == ["x"]


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


def test_mount_targets_stay_inside_the_root(pods: Pods) -> None:
    """The image has links at the targets: absolute, with `..`, through a directory; nothing appears on the host."""
    layer = write_layer(
        pods.bed,
        "/opt/layers/bent.tar",
        Entry("opt"),
        Entry("abs", link="/opt/landing"),
        Entry("up", link="../../../../../opt/landing2"),
        Entry("dir", link="/opt"),
    )
    image = pods.make_image("bent", {}, (layer,))
    before = pods.bed.sh("ls -A /opt").stdout
    targets = ("/abs", "/up", "/dir/landing3", "/a/b/c/d")
    # `abs` and `up` lead nowhere in the image: refused by path
    mounts = [{"name": "e", "mountPath": target} for target in targets[2:]]
    script = "echo x >/dir/landing3/x; cat /opt/landing3/x /a/b/c/d/x"
    assert run(pods, script, mounts, [{"name": "e", "emptyDir": {}}], image=image) == ["x", "x"]
    for target in targets[:2]:
        app = pods.app("true", image=image, volumeMounts=[{"name": "e", "mountPath": target}])
        pods.write("v", {"restartPolicy": "Never", "volumes": [{"name": "e", "emptyDir": {}}], "containers": [app]})
        assert pods.start("v", check=False).returncode == 1
        assert target in pods.bed.run("systemctl", "status", "--full", "pod@v", check=False).stdout
    assert pods.bed.sh("ls -A /opt").stdout == before


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

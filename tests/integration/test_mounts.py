# SPDX-License-Identifier: Apache-2.0
"""Mounts in depth: kinds of host paths, ids, mounts on and below mounts, and paths that try to lead out of their root."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.layers import Entry, write_layer
from tests.integration.pods import Pods

BASE = "/run/test-mounts"  # on the testbed's /run, a tmpfs: it can be id-mapped


@pytest.fixture(autouse=True)
def _base(pods: Pods) -> Iterator[None]:
    clean = f"findmnt -rno TARGET | grep ^{BASE}/ | sort -r | xargs -r umount; rm -rf {BASE}; mkdir -p {BASE}"
    pods.bed.sh(clean)
    yield
    pods.clean()
    pods.bed.sh(clean)


def host(name: str, path: str, type_: str = "") -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": path, **({"type": type_} if type_ else {})}}


def mount(name: str, path: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "mountPath": path, **fields}


def run_never(pods: Pods, containers: list[dict[str, Any]], volumes: list[dict[str, Any]]) -> None:
    """The pod `p`, until all of its apps have ended."""
    pods.write("p", {"restartPolicy": "Never", "containers": containers, "volumes": volumes})
    pods.start("p")
    pods.wait_end("p")


def refusal(pods: Pods, volume: dict[str, Any], **fields: Any) -> str:
    """A start that must fail; everything that the journal has of it."""
    pods.write(
        "p",
        {"restartPolicy": "Never", "containers": [pods.app("echo ran", volumeMounts=[mount("v", "/v", **fields)])], "volumes": [volume]},
    )
    assert pods.start("p", check=False).returncode == 1
    entries = pods.bed.journal("-u", "pod@p", "-u", "pod-stage0@p", f"--after-cursor={pods.cursor}")
    assert "ran" not in [e["MESSAGE"] for e in entries]
    return "\n".join(e["MESSAGE"] for e in entries)


def test_host_path_types(pods: Pods) -> None:
    pods.bed.sh(
        f"cd {BASE}; mkdir dir; touch file; ln -s nowhere dangling; python3 -c 'import socket as s; s.socket(s.AF_UNIX).bind(\"sock\")'"
    )
    wrong = {
        "": "absent",
        "Directory": "file",
        "DirectoryOrCreate": "file",
        "File": "dir",
        "FileOrCreate": "dir",
        "Socket": "file",
        "CharDevice": "file",
        "BlockDevice": "sock",
    }
    for type_, name in wrong.items():
        message = refusal(pods, host("v", f"{BASE}/{name}", type_))
        reason = f" is no {type_.removesuffix('OrCreate')}" if type_ else ": no such file or directory"
        assert f"hostPath {BASE}/{name}{reason}" in message
        assert "/etc/pods/p.yaml:" in message
        pods.clean()
    for type_ in ("Directory", "File", "Socket"):
        assert f"hostPath {BASE}/absent: no such file" in refusal(pods, host("v", f"{BASE}/absent", type_))
        pods.clean()
    for type_ in ("DirectoryOrCreate", "FileOrCreate", ""):
        assert f"{BASE}/dangling" in refusal(pods, host("v", f"{BASE}/dangling", type_))
        pods.clean()

    volumes = [
        host("a", f"{BASE}/new/dir", "DirectoryOrCreate"),
        host("b", f"{BASE}/newfile", "FileOrCreate"),
        host("c", f"{BASE}/sock", "Socket"),
        host("d", f"{BASE}/file", "File"),
        host("e", f"{BASE}/dir", "Directory"),
    ]
    mounts = [mount("a", "/a"), mount("b", "/b"), mount("c", "/deep/er/c"), mount("d", "/etc/passwd"), mount("e", "/e")]
    script = "for p in /a /b /deep/er/c /etc/passwd /e; do stat -c '%n %F %a %u %g' $p; done; echo text >/b; touch /a/x /e/y"
    run_never(pods, [pods.app(script, volumeMounts=mounts)], volumes)
    assert pods.lines("p") == [
        "/a directory 755 0 0",
        "/b regular empty file 644 0 0",
        "/deep/er/c socket 755 0 0",
        "/etc/passwd regular empty file 644 0 0",
        "/e directory 755 0 0",
    ]
    assert pods.bed.sh(f"cat {BASE}/newfile; ls {BASE}/new/dir {BASE}/dir").stdout.split() == [
        "text",
        f"{BASE}/dir:",
        "y",
        f"{BASE}/new/dir:",
        "x",
    ]


def test_both_sides_use_the_files(pods: Pods) -> None:
    """Host id n is id n inside, both ways; an id beyond the pod's range is nobody's, and out of reach."""
    pods.bed.sh(
        f"cd {BASE}; mkdir d; for u in 0 1000 65535 65536 4000000; do echo $u >d/$u; chown $u:$u d/$u; chmod 600 d/$u; done; chmod 1777 d; "
        "cp /bin/busybox d/suid; chmod 4755 d/suid"
    )
    show = "cd /d; for f in 0 1000 65535 65536 4000000; do stat -c '%n %u %g' $f; cat $f; done 2>&1; touch by-$(id -u)"
    apps = [
        pods.app(show, "root", volumeMounts=[mount("d", "/d")]),
        pods.app(show + "; grep ' /d ' /proc/mounts", "user", volumeMounts=[mount("d", "/d")], securityContext={"runAsUser": 1000}),
    ]
    run_never(pods, apps, [host("d", f"{BASE}/d")])
    owners = pods.bed.sh(f"cd {BASE}/d; stat -c '%n %u %g' by-*").stdout.splitlines()
    assert owners == ["by-0 0 0", "by-1000 1000 1000"]
    beyond = [line for n in ("65536", "4000000") for line in (f"{n} 65534 65534", f"cat: can't open '{n}': Permission denied")]
    assert pods.lines("p", "-t", "root") == ["0 0 0", "0", "1000 1000 1000", "1000", "65535 65535 65535", "65535", *beyond]
    user = pods.lines("p", "-t", "user")
    assert user[:-1] == [
        *["0 0 0", "cat: can't open '0': Permission denied", "1000 1000 1000", "1000"],
        *["65535 65535 65535", "cat: can't open '65535': Permission denied", *beyond],
    ]
    assert {"nosuid", "nodev", "rw"} <= set(user[-1].split()[3].split(","))


def test_read_only_and_nested_mounts(pods: Pods) -> None:
    pods.bed.sh(
        f"cd {BASE}; mkdir -p d/sub; mount -t tmpfs sub d/sub; touch d/sub/file; mkdir d/sub/deep; mount -t tmpfs deep d/sub/deep; touch f"
    )
    write = "for p in {}; do (echo x >>$p/x) 2>&1 | grep -o 'Read-only.*' || echo fine; done; true"
    volumes = [
        host("d", f"{BASE}/d"),
        host("f", f"{BASE}/f"),
        {"name": "e", "emptyDir": {}},
        {"name": "m", "emptyDir": {"medium": "Memory"}},
    ]
    fixed = [
        mount("d", "/d", readOnly=True),
        mount("e", "/e", readOnly=True),
        mount("m", "/m", readOnly=True),
        mount("f", "/f", readOnly=True),
    ]
    inside = [mount("e", "/d/sub/deep"), mount("d", "/d", readOnly=True), mount("m", "/d/sub/deep/in/m"), mount("f", "/d/sub/deep/f")]
    apps = [
        pods.app(write.format("/d /d/sub /d/sub/deep /e /m") + "; (echo x >/f) 2>&1 | grep -o 'Read-only.*'", "fixed", volumeMounts=fixed),
        pods.app(
            write.format("/d /d/sub /d/sub/deep /e"),
            "open",
            volumeMounts=[mount("d", "/d"), mount("e", "/e")],
            securityContext={"runAsUser": 0},
        ),
        pods.app(
            write.format("/d /d/sub /d/sub/deep /d/sub/deep/in/m /d/sub/deep/in") + "; echo f >>/d/sub/deep/f",
            "nested",
            volumeMounts=inside,
        ),
    ]
    run_never(pods, apps, volumes)
    error = "Read-only file system"
    assert pods.lines("p", "-t", "fixed") == [error] * 6
    assert pods.lines("p", "-t", "open") == ["fine"] * 4
    assert pods.lines("p", "-t", "nested") == [error, error, "fine", "fine", "fine"]
    assert pods.bed.sh(f"cd {BASE}; cat f d/x d/sub/x d/sub/deep/x; ls d/sub/deep").stdout.split() == ["f", "x", "x", "x", "x"]


def test_sub_path(pods: Pods) -> None:
    """Made when missing, of a file too; links in the volume lead to places in the volume, whatever they say."""
    pods.bed.sh(
        f"cd {BASE}; mkdir -p d/have d/etc; echo content >d/have/file; ln -s /etc d/abs; ln -s ../../../../../run d/up; ln -s have d/fine; "
        f"ln -s {BASE}/outside d/dangling; ln -s /proc/self/root d/magic; mkdir outside2; chown -R 1000:1000 d"
    )
    before = pods.bed.sh(f"ls -A / /etc /run {BASE}").stdout
    volumes = [host("d", f"{BASE}/d"), {"name": "e", "emptyDir": {}}]
    mounts = [
        mount("d", "/a", subPath="have"),
        mount("d", "/b", subPath="have/file"),
        mount("d", "/c", subPath="new/deep"),
        mount("d", "/d", subPath="abs/new"),
        mount("d", "/f", subPath="fine/file", readOnly=True),
        mount("e", "/g", subPath="one/two"),
    ]
    script = (
        "cat /a/file /b /f; for p in a c d g; do stat -c '%n %u %g %a' /$p; touch /$p/by-app; done; (echo x >>/f) 2>&1 | grep -o Read-only"
    )
    run_never(pods, [pods.app(script, volumeMounts=mounts)], volumes)
    assert pods.lines("p") == [
        *["content"] * 3,
        *["/a 1000 1000 755", "/c 0 0 755", "/d 0 0 755", "/g 0 0 777"],
        "Read-only",
    ]
    assert pods.bed.sh(f"cd {BASE}/d; find . -name by-app | sort").stdout.split() == [
        "./etc/new/by-app",
        "./have/by-app",
        "./new/deep/by-app",
    ]
    for sub in ("up/new", "dangling/new", "magic/new", "dangling"):
        script = "cd /v && ls -A . | head; touch by-app"
        pods.write(
            "q",
            {
                "restartPolicy": "Never",
                "containers": [pods.app(script, volumeMounts=[mount("d", "/v", subPath=sub)])],
                "volumes": volumes[:1],
            },
        )
        done = pods.start("q", check=False)  # refused, or inside
        if done.returncode == 0:
            pods.wait_end("q")
        else:
            assert sub.partition("/")[0] in "\n".join(e["MESSAGE"] for e in pods.bed.journal("-u", "pod@q", "-p", "err"))
    assert pods.bed.sh(f"ls -A / /etc /run {BASE}").stdout == before
    assert "by-app" not in pods.bed.sh("ls -A / /etc /run").stdout


def test_targets_stay_inside_the_root(pods: Pods) -> None:
    """Mount targets, files that we provide, the working directory and image volumes, all through links that point out."""
    layer = write_layer(
        pods.bed,
        "/opt/layers/links.tar",
        Entry("real"),
        Entry("up", link="../../../../../../run/escape"),
        Entry("run/escape"),
        Entry("absolute", link="/../../real"),
        Entry("chain", link="absolute/../up/../../real"),
        Entry("dot", link="real/../../../../etc"),
        Entry("magic", link="/proc/1/root/etc"),
        Entry("etc/hosts", link="../../../../../../../etc/passwd"),
        Entry("etc/hostname", link="/real/hostname"),
        Entry("real/hostname", b"", 0o644),
        Entry("nowhere", link="/mnt/deep/x"),
        Entry("nowhere-up", link="../../../../mnt/up"),
        Entry("nowhere-file", link="real/../gone/file"),
    )
    image = pods.make_image("links", {"WorkingDir": "/up/work", "Volumes": {"/absolute/volume": {}, "/dev": {}, "/./proc/x": {}}}, (layer,))
    volumes = [{"name": "e", "emptyDir": {}}, host("f", "/etc/os-release")]
    mounts = [
        mount("e", "/up/a"),
        mount("e", "/absolute/b"),
        mount("e", "/chain/c"),
        mount("e", "/dot/d"),
        mount("f", "/absolute/file", readOnly=True),
        mount("e", "/nowhere"),
        mount("e", "/nowhere-up"),
        mount("f", "/nowhere-file", readOnly=True),
        mount("e", "/new/deep/er"),
    ]
    before = pods.bed.sh(
        "find / /run /etc /var /usr -xdev -maxdepth 2 | grep -v '^/run/rktd\\|^/run/systemd\\|^/run/log\\|^/etc/pods' | sort"
    ).stdout
    script = (
        "pwd; grep ' emptydir\\| /.*/[abcd] \\|file\\| /mnt/\\| /new/' /proc/mounts | cut -d' ' -f2 | sort; sleep 0.7; head -n1 /etc/hosts"
    )
    apps = [pods.app(script, image=image, volumeMounts=mounts)]
    pods.write("p", {"restartPolicy": "Never", "containers": apps, "volumes": volumes})
    pods.start("p")
    during = pods.bed.sh(
        "find / /run /etc /var /usr -xdev -maxdepth 2 | grep -v '^/run/rktd\\|^/run/systemd\\|^/run/log\\|^/etc/pods' | sort"
    ).stdout
    pods.wait_end("p")
    lines = pods.lines("p")
    assert lines[0] == "/run/escape/work"
    assert {"/run/escape/a", "/real/b", "/real/c", "/etc/d", "/real/file"} <= set(lines)
    assert {"/mnt/deep/x", "/mnt/up", "/gone/file", "/new/deep/er"} <= set(lines)  # made where the links lead to
    assert lines[-1] == "# Written by rktd-units when the pod started."
    assert during == before
    for where in ("/magic/x", "/proc/x", "/sys/x"):  # into /proc of the image or nowhere: refused or unseen, never elsewhere
        pods.write(
            "q",
            {
                "restartPolicy": "Never",
                "containers": [pods.app("true", image=image, volumeMounts=[mount("e", where)])],
                "volumes": volumes[:1],
            },
        )
        pods.start("q", check=False)
        pods.wait_end("q")
    assert (
        pods.bed.sh(
            "find / /run /etc /var /usr -xdev -maxdepth 2 | grep -v '^/run/rktd\\|^/run/systemd\\|^/run/log\\|^/etc/pods' | sort"
        ).stdout
        == before
    )


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("proc", "/etc"),
        ("sys", "../../../etc"),
        ("dev", "home"),
        ("run", "/home"),
        ("run/host", "../../../../etc"),
        ("run/systemd", "/etc"),
    ],
)
def test_links_at_the_places_of_systemd_are_refused(pods: Pods, path: str, target: str) -> None:
    """PID 1 of the pod mounts and writes there by plain path."""
    layer = write_layer(pods.bed, "/opt/layers/place.tar", Entry(path, link=target))
    image = pods.make_image("place", {}, (layer,))
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app("echo ran", image=image)]})
    assert pods.start("p", check=False).returncode == 1
    assert any(f"/{path}" in e["MESSAGE"] and "symbolic link" in e["MESSAGE"] for e in pods.bed.journal("-u", "pod@p", "-p", "err"))

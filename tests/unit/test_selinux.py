# SPDX-License-Identifier: Apache-2.0
"""One label for a pod: how it is chosen, what the kernel says of it, and what gets it."""

import errno
import os
from pathlib import Path

import pytest

from rktd_units import mounts, selinux, volumes
from rktd_units.errors import ConfigError
from rktd_units.paths import Layout
from rktd_units.podfile.model import Container, Pod, Security, SELinux
from rktd_units.selinux import choose_labels, own_level
from rktd_units.stage1 import launch
from rktd_units.stage1.nspawn import Settings, render_argv

DEBIAN = """\
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:svirt_sandbox_file_t:s0"
"""
SEVERAL = "s0:c1,c2"


@pytest.mark.parametrize(
    ("options", "contexts", "levels", "expected"),
    [
        (SELinux(level=SEVERAL), "", True, ("system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2")),
        (SELinux(level="s0"), DEBIAN, True, ("system_u:system_r:container_t:s0", "system_u:object_r:svirt_sandbox_file_t:s0")),
        (SELinux("u", "r", "t", SEVERAL), DEBIAN, True, ("u:r:t:s0:c1,c2", "u:object_r:svirt_sandbox_file_t:s0:c1,c2")),
        (SELinux(type="t"), "file=a:b:c\nprocess=d:e:f\n", False, ("d:e:t", "a:b:c")),
        (
            SELinux(type="t"),
            "",
            True,
            (f"system_u:system_r:t:{own_level('web')}", f"system_u:object_r:container_file_t:{own_level('web')}"),
        ),
    ],
    ids=["level", "policy", "all", "no-levels", "own-level"],
)
def test_labels(options: SELinux, contexts: str, levels: bool, expected: tuple[str, str]) -> None:
    assert choose_labels("web", options, contexts, has_levels=levels)[:2] == expected


@pytest.mark.parametrize(
    ("contexts", "levels", "expected"),
    [
        ("", True, "system_u:object_r:container_ro_file_t:s0"),
        (DEBIAN, True, "system_u:object_r:svirt_sandbox_file_t:s0"),
        (DEBIAN + 'ro_file = "a:b:c:s0"\n', True, "a:b:c:s0"),
        ("", False, "system_u:object_r:container_ro_file_t"),
    ],
    ids=["default", "older-policy", "policy", "no-levels"],
)
def test_the_label_of_layers(contexts: str, levels: bool, expected: str) -> None:
    assert choose_labels("web", SELinux(level="s0:c1"), contexts, has_levels=levels).layer == expected


def test_own_levels() -> None:
    """Two different categories below 1024, in order."""
    found = {own_level(f"pod-{n}") for n in range(2000)}
    assert len(found) > 1990
    for level in found:
        first, second = (int(part[1:]) for part in level.removeprefix("s0:").split(","))
        assert 0 <= first < second < 1024


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's files of a host that has SELinux."""
    monkeypatch.setattr(selinux, "_FILESYSTEM", str(tmp_path))
    for name in ("enforce", "mls", "context"):
        (tmp_path / name).write_text("1")
    return tmp_path


def pod(options: SELinux | None, runtime: str = "nspawn") -> Pod:
    container = Container("app", "image", "Never", security=Security(selinux=options))
    return Pod("web", "f", ("f",), (container,), runtime_class=runtime)


def test_a_host_without_it(host: Path) -> None:
    asks = pod(SELinux(type="t"))
    assert selinux.ignored_options(asks) == ""
    (host / "enforce").unlink()
    assert selinux.ignored_options(asks) == "seLinuxOptions are ignored: this host has no SELinux"
    assert selinux.ignored_options(pod(None)) == ""
    assert selinux.ignored_options(pod(SELinux(type="t"), "xen")) == ""  # its file says so


def test_the_kernel_is_asked(host: Path) -> None:
    labels = selinux.find_labels("web", SELinux(level="s0:c1,c2"))
    assert labels.process.endswith(":s0:c1,c2")
    assert (host / "context").read_text().startswith(labels.layer + "\0")


@pytest.mark.parametrize(("number", "message"), [(errno.EINVAL, "has no label system_u:system_r:t:s0"), (errno.EACCES, "denied")])
def test_what_the_policy_does_not_know(host: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number).lower())

    monkeypatch.setattr(selinux, "open", refuse, raising=False)
    with pytest.raises((ConfigError, OSError), match=message):
        selinux.find_labels("web", SELinux(type="t", level="s0"))


def test_what_gets_the_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in a directory, links themselves; a claim only if its top has another."""
    layout = Layout(str(tmp_path))
    top = f"{layout.volumes}/data"
    os.makedirs(f"{top}/below")
    Path(f"{top}/below/file").touch()
    os.symlink("/etc/passwd", f"{top}/link")
    done = set()

    def mark(path: str, name: str, value: bytes, *, follow_symlinks: bool = True) -> None:
        assert (name, value) == ("security.selinux", b"a:b:c:s0")
        assert path.startswith("/proc/self/fd/") or not follow_symlinks
        done.add(os.readlink(path) if path.startswith("/proc/self/fd/") else path)

    monkeypatch.setattr(os, "setxattr", mark)
    expected = {top, f"{top}/below", f"{top}/below/file", f"{top}/link"}
    selinux.set_label(top, "a:b:c:s0")
    assert done == expected
    done.clear()
    monkeypatch.setattr(os, "getxattr", lambda *_: b"a:b:c:s0\0")
    volumes.ready_volume(layout, "data", None, label="a:b:c:s0")
    assert done == set()
    monkeypatch.setattr(os, "getxattr", lambda *_: b"a:b:c:s0:c1\0")
    volumes.ready_volume(layout, "data", None, label="a:b:c:s0")
    assert done == expected
    done.clear()
    selinux.label_layer(f"{top}/below/file", "a:b:c:s0")
    assert done == {f"{top}/below/file"}


def test_stage1(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("web", "web", "/root", "/status", None, False, "", (), False, labels=("a:b:p:s0", "a:b:f:s0"))
    argv = render_argv(settings)
    assert [word for word in argv if "selinux" in word] == ["--selinux-context=a:b:p:s0", "--selinux-apifs-context=a:b:f:s0"]
    assert not any("selinux" in word for word in render_argv(settings._replace(labels=None)))
    made = []

    def new_mount(kind: str, options: tuple[tuple[str, str], ...], *_: int) -> int:
        made.append((kind, dict(options).get("context")))
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(mounts, "new_mount", new_mount)
    monkeypatch.setattr(mounts, "attach", lambda *_: None)
    steps = launch.Launch("pod@web.service")
    steps.do_nodes("/nodes")
    steps.do_label("a:b:f:s0:c1,c2")
    steps.do_overlay("/root", "/upper", "/work", "suid", "/lower")
    steps.do_tmpfs("/t", "", "0777", "0")
    steps.do_hugetlbfs("/h", "1", "1", "0777", "0")
    steps.do_nodes("/nodes")
    label = "a:b:f:s0:c1,c2"
    assert made == [("tmpfs", None), ("overlay", label), ("tmpfs", label), ("hugetlbfs", label), ("tmpfs", label)]

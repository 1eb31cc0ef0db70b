# SPDX-License-Identifier: Apache-2.0
"""What the child of rktd_units.enter does to itself, in order; that the kernel then holds it is integration/test_podctl_exec.py's."""

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from rktd_units import enter, tasks

LIMITS = enter.Limits(
    inheritable=0,
    bounding=0x400,
    ambient=0,
    no_new_privileges=True,
    filters=(b"filter",),
    resources=((7, (1, 2)),),
    nice=3,
    oom_score="900",
    last_capability=40,
    apparmor="web//server",
)
STEPS = {
    os: ("setpriority", "chdir", "setsid", "setgroups", "setresgid", "setresuid", "umask"),
    resource: ("setrlimit",),
    tasks: (
        *("leave_keyring", "join_namespaces", "limit_bounding_set", "keep_capabilities", "forbid_new_privileges", "set_capabilities"),
        *("die_with_parent", "install_filter"),
    ),
}


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/proc, and all else that enter opens, is below here."""
    (tmp_path / "proc/self/attr/apparmor").mkdir(parents=True)
    (tmp_path / "proc/7/attr/apparmor").mkdir(parents=True)
    (tmp_path / "group").mkdir()
    monkeypatch.setattr(enter, "open", lambda path, *a, **k: open(f"{tmp_path}{path}", *a, **k), raising=False)  # noqa: SIM115
    return tmp_path / "proc"


def confine(limits: enter.Limits, monkeypatch: pytest.MonkeyPatch, proc: Path) -> list[str]:
    """The names of the steps; `apparmor` is there when the profile was set before the step that follows it."""
    done: list[str] = []
    label = proc / "self/attr/apparmor/exec"

    def note(name: str) -> Any:
        def step(*_: object) -> None:
            if label.exists() and "apparmor" not in done:
                done.append("apparmor")
            done.append(name)

        return step

    for module, names in STEPS.items():
        for name in names:
            monkeypatch.setattr(module, name, note(name))
    child = enter.Enter.__new__(enter.Enter)
    child._order = enter.Order(7, "/group", ["sh"], {}, "/tmp", 1000, 1000, [1000], 1 << 20, terminal=False, interactive=False)
    child.limits, child._pidfd, child._namespaces = limits, 9, tasks.CLONE_NEWPID
    child._confine()
    return done


def test_the_order_of_confinement(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the host's root, or its /proc, is done before the name spaces are joined; filters come last."""
    done = confine(LIMITS, monkeypatch, proc)
    assert (proc.parent / "group/cgroup.procs").read_text() == "0"
    assert (proc / "self/oom_score_adj").read_text() == "900"
    assert (proc / "self/attr/apparmor/exec").read_text() == "exec web//server"
    assert done[: done.index("join_namespaces") + 1] == ["apparmor", "setpriority", "setrlimit", "leave_keyring", "join_namespaces"]
    assert done[-1] == "install_filter"
    tail = ["setresuid", "forbid_new_privileges", "set_capabilities"]
    assert [step for step in done if step in tail] == tail


def test_an_app_that_may_gain_privileges(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter without no_new_privs wants CAP_SYS_ADMIN, which goes after it."""
    done = confine(LIMITS._replace(no_new_privileges=False), monkeypatch, proc)
    assert "forbid_new_privileges" not in done
    assert done[-2:] == ["install_filter", "set_capabilities"]


def test_no_profile(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "apparmor" not in confine(LIMITS._replace(apparmor=""), monkeypatch, proc)
    assert not (proc / "self/attr/apparmor/exec").exists()


def test_a_profile_that_cannot_be_set_is_no_confinement(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the rest is done then: the child ends, and tells why."""
    (proc / "self/attr/apparmor").rmdir()
    with pytest.raises(FileNotFoundError, match="apparmor/exec"):
        confine(LIMITS, monkeypatch, proc)


@pytest.mark.parametrize(
    ("label", "profile"),
    [("web//server (enforce)\n", "web//server"), ("a (b) (complain)\n", "a (b)"), ("unconfined\n", ""), ("odd", "odd")],
    ids=["enforced", "blanks", "unconfined", "no-mode"],
)
def test_the_profile_of_an_app(proc: Path, label: str, profile: str) -> None:
    (proc / "7/attr/apparmor/current").write_text(label)
    assert enter._read_apparmor(7) == profile


def test_a_kernel_without_apparmor(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be read for another reason, nothing is executed."""
    assert enter._read_apparmor(7) == ""

    def fail(number: int) -> None:
        def opened(path: str, *_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number), path)

        monkeypatch.setattr(enter, "open", opened, raising=False)

    fail(errno.EINVAL)
    assert enter._read_apparmor(7) == ""
    fail(errno.EACCES)
    with pytest.raises(PermissionError, match="denied"):
        enter._read_apparmor(7)

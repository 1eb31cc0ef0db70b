# SPDX-License-Identifier: Apache-2.0
"""What the child of rktd_units.enter does to itself, in order; that the kernel then holds it is integration/test_podctl_exec.py's."""

import errno
import os
import resource
import signal
import termios
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rktd_units import enter, tasks
from rktd_units.cli import cp
from rktd_units.errors import UnavailableError

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


def confine(limits: enter.Limits, monkeypatch: pytest.MonkeyPatch, proc: Path, selinux: str = "") -> list[str]:
    """The names of the steps; `apparmor` is there when the profile was set before the step that follows it."""
    done: list[str] = []
    label = proc / "self/attr/apparmor/exec"

    def note(name: str) -> Any:
        def step(*_: object) -> None:
            if label.exists() and "apparmor" not in done:
                done.append("apparmor")
            assert not (proc.parent / "group/cgroup.procs").read_text()  # there it is in the hands of the pod's root
            done.append(name)

        return step

    for module, names in STEPS.items():
        for name in names:
            monkeypatch.setattr(module, name, note(name))
    child = enter.Enter.__new__(enter.Enter)
    child._order = enter.Order(7, 1, "/group", ["sh"], {}, "/tmp", 1000, 1000, [1000], 1 << 20, terminal=False, interactive=False)
    child._order = child._order._replace(label=selinux)
    child.limits, child._pidfd, child._namespaces = limits, 9, tasks.CLONE_NEWPID
    child._ourselves = os.pidfd_open(os.getpid())
    child._confine()
    os.close(child._ourselves)
    return done


def test_the_order_of_confinement(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the host's root, or its /proc, is done before the name spaces are joined; filters come last."""
    done = confine(LIMITS, monkeypatch, proc)
    assert (proc.parent / "group/cgroup.procs").read_text() == "0"
    assert (proc / "self/oom_score_adj").read_text() == "900"
    assert (proc / "self/attr/apparmor/exec").read_text() == "exec web//server"
    before = ["die_with_parent", "apparmor", "setpriority", "setrlimit", "leave_keyring", "join_namespaces"]
    assert done[: done.index("join_namespaces") + 1] == before
    assert "die_with_parent" in done[done.index("setresuid") :]  # which made the kernel forget it
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


def test_a_label(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of SELinux; a kernel has that or AppArmor."""
    assert confine(LIMITS._replace(apparmor=""), monkeypatch, proc, "a:b:c:s0:c1")
    assert (proc / "self/attr/exec").read_text() == "a:b:c:s0:c1"


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


@pytest.fixture
def child() -> Iterator[int]:
    """A process that waits, and is of this test's program."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_enters_an_app_is_not_the_app(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod's root may name a child of `podctl exec` as the app's main process: it has no filter, and all of root's capabilities."""
    order = enter.Order(child, os.getpid(), "/group", ["sh"], {}, "/", 0, 0, [], 1 << 20, terminal=False, interactive=False)
    looked: list[int] = []
    monkeypatch.setattr(enter, "is_in_cgroup", lambda *_: True)

    def look(pid: int, **_: object) -> enter.Limits:
        looked.append(pid)
        return LIMITS

    monkeypatch.setattr(enter, "read_limits", look)
    with pytest.raises(PermissionError, match="only enters the app"):
        enter.Enter(order)
    assert looked == []  # it was not even stopped for a look
    monkeypatch.setattr(os.path, "samefile", lambda *_: False)
    enter.Enter(order)
    assert looked == [child]


def test_nor_is_its_root_the_apps(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """podctl cp would write into the host's root directory."""
    monkeypatch.setattr(enter, "is_in_cgroup", lambda *_: True)
    monkeypatch.setattr(cp, "wait_for_app", lambda *_: child)
    monkeypatch.setattr(cp, "leader_of", lambda _: os.getpid())
    host: Any = SimpleNamespace(cgroup=lambda _: "/group")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(UnavailableError, match="only enters the app"):
        cp._open_root(host, "web", "app")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_app_has_its_pods_user_name_space(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enter, "is_in_cgroup", lambda *_: True)
    monkeypatch.setattr(os.path, "samefile", lambda *_: False)
    enter.check_process(child, "/group", os.getpid())
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with pytest.raises(PermissionError, match="not in the user name space of its pod"):
        enter.check_process(child, "/group", os.getpid())


def test_who_has_ended_is_not_the_app(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProcessLookupError, match="the app has ended"):
        enter.check_process(1 << 30, "/group", os.getpid())
    monkeypatch.setattr(enter, "is_in_cgroup", lambda *_: True)
    with pytest.raises(ProcessLookupError, match="the app has ended"):
        enter.check_process(child, "/group", 0)  # machined knows no such pod any more


def test_a_parent_that_has_gone() -> None:
    """It will send no signal: the child ends by itself."""
    entering = enter.Enter.__new__(enter.Enter)
    (read, write), (told, tell) = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        entering._ourselves = os.pidfd_open(os.getpid())
        if os.fork() == 0:
            os.read(told, 1)  # until the parent is a zombie
            try:
                entering._die_with_parent()
            except ProcessLookupError:
                os.write(write, b"ended")
        os._exit(0)
    os.waitid(os.P_PID, parent, os.WEXITED | os.WNOWAIT)
    os.write(tell, b".")
    os.waitpid(parent, 0)
    os.close(write)
    assert os.read(read, 9) == b"ended"
    for descriptor in (read, told, tell):
        os.close(descriptor)


@pytest.mark.parametrize("unfiltered", [False, True], ids=["nspawn", "guest"])
def test_an_app_without_filters(unfiltered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none in a pod of nspawn: what has none is something else, and is not joined."""

    def ptrace(request: int, *_: object) -> int:
        if request == tasks._PTRACE_SECCOMP_GET_FILTER:
            raise OSError(errno.EINVAL, "invalid", "PTRACE_SECCOMP_GET_FILTER")
        return 0

    monkeypatch.setattr(tasks, "_ptrace", ptrace)
    monkeypatch.setattr(tasks, "_wait_stop", lambda *_: None)
    monkeypatch.setattr(tasks, "_is_filtered", lambda _: False)
    if unfiltered:
        assert tasks.read_filters(os.getpid(), unfiltered=True) == ()
    else:
        with pytest.raises(OSError, match="invalid"):
            tasks.read_filters(os.getpid())


def test_a_writer_that_outlives_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sh -c 'yes & exit 3'`: what is in the pipe is taken once, however fast it is filled again."""
    read, write = os.pipe()
    command = os.fork()
    if command == 0:
        os._exit(3)
    os.waitid(os.P_PID, command, os.WEXITED | os.WNOWAIT)
    relay = enter.Relay(command, (os.open("/dev/null", os.O_WRONLY), read, -1), terminal=False, interactive=False)
    taken: list[bytes] = []

    def copy_out(source: int, _: int) -> bool:
        taken.append(os.read(source, 65536))
        assert len(taken) <= 100
        os.write(write, taken[-1])
        return True

    os.write(write, b"y" * 4096)
    monkeypatch.setattr(relay, "_copy_out", copy_out)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert relay.run() == 3
    assert taken
    os.close(write)


def test_a_terminal_has_its_size_before_the_command_begins(require_root: None) -> None:
    """Else a command that looks first, `stty size`, sees none."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (33, 99))
    child = enter.Enter.__new__(enter.Enter)
    child._order = enter.Order(os.getpid(), 1, "/group", ["sh"], {}, "/", os.getuid(), 0, [], 0, terminal=True, interactive=False)
    before = os.dup(0)
    try:
        os.dup2(slave, 0)
        (inner, _, _), (terminal, _, _) = child._open_terminal()
        assert termios.tcgetwinsize(terminal) == (33, 99)
    finally:
        os.dup2(before, 0)
    for descriptor in (before, master, slave, inner, terminal):
        os.close(descriptor)

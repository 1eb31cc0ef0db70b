# SPDX-License-Identifier: Apache-2.0
"""Runs a command as if an app of a pod had started it: its name spaces, ids, capabilities, seccomp filters, cgroup (docs/exec.md).

`podctl exec` becomes this program. From the moment when the child is in the app's mount name space nothing may be imported or looked up
by path but the command: all that it would find is the app's.
"""

import errno
import fcntl
import json
import os
import resource
import select
import signal
import sys
import termios
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from rktd_units import mounts, tasks

CANNOT_EXECUTE, NO_PROGRAM, UNAVAILABLE, REFUSED = 126, 127, 69, 70
_TIOCGPTPEER, _TIOCSPTLCK = 0x5441, 0x40045431
_LIMITS = [getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")]
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_BLOCK = 65536
_LAST_BLOCKS = 16  # that are read when the command has ended: 1 MiB, which is all that a pipe holds at most
_EXECUTORS = ("/usr/lib/systemd/systemd-executor", "/usr/lib/systemd/systemd")


class Order(NamedTuple):
    """What is to be done. Ids are the app's own; `id_base` the host id of its 0. `pid`: the app's main process; `cgroup` its directory.

    `leader`: the pod's PID 1. `unfiltered`: the app may be without any seccomp filter, which none is in a pod of nspawn.
    `finish`: a descriptor that is closed when the command has ended; then the child of ours that waits for that is waited for.
    """

    pid: int
    leader: int
    cgroup: str
    argv: list[str]
    environment: dict[str, str]
    working_dir: str
    uid: int
    gid: int
    groups: list[int]
    id_base: int
    terminal: bool
    interactive: bool
    finish: int = -1
    below: str = ""  # a cgroup in that one, which is there
    unfiltered: bool = False
    label: str = ""  # SELinux's, of all processes of the pod


def describe_app(run: "dict[str, Any]", record: "dict[str, Any]", secrets: str) -> "dict[str, Any]":
    """The fields of Order that pod.json has for an app, whose part of it `record` is; `secrets`: its file in the vault, or ""."""
    environment = {str(key): str(value) for key, value in record["env"]}
    groups = {*record["groups"], record["gid"]} if record["uid"] else record["groups"]  # as initgroups(3) for User=
    own = {key: record[key] for key in ("uid", "gid")}
    environment |= json.loads(secrets or "{}")
    place = {"working_dir": record["workingDir"], "id_base": run["idBase"] or 0, "label": run.get("label", "")}
    return {"environment": environment, **place, **own, "groups": sorted(groups)}


class Limits(NamedTuple):
    """What the kernel holds the app to."""

    inheritable: int
    bounding: int
    ambient: int
    no_new_privileges: bool
    filters: tuple[bytes, ...]
    resources: tuple[tuple[int, tuple[int, int]], ...]
    nice: int
    oom_score: str
    last_capability: int
    apparmor: str  # the profile, or ""


class Enter:
    """One run. Descriptors of ours are close-on-exec; the child gets nothing but the three standard ones.

    `limits` are those of this very process, where they are known: to read them stops it for a moment, and only one can do it at a time.
    """

    def __init__(self, order: Order, limits: "Limits | None" = None) -> None:
        self._order = order
        self._pidfd = os.pidfd_open(order.pid)
        self._ourselves = os.pidfd_open(os.getpid())
        check_process(order.pid, order.cgroup, order.leader)
        self._namespaces = tasks.differing_namespaces(order.pid)
        self.limits = limits or read_limits(order.pid, unfiltered=order.unfiltered)
        self.fault = ""  # why the command was not executed
        check_process(order.pid, order.cgroup, order.leader)  # of the pidfd still: another one of that pid cannot be joined by it

    def run(self) -> int:
        """The command's exit code, 128+N for signal N; REFUSED, CANNOT_EXECUTE or NO_PROGRAM with a `fault`."""
        ours, theirs = self._open_terminal() if self._order.terminal else self._open_pipes()
        report_read, report_write = os.pipe()
        if self._namespaces & tasks.CLONE_NEWPID:
            tasks.join_namespaces(self._pidfd, tasks.CLONE_NEWPID)  # of our children
        child = os.fork()
        if child == 0:
            self._become(theirs, report_write)
        os.close(report_write)
        for descriptor in set(theirs):
            os.close(descriptor)
        fault = _read_all(report_read)
        if fault:
            os.waitpid(child, 0)
            code, _, self.fault = fault.decode("utf-8", "replace").partition(" ")
            return int(code)
        return Relay(child, ours, terminal=self._order.terminal, interactive=self._order.interactive).run()

    def _open_pipes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Never a descriptor of our caller: what it is could be opened again from within by /proc/PID/fd. Pipes are the app's user's."""
        pipes = [os.pipe(), os.pipe(), os.pipe()]
        for pair in pipes:
            for descriptor in pair:
                os.fchown(descriptor, self._order.id_base + self._order.uid, self._order.id_base + self._order.gid)
        return (pipes[0][1], pipes[1][0], pipes[2][0]), (pipes[0][0], pipes[1][1], pipes[2][1])

    def _open_terminal(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """A pseudo-terminal of the app's own /dev/pts, reached without following any link."""
        root = os.open(f"/proc/{self._order.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        how = mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_SYMLINKS | mounts.RESOLVE_NO_MAGICLINKS
        master = mounts.openat2(root, "dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY, how)
        os.close(root)
        if os.fstat(master).st_rdev != os.makedev(5, 2):
            raise OSError(errno.ENOTTY, "is not a terminal multiplexer", "/dev/pts/ptmx")
        fcntl.ioctl(master, _TIOCSPTLCK, b"\0\0\0\0")
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        os.fchown(slave, self._order.id_base + self._order.uid, -1)
        _pass_size(master)  # before the command looks
        return (master, master, -1), (slave, slave, slave)

    def _become(self, standard: tuple[int, int, int], report: int) -> NoReturn:
        """The child: never returns, and tells its parent why it failed."""
        code = REFUSED
        try:
            self._confine()
            self._settle(standard)
            code = CANNOT_EXECUTE
            execute(self._order.argv, self._order.environment)
        except OSError as error:
            if code == CANNOT_EXECUTE and error.errno == errno.ENOENT:
                code = NO_PROGRAM
            what = f"{error.filename}: " if error.filename else ""
            os.write(report, f"{code} {what}{error.strerror}".encode())
        except ValueError as error:  # of setrlimit(2): a limit of ours is lower than the app's
            os.write(report, f"{code} {error}".encode())
        finally:
            os._exit(1)

    def _confine(self) -> None:
        """Everything that holds the app holds us; the order matters: DESIGN section 5, docs/exec.md.

        The cgroup comes last, since there the pod's root can freeze us, and name us as the app's main process to who enters next.
        """
        with open(f"{self._order.cgroup}/{self._order.below}/cgroup.procs", "wb", buffering=0) as group:  # judged by who opened it
            self._confine_outside()
            group.write(b"0")

    def _confine_outside(self) -> None:
        order, limits = self._order, self.limits
        self._die_with_parent()
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(limits.oom_score)
        if limits.apparmor:  # from our execve(2) on
            with open("/proc/self/attr/apparmor/exec", "w", encoding="utf-8") as file:
                file.write(f"exec {limits.apparmor}")
        elif order.label:
            with open("/proc/self/attr/exec", "w", encoding="ascii") as file:
                file.write(order.label)
        os.setpriority(os.PRIO_PROCESS, 0, limits.nice)
        for number, pair in limits.resources:
            resource.setrlimit(number, pair)
        tasks.leave_keyring()
        tasks.join_namespaces(self._pidfd, self._namespaces & ~tasks.CLONE_NEWPID)
        os.chdir("/")
        os.setsid()
        os.setgroups(order.groups)
        os.setresgid(order.gid, order.gid, order.gid)
        tasks.limit_bounding_set(limits.bounding, limits.last_capability)
        tasks.keep_capabilities()  # of themselves they only go where root's uid is ours: not from the host's root to a user of the pod
        os.setresuid(order.uid, order.uid, order.uid)
        permitted = limits.bounding if order.uid == 0 else limits.ambient
        if limits.no_new_privileges:
            tasks.forbid_new_privileges()
            tasks.set_capabilities(permitted, permitted, limits.inheritable, limits.ambient)
        else:
            enough = permitted | tasks.CAP_SYS_ADMIN
            tasks.set_capabilities(enough, enough, limits.inheritable, limits.ambient)
        self._die_with_parent()
        os.umask(0o022)
        os.chdir(order.working_dir)
        for program in limits.filters:
            tasks.install_filter(program)
        if not limits.no_new_privileges:  # only now: a filter without no_new_privs wants CAP_SYS_ADMIN
            tasks.set_capabilities(permitted, permitted, limits.inheritable, limits.ambient)

    def _die_with_parent(self) -> None:
        """A change of ids makes the kernel forget it, and a parent that has gone already sends nothing."""
        tasks.die_with_parent(signal.SIGKILL)
        poller = select.poll()
        poller.register(self._ourselves, select.POLLIN)
        if poller.poll(0):
            raise ProcessLookupError(errno.ESRCH, "who started it has ended")

    def _settle(self, standard: tuple[int, int, int]) -> None:
        if self._order.terminal:
            fcntl.ioctl(standard[0], termios.TIOCSCTTY, 0)
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10) for descriptor in standard]
        for number, descriptor in enumerate(high):
            os.dup2(descriptor, number, inheritable=True)
        for number in signal.valid_signals():  # what Python ignores, and our caller: a shell's `&` has SIGINT ignored
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _pass_size(terminal: int) -> None:
    """That of our caller's terminal, if it is one."""
    with suppress(OSError):
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


class Relay:
    """Between our caller's three streams and the command's, until the command ends."""

    def __init__(self, child: int, ours: tuple[int, int, int], *, terminal: bool, interactive: bool) -> None:
        self._child = child
        self._terminal = terminal
        self._interactive = interactive
        self._in, self._out, self._err = ours
        self._pidfd = os.pidfd_open(child)
        self._pending = b""
        self._poller = select.poll()

    def run(self) -> int:
        """Until the command has ended and what it wrote is written."""
        before = self._prepare()
        try:
            self._relay()
        finally:
            if before is not None:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
        _, status = os.waitpid(self._child, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _prepare(self) -> "list[Any] | None":
        for number in FORWARDED:
            signal.signal(number, self._forward)
        for descriptor in {self._in, self._out, self._err} - {-1}:
            os.set_blocking(descriptor, False)
        before = None
        if self._terminal and os.isatty(0):
            signal.signal(signal.SIGWINCH, self._resize)
            self._resize()  # it may have changed before we heard of it
            before = termios.tcgetattr(0)
            termios.tcsetattr(0, termios.TCSADRAIN, raw_mode(before))
        return before

    def _forward(self, number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def _resize(self, *_: object) -> None:
        _pass_size(self._out)

    def _relay(self) -> None:
        poller = self._poller
        for descriptor in {self._out, self._err} - {-1}:
            poller.register(descriptor, select.POLLIN)
        poller.register(self._pidfd, select.POLLIN)
        if self._interactive:
            self._listen()
        else:
            self._close_input()
        targets = {self._out: 1, self._err: 2}
        while True:
            ready = poller.poll()
            ended = any(descriptor == self._pidfd for descriptor, _ in ready)
            for descriptor, events in ready:
                if descriptor in targets and events & ~select.POLLOUT:
                    self._copy_out(descriptor, targets[descriptor])
                if descriptor == self._in and events & (select.POLLOUT | select.POLLERR):
                    self._flush()
                if descriptor == 0:
                    self._read_input()
            if ended:
                for descriptor, target in targets.items():
                    for _ in range(_LAST_BLOCKS):  # not until it is empty: another process of the app may write for ever
                        if descriptor < 0 or not self._copy_out(descriptor, target):
                            break
                return

    def _listen(self) -> None:
        """Reads our standard input, unless some of it still waits to be written."""
        with suppress(OSError):
            self._poller.register(0, select.POLLIN)

    def _read_input(self) -> None:
        data = _read(0)
        if data:
            self._pending = data
            self._flush()
        else:
            self._poller.unregister(0)
            self._close_input()

    def _close_input(self) -> None:
        """The command reads an end of file; a terminal has none."""
        if not self._terminal:
            os.close(self._in)
            self._in = -2

    def _flush(self) -> None:
        try:
            self._pending = self._pending[os.write(self._in, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads: as with a pipe in a shell, the rest is lost
            self._pending = b""
            with suppress(KeyError):
                self._poller.unregister(0)
            return
        events = select.POLLIN if self._in == self._out else 0
        if self._pending:
            with suppress(KeyError):
                self._poller.unregister(0)
            self._poller.register(self._in, events | select.POLLOUT)
        else:
            if events:
                self._poller.register(self._in, events)
            else:
                with suppress(KeyError):
                    self._poller.unregister(self._in)
            self._listen()

    def _copy_out(self, source: int, target: int) -> bool:
        """One block; False when there is none now, or never again."""
        try:
            data = os.read(source, _BLOCK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            with suppress(KeyError):
                self._poller.unregister(source)
            return False
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(target, view) :]
        except BrokenPipeError:
            self._forward(signal.SIGPIPE, None)
            return False
        return True


def read_limits(pid: int, *, unfiltered: bool) -> Limits:
    """What holds a process, from the kernel: none of it can the process itself have made looser than its manager set it."""
    filters = tasks.read_filters(pid, unfiltered=unfiltered)
    status = {}
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            status[key] = value.strip()
    if int(status["Seccomp_filters"]) != len(filters):
        raise OSError(errno.EIO, "the kernel does not give all seccomp filters", f"process {pid}")
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
        oom_score = file.read().strip()
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    return Limits(
        inheritable=int(status["CapInh"], 16),
        bounding=int(status["CapBnd"], 16),
        ambient=int(status["CapAmb"], 16),
        no_new_privileges=status["NoNewPrivs"] == "1",
        filters=filters,
        resources=tuple((number, resource.prlimit(pid, number)) for number in _LIMITS),
        nice=os.getpriority(os.PRIO_PROCESS, pid),
        oom_score=oom_score,
        last_capability=last,
        apparmor=_read_apparmor(pid),
    )


def _read_apparmor(pid: int) -> str:
    """`NAME (MODE)`, or `unconfined`; no such file, or EINVAL, where the kernel has no AppArmor."""
    try:
        with open(f"/proc/{pid}/attr/apparmor/current", encoding="utf-8") as file:
            text = file.read().strip("\n\0")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return ""
        raise
    return "" if text == "unconfined" else text.rpartition(" (")[0] or text


def is_in_cgroup(pid: int, directory: str) -> bool:
    """Whether a process is in the cgroup of that directory (of the unified hierarchy)."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            own = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), "?")
    except OSError:
        return False
    return directory.endswith(own) and own != "/"


def check_process(pid: int, cgroup: str, leader: int) -> None:
    """Raises OSError unless it is a process of the app in the cgroup of that directory; the pod's root says so, or the app itself may.

    It may name whatever is in that cgroup: systemd's executor, or a child of ours that enters the app and is not confined yet.
    """
    what = f"process {pid}"
    try:
        is_there = is_in_cgroup(pid, cgroup) and not is_executor(pid)
        is_ours = os.path.samefile(f"/proc/{pid}/exe", "/proc/self/exe")
        is_of_pod = os.path.samestat(os.stat(f"/proc/{pid}/ns/user"), os.stat(f"/proc/{leader}/ns/user"))
    except (FileNotFoundError, ProcessLookupError):
        is_there = is_ours = is_of_pod = False
    if not is_there:
        raise ProcessLookupError(errno.ESRCH, "the app has ended", what)
    if is_ours:
        raise PermissionError(errno.EPERM, "its program is this host's Python, so it may be a command that only enters the app", what)
    if not is_of_pod:
        raise PermissionError(errno.EPERM, "it is not in the user name space of its pod", what)


def is_executor(pid: int) -> bool:
    """Whether it is systemd's own executor still, which has not confined itself yet; or has gone."""
    try:
        return any(os.path.samefile(f"/proc/{pid}/exe", path) for path in _EXECUTORS if os.path.exists(path))
    except OSError:
        return True


def execute(argv: list[str], environment: dict[str, str]) -> NoReturn:
    """execvpe(3) with PATH of `environment`; os.execvpe imports a module on the way. Raises OSError as a shell would tell it."""
    if "/" in argv[0]:
        os.execve(argv[0], argv, environment)
    fault = OSError(errno.ENOENT, "no such program in PATH", argv[0])
    for directory in environment.get("PATH", "/usr/bin:/bin").split(":"):
        try:
            os.execve(f"{directory or '.'}/{argv[0]}", argv, environment)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                fault = error
    raise fault


def raw_mode(mode: "list[Any]") -> "list[Any]":
    """cfmakeraw(3)."""
    raw = list(mode)
    off = termios
    raw[0] &= ~(off.IGNBRK | off.BRKINT | off.PARMRK | off.ISTRIP | off.INLCR | off.IGNCR | off.ICRNL | off.IXON)
    raw[1] &= ~off.OPOST
    raw[2] = raw[2] & ~(off.CSIZE | off.PARENB) | off.CS8
    raw[3] &= ~(off.ECHO | off.ECHONL | off.ICANON | off.ISIG | off.IEXTEN)
    return raw


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _BLOCK)
    except OSError:
        return b""


def _read_all(descriptor: int) -> bytes:
    data = b""
    while part := _read(descriptor):
        data += part
    os.close(descriptor)
    return data


def main(descriptor: int) -> int:
    """Runs the Order that can be read, as JSON, from the descriptor; says what is wrong on standard error."""
    with open(descriptor, encoding="ascii") as file:
        order = Order(**json.load(file))
    kept = max(order.finish, 2)
    os.closerange(3, kept)
    os.closerange(kept + 1, 1 << 20)
    if order.finish >= 0:
        os.set_inheritable(order.finish, False)
    try:
        return _run(order)
    finally:
        if order.finish >= 0:
            os.close(order.finish)
            os.wait()


def _run(order: Order) -> int:
    try:
        tasks.forbid_dumps()
        enter = Enter(order)
        code = enter.run()
        if enter.fault:
            sys.stderr.write(f"podctl: {enter.fault}\n")
        return code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except ProcessLookupError:
        sys.stderr.write("podctl: the app has ended\n")
        return UNAVAILABLE
    except OSError as error:
        hint = ""
        if error.filename == "PTRACE_SECCOMP_GET_FILTER":
            hint = "\n  hint: the kernel must have CONFIG_CHECKPOINT_RESTORE, and podctl must not itself be under a seccomp filter"
        sys.stderr.write(f"podctl: {error.filename or 'exec'}: {error.strerror}{hint}\n")
        return REFUSED

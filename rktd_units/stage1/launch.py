# SPDX-License-Identifier: Apache-2.0
"""What pod@NAME.service executes: carries out stage0's plan in the unit's private mount name space, then becomes systemd-nspawn.

It is in every start, hence imports next to nothing, and nothing of stage0. All mounts die with the unit's name space: there is nothing to
undo. Paths of an image are resolved inside its root only (stage1/inside.py). It runs before any process of the pod, so none of them races.
"""

import _socket  # `socket` costs 8 ms more
import errno
import os
import stat
import sys
import time

from rktd_units import mounts
from rktd_units.paths import Layout
from rktd_units.stage1.calls import render_filter, render_users_filter
from rktd_units.stage1.inside import Inside
from rktd_units.stage1.plan import parse_plan
from rktd_units.tasks import install_filter

JOURNAL_STREAM = "/run/systemd/journal/stdout"
_SO_MARK = 36  # asm-generic/socket.h
_FIRST_FD = 3  # SD_LISTEN_FDS_START
# What every container has (OCI runtime-spec, config-linux.md, Default Devices), and numbers by Documentation/admin-guide/devices.txt.
_DEVICES = {"full": (1, 7), "null": (1, 3), "random": (1, 8), "tty": (5, 0), "urandom": (1, 9), "zero": (1, 5)}
_MORE_DEVICES = {"net/tun": (10, 200)}
_DEV_LINKS = (
    ("fd", "/proc/self/fd"),
    ("log", "/run/systemd/journal/dev-log"),  # only apps with the annotation `journal-socket` have that
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
)
_DEV_SIZE = "64k"  # it is read-only in the end
_SHM_SIZE = "10%"  # of the memory, as nspawn has it
_TTY_GROUP = 5
_UDEV_TRIES = 2500  # of 2 ms
_AWAIT_TRIES = 5000  # of 2 ms


class Launch:
    """One run through a plan: each verb is a method of the same name."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._userns = -1
        self._label: tuple[tuple[str, str], ...] = ()  # a mount option
        self._base = 0
        self._inherited = _inherited_sockets()
        self._streams: list[int] = []
        self._shm = -1  # the mount of the first app's /dev/shm
        self._mounted: list[tuple[str, str, str]] = []  # root, path, volume

    def run(self, steps: list[list[str]]) -> None:
        """Does not return when the plan ends in `exec`. Raises OSError naming the path."""
        for verb, *fields in steps:
            getattr(self, f"do_{verb}")(*fields)

    def do_idmap(self, base: str, size: str) -> None:
        """All later lower and id-mapped volume steps map container ids 0.. to host ids base.."""
        self._base = int(base)
        self._userns = mounts.id_map_namespace(self._base, int(size))

    def do_label(self, label: str) -> None:
        """All later new mounts have this SELinux label, and so has each file in them (mount(8), context=)."""
        self._label = (("context", label),)

    def do_lower(self, source: str, target: str) -> None:
        """A read-only, id-mapped clone of a layer's mount."""
        os.makedirs(target, exist_ok=True)
        clone = mounts.clone_tree(source)
        attributes = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV
        mounts.set_attributes(clone, attributes, userns=self._userns, what=source)
        mounts.attach(clone, target)
        os.close(clone)

    def do_overlay(self, target: str, upper: str, work: str, setuid: str, *lower: str) -> None:
        """An app's root; `lower` topmost first. Only an app that may gain privileges sees set-user-ID bits."""
        layers = tuple(("lowerdir+", path) for path in lower)
        attributes = mounts.ATTR_NODEV | (0 if setuid == "suid" else mounts.ATTR_NOSUID)
        overlay = mounts.new_mount(
            "overlay", (*layers, ("upperdir", upper), ("workdir", work), ("source", "pod"), *self._label), attributes
        )
        mounts.attach(overlay, target)
        os.close(overlay)

    def do_drop(self, target: str) -> None:
        """Detaches a lower clone that its overlays hold by themselves: nspawn and the pod's PID 1 look at every mount that they see."""
        mounts.unmount(target, mounts.MNT_DETACH)

    def do_tmpfs(self, target: str, size: str, mode: str, gid: str) -> None:
        """A volume in memory. `size` in bytes or "" for the kernel's default of half the memory."""
        options = [("mode", mode), ("uid", str(self._base)), ("gid", gid), ("source", "emptydir"), *self._label]
        if size:
            options.append(("size", size))
        mount = mounts.new_mount("tmpfs", tuple(options))
        mounts.attach(mount, target)
        os.close(mount)

    def do_hugetlbfs(self, target: str, page: str, size: str, mode: str, gid: str) -> None:
        """A volume in huge pages; `page` and `size` in bytes."""
        options = (("mode", mode), ("uid", str(self._base)), ("gid", gid), ("pagesize", page), ("size", size), ("source", "emptydir"))
        mount = mounts.new_mount("hugetlbfs", (*options, *self._label))
        mounts.attach(mount, target)
        os.close(mount)

    def do_nodes(self, target: str) -> None:
        """Where `device` makes its nodes: not nodev, and nobody's but root's."""
        mount = mounts.new_mount("tmpfs", (("mode", "0700"), ("size", _DEV_SIZE), ("source", "nodes"), *self._label), mounts.ATTR_NOSUID)
        mounts.attach(mount, target)
        os.close(mount)

    def do_device(self, nodes: str, source: str, root: str, path: str, uid: str, gid: str) -> None:
        """A device of the host as a node of the app's own; ids as in the container. What may be done with it is DeviceAllow='s."""
        status = os.stat(source)
        node = f"{nodes}/{len(os.listdir(nodes))}"
        os.mknod(node, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)
        os.chown(node, self._base + int(uid), self._base + int(gid))
        os.chmod(node, 0o660)
        clone = mounts.clone_tree(node)
        with self._root(root) as inside:
            inside.attach(clone, path, is_directory=False)
        os.close(clone)

    def do_directory(self, root: str, path: str) -> None:
        """A directory inside an app's root, with its parents, where there is none."""
        with self._root(root) as inside:
            os.close(inside.make_directory(path))

    def do_place(self, root: str, path: str) -> None:
        """A directory, as by `directory`, that the pod's systemd uses by its plain path: no symbolic link may lead to it."""
        with self._root(root) as inside:
            os.close(inside.make_directory(path))
            try:
                os.close(inside.open(path, mounts.RESOLVE_NO_SYMLINKS))
            except OSError as error:
                raise OSError(error.errno, "the image has a symbolic link there", error.filename) from error

    def do_file(self, source: str, root: str, path: str) -> None:
        """A file of the pod's own, such as /etc/hosts, in the place of whatever the image has there."""
        with open(source, "rb") as file, self._root(root) as inside:
            inside.replace_file(path, file.read())

    def do_link(self, target: str, root: str, path: str) -> None:
        """A symbolic link inside an app's root, in the place of whatever the image has there."""
        with self._root(root) as inside:
            inside.replace_link(path, target)

    def do_pin(self, root: str, path: str) -> None:
        """Makes a directory of an app's root a mount of its own: it stays as it is when the root becomes read-only."""
        with self._root(root) as inside:
            target = inside.make_directory(path)
            clone = mounts.clone_tree("", target, what=path)
            os.close(target)
            inside.attach(clone, path, is_directory=True)
            os.close(clone)

    def do_readonly(self, root: str, path: str) -> None:
        """The mount at `path` of an app's root becomes read-only; mounts below it stay as they are."""
        with self._root(root) as inside:
            target = inside.open(path)
            mounts.set_attributes(target, mounts.ATTR_RDONLY, what=path)
            os.close(target)

    def do_devices(self, root: str, *more: str) -> None:
        """An app's own /dev, not nodev, with the devices of every container and `more` ones; /dev/shm is one for all apps of the pod."""
        owner = (("uid", str(self._base)), ("gid", str(self._base)), *self._label)
        dev = mounts.new_mount("tmpfs", (("mode", "0755"), *owner, ("size", _DEV_SIZE), ("source", "dev")), mounts.ATTR_NOSUID)
        umask = os.umask(0)
        for name in (*_DEVICES, *more):
            if "/" in name:
                os.mkdir(os.path.dirname(name), 0o755, dir_fd=dev)
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(*(_DEVICES | _MORE_DEVICES)[name]), dir_fd=dev)
            os.chown(name, self._base, self._base, dir_fd=dev)
        for name, target in _DEV_LINKS:
            os.symlink(target, name, dir_fd=dev)
        for name in ("mqueue", "pts", "shm"):
            os.mkdir(name, 0o755, dir_fd=dev)
        os.umask(umask)
        with self._root(root) as inside:
            inside.attach(dev, "/dev", is_directory=True)
        tty = (("ptmxmode", "0666"), ("mode", "0620"), ("gid", str(self._base + _TTY_GROUP)), ("source", "devpts"), *self._label)
        pts = mounts.new_mount("devpts", tty, mounts.ATTR_NOSUID | mounts.ATTR_NOEXEC)
        mounts.attach(pts, "pts", dev)
        os.close(pts)
        if self._shm < 0:
            self._shm = mounts.new_mount("tmpfs", (("mode", "1777"), *owner, ("size", _SHM_SIZE), ("source", "shm")))
            mounts.attach(self._shm, "shm", dev)
        else:
            shm = mounts.clone_tree("", self._shm, what="/dev/shm")
            mounts.attach(shm, "shm", dev)
            os.close(shm)
        os.close(dev)

    def do_volume(self, name: str, source: str, sub_path: str, root: str, path: str, mode: str, mapping: str) -> None:
        """Mounts a volume, or `sub_path` of it, into an app. `mode`: ro or rw; `mapping`: idmap or plain."""
        if sub_path:
            owner = 0 if mapping == "idmap" else self._base
            with Inside(source, owner, label=f"volume {name}: {source}/", volume=True) as volume:
                origin = volume.make_directory(sub_path, file_is_fine=True)
        else:
            origin = os.open(source, os.O_PATH | os.O_CLOEXEC)
        clone = mounts.clone_tree("", origin, recursive=True, what=source)
        is_directory = stat.S_ISDIR(os.fstat(origin).st_mode)
        os.close(origin)
        attributes = mounts.ATTR_NOSUID | mounts.ATTR_NODEV | (mounts.ATTR_RDONLY if mode == "ro" else 0)
        try:
            mounts.set_attributes(clone, attributes, userns=self._userns if mapping == "idmap" else -1, recursive=True, what=source)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM) or mapping != "idmap":
                raise
            if mode != "ro":
                place = self._find_unmappable(source)
                reason = f"a file system of type {mounts.filesystem_type(place)} cannot be id-mapped: mount it readOnly"
                raise OSError(error.errno, reason, place) from error
            mounts.set_attributes(clone, attributes, recursive=True, what=source)
        try:
            with self._root(root) as inside:
                inside.attach(clone, path, is_directory=is_directory)
        except OSError as error:
            raise OSError(error.errno, f"volume {name} cannot be mounted: {self._reason(error, root, path)}", error.filename) from error
        os.close(clone)
        self._mounted.append((root, path, name))

    def _find_unmappable(self, source: str) -> str:
        """The first mount at or below `source` that cannot be id-mapped: not by its file system (EINVAL), or not once more (EPERM)."""
        top = os.path.realpath(source)
        below = sorted(point for point in mounts.list_mounts() if point.startswith(top.rstrip("/") + "/"))
        for place in (top, *below):
            mount = mounts.clone_tree(place, what=place)
            try:
                mounts.set_attributes(mount, 0, userns=self._userns, what=place)
            except OSError:
                return place
            finally:
                os.close(mount)
        return source

    def _root(self, root: str) -> Inside:
        """An app's root: ROOT/../ is named after the app."""
        return Inside(root, self._base, label=f"app {os.path.basename(os.path.dirname(root))}: ", userns=self._userns)

    def _reason(self, error: OSError, root: str, path: str) -> str:
        """Why there is no place for a mount, and what helps: the volume around it may be the one that does not have it."""
        around = [(len(at), at, name) for in_root, at, name in self._mounted if in_root == root and path.startswith(at + "/")]
        if not around or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EOVERFLOW):
            return str(error.strerror)
        _, at, name = max(around)
        reason = "is read-only" if error.errno == errno.EROFS else f"does not let the pod's root make it ({error.strerror})"
        return f"there is no {path[len(at) + 1 :]} in volume {name} at {at}, which {reason}: make it there first, or mount elsewhere"

    def do_stream(self, path: str, identifier: str, priority: str) -> None:
        """A journal stream (systemd's journald-stream.c) opened as host root: journald believes the unit from uid 0 only.

        It is bound to `path` first, the name by which the pod's PID 1 finds the socket unit that it is for.
        """
        stream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        _unlink(path)
        stream.bind(path)
        stream.connect(JOURNAL_STREAM)
        os.unlink(path)
        stream.sendall(f"{identifier}\n{self._unit}\n{priority}\n1\n0\n0\n0\n".encode())
        self._streams.append(stream.detach())

    def do_interface(self, name: str) -> None:
        """Waits until udev, where it runs, is through with an interface: nspawn refuses others (nspawn-network.c)."""
        known = f"/run/udev/data/n{_socket.if_nametoindex(name)}"
        for _ in range(_UDEV_TRIES):
            if os.path.exists(known) or not os.path.exists("/run/udev/control"):
                break
            time.sleep(0.002)

    def do_await(self, path: str) -> None:
        """Waits until a file is there: the name server of a network, started by its first pod, may not be up yet when stage0 is done.

        Not for an answer from it: the unit's own IPAddressDeny= is in force here.
        """
        for _ in range(_AWAIT_TRIES):
            if os.path.exists(path):
                return
            time.sleep(0.002)
        raise OSError(errno.ETIMEDOUT, "the name server of the pod's network does not come up", path)

    def do_marked(self, mark: str) -> None:
        """Refuses sockets of pod@NAME.socket without the mark by which the host keeps them from beginning connections."""
        for descriptor in self._inherited:
            passed = _socket.socket(fileno=os.dup(descriptor))
            found = passed.getsockopt(_socket.SOL_SOCKET, _SO_MARK)
            passed.close()
            if found != int(mark):
                unit = self._unit.replace(".service", ".socket")
                raise OSError(errno.EPERM, f"its sockets lack the firewall mark {int(mark):#x}: restart it", unit)

    def do_oom(self, score: str) -> None:
        """Of stage1 and the pod's PID 1; set by host root it is also the least that any process of the pod can give itself.

        Not nspawn's --oom-score-adjust=, which is refused in a user name space (systemd 257).
        """
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(score)
        except PermissionError:  # a host that is a container itself: as systemd does, who is less likely to be killed stays as all are
            pass

    def do_filter(self, huge_pages: str = "") -> None:
        """Refuses the calls that no pod needs, and has nspawn make no filters of its own, if it knows this machine's calls."""
        if program := render_filter(os.uname().machine, huge_pages=bool(huge_pages)):
            install_filter(program)
            os.environ["SYSTEMD_SECCOMP"] = "0"  # systemd's ENVIRONMENT.md; nspawn does not pass it on

    def do_sameusers(self) -> None:
        """A user manager puts each app into a user name space, if it can: none with the host's ids and capabilities (exec-invoke.c)."""
        program = render_users_filter(os.uname().machine)
        if not program:
            raise OSError(errno.ENOTSUP, f"hostPID is not there for {os.uname().machine} yet")
        install_filter(program)

    def do_leader(self, name: str, root: str, machine_id: str) -> None:
        """For a pod without a process name space, which nspawn does not register: a child of ours does, once the pod's systemd is there."""
        from rktd_units.stage1.leader import announce_leader  # few pods need it

        announce_leader(name, root, machine_id)

    def do_exec(self, *argv: str) -> None:
        """Becomes stage1 proper, with the sockets that this got itself and the streams as LISTEN_FDS: the pod knows them by their names."""
        passed = [*self._inherited, *self._streams]
        above = max([*passed, _FIRST_FD + len(passed)]) + 1  # clear of what is there and of what is to be
        high = [os.dup2(fd, above + i, inheritable=False) for i, fd in enumerate(passed)]
        for i, fd in enumerate(high):
            os.dup2(fd, _FIRST_FD + i, inheritable=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
        if high:
            environment.update(LISTEN_FDS=str(len(high)), LISTEN_PID=str(os.getpid()))
        os.execve(argv[0], argv, environment)


def _inherited_sockets() -> list[int]:
    """Those of pod@NAME.socket (sd_listen_fds(3)); no other process gets them."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    found = list(range(_FIRST_FD, _FIRST_FD + int(os.environ.get("LISTEN_FDS", "0"))))
    for descriptor in found:
        os.set_inheritable(descriptor, False)
    return found


def _unlink(path: str) -> None:
    try:  # noqa: SIM105
        os.unlink(path)
    except FileNotFoundError:
        pass


def main(argv: list[str]) -> int:
    """`launch NAME`. 78 when stage0 did not ready the pod, with its reason; 1 when a step fails, with the path."""
    name, layout = argv[1], Layout()
    try:
        with open(f"{layout.pod(name)}/plan", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            steps = parse_plan(file.read())
    except FileNotFoundError:
        sys.stderr.write(_stage0_error(layout, name))
        return 78
    try:
        _take(layout, name)
        Launch(f"pod@{name}.service").run(steps)
    except (OSError, ValueError) as error:
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) else str(error)
        text = f"cannot set up pod {name}: {place}{reason}"
        sys.stderr.write(f"<3>{text}\n")
        _leave(f"{layout.pod(name)}/error", text)
    return 1


def _take(layout: Layout, name: str) -> None:
    """Once for what stage0 has readied: no start uses a tree that a pod's root has had in its hands.

    A start that comes while a stop of pod@ waits or is hardly over takes back the stop of stage0 that belongs to it (systemd: a job
    replaces another one of the same unit). Then we become what makes the start a restart, which has both stop first, and so ends us; who
    waits for the start waits for that.
    """
    try:
        os.close(os.open(f"{layout.pod(name)}/taken", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        os.execve("/usr/bin/systemctl", ("systemctl", "--no-ask-password", "restart", f"pod@{name}.service"), {"LC_ALL": "C.UTF-8"})


def _leave(path: str, text: str) -> None:
    """For stage0, which tells the journal what it is when it takes the pod away."""
    try:
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    except OSError:
        pass


def _stage0_error(layout: Layout, name: str) -> str:
    try:
        with open(layout.error(name), encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return f"<3>pod {name} is not ready to run: see `systemctl status pod-stage0@{name}`\n"

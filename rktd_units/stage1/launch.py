# SPDX-License-Identifier: Apache-2.0
"""What pod@NAME.service executes: carries out stage0's plan in the unit's private mount name space, then becomes systemd-nspawn.

It is in every start, hence imports next to nothing, and nothing of stage0. All mounts die with the unit's name space: there is nothing to
undo. Paths of an image are resolved inside its root by openat2(2) only. It runs before any process of the pod, so nobody races with it.
"""

import _socket  # `socket` costs 8 ms more
import errno
import os
import stat
import sys

from rktd_units import mounts
from rktd_units.paths import Layout
from rktd_units.stage1.plan import parse_plan

JOURNAL_STREAM = "/run/systemd/journal/stdout"
_FIRST_FD = 3  # SD_LISTEN_FDS_START


class Launch:
    """One run through a plan: each verb is a method of the same name."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._userns = -1
        self._base = 0
        self._streams: list[int] = []

    def run(self, steps: list[list[str]]) -> None:
        """Does not return when the plan ends in `exec`. Raises OSError naming the path."""
        for verb, *fields in steps:
            getattr(self, f"do_{verb}")(*fields)

    def do_idmap(self, base: str, size: str) -> None:
        """All later lower and id-mapped volume steps map container ids 0.. to host ids base.."""
        self._base = int(base)
        self._userns = mounts.id_map_namespace(self._base, int(size))

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
        overlay = mounts.new_mount("overlay", (*layers, ("upperdir", upper), ("workdir", work), ("source", "pod")), attributes)
        mounts.attach(overlay, target)
        os.close(overlay)

    def do_drop(self, target: str) -> None:
        """Detaches a lower clone that its overlays hold by themselves: nspawn and the pod's PID 1 look at every mount that they see."""
        mounts.unmount(target, mounts.MNT_DETACH)

    def do_tmpfs(self, target: str, size: str, mode: str, gid: str) -> None:
        """A volume in memory. `size` in bytes or "" for the kernel's default of half the memory."""
        options = [("mode", mode), ("uid", str(self._base)), ("gid", gid), ("source", "emptydir")]
        if size:
            options.append(("size", size))
        mount = mounts.new_mount("tmpfs", tuple(options))
        mounts.attach(mount, target)
        os.close(mount)

    def do_directory(self, root: str, path: str) -> None:
        """A directory inside an app's root, with its parents, where there is none."""
        with _Root(root, self._base) as inside:
            os.close(inside.make_directory(path))

    def do_place(self, root: str, path: str) -> None:
        """A directory, as by `directory`, that the pod's systemd uses by its plain path: no symbolic link may lead to it."""
        with _Root(root, self._base) as inside:
            os.close(inside.make_directory(path))
            try:
                os.close(inside.open(path, mounts.RESOLVE_NO_SYMLINKS))
            except OSError as error:
                raise OSError(error.errno, "the image has a symbolic link there", path) from error

    def do_file(self, source: str, root: str, path: str) -> None:
        """A file of the pod's own, such as /etc/hosts, in the place of whatever the image has there."""
        with open(source, "rb") as file, _Root(root, self._base) as inside:
            inside.replace_file(path, file.read())

    def do_link(self, target: str, root: str, path: str) -> None:
        """A symbolic link inside an app's root, in the place of whatever the image has there."""
        with _Root(root, self._base) as inside:
            inside.replace_link(path, target)

    def do_pin(self, root: str, path: str) -> None:
        """Makes a directory of an app's root a mount of its own: it stays as it is when the root becomes read-only."""
        with _Root(root, self._base) as inside:
            target = inside.make_directory(path)
            clone = mounts.clone_tree("", target)
            mounts.attach(clone, "", target)
            os.close(clone)
            os.close(target)

    def do_readonly(self, root: str, path: str) -> None:
        """The mount at `path` of an app's root becomes read-only; mounts below it stay as they are."""
        with _Root(root, self._base) as inside:
            target = inside.open(path)
            mounts.set_attributes(target, mounts.ATTR_RDONLY, what=path)
            os.close(target)

    def do_volume(self, source: str, sub_path: str, root: str, path: str, mode: str, mapping: str) -> None:
        """Mounts a volume, or `sub_path` of it, into an app. `mode`: ro or rw; `mapping`: idmap or plain."""
        origin = os.open(source, os.O_PATH | os.O_CLOEXEC)
        if sub_path:
            with _Root(source, -1 if mapping == "idmap" else self._base) as volume:
                os.close(origin)
                origin = volume.make_directory(sub_path, file_is_fine=True)
        clone = mounts.clone_tree("", origin, recursive=True)
        is_directory = stat.S_ISDIR(os.fstat(origin).st_mode)
        os.close(origin)
        attributes = mounts.ATTR_NOSUID | mounts.ATTR_NODEV | (mounts.ATTR_RDONLY if mode == "ro" else 0)
        try:
            mounts.set_attributes(clone, attributes, userns=self._userns if mapping == "idmap" else -1, recursive=True, what=source)
        except OSError as error:
            if error.errno != errno.EINVAL or mapping != "idmap":
                raise
            if mode != "ro":
                raise OSError(
                    error.errno, f"a file system of type {_filesystem(source)} cannot be id-mapped: mount it readOnly", source
                ) from error
            mounts.set_attributes(clone, attributes, recursive=True, what=source)
        with _Root(root, self._base) as inside:
            target = inside.make_directory(path) if is_directory else inside.make_file(path)
            mounts.attach(clone, "", target)
            os.close(target)
        os.close(clone)

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

    def do_exec(self, *argv: str) -> None:
        """Becomes stage1 proper, with the streams as LISTEN_FDS."""
        above = max([*self._streams, _FIRST_FD + len(self._streams)]) + 1  # clear of what is there and of what is to be
        high = [os.dup2(fd, above + i, inheritable=False) for i, fd in enumerate(self._streams)]
        for i, fd in enumerate(high):
            os.dup2(fd, _FIRST_FD + i, inheritable=True)
        environment = dict(os.environ)
        if high:
            environment.update(LISTEN_FDS=str(len(high)), LISTEN_PID=str(os.getpid()))
        os.execve(argv[0], argv, environment)


class _Root:
    """A directory that no path leads out of. What it makes belongs to `owner` (host id)."""

    def __init__(self, path: str, owner: int) -> None:
        self._path = path
        self._owner = owner
        self._fd = -1

    def __enter__(self) -> "_Root":
        self._fd = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def open(self, path: str, resolve: int = 0) -> int:
        return mounts.openat2(self._fd, path, os.O_PATH, mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_MAGICLINKS | resolve)

    def make_directory(self, path: str, *, file_is_fine: bool = False) -> int:
        """A descriptor of the directory, links resolved inside the root; missing parts are made, mode 0755."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for count in range(1, len(parts) + 1):
            prefix = "/".join(parts[:count])
            try:
                os.close(self.open(prefix))
            except FileNotFoundError:
                self._make(parts[: count - 1], parts[count - 1], is_file=False)
        found = self.open("/".join(parts) or ".")
        if not file_is_fine and not stat.S_ISDIR(os.fstat(found).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "the image has something else than a directory there", path)
        return found

    def make_file(self, path: str) -> int:
        """The same for a file to mount a file on."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        os.close(self.make_directory("/".join(parts[:-1])))
        try:
            return self.open("/".join(parts))
        except FileNotFoundError:
            self._make(parts[:-1], parts[-1], is_file=True)
        return self.open("/".join(parts))

    def replace_file(self, path: str, data: bytes) -> None:
        """Mode 0644. A link in its place is replaced, not followed."""
        parent, name = self._clear(path)
        try:
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent)
            os.write(file, data)
            os.fchown(file, self._owner, self._owner)
            os.close(file)
        finally:
            os.close(parent)

    def replace_link(self, path: str, target: str) -> None:
        parent, name = self._clear(path)
        try:
            os.symlink(target, name, dir_fd=parent)
            os.chown(name, self._owner, self._owner, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def _clear(self, path: str) -> tuple[int, str]:
        """A descriptor of the directory, made where it is missing, and the name in it, which is free now."""
        parents, name = path.rsplit("/", 1)
        os.close(self.make_directory(parents))
        parent = mounts.openat2(self._fd, parents.lstrip("/") or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:  # noqa: SIM105  # contextlib costs 2 ms
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        return parent, name

    def _make(self, parents: list[str], name: str, *, is_file: bool) -> None:
        parent = mounts.openat2(self._fd, "/".join(parents) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            if is_file:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
            else:
                os.mkdir(name, 0o755, dir_fd=parent)
            if self._owner >= 0:
                os.chown(name, self._owner, self._owner, dir_fd=parent, follow_symlinks=False)
        except FileExistsError as error:
            raise FileExistsError(errno.EEXIST, "a link there leads to nowhere", "/".join((self._path, *parents, name))) from error
        finally:
            os.close(parent)


def _unlink(path: str) -> None:
    try:  # noqa: SIM105
        os.unlink(path)
    except FileNotFoundError:
        pass


def _filesystem(path: str) -> str:
    """The type of the file system that holds `path`, from mountinfo (proc_pid_mountinfo(5)); the longest mount point wins."""
    best, kind = "", "unknown"
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            point = fields[4]
            if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
                best, kind = point, fields[fields.index("-") + 1]
    return kind


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
        Launch(f"pod@{name}.service").run(steps)
    except (OSError, ValueError) as error:
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) else str(error)
        sys.stderr.write(f"<3>cannot set up pod {name}: {place}{reason}\n")
    return 1


def _stage0_error(layout: Layout, name: str) -> str:
    try:
        with open(layout.error(name), encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return f"<3>pod {name} is not ready to run: see `systemctl status pod-stage0@{name}`\n"

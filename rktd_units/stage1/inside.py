# SPDX-License-Identifier: Apache-2.0
"""Work below a directory that no path leads out of: an app's root, or a volume. In every start, hence imports next to nothing.

Paths are walked one component at a time on descriptors, symbolic links by hand, as an app would see them from inside: an absolute link
starts at the root again, `..` ends there. What is missing is made, also where a link leads to nowhere, as runc does it. A file system from
elsewhere that is mounted in an app's root, which is a volume, is a root of its own for the links in it: who owns a volume (another app,
somebody on the host) must not say where in an app's root another volume goes.
"""

import errno
import os
import stat

from rktd_units import mounts

_LINKS_MAX = 40  # MAXSYMLINKS of the kernel


class Inside:
    """Below `path`, as a context manager. What it makes belongs to `owner` (host id), directories with `mode`.

    `volume`: below a part of one volume; a link to nowhere is refused there. `userns`: a descriptor of the pod's user name space, by which
    things are made in id-mapped mounts, where host root cannot. Every OSError has `label` and the whole path as its filename.
    """

    def __init__(self, path: str, owner: int, *, label: str = "", userns: int = -1, volume: bool = False) -> None:
        self._path = path
        self._owner = owner
        self._label = label
        self._userns = userns
        self._is_volume = volume
        self._mode = 0o755
        self._fd = -1
        self._device = 0

    def __enter__(self) -> "Inside":
        self._fd = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        self._device = status.st_dev
        if self._is_volume:  # as kubelet makes a subPath: who may use the volume may use that
            self._mode = stat.S_IMODE(status.st_mode) & 0o1777
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def open(self, path: str, resolve: int = 0) -> int:
        """A descriptor of what is there."""
        try:
            return mounts.openat2(self._fd, path, os.O_PATH, mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_MAGICLINKS | resolve)
        except OSError as error:
            raise self._fault(error, path) from error

    def make_directory(self, path: str, *, file_is_fine: bool = False) -> int:
        """A descriptor of the directory; missing parts are made."""
        return self._reach(path, "any" if file_is_fine else "directory")

    def make_file(self, path: str) -> int:
        """The same for a file to mount a file on; missing parents are directories."""
        return self._reach(path, "file")

    def attach(self, mount: int, path: str, *, is_directory: bool) -> None:
        """A detached mount goes there."""
        target = self.make_directory(path) if is_directory else self.make_file(path)
        try:
            mounts.attach(mount, "", target)
        except OSError as error:
            raise self._fault(error, path) from error
        finally:
            os.close(target)

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
        """A symbolic link, likewise."""
        parent, name = self._clear(path)
        try:
            os.symlink(target, name, dir_fd=parent)
            os.chown(name, self._owner, self._owner, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def _clear(self, path: str) -> tuple[int, str]:
        """A descriptor of the directory, made where it is missing, and the name in it, which is free now."""
        parents, name = path.rsplit("/", 1)
        parent = self.make_directory(parents)
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(parent)
            raise self._fault(error, path) from error
        return parent, name

    def _fault(self, error: OSError, path: str) -> OSError:
        return OSError(error.errno, error.strerror, f"{self._label}{path}")

    def _reach(self, path: str, kind: str) -> int:
        """A descriptor of what is there at last; `kind`: "directory", "file", or "any", which makes a directory."""
        walk = _Walk(self._fd, self._device if not self._is_volume else -1)
        try:
            self._walk(walk, path, kind)
            found = walk.release()
            if kind == "directory" and not stat.S_ISDIR(os.fstat(found).st_mode):
                os.close(found)
                raise NotADirectoryError(errno.ENOTDIR, "there is something else than a directory")
        except OSError as error:
            raise self._fault(error, path) from error
        finally:
            walk.close()
        return found

    def _walk(self, walk: "_Walk", path: str, kind: str) -> None:
        todo = [(name, False) for name in reversed(path.split("/"))]  # and whether a link says so
        links = 0
        while todo:
            name, bent = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                walk.up()
                continue
            try:
                target = walk.enter(name)
            except FileNotFoundError:
                if bent and self._is_volume:
                    raise FileNotFoundError(errno.ENOENT, "a symbolic link there leads to nowhere") from None
                is_last = all(rest in ("", ".") for rest, _ in todo)
                self._make(walk.here, name, is_file=is_last and kind == "file")
                target = walk.enter(name)
            if target is None:
                continue
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.startswith("/"):
                walk.restart()
            todo += [(part, True) for part in reversed(target.split("/"))]

    def _make(self, parent: int, name: str, *, is_file: bool) -> None:
        def make() -> None:
            if is_file:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
            else:
                os.mkdir(name, self._mode, dir_fd=parent)

        umask = os.umask(0)
        try:
            make()
            if self._owner:  # never in an id-mapped mount: there is no host root in it to get here
                group = -1 if os.fstat(parent).st_mode & stat.S_ISGID else self._owner
                os.chown(name, self._owner, group, dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno != errno.EOVERFLOW or self._userns < 0:
                raise
            mounts.run_as_root_of(self._userns, make)
        finally:
            os.umask(umask)


class _Walk:
    """Where a walk is: descriptors from the root down, each with the depth that links may not lead above."""

    def __init__(self, root: int, device: int) -> None:
        """`device`: st_dev of the root, or -1 where mounts make no difference."""
        self._device = device
        self._stack = [(os.dup(root), 0)]

    @property
    def here(self) -> int:
        return self._stack[-1][0]

    def up(self) -> None:
        floor = self._stack[-1][1]
        if len(self._stack) - 1 > floor:
            os.close(self._stack.pop()[0])
        elif floor:
            raise _leads_out()

    def restart(self) -> None:
        if self._stack[-1][1]:
            raise _leads_out()
        while len(self._stack) > 1:
            os.close(self._stack.pop()[0])

    def enter(self, name: str) -> str | None:
        """Goes down; the target instead if that is a link. Raises FileNotFoundError."""
        floor = self._stack[-1][1]
        flags = os.O_PATH | os.O_NOFOLLOW
        try:
            child = mounts.openat2(self.here, name, flags, mounts.RESOLVE_NO_XDEV)
            crosses = False
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            child = mounts.openat2(self.here, name, flags, 0)
            crosses = True
        status = os.fstat(child)
        if stat.S_ISLNK(status.st_mode):
            try:
                return os.readlink("", dir_fd=child)
            finally:
                os.close(child)
        if crosses and self._device >= 0 and status.st_dev != self._device:
            floor = len(self._stack)
        self._stack.append((child, floor))
        return None

    def release(self) -> int:
        """The descriptor of where it is, which is the caller's now."""
        return self._stack.pop()[0]

    def close(self) -> None:
        while self._stack:
            os.close(self._stack.pop()[0])


def _leads_out() -> OSError:
    return OSError(errno.EXDEV, "a symbolic link there leads out of the volume that it is in")

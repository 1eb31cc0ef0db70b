# SPDX-License-Identifier: Apache-2.0
"""PID 1 of a Xen guest until systemd is: carries out the same plan as stage1/launch.py does on a host, then becomes the pod's systemd.

What nspawn does for a pod on a host is done here: the pod's root becomes the root, with the guest's own /usr. It runs from the guest's
first root, which the kernel unpacked (docs/xen.md), and leaves processes behind there: guestlog.py, which tells the host what goes on,
guestexec.py, which runs what `podctl exec` asks for, and guestprobes.py, which runs exec probes and hooks, where the pod has some.
"""

import _socket
import fcntl
import os
import struct
import sys
import time

from rktd_units import mounts
from rktd_units.paths import EXEC_DIRECTORY, Layout
from rktd_units.stage1 import guestexec, guestlog
from rktd_units.stage1.inside import Inside
from rktd_units.stage1.launch import Launch
from rktd_units.stage1.plan import parse_plan

PLAN = "/plan"
SEED = "/seed"
STATUS_DIRECTORY = "/run/rktd-status"  # in the pod: as stage2 has it
NOTIFY_SOCKET = "/run/rktd-notify"
_RNDADDENTROPY = 0x40085203
_DISK_TRIES = 3000  # of 10 ms
_SHARE_TRIES = 600  # of 100 ms
# Apps may map files shared; nothing else is cached, since the host's qids are of version 0 (v9fs_fid_add_modes, fs/9p/fid.h).
_SHARE_OPTIONS = (("source", "rktd"), ("trans", "xen"), ("version", "9p2000.L"), ("msize", "65536"), ("cache", "mmap"))
_NICE = -10  # as pod@.service has it
_FAILED_SECONDS = 60.0  # the host takes the guest down sooner


class Guest(Launch):
    """Launch with the verbs that only a guest needs, and its own way to be stage1."""

    def __init__(self, directory: str) -> None:
        super().__init__("")
        self._directory = directory  # the pod's, where it is on a host, too
        self._channels: list[guestlog.Channel] = []
        self._has_probes = False
        self._began = guestlog.uptime()

    def do_module(self, path: str) -> None:
        """Loads a kernel module."""
        mounts.load_module(path)

    def do_disk(self, device: str, target: str) -> None:
        """An EROFS image on a block device, which appears some time after its driver."""
        for _ in range(_DISK_TRIES):
            if os.path.exists(device):
                break
            time.sleep(0.01)
        mount = mounts.new_mount("erofs", (("source", device), ("ro", "")), mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV)
        os.makedirs(target, exist_ok=True)
        mounts.attach(mount, target)
        os.close(mount)

    def do_share(self, target: str) -> None:
        """The host's directories (docs/xen-volumes.md). Their device may come later than its driver: until then the tag is not known."""
        for left in reversed(range(_SHARE_TRIES)):
            try:
                mount = mounts.new_mount("9p", _SHARE_OPTIONS, mounts.ATTR_NOSUID | mounts.ATTR_NODEV)
                break
            except OSError as error:
                if not left:
                    raise OSError(error.errno, "the host does not serve the pod's volumes", "9p") from error
            time.sleep(0.1)
        os.makedirs(target, exist_ok=True)
        _attach(mount, target)

    def do_hostname(self, name: str) -> None:
        _socket.sethostname(name)

    def do_stream(self, path: str, identifier: str, priority: str) -> None:
        """As on a host, but what is written there goes to guestlog.py. The name is how the pod's PID 1 knows the stream."""
        own, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        other.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        own.bind(path)
        os.unlink(path)
        own.shutdown(_socket.SHUT_RD)
        self._streams.append(own.detach())
        self._channels.append(guestlog.Channel(other, identifier, int(priority)))

    def do_probes(self) -> None:
        """Some of the pod's probes and hooks are commands."""
        self._has_probes = True

    def do_exec(self, *argv: str) -> None:
        """Makes the pod's root the root, and becomes its PID 1."""
        root = f"{self._directory}/root"
        notify = self._furnish(root)
        if self._has_probes:
            self._fork_probes(root, notify)
        if os.fork() == 0:
            _outlive_apps()
            for stream in self._streams:
                os.close(stream)
            guestlog.main(self._channels, notify, f"{self._directory}/status", self._began)
        if os.fork() == 0:
            _outlive_apps()
            self._close_own(notify)
            guestexec.main()
        clone = mounts.clone_tree(root, recursive=True)
        mounts.attach(clone, "/")
        os.fchdir(clone)
        os.chroot(".")
        os.chdir("/")
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
        os.environ.clear()
        os.environ.update(
            TERM="dumb",
            PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            SYSTEMD_UNIT_PATH="/etc/systemd/system",
            SYSTEMD_GENERATOR_PATH="/nonexistent",
            SYSTEMD_LOG_TARGET="kmsg",
            SYSTEMD_LOG_LEVEL="err",
            NOTIFY_SOCKET=NOTIFY_SOCKET,
        )
        super().do_exec(*argv)

    def _fork_probes(self, root: str, notify: _socket.socket) -> None:
        """Listens where the pod's prober and hooks expect it (stage1/nspawn.py has it from the host), out of the apps' sight."""
        from rktd_units.stage1 import guestprobes

        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        os.mkdir(f"{root}{EXEC_DIRECTORY}", 0o700)
        os.chdir(root)
        listener.bind(f"{EXEC_DIRECTORY[1:]}/socket")
        os.chdir("/")
        listener.listen(guestprobes.BACKLOG)
        if os.fork() == 0:
            _outlive_apps()
            self._close_own(notify)
            guestprobes.main(os.path.basename(self._directory), listener.detach())
        listener.close()

    def _close_own(self, notify: _socket.socket) -> None:
        """In a child that is to have nothing of the apps' streams."""
        for descriptor in (*self._streams, notify.fileno(), *(channel.socket.fileno() for channel in self._channels)):
            os.close(descriptor)

    def _furnish(self, root: str) -> _socket.socket:
        """/usr, the kernel's file systems, /run with what is ours in it; gives the socket that PID 1 notifies."""
        usr = mounts.clone_tree("/usr")
        mounts.set_attributes(usr, mounts.ATTR_RDONLY)
        for kind, path in (("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev"), ("tmpfs", "run")):
            attributes = mounts.ATTR_NOSUID | (0 if path == "dev" else mounts.ATTR_NODEV)
            options = (("mode", "0755"),) if kind == "tmpfs" else ()
            _attach(mounts.new_mount(kind, options, attributes), f"{root}/{path}")
        _attach(usr, f"{root}/usr")
        os.makedirs(f"{root}/dev/mqueue", exist_ok=True)
        _attach(mounts.new_mount("mqueue", ()), f"{root}/dev/mqueue")
        os.mkdir(f"{root}{STATUS_DIRECTORY}", 0o755)
        _attach(mounts.clone_tree(f"{self._directory}/status"), f"{root}{STATUS_DIRECTORY}")
        notify = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        notify.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        os.chdir(root)  # the whole path may be longer than sun_path
        notify.bind(NOTIFY_SOCKET[1:])
        os.chdir("/")
        return notify

    def _root(self, root: str) -> Inside:
        return Inside(root, 0, label=f"app {os.path.basename(os.path.dirname(root))}: ")


def _attach(mount: int, target: str) -> None:
    mounts.attach(mount, target)
    os.close(mount)


def _outlive_apps() -> None:
    """Who takes all memory must not take those who tell of it: without them nobody knows how the apps ended."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-1000")


def _seed_kernel() -> None:
    """A virtual machine has next to no randomness of its own; what the host gave counts as such (random(4), RNDADDENTROPY)."""
    with open(SEED, "rb") as file:
        seed = file.read()
    os.unlink(SEED)
    with open("/dev/urandom", "rb") as device:
        fcntl.ioctl(device, _RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)


def main() -> None:
    """/init of the guest. Does not return: the host is told why not, and ends the guest."""
    for kind, path in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        _attach(mounts.new_mount(kind, (), mounts.ATTR_NOSUID), path)
    try:
        _seed_kernel()
        with open(PLAN, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            name, *steps = parse_plan(file.read())
        os.makedirs(f"{Layout().pod(name[1])}/io", exist_ok=True)
        Guest(Layout().pod(name[1])).run(steps)
    except (OSError, ValueError) as error:
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) else str(error)
        guestlog.tell_failure(f"{place}{reason}")
    time.sleep(_FAILED_SECONDS)
    sys.exit(1)

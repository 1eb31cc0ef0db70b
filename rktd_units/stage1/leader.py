# SPDX-License-Identifier: Apache-2.0
"""Says which process is the systemd of a pod with hostPID: to the rest of ours by a file, to machined by a call.

nspawn registers no machine that has no process name space. A fork of `launch` waits for that process beside nspawn, and is through before
the pod's apps start.
"""

import errno
import os
import signal
import time

from rktd_units import tasks
from rktd_units.cgroups import cgroup_root, read_quietly
from rktd_units.paths import Layout
from rktd_units.runfiles import write_text

_PAUSE = 0.002
_BUSCTL = "/usr/bin/busctl"
_CALL = ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager", "RegisterMachine", "sayssus")


def announce_leader(name: str, root: str, machine_id: str) -> None:
    """Returns at once; the child ends by itself, or with nspawn, which the caller becomes, and which waits for it. Raises OSError."""
    nspawn = os.getpid()
    group = cgroup_root() + next(line[3:] for line in read_quietly("/proc/self/cgroup").splitlines() if line.startswith("0::"))
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready_write)
            tasks.die_with_parent(signal.SIGKILL)
            os.read(ready_read, 1)  # in its place, or without a parent
            _announce(name, root, machine_id, find_leader(f"{group}/payload/init.scope", nspawn))
        finally:
            os._exit(1)
    # Where nspawn will be: none may stay in the unit's own cgroup, or that hands down no controllers.
    os.makedirs(f"{group}/supervisor", exist_ok=True)
    with open(f"{group}/supervisor/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(child))
    os.close(ready_read)
    os.close(ready_write)


def find_leader(group: str, nspawn: int) -> int:
    """Waits for the child of nspawn in the cgroup of that directory, which is the pod's systemd's own."""
    while os.getppid() == nspawn:
        for pid in read_quietly(f"{group}/cgroup.procs").split():
            if f"\nPPid:\t{nspawn}\n" in read_quietly(f"/proc/{pid}/status"):
                return int(pid)
        time.sleep(_PAUSE)
    raise ProcessLookupError(errno.ESRCH, "nspawn has ended")


def _announce(name: str, root: str, machine_id: str, leader: int) -> None:
    """Becomes busctl(1), which says by itself what fails."""
    write_text(f"{Layout().pod(name)}/leader", str(leader))
    identity = [str(byte) for byte in bytes.fromhex(machine_id)]
    body = (name, "16", *identity, "systemd-nspawn", "container", str(leader), root)
    os.execv(_BUSCTL, (_BUSCTL, "--quiet", "call", *_CALL, *body))

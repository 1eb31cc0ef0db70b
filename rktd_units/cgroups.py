# SPDX-License-Identifier: Apache-2.0
"""Where the processes of pods and apps are: cgroups, and pids as the host and as the pod count them. Pseudo files, read only."""

import os
from contextlib import suppress


def read_quietly(path: str) -> str:
    """A file of a pseudo file system; "" where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def cgroup_root() -> str:
    """Where the unified hierarchy is mounted."""
    return "/sys/fs/cgroup" if os.path.exists("/sys/fs/cgroup/cgroup.procs") else "/sys/fs/cgroup/unified"


def pod_cgroup(pod: str) -> str:
    """The directory of the cgroup of a pod that nspawn runs, by its PID 1; raises ProcessLookupError when there is none."""
    leader = leader_of(pod)
    lines = read_quietly(f"/proc/{leader}/cgroup").splitlines() if leader else []
    for line in lines:
        path, is_pods, _ = line.partition("/payload/")
        if line.startswith("0::") and is_pods and path.endswith(f"/pod@{pod}.service"):
            return cgroup_root() + path.removeprefix("0::")
    raise ProcessLookupError(3, "the pod has ended")


def app_cgroup(pod_cgroup: str, app: str) -> str:
    """The directory of an app's cgroup, below that of its pod. PID 1 escapes names such as `cpu`, which files of the kernel could have."""
    escaped = f"{pod_cgroup}/payload/system.slice/_{app}.service"
    return escaped if os.path.isdir(escaped) else f"{pod_cgroup}/payload/system.slice/{app}.service"


def list_pids(directory: str) -> list[int]:
    """The host pids of the processes in a cgroup and below it, sorted. A privileged app makes what groups it likes, however deep."""
    found: set[int] = set()
    waiting = [directory]
    while waiting:
        group = waiting.pop()
        found |= {int(word) for word in read_quietly(f"{group}/cgroup.procs").split()}
        with suppress(OSError), os.scandir(group) as entries:
            waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(found - {0})


def find_host_pid(directory: str, inner: int) -> int | None:
    """The host pid of the process in that cgroup whose pid in the pod is `inner` (proc_pid_status(5), NSpid)."""
    if not inner:
        return None
    for pid in list_pids(directory):
        line = next((x for x in read_quietly(f"/proc/{pid}/status").splitlines() if x.startswith("NSpid:")), "")
        numbers = line.split()[1:]
        if (numbers[1:2] or numbers[:1]) == [str(inner)]:
            return pid
    return None


def leader_of(pod: str) -> int:
    """The host pid of a pod's PID 1, as machined knows it, or stage1/leader.py; 0 for none."""
    for line in read_quietly(f"/run/systemd/machines/{pod}").splitlines():
        if line.startswith("LEADER=") and line[7:].isdigit():
            return int(line[7:])
    return int(read_quietly(f"/run/rktd/pods/{pod}/leader") or 0)

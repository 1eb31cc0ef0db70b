# SPDX-License-Identifier: Apache-2.0
"""What an app may do: capabilities, system calls, masked paths, as lines of its unit. Pure; the defaults of container tools.

Sources: the default capabilities and masked paths of containerd and podman (containers/common), which are Docker's; system calls by
systemd's own groups (systemd.exec(5), SYSTEM CALL FILTERING), closed further where Docker's profile is (key rings, name spaces, bpf ...).
"""

from typing import NamedTuple

DEFAULT_CAPABILITIES = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
]
ALL_CAPABILITIES = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
]

_MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/dev/block",
]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys"]
_CALLS = "@system-service @pkey ptrace process_vm_readv process_vm_writev kcmp"
_CALLS_DENIED = (
    "@keyring @mount add_key bpf fanotify_init io_uring_enter io_uring_register io_uring_setup keyctl open_by_handle_at "
    "perf_event_open quotactl quotactl_fd request_key setns unshare userfaultfd vhangup"
)
_CALLS_OUTSIDE = "@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap"  # what @system-service leaves out
CALL_OF_SYSTEMD = "write"  # between its filter and the app's execve(2) it tells PID 1 that it got there
_CALLS_BY_CAPABILITY = {
    "SYS_ADMIN": "@mount bpf fanotify_init perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog unshare",
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "@module",
    "SYS_PACCT": "acct",
    "SYS_TIME": "@clock",
    "SYS_TTY_CONFIG": "vhangup",
    "SYSLOG": "syslog",
    "DAC_READ_SEARCH": "open_by_handle_at",
    "BPF": "bpf",
    "PERFMON": "perf_event_open",
}


class Confinement(NamedTuple):
    """`capabilities`: the bounding set, sorted, without CAP_. `calls` closes the default filter further; it opens nothing."""

    capabilities: tuple[str, ...]
    no_new_privileges: bool = True
    seccomp: bool = True
    masked: bool = True
    privileged: bool = False
    apparmor: str = ""  # the name of a profile
    profile: tuple[tuple[str, str], ...] | None = None  # lines in the place of the default filter
    calls: tuple[str, tuple[str, ...], str] | None = None  # of an image: "remove" or "retain", names and groups, errno ("": SIGSYS)

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Key and value pairs of [Service]."""
        lines: list[tuple[str, str]] = []
        if not self.privileged:
            lines.append(("CapabilityBoundingSet", " ".join(f"CAP_{c}" for c in self.capabilities)))
        if self.apparmor:
            lines.append(("AppArmorProfile", self.apparmor))
        if self.no_new_privileges:
            lines.append(("NoNewPrivileges", "yes"))
        if self.profile is not None:
            lines += self.profile
        elif self.seccomp:
            lines += self._system_calls()
        # `+`: inside the app's root; without it these are paths of the pod's own root, and the app has them all (systemd.exec(5)).
        if self.masked:
            lines.append(("InaccessiblePaths", " ".join(f"-+{p}" for p in _MASKED)))
            lines.append(("ReadOnlyPaths", " ".join(f"-+{p}" for p in _READ_ONLY)))
        # All other of /dev is the app's own, and stage1's to make; message queues belong to the IPC name space, which is the pod's.
        lines.append(("BindPaths", "-/dev/mqueue:/dev/mqueue"))
        lines.append(("ProtectControlGroups", "private" if self.privileged else "strict"))
        return tuple(lines)

    def _system_calls(self) -> list[tuple[str, str]]:
        extra = " ".join(_CALLS_BY_CAPABILITY[c] for c in self.capabilities if c in _CALLS_BY_CAPABILITY)
        mode, calls, error = self.calls or ("", (), "EPERM")
        if mode == "retain":
            lines = [("SystemCallFilter", " ".join((*calls, CALL_OF_SYSTEMD)))]
            lines.append(("SystemCallFilter", f"~{_CALLS_DENIED} {_CALLS_OUTSIDE}"))
            extra = " ".join(call for call in extra.split() if call in calls)
        else:
            lines = [("SystemCallFilter", _CALLS), ("SystemCallFilter", f"~{_CALLS_DENIED}")]
        if extra:
            lines.append(("SystemCallFilter", extra))
        if mode == "remove":
            lines.append(("SystemCallFilter", f"~{' '.join(calls)}"))
        lines.append(("SystemCallErrorNumber", error or "kill"))
        # 32-bit programs run; x32, which nobody has, is out: systemd compiles every filter once for each architecture.
        lines.append(("SystemCallArchitectures", "native x86 arm"))
        if "SYS_ADMIN" not in self.capabilities:
            lines.append(("RestrictNamespaces", "yes"))
        return lines


def bounding_set(add: tuple[str, ...], drop: tuple[str, ...]) -> tuple[str, ...]:
    """Kubernetes' rule: drop first, then add, either may hold ALL; an addition wins over `drop: [ALL]`."""
    start = () if "ALL" in drop else DEFAULT_CAPABILITIES
    kept = set(ALL_CAPABILITIES) if "ALL" in add else {c for c in start if c not in drop} | set(add)
    if "ALL" in add:
        kept -= set(drop)
    return tuple(sorted(kept))

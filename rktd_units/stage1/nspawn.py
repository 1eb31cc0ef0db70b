# SPDX-License-Identifier: Apache-2.0
"""Stage1 `nspawn`: the pod as a systemd-nspawn container of the host's own /usr. Renders its plan and tree; pure.

Why nspawn makes the user and network name spaces but none of the apps' mounts: DESIGN section 5.
"""

from typing import NamedTuple

from rktd_units.paths import EXEC_DIRECTORY
from rktd_units.stage2 import STATUS_DIRECTORY

NSPAWN = "/usr/bin/systemd-nspawn"
ID_COUNT = 65536
INTERFACE = "eth0"  # in the pod
# Kept by nspawn for every container (systemd-nspawn(1), --capability=); others that an app adds must be asked for.
_NSPAWN_CAPABILITIES = frozenset(
    [
        "AUDIT_CONTROL",
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "IPC_OWNER",
        "KILL",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_CHROOT",
        "SYS_NICE",
        "SYS_PTRACE",
        "SYS_RESOURCE",
        "SYS_TTY_CONFIG",
    ]
)
# Links and directories of the stage1 root; /usr is the host's.
ROOT_LINKS = (("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("var/run", "/run"))
ROOT_DIRECTORIES = ("usr", "run", "tmp", "proc", "sys", "dev", "var", "apps", "etc", "etc/dbus-1/system.d", "etc/systemd/system")


# Of our own helpers only errors count, and those are told by other ways: without the second each would open a stream to journald.
_PID1_OPTIONS = ("systemd.show_status=false", "systemd.default_standard_output=null")
# A user manager as the pod's systemd: without a process name space it is nobody's PID 1.
_USER_ENVIRONMENT = (
    ("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/systemd/private"),  # its own: it would say that there is none
    ("SYSTEMD_ENVIRONMENT_GENERATOR_PATH", "/nonexistent"),
    ("SYSTEMD_IGNORE_CHROOT", "1"),  # for systemctl, since the root of PID 1 is another one
    ("XDG_RUNTIME_DIR", "/run"),  # so that its sockets are where those of a system manager are
)
_USER_MANAGER = (
    *("/usr/bin/env", "--block-signal=TERM"),
    *("/bin/sh", "-c", 'umask 0; exec "$0" "$@"'),  # as that of PID 1, by which all users may send to its notification socket
    *("/usr/lib/systemd/systemd", "--user", "--show-status=no", "--default-standard-output=null"),
)


class Settings(NamedTuple):
    """Everything nspawn is told about a pod. `id_base` is a host id, or None for no user name space."""

    name: str
    hostname: str
    root: str
    status: str
    id_base: int | None
    host_network: bool
    interface: str  # of the host, which becomes the pod's eth0; "" for none
    capabilities: tuple[str, ...]  # the union over all apps
    privileged: bool
    host_ipc: bool = False
    host_pid: bool = False
    apparmor: bool = False  # an app has a profile
    labels: tuple[str, str] | None = None  # of SELinux: of the processes and of the files
    huge_pages: bool = False  # an app has limits of them
    machine_id: str = ""
    exec_directory: str = ""  # where the host listens for the pod's prober


def render_steps(settings: Settings) -> tuple[tuple[str, ...], ...]:
    """The last of the plan. A pod that may no more than any has the filter of calls.py; nspawn's depend on capabilities."""
    is_plain = settings.id_base is not None and not settings.privileged and not _more_capabilities(settings)
    filters = ((("filter", "hugepages") if settings.huge_pages else ("filter",)),) if is_plain else ()
    own = (("leader", settings.name, settings.root, settings.machine_id), ("sameusers",)) if settings.host_pid else ()
    return (*filters, *own, ("exec", *render_argv(settings)))


def _more_capabilities(settings: Settings) -> list[str]:
    return [c for c in settings.capabilities if c not in _NSPAWN_CAPABILITIES]


def render_argv(settings: Settings) -> tuple[str, ...]:
    """The command line of systemd-nspawn."""
    # It has no option for that, only variables (systemd's ENVIRONMENT.md).
    kinds = (("IPC", settings.host_ipc), ("PID", settings.host_pid))
    shared = [f"SYSTEMD_NSPAWN_SHARE_NS_{kind}=1" for kind, is_shared in kinds if is_shared]
    argv = ["/usr/bin/env", *shared] if shared else []
    argv += [NSPAWN, "--quiet", f"--directory={settings.root}", "--keep-unit", f"--machine={settings.name}"]
    argv += [
        f"--hostname={settings.hostname}",
        f"--kill-signal={'SIGTERM' if settings.host_pid else 'SIGRTMIN+3'}",
        "--notify-ready=yes",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
    ]
    argv += ["--bind-ro=/usr", *(f"--bind=/run/systemd/journal/{name}" for name in ("stdout", "socket", "dev-log"))]
    if settings.apparmor:  # where PID 1 looks whether there is any; without it AppArmorProfile= does nothing, in silence
        argv.append("--bind-ro=/sys/module/apparmor/parameters")
    if settings.labels:
        argv += [f"--selinux-context={settings.labels[0]}", f"--selinux-apifs-context={settings.labels[1]}"]
    argv.append(f"--bind={settings.status}:{STATUS_DIRECTORY}")
    if settings.exec_directory:
        argv.append(f"--bind-ro={settings.exec_directory}:{EXEC_DIRECTORY}")
    if settings.id_base is None:
        argv.append("--private-users=no")
    else:
        argv += [f"--private-users={settings.id_base}:{ID_COUNT}", "--private-users-ownership=off"]
    if settings.interface:
        argv.append(f"--network-interface={settings.interface}:{INTERFACE}")
    elif not settings.host_network:
        argv.append("--private-network")
    extra = _more_capabilities(settings)
    if settings.privileged:
        argv.append("--capability=all")
    elif extra:
        argv.append("--capability=" + ",".join(f"CAP_{c}" for c in extra))
    # Only our units: PID 1 is up in a third of the time (DESIGN section 5).
    argv += ["--setenv=SYSTEMD_UNIT_PATH=/etc/systemd/system", "--setenv=SYSTEMD_GENERATOR_PATH=/nonexistent"]
    argv += ["--setenv=SYSTEMD_LOG_TARGET=console", "--setenv=SYSTEMD_LOG_LEVEL=err"]
    if settings.host_pid:
        return (
            *argv,
            *(f"--setenv={name}={value}" for name, value in _USER_ENVIRONMENT),
            "--tmpfs=/run/systemd/system",
            "--",
            *_USER_MANAGER,
        )
    # Not --boot: a signal that PID 1 neither blocks nor handles yet is lost. The halt is blocked, so that it waits until PID 1 listens.
    return (*argv, "--", "/usr/bin/env", "--block-signal=RTMIN+3", "/usr/lib/systemd/systemd", *_PID1_OPTIONS)

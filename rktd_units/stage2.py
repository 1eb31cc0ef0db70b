# SPDX-License-Identifier: Apache-2.0
"""The units of the systemd inside a pod: one service per app, and the few targets that make a pod start, end and stop.

Pure, and the same text for every stage1 but for where standard output goes. How the units work together: docs/lifecycle.md.
Unit names of ours that no app can have start with a capital letter (app names are lower case): `Ready.target`, `Exit.service`.
"""

import signal
from typing import NamedTuple

from rktd_units import names
from rktd_units.confine import Confinement
from rktd_units.errors import RktdError
from rktd_units.podfile.model import Probe, Resources
from rktd_units.podsockets import Listener, app_units, pod_units, proxied_ports, sockets_unit
from rktd_units.stage1.plan import render_plan
from rktd_units.translate import cpu_weight, render_cpu_quota
from rktd_units.unitfile import UnitFile, escape_specifiers, quote_command, quote_script, quote_word

_NOT_DEADLY = frozenset(  # what these do at their default disposition is not to end a process (signal(7))
    int(s)
    for s in (
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    )
)
ENVIRONMENT_DIRECTORY = "/environment"  # inside the pod: the files of `render_environment_file`, one per app that has secrets
DEADLINE_STATUS = 124  # as timeout(1) has it
PROBES_FILE = "/etc/rktd-probes"  # inside the pod: `render_probes`
HOOKS_FILE = "/etc/rktd-hooks"  # inside the pod: `render_hooks`
POD_STREAM = "Pod-out"  # what the pod itself says of its apps
NETWORK_BATCH = "/etc/network.batch"  # for `ip`
STATUS_DIRECTORY = "/run/rktd-status"  # inside the pod: one file per app that has ended
# systemd.exec(5), "Environment variables set or propagated by the service manager"
_SET_BY_SYSTEMD = [
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LOGNAME",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "SHELL",
    "SYSTEMD_EXEC_PID",
    "USER",
    "HOME",
    "LANG",
]
# A user manager hands down its own variables: what nspawn gives it (nspawn.c, inner_child), stage1 (nspawn.py), and the shell there.
_SET_BY_NSPAWN = [
    "OLDPWD",
    "PWD",
    "SHLVL",
    "TERM",
    "XDG_RUNTIME_DIR",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "container",
    "container_host_build_id",
    "container_host_id",
    "container_host_variant_id",
    "container_host_version_id",
    "container_uuid",
    "SYSTEMD_ENVIRONMENT_GENERATOR_PATH",
    "SYSTEMD_GENERATOR_PATH",
    "SYSTEMD_IGNORE_CHROOT",
    "SYSTEMD_LOG_LEVEL",
    "SYSTEMD_LOG_TARGET",
    "SYSTEMD_UNIT_PATH",
]


class Handler(NamedTuple):
    """A command that runs before or after each run of an app, in its root and with its confinement. Ids as in the container."""

    program: str
    argv: tuple[str, ...]
    uid: int
    gid: int


class Check(NamedTuple):
    """A probe; `program` is an absolute path inside the app's root for one that runs a command."""

    probe: Probe
    program: str = ""


class App(NamedTuple):
    """One container, everything resolved against its image: ids as in the container, `program` an absolute path inside its root."""

    name: str
    program: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]  # but for `secret_env`
    working_dir: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    stop_signal: str
    confinement: Confinement
    resources: Resources = Resources()
    cpus: str = ""  # AllowedCPUs=
    journal_socket: bool = False
    log_pipe: bool = False
    secret_env: tuple[tuple[str, str], ...] = ()  # never in a unit: see `render_environment_file`
    has_secrets: bool = False  # as variables or files
    role: str = "app"  # or "init", "sidecar": podfile.model.Container
    notify: str | None = None  # says READY=1 itself; its WatchdogSec=, or ""
    proc_files: tuple[str, ...] = ()  # paths in /proc that have a volume's file over them
    oom_score_adjust: int | None = None
    pre_start: Handler | None = None
    post_stop: Handler | None = None
    checks: tuple[Check, ...] = ()
    hooks: tuple[Check, ...] = ()
    listeners: tuple[Listener, ...] = ()

    @property
    def sockets(self) -> tuple[Listener, ...]:
        """Those that the app gets, in the order of their descriptors."""
        return tuple(listener for listener in self.listeners if not listener.proxy)

    @property
    def proxied(self) -> tuple[int, ...]:
        """The ports to which a proxy leads."""
        return proxied_ports(self.listeners)


class PodSettings(NamedTuple):
    """What the units need to know of the pod as a whole."""

    name: str
    restart_policy: str
    grace_seconds: int
    share_process_namespace: bool
    stream_directory: str  # where stage1 names its journal streams; see `stream_path`
    has_network: bool = False  # NETWORK_BATCH sets it up before any app starts
    sysctls: tuple[tuple[str, str], ...] = ()  # of the network and IPC name spaces
    enters: bool = False  # exec probes and hooks are run by who enters the app (execprobes.py); else units of the pod do
    idle_stop: str = ""  # the pod ends when no proxy had a connection for so long
    deadline_seconds: int | None = None  # from the start of its PID 1
    is_user: bool = False  # its systemd is a user manager, and not PID 1; then the process name space is shared


def stream_path(directory: str, index: int, stream: str) -> str:
    """The socket name of app number `index`'s `stream` ("out" or "err"): short, since sun_path holds 107 bytes."""
    return f"{directory}/{index}{stream}"


def over_directory(app: str) -> str:
    """In the pod: where stage1 mounts the volumes that go over files of the app's /proc."""
    return f"/apps/{app}/over"


def render_units(pod: PodSettings, apps: tuple[App, ...]) -> tuple[tuple[str, str], ...]:
    """(file name, text) of every unit of ours in the pod, sorted by name. Raises RktdError for what no unit can say."""
    units = {
        "Ready.target": _ready_target(pod, apps),
        "Executed.service": _executed_service(apps),
        "Running.target": _running_target(),
        "Success@.service": _result_service(),
        "Failure@.service": _result_service(),
        "Calm@.service": _calm_service(),
        "Calm@.timer": _calm_timer(),
        "Sink@.service": _sink_service(),
        "Abort.service": _exit_service(apps, abort=True),
        "Exit.service": _exit_service(apps),
        "Exit.timer": _exit_timer(),
    }
    if pod.has_network or pod.sysctls:
        units["Network.service"] = _network_service(pod)
    units[f"{POD_STREAM}.socket"] = _stream_socket(stream_path(pod.stream_directory, len(apps), "out"), POD_STREAM, lasting=True)
    if has_probes(apps):
        units["Probes.service"] = _probes_service()
        units["Held.service"] = _held_service()
    if any(app.proxied for app in apps):
        units |= pod_units(pod.idle_stop)
    if pod.deadline_seconds is not None:
        units |= {"Deadline.timer": _deadline_timer(pod.deadline_seconds), "Deadline.service": _deadline_service(pod.deadline_seconds)}
    for index, app in enumerate(apps):
        units |= app_units(app.name, app.listeners, pod.idle_stop)
        units |= _own_units(pod, app, apps[:index])
    if pod.is_user:  # whose services would inherit its umask, and its keys
        for name in units:
            if name.endswith(".service"):
                units[name].add_all("Service", (("UMask", "0022"), ("KeyringMode", "private")))
    return tuple((name, units[name].render()) for name in sorted(units))


def _own_units(pod: PodSettings, app: App, earlier: tuple[App, ...]) -> dict[str, UnitFile]:
    """The units of one app."""
    units = {names.app_unit(app.name): _app_service(pod, app, earlier), f"Stop-{app.name}.service": _stop_service(pod, app)}
    if app.pre_start:
        units[f"Pre-{app.name}.service"] = _pre_service(pod, app, app.pre_start)
    if app.post_stop:
        units[f"Post-{app.name}.service"] = _post_service(pod, app, app.post_stop)
    if app.role == "init":
        units[f"Arm-{app.name}.service"] = _arm_service(app)
    units |= _occasional_units(pod, app)
    for stream in ("out", "err"):
        if app.log_pipe:
            units[_pipe_unit(app, stream)] = _pipe_service(pod, app, stream)
        path = stream_path(pod.stream_directory, len(earlier), stream)
        units[f"{app.name}-{stream}.socket"] = _stream_socket(path, f"{app.name}-{stream}", lasting=app.post_stop is not None)
    return units


def _occasional_units(pod: PodSettings, app: App) -> dict[str, UnitFile]:
    """Of its hooks and probes."""
    units = {}
    for hook in app.hooks:
        units[_runner_unit(app, hook.probe.kind)] = _runner_service(pod, app, hook.probe.kind)
        if hook.program and not pod.enters:
            units[_hook_unit(app, hook)] = _hook_service(pod, app, hook)
    if app.role == "sidecar" and _has_startup(app):
        units[f"Started-{app.name}.service"] = _started_service(app)
    for check in app.checks:
        if check.program and not pod.enters:
            units[_check_unit(app, check)] = _check_service(pod, app, check)
    return units


def _ready_target(pod: PodSettings, apps: tuple[App, ...]) -> UnitFile:
    """The pod's default target: reached when every app was executed. If one could not be, Abort.service ends the pod.

    StopWhenUnneeded=: once reached it is over. An app's automatic restart restarts what requires it (systemd 257, service_enter_restart),
    and with an active target all apps that had ended for good.
    """
    unit = UnitFile()
    probes = ("Probes.service",) if has_probes(apps) else ()
    services = " ".join((*(names.app_unit(app.name) for app in apps), "Executed.service", *probes))
    unit.add_all("Unit", (("Description", "All apps run"), ("DefaultDependencies", "no"), ("Requires", services), ("After", services)))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("OnFailure", "Abort.service")))
    unit.add("Unit", "StopWhenUnneeded", "yes")
    if any(app.proxied for app in apps):
        unit.add("Unit", "Wants", " ".join(name for name in pod_units(pod.idle_stop) if name in ("Open.service", "Idle.timer")))
    return unit


def _executed_service(apps: tuple[App, ...]) -> UnitFile:
    """Waits until each app's process has become the app's program; fails if one could not.

    What Type=exec is for, but that loses exit statuses together with PrivatePIDs=: PID 1 mostly takes the main process for nobody's child,
    and when it handles the exec after the process is through, it ends the unit as a success (systemd 257: service_dispatch_exec_io,
    main_pid_good). An app that is through already has a file in STATUS_DIRECTORY; systemd.exec(5) has the statuses from 200 on.
    PID 1 puts `_` before a cgroup's name that looks like one of the kernel's own files, such as that of an app `cpu`.
    bash, since it can wait without a process: a read, for so long, of a pipe that nobody writes to. sleep(1) cost a pod that was started
    together with many others 45 ms of CPU time.
    """
    running = " ".join(app.name for app in apps if app.role != "init")
    script = (
        f"cd /sys/fs/cgroup/system.slice || exit 0; exec {{t}}<> <(:); for a in {running}; do u=$a.service; while :; do "
        "d=$u; [ -d _$u ] && d=_$u; p=0; read -r p <$d/cgroup.procs; "
        "[ $p = 0 ] || [ /proc/$p/exe -ef EXECUTOR ] || { [ -e /proc/$p/exe ] && break; }; "
        f"if [ -e {STATUS_DIRECTORY}/$a ]; then read -r h s r <{STATUS_DIRECTORY}/$a; "
        'case "$h $s $r" in "exited "2[0-4][0-9]" exit-code") exit 1;; esac; break; fi; read -rt 0.005 -u $t; done; done 2>/dev/null'
    ).replace("EXECUTOR", "/usr/lib/systemd/systemd-executor")
    unit = UnitFile()
    services = " ".join(names.app_unit(app.name) for app in apps)
    unit.add_all("Unit", (("Description", "All apps were executed"), ("DefaultDependencies", "no"), ("After", services)))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("Environment", "SYSTEMD_LOG_TARGET=null")))
    unit.add("Service", "ExecStart", f":/bin/bash -c {quote_script(script)}")
    return unit


def _running_target() -> UnitFile:
    """Active while any app is, by StopWhenUnneeded=; its end is the pod's end."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Some app runs"), ("DefaultDependencies", "no"), ("StopWhenUnneeded", "yes")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("OnSuccess", "Exit.timer")))
    return unit


def _sink_service() -> UnitFile:
    """What a stream's socket activates: nothing, and for good. Else the stream, readable as journald never writes, starts its app anew."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Nothing for %i"), ("DefaultDependencies", "no")))
    unit.add_all("Service", (("Type", "oneshot"), ("RemainAfterExit", "yes"), ("Slice", "-.slice"), ("ExecStop", "/bin/true")))
    return unit


def _network_service(pod: PodSettings) -> UnitFile:
    """Sysctls, addresses and routes, which only a process in the pod's network name space can set."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Network"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Service", (("StandardOutput", f"fd:{POD_STREAM}"), ("Sockets", f"{POD_STREAM}.socket")))
    unit.add_all("Service", (("Type", "oneshot"), ("RemainAfterExit", "yes"), ("Slice", "-.slice")))
    for name, value in pod.sysctls:  # names of a list of ours, values of digits and what is between them
        path = f"/proc/sys/{name.replace('.', '/')}"
        script = f"echo '{value}' >{path} || {{ echo cannot set {name}; exit 1; }}"
        if not name.startswith("net."):  # nspawn leaves only those writable
            script = f'[ -w {path} ] || exec unshare -m sh -c "mount -o remount,bind,rw /proc/sys && {script}"; {script}'
        unit.add("Service", "ExecStart", f":/bin/sh -c {quote_script(script)}")
    if pod.has_network:
        unit.add("Service", "ExecStart", f"/usr/sbin/ip -batch {NETWORK_BATCH}")
    return unit


def _add_network(unit: UnitFile, pod: PodSettings) -> None:
    if pod.has_network or pod.sysctls:
        unit.add_all("Unit", (("Requires", "Network.service"), ("After", "Network.service")))


def _exit_service(apps: tuple[App, ...], *, abort: bool = False) -> UnitFile:
    """Ends the pod with the exit status of the first app, in the file's order, that failed: 128+N for signal N (docs/lifecycle.md).

    An abort's own job lasts until that of exit.target is there, so that PID 1 never finds its queue empty, and says READY=1, in between.
    An ordinary end waits for just that: apps may be through before PID 1 has said READY=1, which it never does while there is a job.
    """
    numbers = "".join(f"{s.name[3:]}) s={128 + s};; " for s in signal.Signals if not s.name.startswith("SIGRT"))
    script = (
        f'case "$(systemctl is-system-running 2>/dev/null)" in WAIT) exit 0;; esac; cd {STATUS_DIRECTORY} || exit 1; e=0; '
        f"for a in {' '.join(app.name for app in apps if app.role != 'sidecar')}; do [ -e $a ] || continue; read -r how s result <$a; "
        f'[ "$result" = success ] && continue; case $s in {numbers}esac; '
        'case $s in 0|"") s=1;; *[!0-9]*) s=255;; esac; e=$s; break; done; exec systemctl --no-block exit $e'
    )
    script = script.replace("WAIT", '""|stopping' if abort else '""|stopping|starting|initializing', 1)
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "End of the pod"), ("DefaultDependencies", "no"), ("StartLimitIntervalSec", "0")))
    results = " ".join(f"{kind}@{app.name}.service" for app in apps for kind in ("Success", "Failure"))
    unit.add("Unit", "After", results)
    unit.add("Service", "Environment", "SYSTEMD_LOG_TARGET=null")
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("ExecStart", f":/bin/sh -c {quote_script(script)}")))
    return unit


def _exit_timer() -> UnitFile:
    """Starts Exit.service again until PID 1 is done with starting; see there. Not during a stop: PID 1 would leave one in the middle."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "End of the pod"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Timer", (("OnActiveSec", "1ms"), ("OnUnitInactiveSec", "10ms"), ("AccuracySec", "1us"), ("Unit", "Exit.service")))
    return unit


def _deadline_timer(seconds: int) -> UnitFile:
    """Wanted by -.mount, so it counts from the pod's start, whatever its apps wait for."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "activeDeadlineSeconds"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Timer", (("OnStartupSec", f"{seconds}s"), ("AccuracySec", "100ms")))
    return unit


def _deadline_service(seconds: int) -> UnitFile:
    """Ends the pod as a stop does, and as a failure."""
    script = f"echo the pod is ended: its activeDeadlineSeconds of {seconds} are over; exec systemctl --no-block exit {DEADLINE_STATUS}"
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "activeDeadlineSeconds are over"), ("DefaultDependencies", "no")))
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("ExecStart", f":/bin/sh -c {quote_script(script)}")))
    unit.add_all("Service", (("StandardOutput", f"fd:{POD_STREAM}"), ("Sockets", f"{POD_STREAM}.socket")))
    unit.add("Service", "Environment", "SYSTEMD_LOG_TARGET=null")
    return unit


def _stream_socket(path: str, name: str, *, lasting: bool) -> UnitFile:
    """Takes one of the journal streams that stage1 passes to the pod's PID 1, found by its socket name. `lasting`: while it stops, too."""
    unit = UnitFile()
    unit.add("Unit", "DefaultDependencies", "no")
    if not lasting:
        unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add("Socket", "ListenStream", path)
    unit.add("Socket", "FileDescriptorName", name)
    unit.add("Socket", "Service", f"Sink@{name}.service")
    return unit


def pipe_path(app: str, stream: str) -> str:
    """Inside the pod, out of the app's own sight: the named pipe that its `stream` is when it has `log_pipe`."""
    return f"/apps/{app}/{stream}"


def _pipe_unit(app: App, stream: str) -> str:
    return f"Pipe-{app.name}-{stream}.service"


def _pipe_service(pod: PodSettings, app: App, stream: str) -> UnitFile:
    """Reads an app's pipe into its journal stream until the last writer is gone; each start of the app, also an automatic one, starts it.

    A socket cannot be opened as /dev/stdout or /proc/self/fd/1 (ENXIO), a pipe can. The lines have this process' pid. At a stop it comes
    after the app: nobody writes any more, and SIGCONT lets it come to its end.
    """
    unit = UnitFile()
    unit.add_all("Unit", (("Description", f"Standard {stream} of app {app.name}"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("StartLimitIntervalSec", "0")))
    unit.add_all(
        "Service", (("Type", "simple"), ("Slice", "-.slice"), ("ExecStart", "/bin/cat"), ("Environment", "SYSTEMD_LOG_TARGET=null"))
    )
    unit.add_all("Service", (("StandardInput", f"file:{pipe_path(app.name, stream)}"), ("StandardOutput", f"fd:{app.name}-{stream}")))
    unit.add_all(
        "Service", (("StandardError", "null"), ("Sockets", f"{app.name}-{stream}.socket"), ("CapabilityBoundingSet", _untraceable(pod)))
    )
    unit.add_all("Service", (("NoNewPrivileges", "yes"), ("KillSignal", "SIGCONT"), ("TimeoutStopSec", "1s")))
    return unit


def _untraceable(pod: PodSettings) -> str:
    """The capabilities of a process that needs none, but is root before the eyes of apps: one without this cannot trace it (ptrace(2))."""
    return "CAP_SYS_PTRACE" if pod.share_process_namespace else ""


def _app_service(pod: PodSettings, app: App, earlier: tuple[App, ...]) -> UnitFile:
    unit = UnitFile()
    unit.add_all("Unit", (("Description", f"App {app.name} of pod {pod.name}"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    if app.role == "app":
        unit.add_all("Unit", (("Wants", f"Running.target Stop-{app.name}.service"), ("After", "Running.target")))
    else:
        unit.add("Unit", "Wants", f"Stop-{app.name}.service" if app.role == "sidecar" else f"Arm-{app.name}.service")
    if _has_hook(app, "postStart"):
        unit.add("Unit", "Wants", _runner_unit(app, "postStart"))
    _add_network(unit, pod)
    _add_earlier(unit, earlier)
    if app.pre_start:
        unit.add_all("Unit", (("Requires", f"Pre-{app.name}.service"), ("After", f"Pre-{app.name}.service")))
    if app.log_pipe:
        pipes = f"{_pipe_unit(app, 'out')} {_pipe_unit(app, 'err')}"
        unit.add_all("Unit", (("Wants", pipes), ("After", pipes)))
    post = f" Post-{app.name}.service" if app.post_stop else ""
    restart = "Always" if app.role == "sidecar" else pod.restart_policy
    calm = [f" Calm@{app.name}.timer" if restart in policies else "" for policies in (("Always",), ("Always", "OnFailure"))]
    unit.add("Unit", "OnSuccess", f"Success@{app.name}.service{post}{calm[0]}")
    unit.add("Unit", "OnFailure", f"Failure@{app.name}.service{post}{calm[1]}")
    unit.add("Unit", "StartLimitIntervalSec", 0)
    # Nice=0: the pod's PID 1 has a better one (pod@.service), for the window in which an app can end before PID 1 knows its pid.
    unit.add_all("Service", _start_type(app))
    unit.add_all("Service", (("Nice", 0), ("ExecStart", quote_command(app.program, app.argv))))
    if app.role == "init":  # the others' start jobs wait until it has succeeded
        unit.add_all("Service", (("RemainAfterExit", "yes"), *_restart("Never" if pod.restart_policy == "Never" else "OnFailure")))
        unit.add("Service", "RestartMode", "direct")
    else:
        unit.add_all("Service", _restart("Always" if app.role == "sidecar" else pod.restart_policy))
    # The signal and the grace period are those of Stop-APP.service, which comes first; here is only the end of both.
    unit.add_all("Service", (("KillMode", "control-group"), ("KillSignal", "SIGKILL")))
    _add_surroundings(unit, pod, app)
    return unit


def _add_earlier(unit: UnitFile, earlier: tuple[App, ...]) -> None:
    """Starts after the init containers and sidecars before it, and stops before those sidecars do."""
    waits = [app for app in earlier if app.role != "app"]
    if waits:
        unit.add("Unit", "After", " ".join(names.app_unit(app.name) for app in waits))
    for role, key in (("init", "Requires"), ("sidecar", "Wants")):
        if chosen := [names.app_unit(app.name) for app in waits if app.role == role]:
            unit.add("Unit", key, " ".join(chosen))
    if started := [f"Started-{app.name}.service" for app in waits if app.role == "sidecar" and _has_startup(app)]:
        unit.add_all("Unit", (("Requires", " ".join(started)), ("After", " ".join(started))))
    if hooks := [_runner_unit(app, "postStart") for app in earlier if _has_hook(app, "postStart")]:
        unit.add("Unit", "After", " ".join(hooks))
    if stops := [f"Stop-{app.name}.service" for app in waits if app.role == "sidecar"]:
        unit.add("Unit", "After", " ".join(stops))


def _start_type(app: App) -> tuple[tuple[str, str], ...]:
    """With Type=simple Executed.service looks whether it was executed."""
    if app.role == "init":
        return (("Type", "oneshot"),)
    if app.notify is None:
        return (("Type", "simple"),)
    # Not SIGABRT: PID 1 of a name space never feels its default disposition.
    watchdog = (("WatchdogSec", app.notify), ("WatchdogSignal", "SIGKILL")) if app.notify else ()
    return (("Type", "notify"), ("NotifyAccess", "all"), ("TimeoutStartSec", "infinity"), *watchdog)


def _add_surroundings(unit: UnitFile, pod: PodSettings, app: App, *, is_silent: bool = False) -> None:
    """What a process of the app sees and may do."""
    unit.add_all("Service", (("RootDirectory", f"/apps/{app.name}/rootfs"), ("MountAPIVFS", "yes")))
    for path in app.proc_files:  # /proc is there only once PID 1 has made it
        unit.add("Service", "BindPaths", f"{over_directory(app.name)}{path}:{path}")
    unit.add("Service", "BindLogSockets", "yes" if app.journal_socket else "no")
    if pod.is_user:
        unit.add("Service", "Slice", "system.slice")  # the default of others
    if not pod.share_process_namespace:
        unit.add("Service", "PrivatePIDs", "yes")
    unit.add("Service", "WorkingDirectory", _plain_path(app.working_dir, "working directory"))
    silent = tuple((f"Standard{stream}", "null") for stream in ("Input", "Output", "Error"))
    unit.add_all("Service", silent if is_silent else _streams(app))
    unit.add_all("Service", _identity(app))
    unit.add_all("Service", app.confinement.lines())
    unit.add_all("Service", _resources(app.resources))
    if app.cpus:
        unit.add("Service", "AllowedCPUs", app.cpus)
    if app.oom_score_adjust is not None:
        unit.add("Service", "OOMScoreAdjust", app.oom_score_adjust)
    unit.add_all("Service", _environment(app, is_user=pod.is_user))
    if app.sockets and not pod.share_process_namespace:  # systemd 257 has the pid outside of the name space there
        unit.add("Service", "Environment", "LISTEN_PID=1")
    if app.has_secrets:
        # Not 0: a core would still be piped to systemd-coredump, which logs the environment. 1 is the kernel's word for none (coredump.c).
        unit.add("Service", "LimitCORE", 1)


def _pre_service(pod: PodSettings, app: App, handler: Handler) -> UnitFile:
    """Runs to its end before each start of the app. Where apps are restarted so is it, which the app's own start job waits for."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", f"Before app {app.name} of pod {pod.name}"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("StartLimitIntervalSec", 0)))
    _add_network(unit, pod)
    unit.add_all("Service", (("Type", "oneshot"), ("Nice", 0), ("ExecStart", quote_command(handler.program, handler.argv))))
    if pod.restart_policy != "Never":
        unit.add_all("Service", (*_restart("OnFailure"), ("RestartMode", "direct")))
    _add_surroundings(unit, pod, app._replace(uid=handler.uid, gid=handler.gid, log_pipe=False, listeners=()))
    return unit


def _post_service(pod: PodSettings, app: App, handler: Handler) -> UnitFile:
    """Runs after each run of the app, before the next one, and before the end of the pod, which is when most of them run."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", f"After app {app.name} of pod {pod.name}"), ("DefaultDependencies", "no")))
    before = f"Pre-{app.name}.service" if app.pre_start else names.app_unit(app.name)
    unit.add_all("Unit", (("Before", f"{before} final.target Exit.service Abort.service"), ("StartLimitIntervalSec", 0)))
    unit.add_all("Service", (("Type", "oneshot"), ("Nice", 0), ("ExecStart", quote_command(handler.program, handler.argv))))
    unit.add_all("Service", (("Slice", "-.slice"), ("TimeoutStartSec", max(pod.grace_seconds, 1))))
    _add_surroundings(unit, pod, app._replace(uid=handler.uid, gid=handler.gid, log_pipe=False, listeners=()))
    return unit


def _stop_service(pod: PodSettings, app: App) -> UnitFile:
    """Stops before its app does: sends the stop signal to the main process and waits for its end, for the grace period at most.

    PID 1 itself would not wait: with PrivatePIDs= it mostly takes the main process for nobody's child and then kills at once (systemd 257,
    service_set_main_pidref and unit_kill_context). It cannot be an ExecStop= of the app, whose streams only ExecStart= gets.
    A signal at its default disposition, which PID 1 of a name space never feels, ends the app here as it would anywhere else. Programs that
    take signals as they come (init programs do) block them: signalfd(2), or sigtimedwait(2), system call 128 or 137, which shows no mask.
    """
    number = signal_number(app.stop_signal)
    script = f"exec 2>/dev/null; p=$(systemctl show -P MainPID {names.app_unit(app.name)}); [ ${{p:-0}} -gt 0 ] || exit 0; "
    if _has_hook(app, "preStop"):
        script += (
            f"systemctl start {_runner_unit(app, 'preStop')}; [ $(systemctl show -P MainPID {names.app_unit(app.name)}) = $p ] || exit 0; "
        )
    if _is_lost_on_first(pod, number):
        script += (
            "d=; while read -r k v; do case $k in SigCgt:|SigIgn:|SigBlk:) [ $((0x${v#????????} >> NUMBER & 1)) = 1 ] && d=n;; esac; done "
            "</proc/$p/status; read -r k v </proc/$p/syscall; case $k in 128|137) d=n;; esac; [ $d ] || kill -9 $p; "
        ).replace("NUMBER", str(number - 1))
    script += f"kill -{number} $p; "
    script += "while kill -0 $p; do sleep 0.01; done"
    unit = UnitFile()
    service = names.app_unit(app.name)
    unit.add_all("Unit", (("Description", f"Stop of app {app.name}"), ("DefaultDependencies", "no")))
    if app.role != "init":  # whose further tries would have it wait for their end
        unit.add("Unit", "PartOf", service)
    unit.add("Unit", "After", service)
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("StartLimitIntervalSec", "0")))
    unit.add_all("Service", (("Type", "oneshot"), ("RemainAfterExit", "yes"), ("Slice", "-.slice"), ("KillMode", "control-group")))
    unit.add_all("Service", (("Environment", "SYSTEMD_LOG_TARGET=null"), ("TimeoutStopSec", max(pod.grace_seconds, 1))))
    unit.add("Service", "ExecStop", f":/bin/sh -c {quote_script(script)}")
    return unit


def _arm_service(app: App) -> UnitFile:
    """Starts Stop-INIT.service, which must come after its app at a stop, before that is through: by a job that knows of no order."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", f"Stop of app {app.name} can come"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("StartLimitIntervalSec", "0")))
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("Environment", "SYSTEMD_LOG_TARGET=null")))
    command = f"/usr/bin/systemctl --no-block --job-mode=ignore-dependencies start Stop-{app.name}.service"
    unit.add("Service", "ExecStart", command)
    return unit


def has_probes(apps: tuple[App, ...]) -> bool:
    return any(app.checks for app in apps)


def render_probes(pod: PodSettings, apps: tuple[App, ...]) -> str:
    """The text of prober.CONFIG."""
    lines: list[tuple[str, ...]] = []
    for app in (app for app in apps if app.checks):
        restart = "Always" if app.role == "sidecar" else pod.restart_policy
        number, shared = signal_number(app.stop_signal), "yes" if pod.share_process_namespace else "no"
        deadly = "yes" if _is_lost_on_first(pod, number) else "no"
        hook = "yes" if _has_hook(app, "preStop") else "no"
        lines.append(("app", app.name, restart, str(number), deadly, str(max(pod.grace_seconds, 1)), shared, hook))
        for check in app.checks:
            probe = check.probe
            numbers = (probe.delay, probe.period, probe.timeout, probe.successes, probe.failures)
            grace = "-1" if probe.grace is None else str(probe.grace)
            target = _target(probe, _check_unit(app, check))
            how, target = ("enter", ()) if check.program and pod.enters else (probe.handler, target)
            lines.append(("probe", probe.kind, how, *map(str, numbers), grace, *target))
    return render_plan(tuple(lines))


def _target(probe: Probe, unit: str) -> tuple[str, ...]:
    """Whom a probe or hook asks; `unit` is that of an exec one."""
    host = (probe.host or "127.0.0.1", str(probe.port))
    return {
        "exec": (unit,),
        "tcp": host,
        "http": (*host, "yes" if probe.tls else "no", probe.path, *(word for header in probe.headers for word in header)),
        "grpc": (*host, probe.path),
        "sleep": (str(probe.timeout),),
    }[probe.handler]


def render_hooks(pod: PodSettings, apps: tuple[App, ...]) -> str:
    """The text of hook.CONFIG."""
    lines: list[tuple[str, ...]] = []
    for app, hook in ((owner, found) for owner in apps for found in owner.hooks):
        how, target = hook.probe.handler, _target(hook.probe, _hook_unit(app, hook))
        if hook.program and pod.enters:
            how, target = "enter", ("yes" if pod.share_process_namespace else "no",)
        lines.append((app.name, hook.probe.kind, how, *target))
    return render_plan(tuple(lines))


def _has_hook(app: App, kind: str) -> bool:
    return any(hook.probe.kind == kind for hook in app.hooks)


def _runner_unit(app: App, kind: str) -> str:
    return f"{kind[0].upper()}{kind[1:]}-{app.name}.service"


def _hook_unit(app: App, hook: Check) -> str:
    return f"Hook-{hook.probe.kind}-{app.name}.service"


def _add_hook_order(unit: UnitFile, pod: PodSettings, app: App, kind: str) -> None:
    """A postStart hook comes and goes with each run of its app; a preStop one runs while all is stopping, and counts as the app's stop."""
    service = names.app_unit(app.name)
    if kind == "postStart":
        unit.add_all("Unit", (("BindsTo", service), ("After", service), ("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
        unit.add("Service", "TimeoutStartSec", "infinity")
    else:
        unit.add("Unit", "Before", "final.target Exit.service Abort.service")
        unit.add("Service", "TimeoutStartSec", max(pod.grace_seconds, 1))
    unit.add("Unit", "StartLimitIntervalSec", 0)
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("Nice", 0), ("KillSignal", "SIGKILL")))


def _runner_service(pod: PodSettings, app: App, kind: str) -> UnitFile:
    """Runs a hook. The app's start wants PostStart-APP.service, so does its every restart; Stop-APP.service starts PreStop-APP.service."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", f"{kind} hook of app {app.name}"), ("DefaultDependencies", "no")))
    _add_hook_order(unit, pod, app, kind)
    # As the prober it looks at the programs of the app's processes.
    capabilities = "CAP_SYS_PTRACE" if pod.enters else _untraceable(pod)
    command = f"/usr/bin/python3 -IS /usr/lib/rktd/hook {kind} {app.name}"
    unit.add_all("Service", (("ExecStart", command), ("CapabilityBoundingSet", capabilities)))
    unit.add_all("Service", (("NoNewPrivileges", "yes"), ("StandardOutput", f"fd:{POD_STREAM}"), ("Sockets", f"{POD_STREAM}.socket")))
    return unit


def _hook_service(pod: PodSettings, app: App, hook: Check) -> UnitFile:
    """The command of an exec hook, as that of an exec probe."""
    unit = UnitFile()
    description = f"Command of the {hook.probe.kind} hook of app {app.name} of pod {pod.name}"
    unit.add_all("Unit", (("Description", description), ("DefaultDependencies", "no")))
    _add_hook_order(unit, pod, app, hook.probe.kind)
    unit.add("Service", "ExecStart", quote_command(hook.program, hook.probe.command))
    _add_surroundings(unit, pod, app._replace(listeners=()), is_silent=True)
    return unit


def _has_startup(app: App) -> bool:
    return any(check.probe.kind == "startup" for check in app.checks)


def _check_unit(app: App, check: Check) -> str:
    return f"Probe-{check.probe.kind}-{app.name}.service"


def _probes_service() -> UnitFile:
    """The prober, for as long as the pod; started when it finds all apps ready. Killed, it comes again; 3 fails the start (EX_ENDED there).

    It is root among the apps' processes, for it sends them signals and looks at their programs, and has no other privilege.
    """
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Probes of the apps"), ("DefaultDependencies", "no"), ("StartLimitIntervalSec", 0)))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Service", (("Type", "notify"), ("NotifyAccess", "main"), ("Slice", "-.slice"), ("Nice", 0)))
    unit.add_all("Service", (("ExecStart", "/usr/bin/python3 -IS /usr/lib/rktd/prober"), ("TimeoutStartSec", "infinity")))
    unit.add_all("Service", (("Restart", "on-failure"), ("RestartMode", "direct"), ("RestartSec", "1s"), ("RestartPreventExitStatus", 3)))
    unit.add_all("Service", (("KillSignal", "SIGKILL"), ("CapabilityBoundingSet", "CAP_KILL CAP_SYS_PTRACE"), ("NoNewPrivileges", "yes")))
    unit.add_all("Service", (("StandardOutput", f"fd:{POD_STREAM}"), ("Sockets", f"{POD_STREAM}.socket")))
    return unit


def _held_service() -> UnitFile:
    """Keeps the pod up between an app's end by the prober and its next start; see prober.Prober._end."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "An app is to start again"), ("DefaultDependencies", "no"), ("StartLimitIntervalSec", 0)))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("Wants", "Running.target")))
    unit.add_all("Service", (("Type", "oneshot"), ("RemainAfterExit", "yes"), ("Slice", "-.slice"), ("ExecStart", "/bin/true")))
    unit.add("Service", "Environment", "SYSTEMD_LOG_TARGET=null")
    return unit


def _started_service(app: App) -> UnitFile:
    """What comes after a sidecar with a startup probe waits for this."""
    unit = UnitFile()
    script = f"until read -r s <{STATUS_DIRECTORY}/{app.name}.ready && [ $s != starting ]; do sleep 0.05; done 2>/dev/null"
    service = names.app_unit(app.name)
    unit.add_all("Unit", (("Description", f"Start of app {app.name}"), ("DefaultDependencies", "no"), ("Wants", "Probes.service")))
    unit.add_all("Unit", (("After", service), ("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Service", (("Type", "oneshot"), ("RemainAfterExit", "yes"), ("Slice", "-.slice"), ("KillSignal", "SIGKILL")))
    unit.add_all("Service", (("Environment", "SYSTEMD_LOG_TARGET=null"), ("ExecStart", f":/bin/sh -c {quote_script(script)}")))
    return unit


def _check_service(pod: PodSettings, app: App, check: Check) -> UnitFile:
    """One run of an exec probe, where and as what the app runs, but in a process name space of its own. What it writes is nobody's."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", f"Probe of app {app.name} of pod {pod.name}"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("StartLimitIntervalSec", 0)))
    unit.add_all("Service", (("Type", "oneshot"), ("Nice", 0), ("ExecStart", quote_command(check.program, check.probe.command))))
    unit.add_all("Service", (("KillSignal", "SIGKILL"), ("TimeoutStartSec", check.probe.timeout)))
    _add_surroundings(unit, pod, app._replace(listeners=()), is_silent=True)
    return unit


def _is_lost_on_first(pod: PodSettings, number: int) -> bool:
    """Whether the signal would end the app's main process, were that not PID 1 of a name space."""
    return number < 32 and number not in _NOT_DEADLY and not pod.share_process_namespace


def _result_service() -> UnitFile:
    """Writes down how an app ended, from systemd's MONITOR_* variables: `exited|killed|dumped STATUS RESULT`; and says so if it failed.

    Two templates of one text: systemd sets the variables only where one dependency of one unit is the trigger. Not in a slice of the
    template's own, which would conflict with a shutdown that is under way. PID 1 may hear of an OOM kill, or of an empty cgroup, before it
    has the status: the latter when it has killed the app itself, which it does when Stop-APP.service has waited in vain.
    """
    script = (
        'umask 022; r="${MONITOR_EXIT_CODE:-unknown} ${MONITOR_EXIT_STATUS:-unknown} $MONITOR_SERVICE_RESULT"; '
        '[ "$r" = "unknown unknown oom-kill" ] && r="killed KILL oom-kill"; '
        'case $r in unknown*) [ "$(systemctl show -P Result Stop-%i.service)" = timeout ] && r="killed KILL ${r##* }";; esac; '
        f'echo "$r" >{STATUS_DIRECTORY}/.%i '
        f"&& mv {STATUS_DIRECTORY}/.%i {STATUS_DIRECTORY}/%i; "
        '[ "$MONITOR_SERVICE_RESULT" = success ] && exit 0; x=; if [ "$MONITOR_EXIT_STATUS" = 203 ]; then '
        'x=$(systemctl show -P ExecStart %i.service); x=${x#*path=}; x=": cannot execute ${x%%%% ;*}"; fi; '
        '[ "$MONITOR_SERVICE_RESULT" = oom-kill ] && x=": out of memory"; echo "app %i failed: $r$x"'
    )
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Result of app %i"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Before", "final.target Exit.service Abort.service"), ("StartLimitIntervalSec", "0")))
    # A stream of the pod's own, not /dev/console: a path there is what a privileged app makes of it.
    unit.add_all("Service", (("StandardOutput", f"fd:{POD_STREAM}"), ("Sockets", f"{POD_STREAM}.socket")))
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("ExecStart", f":/bin/sh -c {quote_script(script)}")))
    return unit


def _calm_timer() -> UnitFile:
    """Looks every few minutes, from the first end of an app until that has run for long enough."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Back-off of app %i"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Timer", (("OnActiveSec", "10min"), ("OnUnitInactiveSec", "2min"), ("AccuracySec", "1min")))
    return unit


def _calm_service() -> UnitFile:
    """Lets the back-off of an app begin again that has run for ten minutes, as in Kubernetes: systemd has it from its counter of restarts.

    What that had is written down, for podctl to add.
    """
    show = "systemctl show -P"
    script = (
        f"cd {STATUS_DIRECTORY} || exit 1; umask 022; s=$({show} ActiveState %i.service); "
        f"a=$({show} ActiveEnterTimestampMonotonic %i.service); "
        "read -r u o </proc/uptime; [ $s = active ] && [ $((${u%%%%.*} - a / 1000000)) -ge $CALM ] || exit 0; "
        f"n=$({show} NRestarts %i.service); o=0; [ -e %i.restarts ] && read -r o <%i.restarts; "
        "echo $((o + n)) >.%i.restarts && mv .%i.restarts %i.restarts && systemctl reset-failed %i.service; systemctl stop Calm@%i.timer"
    )
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "New back-off of app %i"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("StartLimitIntervalSec", "0")))
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("Environment", "SYSTEMD_LOG_TARGET=null CALM=600")))
    unit.add("Service", "ExecStart", f":/bin/sh -c {quote_script(script)}")
    return unit


def signal_number(name: str) -> int:
    """Of a name with SIG, or of a number; SIGRTMIN is glibc's 34."""
    if name.isdigit():
        return int(name)
    for start, base, sign in (("SIGRTMIN+", signal.SIGRTMIN, 1), ("SIGRTMAX-", signal.SIGRTMAX, -1)):
        if name.startswith(start):
            return int(base) + sign * int(name.removeprefix(start))
    return int(signal.Signals[name])


def _restart(policy: str) -> tuple[tuple[str, str], ...]:
    """The back-off: 1 s at first, doubling to 5 min in 8 steps (Kubernetes: from 10 s to 5 min)."""
    restart = {"Always": "always", "OnFailure": "on-failure", "Never": "no"}[policy]
    if restart == "no":
        return (("Restart", restart),)
    return (("Restart", restart), ("RestartSec", "1s"), ("RestartSteps", "8"), ("RestartMaxDelaySec", "5min"))


def _streams(app: App) -> tuple[tuple[str, str], ...]:
    if app.log_pipe:
        paths = (f"file:{pipe_path(app.name, stream)}" for stream in ("out", "err"))
        # The only ones that it gets: streams beside them would be among its LISTEN_FDS, in any order. resolve_app makes these pipes.
        sockets = (("Sockets", sockets_unit(app.name)),) if app.sockets else ()
        return (("StandardInput", "null"), *zip(("StandardOutput", "StandardError"), paths, strict=True), *sockets)
    return (
        ("StandardInput", "null"),
        ("StandardOutput", f"fd:{app.name}-out"),
        ("StandardError", f"fd:{app.name}-err"),
        ("Sockets", f"{app.name}-out.socket {app.name}-err.socket"),
    )


def _identity(app: App) -> tuple[tuple[str, str], ...]:
    """User=0 is left out: then PID 1 looks nothing up."""
    lines: list[tuple[str, str]] = []
    if app.uid:
        lines.append(("User", str(app.uid)))
    if app.uid or app.gid:
        lines.append(("Group", str(app.gid)))
    if app.groups:
        lines.append(("SupplementaryGroups", " ".join(str(g) for g in app.groups)))
    return tuple(lines)


def _resources(resources: Resources) -> tuple[tuple[str, str | int], ...]:
    lines: list[tuple[str, str | int]] = []
    if resources.memory_limit is not None:
        # As kubelet: one process that is too much is the end of the app.
        lines += [("MemoryMax", resources.memory_limit), ("MemorySwapMax", 0), ("OOMPolicy", "kill")]
    if resources.memory_request:
        lines.append(("MemoryLow", resources.memory_request))
    if resources.cpu_limit is not None:
        lines.append(("CPUQuota", render_cpu_quota(resources.cpu_limit)))
    if resources.cpu_request:
        lines.append(("CPUWeight", cpu_weight(resources.cpu_request)))
    if resources.pids_limit is not None:
        lines.append(("TasksMax", resources.pids_limit))
    return tuple(lines)


def _environment(app: App, *, is_user: bool) -> tuple[tuple[str, str], ...]:
    """Exactly what image and pod file say: what systemd adds of its own is taken away, unless they say it too."""
    for name, value in app.env:
        if not is_environment_name(name):
            hint = "systemd passes on names of letters, digits and _ only, not starting with a digit"
            raise RktdError(f"app {app.name}: environment variable {name!r} cannot be set", hint=hint)
        if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise RktdError(f"app {app.name}: environment variable {name}: its value is not UTF-8")
    lines = [("Environment", quote_word(f"{name}={value}")) for name, value in app.env]
    if app.secret_env:
        lines.append(("EnvironmentFile", f"{ENVIRONMENT_DIRECTORY}/{app.name}"))
    named = {name for name, _ in app.env + app.secret_env} | ({"NOTIFY_SOCKET"} if app.notify is not None else set())
    if app.sockets:  # systemd has one name for all sockets of a unit; what Environment= says counts more
        named |= {"LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"}
        lines.append(("Environment", quote_word(f"LISTEN_FDNAMES={':'.join(listener.name for listener in app.sockets)}")))
    lines.append(("UnsetEnvironment", " ".join(v for v in (*_SET_BY_SYSTEMD, *(_SET_BY_NSPAWN if is_user else ())) if v not in named)))
    return tuple(lines)


def render_environment_file(variables: tuple[tuple[str, str], ...]) -> str:
    """Variables that no unit has, for EnvironmentFile=: the pod's PID 1 reads it, and no app can (systemd.exec(5), env-file.c)."""
    escaped = {ord(char): "\\" + char for char in '\\"`$'}
    return "".join(f'{name}="{value.translate(escaped)}"\n' for name, value in variables)


def is_environment_name(name: str) -> bool:
    """env_name_is_valid() of systemd."""
    return bool(name) and not name[0].isdigit() and name.isascii() and name.replace("_", "a").isalnum()


def _plain_path(path: str, what: str) -> str:
    if not path.startswith("/") or not path.isprintable() or path.endswith("\\") or path != path.strip():
        raise RktdError(f"{what} must be an absolute path on one line, got {path!r}")
    return escape_specifiers(path)

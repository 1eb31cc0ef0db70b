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
from rktd_units.podfile.model import Resources
from rktd_units.translate import cpu_weight, render_cpu_quota
from rktd_units.unitfile import UnitFile, escape_specifiers, quote_command, quote_word

STATUS_DIRECTORY = "/run/rktd-status"  # inside the pod: one file per app that has ended
_SET_BY_SYSTEMD = (  # systemd.exec(5), "Environment variables set or propagated by the service manager"
    "INVOCATION_ID JOURNAL_STREAM LISTEN_FDS LISTEN_FDNAMES LISTEN_PID LISTEN_PIDFDID LOGNAME MANAGERPID MANAGERPIDFDID "
    "MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE NOTIFY_SOCKET SHELL SYSTEMD_EXEC_PID USER HOME LANG"
).split()


class App(NamedTuple):
    """One container, everything resolved against its image: ids as in the container, `program` an absolute path inside its root."""

    name: str
    program: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    working_dir: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    stop_signal: str
    confinement: Confinement
    resources: Resources = Resources()
    journal_socket: bool = False


class PodSettings(NamedTuple):
    """What the units need to know of the pod as a whole."""

    name: str
    restart_policy: str
    grace_seconds: int
    share_process_namespace: bool
    stream_directory: str  # where stage1 names its journal streams; see `stream_path`


def stream_path(directory: str, index: int, stream: str) -> str:
    """The socket name of app number `index`'s `stream` ("out" or "err"): short, since sun_path holds 107 bytes."""
    return f"{directory}/{index}{stream}"


def render_units(pod: PodSettings, apps: tuple[App, ...]) -> tuple[tuple[str, str], ...]:
    """(file name, text) of every unit of ours in the pod, sorted by name. Raises RktdError for what no unit can say."""
    units = {
        "Ready.target": _ready_target(apps),
        "Running.target": _running_target(),
        "Success@.service": _result_service(),
        "Failure@.service": _result_service(),
        "Sink@.service": _sink_service(),
        "Abort.service": _exit_service(apps),
        "Exit.service": _exit_service(apps),
    }
    for index, app in enumerate(apps):
        units[names.app_unit(app.name)] = _app_service(pod, app)
        for stream in ("out", "err"):
            units[f"{app.name}-{stream}.socket"] = _stream_socket(pod, app, index, stream)
    return tuple((name, units[name].render()) for name in sorted(units))


def _ready_target(apps: tuple[App, ...]) -> UnitFile:
    """The pod's default target: reached when every app was executed. If one could not be, Abort.service ends the pod."""
    unit = UnitFile()
    services = " ".join(names.app_unit(app.name) for app in apps)
    unit.add_all("Unit", (("Description", "All apps run"), ("DefaultDependencies", "no"), ("Requires", services), ("After", services)))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("OnFailure", "Abort.service")))
    return unit


def _running_target() -> UnitFile:
    """Active while any app is, by StopWhenUnneeded=; its end is the pod's end."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Some app runs"), ("DefaultDependencies", "no"), ("StopWhenUnneeded", "yes")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target"), ("OnSuccess", "Exit.service")))
    return unit


def _result_service() -> UnitFile:
    """Writes down how an app ended, from systemd's MONITOR_* variables: `exited|killed|dumped STATUS RESULT`.

    Two templates of one text: systemd sets the variables only where one dependency of one unit is the trigger. Not in a slice of the
    template's own, which would conflict with a shutdown that is under way.
    """
    script = (
        f'umask 022; printf "%%s %%s %%s\\n" "$MONITOR_EXIT_CODE" "$MONITOR_EXIT_STATUS" "$MONITOR_SERVICE_RESULT" '
        f">{STATUS_DIRECTORY}/.%i && mv {STATUS_DIRECTORY}/.%i {STATUS_DIRECTORY}/%i"
    )
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Result of app %i"), ("DefaultDependencies", "no"), ("Before", "final.target Exit.service Abort.service")))
    unit.add_all("Unit", (("StartLimitIntervalSec", "0"),))
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("ExecStart", f":/bin/sh -c {_quote_script(script)}")))
    return unit


def _sink_service() -> UnitFile:
    """What a stream's socket activates: nothing, and for good. Else the stream, readable since journald never writes, starts its app anew."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Nothing for %i"), ("DefaultDependencies", "no")))
    unit.add_all("Service", (("Type", "oneshot"), ("RemainAfterExit", "yes"), ("Slice", "-.slice"), ("ExecStop", "/bin/true")))
    return unit


def _exit_service(apps: tuple[App, ...]) -> UnitFile:
    """Ends the pod with the exit status of the first app, in the file's order, that failed: 128+N for signal N (docs/lifecycle.md).

    Its own job lasts until that of exit.target is there, so that PID 1 never finds its queue empty, and says READY=1, in between.
    """
    numbers = "".join(f"{s.name[3:]}) s={128 + s};; " for s in signal.Signals if not s.name.startswith("SIGRT"))
    script = (
        f'case "$(systemctl is-system-running 2>/dev/null)" in ""|stopping) exit 0;; esac; cd {STATUS_DIRECTORY} || exit 1; e=0; '
        f"for a in {' '.join(app.name for app in apps)}; do [ -e $a ] || continue; read -r how s result <$a; "
        f'[ "$result" = success ] && continue; case $s in {numbers}esac; '
        'case $s in 0|"") s=1;; *[!0-9]*) s=255;; esac; e=$s; break; done; exec systemctl --no-block exit $e'
    )
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "End of the pod"), ("DefaultDependencies", "no")))
    results = " ".join(f"{kind}@{app.name}.service" for app in apps for kind in ("Success", "Failure"))
    unit.add("Unit", "After", results)
    unit.add("Service", "Environment", "SYSTEMD_LOG_TARGET=null")
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("ExecStart", f":/bin/sh -c {_quote_script(script)}")))
    return unit


def _quote_script(script: str) -> str:
    """A script of ours, in which `%%` and `%i` are meant; user text never gets here."""
    return '"' + script.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _stream_socket(pod: PodSettings, app: App, index: int, stream: str) -> UnitFile:
    """Takes one of the journal streams that stage1 passes to the pod's PID 1, found by its socket name."""
    unit = UnitFile()
    unit.add_all("Unit", (("DefaultDependencies", "no"), ("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add("Socket", "ListenStream", stream_path(pod.stream_directory, index, stream))
    unit.add("Socket", "FileDescriptorName", f"{app.name}-{stream}")
    unit.add("Socket", "Service", f"Sink@{app.name}-{stream}.service")
    return unit


def _app_service(pod: PodSettings, app: App) -> UnitFile:
    unit = UnitFile()
    unit.add_all("Unit", (("Description", f"App {app.name} of pod {pod.name}"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Unit", (("Wants", "Running.target"), ("After", "Running.target")))
    unit.add_all("Unit", (("OnSuccess", f"Success@{app.name}.service"), ("OnFailure", f"Failure@{app.name}.service")))
    unit.add("Unit", "StartLimitIntervalSec", 0)
    unit.add_all("Service", (("Type", "exec"), ("ExecStart", quote_command(app.program, app.argv))))
    unit.add_all("Service", _restart(pod.restart_policy))
    unit.add_all("Service", (("KillMode", "mixed"), ("KillSignal", app.stop_signal), ("TimeoutStopSec", pod.grace_seconds)))
    unit.add_all("Service", (("RootDirectory", f"/apps/{app.name}/rootfs"), ("MountAPIVFS", "yes")))
    unit.add("Service", "BindLogSockets", "yes" if app.journal_socket else "no")
    if not pod.share_process_namespace:
        unit.add("Service", "PrivatePIDs", "yes")
    unit.add("Service", "WorkingDirectory", _plain_path(app.working_dir, "working directory"))
    unit.add_all("Service", _streams(app))
    unit.add_all("Service", _identity(app))
    unit.add_all("Service", app.confinement.lines())
    unit.add_all("Service", _resources(app.resources))
    unit.add_all("Service", _environment(app))
    return unit


def _restart(policy: str) -> tuple[tuple[str, str], ...]:
    """The back-off: 1 s at first, doubling to 5 min in 8 steps (Kubernetes: from 10 s to 5 min)."""
    restart = {"Always": "always", "OnFailure": "on-failure", "Never": "no"}[policy]
    if restart == "no":
        return (("Restart", restart),)
    return (("Restart", restart), ("RestartSec", "1s"), ("RestartSteps", "8"), ("RestartMaxDelaySec", "5min"))


def _streams(app: App) -> tuple[tuple[str, str], ...]:
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
        lines += [("MemoryMax", resources.memory_limit), ("MemorySwapMax", 0)]
    if resources.memory_request:
        lines.append(("MemoryLow", resources.memory_request))
    if resources.cpu_limit is not None:
        lines.append(("CPUQuota", render_cpu_quota(resources.cpu_limit)))
    if resources.cpu_request:
        lines.append(("CPUWeight", cpu_weight(resources.cpu_request)))
    return tuple(lines)


def _environment(app: App) -> tuple[tuple[str, str], ...]:
    """Exactly what image and pod file say: what systemd adds of its own is taken away, unless they say it too."""
    for name, value in app.env:
        if not is_environment_name(name):
            hint = "systemd passes on names of letters, digits and _ only, not starting with a digit"
            raise RktdError(f"app {app.name}: environment variable {name!r} cannot be set", hint=hint)
        if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise RktdError(f"app {app.name}: environment variable {name}: its value is not UTF-8")
    lines = [("Environment", quote_word(f"{name}={value}")) for name, value in app.env]
    named = {name for name, _ in app.env}
    lines.append(("UnsetEnvironment", " ".join(v for v in _SET_BY_SYSTEMD if v not in named)))
    return tuple(lines)


def is_environment_name(name: str) -> bool:
    """env_name_is_valid() of systemd."""
    return bool(name) and not name[0].isdigit() and name.isascii() and name.replace("_", "a").isalnum()


def _plain_path(path: str, what: str) -> str:
    if not path.startswith("/") or "\n" in path:
        raise RktdError(f"{what} must be an absolute path on one line, got {path!r}")
    return escape_specifiers(path)

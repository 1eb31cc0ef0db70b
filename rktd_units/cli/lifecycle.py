# SPDX-License-Identifier: Apache-2.0
"""`podctl start|stop|restart|enable|disable|reload`: jobs of systemd, waited for over dbus-next; polkit decides who may."""

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rktd_units.cli import output
from rktd_units.cli.pods import Host, load_model, not_found, read_error, split_unit
from rktd_units.errors import EX_FAILED, ConfigError, FailedError, PrivilegeError, UsageError
from rktd_units.names import is_pod_name, pod_socket, pod_unit, stage0_unit

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")
_DENIED = ("InteractiveAuthorizationRequired", "AccessDenied", "AuthorizationFailed")


def _add_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="pods")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--wait", action="store_true", help="tell the progress while waiting")
    group.add_argument("--no-block", action="store_true", help="do not wait")


def _add_enable_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="pods")
    parser.add_argument("--now", action="store_true", help=what)
    parser.add_argument("--wait", action="store_true", help="with --now: tell the progress while waiting")
    parser.set_defaults(no_block=False)


add_start_arguments = _add_job_arguments


def add_stop_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME..."""
    _add_job_arguments(parser)
    parser.add_argument("-t", "--time", "--timeout", type=_refuse_time, help=argparse.SUPPRESS)


add_restart_arguments = add_stop_arguments


def _refuse_time(_: str) -> NoReturn:
    raise UsageError("how long a pod may take to stop is said in its file", hint="spec.terminationGracePeriodSeconds")


def add_enable_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME... [--now]"""
    _add_enable_arguments(parser, "start them, too")


def add_disable_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME... [--now]"""
    _add_enable_arguments(parser, "stop them, too")


def run_start(arguments: argparse.Namespace) -> int:
    """0 when all run; 1 when a job failed, with the reason."""
    return _run_jobs("StartUnit", _require_files(arguments.names), arguments)


def run_stop(arguments: argparse.Namespace) -> int:
    """The same for stopping. Sockets that would start a pod again go first."""
    return _stop(arguments)


def _stop(arguments: argparse.Namespace) -> int:
    host = Host()
    names = host.require(arguments.names)
    if sockets := [pod_socket(name) for name in names if os.path.exists(host.layout.socket_record(name))]:
        _call(_stop_units(sockets))
    return _run_jobs("StopUnit", names, arguments)


async def _stop_units(units: list[str]) -> None:
    from rktd_units.bus import connected_bus

    async with connected_bus() as bus:
        await bus.run_jobs("StopUnit", units)


def run_restart(arguments: argparse.Namespace) -> int:
    """Starts what does not run, too."""
    return _run_jobs("RestartUnit", _require_files(arguments.names), arguments)


def run_enable(arguments: argparse.Namespace) -> int:
    """Links pod@NAME into pods.target, which is started at boot."""
    names = _require_files(arguments.names)
    _change_files("EnableUnitFiles", "asbb", [[pod_unit(name) for name in names], False, False])
    return _run_jobs("StartUnit", names, arguments) if arguments.now else 0


def run_disable(arguments: argparse.Namespace) -> int:
    """Takes the links away."""
    names = Host().require(arguments.names)
    _change_files("DisableUnitFiles", "asb", [[pod_unit(name) for name in names], False])
    return _stop(arguments) if arguments.now else 0


def run_reload(arguments: argparse.Namespace) -> int:
    """Has systemd read all pod files again, then tells what is wrong with them."""
    from rktd_units.cli import check

    async def main() -> None:
        from rktd_units.bus import connected_bus

        async with connected_bus() as bus:
            await bus.manage("Reload")

    _call(main())
    return check.run(argparse.Namespace(files=[], output="text"))


def _require_files(names: list[str]) -> list[str]:
    """Starting wants a pod file; a pod that is gone but runs may be restarted as it is."""
    host = Host()
    known = host.names()
    found = [split_unit(name) for name in names]
    for name in found:
        if name not in known and not (is_pod_name(name) and host.state(name)[0] != "inactive"):
            raise not_found("pod", name, known)
    for name in found:  # told before anything is started, with line and column
        if name in host.entries:
            try:
                load_model(host.layout, host.entries[name])
            except ConfigError as error:
                raise ConfigError(f"pod file {host.entries[name].path} is not valid", error.diagnostics) from error
    return list(dict.fromkeys(found))


def _run_jobs(method: str, names: list[str], arguments: argparse.Namespace) -> int:
    units = [pod_unit(name) for name in names]
    watched = {unit: name for name in names for unit in (pod_unit(name), stage0_unit(name))}
    last: dict[str, str] = {}

    def tell(unit: str, text: str) -> None:
        name = watched.get(unit)
        if name and text and last.get(unit) != text:
            last[unit] = text
            print(f"{output.paint(name, 'bold')}: {output.format_text(text)}", file=sys.stderr, flush=True)

    async def main() -> dict[str, str]:
        from rktd_units.bus import connected_bus

        async with connected_bus() as bus:
            if arguments.no_block:
                for unit in units:
                    await bus.manage(method, "ss", (unit, "replace"))
                return {}
            return await bus.run_jobs(method, units, tell if arguments.wait else None)

    results = _call(main())
    failed = {unit: result for unit, result in results.items() if result not in ("done", "skipped")}
    for unit, result in failed.items():
        print(f"podctl: {_explain(watched[unit], unit, result)}", file=sys.stderr)
    return EX_FAILED if failed else 0


def _explain(name: str, unit: str, result: str) -> str:
    """Why a job failed: what stage0 left, or else what systemd has."""
    host = Host()
    fault = read_error(host.layout, name)
    if fault:
        return f"pod {name} did not start: {fault}\n  hint: podctl status {name}"
    kind, status = host.properties(unit, "Service", ("Result", "ExecMainStatus"))
    return f"pod {name}: the job ended as {result}: {kind}, exit code {status}\n  hint: podctl status {name}"


def _change_files(method: str, signature: str, body: list[object]) -> None:
    """Enables or disables, reloads systemd, as systemctl does, and tells each change."""

    async def main() -> list[list[str]]:
        from rktd_units.bus import connected_bus

        async with connected_bus() as bus:
            changes: list[list[str]] = (await bus.manage(method, signature, body))[-1]
            await bus.manage("Reload")
            return changes

    for kind, path, target in _call(main()):
        print(f"Created link {path} to {target}." if kind == "symlink" else f"Removed {path}.", file=sys.stderr)


def _call(work: "Coroutine[Any, Any, _T]") -> _T:
    """Runs it; a refusal of polkit is told as such."""
    from rktd_units.bus import BusError

    try:
        return asyncio.run(work)
    except BusError as error:
        if error.name.endswith(_DENIED):
            raise PrivilegeError("polkit does not let you do that", hint="sudo podctl ...") from error
        if error.name.endswith((".NoSuchUnit", ".UnitMasked", ".JobTypeNotApplicable")):
            raise FailedError(str(error)) from error
        raise

# SPDX-License-Identifier: Apache-2.0
"""`podctl logs` and `podctl attach`: journalctl with the matches that find a pod's, or an app's, own lines."""

import argparse
import os
import sys

from rktd_units.cli.pods import Host, join_target, not_found, split_unit
from rktd_units.errors import CommandError, PrivilegeError, UnavailableError
from rktd_units.names import is_pod_name, pod_unit, stage0_unit
from rktd_units.runfiles import list_names

_JOURNALS = ("/var/log/journal", "/run/log/journal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """POD[/APP] [options of journalctl]"""
    parser.add_argument("target", metavar="POD[/APP]", help="a pod, or one app of it")
    parser.add_argument("app", nargs="?", metavar="APP", help="the app, where POD alone is said, as kubectl has it")
    parser.add_argument("-c", "--container", metavar="APP", help="the same")
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines as they come")
    parser.add_argument("-n", "--lines", "--tail", metavar="N", help="the last N lines, or all")
    parser.add_argument("-o", "--output", default="", metavar="FORMAT", help="one of journalctl's; short, or cat for one app")
    parser.add_argument("-S", "--since", metavar="TIME", help="lines from then on")
    parser.add_argument("-U", "--until", metavar="TIME", help="lines until then")
    parser.add_argument("-p", "--priority", metavar="LEVEL", help="lines of that level or a more urgent one: err for standard error")
    parser.add_argument("-g", "--grep", metavar="PATTERN", help="lines that match")
    parser.add_argument("-r", "--reverse", action="store_true", help="newest first")
    parser.add_argument("--current", action="store_true", help="of the pod's present, or last, run only")
    parser.add_argument("--all-units", action="store_true", help="with what systemd and stage0 say of the pod")
    parser.add_argument("--no-pager", action="store_true", help="do not pipe the output into a pager")


def run(arguments: argparse.Namespace) -> int:
    """Becomes journalctl. The trusted field _SYSTEMD_UNIT is matched, so nobody else's lines are among them."""
    pod, app = find_target(join_target(join_target(arguments.target, arguments.app), arguments.container))
    require_journal()
    argv = ["journalctl", "--quiet"]
    argv += [
        f"--{name}={value}" for name in ("since", "until", "priority", "grep", "lines") if (value := getattr(arguments, name)) is not None
    ]
    argv += [f"--{name}" for name, wanted in (("follow", arguments.follow), ("reverse", arguments.reverse)) if wanted]
    argv += ["--no-pager"] if arguments.no_pager or arguments.follow else []
    argv.append(f"--output={arguments.output or ('cat' if app else 'short')}")
    argv += ["--all"] if (arguments.output or "").startswith("json") else []
    become_journal(argv, render_matches(pod, app, all_units=arguments.all_units, current=arguments.current))
    return 0


def require_journal() -> None:
    """Raises PrivilegeError where journalctl would find nothing, or wait for ever. Root and the groups of journald may read it."""
    if os.geteuid() == 0:
        return
    files = [f"{path}/{name}" for path in _JOURNALS for name in list_names(path)]
    if not any(os.access(f"{directory}/system.journal", os.R_OK) for directory in files):
        raise PrivilegeError("you may not read the journal", hint="usermod --append --groups systemd-journal USER")


def become_journal(argv: list[str], matches: list[str]) -> None:
    """Replaces this process."""
    from rktd_units.proc import become

    sys.stdout.flush()
    become([*argv, *matches])


def find_target(text: str) -> tuple[str, str]:
    """(pod, app or ""). A pod that is gone may have lines still. Raises NotFoundError for what has neither."""
    pod, slash, app = text.partition("/")
    pod = split_unit(pod)
    host = Host()
    if pod not in host.names():
        if not is_pod_name(pod) or not _has_lines(pod):
            raise not_found("pod", pod, host.names())
    elif slash:
        host.check_app(pod, app)
    return pod, app


def render_matches(pod: str, app: str, *, all_units: bool = False, current: bool = False) -> list[str]:
    """journalctl's arguments that find the lines (systemd.journal-fields(7))."""
    if all_units:
        return [f"--unit={pod_unit(pod)}", f"--unit={stage0_unit(pod)}"]
    matches = [f"_SYSTEMD_UNIT={pod_unit(pod)}"]
    if app:
        matches.append(f"SYSLOG_IDENTIFIER={app}")
    if current:
        invocation = Host().properties(pod_unit(pod), "Unit", ("InvocationID",))[0]
        identity = bytes(invocation).hex() if isinstance(invocation, list) else ""
        if not identity.strip("0"):
            raise UnavailableError(f"pod {pod} has had no run since this machine started")
        matches.append(f"_SYSTEMD_INVOCATION_ID={identity}")
    return matches


def _has_lines(pod: str) -> bool:
    from rktd_units.proc import run as run_program

    try:
        return bool(run_program(["journalctl", "--quiet", "--lines=1", "--output=cat", f"_SYSTEMD_UNIT={pod_unit(pod)}"]).stdout)
    except CommandError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""`podctl exec`: finds the app's main process, waits for it while the pod starts, and becomes rktd_units.enter (docs/exec.md)."""

import argparse
import json
import os
import socket
import time
from typing import Any

from rktd_units.cgroups import app_cgroup, find_host_pid, leader_of
from rktd_units.cli.pods import Host, join_target, load_model, load_run, load_run_app
from rktd_units.enter import describe_app
from rktd_units.errors import PrivilegeError, UnavailableError, UsageError, clean_text
from rktd_units.runfiles import read_text

_PATIENCE = 0.8  # seconds until an app of a pod that is up must be found
_SILENCE = 10.0  # more of them for a pod whose systemd does not answer: on a busy machine it may take long
_STEP = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[-i] [-t] POD/APP [--] COMMAND..."""
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable beside the app's own")
    parser.add_argument("-w", "--workdir", metavar="PATH", help="run it there instead of in the app's directory")
    parser.add_argument("-c", "--container", metavar="APP", help="the app, where POD alone is said, as kubectl has it")
    parser.add_argument("target", metavar="POD/APP", help="the app; the pod is enough where it has only one")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="program and arguments")


def run(arguments: argparse.Namespace) -> int:
    """Does not return where the command could be started: its exit code is podctl's."""
    arguments = _take_options(arguments)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise UsageError("a command is missing", hint=f"podctl exec {arguments.target} -- sh")
    if arguments.tty and not os.isatty(0):
        raise UsageError("standard input is not a terminal", hint="leave -t away")
    from rktd_units.proc import become_module

    host = Host()
    pod, app = host.require_app(join_target(arguments.target, arguments.container))
    require_root("enter an app")
    if not is_guest(host, pod):
        pid = wait_for_app(host, pod, app)
        become_module("enter", render_order(host, pod, app, pid, command, arguments))
    return exec_in_guest(host, pod, app, command, arguments)


def _take_options(arguments: argparse.Namespace) -> argparse.Namespace:
    """With those between POD/APP and `--`, where kubectl has them, too: no program's name begins with a dash."""
    words = arguments.command
    if not words or words[0] == "--" or not words[0].startswith("-"):
        return arguments
    if "--" not in words:
        raise UsageError(f"'{words[0]}' is no program", hint=f"podctl exec {arguments.target} [OPTION...] -- COMMAND")
    from rktd_units.cli.main import Parser

    end, target = words.index("--"), arguments.target
    parser = Parser(prog="podctl exec", allow_abbrev=False)
    add_arguments(parser)
    again = parser.parse_args([*words[:end], target, *words[end:]], arguments)
    if again.target != target:
        raise UsageError(f"between {target} and -- there are options only, got '{again.target}'")
    return again


def require_root(what: str) -> None:
    """Raises PrivilegeError for anybody else."""
    if os.geteuid() != 0:
        raise PrivilegeError(f"only root may {what}", hint="sudo podctl ...")


def is_guest(host: Host, pod: str) -> bool:
    """Whether it runs on Xen; of a pod that is still being prepared, whether its file says so."""
    try:
        return bool(load_run(host.layout, pod).get("stage1") == "xen")
    except FileNotFoundError:
        entry = host.entries.get(pod)
        return entry is not None and load_model(host.layout, entry).runtime_class == "xen"


def exec_in_guest(host: Host, pod: str, app: str, command: list[str], arguments: argparse.Namespace) -> int:
    """The command's exit code; the guest finds the app's process itself, and waits for it."""
    import termios

    from rktd_units.cli.guest import run_in_guest

    path = wait_for_guest(host, pod)
    order = {"app": app, **describe_command(host, pod, app, command, arguments)}
    if arguments.tty:
        order["size"] = termios.tcgetwinsize(0) if os.isatty(0) else (0, 0)
    return run_in_guest(path, pod, json.dumps(order), terminal=arguments.tty, interactive=arguments.interactive)


def wait_for_guest(host: Host, pod: str) -> str:
    """The socket on which its supervisor listens, once it does. Raises UnavailableError where the pod does not start."""
    from rktd_units.stage1.exechost import EXEC_SOCKET

    path = f"{host.layout.pod(pod)}/{EXEC_SOCKET}"
    patience = time.monotonic() + _PATIENCE
    while True:
        active, _ = _require_start(host, pod)
        if _listens(path):
            return path
        if active == "active" and time.monotonic() > patience:
            raise UnavailableError(f"the guest of pod {pod} cannot be reached: nobody listens on {path}", hint=f"podctl status {pod}")
        time.sleep(_STEP)


def _listens(path: str) -> bool:
    """The socket of a supervisor that was killed refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        try:
            channel.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _require_start(host: Host, pod: str) -> tuple[str, str]:
    """The state of a pod that runs or starts. Else raises UnavailableError."""
    active, sub = host.state(pod)
    if active not in ("active", "activating", "reloading"):
        raise UnavailableError(f"pod {pod} does not run: it is {active} ({sub})", hint=f"podctl start {pod}")
    if sub.startswith("auto-restart"):  # for two seconds at least: pod@.service
        raise UnavailableError(f"pod {pod} has failed, and waits to be started again", hint=f"podctl status {pod}")
    return active, sub


def render_order(host: Host, pod: str, app: str, pid: int, command: list[str], arguments: argparse.Namespace, *, finish: int = -1) -> str:
    """What rktd_units.enter is to do; `finish`: enter.Order."""
    place = {"pid": pid, "leader": leader_of(pod), "cgroup": app_cgroup(host.cgroup(pod), app)}
    order = {**place, **describe_command(host, pod, app, command, arguments)}
    return json.dumps({**order, "finish": finish})


def describe_command(host: Host, pod: str, app: str, command: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """enter.Order but for the app's process, from pod.json, which is root's, and from the arguments."""
    run, record = load_run_app(host.layout, pod, app)
    order = describe_app(run, record, read_text(f"{host.layout.vault}/{pod}/exec/{app}"))
    environment = order["environment"]
    if arguments.tty and "TERM" not in environment:
        environment["TERM"] = os.environ.get("TERM", "xterm")
    for setting in arguments.env:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--env wants NAME=VALUE, got {setting!r}")
        environment[key] = value
    order["working_dir"] = arguments.workdir or order["working_dir"]
    return {"argv": command, **order, "terminal": arguments.tty, "interactive": arguments.interactive}


def wait_for_app(host: Host, pod: str, app: str) -> int:
    """The host pid of the app's main process. Waits while the pod starts; else raises UnavailableError at once."""
    from rktd_units.appstate import DEADLINE, ask_pods
    from rktd_units.enter import is_executor

    if is_guest(host, pod):  # its leader lives among the host's processes
        raise UnavailableError(f"pod {pod} is a virtual machine, whose processes are not this host's", hint=f"podctl exec {pod}/{app}")
    patience = time.monotonic() + _PATIENCE
    while True:
        active, sub = _require_start(host, pod)
        leader = leader_of(pod) if sub != "queued" else 0
        left = patience + _SILENCE - time.monotonic()
        states = ask_pods({pod: leader}, max(left, DEADLINE)).get(pod) if leader else None
        state = (states or {}).get(app)
        if state is not None and state.pid:  # an init container, and what has not said READY=1 yet, is starting as long as it runs
            pid = find_host_pid(app_cgroup(host.cgroup(pod), app), state.pid)
            if pid and not is_executor(pid):  # with PrivatePIDs= it may be that of the app's parent for a moment
                return pid
        if state is not None and state.sub.startswith("auto-restart"):  # for a second at least: stage2
            raise UnavailableError(f"app {app} of pod {pod} has ended, and waits to be started again", hint=f"podctl status {pod}")
        if active == "active" and time.monotonic() > patience + (_SILENCE if states is None else 0):
            if states is None:
                raise UnavailableError(f"pod {pod} does not answer", hint=f"podctl status {pod}")
            how = f"{clean_text(state.active)} ({clean_text(state.sub)})" if state else "unknown to its pod's systemd"
            raise UnavailableError(f"app {app} of pod {pod} does not run: it is {how}", hint=f"podctl status {pod}")
        has_run = state is not None and bool(state.since and state.code)  # one that is started while it is asked about has no code
        if state is not None and state.sub in ("dead", "failed", "exited") and (active == "active" or has_run):
            raise UnavailableError(f"app {app} of pod {pod} has ended: it is {clean_text(state.sub)}", hint=f"podctl status {pod}")
        time.sleep(_STEP)

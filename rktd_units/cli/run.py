# SPDX-License-Identifier: Apache-2.0
"""`podctl run`: an ad-hoc pod of one app. Its file is in /run/pods: until the machine is started again it is a pod like all others.

With --rm, and in the foreground, a transient unit, `podctl-run-NAME.service`, is bound to the pod, and takes the file away, or makes it one
that can be started again, when that has ended. It does not need podctl for that.
"""

import argparse
import os
import sys
import time
from contextlib import suppress
from typing import Any

from rktd_units.cli.exec import exec_in_guest, is_guest, render_order, require_root, wait_for_app
from rktd_units.cli.hold import find_command, hold, write_program
from rktd_units.cli.pods import Host, read_error
from rktd_units.convert.words import escape_variables, parse_ids, parse_ports, parse_size
from rktd_units.errors import ConfigError, FailedError, StateError, UsageError
from rktd_units.names import is_pod_name, pod_unit, stage0_unit
from rktd_units.paths import Layout
from rktd_units.podfile.environment import is_subdomain
from rktd_units.results import load_result

DIRECTORY = "/run/pods"
_STEP = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """IMAGE [COMMAND...]"""
    parser.add_argument("--name", metavar="NAME", help="of the pod; else made from the image's")
    parser.add_argument("--rm", action="store_true", help="forget the pod when it has ended")
    parser.add_argument("-d", "--detach", action="store_true", help="return when it runs, and print its name")
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable; without a value, to podctl's own"
    )
    parser.add_argument("--env-file", action="append", default=[], metavar="FILE", help="the same, one a line; -e comes over it")
    parser.add_argument(
        "-v",
        "--volume",
        action="append",
        default=[],
        metavar="SOURCE:PATH[:ro]",
        help="mount a path of the host, or a volume by its name; a path alone: scratch",
    )
    parser.add_argument("-p", "--publish", action="append", default=[], metavar="[IP:]PORT:PORT[/udp]", help="forward a port of the host")
    parser.add_argument("-m", "--memory", metavar="SIZE", help="limit: 256Mi, or 256m as docker has it")
    parser.add_argument("--cpus", metavar="N", help="limit, such as 0.5")
    parser.add_argument("-u", "--user", metavar="UID[:GID]", help="run as that user")
    parser.add_argument("-w", "--workdir", metavar="PATH", help="directory to run in")
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's")
    parser.add_argument("--hostname", metavar="NAME", help="instead of the pod's name")
    parser.add_argument("--network", metavar="NETWORK", help="host: the host's own; none: only lo; else the name of a network apart")
    parser.add_argument("--read-only", action="store_true", help="the image cannot be written to")
    parser.add_argument("--privileged", action="store_true", help="all capabilities, nothing masked")
    parser.add_argument("--pull", choices=("always", "missing", "never"), help="when to fetch the image")
    parser.add_argument("--restart", choices=("no", "on-failure", "always"), default="no", help="what becomes of it when it ends; no")
    parser.add_argument("--runtime", metavar="CLASS", help="stage1: nspawn or xen")
    parser.add_argument("--print", action="store_true", help="print the pod file, and start nothing")
    parser.add_argument("image", metavar="IMAGE", help="as in a pod file")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="arguments for the image's program")


def run(arguments: argparse.Namespace) -> int:
    """The command's exit code; with --detach 0 as soon as it runs."""
    if arguments.detach and (arguments.interactive or arguments.tty):
        raise UsageError("-i and -t are for the foreground", hint="podctl run -d ..., then podctl exec -it NAME -- sh")
    if arguments.restart != "no" and not (arguments.detach or arguments.print):
        raise UsageError("what runs in the foreground ends with its command", hint="--restart is for --detach")
    if arguments.tty and not (arguments.print or os.isatty(0)):
        raise UsageError("standard input is not a terminal", hint="leave -t away")
    name = arguments.name or _make_name(arguments.image)
    if not is_pod_name(name):
        raise UsageError(f"{name!r} is not a pod name", hint="lower case letters, digits, dashes and dots")
    plain = render_pod(name, arguments, held=False)
    if arguments.print:
        sys.stdout.write(plain)
        return 0
    require_root("start pods")
    host = Host()
    if name in host.names():
        raise UsageError(f"there is a pod {name} already", hint=f"podctl status {name}")
    path, kept = f"{DIRECTORY}/{name}.yaml", f"{DIRECTORY}/.{name}.later"
    _write(path, plain if arguments.detach else render_pod(name, arguments, held=True))
    try:
        _check(name, path)
        if not arguments.detach:
            write_program(host.layout)
            host.start_scope(f"podctl-run-{name}.scope", f"podctl run {name}")
            if not arguments.rm:
                _unlink(kept)
                _write(kept, plain)
        at_end: list[tuple[str, ...]] = [("/bin/rm", "-f", path)] if arguments.rm else []
        if not (arguments.rm or arguments.detach):
            at_end = [("/bin/mv", "-f", kept, path)]
        _start(host, name, at_end, held=not arguments.detach)
    except BaseException:
        _unlink(path)
        _unlink(kept)
        _forget(host, name)
        raise
    if arguments.detach:
        print(name)
        return 0
    return _run_held(host, name, arguments)


def _run_held(host: Host, name: str, arguments: argparse.Namespace) -> int:
    """The image's command in the pod that holds, with terminal and streams; the pod ends with it. We become what relays them."""
    from rktd_units.proc import become_module, fork_for_later

    try:
        command = find_command(arguments, host.layout)
        wanted = argparse.Namespace(tty=arguments.tty, interactive=arguments.interactive, env=[], workdir=None)
        if is_guest(host, name):
            return exec_in_guest(host, name, "app", command, wanted)
        pid = wait_for_app(host, name, "app")
        sys.stdout.flush()
        finish = fork_for_later(lambda: _finish(Host(), name))  # with a connection to systemd of its own
        become_module("enter", render_order(host, name, "app", pid, command, wanted, finish=finish))
    finally:
        _finish(host, name)


def render_pod(name: str, arguments: argparse.Namespace, *, held: bool) -> str:
    """The pod file; JSON is YAML. `held`: its app only waits for the command. Raises UsageError."""
    import json

    spec: dict[str, Any] = {"restartPolicy": {"no": "Never", "on-failure": "OnFailure", "always": "Always"}[arguments.restart]}
    container = _container(arguments)
    _add_volumes(spec, container, arguments.volume)
    metadata: dict[str, Any] = {"name": name}
    if arguments.network == "host":
        spec["hostNetwork"] = True
    elif arguments.network:
        metadata["annotations"] = {"systemd.io/network": arguments.network}
    if arguments.hostname:
        spec["hostname"] = arguments.hostname
    if arguments.runtime:
        spec["runtimeClassName"] = arguments.runtime
    spec["containers"] = [container]
    if held:
        hold(spec, Layout())
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, indent=2, ensure_ascii=False) + "\n"


def _container(arguments: argparse.Namespace) -> dict[str, Any]:
    """What options do not say stays out: the image's counts then."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    limits = {"memory": _size(arguments.memory), "cpu": arguments.cpus}
    pull = {"always": "Always", "missing": "IfNotPresent", "never": "Never", None: None}[arguments.pull]
    said = {
        "command": [escape_variables(arguments.entrypoint)] if arguments.entrypoint else None,
        "args": [escape_variables(word) for word in command],
        "env": _variables([line for path in arguments.env_file for line in _read_settings(path)] + arguments.env),
        "resources": {"limits": kept} if (kept := {key: value for key, value in limits.items() if value}) else None,
        "securityContext": _security(arguments),
        "workingDir": arguments.workdir,
        "imagePullPolicy": pull,
        "ports": [port for text in arguments.publish for port in _ports(text)],
    }
    return {"name": "app", "image": arguments.image, **{key: value for key, value in said.items() if value}}


def _security(arguments: argparse.Namespace) -> dict[str, Any]:
    security: dict[str, Any] = {}
    if arguments.user:
        try:
            security.update(parse_ids(arguments.user))
        except ValueError as error:
            raise UsageError(f"--user wants UID[:GID] in digits, got {arguments.user!r}") from error
    if arguments.read_only:
        security["readOnlyRootFilesystem"] = True
    if arguments.privileged:
        security["privileged"] = True
    return security


def _add_volumes(spec: dict[str, Any], container: dict[str, Any], volumes: list[str]) -> None:
    for number, text in enumerate(volumes):
        source, _, rest = text.rpartition(":") if text.endswith((":ro", ":rw")) else (text, "", "")
        parts = source.split(":")
        if len(parts) > 2 or not parts[-1].startswith("/") or not (parts[0].startswith("/") or is_subdomain(parts[0])):
            raise UsageError(f"--volume wants an absolute path or the name of a volume, SOURCE:PATH[:ro], got {text!r}")
        name = f"v{number}"
        volume: dict[str, Any] = {"hostPath": {"path": parts[0]}} if len(parts) == 2 else {"emptyDir": {}}
        if not parts[0].startswith("/"):
            volume = {"persistentVolumeClaim": {"claimName": parts[0]}}
        spec.setdefault("volumes", []).append({"name": name, **volume})
        mount = {"name": name, "mountPath": parts[-1], **({"readOnly": True} if rest == "ro" else {})}
        container.setdefault("volumeMounts", []).append(mount)


def _ports(text: str) -> list[dict[str, Any]]:
    try:
        ports = parse_ports(text)
    except ValueError as error:
        raise UsageError(f"--publish wants [IP:]PORT:PORT[/udp], got {text!r}", hint=str(error)) from error
    if not all("hostPort" in port for port in ports):
        raise UsageError(f"--publish wants [IP:]PORT:PORT[/udp], got {text!r}")
    return ports


def _read_settings(path: str) -> list[str]:
    """The lines of a file but for empty ones and comments, as docker and podman have it: what is in them is taken as it is."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [line for line in (line.rstrip("\n") for line in file) if line.strip() and not line.startswith("#")]


def _variables(settings: list[str]) -> list[dict[str, str]]:
    """The last one of a name counts."""
    found = {}
    for text in settings:
        name, equals, value = text.partition("=")
        found[name] = escape_variables(value if equals else os.environ.get(name, ""))
    return [{"name": name, "value": value} for name, value in found.items()]


def _size(text: str | None) -> str | None:
    try:
        return parse_size(text) if text else None
    except ValueError:
        return text  # a quantity of another form: the pod file's reader judges it


def _make_name(image: str) -> str:
    stem = image.partition("@")[0].rstrip("/").rpartition("/")[2].partition(":")[0].lower()
    kept = "".join(c if c.isascii() and (c.isalnum()) else "-" for c in stem).strip("-") or "pod"
    return f"{kept[:40].rstrip('-')}-{os.urandom(3).hex()}"


def _write(path: str, text: str) -> None:
    os.makedirs(DIRECTORY, mode=0o755, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)  # variables may be secrets
    except FileExistsError:
        raise UsageError(f"{path} is there already") from None
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def _check(name: str, path: str) -> None:
    from rktd_units.podfile.load import load_pod
    from rktd_units.podfile.search import PodEntry

    pod, diagnostics = load_pod(PodEntry(name, path))
    if pod is None:
        raise ConfigError("the options make no valid pod", diagnostics)


def _start(host: Host, name: str, at_end: list[tuple[str, ...]], *, held: bool) -> None:
    """Waits until the pod is up, or has failed to be. Raises FailedError."""
    unit = pod_unit(name)
    if at_end:
        unit = _transient_unit(name)
        bound = [pod_unit(name), *([f"podctl-run-{name}.scope"] if held else [])]
        before = [("/usr/bin/systemctl", "--no-block", "stop", pod_unit(name)), ("/usr/bin/systemctl", "reset-failed", pod_unit(name))]
        host.start_transient(unit, f"Ad-hoc pod {name}", bound, [*before, *at_end])
    else:
        host.start(unit)
    told = ""
    while host.properties(unit, "Unit", ("Job",))[0][0]:
        text = str(host.properties(stage0_unit(name), "Service", ("StatusText",))[0])
        if text != told and sys.stderr.isatty():
            told = text
            print(f"{name}: {text}", file=sys.stderr)
        time.sleep(_STEP)
    active, _ = host.state(name)
    fault = read_error(host.layout, name)
    if active == "failed" and not load_result(host.layout, name):
        raise FailedError(f"pod {name} did not start" + (f": {fault}" if fault else ""), hint=f"journalctl -u {pod_unit(name)}")


def _finish(host: Host, name: str) -> None:
    """Stops the pod, and waits until it has ended, stage0 has taken away what it had, and its transient unit is through."""
    host.stop(pod_unit(name))
    units = (pod_unit(name), stage0_unit(name), _transient_unit(name))
    while any(host.properties(unit, "Unit", ("ActiveState",))[0] in _UP for unit in units):
        time.sleep(_STEP)


def _forget(host: Host, name: str) -> None:
    """Of a start that failed or was interrupted nothing is left; what there is to say is in the journal."""
    with suppress(StateError):  # there was no start
        _finish(host, name)
    for unit in (pod_unit(name), stage0_unit(name)):
        host.reset_failed(unit)


def _transient_unit(name: str) -> str:
    return f"podctl-run-{name}.service"


def _unlink(path: str) -> None:
    try:  # noqa: SIM105
        os.unlink(path)
    except FileNotFoundError:
        pass


_UP = ("active", "activating", "deactivating", "reloading")

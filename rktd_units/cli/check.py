# SPDX-License-Identifier: Apache-2.0
"""`podctl check`: the diagnostics that the generator and stage0 would print, before anything is started."""

import argparse
import os
import sys
from typing import NamedTuple

from rktd_units.cli import output
from rktd_units.errors import EX_CONFIG, ConfigError, Diagnostic, RktdError
from rktd_units.names import is_pod_name
from rktd_units.paths import pod_search_path
from rktd_units.podfile.load import load_pod
from rktd_units.podfile.model import Pod
from rktd_units.podfile.ports import PortBook, host_ports
from rktd_units.podfile.search import PodEntry, find_pods, locate_pod
from rktd_units.selinux import ignored_options
from rktd_units.translate import translate_pod

_FORMS = ("text", "json", "json-pretty", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE..."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="pod files; without any, all of the search path")
    parser.add_argument("-o", "--output", choices=_FORMS, default=_FORMS[0], metavar="FORMAT", help=", ".join(_FORMS))


def run(arguments: argparse.Namespace) -> int:
    """Prints all diagnostics, sorted; 0, or 78 when there are errors among them."""
    directories = pod_search_path(dict(os.environ))
    found = check_files(arguments.files, directories) if arguments.files else check_all(directories)
    if arguments.output == "text":
        for diagnostic in found:
            print(diagnostic)
    else:
        sys.stdout.write(output.render_data([_describe(diagnostic) for diagnostic in found], arguments.output))
    return EX_CONFIG if any(diagnostic.severity == "error" for diagnostic in found) else 0


def _describe(diagnostic: Diagnostic) -> output.Record:
    """Line and column are null where it is about the file as a whole."""
    found: output.Record = {"file": diagnostic.file, "line": diagnostic.line or None, "column": diagnostic.column or None}
    found.update(path=diagnostic.path or None, severity=diagnostic.severity, message=diagnostic.message, hint=diagnostic.hint or None)
    return found


def check_all(directories: tuple[str, ...]) -> tuple[Diagnostic, ...]:
    """What is wrong with any pod of the search path."""
    found = find_pods(directories)
    return tuple(sorted({*found.diagnostics, *_check(dict.fromkeys(found.entries, True), ())}))


def check_files(files: list[str], directories: tuple[str, ...]) -> tuple[Diagnostic, ...]:
    """What is wrong with these files. One of the search path is checked with the drop-ins and the ownership that count there."""
    faults: list[Diagnostic] = []
    checked: dict[PodEntry, bool] = {}
    for path in files:
        found = find_entry(path, directories)
        faults += found.faults
        if found.entry:
            checked[found.entry] = found.is_installed
    names = {entry.name for entry in checked}
    others = tuple(entry for entry in find_pods(directories).entries if entry.name not in names)
    return tuple(sorted({*faults, *_check(checked, others)}))


def _check(entries: dict[PodEntry, bool], others: tuple[PodEntry, ...]) -> list[Diagnostic]:
    """What the generator would say of `entries`, each with whether its ownership counts, beside `others`."""
    faults: list[Diagnostic] = []
    pods = []
    for entry, is_installed in entries.items():
        pod, wrong = load_pod(entry, ownership=is_installed)
        faults += wrong
        if pod:
            pods.append(pod)
            if reason := ignored_options(pod):
                faults.append(Diagnostic(entry.path, 0, 0, "", reason, severity="warning"))
            try:
                translate_pod(pod)
            except RktdError as error:
                faults.append(Diagnostic(entry.path, 0, 0, "", str(error), error.hint))
    if any(host_ports(pod) for pod in pods):
        faults += _find_taken(pods, [pod for entry in others if (pod := load_pod(entry)[0])])
    return faults


def _find_taken(pods: list[Pod], others: list[Pod]) -> list[Diagnostic]:
    """The ports of `pods` that the generator gives to a pod before them."""
    ports, faults = PortBook(), []
    checked = {pod.name for pod in pods}
    for pod in sorted(pods + others, key=lambda pod: pod.name):
        taken = ports.enter(pod)
        if pod.name in checked:
            faults += list(taken)
    return faults


class Found(NamedTuple):
    """The pod of a file: `is_installed` when that is the file which the search path gives for its name."""

    entry: PodEntry | None
    is_installed: bool = False
    faults: tuple[Diagnostic, ...] = ()


def find_entry(path: str, directories: tuple[str, ...]) -> Found:
    base = os.path.basename(path)
    name = base.removesuffix(".yaml")
    if name == base:
        return Found(None, faults=(Diagnostic(path, 0, 0, "", "is not a pod file: the suffix must be .yaml"),))
    if not is_pod_name(name):
        return Found(None, faults=(Diagnostic(path, 0, 0, "", f"'{name}' is not a pod name", "the file's name is the pod's"),))
    try:
        entry, ignored = locate_pod(name, directories)
    except ConfigError:
        return Found(_beside(name, path))
    if os.path.abspath(path) == os.path.abspath(entry.path):
        return Found(entry, True, ignored)
    return Found(_beside(name, path))


def _beside(name: str, path: str) -> PodEntry:
    """A file outside the search path, with the drop-ins that lie beside it."""
    beside = next((e for e in find_pods((os.path.dirname(path) or ".",)).entries if e.name == name), None)
    return PodEntry(name, path, beside.drop_ins if beside else ())

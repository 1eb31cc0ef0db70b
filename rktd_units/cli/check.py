# SPDX-License-Identifier: Apache-2.0
"""`podctl check`: the diagnostics that the generator and stage0 would print, before anything is started."""

import argparse
import os

from rktd_units.errors import EX_CONFIG, ConfigError, Diagnostic
from rktd_units.names import is_pod_name
from rktd_units.paths import pod_search_path
from rktd_units.podfile.load import load_pod
from rktd_units.podfile.ports import PortBook
from rktd_units.podfile.search import PodEntry, find_pods, locate_pod


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE..."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="pod files; without any, all of the search path")


def run(arguments: argparse.Namespace) -> int:
    """Prints all diagnostics, sorted; 0, or 78 when there are errors among them."""
    directories = pod_search_path(dict(os.environ))
    found = check_files(arguments.files, directories) if arguments.files else check_all(directories)
    for diagnostic in found:
        print(diagnostic)
    return EX_CONFIG if any(diagnostic.severity == "error" for diagnostic in found) else 0


def check_all(directories: tuple[str, ...]) -> tuple[Diagnostic, ...]:
    """What is wrong with any pod of the search path."""
    found = find_pods(directories)
    faults = list(found.diagnostics)
    ports = PortBook()
    for entry in found.entries:
        pod, wrong = load_pod(entry)
        faults += wrong
        if pod:
            faults += ports.enter(pod)
    return tuple(sorted(faults))


def check_files(files: list[str], directories: tuple[str, ...]) -> tuple[Diagnostic, ...]:
    """What is wrong with these files. One of the search path is checked with the drop-ins and the ownership that count there."""
    faults: list[Diagnostic] = []
    for path in files:
        entry, installed = find_entry(path, directories)
        faults += load_pod(entry, ownership=installed)[1] if isinstance(entry, PodEntry) else (entry,)
    return tuple(sorted(set(faults)))


def find_entry(path: str, directories: tuple[str, ...]) -> tuple[PodEntry | Diagnostic, bool]:
    """The pod of a file, and whether that is the file which the search path gives for its name."""
    base = os.path.basename(path)
    name = base.removesuffix(".yaml")
    if name == base:
        return Diagnostic(path, 0, 0, "", "is not a pod file: the suffix must be .yaml"), False
    if not is_pod_name(name):
        return Diagnostic(path, 0, 0, "", f"'{name}' is not a pod name", "the file's name is the pod's"), False
    try:
        entry = locate_pod(name, directories)
    except ConfigError:
        return _beside(name, path), False
    if os.path.abspath(path) == os.path.abspath(entry.path):
        return entry, True
    return _beside(name, path), False


def _beside(name: str, path: str) -> PodEntry:
    """A file outside the search path, with the drop-ins that lie beside it."""
    beside = next((e for e in find_pods((os.path.dirname(path) or ".",)).entries if e.name == name), None)
    return PodEntry(name, path, beside.drop_ins if beside else ())

# SPDX-License-Identifier: Apache-2.0
"""`podctl convert`: files of Quadlet, Compose and rkt as pod files, or nothing of them, and what stands against it, with its place."""

import argparse
import os
import sys

from rktd_units.cli import output
from rktd_units.convert.load import Converted, convert_files
from rktd_units.errors import ConfigError, StateError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE..."""
    parser.add_argument("-d", "--directory", metavar="DIR", help="write NAME.yaml there for each pod, instead of printing them")
    parser.add_argument("--name", metavar="NAME", help="of a pod that has none: a manifest of rkt; else its file's")
    parser.add_argument("--partial", action="store_true", help="convert the rest although something cannot be converted")
    parser.add_argument("--no-pager", action="store_true", help="do not pipe the output into a pager")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="of Quadlet (.container, .pod, .kube, with .volume and .network), Compose (.yaml), or a pod manifest of rkt (.json)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Diagnostics on stderr, pod files on stdout or in a directory. Raises ConfigError when something is lost without --partial."""
    converted = convert_files(arguments.files, dict(os.environ), arguments.name or "")
    lost = tuple(found._replace(severity="warning") for found in converted.lost) if arguments.partial else converted.lost
    found = tuple(sorted((*converted.faults, *lost)))
    if any(diagnostic.severity == "error" for diagnostic in found):
        hint = "--partial leaves out what cannot be converted" if lost and not arguments.partial else ""
        raise ConfigError("nothing was converted", found, hint=hint)
    for diagnostic in found:
        print(diagnostic, file=sys.stderr)
    pods = [(name, _render_losses(converted) + text) for name, text in converted.pods]
    if arguments.directory:
        _write(arguments.directory, pods)
    elif len(pods) == 1:
        output.write(arguments, pods[0][1])
    else:
        output.write(arguments, "---\n".join(f"# {name}.yaml\n{text}" for name, text in pods))
    return 0


def _render_losses(converted: Converted) -> str:
    return "".join(f"# {line}\n" for diagnostic in converted.lost for line in str(diagnostic).splitlines())


def _write(directory: str, pods: list[tuple[str, str]]) -> None:
    """All of them, or none: a file that is there is not replaced. Only their owner reads them: values of .env and the like are in them."""
    there = [path for name, _ in pods if os.path.lexists(path := os.path.join(directory, f"{name}.yaml"))]
    if there:
        raise StateError(f"{there[0]} is there already", hint="another --directory, or remove it")
    if not os.path.isdir(directory):
        raise UsageError(f"{directory} is not a directory")
    for name, text in pods:
        path = os.path.join(directory, f"{name}.yaml")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        print(path)

# SPDX-License-Identifier: Apache-2.0
"""`podctl generate`: the units of a pod file, byte for byte as rktd-generator would write them; nothing is installed."""

import argparse
import os
import sys

from rktd_units.cli import check, output
from rktd_units.errors import ConfigError
from rktd_units.paths import pod_search_path
from rktd_units.podfile.load import load_pod
from rktd_units.translate import translate_pod


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE..."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="pod files")
    parser.add_argument("--no-pager", action="store_true", help="do not pipe the output into a pager")


def run(arguments: argparse.Namespace) -> int:
    """Every drop-in under a comment with its path, and the links; raises ConfigError with all that is wrong."""
    directories = pod_search_path(dict(os.environ))
    parts = []
    for path in arguments.files:
        place = check.find_entry(path, directories)
        if place.entry is None:
            raise ConfigError(f"{path} cannot be read as a pod file", place.faults)
        pod, diagnostics = load_pod(place.entry, ownership=place.is_installed)
        if pod is None:
            raise ConfigError(f"pod file {path} is not valid", diagnostics)
        for diagnostic in (*place.faults, *diagnostics):
            print(diagnostic, file=sys.stderr)
        found = translate_pod(pod)
        parts += [f"{output.paint(f'# {name}', 'bold')}\n{text}" for name, text in found.files]
        parts += [f"{output.paint(f'# {name} -> {target}', 'bold')}\n" for name, target in found.links]
    output.write(arguments, "\n".join(parts))
    return 0

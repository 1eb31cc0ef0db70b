# SPDX-License-Identifier: Apache-2.0
"""`podctl cat`: the files of a pod: its own, drop-ins, units of the host; while it runs, stage1's plan and the app units, too."""

import argparse
import os

from rktd_units.cli import output
from rktd_units.cli.pods import Host
from rktd_units.errors import NotFoundError
from rktd_units.names import pod_unit, stage0_unit
from rktd_units.runfiles import list_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME..."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="pods")
    parser.add_argument("--file-only", action="store_true", help="only the pod file and its drop-ins")
    parser.add_argument("--no-pager", action="store_true", help="do not pipe the output into a pager")


def run(arguments: argparse.Namespace) -> int:
    """Each file under a comment with its path, as systemctl cat has it."""
    host = Host()
    paths: list[str] = []
    for name in host.require(arguments.names):
        entry = host.entries.get(name)
        found = [entry.path, *entry.drop_ins] if entry else []
        if not arguments.file_only:
            for unit in (pod_unit(name), stage0_unit(name)):
                fragment, drop_ins = host.properties(unit, "Unit", ("FragmentPath", "DropInPaths"))
                found += [fragment, *drop_ins]
            found += _list_run(host.layout.pod(name))
        if not any(map(os.path.exists, found)):
            raise NotFoundError(f"not found: pod {name} has no file")
        paths += found
    output.write(arguments, "\n".join(filter(None, map(_read, dict.fromkeys(paths)))))
    return 0


def _list_run(directory: str) -> list[str]:
    """Of these there is what its stage1 has; a guest's units are in its ramdisk."""
    units = f"{directory}/root/etc/systemd/system"
    names = list_names(units) if os.access(units, os.R_OK) else []
    own = [f"{units}/{name}" for name in names if os.path.isfile(f"{units}/{name}") and not os.path.islink(f"{units}/{name}")]
    return [f"{directory}/plan", f"{directory}/domain.cfg", *own]


def _read(path: str) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return ""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
    return f"{output.paint(f'# {path}', 'bold')}\n{shown.rstrip()}\n"

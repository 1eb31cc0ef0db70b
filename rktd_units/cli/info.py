# SPDX-License-Identifier: Apache-2.0
"""`podctl info`: the versions, places and counts that a bug report needs."""

import argparse
import os
import platform
from typing import Any

import rktd_units
from rktd_units.cgroups import cgroup_root, read_quietly
from rktd_units.cli import output
from rktd_units.cli.pods import Host

_FORMS = ("yaml", "json", "json-pretty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No operands."""
    output.add_arguments(parser, formats=_FORMS)


def run(arguments: argparse.Namespace) -> int:
    """Prints one record."""
    host = Host()
    names = host.names()
    states = [host.units.get(f"pod@{name}.service", ("", "inactive", ""))[1] for name in names]
    record: dict[str, Any] = {"version": rktd_units.__version__, "python": platform.python_version(), "kernel": os.uname().release}
    record.update(machine=os.uname().machine, systemd=host.version(), podPath=list(host.directories))
    record.update(config=host.layout.config, state=host.layout.state, run=host.layout.run)
    record["pods"] = {"known": len(names), "running": sum(s == "active" for s in states), "failed": sum(s == "failed" for s in states)}
    record["features"] = {
        "cgroupMemory": "memory" in read_quietly(f"{cgroup_root()}/cgroup.controllers").split(),
        "erofs": "erofs" in read_quietly("/proc/filesystems").split(),
        "overlay": "overlay" in read_quietly("/proc/filesystems").split(),
    }
    output.write(arguments, output.render_data(record, arguments.output))
    return 0

# SPDX-License-Identifier: Apache-2.0
"""`podctl list`: every pod that has a file or runs."""

import argparse

from rktd_units.cli import output
from rktd_units.cli.output import Column, Record, format_text
from rktd_units.cli.pods import Host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[NAME...]"""
    parser.add_argument("names", nargs="*", metavar="NAME", help="these pods only")
    parser.add_argument("-a", "--all", action="store_true", help="all pods, as without it")
    parser.add_argument("--running", action="store_true", help="only pods that run, start or stop")
    output.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints a record each; faults of pod files and directories are in the records."""
    host = Host()
    records = host.describe(host.require(arguments.names) if arguments.names else host.names())
    if arguments.running:
        records = [record for record in records if record["state"] not in ("inactive", "failed")]
    output.print_records(arguments, records, _COLUMNS, "pod")
    return 0


def _state(record: Record) -> str:
    if record["fault"] and record["state"] == "inactive":
        return output.paint("broken", "red")
    if record["listening"] and record["state"] == "inactive":
        return "listening"
    state = output.paint_state("restarting" if record["subState"] == "auto-restart" else record["state"])
    return f"{state} (changed)" if record["changed"] else state


def _ready(record: Record) -> str:
    return "-" if record["appsTotal"] is None else f"{record['appsReady']}/{record['appsTotal']}"


_COLUMNS = (
    Column("NAME", lambda r: str(r["name"])),
    Column("STAGE1", lambda r: format_text(r["stage1"])),
    Column("STATE", _state),
    Column("READY", _ready, right=True),
    Column("RESTARTS", lambda r: str(r["restarts"]), right=True),
    Column("AGE", lambda r: output.format_age(output.seconds_since(r["since"])), right=True),
    Column("ADDRESS", lambda r: format_text(r["address"])),
)

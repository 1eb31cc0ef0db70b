# SPDX-License-Identifier: Apache-2.0
"""`podctl show`: all that is known of pods, as records."""

import argparse

from rktd_units.cli import output
from rktd_units.cli.pods import Host

_FORMS = ("yaml", "json", "json-pretty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME..."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="pods")
    output.add_arguments(parser, formats=_FORMS)


def run(arguments: argparse.Namespace) -> int:
    """Prints the record of one pod, or a list of records."""
    host = Host()
    records = host.describe(host.require(arguments.names))
    output.write(arguments, output.render_data(records[0] if len(records) == 1 else records, arguments.output))
    return 0

# SPDX-License-Identifier: Apache-2.0
"""podctl's entry: one table of verbs, the argument parser made from it, and the only `except` that ends a run."""

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import rktd_units
from rktd_units.cli import check
from rktd_units.errors import RktdError

EX_USAGE = 64


class Verb(NamedTuple):
    """One verb: `add_arguments` fills its parser, `run` does the work and gives the exit code."""

    help: str
    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None


def print_version(arguments: argparse.Namespace) -> int:
    """`podctl version`."""
    print(f"podctl {rktd_units.__version__}")
    return 0


VERBS: dict[str, Verb] = {
    "check": Verb("read pod files and tell all that is wrong with them", check.run, check.add_arguments),
    "version": Verb("print the version", print_version),
}


class _Parser(argparse.ArgumentParser):
    """Ends with sysexits' 64 where argparse has 2."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; the parsed `verb` is a key of VERBS."""
    parser = _Parser(
        prog="podctl", description="Pods as units of systemd: what there is beside systemctl and journalctl.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.help, description=verb.help, allow_abbrev=False)
        if verb.add_arguments:
            verb.add_arguments(sub)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; gives its exit code (sysexits). `argv` is without the program's name."""
    arguments = build_parser().parse_args(argv)
    try:
        return VERBS[arguments.verb].run(arguments)
    except RktdError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        print(f"podctl: {error}{hint}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone: nobody is left to tell
        return 141

# SPDX-License-Identifier: Apache-2.0
"""`podctl events`: what became of pods, from the journal: systemd's own records of their units, and what a pod says of its apps."""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rktd_units.cli import output
from rktd_units.cli.logs import require_journal
from rktd_units.cli.output import Column, Record, format_text, format_time
from rktd_units.cli.pods import Host, split_unit
from rktd_units.errors import FailedError
from rktd_units.names import is_pod_name, pod_unit, stage0_unit

_FORMS = ("table", "json", "json-pretty", "yaml")
_LINES = 20  # of the past, with --follow
# Message ids of sd-messages.h
_EVENTS = {
    "7d4958e842da4a758f6c1cdc7b36dcc5": "starting",
    "39f53479d3a045ac8e11786248231fbf": "started",
    "be02cf6855d2428ba40df7e9d022f03d": "failed",
    "de5b426a63be47a7b6ac3eaac82e2f6f": "stopping",
    "9d1aaa27d60140bd96365438aad20286": "stopped",
    "d9b373ed55a64feb8242e02dbe79a49c": "failed",
    "7ad2d189f7e94e70a38c781354912448": "ended",
    "5eb03494b6584870a536b337290809b3": "restarting",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[NAME...]"""
    parser.add_argument("names", nargs="*", metavar="NAME", help="pods; without any, all")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens from now on")
    parser.add_argument("-n", "--lines", type=output.parse_count, default=None, metavar="N", help="the last N events; 20 with --follow")
    parser.add_argument("-S", "--since", metavar="TIME", help="events from then on, as journalctl understands it")
    parser.add_argument(
        "-o", "--output", choices=_FORMS, default="table", metavar="FORMAT", help=f"{', '.join(_FORMS)}; json: one record a line"
    )
    parser.add_argument("--no-legend", action="store_true", help="print no titles")
    parser.add_argument("--no-pager", action="store_true", help="do not pipe the output into a pager")


def run(arguments: argparse.Namespace) -> int:
    """Prints each event once; with --follow until interrupted."""
    names = Host().require(arguments.names) if arguments.names else []
    require_journal()
    argv = ["journalctl", "--quiet", "--output=json", "--all", "--no-pager"]
    since = [f"--since={arguments.since}"] if arguments.since else []
    matches = render_matches(names)
    lines = arguments.lines if arguments.lines is not None or since or not arguments.follow else _LINES
    found = list(islice(_read([*argv, *since, "--reverse", *matches]), lines if lines is None else max(lines, 1)))[::-1]
    records = [record for _, record in found] if lines != 0 else []
    if not arguments.follow:
        output.write(arguments, _render(arguments, records, legend=not arguments.no_legend))
        return 0
    print(_render(arguments, records), end="", flush=True)
    after = [f"--after-cursor={found[-1][0]}"] if found else since
    for _, record in _read([*argv, *after, "--follow", "--lines=all", *matches]):
        print(_render(arguments, [record]), end="", flush=True)
    return 0


def render_matches(names: list[str]) -> list[str]:
    """journalctl's arguments that find the events of pods, or of all, those too that nobody has heard of yet. They may find more."""
    systemd = ["_PID=1", *(f"MESSAGE_ID={identity}" for identity in _EVENTS)]
    systemd += [f"UNIT={unit(name)}" for name in names for unit in (pod_unit, stage0_unit)]
    return [*systemd, "+", "SYSLOG_IDENTIFIER=pod", *(f"_SYSTEMD_UNIT={pod_unit(name)}" for name in names)]


def _render(arguments: argparse.Namespace, records: list[Record], *, legend: bool = False) -> str:
    """More may come after them."""
    if arguments.output == "table":
        return output.render_table(records, _COLUMNS, legend=legend)
    return "".join(output.render_data([record] if arguments.output == "yaml" else record, arguments.output) for record in records)


def _read(argv: list[str]) -> Iterator[tuple[str, Record]]:
    """(cursor, event). Raises FailedError where journalctl ends with a failure, which it has told."""
    from rktd_units.proc import start

    journal = start(argv)
    assert journal.stdout is not None
    try:
        for line in journal.stdout:
            if entry := parse_entry(line):
                yield entry
        if code := journal.wait():
            raise FailedError(f"journalctl has failed: exit code {code}")
    finally:
        journal.kill()
        journal.wait()


def parse_entry(line: bytes) -> tuple[str, Record] | None:
    """(cursor, event) of a journal entry; None for what is none. Systemd is believed when PID 1 says it, a pod's own words as such only."""
    try:
        entry: dict[str, Any] = json.loads(line)
        stamp, cursor, message = int(entry["__REALTIME_TIMESTAMP"]), str(entry["__CURSOR"]), str(entry.get("MESSAGE", ""))
    except (ValueError, KeyError, TypeError):
        return None
    unit = str(entry.get("UNIT" if entry.get("_PID") == "1" else "_SYSTEMD_UNIT", ""))
    pod = split_unit(unit)
    if not is_pod_name(pod) or not unit.startswith(("pod@", "pod-stage0@")):
        return None
    if entry.get("_PID") == "1":
        event = _EVENTS.get(str(entry.get("MESSAGE_ID")))
        stage = "stage0" if unit.startswith("pod-stage0@") else "pod"
    else:
        event = "failed" if message.startswith("app ") and entry.get("SYSLOG_IDENTIFIER") == "pod" else None
        stage = "app"
    return None if event is None else (cursor, {"time": format_time(stamp), "pod": pod, "stage": stage, "event": event, "message": message})


_COLUMNS = (
    Column("TIME", lambda r: str(r["time"])),
    Column("POD", lambda r: str(r["pod"])),
    Column("STAGE", lambda r: str(r["stage"])),
    Column("EVENT", lambda r: output.paint(r["event"], "red" if r["event"] == "failed" else "")),
    Column("MESSAGE", lambda r: format_text(r["message"])),
)

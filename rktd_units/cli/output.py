# SPDX-License-Identifier: Apache-2.0
"""How verbs print: records as table, JSON or YAML, colours and pager by systemd's rules, sizes and times as systemctl writes them.

Records are what the documented schemas describe (docs/podctl-output.md): plain dicts with exact numbers. Only the table rounds.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rktd_units.errors import UsageError, clean_text

FORMATS = ("table", "json", "json-pretty", "yaml")
Record = dict[str, Any]
_COLOURS = {"red": "\x1b[1;31m", "green": "\x1b[1;32m", "yellow": "\x1b[1;33m", "grey": "\x1b[90m", "bold": "\x1b[1m"}
_FALSE = ("0", "no", "n", "false", "f", "off")
_STATES = {"active": "green", "running": "green", "failed": "red", "activating": "yellow", "deactivating": "yellow", "restarting": "yellow"}


class Column(NamedTuple):
    """One column of a table: `title` in capitals, `text` a record's cell; numbers stand to the right."""

    title: str
    text: Callable[[Record], str]
    right: bool = False


def add_arguments(parser: argparse.ArgumentParser, *, formats: Sequence[str] = FORMATS) -> None:
    """The options that every verb with records has; the first of `formats` is the default."""
    parser.add_argument("-o", "--output", choices=formats, default=formats[0], metavar="FORMAT", help=", ".join(formats))
    parser.add_argument("--no-legend", action="store_true", help="print neither titles nor a count")
    parser.add_argument("--no-pager", action="store_true", help="do not pipe the output into a pager")


def print_records(arguments: argparse.Namespace, records: Sequence[Record], columns: Sequence[Column], noun: str) -> None:
    """A list in the format asked for. `noun` is what the legend counts, such as "pod"."""
    if arguments.output != "table":
        write(arguments, render_data(list(records), arguments.output))
        return
    text = render_table(records, columns, legend=not arguments.no_legend)
    if not arguments.no_legend:
        text += f"\n{len(records)} {noun if len(records) == 1 else plural(noun)} listed.\n"
    write(arguments, text)


def plural(noun: str) -> str:
    """Of the nouns that we count."""
    return noun + ("es" if noun.endswith("s") else "s")


def render_data(value: Any, form: str) -> str:
    """JSON on one line, JSON with indentation, or YAML. Keys stand in the order of the record."""
    if form == "yaml":
        import yaml

        return str(yaml.dump(value, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1 << 16))
    import json

    return json.dumps(value, ensure_ascii=False, indent=2 if form == "json-pretty" else None) + "\n"


def render_table(records: Sequence[Record], columns: Sequence[Column], *, legend: bool = True) -> str:
    """Columns as wide as what is in them; nothing is cut. A cell may hold colours, which count no width."""
    rows = [[column.title for column in columns]] if legend else []
    rows += [[column.text(record) for column in columns] for record in records]
    widths = [max((len(strip_colours(row[i])) for row in rows), default=0) for i in range(len(columns))]
    lines = []
    for row in rows:
        cells = []
        for cell, width, column in zip(row, widths, columns, strict=True):
            gap = " " * (width - len(strip_colours(cell)))
            cells.append(gap + cell if column.right else cell + gap)
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def write(arguments: argparse.Namespace, text: str) -> None:
    """To standard output; through the pager where that is a terminal and nobody has forbidden it."""
    argv = [] if getattr(arguments, "no_pager", False) or not text else find_pager()
    if argv:
        from rktd_units.proc import page

        if page(argv, text):
            return
    sys.stdout.write(text)
    sys.stdout.flush()


def find_pager() -> list[str]:
    """The pager's command line, or [] for none: SYSTEMD_PAGER, PAGER, less (environment variables of systemctl(1))."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return []
    chosen = os.environ.get("SYSTEMD_PAGER", os.environ.get("PAGER"))
    if chosen is None:
        return ["less"]
    words = chosen.split()
    return [] if words in ([], ["cat"]) else words


def has_colours() -> bool:
    """SYSTEMD_COLORS, then NO_COLOR, then whether a terminal reads (systemctl(1))."""
    chosen = os.environ.get("SYSTEMD_COLORS")
    if chosen is not None:
        return chosen.lower() not in _FALSE
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb" and sys.stdout.isatty()


def paint(text: str, colour: str) -> str:
    """Text in a colour (red, green, yellow, grey, bold), where colours are wanted."""
    return f"{_COLOURS[colour]}{text}\x1b[0m" if colour and text and has_colours() else text


def paint_state(state: str) -> str:
    """A state of a unit, in the colour that systemctl gives it."""
    return paint(state, _STATES.get(state, ""))


def strip_colours(text: str) -> str:
    """The text without `paint`'s marks."""
    if "\x1b" in text:
        for mark in (*_COLOURS.values(), "\x1b[0m"):
            text = text.replace(mark, "")
    return text


def format_text(value: object) -> str:
    """A stranger's text in a cell; "-" for none."""
    return "-" if value is None or value == "" else clean_text(value)


def format_bytes(count: int | None) -> str:
    """As systemctl does: base 1024, one decimal, cut, not rounded: 981B, 1.2M."""
    if count is None:
        return "-"
    for power, suffix in ((60, "E"), (50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if count >= 1 << power:
            whole, rest = divmod(count, 1 << power)
            return f"{whole}.{rest * 10 >> power}{suffix}"
    return f"{count}B"


def format_age(seconds: float | None) -> str:
    """The two largest units, as systemctl's times: 4s, 2min 3s, 3h 5min, 2d 1h; "-" for None."""
    if seconds is None:
        return "-"
    left = max(int(seconds), 0)
    if left == 0:
        return "0s"
    parts = []
    for size, name in ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{name}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)


def format_time(microseconds: int) -> str | None:
    """A systemd timestamp (µs since 1970; 0 is never) as records have it: RFC 3339, UTC. None too for what has no such form.

    That is what years beyond 9999 are: a pod's own systemd may say anything.
    """
    if not 0 < microseconds < 253402300800_000000:
        return None
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(microseconds // 1_000_000))


def seconds_since(stamp: str | None) -> float | None:
    """The age of a time as `format_time` gives it."""
    if stamp is None:
        return None
    import time

    year, month, day, hour, minute, second = (int(stamp[i:j]) for i, j in ((0, 4), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19)))
    year -= month < 3  # the year begins in March, so that its odd day is the last one; `calendar` would cost 6 ms
    days = year * 365 + year // 4 - year // 100 + year // 400 + (153 * ((month + 9) % 12) + 2) // 5 + day - 719469
    return time.time() - (days * 86400 + hour * 3600 + minute * 60 + second)


def parse_count(text: str) -> int:
    """A number of lines and the like, for argparse. Raises UsageError."""
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"'{text}' is not a number")
    return int(text)

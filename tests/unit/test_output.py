# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import sys
import time

import pytest
import yaml

from rktd_units.cli import output
from rktd_units.cli.output import Column, format_age, format_bytes, format_time


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0B"), (1023, "1023B"), (1100, "1.0K"), (1536, "1.5K"), (256 << 20, "256.0M"), ((1 << 30) - 1, "1023.9M")],
)
def test_bytes(count: int | None, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0s"), (59, "59s"), (60, "1min"), (123, "2min 3s"), (3605, "1h"), (11100, "3h 5min"), (90000, "1d 1h")],
)
def test_age(seconds: float | None, text: str) -> None:
    assert format_age(seconds) == text


def test_time() -> None:
    assert format_time(0) is None
    assert [format_time(odd) for odd in (-1, 253402300800_000000, 1 << 63, (1 << 64) - 1)] == [None] * 4  # what a pod's systemd may say
    assert format_time(253402300799_999999) == "9999-12-31T23:59:59Z"
    assert format_time(1_700_000_000_999_999) == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize("stamp", [0, 951782400, 951868799, 1709164800, 1709251200, 1735689599, 4102444800])
def test_seconds_since(stamp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 5_000_000_000.0)
    text = output.format_time(stamp * 1_000_000) or "1970-01-01T00:00:00Z"
    assert output.seconds_since(text) == 5_000_000_000 - stamp
    assert output.seconds_since(None) is None


COLUMNS = (Column("NAME", lambda r: output.paint_state(r["name"])), Column("SIZE", lambda r: format_bytes(r["size"]), right=True))
RECORDS = [{"name": "active", "size": 10}, {"name": "é", "size": 5 << 20}]


def arguments(form: str = "table", *, legend: bool = True) -> argparse.Namespace:
    return argparse.Namespace(output=form, no_legend=not legend, no_pager=True)


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEMD_COLORS", "0")
    output.print_records(arguments(), RECORDS, COLUMNS, "pod")
    assert capsys.readouterr().out == "NAME    SIZE\nactive   10B\né       5.0M\n\n2 pods listed.\n"
    output.print_records(arguments(legend=False), RECORDS[:1], COLUMNS, "pod")
    assert capsys.readouterr().out == "active  10B\n"
    output.print_records(arguments(), [], COLUMNS, "pod")
    assert capsys.readouterr().out == "NAME  SIZE\n\n0 pods listed.\n"


def test_data(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_records(arguments("json"), RECORDS, COLUMNS, "pod")
    text = capsys.readouterr().out
    assert json.loads(text) == RECORDS
    assert text.count("\n") == 1
    output.print_records(arguments("yaml"), RECORDS, COLUMNS, "pod")
    assert yaml.safe_load(capsys.readouterr().out) == RECORDS
    output.print_records(arguments("json-pretty"), RECORDS, COLUMNS, "pod")
    assert json.loads(capsys.readouterr().out) == RECORDS


@pytest.mark.parametrize(
    ("variables", "terminal", "colours"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1", "SYSTEMD_COLORS": "1"}, True, True),
        ({"SYSTEMD_COLORS": "256"}, False, True),
        ({"TERM": "xterm", "SYSTEMD_COLORS": "no"}, True, False),
    ],
)
def test_colours(variables: dict[str, str], terminal: bool, colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERM", "NO_COLOR", "SYSTEMD_COLORS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert output.has_colours() is colours
    assert output.strip_colours(output.paint("x", "red")) == "x"


@pytest.mark.parametrize(
    ("variables", "argv"),
    [({}, ["less"]), ({"PAGER": "more -d"}, ["more", "-d"]), ({"PAGER": "more", "SYSTEMD_PAGER": ""}, []), ({"SYSTEMD_PAGER": "cat"}, [])],
)
def test_pager(variables: dict[str, str], argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAGER", "SYSTEMD_PAGER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    assert output.find_pager() == []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert output.find_pager() == argv

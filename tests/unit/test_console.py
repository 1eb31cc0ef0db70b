# SPDX-License-Identifier: Apache-2.0
"""A hostile guest: whatever it writes to its console, only what console.py's records can say comes out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rktd_units.journal import render_record
from rktd_units.stage1 import console
from rktd_units.stage1.console import Ended, Exit, Failed, Line, Lost, Noise, Probed, Reader, Ready, Record, Up


def read(*chunks: bytes, apps: tuple[str, ...] = ("web", "db")) -> list[Record]:
    reader = Reader(apps)
    return [record for chunk in chunks for record in reader.feed(chunk)] + list(reader.flush())


def frame(n: int = 1, **fields: Any) -> bytes:
    return json.dumps({"n": n, **fields}, separators=(",", ":")).encode() + b"\n"


def line(**fields: Any) -> bytes:
    return frame(**{"app": "web", "p": 6, "pid": 7, "t": 1000, "m": "hello", **fields})


def test_lines_of_apps() -> None:
    assert read(line(), line(n=2, app="db", p=3, m="über\tä")) == [
        Line("web", 6, 7, 1000, b"hello"),
        Line("db", 3, 7, 1000, "über\tä".encode()),
    ]


def test_events() -> None:
    told = frame(1, up=1, app="db") + frame(2, probe="ready", app="db") + frame(3, probe="no way", app="db")
    assert read(told) == [Up("db"), Probed("db", "ready"), Noise('{"n":3,"probe":"no way","app":"db"}')]
    data = frame(1, ready=1) + frame(2, result="exited 3 exit-code", app="web") + frame(3, exit=3) + frame(4, failed="no\nroot")
    assert read(frame(1, ready=1, init=5, systemd=6, now=7)) == [Ready(5, 6, 7)]
    assert read(data) == [Ready(), Ended("web", ("exited", "3", "exit-code")), Exit(3), Failed("no?root")]


def test_bytes_that_are_no_text() -> None:
    assert read(line(m="a\udcff\udc80b")) == [Line("web", 6, 7, 1000, b"a\xff\x80b")]
    assert read(line(m="a\ud800b")) == [Line("web", 6, 7, 1000, b"a?b")]


def test_kernel_text_before_a_frame() -> None:
    """systemd resets the terminal without an end of the line."""
    assert read(b"\x1bc\x1b[!p\x1b]104\x07\x1b[?7h" + line()) == [Line("web", 6, 7, 1000, b"hello")]
    assert read(b"[ 1.5] \x1b[31mPanic\x1b[0m" + line()) == [Noise("[ 1.5] Panic"), Line("web", 6, 7, 1000, b"hello")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"app": "sshd"}, Line("kernel", 6, 7, 1000, b"hello")),
        ({"app": ["web"]}, Line("kernel", 6, 7, 1000, b"hello")),
        ({"app": "pod"}, Line("pod", 6, 7, 1000, b"hello")),
        ({"p": 0}, Line("web", 1, 7, 1000, b"hello")),
        ({"p": 0, "app": "pod"}, Line("pod", 1, 7, 1000, b"hello")),
        ({"p": 8}, Line("web", 6, 7, 1000, b"hello")),
        ({"p": -1}, Line("web", 6, 7, 1000, b"hello")),
        ({"p": "0"}, Line("web", 6, 7, 1000, b"hello")),
        ({"p": True}, Line("web", 6, 7, 1000, b"hello")),
        ({"pid": 1 << 30}, Line("web", 6, 0, 1000, b"hello")),
        ({"pid": 1.5}, Line("web", 6, 0, 1000, b"hello")),
        ({"t": -5}, Line("web", 6, 7, 0, b"hello")),
        ({"t": 10**40}, Line("web", 6, 7, 0, b"hello")),
        ({"_UID": 0, "OBJECT_PID": 1, "UNIT": "ssh.service", "_SYSTEMD_UNIT": "x"}, Line("web", 6, 7, 1000, b"hello")),
        ({"m": "one\nPRIORITY=0\nUNIT=ssh.service"}, Line("web", 6, 7, 1000, b"one\nPRIORITY=0\nUNIT=ssh.service")),
        ({"m": "\x1b]0;evil\x07"}, Line("web", 6, 7, 1000, b"\x1b]0;evil\x07")),
    ],
)
def test_forged_fields(fields: dict[str, Any], expected: Line) -> None:
    assert read(line(**fields)) == [expected]


@pytest.mark.parametrize(
    "data",
    [
        b'{"n":1,"app":"web","m":"cut\n',
        b'{"n":1,"m":5}\n',
        b'{"n":0,"m":"zero"}\n',
        b'{"n":true,"m":"one"}\n',
        b'{"n":1e3,"m":"float"}\n',
        b'{"n":1,"exit":256}\n',
        b'{"n":1,"exit":-1}\n',
        b'{"n":1,"exit":true}\n',
        b'{"n":1,"result":"exited 0 success","app":"sshd"}\n',
        b'{"n":1,"result":"exited 0","app":"web"}\n',
        b'{"n":1,"result":"../x 0 /etc","app":"web"}\n',
        b'{"n":' + b"[" * 100_000 + b"\n",
        b'{"n":' + b"9" * 10_000 + b"}\n",
        b"[1,2]\n",
        b"\xff\xfe\x1b[2J\n",
        b"EXIT=0\n",
    ],
    ids=range(16),
)
def test_what_is_no_frame_is_text_of_the_kernel(data: bytes) -> None:
    records = read(data)
    (record,) = records
    assert isinstance(record, Noise)
    assert record.text.isprintable()
    assert len(record.text) <= console.NOISE_MAX


def test_missing_lines_are_told() -> None:
    assert read(line(n=1), line(n=5)) == [Line("web", 6, 7, 1000, b"hello"), Lost(3), Line("web", 6, 7, 1000, b"hello")]
    assert read(line(n=1), line(n=1)) == [Line("web", 6, 7, 1000, b"hello")] * 2


def test_a_line_without_an_end_is_bounded() -> None:
    """It is told once, skipped to its end, and what comes after it counts again."""
    reader = Reader(("web",))
    records: list[Record] = []
    for _ in range(100):
        records += reader.feed(b"x" * 100_000)
        assert len(reader._rest) <= console.LINE_MAX
    assert records == [Noise("x" * console.NOISE_MAX)]
    assert list(reader.feed(b"end\n" + line())) == [Line("web", 6, 7, 1000, b"hello")]


def test_a_message_is_bounded() -> None:
    (record,) = read(line(m="y" * 400_000))
    assert isinstance(record, Line)
    assert len(record.message) == console.TEXT_MAX


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes(chunks: list[bytes]) -> None:
    for record in read(*chunks):
        if isinstance(record, Line):
            assert record.app in ("web", "db", "kernel", "pod")
            assert 1 <= record.priority <= 7


@given(st.lists(st.integers(1, 40), max_size=20))
def test_chunks_make_no_difference(sizes: list[int]) -> None:
    data = b"boot\n" + line() + frame(2, ready=1) + line(n=3, m="z" * 50) + b"rest"
    chunks = []
    rest = data
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    assert read(*chunks, rest) == read(data)


def test_no_value_makes_another_field() -> None:
    record = render_record([("MESSAGE", b"one\nUNIT=ssh.service"), ("PRIORITY", b"6")])
    assert record == b"MESSAGE\n\x14\0\0\0\0\0\0\0one\nUNIT=ssh.service\nPRIORITY=6\n"

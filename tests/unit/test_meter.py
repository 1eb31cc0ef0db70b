# SPDX-License-Identifier: Apache-2.0
import os
import time
from pathlib import Path

import pytest

from rktd_units.images.manifest import LAYERS_MAX
from rktd_units.images.meter import Meter, Watch, read_parts
from rktd_units.images.progress import CONVERTING, FETCHING, READY, Event, Part, StatusLine, format_size

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_meter_and_reader_agree(tmp_path: Path) -> None:
    path = str(tmp_path / "progress")
    meter = Meter(path)
    meter.update(A, 0, 10)
    assert read_parts(path) == (Part(A, 0, 10),)
    meter.update(B, 0, 5)  # too soon for another file
    assert read_parts(path) == (Part(A, 0, 10),)
    meter._written = 0
    meter.update(A, 3, 10)
    assert read_parts(path) == (Part(A, 3, 10), Part(B, 0, 5))
    assert os.listdir(tmp_path) == ["progress"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x00\xff" * 5000,
        b"a 1 2\n",
        b"%b 1\n" % A[7:].encode(),
        b"%b 3 2\n" % A[7:].encode(),
        b"%b -3 2\n" % A[7:].encode(),
        b"%b 1 %d\n" % (A[7:].encode(), 1 << 60),
        b"%b x 2\n" % A[7:].encode(),
        b"%b 1 %b\n" % (A[7:].encode(), b"9" * 5000),
        b"\xff" * 64 + b" 1 2\n",
    ],
)
def test_hostile_file(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "progress").write_bytes(text)
    assert read_parts(str(tmp_path / "progress")) == ()


def test_hostile_file_is_bounded_and_regular(tmp_path: Path) -> None:
    (tmp_path / "progress").write_bytes(b"%b 1 2\n" % A[7:].encode() * 100_000)
    assert len(read_parts(str(tmp_path / "progress"))) == LAYERS_MAX + 2
    (tmp_path / "progress").unlink()
    os.mkfifo(tmp_path / "progress")
    assert read_parts(str(tmp_path / "progress")) == ()


def test_watch(tmp_path: Path) -> None:
    events: list[Event] = []
    path = tmp_path / "progress"
    with Watch(str(path), Event(FETCHING, "a/b:1"), events.append):
        path.write_text(f"{A[7:]} 1024 4096\n{B[7:]} 5 5\n")
        deadline = time.monotonic() + 5
        while not events and time.monotonic() < deadline:
            time.sleep(0.02)
    assert events[0].parts == (Part(A, 1024, 4096), Part(B, 5, 5))
    assert str(events[0]).startswith("fetching a/b:1: 1.0K of 4.0K, 1 of 2 blobs, ")


def test_status_line() -> None:
    told: list[str] = []
    line = StatusLine(told.append)
    line(Event(FETCHING, "a"))
    line(Event(CONVERTING, "b", (Part(A, 1, 2),)))
    line(Event(READY, "a"))
    assert told == ["fetching a", "fetching a; converting b: 1B of 2B, 0 of 1 blobs", "converting b: 1B of 2B, 0 of 1 blobs"]


def test_sizes() -> None:
    assert [format_size(n) for n in (0, 812, 4608, 12.3 * (1 << 20), 120 << 20, 5 << 40, 5000 << 40)] == [
        "0B",
        "812B",
        "4.5K",
        "12.3M",
        "120M",
        "5.0T",
        "5000T",
    ]

# SPDX-License-Identifier: Apache-2.0
"""The supervisor of a domain, against xl and xenstore as they fail, and against what a hostile guest says without end."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rktd_units.errors import CommandError, RktdError, StateError, TemporaryError
from rktd_units.paths import Layout
from rktd_units.runfiles import write_text
from rktd_units.stage1 import console, supervisor
from rktd_units.stage1.supervisor import Supervisor, open_terminal


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr("rktd_units.stage1.supervisor.Journal", lambda: None)
    layout = Layout(str(tmp_path))
    orders = {"domain": "rktd-web", "machineId": "0" * 32, "ramdisk": "", "graceSeconds": 1, "apps": ["web"], "exports": {}}
    os.makedirs(layout.pod("web"))
    Path(layout.pod("web"), "domain.json").write_text(json.dumps({"version": supervisor.VERSION, **orders, "interface": None}))
    return layout


LISTED = "Name ID Mem VCPUs State Time(s)\nrktd-web 3 256 1 r----- 1.0\n"


@pytest.mark.parametrize(
    ("found", "listed", "expected", "again"),
    [
        (3, LISTED, "", False),
        (3, CommandError(("xl",), 1, "libxl: cannot lock"), "", True),
        (3, TemporaryError("`xl list` did not end within 30 s"), "", True),
        (TemporaryError("xenstored does not answer"), LISTED, "", True),
        (None, CommandError(("xl",), 1, "invalid domain identifier"), "gone", False),
    ],
    ids=["runs", "xl fails", "xl hangs", "xenstored hangs", "gone"],
)
def test_a_domain_is_gone_when_xenstore_says_so(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, found: int | RktdError | None, listed: str | RktdError, expected: str, again: bool
) -> None:
    """What xl does not tell is looked at again: a healthy domain was destroyed for it."""

    def answering(value: Any) -> Callable[..., Any]:
        async def answer(*_: Any, **__: Any) -> Any:
            if isinstance(value, RktdError):
                raise value
            return value

        return answer

    async def look() -> tuple[str, bool]:
        watcher = Supervisor("web", layout)
        monkeypatch.setattr(watcher._store, "find_domain", answering(found))
        monkeypatch.setattr(watcher, "_xl", answering(listed))
        state = await watcher._state()
        await asyncio.sleep(0.05)
        return state, watcher._changed.is_set()

    monkeypatch.setattr(supervisor, "_LOOK_AGAIN", 0.01)
    assert asyncio.run(look()) == (expected, again)


def test_a_guest_that_says_the_same_without_end_has_it_written_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    told: list[str] = []
    write = write_text

    def count(path: str, text: str) -> None:
        written.append(os.path.relpath(path, layout.pod("web")))
        write(path, text)

    async def flood() -> None:
        watcher = Supervisor("web", layout)
        watcher._created, watcher._number = 0.0, 3
        for _ in range(500):
            for record in (console.Ended("web", ("exited", "1", "x")), console.Up("web"), console.Probed("web", "ready"), console.Ready()):
                watcher._take(record)
        assert len(written) < 10
        await asyncio.sleep(0.1)

    monkeypatch.setattr(supervisor, "_NOTE_DELAY", 0.02)
    monkeypatch.setattr(supervisor, "write_text", count)
    monkeypatch.setattr(supervisor, "notify", told.append)
    asyncio.run(flood())
    assert {name: written.count(name) for name in written} == {"times": 1, "status/web": 2, "status/web.ready": 2, "states": 2}
    assert len(told) == 1
    pod = Path(layout.pod("web"))
    assert json.loads((pod / "states").read_text()) == {"web": {"running": True, "restarts": 500}}
    assert (pod / "status/web").read_text() == "exited 1 x\n"
    assert (pod / "status/web.ready").read_text() == "ready\n"


def test_a_panic_behind_a_flood_is_found(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal takes nothing: the apps' lines are lost, and told; the kernel's last words are not."""
    line = b'{"n":%d,"app":"web","p":6,"pid":1,"t":1,"m":"flood"}\n'
    flood = b"".join(line % number for number in range(1, 200)) + b"\n[ 9.1] Kernel panic - not syncing: why\n"

    class Full:
        def send(self, fields: list[tuple[str, bytes]]) -> bool:
            return False

        def fileno(self) -> int:
            return wake

    async def end() -> supervisor.Outcome:
        watcher = Supervisor("web", layout)
        watcher._tty = tty
        watcher._read_console()
        return await watcher._outcome(False, "crashed")

    tty, other = os.pipe()
    _, wake = os.pipe()
    os.set_blocking(tty, False)
    os.write(other, flood)
    monkeypatch.setattr(supervisor, "Journal", Full)
    monkeypatch.setattr(supervisor, "_READ_SIZE", 1000)
    monkeypatch.setattr(supervisor, "_LAST_WORDS", 0.5)
    monkeypatch.setattr(supervisor, "_QUIET", 0.1)
    outcome = asyncio.run(end())
    for descriptor in (tty, other, _, wake):
        os.close(descriptor)
    assert outcome == supervisor.Outcome(1, "the guest's kernel has crashed: Kernel panic - not syncing: why")


def test_restarts_that_nobody_saw(layout: Layout) -> None:
    async def end_twice() -> dict[str, int]:
        watcher = Supervisor("web", layout)
        for status in ("1", "2"):
            watcher._take(console.Ended("web", ("exited", status, "exit-code")))
        return watcher._restarts

    assert asyncio.run(end_twice()) == {"web": 1}


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/dev/sda", "/dev/pts/../null", "/dev/pts/", "/dev/pts/1/", "pts/1", "", "/dev/pts/\u0661"]
)
def test_a_console_is_a_terminal(path: str) -> None:
    with pytest.raises(StateError, match="is no terminal"):
        open_terminal(path)


def test_a_terminal_is_opened() -> None:
    ours, theirs = os.openpty()
    os.close(open_terminal(os.ttyname(theirs)))
    os.close(ours)
    os.close(theirs)

# SPDX-License-Identifier: Apache-2.0
"""How stage0 ends when something goes wrong: what systemd tries again (75), and what it does not."""

import errno
import os
from pathlib import Path

import pytest

from rktd_units import prepare, release, stage0, systemd
from rktd_units.errors import ConfigError, NoReplyError, StateError, TemporaryError
from rktd_units.paths import Layout


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    layout = Layout(str(tmp_path))
    monkeypatch.setattr(stage0, "Layout", lambda: layout)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    os.makedirs(os.path.dirname(layout.error("web")))
    return layout


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/var/lib/rktd/pods/web"), 75, "/var/lib/rktd/pods/web: No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 75, "Disk quota exceeded"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 75, "Cannot allocate memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 70, "/x: Permission denied"),
        (NoReplyError("systemd: Reload: Connection timed out"), 75, "systemd: Reload: Connection timed out"),
        (TemporaryError("not now"), 75, "not now"),
        (StateError("odd"), 70, "odd"),
        (ConfigError("wrong"), 78, "wrong"),
    ],
    ids=["full", "quota", "memory", "denied", "no reply", "temporary", "state", "file"],
)
def test_exit_code(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, text: str
) -> None:
    def fail(name: str, at: Layout) -> None:
        assert (name, at) == ("web", layout)
        raise error

    monkeypatch.setattr(prepare, "prepare", fail)
    assert stage0.main(["stage0", "prepare", "web"]) == code
    assert capsys.readouterr().err == Path(layout.error("web")).read_text() == f"<3>{text}\n"
    monkeypatch.setattr(release, "release", fail)
    assert stage0.main(["stage0", "release", "web"]) == code


@pytest.mark.parametrize(
    ("number", "kind"),
    [(-errno.ETIMEDOUT, NoReplyError), (-errno.ECONNRESET, NoReplyError), (-errno.ENOENT, StateError), (errno.EACCES, StateError)],
    ids=["timeout", "gone", "no unit", "denied"],
)
def test_what_systemd_does_not_answer_passes(monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StateError]) -> None:
    """pystemd is not among what unit tests need: its errors are told by their errno alone, which in it is negative."""

    class Errors:
        DBusBaseError = OSError

    monkeypatch.setattr(systemd, "load_module", lambda _: Errors)
    with pytest.raises(kind, match="systemd: Reload: ") as caught, systemd._told_errors("Reload"):
        raise OSError(number, "said")
    assert type(caught.value) is kind
    assert isinstance(caught.value, StateError)
    assert caught.value.exit_code == (75 if kind is NoReplyError else 70)

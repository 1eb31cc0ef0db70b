# SPDX-License-Identifier: Apache-2.0
"""The door to other programs."""

import sys

import pytest

from rktd_units import proc
from rktd_units.errors import CommandError, TemporaryError

PYTHON = sys.executable


def test_output_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    code = "import os, sys; print(sorted(os.environ), repr(sys.stdin.read())); print('e', file=sys.stderr)"
    done = proc.run([PYTHON, "-c", code], env={"A": "1"})
    assert done.stdout == b"['A', 'LANG', 'LC_ALL', 'PATH'] ''\n"
    assert (done.returncode, done.stderr) == (0, "e\n")


def test_input() -> None:
    assert proc.run([PYTHON, "-c", "print(input())"], input=b"hi\n").stdout == b"hi\n"


def test_failure_shows_the_command() -> None:
    with pytest.raises(CommandError, match=r"`.*python.* -c 'import sys; sys.exit\(.*\)'` exited with 1: no good"):
        proc.run([PYTHON, "-c", "import sys; sys.exit('no good')"])
    assert proc.run([PYTHON, "-c", "import sys; sys.exit(3)"], check=False).returncode == 3


def test_killed_absent_and_slow() -> None:
    with pytest.raises(CommandError, match="was killed by signal 9"):
        proc.run([PYTHON, "-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(CommandError, match="`/no/such` exited with 127: not found"):
        proc.run(["/no/such"])
    with pytest.raises(CommandError, match="exited with 126"):
        proc.run(["/etc/passwd"])
    with pytest.raises(TemporaryError, match=r"did not end within 0.1 s"):
        proc.run([PYTHON, "-c", "import time; time.sleep(9)"], timeout=0.1)

# SPDX-License-Identifier: Apache-2.0
"""What podctl says of pods that are virtual machines, where others are asked on the host."""

from pathlib import Path
from typing import Any

import pytest

from rktd_units.cli import cat, use
from rktd_units.cli.main import main


class Machine:
    """A host with one pod on Xen."""

    def require(self, names: list[str]) -> list[str]:
        return names

    def names(self) -> list[str]:
        return ["vm"]

    def describe(self, names: list[str], *, ask: bool) -> list[dict[str, Any]]:
        assert not ask
        apps = [{"name": "app"}]
        return [{"name": name, "stage1": "xen", "state": "active", "cgroup": "/none.slice/pod@vm.service", "apps": apps} for name in names]


@pytest.mark.parametrize("verb", ["top", "stats"])
def test_processes_of_a_guest(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Who names it is told; it is none of those that are listed."""
    monkeypatch.setattr(use, "Host", Machine)
    assert main([verb, "vm"]) == 69
    assert "pod vm is a virtual machine" in capsys.readouterr().err
    assert main([verb, "--output=json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_files_of_a_guest(tmp_path: Path) -> None:
    for name in ("plan", "domain.cfg"):
        (tmp_path / name).write_text(f"{name}\n")
    assert [cat._read(path) for path in cat._list_run(str(tmp_path))] == [
        f"# {tmp_path}/plan\nplan\n",
        f"# {tmp_path}/domain.cfg\ndomain.cfg\n",
    ]

# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from rktd_units import appstate, bus, cgroups
from rktd_units.cli import pods
from rktd_units.errors import NotFoundError
from rktd_units.paths import Layout
from rktd_units.results import load_result
from tests.output_schema import load_schema


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("exited", "3", 3),
        ("exited", "0", 0),
        ("killed", "KILL", 137),
        ("killed", "9", 137),
        ("dumped", "SEGV", 139),
        ("unknown", "x", None),
    ],
)
def test_exit_code(code: str, status: str, expected: int | None) -> None:
    assert pods.exit_code(code, status) == expected


@pytest.mark.parametrize("name", ["web", "pod@web", "pod@web.service", "pod-stage0@web.service"])
def test_split_unit(name: str) -> None:
    assert pods.split_unit(name) == "web"


def test_not_found() -> None:
    assert str(pods.not_found("pod", "x\x1b", ())) == "not found: there is no pod called 'x?'"
    error = pods.not_found("pod", "wbe", ("web", "data"))
    assert isinstance(error, NotFoundError)
    assert error.hint == "did you mean 'web'?"
    assert pods.not_found("pod", "zzz", ("web", "data")).hint == "there is: data, web"
    assert pods.not_found("pod", "zzz", ()).hint == ""


def test_own_process_is_found_in_a_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("1\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "cgroup.procs").write_text(f"{os.getpid()}\n0\n")
    assert cgroups.list_pids(str(tmp_path)) == [1, os.getpid()]
    assert cgroups.find_host_pid(str(tmp_path), 0) is None
    assert cgroups.find_host_pid(str(tmp_path), 1 << 30) is None


@pytest.mark.parametrize("text", ["", "7", "[]", '{"apps": 3}', '{"apps": {"a": {"code": 1}}}', "{"], ids=str)
def test_damaged_result(text: str, tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    os.makedirs(layout.results)
    Path(layout.results, "web.json").write_text(text)
    assert load_result(layout, "web") == {}


def test_result(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    os.makedirs(layout.results)
    Path(layout.results, "web.json").write_text('{"apps": {"a": {"code": "exited", "status": "3", "result": "exit-code"}}}')
    assert load_result(layout, "web") == {"a": {"code": "exited", "status": "3", "result": "exit-code"}}


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b"7", b'{"a": 3}', b'{"a": [1]}', b'{"a": ["x", "y", "z", "1", 0, 0, 0, 0]}'])
def test_hostile_answer(answer: bytes) -> None:
    assert not appstate.parse_answer(answer)


def test_answer() -> None:
    found = appstate.parse_answer(b'{"a": ["active", "running", "success", 4, 0, 0, 2, 7], "b": []}')
    assert found == {"a": appstate.AppState("active", "running", "success", 4, 0, 0, 2, 7)}


def test_unit_of_a_path() -> None:
    assert bus.unit_of("/org/freedesktop/systemd1/unit/pod_40web_2eb_2dc_2eservice") == "pod@web.b-c.service"


def test_documented_records() -> None:
    schema = load_schema()
    assert set(schema) >= {"pod", "app", "stage0", "use", "process", "port", "info", "event"}
    assert schema["pod"]["file"] == (str, type(None))


@pytest.mark.parametrize("name", ["app", "cpu"])
def test_cgroup_of_an_app(tmp_path: Path, name: str) -> None:
    """PID 1 puts `_` before names that files of the kernel begin with; then that is what is there."""
    unit = f"_{name}.service" if name == "cpu" else f"{name}.service"
    (tmp_path / "payload/system.slice" / unit).mkdir(parents=True)
    assert cgroups.app_cgroup(str(tmp_path), name) == f"{tmp_path}/payload/system.slice/{unit}"


def test_processes_of_groups_however_deep(tmp_path: Path) -> None:
    group = tmp_path
    for number in range(1, 1200):
        if len(str(group)) < 3900:
            group = group / "g"
            group.mkdir()
            (group / "cgroup.procs").write_text(f"{number}\n0\n")
    found = cgroups.list_pids(str(tmp_path))
    assert found[:3] == [1, 2, 3]
    assert len(found) > 1000
    assert cgroups.list_pids(str(tmp_path / "none")) == []

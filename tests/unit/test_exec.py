# SPDX-License-Identifier: Apache-2.0
"""podctl exec and run -it with a pod on Xen, up to its supervisor's socket."""

import argparse
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from rktd_units.cli import exec as cli_exec
from rktd_units.cli import guest, run
from rktd_units.errors import UnavailableError
from rktd_units.paths import Layout
from rktd_units.podfile.search import PodEntry

WANTED = argparse.Namespace(tty=False, interactive=True, env=[], workdir=None)
POD = """\
apiVersion: v1
kind: Pod
metadata: {name: vm}
spec: {%s containers: [{name: app, image: "oci:/srv/x@sha256:%s"}]}
"""


class Machine:
    """What of a host's systemd is asked; `states` are its answers, the last one for ever. pod.json and the socket come with the second."""

    def __init__(self, root: Path, runtime: str, states: list[tuple[str, str]]) -> None:
        self.layout = Layout(str(root))
        self.directory = Path(self.layout.pod("vm"))
        path = root / "vm.yaml"
        path.write_text(POD % (runtime, "0" * 64))
        self.entries = {"vm": PodEntry("vm", str(path))}
        self.states = states
        self.stopped: list[str] = []

    def state(self, _: str) -> tuple[str, str]:
        if len(self.states) == 1:
            return self.states[0]
        if len(self.states) == 2:
            self.prepare()
        return self.states.pop(0)

    def prepare(self) -> None:
        app = {"name": "app", "env": [["A", "b"]], "workingDir": "/", "uid": 0, "gid": 0, "groups": []}
        self.directory.mkdir(parents=True)
        (self.directory / "pod.json").write_text(json.dumps({"version": 1, "stage1": "xen", "idBase": None, "apps": [app]}))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.directory / "exec"))
            listener.listen()
            self.listener = listener.detach()  # for as long as the tests run

    def stop(self, unit: str) -> None:
        self.stopped.append(unit)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """(socket, order) of what guests were asked."""
    found: list[tuple[str, dict[str, Any]]] = []

    def note(path: str, _: str, order: str, *, terminal: bool, interactive: bool) -> int:
        assert not terminal
        assert interactive
        found.append((path, json.loads(order)))
        return 7

    monkeypatch.setattr(guest, "run_in_guest", note)
    return found


def test_the_class_of_a_pod_that_is_being_prepared(tmp_path: Path) -> None:
    host: Any = Machine(tmp_path, "runtimeClassName: xen,", [("activating", "queued")])
    assert cli_exec.is_guest(host, "vm")
    assert not cli_exec.is_guest(host, "other")
    assert not cli_exec.is_guest(Machine(tmp_path, "", []), "vm")  # type: ignore[arg-type]


def test_waits_for_the_guest(tmp_path: Path, asked: list[tuple[str, dict[str, Any]]]) -> None:
    states = [("activating", "queued"), ("activating", "queued"), ("activating", "start"), ("active", "running")]
    host: Any = Machine(tmp_path, "runtimeClassName: xen,", states)
    assert cli_exec.exec_in_guest(host, "vm", "app", ["id"], WANTED) == 7
    ((path, order),) = asked
    assert path == f"{host.directory}/exec"
    assert (order["app"], order["argv"], order["environment"]) == ("app", ["id"], {"A": "b"})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (("failed", "failed"), r"does not run: it is failed"),
        (("activating", "auto-restart"), "waits to be started again"),
        (("active", "running"), "cannot be reached: nobody listens on .*/exec"),
    ],
    ids=["failed", "again", "no-socket"],
)
def test_a_guest_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: tuple[str, str], message: str) -> None:
    monkeypatch.setattr(cli_exec, "_PATIENCE", 0.1)
    host: Any = Machine(tmp_path, "runtimeClassName: xen,", [state])
    host.prepare()
    os.close(host.listener)  # a supervisor that was killed leaves it
    with pytest.raises(UnavailableError, match=message):
        cli_exec.exec_in_guest(host, "vm", "app", ["id"], WANTED)


def test_run_held_in_a_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, dict[str, Any]]]) -> None:
    host: Any = Machine(tmp_path, "runtimeClassName: xen,", [("active", "running")])
    host.prepare()
    monkeypatch.setattr(run, "find_command", lambda *_: ["sh", "-c", "exit 7"])
    monkeypatch.setattr(host, "properties", lambda *_: ["inactive"], raising=False)
    assert run._run_held(host, "vm", WANTED) == 7
    assert [order["argv"] for _, order in asked] == [["sh", "-c", "exit 7"]]
    assert host.stopped == ["pod@vm.service"]

# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rktd_units.cli import hold, run
from rktd_units.cli.main import find_verb, parse
from rktd_units.errors import StateError, UsageError
from rktd_units.paths import Layout


def test_the_program_waits(tmp_path: Path) -> None:
    program = tmp_path / "hold"
    program.write_bytes(hold.render_program(platform.machine()))
    program.chmod(0o755)
    with pytest.raises(subprocess.TimeoutExpired, match="timed out"):
        subprocess.run([program], timeout=0.3, check=False)


def test_other_machines() -> None:
    assert hold.render_program("aarch64")[18:20] == (183).to_bytes(2, "little")
    with pytest.raises(StateError, match="mips"):
        hold.render_program("mips")


def test_hold() -> None:
    spec = {"containers": [{"name": "app", "image": "x", "args": ["a"]}]}
    hold.hold(spec, Layout())
    assert spec["containers"][0]["command"] == ["/.podctl/hold"]
    assert "args" not in spec["containers"][0]


def render(*argv: str) -> dict[str, object]:
    _, arguments = parse(["run", *argv])
    found: dict[str, object] = json.loads(run.render_pod("x", arguments, held=False))["spec"]
    return found


def test_variables_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "of podctl")
    (tmp_path / "env").write_text("# not this\n\nA=1\nB= 'as it is' #\nMINE\n")
    containers: Any = render("--env-file", str(tmp_path / "env"), "-e", "A=2", "i:1")["containers"]
    assert [(e["name"], e["value"]) for e in containers[0]["env"]] == [("A", "2"), ("B", " 'as it is' #"), ("MINE", "of podctl")]


def test_options_become_a_pod() -> None:
    argv = "-e A=$(B) -u 1000:5 -m 64m --cpus 0.5 -w /w --read-only -v /a:/b:ro -v /c -p 127.0.0.1:80:8080 -p 53:53/udp --network host"
    spec = render(*argv.split(), "--runtime=xen", "--pull=never", "--entrypoint=/e", "i:1", "--", "x", "-y", "$(z)")
    assert spec == {
        "restartPolicy": "Never",
        "volumes": [{"name": "v0", "hostPath": {"path": "/a"}}, {"name": "v1", "emptyDir": {}}],
        "hostNetwork": True,
        "runtimeClassName": "xen",
        "containers": [
            {
                "name": "app",
                "image": "i:1",
                "command": ["/e"],
                "args": ["x", "-y", "$$(z)"],
                "env": [{"name": "A", "value": "$$(B)"}],
                "resources": {"limits": {"memory": "64Mi", "cpu": "0.5"}},
                "securityContext": {"runAsUser": 1000, "runAsGroup": 5, "readOnlyRootFilesystem": True},
                "workingDir": "/w",
                "imagePullPolicy": "Never",
                "ports": [
                    {"containerPort": 8080, "hostPort": 80, "hostIP": "127.0.0.1"},
                    {"containerPort": 53, "hostPort": 53, "protocol": "UDP"},
                ],
                "volumeMounts": [{"name": "v0", "mountPath": "/b", "readOnly": True}, {"name": "v1", "mountPath": "/c"}],
            }
        ],
    }
    assert render("-v", "data:/d", "i:1")["volumes"] == [{"name": "v0", "persistentVolumeClaim": {"claimName": "data"}}]
    _, arguments = parse(["run", "--network=none", "i:1"])
    assert json.loads(run.render_pod("x", arguments, held=False))["metadata"] == {
        "name": "x",
        "annotations": {"systemd.io/network": "none"},
    }
    assert render("i:1") == {"restartPolicy": "Never", "containers": [{"name": "app", "image": "i:1"}]}


@pytest.mark.parametrize("option", ["-u=me", "-u=1:2:3", "-v=./rel:/x", "-v=data:x", "-v=/a:/b:/c", "-p=80", "-p=a:b"])
def test_bad_options(option: str) -> None:
    flag, _, value = option.partition("=")
    with pytest.raises(UsageError, match=r"--(user|volume|publish) wants"):
        render(flag, value, "i:1")


def test_the_command_is_not_ours() -> None:
    _, verb, _ = find_verb(["run"])
    assert verb.command
    assert isinstance(parse(["run", "i:1", "ls", "-d"])[1], argparse.Namespace)
    assert parse(["run", "i:1", "ls", "-d"])[1].detach is False

# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from rktd_units.podfile import load
from rktd_units.podfile.load import check_ownership, load_pod
from rktd_units.podfile.search import PodEntry

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: app, image: 'a:1'}\n"


def write(tmp_path: Path, *texts: str) -> PodEntry:
    paths = []
    for index, text in enumerate(texts):
        path = tmp_path / ("web.yaml" if index == 0 else f"{index}.yaml")
        path.write_text(text)
        paths.append(str(path))
    return PodEntry("web", paths[0], tuple(paths[1:]))


def test_drop_ins_are_merged(tmp_path: Path) -> None:
    entry = write(tmp_path, POD, "spec: {hostname: one}", "spec: {hostname: two, containers: [{name: app, image: 'b:2'}]}")
    pod, faults = load_pod(entry, ownership=False)
    assert faults == ()
    assert pod is not None
    assert (pod.hostname, pod.containers[0].image, pod.sources) == ("two", "b:2", (entry.path, *entry.drop_ins))


def test_faults_name_the_file_that_they_are_in(tmp_path: Path) -> None:
    entry = write(tmp_path, POD + "  x: 1\n", "spec:\n  y: 2\n", "a: [", "- x\n", "{}\n---\n{a: b}\n")
    pod, faults = load_pod(entry, ownership=False)
    assert pod is None
    assert [str(fault).replace(str(tmp_path), "") for fault in faults] == [
        "/1.yaml:2:3: spec.y: unknown field",
        "/2.yaml:2:1: is not YAML: did not find expected node content while parsing a flow node",
        "/3.yaml:1:1: must be a map, a part of a pod, got a list",
        "/4.yaml:3:1: a drop-in must have one part of a pod",
        "/web.yaml:7:3: spec.x: unknown field",
    ]


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    pod, (fault,) = load_pod(PodEntry("web", str(tmp_path / "web.yaml")), ownership=False)
    assert pod is None
    assert fault.message == "cannot be read: no such file or directory"


@pytest.mark.parametrize(
    ("mode", "uid", "message"),
    [
        (0o100644, 0, ""),
        (0o100664, 0, "must not be writable by group or others, has mode 0664"),
        (0o100644, 1000, "must be owned by root, is owned by uid 1000"),
        (0o041777, 0, ""),
        (0o040777, 0, "must not be writable by group or others, has mode 0777"),
    ],
    ids=["good", "group-writable", "not-root", "sticky-directory", "open-directory"],
)
def test_status(mode: int, uid: int, message: str) -> None:
    found = load._check_status("f", os.stat_result((mode, 0, 0, 1, uid, 0, 0, 0, 0, 0)))
    assert [fault.message for fault in found] == ([message] if message else [])


def test_ownership_covers_directories_and_link_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def note(path: str, status: os.stat_result) -> tuple[()]:
        seen.append(path)
        return ()

    monkeypatch.setattr(load, "_check_status", note)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "web.yaml").write_text(POD)
    os.symlink("real/web.yaml", tmp_path / "web.yaml")
    check_ownership(PodEntry("web", str(tmp_path / "web.yaml")))
    assert {str(tmp_path), str(tmp_path / "real"), str(tmp_path / "web.yaml"), "/"} <= set(seen)

# SPDX-License-Identifier: Apache-2.0
"""stage0's safety net of the reload race, with a systemd that only runs the generator."""

import os
from pathlib import Path
from typing import ClassVar, Self

import pytest

from rktd_units import generator, reload, systemd
from rktd_units.errors import StateError
from rktd_units.paths import Layout
from rktd_units.podfile.load import load_pod
from rktd_units.podfile.model import Pod
from rktd_units.podfile.search import PodEntry, stamp_sources
from rktd_units.translate import dropin_path, render_dropin

POD = (
    "{apiVersion: v1, kind: Pod, metadata: {name: web%s}, spec: {terminationGracePeriodSeconds: %d, containers: [{name: app, image: a:1}]}}"
)


class FakeManager:
    """Reload() runs the generator, where `works`; what was started is in `started`."""

    works = True
    reloads = 0
    started: ClassVar[list[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def reload(self) -> None:
        FakeManager.reloads += 1
        if self.works:
            generator.main(["rktd-generator", Layout(os.environ["RKTD_ROOT"]).generator_output])

    def start_unit(self, name: str) -> None:
        FakeManager.started.append(name)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setenv("RKTD_POD_PATH", str(tmp_path / "pods"))
    monkeypatch.setenv("RKTD_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(systemd, "Manager", FakeManager)
    monkeypatch.setattr(FakeManager, "reloads", 0)
    monkeypatch.setattr(FakeManager, "started", [])
    monkeypatch.setattr(FakeManager, "works", True)
    layout = Layout(str(tmp_path / "root"))
    os.makedirs(layout.generator_output)
    (tmp_path / "pods").mkdir()
    return layout


def put(tmp_path: Path, seconds: int, annotations: str = "") -> Pod:
    path = tmp_path / "pods/web.yaml"
    path.write_text(POD % (f", annotations: {{{annotations}}}" if annotations else "", seconds))
    pod, faults = load_pod(PodEntry("web", str(path)), ownership=False)
    assert pod is not None, faults
    return pod


def test_a_reload_only_where_it_is_needed(tmp_path: Path, layout: Layout) -> None:
    pod = put(tmp_path, 10)
    reload.sync_units(layout, pod)
    reload.sync_units(layout, pod)
    assert FakeManager.reloads == 1
    assert Path(layout.generator_output, dropin_path("web")).read_text() == render_dropin(pod)
    reload.sync_units(layout, put(tmp_path, 20))
    assert FakeManager.reloads == 2


def test_a_cache_with_the_stamps_of_another_text(tmp_path: Path, layout: Layout) -> None:
    """Two edits of the same size within one tick of the clock."""
    directories = (str(tmp_path / "pods"),)
    put(tmp_path, 10)
    old = generator.build_units(directories)
    pod = put(tmp_path, 20)
    generator.save_cache(layout, directories, stamp_sources(directories), old)
    reload.sync_units(layout, pod)
    assert Path(layout.generator_output, dropin_path("web")).read_text() == render_dropin(pod)


def test_what_is_newly_required_is_started(tmp_path: Path, layout: Layout) -> None:
    """Also where somebody else has reloaded between the job and stage0. A unit that runs is left alone by systemd."""
    reload.sync_units(layout, put(tmp_path, 10))
    assert FakeManager.started == []
    pod = put(tmp_path, 10, "systemd.io/requires: a.service")
    for count in (1, 2):
        reload.sync_units(layout, pod)
        assert FakeManager.started == ["a.service"] * count
    assert FakeManager.reloads == 2


def test_a_reload_that_does_not_help_is_told(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeManager, "works", False)
    with pytest.raises(StateError, match=r"50-pod\.conf is not what .*web\.yaml says, even after a reload") as caught:
        reload.sync_units(layout, put(tmp_path, 10))
    assert caught.value.hint == "is rktd-generator installed?"

# SPDX-License-Identifier: Apache-2.0
import marshal
import os
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from rktd_units import generator
from rktd_units.errors import RktdError
from rktd_units.generator import Build, build_units, load_cache, main, save_cache, write_build
from rktd_units.paths import Layout
from rktd_units.podfile.model import Pod
from rktd_units.podfile.search import stamp_sources

CHECKOUT = Path(__file__).resolve().parents[2]
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  containers:\n  - {name: app, image: 'a:1'}\n"


class Case:
    """A search directory, a root, and runs of the generator over them."""

    def __init__(self, top: Path) -> None:
        self.top, self.pods = top, top / "pods"
        self.layout = Layout(str(top / "root"))
        self.directories = (str(self.pods),)
        self.runs = 0
        self.pods.mkdir()

    def put(self, name: str, text: str = "") -> None:
        (self.pods / f"{name}.yaml").write_text(text or POD % name)

    def run(self) -> tuple[int, dict[str, str]]:
        self.runs += 1
        output = self.top / f"out{self.runs}"
        output.mkdir()
        code = main(["rktd-generator", str(output)])
        return code, {
            str(p.relative_to(output)): os.readlink(p) if p.is_symlink() else p.read_text() for p in output.rglob("*") if not p.is_dir()
        }

    def save(self) -> Build:
        stamps = stamp_sources(self.directories)
        build = build_units(self.directories)
        save_cache(self.layout, self.directories, stamps, build)
        return build


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("RKTD_POD_PATH", str(tmp_path / "pods"))
    monkeypatch.setenv("RKTD_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("SYSTEMD_LOG_TARGET", "console")
    return Case(tmp_path)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rktd-generator"]) == 1
    assert main(["rktd-generator", "a", "b"]) == 1
    assert capsys.readouterr().err.count("expected one or three output directories\n") == 2


def test_nothing_to_do_is_silent(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = case.run()
    assert (code, set(found)) == (0, {generator.STAMP_FILE})
    case.pods.rmdir()
    assert case.run() == (0, {})
    assert capsys.readouterr().err == ""


def test_cache_is_byte_for_byte_the_same(case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    case.put("web", (POD % "web").replace("{name: web}", "{name: web, annotations: {systemd.io/wanted-by: a.target}}"))
    case.put("broken", "x: 1")
    first = case.run()
    told = capsys.readouterr().err
    case.save()
    monkeypatch.setattr(generator, "build_units", lambda _: pytest.fail("parsed, though it is in the cache"))
    assert case.run() == first
    assert capsys.readouterr().err == told != ""
    assert first[0] == 1


def test_cache_is_not_used_after_an_upgrade(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.put("web")
    case.save()
    stamps = stamp_sources(case.directories)
    assert load_cache(case.layout, case.directories, stamps) is not None
    monkeypatch.setattr(generator, "product_stamp", lambda: (1, 2))
    assert load_cache(case.layout, case.directories, stamps) is None


@pytest.mark.parametrize("change", ["edit", "add", "remove", "drop-in", "mode"])
def test_cache_is_not_used_after_a_change(case: Case, change: str) -> None:
    case.put("web")
    case.put("other")
    (case.pods / "web.yaml.d").mkdir()
    case.save()
    stamps = stamp_sources(case.directories)
    assert load_cache(case.layout, case.directories, stamps) is not None
    if change == "edit":
        case.put("web", (POD % "web") + "  restartPolicy: Never\n")
    elif change == "add":
        case.put("more")
    elif change == "remove":
        (case.pods / "other.yaml").unlink()
    elif change == "drop-in":
        (case.pods / "web.yaml.d/a.yaml").write_text("spec: {restartPolicy: Never}")
    else:
        (case.pods / "web.yaml").chmod(0o600)
    assert load_cache(case.layout, case.directories, stamp_sources(case.directories)) is None
    assert load_cache(case.layout, (*case.directories, "/x"), stamps) is None
    expected = build_units(case.directories)
    found = case.run()[1]
    assert {path: found[path] for path, _ in expected.files} == dict(expected.files)
    assert set(found) == {*dict(expected.files), "pods.path.d/50-drop-ins.conf", generator.STAMP_FILE}


GARBAGE = {
    "empty": b"",
    "text": b"hello",
    "number": marshal.dumps(1),
    "short": marshal.dumps((1, 2)),
}


@pytest.mark.parametrize("name", [*GARBAGE, "version", "fields", "types", "half"])
def test_bad_cache_is_ignored(case: Case, name: str) -> None:
    case.put("web")
    expected = case.run()
    build = case.save()
    path = Path(case.layout.generator_cache)
    version, key, fields = marshal.loads(path.read_bytes())
    assert fields == tuple(build)
    bad = {
        **GARBAGE,
        "version": marshal.dumps(((version[0] + 1, version[1]), key, ((), (), (), ()))),
        "fields": marshal.dumps((version, key, fields[:3])),
        "types": marshal.dumps((version, key, (1, 2, 3, 4))),
        "half": path.read_bytes()[:-9],
    }
    path.write_bytes(bad[name])
    assert case.run() == expected


def test_two_runs_at_once_corrupt_nothing(case: Case) -> None:
    for index in range(40):
        case.put(f"p{index}")
    case.put("broken", "x: 1")
    expected = case.run()[1]
    output = case.top / "shared"
    output.mkdir()
    argv = [sys.executable, "-B", str(CHECKOUT / "generators/rktd-generator"), str(output)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    for _ in range(3):
        runs = [subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) for _ in range(4)]
        assert [run.wait(timeout=60) for run in runs] == [1] * 4
        found = {str(p.relative_to(output)): p.read_text() for p in output.rglob("*") if p.is_file()}
        assert found == expected


def test_no_pod_that_cannot_be_translated_hides_another(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rktd_units import translate

    def refuse(pod: Pod) -> translate.Output:
        if pod.name == "bad":
            raise RktdError("too long", hint="shorten it")
        return translate.Output(((f"pod@{pod.name}.service.d/50-pod.conf", ""),), ())

    monkeypatch.setattr(translate, "translate_pod", refuse)
    for name in ("bad", "good"):
        case.put(name)
    code, found = case.run()
    assert code == 1
    assert set(found) == {"pod@good.service.d/50-pod.conf", generator.STAMP_FILE}
    assert capsys.readouterr().err == f"rktd-generator: {case.pods}/bad.yaml: too long\nrktd-generator:   hint: shorten it\n"


@pytest.mark.parametrize("place", ["load.load_pod", "ports.PortBook.enter", "translate"])
def test_no_fault_of_ours_hides_a_pod(case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str) -> None:
    """Whatever a file makes us trip over, wherever."""
    target = "rktd_units.translate.translate_pod" if place == "translate" else f"rktd_units.podfile.{place}"
    module, _, name = target.rpartition(".")
    whole = getattr(resolve_name(module), name)

    def stumble(*arguments: Any, **options: Any) -> Any:
        if any("bad" in str(argument) for argument in arguments):
            raise ValueError("9" * 5000 + "\n")
        return whole(*arguments, **options)

    monkeypatch.setattr(target, stumble)
    for pod in ("bad", "good"):
        case.put(pod)
    code, found = case.run()
    assert code == 1
    assert set(found) == {"pod@good.service.d/50-pod.conf", generator.STAMP_FILE}
    reason = f"{case.pods}/bad.yaml: cannot be read: ValueError: {'9' * 200}"
    assert capsys.readouterr().err == f"rktd-generator: {reason}\nrktd-generator:   hint: please report this\n"


def test_a_kept_dropin_is_given_back_byte_for_byte(case: Case) -> None:
    kept = Path(case.layout.pod("gone"), generator.DROPIN)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"# caf\xe9\r\n[Service]\nMemoryMax=1\n")
    output = case.top / "out"
    output.mkdir()
    write_build(Build((), (), (), ()), str(output), case.layout)
    assert (output / "pod@gone.service.d" / generator.DROPIN).read_bytes() == kept.read_bytes()
    assert os.listdir(output) == ["pod@gone.service.d"]


def test_a_directory_that_cannot_be_written_is_told(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.put("web")
    (case.top / "file").write_text("")
    assert main(["rktd-generator", str(case.top / "file")]) == 1
    assert "Not a directory" in capsys.readouterr().err

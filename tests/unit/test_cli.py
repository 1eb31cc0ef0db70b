# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import rktd_units
from rktd_units.cli import completion
from rktd_units.cli.main import OTHER_NAMES, build_parser, find_verb, list_verbs, main, render_help
from rktd_units.errors import UsageError
from tests.output_schema import check_record

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: app, image: 'a:1'}\n"


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RKTD_POD_PATH", str(tmp_path / "pods"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "pods").mkdir()
    return tmp_path


def test_check_all(pods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pods / "pods" / "web.yaml").write_text(POD)
    assert main(["check"]) == 0
    (pods / "pods" / "bad.yaml").write_text(POD)
    assert main(["check"]) == 78
    assert capsys.readouterr().out == f"{pods}/pods/bad.yaml:3:18: metadata.name: must be 'bad' as the file is called, got 'web'\n"


def test_check_files(pods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pods / "web.yaml").write_text(POD + "  nodeName: x\n")
    (pods / "web.yaml.d").mkdir()
    (pods / "web.yaml.d" / "a.yaml").write_text("spec: {nodeName: null, priority: 1}")
    assert main(["check", str(pods / "web.yaml")]) == 0
    expected = f"{pods}/web.yaml.d/a.yaml:1:34: warning: spec.priority: has no meaning on a single host, ignored\n"
    assert capsys.readouterr().out == expected
    assert main(["check", str(pods / "none.yaml"), "x.txt", "A.yaml"]) == 78
    assert capsys.readouterr().out.count("\n") == 4


def test_check_of_a_file_says_what_is_wrong_beside_it(pods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the generator does: a drop-in that is not read, and a port that another pod has."""
    port = POD.replace("'a:1'", "'a:1', ports: [{containerPort: 1, hostPort: 8080}]")
    first, second = pods / "pods" / "first.yaml", pods / "pods" / "second.yaml"
    for path in (first, second):
        path.write_text(port.replace("web", path.stem))
    Path(f"{second}.d").mkdir()
    Path(f"{second}.d", "10.yml").write_text("")
    assert main(["check", str(first)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["check", str(second)]) == 78
    said = capsys.readouterr().out
    assert "second.yaml.d/10.yml: is not read: the suffix must be .yaml" in said
    assert "TCP port 8080 of the host is wanted by pods first and second" in said
    assert main(["check"]) == 78
    assert capsys.readouterr().out == said


def test_check_for_programs(pods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pods / "web.yaml").write_text(POD + "  priority: 1\n  hostnam: x\n")
    assert main(["check", str(pods / "web.yaml"), str(pods / "none.yaml"), "--output=json"]) == 78
    records = json.loads(capsys.readouterr().out)
    for record in records:
        check_record("diagnostic", record)
    assert {(r["line"], r["column"], r["path"], r["severity"], r["hint"]) for r in records} == {
        (None, None, None, "error", None),
        (7, 13, "spec.priority", "warning", None),
        (8, 3, "spec.hostnam", "error", "did you mean 'hostname'?"),
    }
    assert main(["check", "-o", "yaml"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"podctl {rktd_units.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "a verb is missing"),
        (["chek"], "there is no verb 'chek'\n  hint: did you mean 'check'?"),
        (["zzz"], "there is no verb 'zzz'\n  hint: podctl --help lists them"),
    ],
    ids=["none", "mistyped", "far"],
)
def test_no_verb(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 64
    assert message in capsys.readouterr().err


def test_bad_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="64"):
        main(["check", "--x"])
    assert "usage: podctl check" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out == render_help()


@pytest.mark.parametrize("words", [["exec"], ["image"], ["image", "list"]], ids=" ".join)
def test_help_of_a_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["help", *words], [*words, "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(argv)
    first, _, second = capsys.readouterr().out.rpartition("usage: ")
    assert first == f"usage: {second}"
    with pytest.raises(SystemExit, match="0"):
        main(["help"])
    assert capsys.readouterr().out == render_help()


def test_time_to_stop_is_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "-t", "5", "web"]) == 64
    assert "terminationGracePeriodSeconds" in capsys.readouterr().err


def test_nobody_reads(pods: Path) -> None:
    """Neither while podctl runs, nor when Python writes out what is left."""
    launcher = Path(__file__).parents[2] / "tools" / "podctl"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([launcher, "version"], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_every_verb_has_help() -> None:
    text = render_help()
    for words, verb in list_verbs():
        assert f"  {' '.join(words)} " in text
        assert "usage: podctl " + " ".join(words) in build_parser(words, verb).format_help()


def test_options_before_the_verb() -> None:
    assert find_verb(["-o", "json", "--no-pager", "version"])[2] == ["-o", "json", "--no-pager"]
    with pytest.raises(UsageError, match="missing"):
        find_verb(["--no-pager"])


def test_other_names() -> None:
    """Each is one of ours with its arguments, and no verb of ours; what is done elsewhere is told."""
    for other, name in OTHER_NAMES.items():
        words, _, rest = find_verb([*other.split(), "a b", "--no-legend"])
        assert (" ".join(words), rest) == (name, ["a b", "--no-legend"])
    assert not OTHER_NAMES.keys() & {" ".join(words) for words, _ in list_verbs()}
    with pytest.raises(UsageError, match="no verb 'apply'") as caught:
        find_verb(["apply", "-f", "x.yaml"])
    assert "/etc/pods" in str(caught.value.hint)


def test_other_names_are_in_the_manual() -> None:
    text = (Path(__file__).parents[2] / "docs/man/podctl.1.md").read_text()
    assert [other for other, name in OTHER_NAMES.items() if f"`{other}` is `{name}`" not in text] == []


def test_launcher() -> None:
    launcher = Path(__file__).parents[2] / "tools" / "podctl"
    assert subprocess.run([launcher, "version"], capture_output=True, check=True).stdout.startswith(b"podctl ")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_has_every_verb_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for words, _ in list_verbs():
        assert all(word in script for word in words)
        for option, _, _ in completion.list_options(words):
            assert (option if shell != "fish" else f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}") in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_fish_tells_list_from_image_list() -> None:
    lines = completion.render_fish().splitlines()
    one = [line for line in lines if "'__fish_seen_subcommand_from list ;" in line]
    assert one
    assert all("and not __fish_seen_subcommand_from image volume trust'" in line for line in one)
    assert "not" not in next(line for line in lines if "from image ; and __fish_seen_subcommand_from list' -" in line).split("'")[1]


def test_images_are_completed_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("rktd_units.cli.images.ask_root", lambda: [{"reference": "b"}, {"reference": "a"}, {"reference": "b"}])
    assert main(["complete", "images"]) == 0
    assert capsys.readouterr().out == "a\nb\n"


def test_manual_names_every_verb() -> None:
    """docs/podctl.md describes each verb of the table, and no other."""
    text = (Path(__file__).parents[2] / "docs" / "podctl.md").read_text()
    described = set(re.findall(r"^\| `([a-z -]+)` \|", text.partition("## Verbs")[2].partition("\n## ")[0], re.MULTILINE))
    assert described == {" ".join(words) for words, _ in list_verbs()}

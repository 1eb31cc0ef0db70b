# SPDX-License-Identifier: Apache-2.0
"""The generator as systemd runs it, compared byte for byte with tests/golden/NAME; RKTD_UPDATE_GOLDEN=1 writes what it gave.

A case: pods/ and, where there is one, lib/ are the search path; root/ is RKTD_ROOT. Then expected/ (its modes are those of MODES),
stderr and exitcode. The program is run where pods/ is, so that its messages and units name a fixed path.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
GOLDEN = CHECKOUT / "tests/golden"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
STAMP = ".rktd.stamp"
HOST_UNITS = Path("/usr/lib/systemd/system")
MODES = {"file": "0644", "directory": "0755"}


def list_tree(top: Path) -> dict[str, str]:
    """Relative path -> kind, mode, and content or link target, of all but the stamp and directories of a checkout that hold nothing."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = os.fspath(path.relative_to(top))
        status = path.lstat()
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_dir():
            found[name] = f"directory {mode}"
        elif name != STAMP:
            found[name] = f"file {mode}\n{path.read_bytes().decode()}"
    return found


def copy_tree(source: Path, target: Path, *, reverse: bool) -> None:
    """With the modes that pod files must have, whatever the checkout's umask; made in the other order, which some file systems keep."""
    target.mkdir(mode=0o755)
    target.chmod(0o755)
    for path in sorted(source.iterdir(), reverse=reverse):
        copy = target / path.name
        if path.is_symlink():
            copy.symlink_to(os.readlink(path))
        elif path.is_dir():
            copy_tree(path, copy, reverse=reverse)
        else:
            shutil.copyfile(path, copy)
            copy.chmod(0o644)


def run_generator(case: Path, work: Path, seed: int) -> tuple[dict[str, str], str, str]:
    work.mkdir()
    for part in ("pods", "lib", "root"):
        if (case / part).exists():
            copy_tree(case / part, work / part, reverse=bool(seed))
    (work / "root").mkdir(exist_ok=True)
    outputs = [work / name for name in ("normal", "early", "late")]
    for output in outputs:
        output.mkdir()
    environment = {
        "RKTD_POD_PATH": "/proc/self/cwd/pods:/proc/self/cwd/lib",
        "RKTD_ROOT": os.fspath(work / "root"),
        "SYSTEMD_LOG_TARGET": "console",
        "PYTHONPATH": os.fspath(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": str(seed),
    }
    argv = [sys.executable, os.fspath(CHECKOUT / "generators/rktd-generator"), *map(os.fspath, outputs)]
    done = subprocess.run(
        argv, env=environment, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, umask=0o022, check=False
    )
    assert done.stdout == ""
    assert not any(any(output.iterdir()) for output in outputs[1:])
    assert (outputs[0] / STAMP).exists()
    return list_tree(outputs[0]), done.stderr, f"{done.returncode}\n"


def write_case(case: Path, work: Path, stderr: str, exit_code: str) -> None:
    shutil.rmtree(case / "expected", ignore_errors=True)
    shutil.copytree(work / "normal", case / "expected", symlinks=True, ignore=shutil.ignore_patterns(STAMP))
    (case / "stderr").write_text(stderr)
    (case / "exitcode").write_text(exit_code)


def expected_tree(case: Path) -> dict[str, str]:
    """A checkout has no empty directories, and its modes are the user's umask's."""
    if not (case / "expected").exists():
        return {}
    found = list_tree(case / "expected")
    for name, text in found.items():
        kind, _, rest = text.partition(" ")
        if kind in MODES:
            found[name] = f"{kind} {MODES[kind]}{rest[4:]}"
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, seed: int, tmp_path: Path) -> None:
    case, work = GOLDEN / name, tmp_path / "work"
    found, stderr, exit_code = run_generator(case, work, seed)
    if os.environ.get("RKTD_UPDATE_GOLDEN") == "1" and seed == 0:
        write_case(case, work, stderr, exit_code)
    assert list(found) == list(expected_tree(case))
    assert found == expected_tree(case)
    assert stderr == (case / "stderr").read_text()
    assert exit_code == (case / "exitcode").read_text()


def test_there_are_cases() -> None:
    assert len(CASES) >= 8
    for name in CASES:
        assert {path.name for path in (GOLDEN / name).iterdir()} <= {"pods", "lib", "root", "expected", "stderr", "exitcode"}


@pytest.fixture
def systemd_root(tmp_path: Path, require_program: Callable[[str], str]) -> Path:
    """A root with our static units, stand-ins for the programs that they name, and the host's targets."""
    require_program("systemd-analyze")
    units = tmp_path / "root/usr/lib/systemd/system"
    shutil.copytree(CHECKOUT / "units", units, symlinks=True)
    programs = (
        "lib/rktd/stage0",
        "lib/rktd/launch",
        "lib/rktd/relay",
        "lib/rktd/execprobes",
        "bin/podctl",
        "bin/sleep",
        "bin/touch",
        "bin/install",
        "bin/rm",
        "bin/rmdir",
    )
    for program in (*programs, "lib/systemd/systemd-resolved", "lib/systemd/systemd-socket-proxyd"):
        path = tmp_path / "root/usr" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/true\n")
        path.chmod(0o755)
    for target in HOST_UNITS.glob("*.target"):
        if not target.is_symlink():
            shutil.copyfile(target, units / target.name)
    return tmp_path / "root"


def verify(root: Path, *units: str) -> str:
    """systemd-analyze exits 0 for unknown keys and bad values: what counts is what it says."""
    argv = ["systemd-analyze", "verify", "--man=no", f"--root={root}", *units]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_static_units_are_valid(systemd_root: Path) -> None:
    static = [path.name for path in (CHECKOUT / "units").iterdir() if path.is_file() and path.suffix not in (".conf", ".catalog", ".yaml")]
    static.remove("pod@.socket")  # listens on nothing without the generator's drop-in: golden case `activation`
    assert len(static) >= 6
    instances = [name.replace("@.", "@8080." if name.startswith("rktd-port-") else "@web.") for name in static]
    assert verify(systemd_root, *instances) == ""


@pytest.mark.parametrize("name", [name for name in CASES if any((GOLDEN / name).glob("expected/pod@*"))])
def test_generated_units_are_valid(name: str, systemd_root: Path) -> None:
    units = systemd_root / "usr/lib/systemd/system"
    shutil.copytree(GOLDEN / name / "expected", units, symlinks=True, dirs_exist_ok=True)
    for unit in ("db.service", "cache.service"):  # what annotations of the cases name
        (units / unit).write_text("[Service]\nExecStart=/usr/lib/rktd/launch\n")
    pods = sorted(path.name.removesuffix(".d") for path in (GOLDEN / name / "expected").glob("pod@*.service.d"))
    pods += sorted(path.name.removesuffix(".d") for path in (GOLDEN / name / "expected").glob("pod@*.socket.d"))
    assert verify(systemd_root, *pods, "pods.path") == ""


def test_verify_sees_what_is_wrong(systemd_root: Path) -> None:
    drop_in = systemd_root / "usr/lib/systemd/system/pod@web.service.d/50-pod.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nMemoryMaximum=1\n")
    assert "Unknown key 'MemoryMaximum'" in verify(systemd_root, "pod@web.service")

# SPDX-License-Identifier: Apache-2.0
"""Who may import whom (docs: STYLE, "Dependencies go one way"), on the syntax tree of every module."""

import ast
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "rktd_units"


def name_of(path: Path) -> str:
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {name_of(path): ast.parse(path.read_text(), str(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(tree: ast.AST, known: frozenset[str] = frozenset(TREES)) -> set[str]:
    """Modules that a tree names, wherever in it; a name of ours that is a module counts as one."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names} & known
            found |= inner
            if len(inner) < len(node.names):
                found.add(base)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("import_module", "__import__"):
            found |= {
                argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            }
    return found


IMPORTS = {name: imports_of(tree) for name, tree in TREES.items()}


def closure(name: str) -> set[str]:
    """All that an import of a module may bring, of ours and of others."""
    seen: set[str] = set()
    todo = {name}
    while todo:
        module = todo.pop()
        seen.add(module)
        todo |= (IMPORTS.get(module, set()) | ({module.rpartition(".")[0]} & set(TREES))) - seen
    return seen


def is_in(module: str, *parents: str) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def ours(*names: str) -> tuple[str, ...]:
    return tuple(f"rktd_units.{name}" for name in names)


# Lower layers first; a module may import those of its own layer and of lower ones. What is not named here may not be imported by these.
LAYERS = (
    ours("errors", "imports"),
    ours("names", "paths", "journal", "xenstore"),
    ours("sourcefile", "strictyaml", "fields"),
    ours("images.reference"),  # what an image is called: the schema checks it
    ours("ownership"),
    ours("settings", "settingsfile", "podfile", "runfiles"),
    ours("results"),
    ours("unitfile", "confine", "expand", "users", "ids", "mounts", "tasks", "stage1.plan", "proc", "bus", "systemd", "appstate", "enter"),
    ours("cgroups"),
    ours("execprobes"),
    ours("events", "xenring", "copying"),
    ours("podsockets"),
    ours("translate", "qos", "limited"),
    ours("probetalk"),
    ours("prober", "hook"),
    ours("stage2"),
    ours("stage1", "share", "generator", "images", "trust", "network"),
    ours("kernels"),
    ours("initrd", "disks"),
    ours("credstore", "seccomp", "apparmor", "selinux", "values"),
    ours("vault", "volumes"),
    ours("updates"),
    ours("podtree", "resolve", "rootview", "usage"),
    ours("sockets"),
    ours("guesttree"),
    ours("guests"),
    ours("stage0", "prepare", "release", "reload", "sweep"),
    ours("convert"),
    ours("cli"),
)


def layer_of(module: str) -> int:
    matches = [(len(name), level) for level, layer in enumerate(LAYERS) for name in layer if is_in(module, name)]
    assert matches, f"{module} has no layer: say in LAYERS where it belongs"
    return max(matches)[1]


@pytest.mark.parametrize("name", [name for name in TREES if name not in ("rktd_units", "rktd_units.images")])
def test_dependencies_go_down(name: str) -> None:
    above = {
        module for module in IMPORTS[name] if is_in(module, "rktd_units") and module != "rktd_units" and layer_of(module) > layer_of(name)
    }
    assert above == set()


def test_nothing_imports_in_a_circle() -> None:
    """At import time, that is: not counting what functions import when they are called."""
    graph = {
        name: imports_of(ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], []))
        for name, tree in TREES.items()
    }
    for name in TREES:
        seen: set[str] = set()
        todo = set(graph[name])
        while todo:
            module = todo.pop()
            seen.add(module)
            todo |= graph.get(module, set()) - seen
        assert name not in seen, name


def test_a_start_imports_no_yaml() -> None:
    """Nor a program runner: at import time; what functions import is for what is rare."""
    graph = {
        name: imports_of(ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], []))
        for name, tree in TREES.items()
    }
    seen: set[str] = set()
    todo = {"rktd_units.prepare", "rktd_units.release", "rktd_units.network.attach"}
    while todo:
        module = todo.pop()
        seen.add(module)
        todo |= graph.get(module, set()) - seen
    assert "rktd_units.network.state" in seen  # else this test sees nothing
    assert not {module.partition(".")[0] for module in seen} & {"yaml", "subprocess", "socket", "ipaddress", "pystemd"}


def test_the_generator_imports_little() -> None:
    found = closure("rktd_units.generator")
    assert {"rktd_units.podfile.load", "rktd_units.translate", "yaml"} <= found  # else this test sees nothing
    unwanted = ours("proc", "stage0", "prepare", "release", "reload", "mounts", "systemd", "bus", "cli")
    assert not {module for module in found if is_in(module, *unwanted)}
    assert {m for m in found if is_in(m, *ours("images"))} <= {*ours("images", "images.reference")}
    banned = {"subprocess", "asyncio", "socket", "logging", "json", "dataclasses", "threading", "urllib", "http", "shutil", "tempfile"}
    assert not {module.partition(".")[0] for module in found} & banned


def test_stage1_imports_nothing_of_stage0() -> None:
    unwanted = ours("stage0", "prepare", "release", "reload", "podtree", "resolve", "rootview", "images", "proc", "systemd")
    programs = {*ours("proc")}  # for who is no exec wrapper
    for name in TREES:
        if is_in(name, *ours("stage1")):
            allowed = programs if name == "rktd_units.stage1.supervisor" else set()
            assert not {m for m in closure(name) if is_in(m, *unwanted)} - allowed, name
    light = closure("rktd_units.stage1.launch")
    assert not {module.partition(".")[0] for module in light} & {"socket", "subprocess", "json", "yaml", "shutil", "re"}


def users_of(module: str) -> set[str]:
    return {name for name, found in IMPORTS.items() if any(is_in(m, module) for m in found)}


def test_system_calls_have_one_door() -> None:
    assert users_of("ctypes") == {"rktd_units.mounts", "rktd_units.tasks"}


def test_programs_have_one_door() -> None:
    assert users_of("subprocess") == {"rktd_units.proc"}
    assert users_of("multiprocessing") | users_of("pty") == set()
    allowed = {"rktd_units.stage1.launch": {"execve"}, "rktd_units.mounts": {"fork", "execve"}, "rktd_units.proc": {"execvpe", "fork"}}
    allowed |= {"rktd_units.enter": {"execve", "fork"}, "rktd_units.appstate": {"fork"}}  # the command itself; asks as the pod's root
    # Of what a guest has besides PID 1's processes; commands that are executed in it.
    allowed |= {"rktd_units.stage1.guest": {"fork"}, "rktd_units.stage1.guestexec": {"fork"}}
    allowed |= {"rktd_units.stage1.leader": {"execv", "fork"}}  # launch is about to become nspawn: a child becomes busctl
    allowed |= {"rktd_units.execprobes": {"fork"}}  # which becomes the command of a probe by enter
    allowed |= {"rktd_units.prober": {"posix_spawn"}}  # in every pod that has probes: without what proc imports
    doors = {
        "system",
        "popen",
        "posix_spawn",
        "posix_spawnp",
        "fork",
        "forkpty",
        "spawnv",
        "spawnve",
        "execv",
        "execvp",
        "execvpe",
        "execve",
    }
    for name, tree in TREES.items():
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "os"} & doors
        assert used <= allowed.get(name, set()), name


def test_only_cli_prints() -> None:
    for name, tree in TREES.items():
        if is_in(name, *ours("cli")):
            continue
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), f"{name}:{node.lineno}"
            if isinstance(node, ast.Attribute) and node.attr == "stdout" and getattr(node.value, "id", "") == "sys":
                assert name == "rktd_units.images.worker", f"{name}:{node.lineno}"  # its answer, on a pipe
    assert any(getattr(node, "id", "") == "print" for node in ast.walk(TREES["rktd_units.cli.check"]))


def test_every_module_has_its_lines() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
        assert ast.get_docstring(TREES[name_of(path)]), path
        assert path.stem not in ("util", "utils", "common", "helpers")


def test_all_imports_are_known() -> None:
    """Else a library is used that no package list names."""
    libraries = {"yaml", "isal", "pystemd", "dbus_next", "gnupg", "pyxs", "tqdm", "urllib3", "cryptography"}
    for name, found in IMPORTS.items():
        tops = {module.partition(".")[0] for module in found}
        assert tops <= {*sys.stdlib_module_names, *libraries, "rktd_units"}, name

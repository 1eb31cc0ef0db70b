# SPDX-License-Identifier: Apache-2.0
"""The manual pages of docs/man say what the code does: every key of a pod file and of the settings, every verb and option of podctl.

RKTD_UPDATE_GOLDEN=1 writes the VERBS part of podctl's pages anew; all else is written by hand.
"""

import argparse
import importlib
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rktd_units.podfile
from rktd_units import fields, settingsfile
from rktd_units.cli.main import VERBS, Group, build_parser, list_verbs, main
from rktd_units.podfile import annotations

CHECKOUT = Path(__file__).resolve().parents[2]
MANUAL = CHECKOUT / "docs/man"
# Which tables of rktd_units/podfile a section is about.
SECTIONS = {
    "DOCUMENT": ("schema._POD",),
    "METADATA": ("schema._METADATA", "documents._METADATA"),
    "SPEC": ("schema._SPEC",),
    "SECURITY OF THE POD": ("schema._SECURITY",),
    "NAMES": ("network._DNS", "network._OPTION", "network._ALIAS", "sysctls._SYSCTL"),
    "CONTAINERS": ("containers.INIT_CONTAINER", "containers.CONTAINER"),
    "PROBES": tuple(f"probes.{name}" for name in ("_PROBE", "_HTTP", "_TCP", "_GRPC", "_HEADER")),
    "HOOKS": ("lifecycle._LIFECYCLE", "lifecycle._HOOK", "lifecycle._SLEEP"),
    "PORTS": ("containers._PORT",),
    "MOUNTS": ("containers._MOUNT",),
    "RESOURCES": ("resources.RESOURCES", "resources.AMOUNTS"),
    "SECURITY OF A CONTAINER": ("containers._SECURITY",),
    "CAPABILITIES": ("containers._CAPABILITIES",),
    "SECCOMP": ("containers._SECCOMP",),
    "APPARMOR": ("profiles._APPARMOR",),
    "SELINUX": ("profiles._SELINUX",),
    "VARIABLES": ("environment._ENV", "environment._ENV_FROM", "environment._VALUE_FROM", "environment._RESOURCE"),
    "VOLUMES": ("volumes._VOLUME",),
    "KINDS OF VOLUMES": ("volumes._EMPTY_DIR", "volumes._HOST_PATH", "volumes._CLAIM"),
    "FILES": tuple(
        f"volumes.{name}" for name in ("_FILES", "_MODES", "_ITEM", "_FIELD_FILE", "_DOWNWARD_ITEMS", "_DOWNWARD", "_SOURCES", "_PROJECTED")
    ),
    "DOCUMENTS BESIDE THE POD": tuple(f"documents.{name}" for name in ("_HEAD", "_CONFIG_MAP", "_SECRET", "_CLAIM", "_CLAIM_SPEC")),
}
FATES: dict[fields.Reader, str] = {
    fields.ignored: "Ignored, with a warning",
    fields.not_yet: "Not supported yet",
    fields.not_yet_true: "Not supported yet",
    fields.not_supported: "Not supported",
}
READ = ""  # the fate of a key that is understood


def find_tables() -> dict[str, fields.Table]:
    """Every table of keys in rktd_units/podfile, by MODULE.NAME."""
    found = {}
    for info in pkgutil.iter_modules(rktd_units.podfile.__path__):
        module = importlib.import_module(f"rktd_units.podfile.{info.name}")
        for name, kind in getattr(module, "__annotations__", {}).items():
            if kind == fields.Table:
                found[f"{info.name}.{name}"] = getattr(module, name)
    return found


TABLES = find_tables()


def read_section(page: str, heading: str) -> str:
    text = (MANUAL / f"{page}.md").read_text(encoding="utf-8")
    found = re.search(rf"^# {re.escape(heading)}\n(.*?)(?=^# |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/man/{page}.md has no section {heading}"
    return found[1]


def read_keys(page: str, heading: str) -> dict[str, str]:
    """What a section says of each key: `**key**, **key**` before a line `: ...` are read, the lists have the others."""
    text = read_section(page, heading)
    keys: dict[str, str] = {}
    for line in re.findall(r"^(\*\*.*)\n: ", text, re.MULTILINE):
        keys |= dict.fromkeys(re.findall(r"\*\*([^*]+)\*\*", line), READ)
    for fate in set(FATES.values()):
        for paragraph in re.findall(rf"^{fate}: (.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL):
            keys |= dict.fromkeys((key for key in re.findall(r"`([^`]+)`", paragraph.partition(". (")[0]) if not key.endswith("...")), fate)
    return keys


def fates(table: fields.Table) -> dict[str, str]:
    return {key: FATES.get(reader, READ) for key, reader in table.items()}


@pytest.mark.parametrize("heading", SECTIONS)
def test_pod_file(heading: str) -> None:
    """Each section has the keys of its tables, each with its fate, and no other."""
    expected: dict[str, str] = {}
    for name in SECTIONS[heading]:
        for key, fate in fates(TABLES[name]).items():
            if expected.get(key) != READ:
                expected[key] = fate
    assert read_keys("rktd.pod.5", heading) == expected, f"docs/man/rktd.pod.5.md, {heading}, and the schema differ"


def test_no_table_is_left_out() -> None:
    assert set(TABLES) == {name for names in SECTIONS.values() for name in names}, "SECTIONS above says where tables are described"


def test_annotations() -> None:
    expected = {annotations.PREFIX + key: READ for key in annotations._CHECKS}
    expected |= {annotations.PREFIX + key: "Not supported yet" for key in annotations._LATER}
    assert read_keys("rktd.pod.5", "ANNOTATIONS") == expected


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("SETTINGS", settingsfile._SETTINGS),
        ("PROXIES", settingsfile._PROXIES),
        ("IDS", settingsfile._ID_RANGE),
        ("NETWORK", settingsfile._NETWORK),
        ("XEN", settingsfile._XEN),
    ],
    ids=["settings", "proxies", "ids", "network", "xen"],
)
def test_settings(heading: str, table: fields.Table) -> None:
    assert read_keys("rktd.yaml.5", heading) == fates(table), f"docs/man/rktd.yaml.5.md, {heading}, and the settings differ"


def test_no_settings_table_is_left_out() -> None:
    tables = {name for name, kind in settingsfile.__annotations__.items() if kind == fields.Table}
    assert tables == {"_SETTINGS", "_PROXIES", "_ID_RANGE", "_NETWORK", "_XEN"}


def render_verbs(noun: str) -> str:
    """What `podctl VERB --help` says of all verbs of a noun, or of those without one."""
    parts = []
    for words, verb in list_verbs():
        if (words[0] if isinstance(VERBS[words[0]], Group) else "") == noun:
            actions = [action for action in build_parser(words, verb)._actions if action.help != argparse.SUPPRESS]
            operands = "".join(f" {render_operand(action)}" for action in actions if not action.option_strings)
            parts.append(f"## podctl {' '.join(words)} [OPTION...]{operands}\n{verb.help[:1].upper()}{verb.help[1:]}.\n")
            parts += [render_action(action) for action in actions if "-h" not in action.option_strings]
    return "\n" + "\n".join(parts) + "\n"


def render_operand(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    if action.nargs is None:
        return name
    return f"{name}..." if action.nargs == "+" else f"[{name}]" if action.nargs == "?" else f"[{name}...]"


def render_action(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 or not action.option_strings else f" *{action.metavar or '|'.join(map(str, action.choices or ()))}*"
    names = ", ".join(f"**{option}**{value}" for option in action.option_strings) or f"*{action.metavar or action.dest}*"
    return f"{names}\n: {(action.help or '').replace('%%', '%')}\n"


@pytest.mark.parametrize("noun", ["", *(name for name, entry in VERBS.items() if isinstance(entry, Group))])
def test_podctl(noun: str) -> None:
    """The page has what --help says."""
    path = MANUAL / f"{f'podctl-{noun}' if noun else 'podctl'}.1.md"
    text, verbs = path.read_text(encoding="utf-8"), read_section(path.stem, "VERBS")
    if os.environ.get("RKTD_UPDATE_GOLDEN") == "1":
        path.write_text(text.replace(f"# VERBS\n{verbs}", f"# VERBS\n{render_verbs(noun)}"), encoding="utf-8")
    else:
        assert verbs == render_verbs(noun), "RKTD_UPDATE_GOLDEN=1 writes it anew"


@pytest.mark.parametrize("path", sorted((CHECKOUT / "docs/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each passes `podctl check`, without a warning, and is described."""
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert f"[{path.name}]({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")


def read_documentation() -> Iterator[tuple[str, str]]:
    for path in sorted((CHECKOUT / "units").rglob("*")):
        if path.suffix in (".service", ".socket", ".path", ".timer", ".target", ".slice"):
            lines = re.findall(r"^Documentation=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            yield path.name, " ".join(lines)


def test_documentation_of_units() -> None:
    """Each unit has some, and every page is there: ours, or systemd's own."""
    for unit, value in read_documentation():
        assert value, f"{unit} has no Documentation="
        for uri in value.split():
            page = re.fullmatch(r"man:(.+)\((\d)\)", uri)
            assert page, f"{unit}: {uri}"
            assert (MANUAL / f"{page[1]}.{page[2]}.md").exists() or page[1].startswith("systemd"), f"{unit}: {uri}"


def test_references_of_pages() -> None:
    """A page of ours that another one names is there."""
    for path in sorted(MANUAL.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# NAME\n{path.stem.rpartition('.')[0]}")
        for name, section in re.findall(r"\*\*([\w@.-]+)\*\*\((\d)\)", text):
            if name.startswith(("rktd", "pod")):
                assert (MANUAL / f"{name}.{section}.md").exists(), f"{path.name}: {name}({section})"

# SPDX-License-Identifier: Apache-2.0
"""From files of other tools to pod files: finds out what each is, brings those together that belong together, and checks what came out."""

import os
from typing import NamedTuple

from rktd_units.convert import appc, compose, quadlet
from rktd_units.convert.draft import Findings, PodDraft
from rktd_units.convert.keys import MOUNT_SOURCES, split_mount
from rktd_units.errors import Diagnostic
from rktd_units.podfile.schema import read_pod
from rktd_units.runfiles import list_names
from rktd_units.sourcefile import read_source
from rktd_units.strictyaml import Mapping, parse_yaml


class Converted(NamedTuple):
    """Pod files by name, and all that is to be said. `lost` is what no pod file has words for."""

    pods: tuple[tuple[str, str], ...]
    faults: tuple[Diagnostic, ...]
    lost: tuple[Diagnostic, ...]


class _Unit(NamedTuple):
    """One file of Quadlet."""

    path: str
    stem: str
    suffix: str
    content: Mapping

    @property
    def base(self) -> str:
        return os.path.dirname(self.path) or "."


def convert_files(paths: list[str], variables: dict[str, str], name: str = "") -> Converted:
    """All pods of these files. `name` is for a pod that has none of its own; `variables` are for Compose."""
    findings = Findings()
    units: list[_Unit] = []
    drafts: list[PodDraft] = []
    for path in paths:
        source = read_source(path)
        if isinstance(source, Diagnostic):
            findings.found.append(source)
            continue
        stem, suffix = os.path.splitext(os.path.basename(path))
        if suffix in quadlet.SUFFIXES:
            units.append(_load_unit(path, source[0], findings))
        else:
            drafts += _convert_document(source[0], path, name or stem, variables, findings)
    drafts += _convert_units(units, findings)
    pods = [(draft.name, draft.render()) for draft in drafts]
    for index, draft in enumerate(drafts):
        if draft.name in [earlier.name for earlier in drafts[:index]]:
            findings.found.append(Diagnostic(paths[0], 0, 0, "", f"two pods are called '{draft.name}'"))
    if not any(fault.severity == "error" for fault in findings.found) and not findings.lost:
        findings.found += [fault for pod in pods for fault in check_pod(*pod)]
    return Converted(tuple(sorted(pods)), tuple(sorted(set(findings.found))), tuple(sorted(set(findings.lost))))


def _load_unit(path: str, data: bytes, findings: Findings) -> _Unit:
    """With its drop-ins."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    content = quadlet.parse_unit(data, path, findings)
    for drop_in in _list_drop_ins(os.path.dirname(path), stem, suffix):
        source = read_source(drop_in)
        if isinstance(source, Diagnostic):
            findings.found.append(source)
        else:
            quadlet.parse_unit(source[0], drop_in, findings, content)
    quadlet.expand_specifiers(findings, content, stem)
    return _Unit(path, stem, suffix, content)


def _list_drop_ins(directory: str, stem: str, suffix: str) -> list[str]:
    """For a-b.container from container.d, a-.container.d and a-b.container.d beside it; of files of one name the last counts."""
    words = stem.split("-")
    names = [suffix[1:], *("-".join([*words[:count], suffix]) for count in range(1, len(words))), stem + suffix]
    found: dict[str, str] = {}
    for place in (os.path.join(directory, f"{name}.d") for name in names):
        found |= {name: os.path.join(place, name) for name in list_names(place) if name.endswith(".conf")}
    return [found[name] for name in sorted(found)]


def check_pod(name: str, text: str) -> list[Diagnostic]:
    """What `podctl check` would find wrong with the file; warnings are left to it."""
    documents, faults = parse_yaml(text.encode(), f"{name}.yaml")
    found = [*faults, *read_pod(documents, name, f"{name}.yaml", (f"{name}.yaml",))[1]]
    return [fault for fault in found if fault.severity == "error"]


def _convert_document(data: bytes, path: str, name: str, variables: dict[str, str], findings: Findings) -> list[PodDraft]:
    documents, faults = parse_yaml(data, path, merge_keys=True)
    findings.found += faults
    if len(documents) != 1 or not isinstance(documents[0], Mapping):
        findings.found.append(Diagnostic(path, 0, 0, "", "is none of .container, .pod, .kube, a Compose file or a pod manifest of rkt"))
        return []
    document = documents[0]
    if "acKind" in document.entries:
        return [appc.convert_manifest(document, name, findings)]
    if "apiVersion" in document.entries:
        hint = "put it into /etc/pods: podctl check says what is wrong with it"
        findings.found.append(Diagnostic(path, 0, 0, "", "is a file of Kubernetes: pod files are the same", hint))
        return []
    if "services" not in document.entries:
        findings.found.append(Diagnostic(path, 0, 0, "", "is neither a Compose file nor a pod manifest of rkt"))
        return []
    base = os.path.dirname(path) or "."
    fits = compose.interpolate(document, {**_read_dotenv(os.path.join(base, ".env")), **variables}, findings)
    return compose.convert_project(document, base, findings) if fits else []


def _read_dotenv(path: str) -> dict[str, str]:
    source = read_source(path)
    if isinstance(source, Diagnostic):
        return {}
    lines = (line.strip().partition("=") for line in source[0].decode("utf-8", "replace").splitlines() if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, equals, value in lines if equals}


def _convert_units(units: list[_Unit], findings: Findings) -> list[PodDraft]:
    """The pods, then the apps in them, then what lies on their own."""
    renames = _read_names([*units, *_find_beside(units, findings)], findings)
    pods = {f"{unit.stem}.pod": _start_draft(unit, findings, renames) for unit in units if unit.suffix == ".pod"}
    drafts = list(pods.values())
    for unit in units:
        if unit.suffix == ".pod":
            quadlet.convert_pod(unit.content, unit.base, pods[f"{unit.stem}.pod"])
    for unit in units:
        if unit.suffix == ".container":
            wanted = quadlet.find_pod_of(unit.content)
            if wanted and wanted not in pods:
                place = ((None, "Container"), "Pod")
                findings.error(unit.content, place, f"{wanted} is not among the files", f"podctl convert {wanted} {unit.path}")
                continue
            pod = pods.get(wanted) or _start_draft(unit, findings, renames)
            quadlet.convert_container(unit.content, unit.stem, unit.base, pod, alone=not wanted)
            drafts += [] if wanted else [pod]
        elif unit.suffix == ".kube":
            drafts += quadlet.convert_kube(unit.content, unit.base, findings)
    for unit in units:
        if unit.suffix == ".pod":
            quadlet.finish_pod(pods[f"{unit.stem}.pod"], unit.content)
    return drafts


def _read_names(units: list[_Unit], findings: Findings) -> dict[str, str]:
    """What .volume and .network files call what they are; those of images become nothing."""
    renames: dict[str, str] = {}
    for unit in units:
        if unit.suffix == ".volume":
            renames[f"{unit.stem}.volume"] = quadlet.name_of_volume(unit.content, unit.stem)
            quadlet.check_volume(unit.content, findings)
        elif unit.suffix == ".network":
            renames[f"{unit.stem}.network"] = quadlet.name_of_network(unit.content, unit.stem)
            quadlet.check_network(unit.content, findings)
        elif unit.suffix in (".image", ".build"):
            findings.lose(unit.content, None, "an image of its own file", "Image= of the .container file, with a digest")
    return renames


def _start_draft(unit: _Unit, findings: Findings, renames: dict[str, str]) -> PodDraft:
    draft = PodDraft(quadlet.name_of_pod(unit.content, unit.stem), unit.content, findings)
    draft.renames = renames
    return draft


def _find_beside(units: list[_Unit], findings: Findings) -> list[_Unit]:
    """The .volume and .network files that lie beside those that were given, and are named in them."""
    given = {unit.path for unit in units}
    found: dict[str, _Unit] = {}
    for unit in units:
        for key in ("Volume", "Network", "Mount"):
            for item in quadlet.list_values(unit.content, key):
                word = item.text.partition(":")[0]
                if key == "Mount":
                    word = next((value for option, value in split_mount(item.text) if option in MOUNT_SOURCES), "")
                path = os.path.join(os.path.dirname(unit.path), word)
                suffix = os.path.splitext(word)[1]
                if suffix in (".volume", ".network") and path not in given and path not in found and "/" not in word:
                    source = read_source(path)
                    if not isinstance(source, Diagnostic):
                        found[path] = _load_unit(path, source[0], findings)
    return list(found.values())

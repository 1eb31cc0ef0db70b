# SPDX-License-Identifier: Apache-2.0
"""Files of Podman Quadlet (podman-systemd.unit(5)): .container, .pod and .kube, with the .volume and .network files that they name."""

import os
from itertools import pairwise

from rktd_units.convert import keys, kube
from rktd_units.convert.draft import App, Findings, PodDraft, order_keys
from rktd_units.convert.keys import Section
from rktd_units.fields import suggest
from rktd_units.strictyaml import Mapping, Node, Scalar, Sequence

SUFFIXES = (".container", ".pod", ".kube", ".volume", ".network", ".image", ".build")


_OUTER = {"Unit": keys.UNIT, "Service": keys.SERVICE, "Install": keys.INSTALL, "Quadlet": keys.QUADLET}


def parse_unit(data: bytes, file: str, findings: Findings, before: Mapping | None = None) -> Mapping:
    """Sections as maps; each key has the list of its values, since the last assignment of nothing. systemd.syntax(7).

    A drop-in goes on with what is said in the file `before`.
    """
    top: dict[str, tuple[Scalar, Node]] = {} if before is None else before.entries
    section: Mapping | None = None
    lines = data.decode("utf-8", "replace").split("\n")
    index = 0
    while index < len(lines):
        number, line = index + 1, lines[index].strip()
        index += 1
        if not line or line[0] in "#;":
            continue
        while line.endswith("\\") and index < len(lines):
            line = line[:-1] + " " + lines[index].strip()
            index += 1
        at = Scalar(file, number, 1, line, plain=True)
        if line.startswith("[") and line.endswith("]"):
            known = top.setdefault(line[1:-1], (at, Mapping(file, number, 1, {})))[1]
            section = known if isinstance(known, Mapping) else None
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or section is None:
            findings.error(at, None, f"must be KEY=VALUE in a [Section], got '{line[:60]}'")
            continue
        known = section.entries.setdefault(key, (Scalar(file, number, 1, key, plain=True), Sequence(file, number, 1, [])))[1]
        if isinstance(known, Sequence):
            known.items = [*known.items, Scalar(file, number, 1, value, plain=True)] if value else []
    return Mapping(file, 1, 1, top) if before is None else before


def expand_specifiers(findings: Findings, unit: Mapping, stem: str) -> None:
    """%N, %n, %p and %% are known when it is converted; any other is not."""
    for section in unit.entries.values():
        for key, (_, values) in section[1].entries.items() if isinstance(section[1], Mapping) else ():
            for item in values.items if isinstance(values, Sequence) else ():
                assert isinstance(item, Scalar)
                text = item.text
                for specifier, value in (("%N", stem), ("%p", stem), ("%n", f"{stem}.service")):
                    text = text.replace(specifier, value)
                rest = text.replace("%%", "")
                if any(sign == "%" and after.isalpha() for sign, after in pairwise(rest)):
                    findings.lose(item, (None, key), f"'{item.text}' has a specifier of systemd", "write its value")
                item.text = text.replace("%%", "%")


def convert_container(unit: Mapping, name: str, base: str, pod: PodDraft, *, alone: bool) -> None:
    """A .container file: a pod of its own, or an app of one."""
    app = App(pod, _last(unit, "Container", "ContainerName") or name, unit, base)
    if alone:
        pod.spec["restartPolicy"] = "Never"
    sections = {"Container": keys.CONTAINER, **_OUTER}
    _apply_sections(app, unit, sections)
    if not _values(unit, "Container", "Image"):
        pod.findings.error(unit, (None, "Container"), "Image= is missing")
    keys.finish_health(app, unit)
    order_keys(app.container)


def convert_pod(unit: Mapping, base: str, pod: PodDraft) -> None:
    """A .pod file; its containers come later."""
    carrier = App(pod, "pod", unit, base)  # what a pod says is said by an app that is none
    pod.containers.clear()
    pod.spec["restartPolicy"] = "Always"
    _apply_sections(carrier, unit, {"Pod": keys.POD, **_OUTER})
    pod.shared = carrier.container


def finish_pod(pod: PodDraft, unit: Mapping) -> None:
    """Ports and volumes that the .pod file has are its first container's."""
    if not pod.containers:
        pod.findings.error(unit, None, "no .container file names this pod")
        return
    shared = pod.shared
    pod.containers[0].setdefault("ports", []).extend(shared.get("ports", ()))
    for container in pod.containers:
        container.setdefault("volumeMounts", []).extend(shared.get("volumeMounts", ()))
        for key in ("ports", "volumeMounts"):
            if not container.get(key, True):
                del container[key]
        order_keys(container)


def convert_kube(unit: Mapping, base: str, findings: Findings) -> list[PodDraft]:
    """A .kube file: the pods of its YAML file."""
    yaml = _values(unit, "Kube", "Yaml")
    if len(yaml) != 1:
        findings.error(unit, (None, "Kube"), "Yaml= must name one file")
        return []
    beside = [os.path.join(base, item.text) for item in _values(unit, "Kube", "ConfigMap")]
    pods = kube.load_pods(os.path.join(base, yaml[0].text), yaml[0], beside, findings)
    if len(pods) > 1 and _values(unit, "Kube", "PublishPort"):
        findings.lose(unit, (None, "Kube"), "which of the pods has the ports?")
    for pod in pods:
        carrier = App(pod, "pod", unit, base)
        pod.containers.remove(carrier.container)
        _apply_sections(
            carrier,
            unit,
            {"Kube": keys.KUBE, **_OUTER, "Service": keys.SERVICE_OF_KUBE},
        )
        for port in carrier.container.get("ports", ()):
            kube.publish(pod, port, unit)
    return pods


def check_volume(unit: Mapping, findings: Findings) -> None:
    """A .volume file makes nothing: a claim is there when a pod wants it."""
    for key, value in _items(unit, "Volume"):
        if key not in ("VolumeName", "Label", "ServiceName") and not (key == "Driver" and value.text == "local"):
            findings.lose(
                value,
                ((None, "Volume"), key),
                "a claim is a directory of /var/lib/rktd/volumes",
                "mount it there by fstab, or use a hostPath",
            )


def check_network(unit: Mapping, findings: Findings) -> None:
    """A .network file makes nothing: a network is there when a pod wants it."""
    for key, value in _items(unit, "Network"):
        if key not in ("NetworkName", "Label", "ServiceName", "NetworkDeleteOnStop") and (key, value.text) != ("Driver", "bridge"):
            findings.lose(
                value,
                ((None, "Network"), key),
                "addresses of networks are given out by us",
                "network: of /etc/rktd/rktd.yaml, rktd.yaml(5)",
            )


def _apply_sections(app: App, unit: Mapping, sections: dict[str, Section]) -> None:
    for title, (at, section) in unit.entries.items():
        table = sections.get(title)
        if title.startswith("X-") or not isinstance(section, Mapping):
            continue
        if table is None:
            app.findings.error(at, None, f"unknown section [{title}]", suggest(title, sections))
            continue
        for key, (key_node, values) in section.entries.items():
            handler = table.get(key) or table.get("*")
            if handler is None:
                app.findings.error(key_node, ((None, title), key), "unknown key", suggest(key, table))
            elif isinstance(values, Sequence) and values.items:
                handler(app, values, ((None, title), key))


def _items(unit: Mapping, section: str) -> list[tuple[str, Scalar]]:
    found = unit.get(section)
    entries = found.entries.items() if isinstance(found, Mapping) else ()
    return [
        (key, item) for key, (_, values) in entries if isinstance(values, Sequence) for item in values.items if isinstance(item, Scalar)
    ]


def _values(unit: Mapping, section: str, key: str) -> list[Scalar]:
    return [item for name, item in _items(unit, section) if name == key]


def _last(unit: Mapping, section: str, key: str) -> str:
    found = _values(unit, section, key)
    return found[-1].text if found else ""


def list_values(unit: Mapping, key: str) -> list[Scalar]:
    """The values of a key, of a container's or a pod's section."""
    return [*_values(unit, "Container", key), *_values(unit, "Pod", key), *_values(unit, "Kube", key)]


def name_of_pod(unit: Mapping, stem: str) -> str:
    """What the unit of a .container or .pod file is called."""
    return _last(unit, "Container", "ServiceName") or _last(unit, "Pod", "ServiceName") or stem


def find_pod_of(unit: Mapping) -> str:
    """The .pod file that a .container file belongs to, or ""."""
    return _last(unit, "Container", "Pod")


def name_of_volume(unit: Mapping, stem: str) -> str:
    """What a .volume file calls its volume."""
    return _last(unit, "Volume", "VolumeName") or f"systemd-{stem}"


def name_of_network(unit: Mapping, stem: str) -> str:
    """What a .network file calls its network."""
    return _last(unit, "Network", "NetworkName") or stem

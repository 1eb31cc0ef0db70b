# SPDX-License-Identifier: Apache-2.0
"""A pod file in the making, and what was found on the way: faults, and losses, which is what a pod file has no words for."""

import os
from typing import Any

from rktd_units.convert import emit
from rktd_units.errors import Diagnostic
from rktd_units.fields import Faults, Place, render_place
from rktd_units.names import is_label, is_pod_name
from rktd_units.podfile.network import check_network_name
from rktd_units.strictyaml import Mapping, Node

NETWORK = "systemd.io/network"
UPDATE = "systemd.io/auto-update"
AUTO_UPDATE = "io.containers.autoupdate"  # podman-auto-update(1)


class Findings(Faults):
    """`lost` are diagnostics, too: errors, unless somebody wants the rest without them."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[Diagnostic] = []

    def lose(self, node: Node, place: Place, why: str, hint: str = "") -> None:
        """Something cannot be converted."""
        self.lost.append(Diagnostic(node.file, node.line, node.column, render_place(place), f"cannot be converted: {why}", hint))


class PodDraft:
    """One pod file. `spec` and the containers are plain data, in the order in which they are to be written."""

    def __init__(self, name: str, node: Node, findings: Findings) -> None:
        self.name = name
        self.findings = findings
        self.comments: list[str] = []
        self.labels: dict[str, str] = {}
        self.annotations: dict[str, str] = {}
        self.spec: dict[str, Any] = {}
        self.init: list[dict[str, Any]] = []
        self.containers: list[dict[str, Any]] = []
        self.volumes: dict[str, dict[str, Any]] = {}
        self.beside: list[dict[str, Any]] = []
        self.renames: dict[str, str] = {}  # what files beside it, x.volume and x.network, call things
        self.shared: dict[str, Any] = {}  # what a file for the pod as a whole says in terms of a container
        if not is_pod_name(name):
            findings.error(node, None, f"'{name}' is not a name for a pod", "lower case letters, digits, dashes and dots; rename the file")

    def add_annotation(self, key: str, word: str) -> None:
        """One more word of a list such as `systemd.io/after`."""
        words = self.annotations.get(key, "").split()
        self.annotations[key] = " ".join([*words, word] if word not in words else words)

    def set_network(self, node: Node, place: Place, name: str) -> None:
        """The pod's network; a pod has one."""
        fault = check_network_name(name)
        if fault:
            self.findings.lose(node, place, fault)
        elif self.annotations.get(NETWORK, name) != name:
            self.findings.lose(node, place, "a pod is in one network")
        else:
            self.annotations[NETWORK] = name

    def set_update(self, node: Node, place: Place, policy: str) -> None:
        """Where newer images come from, as podman calls it; a pod's are updated together."""
        policy = "registry" if policy == "image" else policy
        if policy not in ("registry", "local", "disabled"):
            self.findings.error(node, place, f"must be registry or local, got '{policy}'")
        elif self.annotations.get(UPDATE, policy) != policy:
            self.findings.lose(node, place, "all images of a pod are updated from one place")
        elif policy != "disabled":
            self.annotations[UPDATE] = policy

    def add_volume(self, wish: str, definition: dict[str, Any]) -> str:
        """The name of a volume that is so defined; `wish` is how it would like to be called."""
        for name, known in self.volumes.items():
            if known == definition and "emptyDir" not in definition:
                return name
        stem = "".join(c if c.isascii() and c.isalnum() else "-" for c in wish.lower()).strip("-")[:50].strip("-") or "volume"
        name, number = stem, 1
        while name in self.volumes:
            number += 1
            name = f"{stem}-{number}"
        self.volumes[name] = definition
        return name

    def add_config(self, name: str, data: dict[str, str]) -> str:
        """A ConfigMap beside the pod; gives its name."""
        name = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-") or "config"
        known = {document["metadata"]["name"]: document for document in self.beside}
        stem, number = name, 1
        while name in known and known[name]["data"] != data:
            number += 1
            name = f"{stem}-{number}"
        if name not in known:
            self.beside.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
        return name

    def render(self) -> str:
        """The pod file."""
        metadata: dict[str, Any] = {"name": self.name}
        metadata |= {"labels": self.labels} if self.labels else {}
        metadata |= {"annotations": self.annotations} if self.annotations else {}
        spec = dict(self.spec)
        spec |= {"initContainers": self.init} if self.init else {}
        spec["containers"] = self.containers
        spec |= {"volumes": [{"name": name, **definition} for name, definition in self.volumes.items()]} if self.volumes else {}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        return emit.render_documents([pod, *self.beside], tuple(self.comments))


class App:
    """One container of a draft. `base` is the directory that relative paths start from."""

    def __init__(self, pod: PodDraft, name: str, node: Node, base: str) -> None:
        self.pod = pod
        self.findings = pod.findings
        self.base = os.path.abspath(base)
        self.node = node
        self.container: dict[str, Any] = {"name": name, "image": ""}
        if not is_label(name):
            self.findings.error(node, None, f"'{name}' is not a name for an app", "lower case letters, digits and dashes")
        self.document: Mapping | None = None  # the whole file, where a container is a part of one
        self.health: dict[str, Any] = {}  # of the health check, until all of it is known
        pod.containers.append(self.container)

    def inner(self, key: str) -> dict[str, Any]:
        """A map of the container, made when it is not there."""
        found: dict[str, Any] = self.container.setdefault(key, {})
        return found

    def append(self, key: str, value: Any) -> None:
        """One more item of a list of the container."""
        items = self.container.setdefault(key, [])
        if value not in items:
            items.append(value)


def order_keys(container: dict[str, Any]) -> None:
    """In the order in which people write them."""
    container.update({key: container.pop(key) for key in _ORDER if key in container})


_ORDER = (
    *("name", "image", "imagePullPolicy", "restartPolicy", "command", "args", "workingDir", "env", "envFrom", "ports", "resources"),
    *("securityContext", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "volumeMounts"),
)

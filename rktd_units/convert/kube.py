# SPDX-License-Identifier: Apache-2.0
"""The YAML of `podman kube play`: pods are pods, but for what stands around them, and for several in one file."""

from typing import Any

from rktd_units.convert.draft import AUTO_UPDATE, Findings, PodDraft
from rktd_units.convert.emit import plain_data
from rktd_units.errors import Diagnostic
from rktd_units.fields import text_of
from rktd_units.podfile.model import KINDS
from rktd_units.sourcefile import read_source
from rktd_units.strictyaml import Mapping, Node, parse_yaml

_TEMPLATES = ("Deployment", "DaemonSet", "Job")


def load_documents(path: str, node: Node, findings: Findings) -> tuple[Node, ...]:
    """The documents of a YAML file that the place `node` names."""
    source = read_source(path)
    if isinstance(source, Diagnostic):
        findings.error(node, None, f"{path} {source.message}")
        return ()
    documents, faults = parse_yaml(source[0], path)
    findings.found += faults
    return documents


def load_pods(path: str, node: Node, config_maps: list[str], findings: Findings) -> list[PodDraft]:
    """Every pod of the file, and of its Deployments; ConfigMaps, Secrets and claims go to those that name them."""
    documents = list(load_documents(path, node, findings))
    for beside in config_maps:
        documents += load_documents(beside, node, findings)
    pods = [pod for document in documents if (pod := _read_pod(document, findings))]
    extra = [plain_data(document) for document in documents if text_of(document, "kind") in KINDS and isinstance(document, Mapping)]
    for pod in pods:
        named = set(_find_texts([pod.spec, pod.containers, pod.init, pod.volumes]))
        pod.beside += [document for document in extra if str(document.get("metadata", {}).get("name")) in named]
    if not pods:
        findings.error(node, None, f"{path} has no pod")
    return pods


def _read_pod(found: Node, findings: Findings) -> PodDraft | None:
    kind, document = text_of(found, "kind"), found
    if not isinstance(document, Mapping) or kind in KINDS:
        return None
    if kind not in ("Pod", *_TEMPLATES):
        findings.lose(document, (None, "kind"), f"'{kind}' is not a pod")
        return None
    metadata, outer = document.get("metadata"), document.get("spec")
    if kind != "Pod":
        for key, (at, value) in outer.entries.items() if isinstance(outer, Mapping) else ():
            if key == "replicas" and getattr(value, "text", "") not in ("0", "1"):
                findings.lose(at, ((None, "spec"), key), "there is one pod of a name on a host")
            elif key not in ("replicas", "selector", "template"):
                findings.lose(at, ((None, "spec"), key), f"a {kind} becomes its pod, and no more")
        template = outer.get("template") if isinstance(outer, Mapping) else None
        if not isinstance(template, Mapping):
            return None
        document = template
    pod = PodDraft(text_of(metadata, "name"), metadata or document, findings)
    inner: Any = document.get("metadata")
    for source in (metadata, inner):
        data = plain_data(source) if isinstance(source, Mapping) else {}
        pod.labels |= data.get("labels") or {}
        pod.annotations |= data.get("annotations") or {}
    for key in [key for key in pod.annotations if key.startswith(("io.podman.", "io.containers."))]:
        policy, place = str(pod.annotations.pop(key)), ((None, "metadata"), key)
        if key.partition("/")[0] == AUTO_UPDATE:  # and the container's name
            pod.set_update(document, place, policy)
        else:
            findings.lose(document, place, "an annotation of podman's", "drop it, or say it in a pod file's own way")
    spec = document.get("spec")
    pod.spec = plain_data(spec) if isinstance(spec, Mapping) else {}
    pod.containers = pod.spec.pop("containers", [])
    pod.init = pod.spec.pop("initContainers", [])
    for volume in pod.spec.pop("volumes", []):
        pod.volumes[str(volume.pop("name", ""))] = volume
    return pod


def publish(pod: PodDraft, port: dict[str, Any], node: Node) -> None:
    """A port of the host for whichever container has that port, else for the first one."""
    for container in pod.containers:
        for known in container.get("ports", ()):
            if str(known.get("containerPort")) == str(port["containerPort"]):
                known.update(port)
                return
    if pod.containers:
        pod.containers[0].setdefault("ports", []).append(port)


def _find_texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _find_texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _find_texts(inner)]
    return [value] if isinstance(value, str) else []

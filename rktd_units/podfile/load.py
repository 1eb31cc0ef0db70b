# SPDX-License-Identifier: Apache-2.0
"""From the files of one pod to its model, or to all that is wrong with them."""

import os
import stat

from rktd_units.errors import Diagnostic
from rktd_units.fields import text_of
from rktd_units.ownership import HINT, find_fault, parents
from rktd_units.podfile.merge import merge_nodes
from rktd_units.podfile.model import KINDS, Pod
from rktd_units.podfile.schema import find_pod_document, read_pod
from rktd_units.podfile.search import PodEntry
from rktd_units.sourcefile import read_source
from rktd_units.strictyaml import Mapping, Node, parse_yaml


def load_pod(entry: PodEntry, *, ownership: bool = True) -> tuple[Pod | None, tuple[Diagnostic, ...]]:
    """The pod, or None with all its faults, sorted; warnings come with either. `ownership`: as root, demand what `check_ownership` does."""
    demand = ownership and os.geteuid() == 0
    faults = list(check_ownership(entry)) if demand else []
    documents, found = _read_documents(entry.path, demand)
    faults += found
    if documents or not found:
        for drop_in in entry.drop_ins:
            overlays, found = _read_documents(drop_in, demand)
            merged, more = _merge_drop_in(documents, overlays, drop_in)
            documents = merged
            faults += (*found, *more)
        pod, found = read_pod(documents, entry.name, entry.path, (entry.path, *entry.drop_ins))
        faults += found
    else:
        pod = None
    failed = any(fault.severity == "error" for fault in faults)
    return None if failed else pod, tuple(sorted(set(faults)))


def check_ownership(entry: PodEntry) -> tuple[Diagnostic, ...]:
    """Faults for each file and directory of the entry that somebody else than root could write (DESIGN 4.1).

    What a pod file says runs as root's word, digests that it pins included, so whoever can change it is root.
    """
    paths = {directory for path in (entry.path, *entry.drop_ins) for real in (path, os.path.realpath(path)) for directory in parents(real)}
    faults: list[Diagnostic] = []
    for path in (*sorted(paths), entry.path, *entry.drop_ins):
        try:
            faults += _check_status(path, os.stat(path))
        except OSError:
            continue  # reading it gives the better message
    return tuple(faults)


def _check_status(path: str, status: os.stat_result) -> tuple[Diagnostic, ...]:
    fault = find_fault(status)
    return (Diagnostic(path, 0, 0, "", fault, HINT),) if fault else ()


def _read_documents(path: str, demand_root: bool) -> tuple[tuple[Node, ...], tuple[Diagnostic, ...]]:
    source = read_source(path)
    if isinstance(source, Diagnostic):
        return (), (source,)
    data, status = source
    faults = _check_status(path, status) if demand_root else ()
    documents, found = parse_yaml(data, path)
    return documents, (*faults, *found, *_check_secrecy(path, documents, status))


def _check_secrecy(path: str, documents: tuple[Node, ...], status: os.stat_result) -> tuple[Diagnostic, ...]:
    """A warning for a Secret that every user can read."""
    secret = next((document for document in documents if text_of(document, "kind") == "Secret"), None)
    if secret is None or not status.st_mode & stat.S_IROTH:
        return ()
    message = f"holds a Secret, and every user may read it: it has mode {stat.S_IMODE(status.st_mode):04o}"
    return (Diagnostic(path, secret.line, secret.column, "", message, "chmod 0600", severity="warning"),)


def _merge_drop_in(documents: tuple[Node, ...], overlays: tuple[Node, ...], path: str) -> tuple[tuple[Node, ...], tuple[Diagnostic, ...]]:
    """A part of a pod goes over the pod; a ConfigMap and the like over the one of its name, or beside it."""
    beside = [overlay for overlay in overlays if text_of(overlay, "kind") in KINDS]
    parts = [overlay for overlay in overlays if overlay not in beside]
    if len(parts) > 1:
        return documents, (Diagnostic(path, parts[1].line, parts[1].column, "", "a drop-in must have one part of a pod"),)
    merged = list(documents)
    index = find_pod_document(documents)
    if parts:
        (part,) = parts
        if not isinstance(part, Mapping):
            return documents, (Diagnostic(path, part.line, part.column, "", f"must be a map, a part of a pod, got {part.kind}"),)
        if index is not None:
            merged[index] = merge_nodes(merged[index], part)
    for overlay in beside if index is not None else ():
        same = next((i for i, known in enumerate(merged) if i != index and _identify(known) == _identify(overlay)), None)
        if same is None:
            merged.append(overlay)
        else:
            merged[same] = merge_nodes(merged[same], overlay)
    return tuple(merged), ()


def _identify(document: Node) -> tuple[str, str]:
    """Kind and name."""
    metadata = document.get("metadata") if isinstance(document, Mapping) else None
    return text_of(document, "kind"), text_of(metadata, "name")

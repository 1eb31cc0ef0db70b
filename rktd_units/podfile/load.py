# SPDX-License-Identifier: Apache-2.0
"""From the files of one pod to its model, or to all that is wrong with them."""

import os

from rktd_units.errors import Diagnostic
from rktd_units.ownership import HINT, find_fault, parents
from rktd_units.podfile.merge import merge_nodes
from rktd_units.podfile.model import Pod
from rktd_units.podfile.schema import find_pod_document, read_pod
from rktd_units.podfile.search import PodEntry
from rktd_units.strictyaml import Mapping, Node, parse_yaml, read_source


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
    return documents, faults + found


def _merge_drop_in(documents: tuple[Node, ...], overlays: tuple[Node, ...], path: str) -> tuple[tuple[Node, ...], tuple[Diagnostic, ...]]:
    if not overlays:
        return documents, ()
    overlay, index = overlays[0], find_pod_document(documents)
    if len(overlays) > 1:
        second = overlays[1]
        return documents, (Diagnostic(path, second.line, second.column, "", "a drop-in must be one document"),)
    if not isinstance(overlay, Mapping):
        return documents, (Diagnostic(path, overlay.line, overlay.column, "", f"must be a map, a part of a pod, got {overlay.kind}"),)
    if index is None:
        return documents, ()
    return (*documents[:index], merge_nodes(documents[index], overlay), *documents[index + 1 :]), ()

# SPDX-License-Identifier: Apache-2.0
"""Which pods need which images: those that are readied or run (/run/rktd), and those that pod files describe."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

from rktd_units.errors import ImageError
from rktd_units.images.collect import Spared
from rktd_units.images.ready import resolve_reference
from rktd_units.images.records import ImageRecord
from rktd_units.images.store import Store
from rktd_units.paths import Layout
from rktd_units.podfile.load import load_pod
from rktd_units.podfile.search import PodEntry, find_pods
from rktd_units.runfiles import list_names, read_text
from rktd_units.updates import held_digests

_KEYS = ("image:", "reference:", "from:")
_PINS = ("sha256:", "sha512-")


class Usage(NamedTuple):
    """By name of the pod: digests of manifests that it runs, layers that it holds, canonical references that its file has."""

    running: dict[str, frozenset[str]]
    claims: dict[str, frozenset[str]]
    configured: dict[str, frozenset[str]]
    faults: tuple[str, ...]  # pod files that could not be read as such
    held: frozenset[str] = frozenset()  # digests to which an update may have to go back

    def spared(self) -> Spared:
        """What a collection must leave."""
        references = _join(self.configured)
        digests = {pin for _, at, pin in (text.rpartition("@") for text in references) if at and pin.startswith(_PINS)}
        return Spared(references, _join(self.running) | digests | self.held, _join(self.claims))

    def pods_of(self, record: ImageRecord) -> tuple[tuple[str, str], ...]:
        """(pod, "running" or "configured") of each pod that needs the image, sorted."""
        found = {pod: "configured" for pod, names in self.configured.items() if _has(names, record)}
        found |= {pod: "running" for pod, digests in self.running.items() if record.manifest in digests}
        return tuple(sorted(found.items()))


def find_usage(layout: Layout, directories: tuple[str, ...]) -> Usage:
    """What is so now. A pod file that is not valid still counts: whatever in it looks like an image is taken for one."""
    running = {name: _running(layout, name) for name in list_names(layout.pods)}
    claims = layout.layer_claims
    held = {name: frozenset(read_text(f"{claims}/{name}").split()) for name in list_names(claims)}
    configured, faults, store = {}, [], Store(layout)
    for entry in find_pods(directories).entries:
        pod, _ = load_pod(entry, ownership=False)
        if pod is None:
            faults.append(entry.path)
        images = {container.image for container in pod.containers} if pod else set()
        configured[entry.name] = _canonical(images | _scan(entry), store)
    return Usage(running, held, configured, tuple(faults), held_digests(layout))


def _running(layout: Layout, name: str) -> frozenset[str]:
    try:
        apps = json.loads(read_text(f"{layout.pod(name)}/pod.json") or "{}").get("apps", [])
        return frozenset(app["digest"] for app in apps)
    except (ValueError, LookupError, TypeError, AttributeError):
        return frozenset()


def _scan(entry: PodEntry) -> set[str]:
    """Every word after a key that images have, whatever the rest is."""
    found = set()
    for path in (entry.path, *entry.drop_ins):
        words = read_text(path).replace("{", " ").replace("}", " ").replace(",", " ").replace('"', "").replace("'", "").split()
        found |= {word for key, word in pairwise(words) if key in _KEYS}
    return found


def _canonical(images: set[str], store: Store) -> frozenset[str]:
    found = set()
    for image in images:
        with suppress(ImageError):
            found.add(str(resolve_reference(image, store)))
    return frozenset(found)


def _has(references: frozenset[str], record: ImageRecord) -> bool:
    return record.reference in references or any(r.endswith(f"@{record.pin}") for r in references)


def _join(sets: dict[str, frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets.values())

# SPDX-License-Identifier: Apache-2.0
"""Which ConfigMaps, Secrets and containers a pod refers to, and what is missing of them. On the model: pure."""

from collections.abc import Iterable, Iterator, Mapping

from rktd_units.errors import Diagnostic
from rktd_units.podfile.model import FieldFile, KeyFiles, Pod, Projected, Reference, ResourceRef


def find_references(pod: Pod) -> Iterator[Reference]:
    """Each key, or whole ConfigMap or Secret, that the pod asks for."""
    for container in pod.containers:
        yield from (source.source for source in container.env_from)
        yield from (variable.key for variable in container.env if variable.key)
    for volume in pod.volumes:
        if isinstance(volume, Projected):
            for source in volume.sources:
                if isinstance(source, KeyFiles):
                    yield from _of_files(source)


def check_references(pod: Pod) -> list[Diagnostic]:
    """What is missing that the pod's own file should have. Secrets that it does not have are looked for at the start."""
    known = {(m.kind, m.name): dict(m.data) for m in pod.beside.maps}
    names = {name for kind, name in known if kind == "ConfigMap"}
    found = []
    for reference in find_references(pod):
        data = known.get((reference.kind, reference.name))
        if data is not None or reference.kind == "ConfigMap":
            found += describe_missing(reference, data, sorted(names))
    apps = [container.name for container in pod.containers]
    for resource in _find_resources(pod):
        if resource.container and resource.container not in apps:
            place = f"{resource.place}.containerName"
            found.append(
                Diagnostic(*resource.at, place, f"the pod has no container '{resource.container}'", _suggest(resource.container, apps))
            )
    return found


def describe_missing(reference: Reference, data: Mapping[str, bytes] | None, names: list[str]) -> list[Diagnostic]:
    """A fault if the reference cannot do without what is not there. `data`: what it names, None for nothing; `names`: what there is."""
    if reference.optional or (data is not None and (not reference.key or reference.key in data)):
        return []
    if data is None:
        hint = _suggest(reference.name, names) or f"a document `kind: {reference.kind}` in the same file, or optional: true"
        return [Diagnostic(*reference.at, reference.place, f"there is no {reference.kind} '{reference.name}'", hint)]
    message = f"{reference.kind} '{reference.name}' has no key '{reference.key}'"
    hint = _suggest(reference.key, data) or ("it has " + ", ".join(sorted(data)) if data else "it has none")
    return [Diagnostic(*reference.at, reference.place, message, hint)]


def _of_files(files: KeyFiles) -> Iterator[Reference]:
    if files.items is None:
        yield files.source
    else:
        yield from (files.source._replace(key=item.key) for item in files.items)


def _find_resources(pod: Pod) -> Iterator[ResourceRef]:
    for container in pod.containers:
        yield from (variable.resource for variable in container.env if variable.resource)
    for volume in pod.volumes:
        if isinstance(volume, Projected):
            yield from (source.resource for source in volume.sources if isinstance(source, FieldFile) and source.resource)


def _suggest(word: str, known: Iterable[str]) -> str:
    from rktd_units.fields import suggest  # only for a fault

    return suggest(word, known)

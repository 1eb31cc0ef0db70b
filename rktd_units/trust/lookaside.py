# SPDX-License-Identifier: Apache-2.0
"""Where simple signatures of an image lie: containers-registries.d(5), and the layout of containers-signature storage."""

import os
from collections.abc import Iterator

from rktd_units.errors import ConfigError, Diagnostic, TrustError
from rktd_units.images.reference import Reference
from rktd_units.paths import Layout
from rktd_units.sourcefile import read_source
from rktd_units.strictyaml import Mapping, Node, Scalar, parse_yaml

DEFAULT = "file:///var/lib/containers/sigstore"
SIGNATURES_MAX = 16  # of one image in one place
SIGNATURE_MAX = 16 << 10  # bytes
_KEYS = ("lookaside", "sigstore")  # the second is the old name
_SCHEMES = ("file://", "http://", "https://")


def find_lookaside(reference: Reference, layout: Layout) -> str:
    """The URL of the signature storage for an image: of the most precise scope that names one. Raises ConfigError, TrustError."""
    scopes = _read_scopes(f"{layout.root}/etc/containers/registries.d")
    for scope in _scopes_of(reference):
        if scope in scopes:
            url, file = scopes[scope]
            if not url.startswith(_SCHEMES) or ".." in url.split("/"):
                raise TrustError(f"{file}: lookaside of {scope or 'default-docker'} must be a file, http or https URL, is {url[:200]!r}")
            return url.rstrip("/")
    return DEFAULT


def signature_places(base: str, reference: Reference, digest: str) -> Iterator[str]:
    """The URLs that are asked in turn, up to the first that is not there. The host is no part of them."""
    return (f"{base}/{reference.path}@{digest.replace(':', '=')}/signature-{number}" for number in range(1, SIGNATURES_MAX + 1))


def read_local(base: str, reference: Reference, digest: str, layout: Layout) -> list[tuple[str, bytes]]:
    """The signatures in a directory of this host, with their places. Their content is believed by nobody yet."""
    from rktd_units.images.store import open_regular

    found = []
    for place in signature_places(base, reference, digest):
        path = f"{layout.root}{place.removeprefix('file://')}"
        try:
            with open(open_regular(path), "rb") as file:
                data = file.read(SIGNATURE_MAX + 1)
        except (FileNotFoundError, NotADirectoryError):
            break
        if len(data) <= SIGNATURE_MAX:
            found.append((place, data))
    return found


def _scopes_of(reference: Reference) -> list[str]:
    """Most precise first: the image with its tag, the repository, what is above it, the host, `*.` and a domain above it, the default."""
    parts = reference.name.split("/")
    domains = parts[0].partition(":")[0].split(".")
    wildcards = ("*." + ".".join(domains[count:]) for count in range(1, len(domains)))
    tag = [reference.unpinned] if reference.tag else []
    return [*tag, *("/".join(parts[:count]) for count in range(len(parts), 0, -1)), *wildcards, ""]


def _read_scopes(directory: str) -> dict[str, tuple[str, str]]:
    """URL and file by scope. Sections that name no storage for reading are left out, as containers' own code does."""
    found: dict[str, tuple[str, str]] = {}
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".yaml"))
    except FileNotFoundError:
        return found
    for name in names:
        path = f"{directory}/{name}"
        for scope, url, node in _read_file(path):
            if scope in found:
                _refuse(node, f"'{scope or 'default-docker'}' is described in {found[scope][1]} too")
            found[scope] = url, path
    return found


def _read_file(path: str) -> Iterator[tuple[str, str, Node]]:
    source = read_source(path)
    if isinstance(source, Diagnostic):
        raise ConfigError(str(source), (source,))
    documents, faults = parse_yaml(source[0], path)
    if faults:
        raise ConfigError("\n".join(map(str, faults)), faults)
    for document in documents:
        top = _mapping(document)
        sections = _mapping(top.get("docker"))
        for scope, section in [("", top.get("default-docker")), *((scope, sections.get(scope)) for scope in sections.entries)]:
            values = _mapping(section)
            urls = [value for value in map(values.get, _KEYS) if value is not None]
            if urls and section is not None:
                yield scope, urls[0].text if isinstance(urls[0], Scalar) else "", urls[0]


def _mapping(node: Node | None) -> Mapping:
    if node is None:
        return Mapping("", 0, 0, {})
    if not isinstance(node, Mapping):
        _refuse(node, f"must be a map, got {node.kind}")
    assert isinstance(node, Mapping)
    return node


def _refuse(node: Node, message: str) -> None:
    fault = Diagnostic(node.file, node.line, node.column, "", message)
    raise ConfigError(str(fault), (fault,))

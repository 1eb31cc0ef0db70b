# SPDX-License-Identifier: Apache-2.0
"""What ConfigMaps, Secrets, fields and resources come to at a start: variables of apps, files of volumes. Secrets stay in memory here."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from rktd_units.errors import ConfigError, Diagnostic, StateError
from rktd_units.podfile.model import Container, FieldFile, KeyFiles, Pod, Projected, Reference, ResourceRef
from rktd_units.podfile.references import describe_missing


class File(NamedTuple):
    """A file of a volume: relative path, content, permission bits."""

    path: str
    data: bytes
    mode: int


class Values:
    """Looks up ConfigMaps and Secrets of one pod: its own documents, else, for Secrets, systemd's credentials; each once."""

    def __init__(self, pod: Pod, root: str = "") -> None:
        self._pod = pod
        self._root = root
        self._maps: dict[tuple[str, str], Mapping[str, bytes] | None] = {(m.kind, m.name): dict(m.data) for m in pod.beside.maps}

    def find(self, reference: Reference) -> bytes | None:
        """The value of the reference's key; None where it may be missing. Raises ConfigError, StateError."""
        return self.find_all(reference).get(reference.key)

    def list_logins(self) -> tuple[tuple[str, bytes], ...]:
        """The pod's imagePullSecrets: what to call each, and docker's config.json. One that is missing is told on stderr, and left out."""
        found = []
        for reference in self._pod.pull_secrets:
            data = self.find_all(reference)
            name = f"imagePullSecret {reference.name}"
            if ".dockerconfigjson" in data:
                found.append((name, data[".dockerconfigjson"]))
            elif ".dockercfg" in data:
                found.append((name, b'{"auths": ' + data[".dockercfg"] + b"}"))
            elif data:
                message = f"Secret '{reference.name}' has no key '.dockerconfigjson'"
                raise ConfigError(message, (Diagnostic(*reference.at, reference.place, message),))
            else:
                sys.stderr.write(f"<4>{name}: there is no such Secret; images are fetched without it\n")
        return tuple(found)

    def find_text(self, reference: Reference) -> str | None:
        """The same as the value of a variable. Raises ConfigError where it is none."""
        data = self.find(reference)
        text = None if data is None else decode_text(data)
        if data is not None and text is None:
            message = f"{reference.kind} '{reference.name}': the value of '{reference.key}' is not text: a variable holds UTF-8 without NUL"
            raise ConfigError(message, (Diagnostic(*reference.at, reference.place, message, "a volume can have it as a file"),))
        return text

    def find_all(self, reference: Reference) -> Mapping[str, bytes]:
        """All keys and values; {} where it may be missing. A key that the reference names is there, unless it is optional."""
        where = reference.kind, reference.name
        if where not in self._maps:
            self._maps[where] = self._read_credentials(reference) if reference.kind == "Secret" else None
        data = self._maps[where]
        missing = describe_missing(reference, data, [name for kind, name in self._maps if kind == reference.kind and (kind, name) != where])
        if missing:
            raise ConfigError(missing[0].message, (self._explain(missing[0], reference, data),))
        return data or {}

    def _read_credentials(self, reference: Reference) -> Mapping[str, bytes] | None:
        from rktd_units import credstore  # few pods need it

        paths = credstore.find_credentials(reference.name, self._root)
        try:
            return {key: credstore.read_credential(path) for key, path in sorted(paths.items())} or None
        except StateError as error:
            fault = Diagnostic(*reference.at, reference.place, str(error), error.hint)
            raise ConfigError(str(error), (fault,)) from error

    def _explain(self, fault: Diagnostic, reference: Reference, data: object) -> Diagnostic:
        if reference.kind != "Secret" or data is not None:
            return fault
        from rktd_units import credstore

        hint = (
            f"a document `kind: Secret` in the same file, or credentials {reference.name}@KEY in {credstore.PLAIN[0]} or "
            f"{credstore.ENCRYPTED[0]}, or optional: true"
        )
        return fault._replace(hint=hint)


def decode_text(data: bytes) -> str | None:
    """What a variable can hold: UTF-8 without NUL; None for anything else."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def volume_files(pod: Pod, volume: Projected, values: Values, field: Callable[[str], str]) -> tuple[File, ...]:
    """The files of a volume, sorted by path; of two with one path the later one counts. `field` gives what a fieldRef names.

    Raises ConfigError for what is missing, and where one path is a file and a directory.
    """
    files: dict[str, File] = {}
    for source in volume.sources:
        if isinstance(source, FieldFile):
            text = find_resource(pod, source.resource) if source.resource else field(source.field)
            files[source.path] = File(source.path, text.encode("utf-8", "surrogateescape"), _mode(source.mode, volume))
        else:
            for file in _key_files(source, volume, values):
                files[file.path] = file
    for path in files:
        parent = path
        while "/" in parent:
            parent = parent.rsplit("/", 1)[0]
            if parent in files:
                message = f"volume {volume.name}: {parent} would be a file and a directory"
                raise ConfigError(message, (Diagnostic(*volume.at, f"volume {volume.name}", f"{parent} would be a file and a directory"),))
    return tuple(files[path] for path in sorted(files))


def _key_files(source: KeyFiles, volume: Projected, values: Values) -> list[File]:
    if source.items is None:
        return [File(key, data, volume.default_mode) for key, data in values.find_all(source.source).items()]
    found = []
    for item in source.items:
        data = values.find(source.source._replace(key=item.key))
        if data is not None:
            found.append(File(item.path, data, _mode(item.mode, volume)))
    return found


def _mode(own: int | None, volume: Projected) -> int:
    return volume.default_mode if own is None else own


def find_resource(pod: Pod, reference: ResourceRef, container: Container | None = None) -> str:
    """A limit or request in units of the divisor, rounded up; a limit that nobody set is what the host has, a request is then 0."""
    if container is None or reference.container:
        container = next(c for c in pod.containers if c.name == reference.container)
    resources = container.resources
    amount = {
        "limits.cpu": resources.cpu_limit,
        "limits.memory": resources.memory_limit,
        "requests.cpu": resources.cpu_limit if resources.cpu_request is None else resources.cpu_request,
        "requests.memory": resources.memory_limit if resources.memory_request is None else resources.memory_request,
    }[reference.resource]
    if amount is None and reference.resource.startswith("limits."):
        cpu = reference.resource == "limits.cpu"
        amount = len(os.sched_getaffinity(0)) * 1000 if cpu else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return str(-(-(amount or 0) // reference.divisor))


def render_pairs(pairs: tuple[tuple[str, str], ...]) -> str:
    """Labels or annotations as a file: `key="value"` lines, sorted, quoted as Go's strconv.Quote does (kubelet's FormatMap)."""
    return "\n".join(f"{key}={_quote(value)}" for key, value in sorted(pairs))


def _quote(text: str) -> str:
    named = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\", '"': '\\"'}
    out = []
    for char in text:
        code = ord(char)
        if char in named:
            out.append(named[char])
        elif char.isprintable():
            out.append(char)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'

# SPDX-License-Identifier: Apache-2.0
"""Where a reference's registry really is: registries.conf, certs.d and credentials, as containers' tools have them. Privileged side.

Reads the administrator's files only, and asks nobody but his credential helpers. The result is what a sandboxed job gets to see.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn, Protocol

from rktd_units.errors import ConfigError, ImageError
from rktd_units.images.reference import DEFAULT_HOST, Reference, is_short_name, parse_reference
from rktd_units.images.store import read_config
from rktd_units.paths import Layout

DOCKER_HUB = "registry-1.docker.io"
ACCESS = "access.json"  # the name of the file that tells a job how to reach registries; see registry.open_access
_CERTIFICATES = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_WHEN = {"all": (True, True), "digest-only": (True, False), "tag-only": (False, True)}  # pull-from-mirror: for digests? for tags?


class Place(NamedTuple):
    """A repository to ask: `host` as references have it."""

    host: str
    path: str
    insecure: bool


class TransportSettings(Protocol):
    """What of the administrator's settings matters here."""

    def is_insecure_transport(self, reference: str) -> bool: ...

    def find_proxies(self) -> Mapping[str, str]: ...

    @property
    def stall_timeout(self) -> int: ...

    def list_logins(self) -> tuple[tuple[str, bytes], ...]: ...


def find_access(reference: Reference | None, settings: TransportSettings, layout: Layout) -> dict[str, bytes]:
    """The files that a job needs to reach a reference's registry, or plain web servers if it is None. They hold credentials.

    Raises ImageError if the registry is blocked, ConfigError for a faulty file.
    """
    from rktd_units.images.credentials import find_credential  # starts programs; the start path reads aliases only

    places = [
        place._replace(insecure=place.insecure or settings.is_insecure_transport(f"{place.host}/{place.path}"))
        for place in (list_places(reference, layout) if reference else ())
    ]
    files: dict[str, bytes] = {}
    tls: dict[str, dict[str, Any]] = {}
    for host in sorted(_list_certificate_hosts(layout) | {place.host for place in places}):
        here = [place for place in places if place.host == host]
        entry = _find_tls(host, layout, files, private=bool(here))
        if here and all(place.insecure for place in here):
            entry["verify"] = False
        if entry:
            tls[_real_host(host)] = entry
    endpoints = [(_real_host(p.host), p.path, p.insecure, find_credential(p.host, p.path, layout, settings.list_logins())) for p in places]
    value = {"endpoints": endpoints, "tls": tls, "proxies": dict(settings.find_proxies()), "stall": settings.stall_timeout}
    return {**files, ACCESS: json.dumps(value).encode()}


def list_places(reference: Reference, layout: Layout) -> tuple[Place, ...]:
    """Where to ask for a reference, in order: mirrors first, the registry itself last. containers-registries.conf(5)."""
    conf = load_registries(layout)
    found = conf.find(str(reference))
    if found is None:
        return (Place(reference.host, reference.path, False),)
    prefix, length, entry = found
    if entry.blocked:
        raise ImageError(f"{reference}: {prefix} is blocked", hint=f"by {entry.source}")
    places = []
    for mirror in entry.mirrors:
        for_digests, for_tags = _WHEN[mirror.when]
        if for_digests if reference.digest else for_tags:
            places.append(_rewrite(reference, length, mirror.location, mirror.insecure, entry.source))
    return (*places, _rewrite(reference, length, entry.location, entry.insecure, entry.source))


def expand_short_name(text: str, layout: Layout) -> str:
    """A reference without a host, by the aliases of registries.conf; as it is where there is none: then it is of docker.io.

    `unqualified-search-registries` is not looked at: a name whose image depends on who answers first cannot be trusted.
    """
    if not is_short_name(text):
        return text
    name, at, digest = text.partition("@")
    base, colon, tag = name.partition(":")
    alias = load_registries(layout).aliases.get(base, "")
    return f"{alias or base}{colon}{tag}{at}{digest}"


class Mirror(NamedTuple):
    location: str
    insecure: bool
    when: str  # a key of _WHEN


class Registration(NamedTuple):
    """One [[registry]] table; an empty `location` leaves the reference as it is."""

    location: str
    insecure: bool
    blocked: bool
    mirrors: tuple[Mirror, ...]
    source: str


class Registries(NamedTuple):
    """All of registries.conf and registries.conf.d: what comes later wins, by prefix and by alias."""

    by_prefix: dict[str, Registration]
    aliases: dict[str, str]

    def find(self, reference: str) -> tuple[str, int, Registration] | None:
        """The longest prefix that covers a reference, and how much of the reference it covers."""
        matches = [(length, prefix) for prefix in self.by_prefix if (length := _match(reference, prefix)) > 0]
        if not matches:
            return None
        length, prefix = max(matches)
        return prefix, length, self.by_prefix[prefix]


def load_registries(layout: Layout) -> Registries:
    """Raises ConfigError with the file's name."""
    top = f"{layout.root}/etc/containers/registries.conf"
    registries = Registries({}, {})
    for path in (top, *_list_files(f"{top}.d", ".conf")):
        if os.path.lexists(path):
            _Reader(path).read(registries)
    return registries


class _Reader:
    """One file, strict about the types of what it knows, silent about the rest: newer versions have more."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, registries: Registries) -> None:
        import tomllib

        text = read_config(self._path)[0].decode("utf-8", "replace")
        try:
            value = tomllib.loads(text)
        except ValueError as error:
            self._refuse(f"is not valid TOML: {error}")
        if "registries" in value:
            self._refuse("is of version 1, which is not supported: write [[registry]] tables, containers-registries.conf(5)")
        for table in self._tables(value, "registry"):
            prefix, registration = self._read_registration(table)
            registries.by_prefix[prefix] = registration
        aliases = value.get("aliases", {})
        if not isinstance(aliases, dict) or not all(isinstance(v, str) for v in aliases.values()):
            self._refuse("[aliases]: must be names and references")
        registries.aliases.update(aliases)

    def _read_registration(self, table: dict[str, Any]) -> tuple[str, Registration]:
        location, prefix = self._location(table, "location"), self._location(table, "prefix")
        if not prefix and not location:
            self._refuse("[[registry]]: has neither prefix nor location")
        if "*" in location or "*" in prefix.removeprefix("*."):
            self._refuse(f"[[registry]]: {prefix or location!r}: a wildcard stands only at the beginning of a prefix, as *.example.com")
        if not location and not prefix.startswith("*."):
            self._refuse(f"[[registry]]: {prefix!r}: has no location")
        only_digests = self._flag(table, "mirror-by-digest-only")
        mirrors = []
        for mirror in self._tables(table, "mirror"):
            when = mirror.get("pull-from-mirror", "digest-only" if only_digests else "all")
            if when not in _WHEN:
                self._refuse(f"[[registry.mirror]]: pull-from-mirror must be all, digest-only or tag-only, got {when!r}")
            place = self._location(mirror, "location")
            if not place or "*" in place:
                self._refuse("[[registry.mirror]]: has no plain location")
            mirrors.append(Mirror(place, self._flag(mirror, "insecure"), when))
        flags = self._flag(table, "insecure"), self._flag(table, "blocked")
        return prefix or location, Registration(location, *flags, tuple(mirrors), self._path)

    def _tables(self, value: dict[str, Any], key: str) -> list[dict[str, Any]]:
        tables = value.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            self._refuse(f"{key}: must be [[tables]]")
        return tables

    def _location(self, table: dict[str, Any], key: str) -> str:
        value = table.get(key, "")
        if not isinstance(value, str) or "://" in value or not value.isprintable():
            self._refuse(f"{key}: must be HOST[:PORT][/PATH] without a scheme, got {value!r}")
        return str(value).rstrip("/")

    def _flag(self, table: dict[str, Any], key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            self._refuse(f"{key}: must be true or false, got {value!r}")
        return bool(value)

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"{self._path}: {reason}")


def _match(reference: str, prefix: str) -> int:
    """How many characters of the reference a prefix covers, by whole components; 0 if it does not."""
    if prefix.startswith("*."):
        host = reference.partition("/")[0]
        rest = prefix[1:]
        at = reference.find(rest)
        if at <= 0 or at >= len(host):
            return 0
        length = at + len(rest)
    else:
        if not reference.startswith(prefix):
            return 0
        length = len(prefix)
    ends = "/" if "/" not in prefix and not prefix.startswith("*.") else "/:@"  # a host without a port is another one than with it
    return length if length == len(reference) or reference[length] in ends else 0


def _rewrite(reference: Reference, length: int, location: str, insecure: bool, source: str) -> Place:
    text = str(reference)
    try:
        place = parse_reference(f"{location}{text[length:]}" if location else text)
    except ImageError as error:
        raise ConfigError(f"{source}: location {location!r} does not make a reference of {reference}: {error}") from error
    if place.kind != reference.kind or (place.tag, place.digest) != (reference.tag, reference.digest) or not place.path:
        raise ConfigError(f"{source}: location {location!r} does not make a reference of {reference}")
    return Place(place.host, place.path, insecure)


def _real_host(host: str) -> str:
    return DOCKER_HUB if host == DEFAULT_HOST else host


def _list_files(directory: str, suffix: str) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if name.endswith(suffix) and not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _list_certificates(directory: str, suffix: str) -> list[str]:
    with suppress(PermissionError):  # members of the group rktd may not see root's
        return _list_files(directory, suffix)
    return []


def _list_certificate_hosts(layout: Layout) -> set[str]:
    return {os.path.basename(path) for top in _CERTIFICATES for path in _list_certificates(f"{layout.root}{top}", "")}


def _find_tls(host: str, layout: Layout, files: dict[str, bytes], *, private: bool) -> dict[str, Any]:
    """What certs.d has for a host (containers-certs.d(5)), its files added to `files`; the client's key only if `private`.

    All `.crt` are believed. The first `.cert`, which must have its `.key`, is shown to the server.
    """
    for top in _CERTIFICATES:
        directory = f"{layout.root}{top}/{host}"
        authorities, certificates = _list_certificates(directory, ".crt"), _list_certificates(directory, ".cert")
        if not authorities and not certificates:
            continue
        entry: dict[str, Any] = {"authorities": [_add(files, path) for path in authorities]}
        if private and certificates:
            key = f"{certificates[0].removesuffix('.cert')}.key"
            if not os.path.lexists(key):
                raise ConfigError(f"{certificates[0]}: has no key beside it, {os.path.basename(key)}")
            if not os.access(key, os.R_OK):
                return entry  # members of the group rktd do not see root's keys
            entry |= {"certificate": _add(files, certificates[0]), "key": _add(files, key)}
        return entry
    return {}


def _add(files: dict[str, bytes], path: str) -> str:
    """The name by which a job finds the file; what it is of shows in errors."""
    name = f"tls-{len(files)}-{os.path.basename(path)}"
    files[name] = read_config(path)[0]
    return name

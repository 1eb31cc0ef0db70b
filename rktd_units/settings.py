# SPDX-License-Identifier: Apache-2.0
"""The administrator's settings, /etc/rktd/rktd.yaml: strict, as pod files are, and all of them optional."""

import os
from collections.abc import Mapping
from typing import NamedTuple

IDS_PER_POD = 65536
LOCAL_KINDS = ("oci", "oci-archive", "dir", "docker-archive", "aci")
_DEFAULT_HOST = "docker.io"


class IdRange(NamedTuple):
    """Host ids that pods get theirs from: `base` and `size` are multiples of 65536."""

    base: int = 0x70000000
    size: int = 0x0FFE0000


class Settings(NamedTuple):
    """What /etc/rktd/rktd.yaml says, or the defaults.

    `insecure`: prefixes whose images run unverified. `insecure_transport`: prefixes that may be fetched without TLS, which says nothing of
    trust. `proxies`: None leaves it to the environment.
    """

    insecure: tuple[str, ...] = ()
    id_range: IdRange = IdRange()
    max_image_bytes: int = 64 << 30
    insecure_transport: tuple[str, ...] = ()
    proxies: Mapping[str, str] | None = None

    def is_insecure(self, reference: str) -> bool:
        """True when a listed prefix covers the reference, by whole components: `ex.org/a` covers `ex.org/a/b:1`, not `ex.org/a-evil`."""
        return _is_covered(reference, self.insecure)

    def is_insecure_transport(self, reference: str) -> bool:
        """True when a registry may be spoken to without TLS, or whatever its certificate is."""
        return _is_covered(reference, self.insecure_transport)

    def find_proxies(self) -> Mapping[str, str]:
        """As urllib.request.getproxies gives them: http, https, all, no."""
        return _read_environment() if self.proxies is None else self.proxies


def load_settings(path: str = "/etc/rktd/rktd.yaml") -> Settings:
    """The file's settings; the defaults when there is no file. Raises ConfigError with all its diagnostics."""
    if not os.path.lexists(path):
        return Settings()
    from rktd_units.settingsfile import read_settings  # YAML, which a start without settings does not need

    return read_settings(path)


def _is_covered(reference: str, prefixes: tuple[str, ...]) -> bool:
    parts = _split_reference(reference)
    return any(_covers(_split_prefix(prefix), parts) for prefix in prefixes)


def _read_environment() -> dict[str, str]:
    """http_proxy and its kin; small letters win, as with curl."""
    names = {name.lower(): name for name in sorted(os.environ)}
    return {key: os.environ[names[f"{key}_proxy"]] for key in ("http", "https", "all", "no") if names.get(f"{key}_proxy")}


def _covers(prefix: tuple[str, ...], reference: tuple[str, ...]) -> bool:
    return reference[: len(prefix)] == prefix


def _split_reference(text: str) -> tuple[str, ...]:
    """The kind and the components of a reference, without tag, name in a layout and digest: docker.io, library, busybox."""
    name = text.partition("@")[0]
    if local := _split_local(name):
        return local
    host, slash, rest = name.partition("/")
    if not slash or not _is_host(host):
        host, rest = _DEFAULT_HOST, name
    parts = rest.split("/")
    parts[-1] = parts[-1].partition(":")[0]
    if host == _DEFAULT_HOST and len(parts) == 1:
        parts.insert(0, "library")
    return host, *parts


def _split_prefix(text: str) -> tuple[str, ...]:
    """As `_split_reference`, but a lone `ex.org` or `127.0.0.1:5000` is a whole registry."""
    if local := _split_local(text):
        return local
    text = text.removesuffix("/")
    host, slash, rest = text.partition("/")
    if _is_host(host):
        return (host, *rest.split("/")) if slash else (host,)
    return _DEFAULT_HOST, *(text.split("/") if slash else ("library", text))


def _split_local(text: str) -> tuple[str, ...]:
    """() when it is not of a local kind. Of an ACI also a URL, scheme and host being its first components, or a name."""
    kind, colon, rest = text.partition(":")
    if not colon or kind not in LOCAL_KINDS:
        return ()
    scheme, url, place = rest.partition("://")
    if url:
        return kind + ":", f"{scheme}:", *(part for part in place.split("/") if part)
    start = f"{kind}:/" if rest.startswith("/") else f"{kind}:"  # a path is no name, whatever their parts
    return start, *(part for part in rest.partition(",")[0].partition(":")[0].split("/") if part)


def _is_host(text: str) -> bool:
    return "." in text or ":" in text or text == "localhost"

# SPDX-License-Identifier: Apache-2.0
"""The administrator's settings, /etc/rktd/rktd.yaml: strict, as pod files are, and all of them optional."""

import os
from collections.abc import Mapping
from typing import NamedTuple

IDS_PER_POD = 65536
EVERYTHING = "*"
LOCAL_KINDS = ("oci", "oci-archive", "dir", "docker-archive", "aci")
SIGNED_KINDS = ("aci",)  # of those: what can have a signature beside it
_DEFAULT_HOST = "docker.io"


class IdRange(NamedTuple):
    """Host ids that pods get theirs from: `base` and `size` are multiples of 65536."""

    base: int = 0x70000000
    size: int = 0x0FFE0000


class AddressPool(NamedTuple):
    """What networks of pods get their addresses from: IPv4 `base`/`prefix`, of which each takes a part with the prefix length `size`.

    `ipv6`: a /48 as a number, 0 for one of the host's own; `mtu`: 0 for that of the host's default route.
    """

    base: int = 0x0A700000
    prefix: int = 12
    size: int = 20
    ipv6: int = 0
    mtu: int = 0


class XenSettings(NamedTuple):
    """Domains of Xen. `kernel` and `initrd`: "" is the host's own kernel, and what is made for it; `kind`: pv, pvh, or "" for what the host
    can do; `memory`: bytes of a domain without memory limits."""

    kernel: str = ""
    initrd: str = ""
    kind: str = ""
    memory: int = 256 << 20


class Settings(NamedTuple):
    """What /etc/rktd/rktd.yaml says, or the defaults.

    `insecure`: prefixes whose images run unverified. `insecure_transport`: prefixes that may be fetched without TLS, which says nothing of
    trust. `proxies`: None leaves it to the environment.

    `require_signature`: prefixes whose images need a signature even if they are pinned;
    "*" is all images. Of all prefixes of `insecure` and `require_signature` that cover an image, the longest one counts.
    """

    insecure: tuple[str, ...] = ()
    id_range: IdRange = IdRange()
    max_image_bytes: int = 64 << 30
    insecure_transport: tuple[str, ...] = ()
    proxies: Mapping[str, str] | None = None
    require_signature: tuple[str, ...] = ()
    network: AddressPool = AddressPool()
    logins: tuple[tuple[str, bytes], ...] = ()  # of the pod at hand: its imagePullSecrets
    stall_timeout: int = 60  # seconds in which a server sends next to nothing
    xen: XenSettings = XenSettings()

    def is_insecure(self, reference: str) -> bool:
        """True when a listed prefix covers the reference, by whole components: `ex.org/a` covers `ex.org/a/b:1`, not `ex.org/a-evil`."""
        parts = split_reference(reference)
        return _longest(self.insecure, parts) > _longest(self.require_signature, parts)

    def requires_signature(self, reference: str) -> bool:
        """True when the reference needs a signature, whatever digest pins it."""
        parts = split_reference(reference)
        return _longest(self.require_signature, parts) > _longest(self.insecure, parts)

    def is_insecure_transport(self, reference: str) -> bool:
        """True when a registry may be spoken to without TLS, or whatever its certificate is."""
        return _longest(self.insecure_transport, split_reference(reference)) >= 0

    def list_logins(self) -> tuple[tuple[str, bytes], ...]:
        """Logins to registries that come before the administrator's: what to call each, and docker's config.json."""
        return self.logins

    def find_proxies(self) -> Mapping[str, str]:
        """As urllib.request.getproxies gives them: http, https, all, no."""
        return _read_environment() if self.proxies is None else self.proxies


def load_settings(path: str = "/etc/rktd/rktd.yaml") -> Settings:
    """The file's settings; the defaults when there is no file. Raises ConfigError with all its diagnostics."""
    if not os.path.lexists(path) or _is_empty(path):
        return Settings()
    from rktd_units.settingsfile import read_settings  # YAML, which a start without settings does not need

    return read_settings(path)


def _is_empty(path: str) -> bool:
    """Whether nothing but comments is in it, as it is installed."""
    try:
        with open(path, "rb") as file:
            return all(line.startswith(b"#") or not line.strip() for line in file)
    except OSError:
        return False  # told by who reads it


def _read_environment() -> dict[str, str]:
    """http_proxy and its kin; small letters win, as with curl."""
    names = {name.lower(): name for name in sorted(os.environ)}
    return {key: os.environ[names[f"{key}_proxy"]] for key in ("http", "https", "all", "no") if names.get(f"{key}_proxy")}


def _longest(prefixes: tuple[str, ...], reference: tuple[str, ...]) -> int:
    """The number of components of the longest prefix that covers the reference; -1 when none does."""
    found = (() if prefix == EVERYTHING else split_prefix(prefix) for prefix in prefixes)
    return max((len(parts) for parts in found if reference[: len(parts)] == parts), default=-1)


def split_reference(text: str) -> tuple[str, ...]:
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


def split_prefix(text: str) -> tuple[str, ...]:
    """As `split_reference`, but a lone `ex.org` or `127.0.0.1:5000` is a whole registry."""
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

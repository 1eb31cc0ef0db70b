# SPDX-License-Identifier: Apache-2.0
"""Image references as pod files have them, parsed and made canonical. Pure; in every pod start, so no `re`."""

from typing import NamedTuple

from rktd_units.errors import ImageError

REGISTRY = "registry"
OCI = "oci"
OCI_ARCHIVE = "oci-archive"
DIR = "dir"
DOCKER_ARCHIVE = "docker-archive"
ACI = "aci"
_LOCAL = (OCI, OCI_ARCHIVE, DIR, DOCKER_ARCHIVE)

DEFAULT_HOST = "docker.io"
_LENGTH_MAX = 4096
_REPOSITORY_MAX = 255
_HEX = frozenset("0123456789abcdef")
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_WORD = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")


class Reference(NamedTuple):
    """One image. `host` and `path` is where it is; `tag` and `digest` are "" where the text has none."""

    kind: str  # REGISTRY, OCI, OCI_ARCHIVE, DIR, DOCKER_ARCHIVE or ACI
    host: str  # of a registry, with the port if one is given
    path: str  # repository, or absolute path; of an ACI also a URL, or a name to discover
    tag: str  # or the REF of an OCI layout, or VERSION,LABEL=VALUE... of an ACI, VERSION being empty if there is none
    digest: str  # "sha256:HEX", of an ACI "sha512-HEX": the pin

    @property
    def name(self) -> str:
        """Without tag and digest: what prefixes of trust and `insecure:` are compared with."""
        return f"{self.host}/{self.path}" if self.kind == REGISTRY else f"{self.kind}:{self.path}"

    @property
    def unpinned(self) -> str:
        if self.tag.startswith(","):
            return self.name + self.tag
        return f"{self.name}:{self.tag}" if self.tag else self.name

    def __str__(self) -> str:
        return f"{self.unpinned}@{self.digest}" if self.digest else self.unpinned


def parse_reference(text: str) -> Reference:
    """A reference with its defaults filled in: `busybox` is docker.io/library/busybox:latest. Raises ImageError.

    The grammar is that of distribution/reference (docs/spec/api) and of containers-transports(5).
    """
    if not text or len(text) > _LENGTH_MAX or not text.isprintable():
        raise _refusal(text, "must be 1 to 4096 printable characters")
    kind, colon, rest = text.partition(":")
    if colon and kind in _LOCAL:
        return _parse_local(text, kind, rest)
    if colon and kind == ACI:
        return _parse_aci(text, rest)
    if colon and (kind == "docker" or rest.startswith("//")):
        raise _refusal(text, f"{kind}: is not a form of reference here", hint="write host/repository:tag, without a scheme")
    return _parse_registry(text)


def is_short_name(text: str) -> bool:
    """Whether a reference to a registry leaves out the host, as `busybox:1` does."""
    host, slash, _ = text.partition("@")[0].partition("/")
    return not (slash and _has_host_form(host))


def _has_host_form(text: str) -> bool:
    return "." in text or ":" in text or text == "localhost"


def is_digest(text: str) -> bool:
    """sha256 in lower-case hexadecimal, the only algorithm that we take (OCI image-spec, descriptor.md)."""
    return len(text) == 71 and text.startswith("sha256:") and set(text[7:]) <= _HEX


def is_image_id(text: str) -> bool:
    """An ACI's own hash: of the uncompressed tar (appc spec, types.md, Image ID Type)."""
    return len(text) == 135 and text.startswith("sha512-") and set(text[7:]) <= _HEX


def is_identifier(text: str) -> bool:
    """appc spec, types.md, AC Identifier Type: words of small letters and digits, single `-._~/` between them (and `/~`)."""
    words = text.replace("/~", "/").replace("/", "~").replace("_", "~").replace(".", "~").replace("-", "~").split("~")
    return all(word and set(word) <= _LOWER for word in words)


def aci_labels(reference: Reference) -> dict[str, str]:
    """What the reference of a discovered ACI asks of the image's labels, its version among them."""
    version, *rest = reference.tag.split(",")
    labels = dict(label.split("=", 1) for label in rest)
    return {"version": version, **labels} if version else labels


def _refusal(text: str, reason: str, hint: str = "") -> ImageError:
    return ImageError(f"image reference {text[:300]!r}: {reason}", hint=hint)


def _split_digest(text: str, rest: str) -> tuple[str, str]:
    name, at, digest = rest.rpartition("@")
    if not at:
        return rest, ""
    if not is_digest(digest):
        raise _refusal(text, f"digest must be sha256: and 64 lower-case hexadecimal digits, got {digest[:100]!r}")
    return name, digest


def _parse_local(text: str, kind: str, rest: str) -> Reference:
    name, digest = _split_digest(text, rest)
    path, colon, tag = name.partition(":")
    if colon and kind in (DOCKER_ARCHIVE, DIR):
        raise _refusal(text, f"a {kind} takes no name after its path: it must hold one image")
    if colon and not _is_layout_name(tag):
        raise _refusal(text, f"bad image name {tag[:200]!r} after the path")
    _check_path(text, path)
    return Reference(kind, "", path, tag, digest)


def _check_path(text: str, path: str) -> None:
    parts = path.split("/")
    if not path.startswith("/") or len(parts) < 2 or any(p in ("", ".", "..") for p in parts[1:]):
        raise _refusal(text, f"path must be absolute and plain (no //, . or ..), got {path[:300]!r}")


def _parse_aci(text: str, rest: str) -> Reference:
    """aci:PATH, aci:https://HOST/PATH, or aci:NAME[:VERSION][,LABEL=VALUE]... as rkt had it; each may end in @sha512-HEX."""
    name, at, image_id = rest.partition("@")
    if at and not is_image_id(image_id):
        reason = f"an ACI is pinned by sha512- and 128 lower-case hexadecimal digits, got {image_id[:140]!r}"
        raise _refusal(text, reason, "it is the image ID: the sha512 of the uncompressed tar")
    if name.startswith("/"):
        if ":" in name:
            raise _refusal(text, "an aci takes no name after its path")
        _check_path(text, name)
        return Reference(ACI, "", name, "", image_id)
    scheme, url, place = name.partition("://")
    if url:
        host, _, path = place.partition("/")
        good = path.isascii() and not set(path) & set("?#\\ <>\"'`{}|^") and not any(p in ("", ".", "..") for p in path.split("/"))
        if scheme not in ("https", "http") or not _is_host(host) or not good:
            raise _refusal(text, f"bad URL {name[:300]!r}", "https://HOST/PATH, without query, fragment and credentials")
        return Reference(ACI, "", name, "", image_id)
    name, comma, tail = name.partition(",")
    path, colon, version = name.partition(":")
    labels = dict(label.partition("=")[::2] for label in tail.split(",")) if comma else {}
    if not is_identifier(path) or "/" not in path or not _is_host(path.partition("/")[0]):
        hint = "PATH, https://HOST/PATH, or HOST/NAME[:VERSION][,LABEL=VALUE]..."
        raise _refusal(text, f"{path[:300]!r} is not the name of an ACI", hint)
    if len(labels) != (tail.count(",") + 1 if comma else 0) or {"name", "version"} & set(labels):
        raise _refusal(text, "a label is repeated, or called name or version")
    if not all(is_identifier(key) and _is_label_value(value) for key, value in labels.items()) or (colon and not _is_label_value(version)):
        raise _refusal(text, "bad version or label", "letters, digits and ._+~-/ for a value")
    return Reference(ACI, "", path, ",".join([version, *(f"{key}={labels[key]}" for key in sorted(labels))]), image_id)


def _is_label_value(text: str) -> bool:
    return 0 < len(text) <= 128 and set(text) <= _WORD | set("-.+~/")


def _is_layout_name(tag: str) -> bool:
    """The grammar of org.opencontainers.image.ref.name (OCI image-spec, annotations.md), a little wider."""
    return tag.isascii() and tag[:1].isalnum() and all(c.isalnum() or c in "-._:+/@" for c in tag)


def _parse_registry(text: str) -> Reference:
    rest, digest = _split_digest(text, text)
    first, slash, remainder = rest.partition("/")
    if slash and _has_host_form(first):
        host, name = first, remainder
    else:
        host, name = DEFAULT_HOST, rest
    path, colon, tag = name.partition(":")
    if colon and not (0 < len(tag) <= 128 and tag[0] in _WORD and set(tag) <= _WORD | {"-", "."}):
        raise _refusal(text, f"bad tag {tag[:200]!r}")
    if not _is_host(host):
        raise _refusal(text, f"bad registry host {host[:200]!r}")
    if host in ("index.docker.io", "registry-1.docker.io"):
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and "/" not in path:
        path = f"library/{path}"
    if len(path) > _REPOSITORY_MAX or not all(_is_component(p) for p in path.split("/")):
        raise _refusal(text, f"bad repository {path[:300]!r}", hint="lower-case letters, digits, and single . _ - between them")
    return Reference(REGISTRY, host, path, tag or ("" if digest else "latest"), digest)


def _is_host(host: str) -> bool:
    """A DNS name, an IPv4 address or a bracketed IPv6 address, with an optional port."""
    if host.startswith("["):
        address, bracket, port = host[1:].partition("]")
        good = bool(bracket) and ":" in address and set(address) <= frozenset("0123456789abcdef:.")
        colon, port = port[:1], port[1:]
        if colon not in ("", ":"):
            return False
    else:
        address, colon, port = host.partition(":")
        labels = address.split(".")
        good = len(address) <= 253 and all(0 < len(p) <= 63 and set(p) <= _LOWER | {"-"} and p[0] != "-" and p[-1] != "-" for p in labels)
    return good and (not colon or (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536))


def _is_component(part: str) -> bool:
    """[a-z0-9]+ joined by one of `.`, `_`, `__` or any number of `-`."""
    if not part or part[0] not in _LOWER or part[-1] not in _LOWER:
        return False
    separator = ""
    for c in part:
        if c in _LOWER:
            if separator and not (separator in (".", "_", "__") or set(separator) == {"-"}):
                return False
            separator = ""
        elif c in "._-":
            separator += c
        else:
            return False
    return True

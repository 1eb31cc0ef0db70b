# SPDX-License-Identifier: Apache-2.0
"""Reads /etc/rktd/rktd.yaml: strict, as pod files are."""

from rktd_units.errors import ConfigError, Diagnostic
from rktd_units.fields import Faults, Place, Reader, Table, describe, read_choice, read_integer, read_list, read_mapping, read_text
from rktd_units.podfile.quantities import FORM_HINT, parse_bytes
from rktd_units.settings import (
    EVERYTHING,
    IDS_PER_POD,
    LOCAL_KINDS,
    SIGNED_KINDS,
    AddressPool,
    IdRange,
    Settings,
    XenSettings,
    split_prefix,
)
from rktd_units.sourcefile import read_source
from rktd_units.strictyaml import Mapping, Node, Scalar, parse_yaml

_LAST_ID = 0x7FFE0000  # where systemd's foreign ids begin: UIDS-GIDS.md of systemd


def read_settings(path: str) -> Settings:
    """The file's settings. Raises ConfigError with all its diagnostics."""
    source = read_source(path)
    if isinstance(source, Diagnostic):
        raise ConfigError(str(source), (source,))
    documents, found = parse_yaml(source[0], path)
    settings, faults = _read_settings(documents) if documents else (Settings(), ())
    diagnostics = tuple(sorted((*found, *faults)))
    if diagnostics:
        raise ConfigError("\n".join(map(str, diagnostics)), diagnostics)
    return settings


def _read_settings(documents: tuple[Node, ...]) -> tuple[Settings, tuple[Diagnostic, ...]]:
    faults = Faults()
    for document in documents[1:]:
        faults.error(document, None, "must be one document")
    values = read_mapping(faults, documents[0], None, _SETTINGS)
    settings = Settings(
        insecure=tuple(values.get("insecure", ())),
        id_range=values.get("idRange", IdRange()),
        max_image_bytes=values.get("maxImageBytes", 64 << 30),
        insecure_transport=tuple(values.get("insecureTransport", ())),
        proxies=values.get("proxies"),
        require_signature=tuple(values.get("requireSignature", ())),
        network=values.get("network", AddressPool()),
        stall_timeout=values.get("stallTimeout", 60),
        xen=values.get("xen", XenSettings()),
    )
    _refuse_contradictions(faults, documents[0], settings)
    return settings, tuple(faults.found)


def _read_prefix(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is None:
        return None
    problem = check_prefix(text)
    if problem:
        faults.error(
            node,
            place,
            f"'{text}' is not a prefix of images: {problem}",
            "HOST[/REPOSITORY], oci:PATH, docker-archive:PATH ..., aci:NAME or aci:URL, by whole components",
        )
        return None
    return text


def _read_required(faults: Faults, node: Node, place: Place) -> str | None:
    """As `_read_prefix`, or "*". Layouts and archives of this host carry no signatures."""
    if isinstance(node, Scalar) and node.text == EVERYTHING:
        return EVERYTHING
    prefix = _read_prefix(faults, node, place)
    kind, colon, _ = (prefix or "").partition(":")
    if colon and kind in LOCAL_KINDS and kind not in SIGNED_KINDS:
        faults.error(node, place, f"'{prefix}' can have no signature", "pin those images, with a digest")
        return None
    return prefix


def _refuse_contradictions(faults: Faults, document: Node, settings: Settings) -> None:
    insecure = {split_prefix(prefix) for prefix in settings.insecure}
    for prefix in settings.require_signature:
        if prefix != EVERYTHING and split_prefix(prefix) in insecure:
            faults.error(document, None, f"'{prefix}' is listed under both insecure and requireSignature")


def check_prefix(text: str) -> str:
    """What is wrong with it, or ""."""
    kind, colon, path = text.partition(":")
    if not text.isprintable() or " " in text or "@" in text or "*" in text or ("://" in text and kind != "aci"):
        return "no scheme, digest, wildcard or space"
    if colon and kind == "aci" and not path.startswith("/"):
        place = path.removeprefix("https://").removeprefix("http://").removesuffix("/")
        good = all(part not in ("", ".", "..") for part in place.split("/")) and ":" not in place.partition("/")[2] and "," not in place
        return (
            "" if good and (place != path.removesuffix("/") or ":" not in place) else "must be a name or a URL, without version and labels"
        )
    if colon and kind in LOCAL_KINDS:
        if not path.startswith("/") or ":" in path or ".." in path.split("/"):
            return "the path must be absolute, without '..' and without a name after it"
        return ""
    parts = text.removesuffix("/").split("/")
    if not all(parts) or ".." in parts:
        return "a component is empty or '..'"
    tagged = ":" in parts[-1] if len(parts) > 1 else colon and not path.isdecimal()
    return "a tag is not part of it" if tagged else ""


def _read_id_range(faults: Faults, node: Node, place: Place) -> IdRange:
    values = read_mapping(faults, node, place, _ID_RANGE, required=("base", "size"))
    found = IdRange(values.get("base", IdRange().base), values.get("size", IdRange().size))
    for key, value in (("base", found.base), ("size", found.size)):
        at = node.get(key) if isinstance(node, Mapping) else None
        if value % IDS_PER_POD and at:
            faults.error(at, (place, key), f"must be a multiple of {IDS_PER_POD}, got {value}", "a pod gets that many ids")
    if found.base + found.size > _LAST_ID:
        message = f"must end before the id {_LAST_ID}, ends at {found.base + found.size}"
        faults.error(node, place, message, "the ids from there on are taken: see UIDS-GIDS of systemd")
    return found


def _read_size(faults: Faults, node: Node, place: Place) -> int | None:
    try:
        size = parse_bytes(node.text) if isinstance(node, Scalar) else 0
    except ValueError as error:
        faults.error(node, place, str(error), FORM_HINT)
        return None
    if size <= 0:
        faults.error(node, place, f"must be a quantity of more than 0 bytes, got {describe(node)}", FORM_HINT)
        return None
    return size


def _read_proxy(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is not None and not (text.startswith(("http://", "https://")) and text.isprintable() and " " not in text):
        faults.error(node, place, f"must be an http or https URL, got {describe(node)}", "http://[USER:PASSWORD@]HOST:PORT")
        return None
    return text


def _read_proxies(faults: Faults, node: Node, place: Place) -> dict[str, str]:
    """`no` is a list here, and a text with commas for urllib."""
    values = read_mapping(faults, node, place, _PROXIES)
    return {key: ",".join(value) if key == "no" else value for key, value in values.items()}


def _read_pool(faults: Faults, node: Node, place: Place) -> AddressPool:
    values = read_mapping(faults, node, place, _NETWORK)
    base, prefix = values.get("ipv4", (AddressPool().base, AddressPool().prefix))
    size = values.get("size", max(prefix, AddressPool().size))
    at = node.get("size") if isinstance(node, Mapping) else None
    if size < prefix and at:
        faults.error(at, (place, "size"), f"must be a prefix length from {prefix} on, that of the pool, got {size}")
    return AddressPool(base, prefix, size, values.get("ipv6", (0, 0))[0], values.get("mtu", 0))


def _read_span(family: int, low: int, high: int) -> Reader:
    """A reader of ADDRESS/PREFIX, with a prefix length from `low` to `high`: (address as a number, prefix length)."""

    def read(faults: Faults, node: Node, place: Place) -> tuple[int, int] | None:
        from ipaddress import ip_network

        text = read_text(faults, node, place)
        if text is None:
            return None
        try:
            network = ip_network(text)
        except ValueError:
            network = None
        if network is None or network.version != family or not low <= network.prefixlen <= high or not network.is_private:
            span = f"/{low}" if low == high else f"/{low} to /{high}"
            faults.error(node, place, f"must be a private IPv{family} network of {span}, got {describe(node)}")
            return None
        return int(network.network_address), network.prefixlen

    return read


def _read_path(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is not None and (not text.startswith("/") or not text.isprintable()):
        faults.error(node, place, f"must be an absolute path, got {describe(node)}")
        return None
    return text


def _read_xen(faults: Faults, node: Node, place: Place) -> XenSettings:
    values = read_mapping(faults, node, place, _XEN)
    found = XenSettings()
    return XenSettings(*(values.get(key, default) for key, default in zip(("kernel", "initrd", "type", "memory"), found, strict=True)))


_XEN: Table = {"initrd": _read_path, "kernel": _read_path, "memory": _read_size, "type": read_choice("pv", "pvh")}
_NETWORK: Table = {
    "ipv4": _read_span(4, 8, 28),
    "ipv6": _read_span(6, 48, 48),
    "mtu": read_integer(1280, 65535),
    "size": read_integer(8, 28),
}
_PROXIES: Table = {"http": _read_proxy, "https": _read_proxy, "no": read_list(read_text)}
_ID_RANGE: Table = {"base": read_integer(IDS_PER_POD, _LAST_ID), "size": read_integer(IDS_PER_POD, _LAST_ID)}
_SETTINGS: Table = {
    "idRange": _read_id_range,
    "insecure": read_list(_read_prefix),
    "insecureTransport": read_list(_read_prefix),
    "maxImageBytes": _read_size,
    "network": _read_pool,
    "proxies": _read_proxies,
    "requireSignature": read_list(_read_required),
    "stallTimeout": read_integer(1, 100),  # all tries together must take less than a job may stand still
    "xen": _read_xen,
}

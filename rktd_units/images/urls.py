# SPDX-License-Identifier: Apache-2.0
"""URLs that strangers name, and how near to this machine what they lead to is. Pure."""

import ipaddress
from urllib.parse import SplitResult, urljoin, urlsplit

from rktd_units.errors import ImageError, clean_text

PORTS = {"http": 80, "https": 443}

# How near to this machine an address is.
GLOBAL, PRIVATE, LINK_LOCAL, LOOPBACK = range(4)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


def is_loopback(host: str) -> bool:
    """True for 127.0.0.0/8, ::1 and localhost, with or without a port."""
    return reach_of_name(urlsplit(f"//{host}").hostname or "") == LOOPBACK


def name_reach(reach: int) -> str:
    """What an address of that nearness is called."""
    return ("a global address", "a private address", "a link-local address", "this machine")[reach]


def reach_of_name(host: str) -> int:
    """Of a literal address or of `localhost`; GLOBAL for other names, whose addresses are looked at when they are known."""
    try:
        return reach_of_address(host)
    except ValueError:
        return LOOPBACK if host == "localhost" else GLOBAL


def reach_of_address(text: str) -> int:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return reach_of_address(str(inner))
    if address.is_loopback or address.is_unspecified:
        return LOOPBACK
    if address.is_link_local:
        return LINK_LOCAL
    return GLOBAL if address.is_global and not address.is_multicast else PRIVATE


def refuse_nearness(where: str) -> ImageError:
    return ImageError(f"a remote server leads to {clean_text(where)}, which is nearer to this host than itself: refused")


def checked_url(text: str, source: str) -> SplitResult:
    """`source` is what redirected there, if something did."""
    where = f"{source}: is redirected to a bad URL: " if source else ""
    try:
        url = urlsplit(text)
        good = url.scheme in PORTS and bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    if not good or not text.isprintable() or " " in text:
        raise ImageError(f"{where}{clean_text(text, 300)!r}: must be an http or https URL")
    if "@" in url.netloc:
        raise ImageError(f"{where}{show_url(text)}: must not hold a user or password")
    return url


def joined_url(base: SplitResult, location: str, source: str) -> SplitResult:
    try:
        text = urljoin(base.geturl(), location)
    except ValueError:  # of brackets that do not match
        text = location
    return checked_url(text, source)


def origin_of(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, url.hostname or "", url.port or PORTS[url.scheme]


def show_url(url: str) -> str:
    """A URL for people: no query (it may be signed), no password."""
    try:
        parts = urlsplit(url) if url.isprintable() else None
    except ValueError:
        parts = None
    return clean_text(url if parts is None else f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", 300)

# SPDX-License-Identifier: Apache-2.0
"""Where an ACI of a name is (appc spec, discovery.md), and fetching one. Runs in the sandbox only; every page is hostile input."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import urlsplit

from rktd_units.errors import ImageError, TemporaryError, clean_text
from rktd_units.images.appc import host_labels
from rktd_units.images.http import Client, StatusError
from rktd_units.images.reference import Reference, aci_labels
from rktd_units.images.urls import is_loopback

IMAGE = "image.aci"
SIGNATURE = "image.aci.asc"
SIGNATURE_MAX = 1 << 20  # bytes
_PAGE_MAX = 1 << 20
_TAGS_MAX = 1000


class Endpoint(NamedTuple):
    """Where an image and its signature are, and which page said so ("" if none had to)."""

    image: str
    signature: str
    page: str


def fetch_aci(
    client: Client,
    reference: Reference,
    *,
    insecure: bool,
    limit: int,
    target: str,
    progress: Callable[[int, int], None] = lambda done, size: None,
) -> Endpoint:
    """Download an ACI to target/image.aci, and its detached signature, where there is one, to target/image.aci.asc.

    `insecure`: plain HTTP will do; it always does to this machine itself. Raises ImageError or TemporaryError.
    """
    endpoint = _locate(client, reference, insecure)
    for url in endpoint[:2]:
        if urlsplit(url).scheme == "http" and not _may_be_plain(url, insecure):
            hint = f"use https, or list {reference.name} under insecureTransport:"
            raise ImageError(f"{clean_text(url, 300)}: plain HTTP is refused", hint=hint)
    client.download(endpoint.image, f"{target}/{IMAGE}", limit=limit, origin=endpoint.page, progress=progress)
    with suppress(StatusError):  # there is none; whoever needs one says so
        client.download(endpoint.signature, f"{target}/{SIGNATURE}", limit=SIGNATURE_MAX, origin=endpoint.page)
    return endpoint


def _locate(client: Client, reference: Reference, insecure: bool) -> Endpoint:
    if "://" in reference.path:
        return Endpoint(reference.path, f"{reference.path}.asc", "")
    return discover(client, reference.path, aci_labels(reference), insecure)


def _may_be_plain(url: str, insecure: bool) -> bool:
    return insecure or is_loopback(urlsplit(url).netloc)


def discover(client: Client, name: str, labels: Mapping[str, str], insecure: bool) -> Endpoint:
    """Asks the page of the name, then of each parent, until one has a template that fits. Raises ImageError that names all the pages."""
    values = {"version": "latest", **host_labels(), **labels, "name": name}
    host = name.partition("/")[0]
    scheme = _find_scheme(client, host, insecure)
    tried = []
    parts = name.split("/")
    for count in range(len(parts), 0, -1):
        url = f"{scheme}://{'/'.join(parts[:count])}?ac-discovery=1"
        try:
            answer = client.get(url, limit=_PAGE_MAX, accept="text/html, */*;q=0.1")
        except StatusError as error:
            tried.append(str(error))
            continue
        page = answer.data.decode("utf-8", "replace")
        for image, signature in find_templates(page, name, values):
            if urlsplit(image).scheme == "https" or (urlsplit(image).scheme == "http" and _may_be_plain(image, insecure)):
                return Endpoint(image, signature, answer.url)
        tried.append(f"{url.partition('?')[0]}: has no template for {name} that can be used")
    raise ImageError(f"{name}: is not found by discovery: {'; '.join(tried)[:1500]}")


def _find_scheme(client: Client, host: str, insecure: bool) -> str:
    """https, but where plain HTTP will do and nothing answers to TLS."""
    if insecure or is_loopback(host):
        try:
            client.probe(f"https://{host}/")
        except (TemporaryError, ImageError):
            return "http"
    return "https"


def find_templates(page: str, name: str, values: Mapping[str, str]) -> list[tuple[str, str]]:
    """The URLs of image and signature by each `ac-discovery` tag whose prefix fits, by whole components, in the page's order."""
    parser = _MetaParser()
    parser.feed(page)
    found = []
    for content in parser.contents:
        prefix, _, template = content.strip().partition(" ")
        if name != prefix and not name.startswith(prefix.removesuffix("/") + "/"):
            continue
        url = template.strip()
        for key, value in values.items():
            url = url.replace(f"{{{key}}}", value)
        image, signature = (url.replace("{ext}", extension) for extension in ("aci", "aci.asc"))
        if "{ext}" in url and "{" not in image:
            found.append((image, signature))
    return found


class _MetaParser(HTMLParser):
    """Collects the contents of meta tags called ac-discovery."""

    def __init__(self) -> None:
        super().__init__()
        self.contents: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta" and values.get("name") == "ac-discovery" and len(self.contents) < _TAGS_MAX:
            self.contents.append(values.get("content") or "")

# SPDX-License-Identifier: Apache-2.0
"""The plain pull from a registry (OCI distribution-spec): anonymous, HTTPS, or HTTP to this host itself. Runs in the sandbox only.

Everything is streamed to files named by their digests and checked on the way; whoever takes them checks again.
"""

import hashlib
import ipaddress
import json
import os
import random
import time
import urllib.request
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from rktd_units.errors import ImageError, TemporaryError
from rktd_units.images import manifest
from rktd_units.images.reference import DEFAULT_HOST, Reference

_ACCEPT = ", ".join((*manifest.INDEX_TYPES, *manifest.MANIFEST_TYPES))
_CHUNK = 256 << 10
_TRIES = 4
_PAUSE = 0.5  # seconds before the second try; doubled for each further one
_THREADS = 4
_TIMEOUT = urllib3.Timeout(connect=15, read=60)
_AGENT = "rktd-units"


def pull_image(reference: Reference, have: Collection[str], target: str, limit: int) -> str:
    """Write the manifest (index too), configuration and layers as target/HEX, and return the digest that the reference stands for.

    Blobs of `have` are left out, but never manifests or configuration. `limit` is in bytes, for all layers together.
    Raises ImageError (it will not get better) or TemporaryError.
    """
    return _Pull(reference, target).run(have, limit)


def is_loopback(host: str) -> bool:
    """True for 127.0.0.0/8, ::1 and localhost, with or without a port: the hosts that are spoken to without TLS."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class _Pull:
    def __init__(self, reference: Reference, target: str) -> None:
        self._reference = reference
        self._target = target
        host = "registry-1.docker.io" if reference.host == DEFAULT_HOST else reference.host
        self._plain = is_loopback(host)
        self._base = f"{'http' if self._plain else 'https'}://{host}/v2/{reference.path}"
        self._pool = _make_pool(host, self._plain)
        self._token = ""

    def run(self, have: Collection[str], limit: int) -> str:
        reference = self._reference
        data, digest = self._manifest(reference.digest or reference.tag)
        document = manifest.parse_document(data, digest)
        if isinstance(document, manifest.Index):
            chosen = manifest.choose_platform(document)
            data, _ = self._manifest(chosen.digest)
            document = manifest.parse_manifest(data, chosen.digest)
        total = sum({layer.digest: layer.size for layer in document.layers}.values())
        if total > limit:
            raise ImageError(f"{reference}: its layers have {total} bytes, the limit is {limit}")
        wanted = {d.digest: d for d in document.layers if d.digest not in have}
        wanted[document.config.digest] = document.config
        executor = ThreadPoolExecutor(_THREADS)
        try:
            for future in [executor.submit(self._blob, d) for d in wanted.values()]:
                future.result()
        finally:
            executor.shutdown(cancel_futures=True)
        return digest

    def _manifest(self, name: str) -> tuple[bytes, str]:
        what = f"{self._reference}: manifest {name}"
        for attempt in range(_TRIES):
            with _told(what, attempt), self._open(f"manifests/{name}", _ACCEPT) as response:
                data = b"".join(_read(response, manifest.DOCUMENT_MAX))
                digest = manifest.digest_of(data)
                if name.startswith("sha256:") and digest != name:
                    raise ImageError(f"{what}: the registry sent other bytes, {digest}")
                self._save(digest, data)
                return data, digest
        raise AssertionError("the last try returns or raises")

    def _save(self, digest: str, data: bytes) -> None:
        with open(f"{self._target}/{digest[7:]}", "wb") as file:
            file.write(data)

    def _blob(self, descriptor: manifest.Descriptor) -> None:
        what = f"{self._reference}: blob {descriptor.digest}"
        for attempt in range(_TRIES):
            with _told(what, attempt), self._open(f"blobs/{descriptor.digest}", "*/*") as response:
                self._stream(response, descriptor, what)
                return

    def _stream(self, response: Any, descriptor: manifest.Descriptor, what: str) -> None:
        digest, size = hashlib.sha256(), 0
        temporary = f"{self._target}/{descriptor.digest[7:]}.part"
        with open(temporary, "wb", buffering=0) as file:
            for chunk in _read(response, descriptor.size):
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
        if size != descriptor.size:
            raise urllib3.exceptions.ProtocolError(f"got {size} of {descriptor.size} bytes")  # cut short: worth another try
        if digest.hexdigest() != descriptor.digest[7:]:
            raise ImageError(f"{what}: the registry sent other bytes, sha256:{digest.hexdigest()}")
        os.rename(temporary, f"{self._target}/{descriptor.digest[7:]}")

    @contextmanager
    def _open(self, path: str, accept: str) -> Iterator[Any]:
        """An answer of status 200 whose body has not been read."""
        headers = {"Accept": accept, "Accept-Encoding": "identity", "User-Agent": _AGENT}
        for authorized in (False, True):
            if self._token:
                headers["Authorization"] = f"Bearer {self._token}"
            response = self._get(f"{self._base}/{path}", headers)
            try:
                if response.status == 401 and not authorized and self._ask_token(response.headers.get("WWW-Authenticate", "")):
                    continue
                self._check_status(response, path)
                yield response
                return
            finally:
                response.close()

    def _get(self, url: str, headers: dict[str, str]) -> Any:
        retries = Retry(total=5, connect=0, read=0, status=0, redirect=5)  # our own loop does the rest
        return self._pool.request("GET", url, headers=headers, preload_content=False, decode_content=False, retries=retries)

    def _check_status(self, response: Any, path: str) -> None:
        if response.status == 200:
            return
        detail = _error_text(response)
        where = f"{self._reference}: {urlsplit(self._base).netloc}"
        if response.status == 404:
            kind, _, name = path.partition("/")
            raise ImageError(f"{where}: has no {'image' if kind == 'manifests' else 'blob'} {name} in {self._reference.path}{detail}")
        if response.status in (401, 403):
            raise ImageError(f"{where}: refuses anonymous access, and authentication is not supported yet{detail}")
        if response.status in (408, 425, 429) or response.status >= 500:
            raise TemporaryError(f"{where}: answered {response.status} {response.reason or ''}{detail}")
        raise ImageError(f"{where}: answered {response.status} {response.reason or ''}{detail}")

    def _ask_token(self, challenge: str) -> bool:
        """Get an anonymous bearer token (distribution/spec/auth/token). False if the challenge is of another kind."""
        fields = _parse_challenge(challenge)
        realm = fields.pop("realm", "")
        parts = urlsplit(realm)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.netloc)):
            return False
        query = urlencode(
            {"scope": f"repository:{self._reference.path}:pull"} | {k: v for k, v in fields.items() if k in ("service", "scope")}
        )
        response = self._get(f"{realm}{'&' if parts.query else '?'}{query}", {"User-Agent": _AGENT})
        try:
            if response.status != 200:
                return False
            value = json.loads(b"".join(_read(response, 1 << 20)))
        except ValueError:
            return False
        finally:
            response.close()
        token = value.get("token") or value.get("access_token") if isinstance(value, dict) else None
        self._token = token if isinstance(token, str) and token.isascii() and token.isprintable() else ""
        return bool(self._token)


def _make_pool(host: str, plain: bool) -> Any:
    """urllib3 does not look at http_proxy and its kin by itself."""
    proxy = None
    if not urllib.request.proxy_bypass(host) and not plain:
        proxies = urllib.request.getproxies()
        proxy = proxies.get("https") or proxies.get("all")
    options: dict[str, Any] = {"timeout": _TIMEOUT, "maxsize": _THREADS, "block": False}
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


@contextmanager
def _told(what: str, attempt: int) -> Iterator[None]:
    """Swallow what is worth another try, after a pause; at the last try raise TemporaryError."""
    try:
        yield
    except (HTTPError, TemporaryError) as error:
        if attempt + 1 == _TRIES:
            if isinstance(error, TemporaryError):
                raise
            reason = str(getattr(error, "reason", None) or error)
            raise TemporaryError(f"{what}: {reason[max(0, reason.find('Failed to ')) :]}") from error  # without urllib3's object before it
        time.sleep(_PAUSE * 2**attempt * random.uniform(0.7, 1.3))


def _read(response: Any, limit: int) -> Iterator[bytes]:
    size = 0
    while chunk := response.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise ImageError(f"{urlsplit(response.geturl() or '').path}: the registry sent more than {limit} bytes")
        yield chunk


def _error_text(response: Any) -> str:
    """The first error of the distribution-spec's error body, for people."""
    try:
        value = json.loads(response.read(64 << 10))
        return f": {str(value['errors'][0]['message'])[:300]}"
    except (ValueError, LookupError, TypeError, HTTPError):
        return ""


def _parse_challenge(text: str) -> dict[str, str]:
    """The parameters of a Bearer challenge (RFC 7235, RFC 6750); {} for any other scheme."""
    scheme, _, rest = text.strip()[:4096].partition(" ")
    fields: dict[str, str] = {}
    if scheme.lower() != "bearer":
        return fields
    while rest := rest.strip(" ,"):
        key, _, rest = rest.partition("=")
        if rest.startswith('"'):
            value, _, rest = rest[1:].partition('"')
        else:
            value, _, rest = rest.partition(",")
        fields[key.strip().lower()] = value.strip()
    return fields

# SPDX-License-Identifier: Apache-2.0
"""HTTP as images need it, from registries and plain web servers alike. Runs in the sandbox only; knows nothing of images.

    with Client(Config(...)) as client:
        answer = client.get(url, limit=1 << 20)     # answer.data, answer.headers, answer.url
        digest = client.download(url, path, limit=1 << 30, digest="sha256:...", size=123, progress=lambda done, size: ...)

Both raise AbsentError (404, 410), StatusError (other answers for good), ImageError (the server lies, or a rule below forbids), all of
them ImageErrors, or TemporaryError once further tries would not help either. Messages begin with the URL, without its query.

The rules, whatever the server says:
- A redirect from https never leads to http, and credentials go to the host that they are for, never further.
- What a server names (a redirect, a bearer realm, a discovered URL: `origin`) is never nearer to us than that server itself is: no
  remote host leads to a private, link-local or loopback address. Asked of the address that was really connected to, not of the name.
- A body of more than `limit` bytes is refused, and one that comes by less than a kilobyte a second counts as cut off.
"""

import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import SplitResult, unquote, urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProtocolError

from rktd_units.errors import ImageError, TemporaryError, clean_text
from rktd_units.images.transfer import Transfer, read_body
from rktd_units.images.urls import (
    LOOPBACK,
    PORTS,
    checked_url,
    joined_url,
    name_reach,
    origin_of,
    reach_of_address,
    reach_of_name,
    refuse_nearness,
    show_url,
)

TRIES = 4  # that bring nothing, one after the other
PAUSE = 0.5  # seconds before the second try; doubled for each further one
PAUSE_MAX = 60.0  # seconds that a Retry-After may ask for
CONNECT_TIMEOUT = 15.0
STALL = 60.0  # seconds
REDIRECTS = 8
_PROGRESS = 64 << 10  # bytes that make a try a good one
_DETAIL_MAX = 64 << 10
_AGENT = "rktd-units"
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


class StatusError(ImageError):
    """An answer that will not get better. `detail` is what the server says of it, cleaned; it may be empty."""

    def __init__(self, message: str, status: int, detail: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.detail = detail


class AbsentError(StatusError):
    """There is no such thing: 404 or 410."""


class NotTlsError(TemporaryError):
    """Something answered at an https URL, but not TLS."""


class Tls(NamedTuple):
    """How one host is spoken to by https. Paths of PEM files; `authorities` are believed besides the system's."""

    authorities: tuple[str, ...] = ()
    certificate: str = ""  # of ours, and its key
    key: str = ""
    verify: bool = True


class Config(NamedTuple):
    """`tls` by HOST or HOST:PORT as the URLs have it; `proxies` as urllib.request.getproxies gives them: http, https, all, no.

    `stall`: seconds without a byte, or of less than a kilobyte each, that end a connection.
    """

    tls: Mapping[str, Tls] = {}
    proxies: Mapping[str, str] = {}
    stall: float = STALL


class Answer(NamedTuple):
    data: bytes
    headers: Mapping[str, str]  # names in any case
    url: str  # of the last redirect


class Authorization(Protocol):
    """Credentials for the host of a URL; asked from several threads."""

    def header(self) -> str:
        """The value of Authorization, or ""."""
        ...

    def renew(self, challenge: str, used: str) -> bool:
        """Whether there is another header now that `used` was answered with 401 and this WWW-Authenticate."""
        ...


class Client:
    """Keeps connections, until the context ends. Any number of threads may use it."""

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or Config()
        self._managers: dict[tuple[str, str, int], Any] = {}
        self._reach: dict[str, int] = {}  # host -> how near the address was that was connected to
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for manager in self._managers.values():
            manager.clear()

    def get(self, url: str, *, limit: int, accept: str = "*/*", auth: Authorization | None = None, origin: str = "") -> Answer:
        """The body, of at most `limit` bytes. `origin` is the URL of the server that named this one, if a server did."""
        return self._get(_Ask(url, accept, auth, origin), limit)

    def head(self, url: str, *, accept: str = "*/*", auth: Authorization | None = None) -> Answer:
        """As get, without the body."""
        return self._get(_Ask(url, accept, auth, "", method="HEAD"), 0)

    def post(self, url: str, form: Mapping[str, str], *, limit: int, origin: str = "") -> Answer:
        """As get, with a form; the answer must not be a redirect."""
        return self._get(_Ask(url, "*/*", None, origin, urlencode(form).encode(), "POST"), limit)

    def download(
        self,
        url: str,
        path: str,
        *,
        limit: int,
        size: int = -1,
        digest: str = "",
        auth: Authorization | None = None,
        progress: Callable[[int, int], None] = lambda done, size: None,
        origin: str = "",
    ) -> str:
        """Write the body to a new file at `path`, whole or not at all, and return its "sha256:HEX".

        A cut off transfer goes on where it was, if it is still the same file. `size` and `digest` are what it must have, where that is
        known. `progress` is told how many bytes there are, and how many there will be, as far as anybody has said; from any thread. The
        first number falls when a transfer starts anew.
        """
        transfer = Transfer(url, f"{path}.part", size, limit, self._config.stall, progress)
        try:
            self._transfer(_Ask(url, "*/*", auth, origin), transfer)
            actual = f"sha256:{transfer.hash.hexdigest()}"
            if digest and actual != digest:
                raise ImageError(f"{show_url(url)}: the server sent other bytes, {actual}")
            os.rename(transfer.path, path)
            return actual
        finally:
            transfer.close()

    def probe(self, url: str) -> int:
        """The status of one bare request, whatever it is. Raises TemporaryError, which may be a NotTlsError."""
        try:
            response = self._request(_Ask(url, "", None, ""), checked_url(url, ""), {"User-Agent": _AGENT}, LOOPBACK)
        except HTTPError as error:
            raise TemporaryError(f"{show_url(url)}: {_reason(error)}") from error
        try:
            _say(response)
            return int(response.status)
        finally:
            response.close()

    def has_certificates(self, host: str) -> bool:
        """Whether the configuration has certificates for HOST[:PORT]."""
        tls = self._config.tls.get(host)
        return tls is not None and bool(tls.authorities or tls.certificate)

    def reach(self, url: str) -> int:
        """How near the host of a URL is, GLOBAL to LOOPBACK; as far as it is known, else GLOBAL."""
        host = urlsplit(url).hostname or ""
        return self._reach.get(host, reach_of_name(host))

    def _get(self, ask: "_Ask", limit: int) -> Answer:
        tries = _Tries(ask.url)
        while True:
            with tries.one(), self._open(ask, {}) as (response, url):
                if response.status == 206:
                    raise ImageError(f"{show_url(ask.url)}: answered with a part that nobody asked for")
                return Answer(b"".join(read_body(response, limit, ask.url, self._config.stall)), response.headers, url)

    def _transfer(self, ask: "_Ask", transfer: "Transfer") -> None:
        tries, best = _Tries(ask.url), 0
        while True:
            with tries.one(), self._open(ask, transfer.headers()) as (response, _):
                transfer.begin(response)
                try:
                    transfer.receive(response)
                    return
                finally:
                    if transfer.done - best >= _PROGRESS:  # what was there before a new start does not count
                        best, tries.bad = transfer.done, 0

    @contextmanager
    def _open(self, ask: "_Ask", more: Mapping[str, str]) -> Iterator[tuple[Any, str]]:
        """An answer of status 200 or 206 whose body has not been read, and its URL."""
        first = url = checked_url(ask.url, "")
        ceiling = self.reach(ask.origin) if ask.origin else LOOPBACK
        headers = {"Accept": ask.accept, "Accept-Encoding": "identity", "User-Agent": _AGENT, **more}
        hops, renewed = 0, False
        while True:
            ours = origin_of(url) == origin_of(first)
            used = ask.auth.header() if ask.auth and ours else ""
            response = self._request(ask, url, {**headers, **({"Authorization": used} if used else {})}, ceiling)
            try:
                if response.status in _REDIRECTS:
                    if ask.form is not None or (hops := hops + 1) > REDIRECTS:
                        how = "too often, " if ask.form is None else ""
                        raise ImageError(f"{show_url(ask.url)}: is redirected {how}to {show_url(response.headers.get('Location', ''))}")
                    target = joined_url(url, response.headers.get("Location", ""), show_url(ask.url))
                    if url.scheme == "https" and target.scheme == "http":
                        raise ImageError(f"{show_url(ask.url)}: is redirected from https to {show_url(target.geturl())}, which is refused")
                    ceiling, url = min(ceiling, self.reach(first.geturl())), target
                    _say(response)  # to its end, so that the connection stays
                    continue
                if response.status == 401 and ask.auth and ours and not renewed:
                    detail = _say(response)
                    if renewed := ask.auth.renew(response.headers.get("WWW-Authenticate", ""), used):
                        continue
                    text = f"answered 401 {clean_text(response.reason or '', 100)}" + (f": {detail}" if detail else "")
                    raise StatusError(f"{show_url(ask.url)}: {text}", 401, detail)
                _check_status(response, ask.url)
                yield response, url.geturl()
                return
            finally:
                response.close()

    def _request(self, ask: "_Ask", url: SplitResult, headers: Mapping[str, str], ceiling: int) -> Any:
        try:
            return self._manager(url, ceiling).request(
                ask.method,
                url._replace(fragment="").geturl(),
                body=ask.form,
                headers={**headers, **({} if ask.form is None else {"Content-Type": "application/x-www-form-urlencoded"})},
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=self._config.stall),
            )
        except urllib3.exceptions.SSLError as error:
            raise _tls_error(error, url) from error
        except urllib3.exceptions.LocationParseError:
            raise ImageError(f"{show_url(url.geturl())}: is no URL") from None

    def _manager(self, url: SplitResult, ceiling: int) -> Any:
        """The pool of connections to a host that keep to a ceiling."""
        key = (url.scheme, url.netloc, ceiling)
        with self._lock:
            if key not in self._managers:
                self._managers[key] = self._make_manager(url, ceiling)
            return self._managers[key]

    def _make_manager(self, url: SplitResult, ceiling: int) -> Any:
        options: dict[str, Any] = {"maxsize": 8, "block": False}
        if url.scheme == "https":
            options["ssl_context"] = _make_context(self._config.tls.get(url.netloc) or self._config.tls.get(url.hostname or "") or Tls())
        proxy = self._find_proxy(url)
        if not proxy:
            manager = urllib3.PoolManager(**options)
            manager.pool_classes_by_scheme = self._pool_classes(ceiling)
            return manager
        if reach_of_name(url.hostname or "") > ceiling:
            raise refuse_nearness(url.netloc)
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if parts.scheme not in PORTS or not parts.hostname:
            raise ImageError(f"proxy {show_url(parts._replace(netloc=parts.hostname or '').geturl())}: must be an http or https URL")
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=login)
        return urllib3.ProxyManager(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), **options)

    def _find_proxy(self, url: SplitResult) -> str:
        host, proxies = url.netloc, dict(self._config.proxies)
        if not proxies or reach_of_name(url.hostname or "") == LOOPBACK:
            return ""
        import urllib.request  # 12 ms that most need not pay

        if urllib.request.proxy_bypass_environment(host, proxies):  # type: ignore[attr-defined]
            return ""
        return proxies.get(url.scheme) or proxies.get("all") or ""

    def _pool_classes(self, ceiling: int) -> dict[str, Any]:
        """urllib3's, with connections that look at whom they have reached before they say anything."""

        def check(connection: Any, sock: Any) -> Any:
            reach = reach_of_address(sock.getpeername()[0])
            if reach > ceiling:
                sock.close()
                raise refuse_nearness(f"{connection.host} ({name_reach(reach)})")
            self._reach[connection.host.strip("[]")] = reach
            return sock

        class Plain(HTTPConnection):
            def _new_conn(self) -> Any:
                return check(self, super()._new_conn())

        class Secure(HTTPSConnection):
            def _new_conn(self) -> Any:
                return check(self, super()._new_conn())

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        return {"http": PlainPool, "https": SecurePool}


class _Ask(NamedTuple):
    url: str
    accept: str
    auth: Authorization | None
    origin: str
    form: bytes | None = None
    method: str = "GET"


class _Passing(Exception):  # noqa: N818 - never leaves this module
    """An answer that may be another one soon; `pause` is what the server asks for, in seconds."""

    def __init__(self, message: str, pause: float) -> None:
        super().__init__(message)
        self.pause = pause


class _Tries:
    """Counts the tries that brought nothing."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.bad = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Swallow what is worth another try, after a pause; at the last try raise TemporaryError."""
        try:
            yield
        except (HTTPError, _Passing, NotTlsError) as error:
            self.bad += 1
            asked = error.pause if isinstance(error, _Passing) else 0.0
            if self.bad >= TRIES or asked > PAUSE_MAX or isinstance(error, NotTlsError):
                later = f"; it asks to wait {asked:.0f} seconds" if asked > PAUSE_MAX else ""
                kind = NotTlsError if isinstance(error, NotTlsError) else TemporaryError
                raise kind(f"{show_url(self._url)}: {_reason(error)}{later}") from error
            time.sleep(max(asked, PAUSE * 2 ** (self.bad - 1) * random.uniform(0.7, 1.3)))


def _make_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 sets it; private authorities that other clients take fail by it
    try:
        for path in tls.authorities:
            context.load_verify_locations(path)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key or None, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ImageError(
            f"certificates {', '.join(map(os.path.basename, filter(None, (*tls.authorities, tls.certificate))))}: {error}"
        ) from error
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _tls_error(error: urllib3.exceptions.SSLError, url: SplitResult) -> Exception:
    cause = error.args[0] if error.args else error
    where = show_url(url.geturl())
    if isinstance(cause, ssl.SSLCertVerificationError):
        hint = f"for a private authority, put its certificate into /etc/containers/certs.d/{url.netloc}/ca.crt"
        return ImageError(f"{where}: its certificate is refused: {clean_text(cause.verify_message)}", hint=hint)
    reason = clean_text(getattr(cause, "reason", None) or cause)
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        hint = f"put a client's certificate and key into /etc/containers/certs.d/{url.netloc}/ as client.cert and client.key"
        return ImageError(f"{where}: the server refuses the connection ({reason})", hint=hint)
    if any(word in reason for word in _NOT_TLS):
        return NotTlsError(f"does not speak TLS ({reason})")
    return error


def _reason(error: Exception) -> str:
    """urllib3's text, without the object before it."""
    text = clean_text(getattr(error, "original_error", None) or getattr(error, "reason", None) or error)
    if isinstance(error, NewConnectionError):  # whose `pool` is deprecated
        return text[max(0, text.find("Failed to ")) :]
    if isinstance(error, ConnectTimeoutError):
        return clean_text(error.args[-1])
    return text.removeprefix(f"{clean_text(getattr(error, 'pool', ''))}: ")


def _check_status(response: Any, url: str) -> None:
    status = response.status
    if status in (200, 206):
        return
    detail = _say(response)
    text = f"answered {status} {clean_text(response.reason or '', 100)}".rstrip() + (f": {detail}" if detail else "")
    if status in (408, 425, 429) or (status >= 500 and status != 501):  # which says that it never will
        raise _Passing(text, _parse_pause(response.headers.get("Retry-After", "")))
    if status == 416:
        raise ProtocolError(text)
    raise (AbsentError if status in (404, 410) else StatusError)(f"{show_url(url)}: {text}", status, detail)


def _say(response: Any) -> str:
    """What a refusing answer says: the first error of the distribution-spec's error body. Reads the body, if it is short."""
    import json

    try:
        value = json.loads(response.read(_DETAIL_MAX))
        return clean_text(value["errors"][0]["message"], 300)
    except (ValueError, LookupError, TypeError, RecursionError, HTTPError):
        return ""


def _parse_pause(text: str) -> float:
    """Retry-After in seconds, RFC 9110, 10.2.3."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0

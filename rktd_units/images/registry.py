# SPDX-License-Identifier: Apache-2.0
"""The client of registries (OCI distribution-spec, Docker registry v2). Runs in the sandbox only.

    registry = Registry(Endpoint("ex.org:5000", "a/b"), client)  # an http.Client
    data, digest, media_type = registry.manifest("1.0")        # or a digest: then the bytes have it
    registry.blob(descriptor, path)                            # a file that has the descriptor's digest and size
    data = registry.blob_bytes(descriptor, limit)

They raise http.AbsentError where the registry has no such thing, other ImageErrors, and TemporaryError; texts begin with HOST/PATH or
the URL. Everything is checked against its digest on the way; whoever takes it over checks again.
"""

import base64
import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlencode, urlsplit

from rktd_units.errors import ImageError, TemporaryError, TooLargeError, clean_text
from rktd_units.images.http import AbsentError, Answer, Client, Config, NotTlsError, StatusError, Tls
from rktd_units.images.manifest import (
    DOCUMENT_MAX,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    Index,
    Manifest,
    choose_platform,
    digest_of,
    parse_document,
    parse_manifest,
)
from rktd_units.images.reference import Reference, is_digest
from rktd_units.images.registries import ACCESS
from rktd_units.images.urls import is_loopback

_ACCEPT = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))
_VAGUE_TYPES = ("", "application/json", "application/octet-stream", "text/plain")
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_TOKEN_MAX = 1 << 20  # bytes of a token server's answer
_NO_API = (400, 404, 405, 406, 410)  # of registries that do not know the path
_THREADS = 4
_T = TypeVar("_T")

Progress = Callable[[str, int, int], None]  # digest, bytes that are there, bytes of the whole; from any thread


class Credential(NamedTuple):
    """How to log in. `token` is an identity token (OAuth 2 refresh token), else user and password; `source` is where it was found."""

    username: str
    password: str
    token: str
    source: str


class Endpoint(NamedTuple):
    """A repository of a registry: `host` with its port, as URLs have it. `insecure`: without TLS if it does not speak TLS."""

    host: str
    path: str
    insecure: bool = False
    credential: Credential | None = None


class Registry:
    """One repository. Any number of threads may use it."""

    def __init__(self, endpoint: Endpoint, client: Client) -> None:
        self.endpoint = endpoint
        self.name = f"{endpoint.host}/{endpoint.path}"
        self._client = client
        self._lock = threading.Lock()
        self._login: _Login | None = None

    def manifest(self, name: str) -> tuple[bytes, str, str]:
        """Bytes, digest and media type of what a tag or digest names: an index or a manifest, unparsed."""
        what = f"manifest {name}"
        answer = self._call(what, lambda: self._get(f"manifests/{name}", DOCUMENT_MAX, _ACCEPT))
        digest = digest_of(answer.data)
        if is_digest(name) and digest != name:
            self._refuse(f"{what}: the registry sent other bytes, {digest}")
        stated = answer.headers.get("Docker-Content-Digest", "")
        if is_digest(stated) and stated != digest:
            self._refuse(f"{what}: the registry says that it is {stated}, but its bytes have the digest {digest}")
        return answer.data, digest, self._checked_type(what, answer.headers.get("Content-Type", ""), answer.data)

    def manifest_digest(self, name: str) -> str:
        """The digest of what a tag names, as the registry says, by a HEAD, which limits of pulls do not count; "" where it does not say."""
        try:
            url, login = self._find(f"manifests/{name}")
            stated = self._client.head(url, accept=_ACCEPT, auth=login).headers.get("Docker-Content-Digest", "")
        except ImageError:  # whoever asks for the manifest is told
            return ""
        return stated if is_digest(stated) else ""

    def referrers(self, digest: str) -> bytes:
        """The index of what refers to an image (distribution-spec, Listing Referrers): by the API, else by the tag that stands for it."""
        what = f"referrers of {digest}"
        try:
            return self._call(what, lambda: self._get(f"referrers/{digest}", DOCUMENT_MAX, OCI_INDEX)).data
        except StatusError as error:
            if error.status not in _NO_API:
                raise
            return self.manifest(digest.replace(":", "-"))[0]

    def blob(self, descriptor: Descriptor, path: str, progress: Progress = lambda digest, done, size: None) -> None:
        """Write the blob to a new file, whole or not at all."""
        digest, size = descriptor.digest, descriptor.size

        def tell(done: int, _: int) -> None:
            progress(digest, done, size)

        def download() -> None:
            url, login = self._find(f"blobs/{digest}")
            self._client.download(url, path, limit=size, size=size, digest=digest, auth=login, progress=tell)

        self._call(f"blob {digest}", download)

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob of at most `limit` bytes."""
        what = f"blob {descriptor.digest}"
        if descriptor.size > limit:
            self._refuse(f"{what}: has {descriptor.size} bytes, the limit is {limit}")
        data = self._call(what, lambda: self._get(f"blobs/{descriptor.digest}", descriptor.size, "*/*")).data
        if digest_of(data) != descriptor.digest:
            self._refuse(f"{what}: the registry sent other bytes, {digest_of(data)}")
        return data

    def _get(self, path: str, limit: int, accept: str) -> Answer:
        url, login = self._find(path)
        return self._client.get(url, limit=limit, accept=accept, auth=login)

    def _find(self, path: str) -> tuple[str, "_Login"]:
        """The URL of something in the repository, and the login to it. The first call finds out how the host is spoken to."""
        with self._lock:
            if self._login is None:
                base = f"{self._find_scheme()}://{self.endpoint.host}/v2/{self.endpoint.path}"
                self._login = _Login(self._client, base, self.endpoint)
            return f"{self._login.base}/{path}", self._login

    def _find_scheme(self) -> str:
        """https, but for this host itself and for what the administrator lists as insecure: whichever of the two it speaks."""
        host = self.endpoint.host
        if is_loopback(host) and not self._client.has_certificates(host):
            # Servers of TLS answer plain HTTP with 400, Go's and nginx's at least.
            return "https" if self._client.probe(f"http://{host}/v2/") == 400 else "http"
        if not self.endpoint.insecure:
            return "https"
        try:
            self._client.probe(f"https://{host}/v2/")
        except (NotTlsError, TemporaryError):
            return "http"
        return "https"

    def _call(self, what: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except AbsentError as error:
            kind, _, name = what.partition(" ")
            text = f"has no {'image' if kind == 'manifest' else kind} {name}" + (f": {error.detail}" if error.detail else "")
            raise AbsentError(f"{self.name}: {text}", error.status, error.detail) from error
        except StatusError as error:
            if error.status in (401, 403):
                self._refuse_login(error)
            raise

    def _refuse(self, reason: str) -> NoReturn:
        raise ImageError(f"{self.name}: {reason}")

    def _refuse_login(self, error: StatusError) -> NoReturn:
        credential, detail = self.endpoint.credential, f": {error.detail}" if error.detail else ""
        if credential:
            text = f"refuses the login of {clean_text(credential.source)}{detail}"
        else:
            text = f"refuses anonymous access, or there is no such repository{detail}"
        hint = f"skopeo login --authfile /etc/rktd/auth.json {self.endpoint.host}"
        raise StatusError(f"{self.name}: {text}", error.status, error.detail, hint=hint) from error

    def _checked_type(self, what: str, header: str, data: bytes) -> str:
        """The media type of a manifest; header and content may not contradict each other (distribution-spec, Pulling manifests)."""
        stated = header.partition(";")[0].strip().lower()
        if stated.startswith(_SCHEMA_1):
            self._refuse(f"{what}: is of Docker's schema 1, which is not supported")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        inner = value.get("mediaType") if isinstance(value, dict) else None
        known = (*INDEX_TYPES, *MANIFEST_TYPES)
        if stated not in (*known, *_VAGUE_TYPES):
            self._refuse(f"{what}: the registry sent {clean_text(stated, 200)!r}, which is no manifest of images")
        if isinstance(inner, str) and stated in known and inner != stated:
            self._refuse(f"{what}: the registry says {stated!r}, the manifest itself {clean_text(inner, 200)!r}")
        return inner if isinstance(inner, str) else stated


@contextmanager
def open_access(directory: str) -> Iterator[tuple[Client, list[Registry]]]:
    """What registries.find_access found: a client, and the registries to ask, in order (none for plain web servers)."""
    with open(f"{directory}/{ACCESS}", encoding="utf-8") as file:
        value = json.load(file)
    tls = {host: _parse_tls(entry, directory) for host, entry in value["tls"].items()}
    with Client(Config(tls, value["proxies"], value["stall"])) as client:
        yield client, [Registry(_parse_endpoint(*endpoint), client) for endpoint in value["endpoints"]]


def _parse_tls(entry: dict[str, Any], directory: str) -> Tls:
    certificate, key = (f"{directory}/{entry[name]}" if name in entry else "" for name in ("certificate", "key"))
    return Tls(tuple(f"{directory}/{name}" for name in entry.get("authorities", ())), certificate, key, entry.get("verify", True))


def _parse_endpoint(host: str, path: str, insecure: bool, login: list[str] | None) -> Endpoint:
    return Endpoint(host, path, insecure, Credential(*login) if login else None)


class _Login:
    """The Authorization of one repository: basic, or bearer tokens (distribution-spec, auth/token and auth/oauth)."""

    def __init__(self, client: Client, base: str, endpoint: Endpoint) -> None:
        self._client = client
        self.base = base
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._header = ""

    def header(self) -> str:
        return self._header

    def renew(self, challenge: str, used: str) -> bool:
        with self._lock:
            if self._header != used:
                return True  # another thread was faster
            challenges = parse_challenges(challenge)
            if "bearer" in challenges:
                self._header = f"Bearer {self._ask_token(challenges['bearer'])}"
                return True
            credential = self._endpoint.credential
            if "basic" in challenges and credential and credential.username and not used:
                self._header = _basic(credential)
                return True
            return False

    def _ask_token(self, fields: dict[str, str]) -> str:
        realm, credential = fields.get("realm", ""), self._endpoint.credential
        if urlsplit(realm).scheme != "https" and self.base.startswith("https:"):
            raise ImageError(f"{self.base}: names a token server without https, {clean_text(realm, 200)!r}")
        form = {"service": fields.get("service", ""), "scope": fields.get("scope") or f"repository:{self._endpoint.path}:pull"}
        form = {key: value for key, value in form.items() if value}
        try:
            if credential and credential.token:
                more = {"grant_type": "refresh_token", "refresh_token": credential.token, "client_id": "rktd-units"}
                answer = self._client.post(realm, {**form, **more}, limit=_TOKEN_MAX, origin=self.base)
            else:
                auth = _Fixed(_basic(credential)) if credential else None
                url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(form)}"
                answer = self._client.get(url, limit=_TOKEN_MAX, auth=auth, origin=self.base)
        except StatusError as error:
            # Docker's own server answers so for repositories that do not exist, others with 400 or 404.
            raise StatusError(str(error), 401, error.detail) from error
        token = _find_token(answer.data)
        if not token:
            raise ImageError(f"{self.base}: the token server {urlsplit(realm).netloc} gave no usable token")
        return token


class _Fixed:
    def __init__(self, value: str) -> None:
        self._value = value

    def header(self) -> str:
        return self._value

    def renew(self, challenge: str, used: str) -> bool:
        return False


def pull_image(
    reference: Reference,
    registries: Sequence[Registry],
    have: Collection[str],
    target: str,
    limit: int,
    progress: Progress = lambda digest, done, size: None,
    space: int = 1 << 62,
    whole: Callable[[str], None] = lambda digest: None,
    known: str = "",
) -> str:
    """Write the manifest (index too), configuration and layers as target/HEX, and return the digest that the reference stands for.

    The registries are asked in turn, until one has it. Blobs of `have` are left out, but never manifests or configuration. `limit` is in
    bytes, for all layers together, `space` for those that are not left out (else TooLargeError). `whole` is told the digest of each file
    that is complete, from any thread; the one that is returned comes first. `known`: the digest of what the caller has whole; where a tag
    still stands for that, nothing is written. Raises ImageError (it will not get better) or TemporaryError.
    """
    try:
        return _Pull(reference, registries, target, progress, whole).run(have, limit, space, known)
    except (ImageError, TemporaryError) as error:
        raise _plain(f"{reference}: {error}", error) from error


def find_manifest(reference: Reference, registries: Sequence[Registry], target: str, known: Sequence[str] = ()) -> str:
    """The digest of this platform's manifest that the reference stands for now; nothing else is fetched. Errors as of `pull_image`.

    `known`: what it once stood for, and the manifest.
    """
    pull = _Pull(reference, registries, target, lambda digest, done, size: None)
    try:
        return known[1] if known and pull.stands_for(known[0]) else pull.resolve()[1].digest
    except (ImageError, TemporaryError) as error:
        raise _plain(f"{reference}: {error}", error) from error


def _plain(text: str, error: ImageError | TemporaryError) -> ImageError | TemporaryError:
    """An error of the same weight with another text."""
    kinds = (kind for kind in (TemporaryError, TooLargeError) if isinstance(error, kind))
    return next(kinds, ImageError)(text, hint=error.hint)


class _Pull:
    def __init__(
        self,
        reference: Reference,
        registries: Sequence[Registry],
        target: str,
        progress: Progress,
        whole: Callable[[str], None] = lambda digest: None,
    ) -> None:
        self._whole = whole
        self._reference = reference
        self._registries = registries
        self._target = target
        self._progress = progress

    def run(self, have: Collection[str], limit: int, space: int, known: str) -> str:
        if known and self.stands_for(known):
            return known
        digest, document = self.resolve()
        total = sum({layer.digest: layer.size for layer in document.layers}.values())
        if total > limit:
            raise ImageError(f"its layers have {total} bytes, the limit is {limit}")
        wanted = {d.digest: d for d in document.layers if d.digest not in have}
        if (size := sum(d.size for d in wanted.values())) > space:
            raise TooLargeError(f"{size} bytes of it must be fetched")
        for descriptor in wanted.values():
            self._progress(descriptor.digest, 0, descriptor.size)
        # The configuration first: who converts needs it before the layers.
        wanted.pop(document.config.digest, None)
        wanted = {document.config.digest: document.config, **wanted}
        executor = ThreadPoolExecutor(_THREADS)
        try:
            for future in [executor.submit(self._blob, d) for d in wanted.values()]:
                future.result()
        finally:
            executor.shutdown(cancel_futures=True)
        return digest

    def stands_for(self, digest: str) -> bool:
        """Whether the tag has not moved, as far as the registry says that without sending anything. It could send the old one, too."""
        stated, index = self._ask_each(lambda registry: registry.manifest_digest(self._reference.tag))
        if stated:
            self._registries = self._registries[index:]
        return stated == digest

    def resolve(self) -> tuple[str, Manifest]:
        """What the reference stands for, an index or a manifest, and the manifest."""
        data, digest = self._manifest(self._reference.digest or self._reference.tag)
        document = parse_document(data, digest)
        if isinstance(document, Index):
            chosen = choose_platform(document)
            data, _ = self._manifest(chosen.digest)
            document = parse_manifest(data, chosen.digest)
        return digest, document

    def _manifest(self, name: str) -> tuple[bytes, str]:
        """Registries that do not have it are not asked for anything else."""
        (data, digest, _), index = self._ask_each(lambda registry: registry.manifest(name))
        self._registries = self._registries[index:]
        with open(self._path(digest), "wb") as file:
            file.write(data)
        self._whole(digest)
        return data, digest

    def _blob(self, descriptor: Descriptor) -> None:
        self._ask_each(lambda registry: registry.blob(descriptor, self._path(descriptor.digest), self._progress))
        self._whole(descriptor.digest)

    def _path(self, digest: str) -> str:
        return f"{self._target}/{digest[7:]}"

    def _ask_each(self, call: Callable[[Registry], _T]) -> tuple[_T, int]:
        """The answer of the first registry that has one, and which that was."""
        errors: list[ImageError | TemporaryError] = []
        for index, registry in enumerate(self._registries):
            try:
                return call(registry), index
            except (ImageError, TemporaryError) as error:
                errors.append(error)
        passing = [error for error in errors if isinstance(error, TemporaryError)]
        raise _plain("; ".join(map(str, errors)), passing[0] if passing else errors[-1])


def _basic(credential: Credential) -> str:
    """RFC 7617."""
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


def _find_token(data: bytes) -> str:
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    token = value.get("token") or value.get("access_token") if isinstance(value, dict) else None
    return token if isinstance(token, str) and token.isascii() and token.isprintable() else ""


def parse_challenges(text: str) -> dict[str, dict[str, str]]:
    """WWW-Authenticate (RFC 9110, 11.6.1): the parameters of each scheme, all names in lower case; the first of a name counts."""
    challenges: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    rest = text.strip()[:8192]
    while rest := rest.lstrip(" \t,"):
        word, mark, after = _split_word(rest)
        if mark != "=":
            fields = challenges.setdefault(word.lower(), {})
            rest = after
            continue
        after = after.lstrip(" \t")
        if after.startswith('"'):
            value, rest = _split_quoted(after[1:])
        else:
            value, _, rest = after.partition(",")
            value = value.strip()
        fields.setdefault(word.lower(), value)
    return challenges


def _split_word(text: str) -> tuple[str, str, str]:
    """A word, the `=` after it if there is one, and the rest."""
    end = next((i for i, c in enumerate(text) if c in " \t,="), len(text))
    rest = text[end:].lstrip(" \t")
    if end and rest.startswith("=") and not rest.startswith("=="):
        return text[:end], "=", rest[1:]
    return text[:end] or text[:1], "", text[max(end, 1) :]


def _split_quoted(text: str) -> tuple[str, str]:
    value, i = [], 0
    while i < len(text) and text[i] != '"':
        if text[i] == "\\" and i + 1 < len(text):
            i += 1
        value.append(text[i])
        i += 1
    return "".join(value), text[i + 1 :]

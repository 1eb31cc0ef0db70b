# SPDX-License-Identifier: Apache-2.0
"""Indexes, manifests and configurations of OCI and Docker schema 2 images: bytes of a known digest to checked values. Pure.

Every parser checks the digest of its bytes before it looks at them, and names that digest in every error.
"""

import errno
import hashlib
import json
import os
from typing import Any, NamedTuple, NoReturn

from rktd_units.errors import ImageError, clean_text
from rktd_units.images.reference import is_digest

DOCUMENT_MAX = 4 << 20  # bytes of an index, manifest or configuration (distribution-spec asks for 4 MiB at least)
LAYERS_MAX = 500
_ACIS_MAX = 200  # that an image may say it is made of
_ENTRIES_MAX = 10_000  # descriptors of an index; entries of a list or map of a configuration
_TEXT_MAX = 1 << 20  # one string of a configuration; the kernel takes 128 KiB per argument

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)

LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
_LAYER_TYPES = {
    LAYER_TAR: LAYER_TAR,
    LAYER_GZIP: LAYER_GZIP,
    LAYER_ZSTD: LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TAR,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
}
REF_NAME = "org.opencontainers.image.ref.name"

# uname's machine -> (GOARCH, acceptable GOARM-like variants, best first; "" is always acceptable)
_ARCHITECTURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "x86_64": ("amd64", ("v1",)),
    "aarch64": ("arm64", ("v8",)),
    "armv7l": ("arm", ("v7", "v6", "v5")),
    "armv6l": ("arm", ("v6", "v5")),
    "i686": ("386", ()),
    "i586": ("386", ()),
    "ppc64le": ("ppc64le", ()),
    "s390x": ("s390x", ()),
    "riscv64": ("riscv64", ()),
    "loongarch64": ("loong64", ()),
}


class Platform(NamedTuple):
    os: str
    architecture: str  # as GOARCH has it
    variants: tuple[str, ...]  # acceptable, best first


class Descriptor(NamedTuple):
    """OCI image-spec, descriptor.md. `os` and so on are "" where the descriptor has no platform."""

    media_type: str
    digest: str
    size: int
    os: str = ""
    architecture: str = ""
    variant: str = ""
    ref_name: str = ""


class Index(NamedTuple):
    digest: str
    manifests: tuple[Descriptor, ...]


class Manifest(NamedTuple):
    digest: str
    config: Descriptor
    layers: tuple[Descriptor, ...]  # lowest first; media types are OCI's


class Appc(NamedTuple):
    """What an ACI says that OCI's configuration has no words for. Ours, under the key `appc`: an image of another kind may say it too.

    None of it gives an app more than the pod file does. Bytes and millicores; `seccomp_mode` is "", "remove" or "retain".
    """

    groups: tuple[int, ...] = ()  # supplementary
    pre_start: tuple[str, ...] = ()
    post_stop: tuple[str, ...] = ()
    capabilities: tuple[str, ...] | None = None  # all that it wants, without CAP_
    seccomp_mode: str = ""
    seccomp_calls: tuple[str, ...] = ()  # names, and groups of systemd's with @
    seccomp_errno: str = ""  # "" is SIGSYS
    memory_limit: int | None = None
    memory_request: int | None = None
    cpu_limit: int | None = None
    cpu_request: int | None = None
    oom_score_adjust: int | None = None
    dependencies: tuple[tuple[str, str], ...] = ()  # reference and image ID of all ACIs that it is made of, besides its own
    isolators: tuple[tuple[str, str], ...] = ()  # name, and what became of it: "enforced", "modified: ..." or "ignored: ..."


class ImageConfig(NamedTuple):
    """What of an image's configuration matters here. Strings of hostile origin: quote them where they go."""

    os: str
    architecture: str
    diff_ids: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    exposed_ports: tuple[tuple[int, str], ...] = ()  # number and "tcp", "udp" or "sctp"
    labels: tuple[tuple[str, str], ...] = ()
    appc: Appc | None = None


_VOLUMES_MAX = 100


class Contents(NamedTuple):
    manifest: Manifest
    config: ImageConfig


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def host_platform() -> Platform:
    """The platform of the running kernel."""
    machine = os.uname().machine
    architecture, variants = _ARCHITECTURES.get(machine, (machine, ()))
    return Platform("linux", architecture, variants)


def parse_document(data: bytes, digest: str) -> Index | Manifest:
    """Whichever of the two the bytes are; one that could be taken for both is refused (CVE-2021-41190)."""
    top = Node.of_document(data, digest, "manifest")
    if top.has("manifests") and (top.has("layers") or top.has("config")):
        top.refuse("has both manifests and layers: ambiguous")
    media_type = top.text("mediaType")
    if top.number("schemaVersion") != 2:
        top.refuse("is not of schema version 2, the only one that is supported")
    if top.has("manifests"):
        if media_type and media_type not in INDEX_TYPES:
            top.refuse(f"has manifests, but its media type is {media_type!r}")
        return Index(digest, tuple(_parse_descriptor(n) for n in top.nodes("manifests")))
    if media_type and media_type not in MANIFEST_TYPES:
        top.refuse(f"media type {media_type!r} is not that of an image manifest")
    return _parse_manifest(top, digest)


def parse_index(data: bytes, digest: str) -> Index:
    document = parse_document(data, digest)
    if isinstance(document, Manifest):
        raise ImageError(f"index {digest}: is an image manifest, not an index")
    return document


def parse_manifest(data: bytes, digest: str) -> Manifest:
    """A manifest of one platform. Raises ImageError for anything else."""
    document = parse_document(data, digest)
    if isinstance(document, Index):
        raise ImageError(f"manifest {digest}: is an index of manifests, not a manifest")
    return document


def choose_platform(index: Index, platform: Platform | None = None) -> Descriptor:
    """The index's entry for this host: the first of the best variant. Raises ImageError that lists what there is."""
    want = platform or host_platform()
    ranks = {v: i for i, v in enumerate((*want.variants, ""))}
    fits = [
        d
        for d in index.manifests
        if d.media_type in MANIFEST_TYPES and (d.os, d.architecture) == (want.os, want.architecture) and d.variant in ranks
    ]
    if fits:
        return min(fits, key=lambda d: ranks[d.variant])
    bare = [d for d in index.manifests if d.media_type in MANIFEST_TYPES and not d.os and not d.architecture]
    if len(bare) == 1 and len(index.manifests) == 1:  # the configuration tells; it is checked
        return bare[0]
    there = sorted({"/".join(filter(None, (d.os, d.architecture, d.variant))) for d in index.manifests} - {"", "unknown/unknown"})
    raise ImageError(
        f"index {index.digest}: has no image for {want.os}/{want.architecture}; it has: {clean_text(', '.join(there[:20])) or 'none'}"
    )


def parse_config(data: bytes, digest: str, platform: Platform | None = None) -> ImageConfig:
    """The configuration of an image that can run here (OCI image-spec, config.md). `platform` defaults to the host's."""
    top = Node.of_document(data, digest, "image configuration")
    want = platform or host_platform()
    system, architecture = top.text("os"), top.text("architecture")
    if system != want.os or architecture != want.architecture:
        top.refuse(f"is for {system[:50]!r}/{architecture[:50]!r}, this host is {want.os}/{want.architecture}")
    rootfs = top.node("rootfs")
    if rootfs.text("type") != "layers":
        rootfs.refuse("type must be 'layers'")
    diff_ids = rootfs.texts("diff_ids")
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            rootfs.refuse(f"bad diff id {diff_id[:100]!r}")
    config = top.node("config")
    working_dir = config.text("WorkingDir")
    return ImageConfig(
        os=system,
        architecture=architecture,
        diff_ids=diff_ids,
        entrypoint=config.texts("Entrypoint"),
        cmd=config.texts("Cmd"),
        env=_parse_environment(config),
        user=config.text("User"),
        working_dir=working_dir if working_dir.startswith("/") or not working_dir else f"/{working_dir}",
        volumes=_parse_volumes(config),
        stop_signal=_parse_signal(config),
        exposed_ports=_parse_ports(config),
        labels=tuple(sorted((k, config.node("Labels").text(k)) for k in config.node("Labels").names())),
        appc=_parse_appc(top.node("appc")) if top.has("appc") else None,
    )


def check_layers(manifest: Manifest, config: ImageConfig) -> None:
    """A manifest and its configuration must tell of the same number of layers. Raises ImageError."""
    if len(manifest.layers) != len(config.diff_ids):
        raise ImageError(f"manifest {manifest.digest}: has {len(manifest.layers)} layers, its configuration {len(config.diff_ids)}")


class Node:
    """An object of a JSON document with its place. Null and absent are the same; a wrong type is an error, an ImageError like all."""

    def __init__(self, value: dict[str, Any], what: str, path: str) -> None:
        self._value = value
        self._what = what
        self._path = path

    @classmethod
    def of_document(cls, data: bytes, digest: str, what: str) -> "Node":
        if not is_digest(digest):
            raise ImageError(f"{what}: bad digest {digest[:100]!r}")
        if len(data) > DOCUMENT_MAX:
            raise ImageError(f"{what} {digest}: is larger than {DOCUMENT_MAX} bytes")
        actual = digest_of(data)
        if actual != digest:
            raise ImageError(f"{what} {digest}: the bytes have another digest, {actual}")
        return cls.of_json(data, f"{what} {digest}")

    @classmethod
    def of_json(cls, data: bytes, what: str) -> "Node":
        try:
            value = load_json(data)
        except (ValueError, RecursionError) as error:
            raise ImageError(f"{what}: is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise ImageError(f"{what}: is not a JSON object")
        return cls(value, what, "")

    def refuse(self, reason: str) -> NoReturn:
        where = f"{self._path}: " if self._path else ""
        raise ImageError(clean_text(f"{self._what}: {where}{reason}"))

    def has(self, key: str) -> bool:
        return self._value.get(key) is not None

    def names(self) -> list[str]:
        if len(self._value) > _ENTRIES_MAX:
            self.refuse("has too many entries")
        return list(self._value)

    def text(self, key: str) -> str:
        value = self._value.get(key)
        if value is None:
            return ""
        return self._checked_text(value, key)

    def number(self, key: str) -> int:
        value = self._value.get(key)
        if type(value) is not int or not 0 <= value < 1 << 63:
            self.refuse(f"{key} must be a whole number, 0 or more, got {str(value)[:100]!r}")
        return int(value)

    def number_or_none(self, key: str) -> int | None:
        return self.number(key) if self.has(key) else None

    def value(self, key: str) -> Any:
        return self._value.get(key)

    def texts(self, key: str, limit: int = _ENTRIES_MAX) -> tuple[str, ...]:
        return tuple(self._checked_text(v, f"{key}[{i}]") for i, v in enumerate(self._list(key, limit)))

    def node(self, key: str) -> "Node":
        value = self._value.get(key)
        if not isinstance(value, dict | None):
            self.refuse(f"{key} must be an object")
        return Node(value or {}, self._what, f"{self._path}.{key}" if self._path else key)

    def nodes(self, key: str) -> list["Node"]:
        found = []
        for i, value in enumerate(self._list(key)):
            if not isinstance(value, dict):
                self.refuse(f"{key}[{i}] must be an object")
            found.append(Node(value, self._what, f"{self._path}.{key}[{i}]" if self._path else f"{key}[{i}]"))
        return found

    def _list(self, key: str, limit: int = _ENTRIES_MAX) -> list[Any]:
        value = self._value.get(key)
        if not isinstance(value, list | None):
            self.refuse(f"{key} must be a list")
        if value is not None and len(value) > limit:
            self.refuse(f"{key} has {len(value)} entries: too many")
        return value or []

    def _checked_text(self, value: object, key: str) -> str:
        if not isinstance(value, str):
            self.refuse(f"{key} must be a string, got {str(value)[:100]!r}")
        if len(value) > _TEXT_MAX or "\0" in value:
            self.refuse(f"{key} is too long or holds a NUL")
        if any("\ud800" <= c <= "\udfff" for c in value):
            self.refuse(f"{key} is not valid Unicode")
        return value


def load_json(data: bytes) -> Any:
    """The value, of UTF-8 in which no key stands twice in one object. Raises ValueError or RecursionError."""
    return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_descriptor(node: Node) -> Descriptor:
    digest, size = node.text("digest"), node.number("size")
    if not is_digest(digest):
        node.refuse(f"bad digest {digest[:100]!r}")
    platform = node.node("platform")
    return Descriptor(
        media_type=node.text("mediaType"),
        digest=digest,
        size=size,
        os=platform.text("os"),
        architecture=platform.text("architecture"),
        variant=platform.text("variant"),
        ref_name=node.node("annotations").text(REF_NAME),
    )


def _parse_manifest(top: Node, digest: str) -> Manifest:
    if not top.has("config") or not top.has("layers"):
        top.refuse("is no image manifest: it has no config or no layers")
    config = _parse_descriptor(top.node("config"))
    if config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        top.refuse(f"config: media type {config.media_type[:200]!r} is not that of a container image")
    if config.size > DOCUMENT_MAX:
        top.refuse(f"config: is larger than {DOCUMENT_MAX} bytes")
    nodes = top.nodes("layers")
    if len(nodes) > LAYERS_MAX:
        top.refuse(f"has {len(nodes)} layers, at most {LAYERS_MAX} are supported")
    layers = []
    for node in nodes:
        layer = _parse_descriptor(node)
        if "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            node.refuse("is a foreign layer, which registries do not hold: not supported")
        if layer.media_type not in _LAYER_TYPES:
            node.refuse(f"media type {layer.media_type[:200]!r} is not supported")
        layers.append(layer._replace(media_type=_LAYER_TYPES[layer.media_type]))
    if not layers:
        top.refuse("has no layers")
    return Manifest(digest, config, tuple(layers))


def _parse_appc(node: Node) -> Appc:
    mode, calls, error = node.text("seccompMode"), node.texts("seccompCalls"), node.text("seccompErrno")
    if mode not in ("", "remove", "retain") or not all(is_call(call) for call in calls) or not is_error_name(error or "EPERM"):
        node.refuse("seccomp: bad mode, name of a call or error")
    capabilities = node.texts("capabilities") if node.has("capabilities") else None
    groups = tuple(int(g) for g in node.texts("groups") if g.isascii() and g.isdigit() and len(g) <= 5)
    dependencies = node.nodes("dependencies")
    if len(dependencies) > _ACIS_MAX:
        node.refuse(f"has {len(dependencies)} dependencies, at most {_ACIS_MAX} are supported")
    score = node.text("oomScoreAdjust")
    if score and not (score.isascii() and score.isdigit() and int(score[:5]) <= 1000):
        node.refuse(f"oomScoreAdjust: must be 0 to 1000, got {score[:100]!r}")
    return Appc(
        groups=groups,
        pre_start=node.texts("preStart"),
        post_stop=node.texts("postStop"),
        capabilities=capabilities,
        seccomp_mode=mode,
        seccomp_calls=calls,
        seccomp_errno=error,
        memory_limit=node.number_or_none("memoryLimit"),
        memory_request=node.number_or_none("memoryRequest"),
        cpu_limit=node.number_or_none("cpuLimit"),
        cpu_request=node.number_or_none("cpuRequest"),
        oom_score_adjust=int(score) if score else None,
        dependencies=tuple((n.text("reference"), n.text("imageID")) for n in dependencies),
        isolators=tuple((n.text("name"), n.text("outcome")) for n in node.nodes("isolators")),
    )


def is_call(text: str) -> bool:
    """The form of a system call's name, or of a group of systemd's."""
    name = text.removeprefix("@")
    return 0 < len(name) <= 64 and name.isascii() and name.replace("_", "").replace("-", "").isalnum() and name[0] not in "-_"


def is_error_name(text: str) -> bool:
    return text in errno.errorcode.values()


def _parse_environment(config: Node) -> tuple[tuple[str, str], ...]:
    """Later entries win, as in runc and Docker; the order of first mention is kept."""
    environment: dict[str, str] = {}
    for entry in config.texts("Env"):
        name, equals, value = entry.partition("=")
        if not equals or not name or not name.isprintable() or " " in name:
            config.refuse(f"Env: must be NAME=VALUE, got {entry[:100]!r}")
        environment[name] = value
    return tuple(environment.items())


def _parse_volumes(config: Node) -> tuple[str, ...]:
    volumes = sorted(config.node("Volumes").names())
    if len(volumes) > _VOLUMES_MAX:
        config.refuse(f"Volumes: at most {_VOLUMES_MAX}, got {len(volumes)}")
    for path in volumes:
        if not path.startswith("/") or not path.isprintable() or ".." in path.split("/"):
            config.refuse(f"Volumes: must be absolute paths without .., got {path[:200]!r}")
    return tuple(volumes)


def _parse_signal(config: Node) -> str:
    """A name such as SIGTERM (SIG is added), SIGRTMIN+3, or a number, as given."""
    text = config.text("StopSignal").upper()
    if not text:
        return ""
    if len(text) > 16 or not text.isascii() or not all(c.isalnum() or c in "+-" for c in text):
        config.refuse(f"StopSignal: is no signal, got {text[:100]!r}")
    if text.isdigit():
        if not 0 < int(text) <= 64:
            config.refuse(f"StopSignal: is no signal, got {text!r}")
        return text
    return text if text.startswith("SIG") else f"SIG{text}"


def _parse_ports(config: Node) -> tuple[tuple[int, str], ...]:
    """`80`, `80/tcp` or a range `8000-8003/udp` (config.md, ExposedPorts; the range is Docker's)."""
    ports: set[tuple[int, str]] = set()
    count = 0
    for text in config.node("ExposedPorts").names():
        numbers, _, protocol = text.partition("/")
        first, dash, last = numbers.partition("-")
        last = last if dash else first
        digits = (first + last).isascii() and first.isdigit() and last.isdigit() and len(first) <= 5 and len(last) <= 5
        if not digits or not 0 < int(first) <= int(last) < 65536 or (protocol or "tcp") not in ("tcp", "udp", "sctp"):
            config.refuse(f"ExposedPorts: must be PORT/PROTOCOL, got {text[:100]!r}")
        count += int(last) - int(first) + 1
        if count > 65535:
            config.refuse("ExposedPorts: more ports than there are")
        ports.update((n, protocol or "tcp") for n in range(int(first), int(last) + 1))
    return tuple(sorted(ports))

# SPDX-License-Identifier: Apache-2.0
"""The manifest of an ACI (appc spec 0.8.11, aci.md and ace.md): bytes to checked values, and to an OCI configuration. Pure.

Where an isolator asks for more than a pod file's silence gives, it gives way; what became of each is told in `Appc.isolators`.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from rktd_units.confine import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from rktd_units.errors import ImageError
from rktd_units.images.manifest import Node, is_call, is_error_name
from rktd_units.images.reference import is_identifier, is_image_id
from rktd_units.podfile.quantities import parse_bytes, parse_millicores

DEPENDENCIES_MAX = 100
NAME_MAX = 1000  # characters of an AC identifier
_WHITELIST_MAX = 1_000_000
_MOUNT_POINTS_MAX = 100
_LABELS_MAX = 100

# uname's machine -> what the label `arch` may be (appc spec, schema/types/labels.go)
_ARCHITECTURES = {
    "x86_64": ("amd64",),
    "aarch64": ("aarch64",),
    "armv7l": ("armv7l", "armv6l"),
    "armv6l": ("armv6l",),
    "i686": ("i386",),
    "i586": ("i386",),
}
# Wildcards of seccomp sets (rkt's documentation, seccomp-guide.md) that mean what we do anyway, and systemd's groups.
_DEFAULT_SETS = ("@rkt/default-whitelist", "@rkt/default-blacklist", "@docker/default-whitelist", "@docker/default-blacklist")
_SYSTEMD_SETS = [
    "aio",
    "basic-io",
    "chown",
    "clock",
    "cpu-emulation",
    "debug",
    "file-system",
    "io-event",
    "ipc",
    "keyring",
    "memlock",
    "module",
    "mount",
    "network-io",
    "obsolete",
    "pkey",
    "privileged",
    "process",
    "raw-io",
    "reboot",
    "resources",
    "sandbox",
    "setuid",
    "signal",
    "swap",
    "sync",
    "system-service",
    "timer",
]


class Dependency(NamedTuple):
    """One entry of `dependencies`. `size` is in bytes, 0 if it is not told."""

    name: str
    labels: tuple[tuple[str, str], ...]
    image_id: str  # "sha512-HEX" or ""
    size: int

    @property
    def reference(self) -> str:
        """As a pod file would write it."""
        labels = dict(self.labels)
        version = labels.pop("version", "")
        pin = f"@{self.image_id}" if self.image_id else ""
        return f"aci:{self.name}" + (f":{version}" if version else "") + "".join(f",{k}={v}" for k, v in sorted(labels.items())) + pin


class AciManifest(NamedTuple):
    """`user` and `group` are "" where the image has no app; `config` and `appc` are parts of an OCI configuration document."""

    name: str
    labels: Mapping[str, str]
    dependencies: tuple[Dependency, ...]  # lowest first
    whitelist: frozenset[bytes]  # paths without the slash before them; empty: all
    user: str
    group: str
    config: dict[str, Any]
    appc: dict[str, Any]


def parse_aci_manifest(data: bytes) -> AciManifest:
    """Raises ImageError that names the key."""
    top = Node.of_json(data, "manifest")
    if top.text("acKind") != "ImageManifest":
        top.refuse(f"acKind must be ImageManifest, got {top.text('acKind')[:100]!r}")
    if not top.text("acVersion"):
        top.refuse("acVersion is missing")
    name = _identifier(top, "name")
    app = top.node("app")
    config: dict[str, Any] = {}
    appc: dict[str, Any] = {}
    if top.has("app"):
        config, appc = _parse_app(app)
    return AciManifest(
        name=name,
        labels=dict(_parse_labels(top)),
        dependencies=_parse_dependencies(top),
        whitelist=_parse_whitelist(top),
        user=_required(app, "user") if top.has("app") else "",
        group=_required(app, "group") if top.has("app") else "",
        config=config,
        appc=appc,
    )


def host_labels() -> dict[str, str]:
    """The labels `os` and `arch` of images for this host."""
    machine = os.uname().machine
    return {"os": "linux", "arch": _ARCHITECTURES.get(machine, (machine,))[0]}


def check_labels(labels: Mapping[str, str], wanted: Mapping[str, str], *, runs: bool) -> None:
    """An image must have each wanted label (discovery.md, Validation), and be for this host.

    One that runs must say for which; a dependency need not ("noarch"). Raises ImageError that names the label.
    """
    for key, value in wanted.items():
        if labels.get(key) != value:
            there = f"{labels[key][:100]!r}" if key in labels else "no such label"
            raise ImageError(f"label {key} was asked to be {value!r}, the image has {there}")
    machine = os.uname().machine
    for key, here in (("os", ("linux",)), ("arch", _ARCHITECTURES.get(machine, (machine,)))):
        if key in labels and labels[key] not in here:
            raise ImageError(f"label {key} is {labels[key][:100]!r}, this host needs {here[0]!r}")
        if runs and key not in labels:
            raise ImageError(f"has no label {key}: an image that runs must say what it is for", hint=f"this host needs {key}={here[0]}")


def _required(node: Node, key: str) -> str:
    text = node.text(key)
    if not text:
        node.refuse(f"{key} is missing")
    return text


def _identifier(node: Node, key: str) -> str:
    text = _required(node, key)
    if not is_identifier(text) or len(text) > NAME_MAX:
        node.refuse(
            f"{key} {text[:200]!r} is no AC identifier",
        )
    return text


def _parse_labels(node: Node) -> tuple[tuple[str, str], ...]:
    labels: dict[str, str] = {}
    for label in node.nodes("labels"):
        name = _identifier(label, "name")
        if name == "name" or name in labels or len(labels) >= _LABELS_MAX:
            label.refuse(f"label {name!r} is repeated, or not allowed, or one too many")
        labels[name] = label.text("value")
    return tuple(sorted(labels.items()))


def _parse_dependencies(top: Node) -> tuple[Dependency, ...]:
    found = []
    for node in top.nodes("dependencies"):
        image_id = node.text("imageID")
        if image_id and not is_image_id(image_id):
            node.refuse(f"imageID {image_id[:150]!r} is not sha512- and 128 hexadecimal digits")
        found.append(Dependency(_identifier(node, "imageName"), _parse_labels(node), image_id, node.number_or_none("size") or 0))
    if len(found) > DEPENDENCIES_MAX:
        top.refuse(f"has {len(found)} dependencies, at most {DEPENDENCIES_MAX} are supported")
    return tuple(found)


def _parse_whitelist(top: Node) -> frozenset[bytes]:
    paths = top.texts("pathWhitelist", _WHITELIST_MAX)
    for path in paths:
        if not path.startswith("/") or ".." in path.split("/"):
            top.refuse(f"pathWhitelist: must be absolute paths without .., got {path[:200]!r}")
    return frozenset("/".join(part for part in path.split("/") if part not in ("", ".")).encode() for path in paths)


def _parse_app(app: Node) -> tuple[dict[str, Any], dict[str, Any]]:
    working_dir = app.text("workingDirectory")
    if working_dir and not working_dir.startswith("/"):
        app.refuse(f"workingDirectory must be absolute, got {working_dir[:200]!r}")
    names = [_required(node, "name") for node in app.nodes("environment")]
    if len(set(names)) != len(names) or any("=" in name for name in names):
        app.refuse("environment: a variable is repeated, or its name has an equals sign")
    mount_points = [_required(node, "path") for node in app.nodes("mountPoints")]
    if len(mount_points) > _MOUNT_POINTS_MAX or not all(path.startswith("/") and ".." not in path.split("/") for path in mount_points):
        app.refuse(f"mountPoints: at most {_MOUNT_POINTS_MAX} absolute paths without ..")
    config = {
        "Entrypoint": list(app.texts("exec")),
        "Env": [f"{node.text('name')}={node.text('value')}" for node in app.nodes("environment")],
        "WorkingDir": working_dir,
        "Volumes": {path: {} for path in mount_points},
        "ExposedPorts": {port: {} for port in _parse_ports(app)},
    }
    appc: dict[str, Any] = {"groups": _parse_groups(app), **_parse_handlers(app)}
    isolators = _Isolators(appc)
    for node in app.nodes("isolators"):
        isolators.read(node)
    return config, isolators.finish()


def _parse_ports(app: Node) -> list[str]:
    """As OCI has them: `80/tcp`, or `8000-8003/udp`."""
    ports = []
    for node in app.nodes("ports"):
        protocol, port, count = node.text("protocol").lower(), node.number("port"), node.number_or_none("count") or 1
        if protocol not in ("tcp", "udp", "sctp") or not 1 <= port <= port + count - 1 <= 65535:
            node.refuse(f"must be tcp, udp or sctp ports of 1 to 65535, got {protocol[:20]!r}, {port} and {count}")
        ports.append(f"{port}-{port + count - 1}/{protocol}" if count > 1 else f"{port}/{protocol}")
    return ports


def _parse_groups(app: Node) -> list[str]:
    groups = app.value("supplementaryGIDs") or app.value("supplementaryGids") or []
    if not isinstance(groups, list) or not all(type(group) is int and 0 <= group <= 65535 for group in groups) or len(groups) > 1000:
        app.refuse("supplementaryGIDs: must be a list of numbers, 0 to 65535: a pod has no other ids")
    return [str(group) for group in groups]


def _parse_handlers(app: Node) -> dict[str, list[str]]:
    handlers: dict[str, list[str]] = {}
    for node in app.nodes("eventHandlers"):
        key = {"pre-start": "preStart", "post-stop": "postStop"}.get(node.text("name"), "")
        command = list(node.texts("exec"))
        if not key or key in handlers or not command or not command[0]:
            node.refuse(f"must be one pre-start or post-stop with an exec, got {node.text('name')[:100]!r}")
        handlers[key] = command
    return handlers


class _Isolators:
    """Isolators become keys of `appc` (manifest.Appc)."""

    def __init__(self, appc: dict[str, Any]) -> None:
        self._appc = appc
        self._outcome: dict[str, str] = {}
        self._retained: set[str] | None = None
        self._removed: set[str] = set()

    def read(self, node: Node) -> None:
        name = _identifier(node, "name")
        if name in self._outcome:
            node.refuse(f"isolator {name} is repeated")
        reader = {
            "os/linux/capabilities-retain-set": self._capabilities,
            "os/linux/capabilities-remove-set": self._capabilities,
            "os/linux/seccomp-retain-set": self._seccomp,
            "os/linux/seccomp-remove-set": self._seccomp,
            "os/linux/no-new-privileges": self._no_new_privileges,
            "os/linux/oom-score-adj": self._oom_score,
            "os/linux/cpu-shares": self._cpu_shares,
            "resource/cpu": self._resource,
            "resource/memory": self._resource,
        }.get(name)
        if reader is not None:
            self._outcome[name] = reader(node, name) or "enforced"
        elif name == "os/linux/selinux-context" and not os.path.exists("/sys/fs/selinux/enforce"):
            self._outcome[name] = "ignored: this host has no SELinux"
        elif name.startswith("os/"):
            node.refuse(f"isolator {name[:100]} is not supported")
        else:
            self._outcome[name] = "ignored: not supported"

    def finish(self) -> dict[str, Any]:
        if self._retained is not None and self._removed:
            raise ImageError("manifest: app: both capabilities-retain-set and capabilities-remove-set")
        if self._retained is not None:
            self._appc["capabilities"] = sorted(self._retained)
        elif self._removed:
            self._appc["capabilities"] = sorted(set(DEFAULT_CAPABILITIES) - self._removed)
        self._appc["isolators"] = [{"name": name, "outcome": outcome} for name, outcome in self._outcome.items()]
        return self._appc

    def _capabilities(self, node: Node, name: str) -> str:
        names = node.node("value").texts("set")
        bare = {text.upper().removeprefix("CAP_") for text in names}
        if not bare or not bare <= set(ALL_CAPABILITIES):
            node.refuse(f"{name}: must name capabilities, got {', '.join(names)[:200]!r}")
        if name.endswith("retain-set"):
            self._retained = bare
        else:
            self._removed = bare
        return ""

    def _seccomp(self, node: Node, name: str) -> str:
        value, mode = node.node("value"), name.removeprefix("os/linux/seccomp-").removesuffix("-set")
        if "seccompMode" in self._appc:
            node.refuse("both seccomp-retain-set and seccomp-remove-set")
        calls, error = value.texts("set"), value.text("errno")
        if not calls or (error and not is_error_name(error)):
            node.refuse(f"{name}: needs a set, and an errno that Linux has, got {error[:50]!r}")
        if {"@appc.io/all", *_DEFAULT_SETS} & set(calls) if mode == "retain" else "@appc.io/empty" in calls:
            return "" if mode == "remove" or set(calls) <= set(_DEFAULT_SETS) else "modified: the default filter stays"
        wanted = []
        for call in calls:
            scope, slash, group = call.partition("/")
            if call in _DEFAULT_SETS:
                continue  # what is blocked by default is
            if slash and (scope != "@systemd" or group not in _SYSTEMD_SETS):
                node.refuse(f"{name}: {call[:100]!r} is not supported")
            if not slash and (call.startswith("@") or not is_call(call)):
                node.refuse(f"{name}: {call[:100]!r} is no system call")
            wanted.append(f"@{group}" if slash else call)
        self._appc |= {"seccompMode": mode, "seccompCalls": wanted, "seccompErrno": error}
        return "modified: the default filter's calls stay blocked too" if mode == "retain" else ""

    def _no_new_privileges(self, node: Node, name: str) -> str:
        value = node.value("value")
        if not isinstance(value, bool):
            node.refuse(f"{name}: must be true or false")
        return "" if value else "modified: it is on unless the pod file says allowPrivilegeEscalation"

    def _oom_score(self, node: Node, name: str) -> str:
        value = node.value("value")
        if type(value) is not int or not -1000 <= value <= 1000:
            node.refuse(f"{name}: must be -1000 to 1000")
        self._appc["oomScoreAdjust"] = str(max(value, 0))
        return "" if value >= 0 else "modified: an image does not put itself above the host's services"

    def _cpu_shares(self, node: Node, name: str) -> str:
        """1024 shares are one CPU's, as Kubernetes counts."""
        value = node.value("value")
        if type(value) is not int or not 2 <= value <= 1 << 18:
            node.refuse(f"{name}: must be 2 to 262144")
        self._appc.setdefault("cpuRequest", max(value * 1000 // 1024, 1))
        return ""

    def _resource(self, node: Node, name: str) -> str:
        kind, value = name.removeprefix("resource/"), node.node("value")
        for key in ("limit", "request"):
            if not value.has(key):
                continue
            raw = value.value(key)
            text = str(raw) if type(raw) in (int, float) else value.text(key)
            if text.endswith("K"):
                text = text[:-1] + "k"  # appc's own spelling
            try:
                amount = parse_bytes(text) if kind == "memory" else parse_millicores(text)
            except ValueError as error:
                node.refuse(f"{name}: {key}: {error}")
            if key == "limit" and not amount:
                node.refuse(f"{name}: limit must be more than 0")
            self._appc[f"{kind}{key.capitalize()}"] = amount
        return ""

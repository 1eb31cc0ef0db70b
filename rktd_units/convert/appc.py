# SPDX-License-Identifier: Apache-2.0
"""Pod manifests of rkt (appc spec 0.8.11, pods.md). JSON is YAML, so faults have their places."""

from collections.abc import Callable
from typing import Any

from rktd_units.convert import options
from rktd_units.convert.draft import App, Findings, PodDraft, order_keys
from rktd_units.fields import Place, describe, items_of, suggest, text_of
from rktd_units.strictyaml import Mapping, Node

Handler = Callable[[App, Node, Place], None]
_PREFIX = "os/linux/"


def convert_manifest(document: Mapping, name: str, findings: Findings) -> PodDraft:
    """One pod; `name` is what it is to be called, since a manifest has none."""
    pod = PodDraft(name, document, findings)
    pod.spec["restartPolicy"] = "Never"  # rkt has none: an app that ends has ended
    top = App(pod, "pod", document, ".")
    pod.containers.clear()
    kind = text_of(document, "acKind")
    if kind != "PodManifest":
        findings.error(document.get("acKind") or document, (None, "acKind"), f"must be PodManifest, got '{kind}'")
    volumes = {text_of(item, "name"): item for item in items_of(document, "volumes")}
    _apply(top, document, None, _MANIFEST)
    for index, item in enumerate(items_of(document, "apps")):
        _convert_app(pod, item, ((None, "apps"), index), volumes)
    for index, item in enumerate(items_of(document, "ports")):
        _publish(pod, item, ((None, "ports"), index), items_of(document, "apps"))
    if not pod.containers:
        findings.error(document, (None, "apps"), "the pod must contain at least one app")
    return pod


def _apply(app: App, node: Node, place: Place, table: dict[str, Handler]) -> None:
    if not isinstance(node, Mapping):
        app.findings.error(node, place, f"must be a map, got {describe(node)}")
        return
    for key, (at, value) in node.entries.items():
        handler = table.get(key)
        if handler is None:
            app.findings.error(at, (place, key), "unknown field", suggest(key, table))
        elif not value.is_null and getattr(value, "items", True) and getattr(value, "entries", True):
            handler(app, value, (place, key))


def _convert_app(pod: PodDraft, node: Node, place: Place, volumes: dict[str, Node]) -> None:
    app = App(pod, text_of(node, "name"), node, ".")
    _apply(app, node, place, _APP)
    image = node.get("image") if isinstance(node, Mapping) else None
    app.container["image"] = _image(image)
    if not text_of(image, "id"):
        pod.findings.warning(
            image or node, (place, "image"), "has no id: it runs only if it is signed, or under `insecure:` (rktd-trust(7))"
        )
    inner = node.get("app") if isinstance(node, Mapping) else None
    points = {text_of(item, "name"): item for item in items_of(inner, "mountPoints")}
    mounted = set()
    for index, item in enumerate(items_of(node, "mounts")):
        point = points.get(text_of(item, "path"))
        path = text_of(point, "path") if point is not None else text_of(item, "path")
        mounted.add(path)
        _mount(app, item, ((place, "mounts"), index), volumes, path, point)
    for name, point in points.items():  # without a word in `mounts`, a volume of that name is meant
        if text_of(point, "path") in mounted:
            continue
        if name in volumes:
            _mount(app, point, (place, "app"), volumes, text_of(point, "path"), point)
        else:
            volume = pod.add_volume(name, {"emptyDir": {}})  # rkt's implicit one
            app.append("volumeMounts", {"name": volume, "mountPath": text_of(point, "path")})
    order_keys(app.container)


def _image(node: Node | None) -> str:
    labels = {text_of(item, "name"): text_of(item, "value") for item in items_of(node, "labels")}
    version, image_id = labels.pop("version", ""), text_of(node, "id")
    words = "".join(f",{key}={value}" for key, value in sorted(labels.items()))
    return f"aci:{text_of(node, 'name')}" + (f":{version}" if version else "") + words + (f"@{image_id}" if image_id else "")


def _mount(app: App, node: Node, place: Place, volumes: dict[str, Node], path: str, point: Node | None) -> None:
    inner = node.get("appVolume") if isinstance(node, Mapping) else None
    name = text_of(inner, "name") or text_of(node, "volume") or text_of(node, "name")
    volume = inner or volumes.get(name)
    if volume is None:
        app.findings.error(node, place, f"there is no volume '{name}'", suggest(name, volumes))
        return
    if text_of(volume, "kind") == "host":
        definition: dict[str, Any] = {"hostPath": {"path": text_of(volume, "source")}}
    else:
        definition = {"emptyDir": {}}
    if name not in app.pod.volumes:
        app.pod.volumes[name] = definition
    read_only = "true" in (text_of(volume, "readOnly"), text_of(point, "readOnly"))
    app.append("volumeMounts", {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})})


def _publish(pod: PodDraft, node: Node, place: Place, apps: list[Node]) -> None:
    """A port of the host leads to the app's port of that name."""
    name, outer = text_of(node, "name"), text_of(node, "hostPort")
    for index, app in enumerate(apps):
        for port in items_of(app.get("app") if isinstance(app, Mapping) else None, "ports"):
            if text_of(port, "name") == name and outer.isdecimal():
                for known in pod.containers[index].get("ports", ()):
                    if known["containerPort"] == int(text_of(port, "port")):
                        known["hostPort"] = int(outer)
                        if text_of(node, "hostIP"):
                            known["hostIP"] = text_of(node, "hostIP")
                return
    pod.findings.error(node, place, f"no app has a port called '{name}'")


def _lose(why: str, hint: str = "") -> Handler:
    return lambda app, node, place: app.findings.lose(node, place, why, hint)


def _accept(app: App, node: Node, place: Place) -> None:
    """Read elsewhere, or of no effect."""


def _exec(app: App, node: Node, place: Place) -> None:
    options.set_command(app, [getattr(item, "text", "") for item in getattr(node, "items", ())])


def _environment(app: App, node: Node, place: Place) -> None:
    for item in getattr(node, "items", ()):
        options.set_variable(app, text_of(item, "name"), text_of(item, "value"))


def _groups(app: App, node: Node, place: Place) -> None:
    for item in getattr(node, "items", ()):
        options.add_group(app, item, place)


def _ports(app: App, node: Node, place: Place) -> None:
    for index, item in enumerate(getattr(node, "items", ())):
        first, count = text_of(item, "port"), text_of(item, "count") or "1"
        if not (first.isdecimal() and count.isdecimal()):
            app.findings.error(item, (place, index), "must have a number as its port")
            continue
        if text_of(item, "socketActivated") == "true":
            app.findings.lose(item, (place, index), "activation by a socket", "systemd.io/socket-activation, by hand")
        for number in range(int(first), int(first) + int(count)):
            port: dict[str, Any] = {"containerPort": number}
            if text_of(item, "protocol").lower() == "udp":
                port["protocol"] = "UDP"
            app.append("ports", port)


def _annotations(app: App, node: Node, place: Place) -> None:
    for item in getattr(node, "items", ()):
        app.pod.annotations[text_of(item, "name")] = text_of(item, "value")


def _user_annotations(app: App, node: Node, place: Place) -> None:
    for key, (_, value) in node.entries.items() if isinstance(node, Mapping) else ():
        app.pod.annotations[key] = getattr(value, "text", "")


def _user_labels(app: App, node: Node, place: Place) -> None:
    for key, (_, value) in node.entries.items() if isinstance(node, Mapping) else ():
        app.pod.labels[key] = getattr(value, "text", "")


def _volumes(app: App, node: Node, place: Place) -> None:
    for index, item in enumerate(getattr(node, "items", ())):
        for key, (at, value) in item.entries.items() if isinstance(item, Mapping) else ():
            if key in ("mode", "uid", "gid"):
                app.findings.lose(at, ((place, index), key), "owners of empty volumes", "fsGroup; it has mode 0777")
            elif key == "recursive" and getattr(value, "text", "") == "false":
                app.findings.lose(at, ((place, index), key), "a path without what is mounted below")


def _isolators(app: App, node: Node, place: Place) -> None:
    for index, item in enumerate(getattr(node, "items", ())):
        _isolator(app, item, (place, index))


def _isolator(app: App, node: Node, place: Place) -> None:
    name = text_of(node, "name")
    value = node.get("value") if isinstance(node, Mapping) else None
    limit, request = text_of(value, "limit"), text_of(value, "request")
    if name in ("resource/memory", "resource/cpu"):
        for which, amount in (("limits", limit), ("requests", request)):
            if amount:
                app.inner("resources").setdefault(which, {})[name.partition("/")[2]] = amount
    elif name in (f"{_PREFIX}capabilities-retain-set", f"{_PREFIX}capabilities-remove-set"):
        words = [getattr(item, "text", "").removeprefix("CAP_") for item in items_of(value, "set")]
        kept = "retain" in name
        app.inner("securityContext")["capabilities"] = {"drop": ["ALL"], "add": words} if kept else {"drop": words}
    elif name == f"{_PREFIX}no-new-privileges":
        if getattr(value, "text", "") == "false":
            app.inner("securityContext")["allowPrivilegeEscalation"] = True
    elif name in (f"{_PREFIX}seccomp-retain-set", f"{_PREFIX}seccomp-remove-set"):
        app.findings.lose(node, place, f"the isolator {name}", "a profile below /etc/rktd/seccomp: seccompProfile")
    else:
        app.findings.lose(node, place, f"the isolator {name}")


_INNER: dict[str, Handler] = {
    "environment": _environment,
    "eventHandlers": _lose("hooks", "pre-start: an init container with the same image"),
    "exec": _exec,
    "group": options.one_value(options.set_group),
    "isolators": _isolators,
    "mountPoints": _accept,
    "ports": _ports,
    "supplementaryGIDs": _groups,
    "user": options.one_value(options.set_user),
    "userAnnotations": _user_annotations,
    "userLabels": _user_labels,
    "workingDirectory": options.one_value(options.set_working_directory),
}
_APP: dict[str, Handler] = {
    "annotations": _annotations,
    "app": lambda app, node, place: _apply(app, node, place, _INNER),
    "image": _accept,
    "mounts": _accept,
    "name": _accept,
    "readOnlyRootFS": options.one_value(options.set_read_only),
}
_MANIFEST: dict[str, Handler] = {
    "acKind": _accept,
    "acVersion": _accept,
    "annotations": _annotations,
    "apps": _accept,
    "isolators": _lose("isolators of the pod", "those of its apps; systemctl edit pod@NAME for the unit's"),
    "ports": _accept,
    "userAnnotations": _user_annotations,
    "userLabels": _user_labels,
    "volumes": _volumes,
}

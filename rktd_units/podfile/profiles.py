# SPDX-License-Identifier: Apache-2.0
"""What holds an app: seccompProfile (in part), appArmorProfile, also by the annotations that Kubernetes had before, seLinuxOptions."""

from rktd_units.fields import Faults, Place, Reader, Table, read_choice, read_mapping, read_text, text_of
from rktd_units.podfile.model import Container, SELinux
from rktd_units.strictyaml import Mapping, Node

PREFIX = "container.apparmor.security.beta.kubernetes.io/"
_NAME_OF_POLICY = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")
_LEVEL = _NAME_OF_POLICY | frozenset(":,")
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:-_.@/")


def read_selinux(faults: Faults, node: Node, place: Place) -> SELinux | None:
    """seLinuxOptions; an empty mapping asks for nothing."""
    values = read_mapping(faults, node, place, _SELINUX)
    return SELinux(**values) if any(values.values()) else None


def require_one_label(faults: Faults, node: Node, place: Place, containers: tuple[Container, ...]) -> None:
    """Of all apps of a pod: systemd in a pod does not see SELinux, so nothing in there could give an app another label than its own."""
    for container in containers[1:]:
        first = containers[0]
        if container.security.selinux != first.security.selinux:
            labels = (f"app {c.name} has {c.security.selinux or 'none'}" for c in (first, container))
            message = f"a pod has one SELinux label, since its systemd does not see SELinux; {', '.join(labels)}"
            faults.error(node, (place, "seLinuxOptions"), message, "spec.securityContext.seLinuxOptions counts for all of them")
            return


def read_profile(faults: Faults, node: Node, place: Place, table: Table) -> str | None:
    """A profile's type; localhost/NAME for one of the host's own."""
    values = read_mapping(faults, node, place, table, required=("type",))
    kind, name = values.get("type"), values.get("localhostProfile")
    named = isinstance(node, Mapping) and node.get("localhostProfile") is not None
    if kind is not None and named != (kind == "Localhost"):
        faults.error(node, (place, "localhostProfile"), "must not be set unless type is Localhost" if named else "is required")
    return f"localhost/{name}" if kind == "Localhost" else kind


def read_apparmor(faults: Faults, node: Node, place: Place) -> str | None:
    """An appArmorProfile."""
    return read_profile(faults, node, place, _APPARMOR)


def confine_by_annotations(faults: Faults, node: Node | None, place: Place, containers: tuple[Container, ...]) -> tuple[Container, ...]:
    """An annotation for each container counts where its appArmorProfile is not, and must not say something else."""
    profiles: dict[str, str] = {}
    known = {container.name: container.security.apparmor for container in containers}
    for key, (_, value) in node.entries.items() if isinstance(node, Mapping) else ():
        if not key.startswith(PREFIX):
            continue
        app, text = key[len(PREFIX) :], text_of(node, key)
        word = {"runtime/default": "RuntimeDefault", "unconfined": "Unconfined"}.get(text, text)
        kind, slash, name = word.partition("/")
        if app not in known:
            faults.error(value, (place, key), f"the pod has no container '{app}'")
        elif word == text and not (kind == "localhost" and slash):
            faults.error(value, (place, key), f"must be runtime/default, unconfined or localhost/NAME, got '{text}'")
        elif word == text and not _is_name(name):
            faults.error(value, (place, key), f"'{name}' is not the name of an AppArmor profile")
        elif known[app] not in ("", word):
            faults.error(value, (place, key), "the container's appArmorProfile says something else")
        else:
            profiles[app] = word
    return tuple(c._replace(security=c.security._replace(apparmor=profiles[c.name])) if c.name in profiles else c for c in containers)


def _read_name(faults: Faults, node: Node, place: Place) -> str | None:
    name = read_text(faults, node, place)
    if name is not None and not _is_name(name):
        faults.error(node, place, f"'{name}' is not the name of an AppArmor profile")
        return None
    return name


def _read_part(kind: str) -> Reader:
    """A part of a label: what may stand in one at all. Whether the policy knows it, the kernel says at the start."""

    def read(faults: Faults, node: Node, place: Place) -> str | None:
        text = read_text(faults, node, place)
        if text is not None and not set(text) <= (_LEVEL if kind == "level" else _NAME_OF_POLICY):
            faults.error(node, place, f"'{text}' is no {kind} of an SELinux label")
            return None
        return text

    return read


def _is_name(text: str) -> bool:
    """Those with spaces and the like exist, and are nobody's for containers."""
    return bool(text) and set(text) <= _NAME and text[0] not in "-:"


_APPARMOR: Table = {"localhostProfile": _read_name, "type": read_choice("RuntimeDefault", "Unconfined", "Localhost")}
_SELINUX: Table = {kind: _read_part(kind) for kind in ("level", "role", "type", "user")}

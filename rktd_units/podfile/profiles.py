# SPDX-License-Identifier: Apache-2.0
"""Profiles that hold an app, by a field or by the annotations that Kubernetes had before: seccompProfile (in part), appArmorProfile."""

from rktd_units.fields import Faults, Place, Table, read_choice, read_mapping, read_text, text_of
from rktd_units.podfile.model import Container
from rktd_units.strictyaml import Mapping, Node

PREFIX = "container.apparmor.security.beta.kubernetes.io/"
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:-_.@/")


def read_selinux(faults: Faults, node: Node, place: Place) -> None:
    """seLinuxOptions, which nothing in a pod could enforce (docs/config.md); an empty mapping asks for nothing."""
    if not (isinstance(node, Mapping) and not node.entries):
        hint = "appArmorProfile and seccompProfile are enforced"
        faults.error(node, place, "not supported: systemd in a pod does not see the host's SELinux, and would ignore them", hint)


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


def _is_name(text: str) -> bool:
    """Those with spaces and the like exist, and are nobody's for containers."""
    return bool(text) and set(text) <= _NAME and text[0] not in "-:"


_APPARMOR: Table = {"localhostProfile": _read_name, "type": read_choice("RuntimeDefault", "Unconfined", "Localhost")}

# SPDX-License-Identifier: Apache-2.0
"""Metadata of Kubernetes' objects: names, labels, annotations, and what the `systemd.io/...` ones mean."""

from rktd_units.fields import Faults, Place, Reader, Table, describe, ignored, read_text, suggest
from rktd_units.podfile.model import Systemd
from rktd_units.podfile.network import check_network_name, check_pod_address
from rktd_units.strictyaml import Mapping, Node

PREFIX = "systemd.io/"
_LATER: frozenset[str] = frozenset()
_ALNUM = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_UNIT_CHARACTERS = _ALNUM | frozenset(":-_.\\@")  # VALID_CHARS_WITH_AT of systemd's unit-name.c
_UNIT_SUFFIXES = (".service", ".socket", ".target", ".mount", ".automount", ".path", ".timer", ".slice", ".scope", ".device", ".swap")
_ADDRESS_WORDS = frozenset({"any", "localhost", "link-local", "multicast"})  # systemd.resource-control(5), IPAddressAllow=


def metadata_table(read_name: Reader) -> Table:
    """All of ObjectMeta; kinds of objects differ in their names only."""
    return {
        "annotations": read_annotations,
        "creationTimestamp": ignored,
        "deletionGracePeriodSeconds": ignored,
        "deletionTimestamp": ignored,
        "finalizers": ignored,
        "generateName": ignored,
        "generation": ignored,
        "labels": read_labels,
        "managedFields": ignored,
        "name": read_name,
        "namespace": ignored,
        "ownerReferences": ignored,
        "resourceVersion": ignored,
        "selfLink": ignored,
        "uid": ignored,
    }


def read_labels(faults: Faults, node: Node, place: Place) -> tuple[tuple[str, str], ...]:
    """Pairs, sorted by key. The syntax is Kubernetes'."""
    pairs = _read_pairs(faults, node, place)
    for key, value in pairs:
        if value and not _is_name(value):
            entry = node.get(key) if isinstance(node, Mapping) else None
            hint = "letters, digits and -_. between them, 63 characters at most"
            faults.error(entry or node, (place, key), f"'{value}' is not a label value", hint)
    return pairs


def read_annotations(faults: Faults, node: Node, place: Place) -> tuple[tuple[str, str], ...]:
    """Pairs, sorted by key; values are free. `read_systemd` reads those that mean something."""
    return _read_pairs(faults, node, place)


def read_systemd(faults: Faults, node: Node | None, place: Place, apps: frozenset[str]) -> Systemd:
    """What the annotations of the map `node` say to systemd. `apps`: the names that those of _OF_APPS may name."""
    if not isinstance(node, Mapping):
        return Systemd()
    values: dict[str, tuple[str, ...]] = {}
    for key, (key_node, value) in node.entries.items():
        if not key.startswith(PREFIX):
            continue
        name, here = key[len(PREFIX) :], (place, key)
        if name in _LATER:
            faults.error(key_node, here, "not supported yet")
        elif name not in _CHECKS:
            faults.error(key_node, here, "unknown annotation", suggest(key, [PREFIX + known for known in (*_CHECKS, *sorted(_LATER))]))
        elif (text := read_text(Faults(), value, here)) is not None:  # read_annotations has told what is wrong with it
            values[name] = tuple(text.split())
            for word in values[name]:
                app = word.partition("=")[0] if name in _OF_APPS or (name == "cpus" and "=" in word) else None
                message = _CHECKS[name](word) or (_check_app(app, apps) if app is not None else "")
                if message:
                    faults.error(value, here, message)
            if name in _SINGLE and len(values[name]) != 1:
                faults.error(value, here, f"must name one {name}, got {describe(value)}")
    return Systemd(
        wanted_by=values.get("wanted-by", ()),
        after=values.get("after", ()),
        requires=values.get("requires", ()),
        slice=(values.get("slice") or ("",))[0],
        ip_address_allow=values.get("ip-address-allow", ()),
        ip_address_deny=values.get("ip-address-deny", ()),
        journal_socket=values.get("journal-socket", ()),
        log_pipe=values.get("log-pipe", ()),
        notify=tuple((app, watchdog) for app, _, watchdog in (word.partition("=") for word in values.get("notify", ()))),
        network=(values.get("network") or ("",))[0],
        address=(values.get("address") or ("",))[0],
        activation=tuple((port, mode or "fd") for port, _, mode in (word.partition("=") for word in values.get("socket-activation", ()))),
        cpus=tuple((app, cpus) for app, _, cpus in (word.rpartition("=") for word in values.get("cpus", ()))),
        auto_update=(values.get("auto-update") or ("",))[0],
        idle_stop=(values.get("idle-stop") or ("",))[0],
    )


def _read_pairs(faults: Faults, node: Node, place: Place) -> tuple[tuple[str, str], ...]:
    if not isinstance(node, Mapping):
        faults.error(node, place, f"must be a map, got {describe(node)}")
        return ()
    pairs = []
    for key, (key_node, value_node) in node.entries.items():
        prefix, slash, name = key.rpartition("/")
        if not _is_name(name) or (slash and not _is_prefix(prefix)):
            faults.error(key_node, (place, key), "is not a key: must be NAME or DOMAIN/NAME")
        value = read_text(faults, value_node, (place, key))
        if value is not None:
            pairs.append((key, value))
    return tuple(sorted(pairs))


def _is_name(text: str) -> bool:
    """A "qualified name" part: k8s.io/apimachinery, pkg/util/validation."""
    return 0 < len(text) <= 63 and set(text) <= _ALNUM | frozenset("-_.") and text[0] in _ALNUM and text[-1] in _ALNUM


def _is_prefix(text: str) -> bool:
    return 0 < len(text) <= 253 and text == text.lower() and all(_is_name(part) and "_" not in part for part in text.split("."))


def _check_unit(word: str) -> str:
    """unit_name_is_valid of systemd, without templates: they cannot be started."""
    stem = next((word[: -len(suffix)] for suffix in _UNIT_SUFFIXES if word.endswith(suffix)), "")
    if not stem or len(word) > 255 or not set(word) <= _UNIT_CHARACTERS or stem.startswith("@"):
        return f"'{word}' is not the name of a unit" + ("" if "." in word else f": did you mean '{word}.service'?")
    if stem.endswith("@"):
        return f"'{word}' is a template: name an instance"
    return ""


def _check_slice(word: str) -> str:
    """slice_name_is_valid of systemd: dashes separate the levels of the tree."""
    stem = word.removesuffix(".slice")
    if stem == word or not stem or (word != "-.slice" and not all(stem.split("-"))) or not set(word) <= _UNIT_CHARACTERS - {"@"}:
        return f"'{word}' is not the name of a slice"
    return ""


def _check_address(word: str) -> str:
    if word in _ADDRESS_WORDS:
        return ""
    from ipaddress import ip_interface  # only for pods that use it: the generator starts without it

    try:
        ip_interface(word)
    except ValueError:
        pass
    else:
        prefix = word.partition("/")[2]
        if "%" not in word and "." not in prefix and ":" not in prefix:
            return ""
    return f"must be any, localhost, link-local, multicast or ADDRESS[/PREFIX], got '{word}'"


def _check_app(word: str, apps: frozenset[str]) -> str:
    return "" if word in apps else f"the pod has no container '{word}'"


def _check_notify(word: str) -> str:
    _, equals, watchdog = word.partition("=")
    if equals and not _is_time(watchdog, ("", "ms", "s", "min")):
        return f"must be APP or APP=WATCHDOG such as 30s, 500ms or 2min, got '{word}'"
    return ""


def _is_time(word: str, units: tuple[str, ...]) -> bool:
    """One number and one unit of systemd.time(7)."""
    number = word.rstrip("hmsin")
    return number.isascii() and number.isdecimal() and len(number) < 10 and word[len(number) :] in units


def _check_activation(word: str) -> str:
    port, equals, mode = word.partition("=")
    return "" if port and (not equals or mode == "proxy") else f"must be PORT or PORT=proxy, a port by its name or number, got '{word}'"


def _check_idle(word: str) -> str:
    is_time = _is_time(word, ("s", "min", "h")) and word.strip("hmsin0")
    return "" if is_time else f"must be a time such as 30s, 5min or 2h, got '{word}'"


def _check_cpus(word: str) -> str:
    """`0-3,6` (cpuset(7), List format), with APP= before it or not."""
    for part in word.rpartition("=")[2].split(","):
        first, dash, last = part.partition("-")
        numbers = (first, last) if dash else (first,)
        if not all(n.isascii() and n.isdecimal() and len(n) < 5 for n in numbers) or (dash and int(first) > int(last)):
            return f"must be CPUS or APP=CPUS such as 0-3,6, got '{word}'"
    return ""


def _check_update(word: str) -> str:
    return "" if word in ("registry", "local") else f"must be registry or local, got '{word}'"


def _accept(word: str) -> str:
    return ""


_OF_APPS = ("journal-socket", "log-pipe", "notify")
_SINGLE = frozenset({"slice", "network", "address", "idle-stop", "auto-update"})
_CHECKS = {
    "wanted-by": _check_unit,
    "after": _check_unit,
    "requires": _check_unit,
    "slice": _check_slice,
    "ip-address-allow": _check_address,
    "ip-address-deny": _check_address,
    "journal-socket": _accept,
    "log-pipe": _accept,
    "notify": _check_notify,
    "network": check_network_name,
    "address": check_pod_address,
    "cpus": _check_cpus,
    "socket-activation": _check_activation,
    "idle-stop": _check_idle,
    "auto-update": _check_update,
}

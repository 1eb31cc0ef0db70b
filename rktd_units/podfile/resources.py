# SPDX-License-Identifier: Apache-2.0
"""`resources` of a container: limits and requests, those of Kubernetes and those of systemd.io, and quantities in general."""

from typing import Any

from rktd_units.fields import Faults, Place, Table, describe, not_supported, read_mapping
from rktd_units.podfile.model import HUGE_PAGES, Resources
from rktd_units.podfile.quantities import FORM_HINT, parse_bytes, parse_millicores
from rktd_units.strictyaml import Mapping, Node, Scalar

PIDS = "systemd.io/pids"
DEVICE = "systemd.io/device-"  # and the name below /dev, a dash for a slash, as in unit names
_COUNT_MAX = 1 << 22  # PID_MAX_LIMIT of the kernel
_DEVICE_HINT = "a device whose name has a dash is a hostPath of type CharDevice or BlockDevice"


def read_resources(faults: Faults, node: Node, place: Place) -> Resources:
    """Bytes, millicores and counts."""
    values = read_mapping(faults, node, place, RESOURCES)
    limits, requests = values.get("limits", {}), values.get("requests", {})
    for name, amount in requests.items():
        if name in limits and amount > limits[name]:
            faults.error(node, ((place, "requests"), name), "is more than the limit")
        elif _is_exact(name) and amount != limits.get(name):
            faults.error(node, ((place, "requests"), name), "must be the limit")
    return Resources(
        limits.get("memory"),
        requests.get("memory"),
        limits.get("cpu"),
        requests.get("cpu"),
        pids_limit=limits.get(PIDS),
        storage_limit=limits.get("ephemeral-storage"),
        huge_pages=tuple((HUGE_PAGES[name], limits[name]) for name in HUGE_PAGES if name in limits),
        devices=tuple(sorted("/dev/" + name[len(DEVICE) :].replace("-", "/") for name in limits if name.startswith(DEVICE))),
    )


def _is_exact(name: str) -> bool:
    """What cannot be overcommitted."""
    return name in HUGE_PAGES or name == PIDS or name.startswith(DEVICE)


def _read_amounts(faults: Faults, node: Node, place: Place) -> dict[str, int]:
    table = dict(AMOUNTS)
    if isinstance(node, Mapping):  # names of devices are free: none is unknown
        others = {key: not_supported for key in node.entries if ("-" in key or "/" in key) and key not in table}
        table |= others | {key: _read_device for key in node.entries if key.startswith(DEVICE)}
    values: dict[str, Any] = read_mapping(faults, node, place, table)
    if place is not None and place[1] == "limits":
        for key, value in values.items():
            if value == 0:
                faults.error(node, (place, key), "must be more than 0")
    return values


def read_quantity(faults: Faults, node: Node, place: Place) -> int | None:
    """Bytes, or millicores under the key `cpu`."""
    if not isinstance(node, Scalar):
        faults.error(node, place, f"must be a quantity, got {describe(node)}", FORM_HINT)
        return None
    try:
        return parse_millicores(node.text) if place is not None and place[1] == "cpu" else parse_bytes(node.text)
    except ValueError as error:
        faults.error(node, place, str(error), FORM_HINT)
        return None


def _read_huge_pages(faults: Faults, node: Node, place: Place) -> int | None:
    amount = read_quantity(faults, node, place)
    size = HUGE_PAGES[str(place[1])] if place is not None else 1
    if amount is not None and amount % size:
        faults.error(node, place, f"must be whole pages of {str(place[1]).partition('-')[2] if place else ''}, got {describe(node)}")
        return None
    return amount


def _read_count(faults: Faults, node: Node, place: Place) -> int | None:
    amount = read_quantity(faults, node, place)
    if amount is not None and amount > _COUNT_MAX:
        faults.error(node, place, f"must be {_COUNT_MAX} at most, got {describe(node)}")
        return None
    return amount


def _read_device(faults: Faults, node: Node, place: Place) -> int | None:
    name = str(place[1])[len(DEVICE) :] if place is not None else ""
    parts = name.split("-")
    if not all(part.isascii() and part.replace("_", "a").replace(".", "a").isalnum() and part not in (".", "..") for part in parts):
        faults.error(node, place, f"'{name}' is not the name of a device below /dev, with dashes for slashes", _DEVICE_HINT)
        return None
    amount = read_quantity(faults, node, place)
    if amount not in (None, 1):
        faults.error(node, place, f"must be 1, got {describe(node)}")
        return None
    return amount


AMOUNTS: Table = {
    "cpu": read_quantity,
    "ephemeral-storage": read_quantity,
    "hugepages-1Gi": _read_huge_pages,
    "hugepages-2Mi": _read_huge_pages,
    "memory": read_quantity,
    PIDS: _read_count,
}
RESOURCES: Table = {"claims": not_supported, "limits": _read_amounts, "requests": _read_amounts}

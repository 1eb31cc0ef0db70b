# SPDX-License-Identifier: Apache-2.0
"""`lifecycle` of a container: postStart and preStop hooks and the stop signal, with the fields and rules of Kubernetes' v1 Lifecycle."""

import signal
from typing import Any

from rktd_units.fields import Faults, Place, Table, describe, not_supported, read_integer, read_mapping, read_table, read_text, suggest
from rktd_units.podfile.model import Probe
from rktd_units.podfile.probes import read_exec, read_http
from rktd_units.strictyaml import Mapping, Node

HOOKS = ("postStart", "preStop")
_SIGNALS = frozenset(
    [name for name in signal.Signals.__members__ if name not in ("SIGCLD", "SIGPOLL")]
    + [f"SIGRTMIN+{number}" for number in range(1, 16)]
    + [f"SIGRTMAX-{number}" for number in range(1, 15)]
)


def _read_hook(faults: Faults, node: Node, place: Place) -> Probe | None:
    """A handler, as a probe without the numbers; `timeout` are the seconds of a sleep."""
    values = read_mapping(faults, node, place, _HOOK)
    if not isinstance(node, Mapping) or "tcpSocket" in node.entries:
        return None
    given = [name for name in _HOOK if (at := node.get(name)) is not None and not at.is_null]
    if len(given) != 1:
        what = f"has {' and '.join(given)}: only one of them can be" if given else "needs one of exec, httpGet, sleep"
        faults.error(node.get(given[1]) or node if given else node, place, what)
        return None
    hook: Probe | None = values.get(given[0])
    return hook._replace(kind=str(place[1])) if hook and place else None


def _read_sleep(faults: Faults, node: Node, place: Place) -> Probe | None:
    values = read_mapping(faults, node, place, _SLEEP, required=("seconds",))
    return Probe("sleep", timeout=values["seconds"]) if "seconds" in values else None


def _read_signal(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is not None and text not in _SIGNALS:
        faults.error(node, place, f"must be a signal such as SIGTERM or SIGRTMIN+3, got {describe(node)}", suggest(f"SIG{text}", _SIGNALS))
        return None
    return text


def read_lifecycle(faults: Faults, node: Node, place: Place) -> dict[str, Any]:
    """Hooks by their names, and `stopSignal`."""
    values: dict[str, Any] = _READ_LIFECYCLE(faults, node, place) or {}
    return values


def refuse_lifecycle(faults: Faults, node: Node, place: Place) -> None:
    """An init container has none unless it is a sidecar, as in Kubernetes."""
    at = node.get("lifecycle") if isinstance(node, Mapping) else None
    if at is not None and not at.is_null:
        faults.error(at, (place, "lifecycle"), "an init container has no hooks, unless its restartPolicy is Always")


_SLEEP: Table = {"seconds": read_integer(0, 2**31 - 1)}
_HOOK: Table = {"exec": read_exec, "httpGet": read_http, "sleep": _read_sleep, "tcpSocket": not_supported}
_LIFECYCLE: Table = {"postStart": _read_hook, "preStop": _read_hook, "stopSignal": _read_signal}
_READ_LIFECYCLE = read_table(_LIFECYCLE)

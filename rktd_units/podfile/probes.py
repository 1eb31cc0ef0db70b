# SPDX-License-Identifier: Apache-2.0
"""startupProbe, readinessProbe and livenessProbe of a container: every field of Kubernetes' v1 Probe, with its rules and defaults."""

from typing import Any

from rktd_units.fields import (
    Faults,
    Place,
    Table,
    describe,
    items_of,
    read_choice,
    read_integer,
    read_list,
    read_mapping,
    read_text,
    text_of,
)
from rktd_units.podfile.model import Probe
from rktd_units.podfile.ports import parse_port
from rktd_units.strictyaml import Mapping, Node, Scalar

PROBES = {"startupProbe": "startup", "readinessProbe": "readiness", "livenessProbe": "liveness"}
_HANDLERS = ("exec", "grpc", "httpGet", "tcpSocket")
_HEADER_CHARACTERS = frozenset("-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # IsHTTPHeaderName of k8s.io/apimachinery


def read_probe(faults: Faults, node: Node, place: Place) -> Probe | None:
    """One probe; `place` ends in which of the three it is. A port is a number, or 0 and a name, for `resolve_ports`."""
    values = read_mapping(faults, node, place, _PROBE)
    if not isinstance(node, Mapping):
        return None
    given = [name for name in _HANDLERS if (at := node.get(name)) is not None and not at.is_null]
    if len(given) != 1:
        what = f"has {' and '.join(given)}: only one of them can be" if given else "needs one of " + ", ".join(_HANDLERS)
        faults.error(node.get(given[1]) or node if given else node, place, what)
        return None
    kind = PROBES[str(place[1])] if place else ""
    if kind != "readiness" and values.get("successThreshold", 1) > 1:
        faults.error(node.get("successThreshold") or node, (place, "successThreshold"), f"must be 1 for a {kind}Probe")
    if kind == "readiness" and "terminationGracePeriodSeconds" in values:
        at = node.get("terminationGracePeriodSeconds") or node
        faults.error(at, (place, "terminationGracePeriodSeconds"), "must not be set for a readinessProbe: it ends nothing")
    handler = values.get(given[0])
    if handler is None:
        return None
    found: Probe = handler
    return found._replace(
        kind=kind,
        delay=values.get("initialDelaySeconds", 0),
        period=values.get("periodSeconds") or 10,
        timeout=values.get("timeoutSeconds") or 1,
        successes=values.get("successThreshold") or 1,
        failures=values.get("failureThreshold") or 3,
        grace=values.get("terminationGracePeriodSeconds"),
    )


def resolve_ports(faults: Faults, node: Node, place: Place, values: dict[str, Any]) -> None:
    """Puts numbers in the place of ports' names, in all probes and hooks among the values of the container `node`."""
    ports = {text_of(item, "name"): text_of(item, "containerPort") for item in items_of(node, "ports")}
    lifecycle = node.get("lifecycle") if isinstance(node, Mapping) else None
    for holder, parent, here in ((values, node, place), (values.get("lifecycle", {}), lifecycle, (place, "lifecycle"))):
        for key, probe in holder.items():
            if not isinstance(probe, Probe) or not probe.port_name:
                continue
            if number := parse_port(ports.get(probe.port_name, "")):
                holder[key] = probe._replace(port=number, port_name="")
            elif probe.port_name not in ports:
                handler = "httpGet" if probe.handler == "http" else "tcpSocket"
                at = _find(_find(_find(parent, key), handler), "port")
                message = f"the container has no port called '{probe.port_name}'"
                faults.error(at or node, (((here, key), handler), "port"), message)


def _find(node: Node | None, key: str) -> Node | None:
    return node.get(key) if isinstance(node, Mapping) else None


def refuse_probes(faults: Faults, node: Node, place: Place) -> None:
    """An init container has none unless it is a sidecar, as in Kubernetes."""
    for key in PROBES:
        at = node.get(key) if isinstance(node, Mapping) else None
        if at is not None and not at.is_null:
            faults.error(at, (place, key), "an init container has no probes, unless its restartPolicy is Always")


def read_exec(faults: Faults, node: Node, place: Place) -> Probe | None:
    """The handler alone, as of a probe or of a hook."""
    command = read_mapping(faults, node, place, {"command": read_list(read_text)}, required=("command",)).get("command")
    if command == [] or (command and not command[0]):
        faults.error(node, (place, "command"), "must name a program")
        return None
    return Probe(handler="exec", command=tuple(command)) if command else None


def read_http(faults: Faults, node: Node, place: Place) -> Probe | None:
    """The same."""
    values = read_mapping(faults, node, place, _HTTP, required=("port",))
    if "port" not in values:
        return None
    number, name = values["port"]
    path = values.get("path") or "/"
    return Probe(
        handler="http",
        host=values.get("host", ""),
        port=number,
        port_name=name,
        path=path if path.startswith("/") else f"/{path}",
        tls=values.get("scheme") == "HTTPS",
        headers=tuple(values.get("httpHeaders", ())),
    )


def _read_tcp(faults: Faults, node: Node, place: Place) -> Probe | None:
    values = read_mapping(faults, node, place, _TCP, required=("port",))
    if "port" not in values:
        return None
    return Probe(handler="tcp", host=values.get("host", ""), port=values["port"][0], port_name=values["port"][1])


def _read_grpc(faults: Faults, node: Node, place: Place) -> Probe | None:
    values = read_mapping(faults, node, place, _GRPC, required=("port",))
    return Probe(handler="grpc", port=values["port"], path=values.get("service", "")) if "port" in values else None


def _read_port(faults: Faults, node: Node, place: Place) -> tuple[int, str] | None:
    if isinstance(node, Scalar) and not (node.plain and node.text.lstrip("+-").isdecimal()):
        name = read_text(faults, node, place)
        if name is not None and name.isdecimal():
            faults.error(node, place, f"must be a number or the name of a port, got the string {describe(node)}", f"write {name}")
            return None
        if name == "":
            faults.error(node, place, "must not be empty")
        return (0, name) if name else None
    number = read_integer(1, 65535)(faults, node, place)
    return None if number is None else (number, "")


def _read_host(faults: Faults, node: Node, place: Place) -> str | None:
    """An address: a name would have to be looked up at each probe, which may take longer than the probe."""
    text = read_text(faults, node, place)
    if not text:
        return None
    if text == "localhost":
        return "127.0.0.1"
    from ipaddress import ip_address  # only for pods that use it: the generator starts without it

    try:
        return str(ip_address(text))
    except ValueError:
        faults.error(node, place, f"must be an IP address or localhost, got {text!a}", "a virtual host is a header: httpHeaders, Host")
        return None


def _read_path(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is not None and not (text.isascii() and text.isprintable() and " " not in text):
        faults.error(node, place, f"must be a path as in a URL, got {text!a}", "other characters are %XX in it")
        return None
    return text


def _read_header(faults: Faults, node: Node, place: Place) -> tuple[str, str] | None:
    values = read_mapping(faults, node, place, _HEADER, required=("name", "value"))
    return (values["name"], values["value"]) if "name" in values and "value" in values else None


def _read_header_name(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is not None and not (text and set(text) <= _HEADER_CHARACTERS):
        faults.error(node, place, f"must be letters, digits and dashes, got {text!a}")
        return None
    return text


def _read_header_value(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is not None and not text.replace("\t", " ").isprintable():
        faults.error(node, place, f"must not contain control characters, got {text!a}")
        return None
    return text


def _read_service(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is not None and len(text.encode()) > _SERVICE_MAX:
        faults.error(node, place, f"must not be longer than {_SERVICE_MAX} bytes")
        return None
    return text


_SERVICE_MAX = 1024  # so that a request is one small frame
_MAX = 2**31 - 1
_SECONDS = read_integer(0, _MAX)  # 0 is the default, as in Kubernetes
_HEADER: Table = {"name": _read_header_name, "value": _read_header_value}
_TCP: Table = {"host": _read_host, "port": _read_port}
_HTTP: Table = {
    "host": _read_host,
    "httpHeaders": read_list(_read_header),
    "path": _read_path,
    "port": _read_port,
    "scheme": read_choice("HTTP", "HTTPS"),
}
_GRPC: Table = {"port": read_integer(1, 65535), "service": _read_service}
_PROBE: Table = {
    "exec": read_exec,
    "failureThreshold": _SECONDS,
    "grpc": _read_grpc,
    "httpGet": read_http,
    "initialDelaySeconds": _SECONDS,
    "periodSeconds": _SECONDS,
    "successThreshold": _SECONDS,
    "tcpSocket": _read_tcp,
    "terminationGracePeriodSeconds": read_integer(1, _MAX),
    "timeoutSeconds": _SECONDS,
}

# SPDX-License-Identifier: Apache-2.0
"""Names of pods, apps, units and machines: what is valid, and how one follows from the other. Pure."""

POD_NAME_MAX = 63  # a machine name is a host name: 64 at most (hostname_is_valid in systemd), and the kernel's limit
RESERVED_APP_NAMES = frozenset({"dbus", "systemd-exit", "systemd-halt", "systemd-poweroff", "systemd-reboot"})  # units of stage2 itself

_LABEL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def is_label(name: str) -> bool:
    """A DNS label as RFC 1123 and Kubernetes have it: lower case, digits, inner dashes, at most 63."""
    return 0 < len(name) <= 63 and set(name) <= _LABEL and not name.startswith("-") and not name.endswith("-")


def is_pod_name(name: str) -> bool:
    """One or more labels with dots between, 63 characters at most in all."""
    return len(name) <= POD_NAME_MAX and all(is_label(part) for part in name.split("."))


def pod_unit(name: str) -> str:
    """pod@NAME.service. A pod name needs no escaping; use %i, never %I, in units: a dash in it is a dash."""
    return f"pod@{name}.service"


def pod_socket(name: str) -> str:
    """pod@NAME.socket: what the host's systemd listens on for the pod."""
    return f"pod@{name}.socket"


def listen_address(address: str, port: int) -> str:
    """As ListenStream= has it (systemd.socket(5)); "" is every address, of both families."""
    if not address:
        return str(port)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def stage0_unit(name: str) -> str:
    """pod-stage0@NAME.service."""
    return f"pod-stage0@{name}.service"


def exec_socket(name: str) -> str:
    """rktd-exec@NAME.socket: where exec probes are run for the pod."""
    return f"rktd-exec@{name}.socket"


def app_unit(app: str) -> str:
    """The unit of an app inside the pod."""
    return f"{app}.service"

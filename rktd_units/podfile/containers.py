# SPDX-License-Identifier: Apache-2.0
"""The `containers` list of a pod file: every field of Kubernetes' v1 Container, and what becomes of it."""

from typing import Any

from rktd_units.fields import (
    Faults,
    Place,
    Table,
    ignored,
    items_of,
    not_yet,
    not_yet_true,
    place_of,
    read_boolean,
    read_choice,
    read_integer,
    read_list,
    read_mapping,
    read_table,
    read_text,
    refuse_repeated,
    suggest,
    text_of,
)
from rktd_units.names import RESERVED_APP_NAMES, is_label
from rktd_units.podfile.environment import read_env, read_env_from
from rktd_units.podfile.images import default_pull_policy, read_image
from rktd_units.podfile.lifecycle import HOOKS, read_lifecycle, refuse_lifecycle
from rktd_units.podfile.model import Container, Port, Resources, Security, VolumeMount
from rktd_units.podfile.network import read_host_ip, read_host_port
from rktd_units.podfile.probes import PROBES, read_probe, refuse_probes, resolve_ports
from rktd_units.podfile.profiles import read_apparmor, read_profile, read_selinux
from rktd_units.podfile.resources import read_resources
from rktd_units.strictyaml import Mapping, Node, Scalar

LABEL_HINT = "lower case letters, digits and dashes between them, 63 characters at most"
_PORT_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")

# Files of which other versions exist (lxcfs): what runc's checkProcMount lets through, but for settings.
_PROC_FILES = frozenset(f"/proc/{name}" for name in ("cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime"))
_RESERVED_PATHS = (  # these and what is below them; of /dev only itself
    ("/proc", "what is in /proc is the kernel's, but for cpuinfo, diskstats, loadavg, meminfo, slabinfo, stat, swaps and uptime"),
    ("/sys", "what is in /sys is the kernel's"),
    ("/dev", "it would hide the devices that every program needs; places below it are fine"),
    ("/dev/mqueue", "it has the pod's message queues"),
    ("/dev/pts", "it has the app's terminals"),
)

_KERNEL = """AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID
    IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON
    SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE
    SYS_TIME SYS_TTY_CONFIG WAKE_ALARM"""
CAPABILITIES = frozenset(_KERNEL.split())  # all 41 of include/uapi/linux/capability.h


def read_label(faults: Faults, node: Node, place: Place) -> str | None:
    """A DNS label."""
    text = read_text(faults, node, place)
    if text is not None and not is_label(text):
        faults.error(node, place, f"'{text}' is not a valid name", LABEL_HINT)
        return None
    return text


def read_path(faults: Faults, node: Node, place: Place) -> str | None:
    """An absolute path without `..`, normalised."""
    text = read_text(faults, node, place)
    if text is None:
        return None
    parts = text.split("/")
    if not text.startswith("/"):
        faults.error(node, place, f"must be absolute, got '{text}'")
    elif ".." in parts:
        faults.error(node, place, f"must not contain '..', got '{text}'")
    elif not text.isprintable():
        faults.error(node, place, f"must not contain control characters, got {text!a}")
    else:
        return "/" + "/".join(part for part in parts if part not in ("", "."))
    return None


read_id = read_integer(0, 65535, "a pod has the ids 0 to 65535: no other can exist in it")


def read_init_container(faults: Faults, node: Node, place: Place) -> tuple[dict[str, Any], Node]:
    """As `read_container`: one of `initContainers`, which may be a sidecar (restartPolicy: Always)."""
    return read_container(faults, node, place, INIT_CONTAINER)


def read_container(faults: Faults, node: Node, place: Place, table: Table | None = None) -> tuple[dict[str, Any], Node]:
    """The values of one container, not yet a model: its securityContext is completed by the pod's in `build_container`."""
    values = read_mapping(faults, node, place, table or CONTAINER, required=("name", "image"))
    if isinstance(node, Mapping):
        refuse_repeated(faults, node.get("env"), (place, "env"), ("name",))
        if not any(text_of(port, "hostPort") for port in items_of(node, "ports")):  # one port may be several of the host
            refuse_repeated(faults, node.get("ports"), (place, "ports"), ("containerPort", "protocol"), ("TCP",))
        refuse_repeated(faults, node.get("ports"), (place, "ports"), ("name",))
        _refuse_mounts_at_one_path(faults, node, place)
        resolve_ports(faults, node, place, values)
        if table is INIT_CONTAINER and not values.get("restartPolicy"):
            refuse_probes(faults, node, place)
            refuse_lifecycle(faults, node, place)
    return values, node


def build_container(
    faults: Faults, draft: tuple[dict[str, Any], Node], place: Place, pod_security: dict[str, Any], *, is_init: bool = False
) -> Container:
    """The model of a container that was read without a fault."""
    values, node = draft
    image, lifecycle = values.get("image", ""), values.get("lifecycle", {})
    return Container(
        name=values.get("name", ""),
        image=image,
        pull_policy=values.get("imagePullPolicy") or default_pull_policy(image),
        command=tuple(values["command"]) if values.get("command") else None,
        args=tuple(values["args"]) if values.get("args") else None,
        working_dir=values.get("workingDir", ""),
        env=tuple(values.get("env", ())),
        env_from=tuple(values.get("envFrom", ())),
        mounts=tuple(values.get("volumeMounts", ())),
        ports=tuple(values.get("ports", ())),
        resources=values.get("resources", Resources()),
        security=_build_security(faults, values.get("securityContext", {}), pod_security, node, (place, "securityContext")),
        role="app" if not is_init else "sidecar" if values.get("restartPolicy") else "init",
        probes=tuple(values[key] for key in PROBES if key in values),
        hooks=tuple(lifecycle[key] for key in HOOKS if key in lifecycle),
        stop_signal=lifecycle.get("stopSignal", ""),
    )


def _build_security(faults: Faults, own: dict[str, Any], pod: dict[str, Any], node: Node, place: Place) -> Security:
    context = (node.get("securityContext") if isinstance(node, Mapping) else None) or node
    values = {key: pod[key] for key in _INHERITED if key in pod} | own
    user, group, non_root = values.get("runAsUser"), values.get("runAsGroup"), values.get("runAsNonRoot", False)
    privileged, escalation = values.get("privileged", False), values.get("allowPrivilegeEscalation")
    added, dropped = values.get("capabilities", ((), ()))
    if non_root and user == 0:
        faults.error(context, (place, "runAsUser"), "is 0, but runAsNonRoot is true")
    if escalation is False and privileged:
        faults.error(context, (place, "allowPrivilegeEscalation"), "must not be false when privileged is true")
    return Security(
        run_as_user=user,
        run_as_group=group,
        run_as_non_root=non_root,
        read_only_root=values.get("readOnlyRootFilesystem", False),
        allow_escalation=privileged if escalation is None else escalation,
        privileged=privileged,
        add_capabilities=added,
        drop_capabilities=dropped,
        seccomp=values.get("seccompProfile", "RuntimeDefault"),
        proc_mount=values.get("procMount", "Default"),
        apparmor=values.get("appArmorProfile", ""),
        selinux=values.get("seLinuxOptions"),
    )


_INHERITED = ("runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile", "appArmorProfile", "seLinuxOptions")


def _read_name(faults: Faults, node: Node, place: Place) -> str | None:
    name = read_label(faults, node, place)
    if name in RESERVED_APP_NAMES:
        faults.error(node, place, f"'{name}' is reserved: the pod's own systemd has a unit of that name")
        return None
    return name


def _read_port(faults: Faults, node: Node, place: Place) -> Port | None:
    values = read_mapping(faults, node, place, _PORT, required=("containerPort",))
    if "containerPort" not in values:
        return None
    at = node.get("hostPort") if isinstance(node, Mapping) else None
    mark = (at.line, at.column) if at else (0, 0)
    protocol, name = values.get("protocol", "TCP"), values.get("name", "")
    return Port(values["containerPort"], protocol, name, values.get("hostPort", 0), values.get("hostIP", ""), mark)


def _read_port_name(faults: Faults, node: Node, place: Place) -> str | None:
    name = read_text(faults, node, place)
    if name is None:
        return None
    dashes = name.startswith("-") or name.endswith("-") or "--" in name
    if not (0 < len(name) <= 15 and set(name) <= _PORT_NAME and not dashes and any(c.isalpha() for c in name)):
        faults.error(
            node,
            place,
            f"'{name}' is not the name of a port",
            "15 lower case letters, digits and single dashes at most, one letter at least",
        )
        return None
    return name


def _read_mount(faults: Faults, node: Node, place: Place) -> VolumeMount | None:
    values = read_mapping(faults, node, place, _MOUNT, required=("name", "mountPath"))
    if "recursiveReadOnly" in values and not values.get("readOnly"):
        faults.error(node, (place, "recursiveReadOnly"), "needs readOnly: true")
    if "name" not in values or "mountPath" not in values:
        return None
    if "subPath" in values and "subPathExpr" in values:
        faults.error(node, (place, "subPathExpr"), "cannot be beside subPath")
    read_only = values.get("readOnly", False)
    return VolumeMount(values["name"], values["mountPath"], values.get("subPath", ""), read_only, values.get("subPathExpr", ""))


def _read_mount_path(faults: Faults, node: Node, place: Place) -> str | None:
    path = read_path(faults, node, place)
    if path is not None and ":" in path:
        faults.error(node, place, f"must not contain ':', got '{path}'")
        return None
    if path == "/":
        faults.error(node, place, "must not be the root of the container")
        return None
    for reserved, reason in _RESERVED_PATHS if path not in _PROC_FILES else ():
        if path == reserved or (path is not None and path.startswith(reserved + "/") and reserved != "/dev"):
            faults.error(node, place, f"no volume can be at '{path}': {reason}")
            return None
    return path


def read_sub_path(faults: Faults, node: Node, place: Place) -> str | None:
    """A path that leads nowhere above where it starts, normalised."""
    text = read_text(faults, node, place)
    if text is None:
        return None
    parts = text.split("/")
    if text.startswith("/"):
        faults.error(node, place, f"must be relative, got '{text}'")
    elif ".." in parts:
        faults.error(node, place, f"must not contain '..', got '{text}'")
    elif not text.isprintable():
        faults.error(node, place, f"must not contain control characters, got {text!a}")
    else:
        return "/".join(part for part in parts if part not in ("", "."))
    return None


def _refuse_mounts_at_one_path(faults: Faults, node: Mapping, place: Place) -> None:
    seen: dict[str, Scalar] = {}
    for index, item in enumerate(items_of(node, "volumeMounts")):
        path_node = item.get("mountPath") if isinstance(item, Mapping) else None
        path = read_path(Faults(), path_node, None) if isinstance(path_node, Scalar) else None
        if path is None or not isinstance(path_node, Scalar):
            continue
        first = seen.setdefault(path, path_node)
        if first is not path_node:
            faults.error(
                path_node, (((place, "volumeMounts"), index), "mountPath"), f"'{path}' is repeated, first in {place_of(first, item)}"
            )


def _read_capability(faults: Faults, node: Node, place: Place) -> str | None:
    text = read_text(faults, node, place)
    if text is None or text == "ALL" or text in CAPABILITIES:
        return text
    bare = text.upper().removeprefix("CAP_")
    hint = f"write {bare}" if bare in CAPABILITIES or bare == "ALL" else suggest(bare, CAPABILITIES)
    faults.error(node, place, f"'{text}' is not a capability", hint)
    return None


def _read_capabilities(faults: Faults, node: Node, place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    values = read_mapping(faults, node, place, _CAPABILITIES)
    return tuple(sorted(set(values.get("add", ())))), tuple(sorted(set(values.get("drop", ()))))


def read_seccomp(faults: Faults, node: Node, place: Place) -> str | None:
    """A seccompProfile: its type; localhost/PATH for a profile of the host's own."""
    return read_profile(faults, node, place, _SECCOMP)


_PORT: Table = {
    "containerPort": read_integer(1, 65535),
    "hostIP": read_host_ip,  # the pod level knows whether these two may stand here
    "hostPort": read_host_port,
    "name": _read_port_name,
    "protocol": read_choice("TCP", "UDP", "SCTP"),
}
_MOUNT: Table = {
    "mountPath": _read_mount_path,
    "mountPropagation": read_choice("None", later=("HostToContainer", "Bidirectional")),
    "name": read_label,
    "readOnly": read_boolean,
    "recursiveReadOnly": read_choice("Enabled", "IfPossible", later=("Disabled",)),  # readOnly is recursive here anyway
    "subPath": read_sub_path,
    "subPathExpr": read_sub_path,
}
_CAPABILITIES: Table = {"add": read_list(_read_capability), "drop": read_list(_read_capability)}
_SECCOMP: Table = {"localhostProfile": read_sub_path, "type": read_choice("RuntimeDefault", "Unconfined", "Localhost")}
_SECURITY: Table = {
    "allowPrivilegeEscalation": read_boolean,
    "appArmorProfile": read_apparmor,
    "capabilities": _read_capabilities,
    "privileged": read_boolean,
    "procMount": read_choice("Default", "Unmasked"),
    "readOnlyRootFilesystem": read_boolean,
    "runAsGroup": read_id,
    "runAsNonRoot": read_boolean,
    "runAsUser": read_id,
    "seLinuxOptions": read_selinux,
    "seccompProfile": read_seccomp,
    "windowsOptions": ignored,
}
CONTAINER: Table = {
    "args": read_list(read_text),
    "command": read_list(read_text),
    "env": read_list(read_env),
    "envFrom": read_list(read_env_from),
    "image": read_image,
    "imagePullPolicy": read_choice("Always", "IfNotPresent", "Never"),
    "lifecycle": read_lifecycle,
    "livenessProbe": read_probe,
    "name": _read_name,
    "ports": read_list(_read_port),
    "readinessProbe": read_probe,
    "resizePolicy": ignored,
    "resources": read_resources,
    "restartPolicy": not_yet,
    "restartPolicyRules": not_yet,
    "securityContext": read_table(_SECURITY),
    "startupProbe": read_probe,
    "stdin": not_yet_true,
    "stdinOnce": not_yet_true,
    "terminationMessagePath": ignored,
    "terminationMessagePolicy": ignored,
    "tty": not_yet_true,
    "volumeDevices": not_yet,
    "volumeMounts": read_list(_read_mount),
    "workingDir": read_path,
}
INIT_CONTAINER: Table = CONTAINER | {"restartPolicy": read_choice("Always", later=("OnFailure", "Never"))}

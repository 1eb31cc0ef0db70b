# SPDX-License-Identifier: Apache-2.0
"""What options of containers that podman and docker share are in a pod file. Each takes the app, the node with the text, its place."""

import json
import os
import signal
from collections.abc import Callable

from rktd_units.convert.draft import AUTO_UPDATE, App
from rktd_units.convert.words import escape_variables, parse_ids, parse_mount, parse_ports, parse_seconds, parse_size
from rktd_units.errors import ImageError
from rktd_units.fields import Place, describe
from rktd_units.images.reference import REGISTRY, parse_reference
from rktd_units.podfile.containers import CAPABILITIES
from rktd_units.sourcefile import MAX_BYTES
from rktd_units.strictyaml import Node, Scalar

Option = Callable[[App, Scalar, Place], None]
_FINE = frozenset({"ro", "rw", "nosuid", "nodev", "private", "rprivate", "rbind", "bind", "cached", "delegated", "consistent", "nocopy"})
_LABELS = frozenset({"z", "Z"})
_TRUE = frozenset({"1", "yes", "true", "on", "y", "t"})
_FALSE = frozenset({"0", "no", "false", "off", "n", "f", ""})
_PULL = {"always": "Always", "newer": "Always", "missing": "IfNotPresent", "if_not_present": "IfNotPresent", "never": "Never"}


def read_switch(app: App, node: Scalar, place: Place) -> bool | None:
    """A bool as systemd and Go take them; None, and a fault, for another word."""
    if node.text.lower() in _TRUE | _FALSE:
        return node.text.lower() in _TRUE
    app.findings.error(node, place, f"must be true or false, got '{node.text}'")
    return None


def one_value(option: Option) -> Callable[[App, Node, Place], None]:
    """For a key that has one value, in files where it could be a list or a map."""

    def read(app: App, node: Node, place: Place) -> None:
        if isinstance(node, Scalar):
            option(app, node, place)
        else:
            app.findings.error(node, place, f"must be a single value, got {describe(node)}")

    return read


def refuse(why: str, hint: str = "") -> Option:
    """Something that pods do not have."""
    return lambda app, node, place: app.findings.lose(node, place, why, hint)


def unless(fine: tuple[str, ...], why: str, hint: str = "") -> Option:
    """Something that pods do not have, unless it says what they do anyway."""

    def check(app: App, node: Scalar, place: Place) -> None:
        if node.text.lower() not in fine:
            app.findings.lose(node, place, f"{why}, got '{node.text}'", hint)

    return check


def warn(message: str) -> Option:
    """Something that is done in another way here, or by somebody else."""
    return lambda app, node, place: app.findings.warning(node, place, message)


def accept(app: App, node: Scalar, place: Place) -> None:
    """What pods do anyway, or what has no effect."""


def take_image(app: App, node: Scalar, place: Place) -> None:
    text = node.text.removeprefix("docker://")
    try:
        reference = parse_reference(text)
    except ImageError as error:
        app.findings.lose(node, place, f"'{text}' is not an image of a pod: {error}", error.hint)
        return
    app.container["image"] = text
    if reference.kind == REGISTRY and reference.host == "localhost":
        hint = f"podman save --format=oci-archive -o FILE {text}, then image: oci-archive:FILE@sha256:..."
        app.findings.lose(node, place, "the image is in podman's own store", hint)
    elif not reference.digest:
        app.findings.warning(node, place, f"'{text}' has no digest: it runs only if it is signed, or under `insecure:` (rktd-trust(7))")


def set_command(app: App, words: list[str]) -> None:
    app.container["command"] = [escape_variables(word) for word in words]


def set_arguments(app: App, words: list[str]) -> None:
    app.container["args"] = [escape_variables(word) for word in words]


def set_variable(app: App, name: str, value: str) -> None:
    """The last one of a name counts."""
    env = app.container.setdefault("env", [])
    env[:] = [known for known in env if known["name"] != name] + [{"name": name, "value": escape_variables(value)}]


def add_variable(app: App, node: Scalar, place: Place) -> None:
    name, equals, value = node.text.partition("=")
    if equals:
        set_variable(app, name, value)
    else:
        app.findings.lose(node, place, f"the variable '{name}' is to come from who starts the container", "give it a value")


def add_quoted_file(app: App, node: Scalar, place: Place) -> None:
    """Compose takes quotes around a value away, podman does not."""
    add_environment_file(app, node, place, quoted=True)


def add_environment_file(app: App, node: Scalar, place: Place, *, quoted: bool = False) -> None:
    """Its variables as a ConfigMap beside the pod."""
    path = os.path.normpath(os.path.join(app.base, node.text.removeprefix("-")))
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not UTF-8"
        app.findings.lose(node, place, f"'{path}' cannot be read: {reason}")
        return
    data: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not name or name.startswith("#"):
            continue
        if not equals:
            app.findings.lose(node, place, f"'{path}': the variable '{name}' has no value")
        data[name] = value[1:-1] if quoted and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
    name = app.pod.add_config(os.path.basename(path), data)
    app.append("envFrom", {"configMapRef": {"name": name}})
    app.findings.warning(node, place, f"'{path}' is now the ConfigMap '{name}' of the pod; what of it is secret belongs into a Secret")


def add_port(app: App, node: Scalar, place: Place) -> None:
    try:
        ports = parse_ports(node.text)
    except ValueError as error:
        app.findings.lose(node, place, str(error))
        return
    for port in ports:
        app.append("ports", port)


def expose_port(app: App, node: Scalar, place: Place) -> None:
    """A port without one of the host."""
    if ":" in node.text:
        app.findings.error(node, place, f"must be PORT[/udp], got '{node.text}'")
    else:
        add_port(app, node, place)


def add_volume(app: App, node: Scalar, place: Place) -> None:
    """`SOURCE:TARGET:OPTIONS`: a path is one of the host, a name a claim, nothing an empty directory."""
    try:
        source, target, options = parse_mount(node.text)
    except ValueError as error:
        app.findings.lose(node, place, str(error))
        return
    for option in options:
        if option in _LABELS:
            app.findings.warning(node, place, f"'{option}': the host's files keep their SELinux labels")
        elif option not in _FINE:
            app.findings.lose(node, place, f"the option '{option}' of a volume")
    mount(app, node, place, source, target, read_only="ro" in options)


def mount(app: App, node: Scalar, place: Place, source: str, target: str, *, read_only: bool = False) -> None:
    """Mounts a path of the host, a claim (a name), or an empty directory."""
    if source.startswith("~"):
        app.findings.lose(node, place, f"whose home directory is '{source}'?", "write the path out")
        return
    if source.startswith(("/", ".")):
        path = os.path.normpath(os.path.join(app.base, source))
        name = app.pod.add_volume(os.path.basename(path), {"hostPath": {"path": path}})
    elif source:
        name = app.pod.add_volume(source, {"persistentVolumeClaim": {"claimName": source}})
        app.findings.warning(
            node, place, f"the volume '{source}' begins empty: what the image has at {target} is not copied; podctl volume import fills it"
        )
    else:
        name = app.pod.add_volume(target, {"emptyDir": {}})
    app.append("volumeMounts", {"name": name, "mountPath": target, **({"readOnly": True} if read_only else {})})


def mount_memory(app: App, target: str, size: str = "") -> None:
    """A tmpfs."""
    name = app.pod.add_volume(target, {"emptyDir": {"medium": "Memory", **({"sizeLimit": size} if size else {})}})
    app.append("volumeMounts", {"name": name, "mountPath": target})


def add_tmpfs(app: App, node: Scalar, place: Place) -> None:
    """`TARGET[:OPTIONS]`."""
    target, _, rest = node.text.partition(":")
    size = ""
    for option in filter(None, rest.split(",")):
        key, _, value = option.partition("=")
        if key == "size":
            size = _size(app, node, place, value)
        elif option not in ("rw", "nosuid", "nodev", "mode=1777", "mode=777", "mode=0777"):
            app.findings.lose(node, place, f"the option '{option}' of a tmpfs")
    mount_memory(app, target, size)


def set_shared_memory(app: App, node: Scalar, place: Place) -> None:
    mount_memory(app, "/dev/shm", _size(app, node, place, node.text))


def _size(app: App, node: Scalar, place: Place, text: str) -> str:
    try:
        return parse_size(text)
    except ValueError as error:
        app.findings.error(node, place, str(error))
        return ""


def set_memory(app: App, node: Scalar, place: Place) -> None:
    app.inner("resources").setdefault("limits", {})["memory"] = _size(app, node, place, node.text)


def request_memory(app: App, node: Scalar, place: Place) -> None:
    app.inner("resources").setdefault("requests", {})["memory"] = _size(app, node, place, node.text)


def set_cpus(app: App, node: Scalar, place: Place) -> None:
    app.inner("resources").setdefault("limits", {})["cpu"] = node.text


def request_cpus(app: App, node: Scalar, place: Place) -> None:
    app.inner("resources").setdefault("requests", {})["cpu"] = node.text


def set_user(app: App, node: Scalar, place: Place) -> None:
    try:
        app.inner("securityContext").update(parse_ids(node.text))
    except ValueError as error:
        app.findings.lose(node, place, str(error))


def set_group(app: App, node: Scalar, place: Place) -> None:
    if node.text.isdecimal():
        app.inner("securityContext")["runAsGroup"] = int(node.text)
    else:
        app.findings.lose(node, place, f"must be digits, got '{node.text}': the image's /etc/group has them")


def add_group(app: App, node: Scalar, place: Place) -> None:
    if node.text.isdecimal():
        app.pod.spec.setdefault("securityContext", {}).setdefault("supplementalGroups", []).append(int(node.text))
    else:
        app.findings.lose(node, place, f"must be digits, got '{node.text}': the image's /etc/group has them")


def add_capability(app: App, node: Scalar, place: Place) -> None:
    _change_capabilities(app, node, place, "add")


def drop_capability(app: App, node: Scalar, place: Place) -> None:
    _change_capabilities(app, node, place, "drop")


def _change_capabilities(app: App, node: Scalar, place: Place, how: str) -> None:
    name = node.text.upper().removeprefix("CAP_")
    if name not in CAPABILITIES and name != "ALL":
        app.findings.error(node, place, f"'{node.text}' is not a capability")
    app.inner("securityContext").setdefault("capabilities", {}).setdefault(how, []).append(name)


def set_read_only(app: App, node: Scalar, place: Place) -> None:
    if read_switch(app, node, place):
        app.inner("securityContext")["readOnlyRootFilesystem"] = True


def set_privileged(app: App, node: Scalar, place: Place) -> None:
    if read_switch(app, node, place):
        app.inner("securityContext")["privileged"] = True
        app.findings.warning(node, place, "privileged within the pod's user namespace: the host is out of reach unless hostUsers: true")


def set_no_new_privileges(app: App, node: Scalar, place: Place) -> None:
    """The default here; what wants set-user-ID programs must say so."""
    if read_switch(app, node, place) is False:
        app.inner("securityContext")["allowPrivilegeEscalation"] = True


def set_seccomp(app: App, node: Scalar, place: Place) -> None:
    if node.text == "unconfined":
        app.inner("securityContext")["seccompProfile"] = {"type": "Unconfined"}
    elif node.text.startswith("/etc/rktd/seccomp/"):
        path = node.text.removeprefix("/etc/rktd/seccomp/")
        app.inner("securityContext")["seccompProfile"] = {"type": "Localhost", "localhostProfile": path}
    else:
        hint = f"cp {node.text} /etc/rktd/seccomp/, and name it there"
        app.findings.lose(node, place, "profiles of pods are below /etc/rktd/seccomp", hint)


def set_apparmor(app: App, node: Scalar, place: Place) -> None:
    profile = {"type": "Unconfined"} if node.text == "unconfined" else {"type": "Localhost", "localhostProfile": node.text}
    app.inner("securityContext")["appArmorProfile"] = profile


def set_label(part: str) -> Option:
    """A part of seLinuxOptions."""

    def apply(app: App, node: Scalar, _: Place) -> None:
        app.inner("securityContext").setdefault("seLinuxOptions", {})[part] = node.text

    return apply


def set_task_limit(app: App, node: Scalar, place: Place) -> None:
    """-1 and 0 are none."""
    if node.text.isdecimal() and int(node.text):
        app.inner("resources").setdefault("limits", {})["systemd.io/pids"] = int(node.text)
    elif node.text not in ("-1", "0"):
        app.findings.error(node, place, f"must be a number, got '{node.text}'")


def set_working_directory(app: App, node: Scalar, place: Place) -> None:
    app.container["workingDir"] = node.text


def set_pull_policy(app: App, node: Scalar, place: Place) -> None:
    if node.text in _PULL:
        app.container["imagePullPolicy"] = _PULL[node.text]
    else:
        app.findings.lose(node, place, f"must be one of {', '.join(_PULL)}, got '{node.text}'")


def set_init(app: App, node: Scalar, place: Place) -> None:
    """Without it an app is PID 1 of its own name space; shared, the pod's systemd reaps what it leaves."""
    if read_switch(app, node, place):
        app.pod.spec["shareProcessNamespace"] = True


def set_grace(app: App, node: Scalar, place: Place) -> None:
    try:
        seconds = parse_seconds(node.text)
    except ValueError as error:
        app.findings.error(node, place, str(error))
        return
    app.pod.spec["terminationGracePeriodSeconds"] = max(seconds, app.pod.spec.get("terminationGracePeriodSeconds", 0))


def set_stop_signal(app: App, node: Scalar, place: Place) -> None:
    try:
        name = signal.Signals(int(node.text)).name if node.text.isdecimal() else f"SIG{node.text.upper().removeprefix('SIG')}"
    except ValueError:
        name = node.text
    app.inner("lifecycle")["stopSignal"] = name


def set_hostname(app: App, node: Scalar, place: Place) -> None:
    app.pod.spec["hostname"] = node.text


def add_host(app: App, node: Scalar, place: Place) -> None:
    """`NAME:IP`, or `NAME=IP`."""
    at = min((index for sign in ":=" if (index := node.text.find(sign)) > 0), default=0)
    name, address = node.text[:at], node.text[at + 1 :].strip("[]")
    if not name or address == "host-gateway":
        why = "the host is the gateway of the pod's network" if name else f"must be NAME:IP, got '{node.text}'"
        app.findings.lose(node, place, why)
        return
    aliases = app.pod.spec.setdefault("hostAliases", [])
    known = next((alias for alias in aliases if alias["ip"] == address), None)
    if known is None:
        aliases.append({"ip": address, "hostnames": [name]})
    else:
        known["hostnames"].append(name)


def add_name_server(app: App, node: Scalar, place: Place) -> None:
    app.pod.spec["dnsPolicy"] = "None"
    app.pod.spec.setdefault("dnsConfig", {}).setdefault("nameservers", []).append(node.text)
    app.findings.warning(node, place, "with name servers of its own a pod does not know the names of other pods")


def add_search_domain(app: App, node: Scalar, place: Place) -> None:
    app.pod.spec.setdefault("dnsConfig", {}).setdefault("searches", []).append(node.text)


def add_dns_option(app: App, node: Scalar, place: Place) -> None:
    name, colon, value = node.text.partition(":")
    option = {"name": name, **({"value": value} if colon else {})}
    app.pod.spec.setdefault("dnsConfig", {}).setdefault("options", []).append(option)


def add_sysctl(app: App, node: Scalar, place: Place) -> None:
    name, _, value = node.text.partition("=")
    app.pod.spec.setdefault("securityContext", {}).setdefault("sysctls", []).append({"name": name, "value": value})


def add_label(app: App, node: Scalar, place: Place) -> None:
    """An annotation: its values are free, and labels of docker's are not used to select."""
    key, _, value = node.text.partition("=")
    if key == AUTO_UPDATE:
        app.pod.set_update(node, place, value)
    else:
        app.pod.annotations[key] = value


def set_update(app: App, node: Scalar, place: Place) -> None:
    """`registry`, or `IMAGE/registry` in a .kube file."""
    name, _, policy = node.text.rpartition("/")
    if name:
        app.findings.warning(node, place, "all images of a pod are updated together")
    app.pod.set_update(node, place, policy)


def set_health_command(app: App, node: Scalar, place: Place) -> None:
    """`none`, a JSON list, or a line for the shell."""
    text = node.text
    words = None
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            words = None
    if words is None:
        words = ["CMD-SHELL", text.removeprefix("CMD-SHELL ")]
    set_health_words(app, node, place, words)


def set_health_words(app: App, node: Scalar, place: Place, words: list[str]) -> None:
    """A list as docker has it: NONE, CMD and words, or CMD-SHELL and a line."""
    if (words and words[0].upper() == "NONE") or words == ["CMD-SHELL", "none"]:
        return
    if words[:1] == ["CMD-SHELL"]:
        words = ["/bin/sh", "-c", *words[1:]]
    elif words[:1] == ["CMD"]:
        words = words[1:]
    if not words:
        app.findings.error(node, place, "must name a program")
        return
    app.health["exec"] = {"command": words}


def set_health_time(key: str) -> Option:
    """A duration of the health check."""

    def read(app: App, node: Scalar, place: Place) -> None:
        try:
            app.health[key] = parse_seconds(node.text)
        except ValueError as error:
            app.findings.error(node, place, str(error))

    return read


def set_health_retries(app: App, node: Scalar, place: Place) -> None:
    if node.text.isdecimal():
        app.health["failureThreshold"] = int(node.text)
    else:
        app.findings.error(node, place, f"must be a number, got '{node.text}'")


def place_probe(app: App, kind: str, defaults: dict[str, int]) -> None:
    """The health check as a probe: `readinessProbe` where it only says how the app is, `livenessProbe` where it restarts it."""
    if "exec" in app.health:
        probe = {"exec": app.health.pop("exec"), **defaults, **app.health}
        app.container[kind] = {key: value for key, value in probe.items() if value or key == "exec"}

# SPDX-License-Identifier: Apache-2.0
"""docker-compose files (the Compose specification): each service is a pod of its name, since pods find each other by that."""

import os
import shlex
from collections.abc import Callable

from rktd_units.convert import options
from rktd_units.convert.draft import App, Findings, PodDraft, order_keys
from rktd_units.convert.options import Option
from rktd_units.convert.words import parse_size
from rktd_units.fields import Place, describe, suggest, text_of
from rktd_units.strictyaml import Mapping, Node, Scalar, Sequence

Handler = Callable[[App, Node, Place], None]
TEXT_MAX = 4 << 20  # characters of all values of a file
_HEALTH = {"periodSeconds": 30, "timeoutSeconds": 30, "failureThreshold": 3}  # Dockerfile reference, HEALTHCHECK
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


class _TooLongError(Exception):
    """Ends the reading of a file whose values are together too long."""


def interpolate(document: Mapping, variables: dict[str, str], findings: Findings) -> bool:
    """Puts variables in the place of `$NAME`, `${NAME}`, `${NAME:-DEFAULT}` and the like, in all values. `$$` is one `$`.

    False if the values are too long then, each counted wherever an alias repeats it: nothing should be made of them.
    """
    seen: set[int] = set()  # scalars that an alias has led to before
    left = TEXT_MAX
    pending: list[Node] = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, Mapping):
            pending += [value for _, value in reversed(node.entries.values())]
        elif isinstance(node, Sequence):
            pending += reversed(node.items)
        elif isinstance(node, Scalar):
            try:
                if id(node) not in seen and "$" in node.text:
                    node.text = _expand(node, variables, findings, left)
            except _TooLongError:
                left = -1
            seen.add(id(node))
            left -= len(node.text)
            if left < 0:
                size = f"{TEXT_MAX >> 20} MiB"
                findings.error(node, None, f"the file has more than {size} of text once its variables and aliases are expanded")
                return False
    return True


def _expand(node: Scalar, variables: dict[str, str], findings: Findings, limit: int) -> str:
    out, text, index = [], node.text, 0
    while index < len(text):
        following = text[index + 1 : index + 2]
        if text[index] != "$":
            end = text.find("$", index)
            end = end if end > 0 else len(text)
            out.append(text[index:end])
        elif following == "$":
            out.append("$")
            end = index + 2
        elif following == "{" and (brace := text.find("}", index)) > 0:
            out.append(_substitute(text[index + 2 : brace], node, variables, findings))
            end = brace + 1
        elif following in _NAME and following:
            end = index + 1
            while end < len(text) and text[end] in _NAME:
                end += 1
            out.append(_substitute(text[index + 1 : end], node, variables, findings))
        else:
            findings.error(node, None, f"'{text[:60]}' has a $ that begins nothing", "write $$")
            return text
        index = end
        limit -= len(out[-1])
        if limit < 0:
            raise _TooLongError
    return "".join(out)


def _substitute(inner: str, node: Scalar, variables: dict[str, str], findings: Findings) -> str:
    name = inner[: len(inner) - len(inner.lstrip("".join(_NAME)))]
    rest = inner[len(name) :]
    value = variables.get(name)
    empty_counts, operator, default = rest.startswith(":"), rest.lstrip(":")[:1], rest.lstrip(":")[1:]
    there = value is not None and not (empty_counts and value == "")
    if operator == "-":
        return value or "" if there else default
    if operator == "+":
        return default if there else ""
    if value is None or not there or rest not in ("", f"{':' * empty_counts}?{default}"):
        findings.error(node, None, f"the variable '{name}' is not set", "set it for podctl, or in a file .env beside this one")
        return ""
    return value


def convert_project(document: Mapping, base: str, findings: Findings) -> list[PodDraft]:
    """A pod for each service."""
    for key, (at, value) in document.entries.items():
        if key == "version":
            findings.warning(at, (None, key), "has no meaning any more")
        elif key not in ("name", "services", "volumes", "networks", "secrets", "configs") and not key.startswith("x-"):
            known = ("services", "volumes", "networks", "secrets", "configs")
            findings.lose(at, (None, key), f"the section {key}", suggest(key, known) or "docker compose config writes it all out")
        elif key in ("volumes", "networks"):
            _check_declared(findings, value, (None, key))
    services = document.get("services")
    if not isinstance(services, Mapping) or not services.entries:
        findings.error(document, (None, "services"), "is required")
        return []
    return [_convert_service(document, name, at, node, base, findings) for name, (at, node) in services.entries.items()]


def _check_declared(findings: Findings, node: Node, place: Place) -> None:
    for name, (_, value) in node.entries.items() if isinstance(node, Mapping) else ():
        for key, (at, inner) in value.entries.items() if isinstance(value, Mapping) else ():
            plain = (key, getattr(inner, "text", "")) in (
                ("driver", "local"),
                ("driver", "bridge"),
                ("external", "true"),
                ("external", "false"),
            )
            if not plain and key not in ("name", "labels"):
                findings.lose(at, ((place, name), key), "claims are directories, and networks bridges, without settings in a pod file")


def _convert_service(document: Mapping, name: str, at: Node, node: Node, base: str, findings: Findings) -> PodDraft:
    pod = PodDraft(name, at, findings)
    app = App(pod, name, at, base)
    place: Place = ((None, "services"), name)
    pod.spec["restartPolicy"] = "Never"
    app.document = document
    if not isinstance(node, Mapping):
        findings.error(node, place, f"must be a map, got {describe(node)}")
        return pod
    _apply(app, node, place, SERVICE)
    if node.get("image") is None and node.get("build") is None:
        findings.error(at, place, "has no image")
    if node.get("networks") is None and node.get("network_mode") is None:
        _join(app, at, place, "default")
    options.place_probe(app, "readinessProbe", _HEALTH)
    order_keys(app.container)
    return pod


def _apply(app: App, node: Mapping, place: Place, table: dict[str, Handler]) -> None:
    for key, (key_node, value) in node.entries.items():
        handler = table.get(key)
        if key.startswith("x-"):
            continue
        if handler is None:
            app.findings.error(key_node, (place, key), "unknown key", suggest(key, table))
        elif not value.is_null:
            handler(app, value, (place, key))


# How values are read: one, a list of them, a list or a map, a line of words or a list


def _each(option: Option) -> Handler:
    """A list, or one value."""

    def read(app: App, node: Node, place: Place) -> None:
        for index, item in enumerate(node.items if isinstance(node, Sequence) else [node]):
            options.one_value(option)(app, item, (place, index) if isinstance(node, Sequence) else place)

    return read


def _pairs(option: Option, sign: str = "=") -> Handler:
    """A map, or a list of `NAME=VALUE`."""

    def read(app: App, node: Node, place: Place) -> None:
        if not isinstance(node, Mapping):
            _each(option)(app, node, place)
            return
        for key, (at, value) in node.entries.items():
            for item in value.items if isinstance(value, Sequence) else [value]:
                text = key if item.is_null else f"{key}{sign}{getattr(item, 'text', '')}"
                option(app, Scalar(at.file, at.line, at.column, text, plain=True), (place, key))

    return read


def _any(option: Option) -> Handler:
    """Whatever it is: the option does not look."""

    def read(app: App, node: Node, place: Place) -> None:
        option(app, node if isinstance(node, Scalar) else Scalar(node.file, node.line, node.column, node.kind, plain=True), place)

    return read


def _words(app: App, node: Node, place: Place) -> list[str]:
    if isinstance(node, Sequence):
        return [getattr(item, "text", "") for item in node.items]
    try:
        return shlex.split(getattr(node, "text", ""))
    except ValueError as error:
        app.findings.error(node, place, f"is no command: {str(error).lower()}")
        return []


def _command(app: App, node: Node, place: Place) -> None:
    options.set_arguments(app, _words(app, node, place))


def _entrypoint(app: App, node: Node, place: Place) -> None:
    options.set_command(app, _words(app, node, place))


def _ports(app: App, node: Node, place: Place) -> None:
    for index, item in enumerate(node.items if isinstance(node, Sequence) else [node]):
        here = (place, index)
        if isinstance(item, Scalar):
            # Bare, a port of the host is left to chance; nobody counts on that one, and pods reach each other without.
            (options.expose_port if ":" not in item.text else options.add_port)(app, item, here)
        elif isinstance(item, Mapping):
            known = {"target", "published", "host_ip", "protocol", "mode", "name", "app_protocol"}
            for key, (at, _) in item.entries.items():
                if key not in known:
                    app.findings.error(at, (here, key), "unknown key", suggest(key, known))
            target, published, protocol = (text_of(item, key) for key in ("target", "published", "protocol"))
            text = f"{published}:{target}" if published else target
            text = f"{text_of(item, 'host_ip')}:{text}" if published and text_of(item, "host_ip") else text
            options.add_port(app, Scalar(item.file, item.line, item.column, f"{text}/{protocol or 'tcp'}", plain=True), here)


def _volumes(app: App, node: Node, place: Place) -> None:
    for index, item in enumerate(node.items if isinstance(node, Sequence) else [node]):
        here = (place, index)
        if isinstance(item, Scalar):
            source, colon, rest = item.text.partition(":")
            named = colon and not source.startswith(("/", ".", "~"))
            text = f"{_volume_name(app, source)}:{rest}" if named else item.text
            options.add_volume(app, Scalar(item.file, item.line, item.column, text, plain=True), here)
        elif isinstance(item, Mapping):
            _long_volume(app, item, here)


def _long_volume(app: App, item: Mapping, place: Place) -> None:
    kind, source, target = text_of(item, "type"), text_of(item, "source"), text_of(item, "target")
    read_only = text_of(item, "read_only") == "true"
    for key, (at, _) in item.entries.items():
        if key not in ("type", "source", "target", "read_only", "bind", "volume", "tmpfs", "consistency"):
            app.findings.error(at, (place, key), "unknown key")
    inner = item.get(kind)
    size = ""
    for key, (at, value) in inner.entries.items() if isinstance(inner, Mapping) else ():
        if key == "size" and kind == "tmpfs" and isinstance(value, Scalar):
            size = value.text
        elif key not in ("nocopy", "create_host_path", "propagation", "selinux") or getattr(value, "text", "") in (
            "shared",
            "rshared",
            "slave",
            "rslave",
        ):
            app.findings.lose(at, ((place, kind), key), "an option of a volume")
    if kind == "tmpfs":
        options.mount_memory(app, target, parse_size(size) if size else "")
    elif kind in ("bind", "volume"):
        name = source if kind == "bind" else _volume_name(app, source) if source else ""
        options.mount(app, _as_scalar(item), place, name, target, read_only=read_only)
    else:
        app.findings.lose(item, place, f"a volume of type '{kind}'")


def _as_scalar(node: Node) -> Scalar:
    return Scalar(node.file, node.line, node.column, "", plain=True)


def _declared(app: App, section: str, name: str) -> Node | None:
    """What the file says of a volume, network, secret or config."""
    found = app.document.get(section) if app.document else None
    return found.get(name) if isinstance(found, Mapping) else None


def _volume_name(app: App, name: str) -> str:
    return text_of(_declared(app, "volumes", name), "name") or name


def _join(app: App, node: Node, place: Place, name: str) -> None:
    """The project's default network is the one that all pods are in."""
    own = text_of(_declared(app, "networks", name), "name")
    if name != "default" or own:
        app.pod.set_network(node, place, own or name)


def _networks(app: App, node: Node, place: Place) -> None:
    names = [(getattr(item, "text", ""), item, None) for item in node.items] if isinstance(node, Sequence) else []
    entries = node.entries.items() if isinstance(node, Mapping) else ()
    for name, at, settings in [*names, *((key, at, value) for key, (at, value) in entries)]:
        _join(app, at, place, name)
        for key, (key_node, value) in settings.entries.items() if isinstance(settings, Mapping) else ():
            here: Place = ((place, name), key)
            if key == "ipv4_address" and isinstance(value, Scalar):
                app.pod.annotations["systemd.io/address"] = value.text
            elif key == "aliases" and isinstance(value, Sequence):
                for item in value.items:
                    if getattr(item, "text", "") != app.pod.name:
                        app.findings.lose(item, here, f"other pods know this one as '{app.pod.name}'", "call the service so")
            else:
                app.findings.lose(key_node, here, "a setting of a network")


def _pid_mode(app: App, node: Scalar, place: Place) -> None:
    if node.text == "host":
        app.pod.spec |= {"hostPID": True, "hostUsers": True}
        app.findings.warning(node, place, "needs hostUsers: true: root in the pod is root of the host")
    else:
        app.findings.lose(node, place, f"process name spaces of others, got '{node.text}'", "shareProcessNamespace within a pod")


def _network_mode(app: App, node: Scalar, place: Place) -> None:
    if node.text == "host":
        app.pod.spec["hostNetwork"] = True
    elif node.text == "none":
        app.pod.set_network(node, place, "none")
    elif node.text not in ("bridge", "default"):
        app.findings.lose(node, place, f"the network of another container, '{node.text}'", "put them into one pod")


def _depends_on(app: App, node: Node, place: Place) -> None:
    names = [(getattr(item, "text", ""), item, None) for item in node.items] if isinstance(node, Sequence) else []
    entries = node.entries.items() if isinstance(node, Mapping) else ()
    for name, at, settings in [*names, *((key, at, value) for key, (at, value) in entries)]:
        if text_of(settings, "condition") == "service_completed_successfully":
            app.findings.lose(at, (place, name), "waiting for the end of a pod", "an init container of this one")
        if text_of(settings, "required") == "false":
            app.findings.lose(at, (place, name), "a dependency that may be missing", f"systemctl edit pod@{app.pod.name}: [Unit] Wants=")
        for key in ("after", "requires"):
            app.pod.add_annotation(f"systemd.io/{key}", f"pod@{name}.service")


def _restart(app: App, node: Scalar, place: Place) -> None:
    word, _, count = node.text.partition(":")
    policies = {"no": "Never", "always": "Always", "unless-stopped": "Always", "on-failure": "OnFailure"}
    if word not in policies:
        app.findings.error(node, place, f"must be one of {', '.join(policies)}, got '{node.text}'")
        return
    if count:
        app.findings.lose(node, place, "an end of the restarts", "they become rare: 5 min apart")
    app.pod.spec["restartPolicy"] = policies[word]
    if word != "no":
        app.pod.add_annotation("systemd.io/wanted-by", "multi-user.target")  # docker's daemon starts it when the machine does


def _healthcheck(app: App, node: Node, place: Place) -> None:
    if not isinstance(node, Mapping):
        app.findings.error(node, place, f"must be a map, got {describe(node)}")
        return
    if text_of(node, "disable") == "true":
        app.findings.warning(node, place, "a check that the image brings along is never done")
        return
    _apply(app, node, place, _HEALTHCHECK)
    if "exec" in app.health:
        app.findings.warning(node, place, "the start of the pod waits until the check has succeeded once; a failure later only shows")
    else:
        app.findings.lose(node, place, "what the image itself checks", "say the test")


def _health_test(app: App, node: Node, place: Place) -> None:
    if isinstance(node, Sequence):
        options.set_health_words(app, _as_scalar(node), place, [getattr(item, "text", "") for item in node.items])
    else:
        options.one_value(options.set_health_command)(app, node, place)


def _security(app: App, node: Scalar, place: Place) -> None:
    key, _, value = node.text.replace("=", ":", 1).partition(":")
    if key == "no-new-privileges":
        options.set_no_new_privileges(app, Scalar(node.file, node.line, node.column, value or "true", plain=True), place)
    elif key == "seccomp":
        options.set_seccomp(app, Scalar(node.file, node.line, node.column, value, plain=True), place)
    elif key == "apparmor":
        options.set_apparmor(app, Scalar(node.file, node.line, node.column, value, plain=True), place)
    elif key == "label":
        app.findings.warning(node, place, "a pod has one SELinux label: spec.securityContext.seLinuxOptions")
    else:
        app.findings.lose(node, place, f"'{node.text}'")


def _deploy(app: App, node: Node, place: Place) -> None:
    if not isinstance(node, Mapping):
        return
    for key, (at, value) in node.entries.items():
        here: Place = (place, key)
        if key == "resources" and isinstance(value, Mapping):
            for which, table in (("limits", _LIMITS), ("reservations", _RESERVATIONS)):
                inner = value.get(which)
                if isinstance(inner, Mapping):
                    _apply(app, inner, (here, which), table)
        elif key == "replicas" and getattr(value, "text", "") != "1":
            app.findings.lose(at, here, "there is one pod of a name")
        elif key not in ("replicas", "labels", "mode"):
            app.findings.lose(at, here, "a setting of a swarm")


def _secrets(app: App, node: Node, place: Place) -> None:
    _files(app, node, place, "secrets")


def _configs(app: App, node: Node, place: Place) -> None:
    _files(app, node, place, "configs")


def _files(app: App, node: Node, place: Place, section: str) -> None:
    """A secret is looked for among systemd's credentials; a config becomes a ConfigMap."""
    for index, item in enumerate(node.items if isinstance(node, Sequence) else []):
        here = (place, index)
        name = getattr(item, "text", "") or text_of(item, "source")
        target = text_of(item, "target") or (f"/run/secrets/{name}" if section == "secrets" else f"/{name}")
        path = target if target.startswith("/") else f"/run/secrets/{target}"
        for key in ("uid", "gid", "mode"):
            if text_of(item, key):
                app.findings.lose(item, (here, key), "owners of single files", "fsGroup of the pod; items[].mode of the volume")
        declared = _declared(app, section, name)
        base = os.path.basename(path)
        if not isinstance(declared, Mapping):
            app.findings.error(item, here, f"there is no '{name}' in {section}")
        elif section == "secrets":
            _mount_secret(app, item, here, name, path, text_of(declared, "file"))
        else:
            text = text_of(declared, "content") or _read(app, declared, here, text_of(declared, "file"))
            volume = app.pod.add_volume(name, {"configMap": {"name": app.pod.add_config(name, {base: text})}})
            app.append("volumeMounts", {"name": volume, "mountPath": path, "subPath": base, "readOnly": True})


def _mount_secret(app: App, node: Node, place: Place, name: str, path: str, file: str) -> None:
    label = name.replace("_", "-")
    item = {"key": "value", "path": os.path.basename(path)}
    volume = app.pod.add_volume(name, {"secret": {"secretName": label, "items": [item]}})
    app.append("volumeMounts", {"name": volume, "mountPath": path, "subPath": item["path"], "readOnly": True})
    command = f"systemd-creds encrypt --name={label}@value {file or '-'} /etc/credstore.encrypted/{label}@value"
    app.findings.warning(node, place, f"the secret is looked for among systemd's credentials: {command}")


def _read(app: App, node: Node, place: Place, file: str) -> str:
    try:
        with open(os.path.join(app.base, file), encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError):
        app.findings.lose(node, place, f"'{file}' cannot be read")
        return ""


_HEALTHCHECK: dict[str, Handler] = {
    "test": _health_test,
    "interval": options.one_value(options.set_health_time("periodSeconds")),
    "timeout": options.one_value(options.set_health_time("timeoutSeconds")),
    "retries": options.one_value(options.set_health_retries),
    "start_period": options.one_value(options.accept),  # failures before the first success count for nothing with a readinessProbe
    "start_interval": options.one_value(options.accept),
    "disable": options.one_value(options.accept),
}
_LIMITS: dict[str, Handler] = {
    "cpus": options.one_value(options.set_cpus),
    "memory": options.one_value(options.set_memory),
    "pids": options.one_value(options.set_task_limit),
}
_RESERVATIONS: dict[str, Handler] = {
    "cpus": options.one_value(options.request_cpus),
    "memory": options.one_value(options.request_memory),
    "devices": _any(options.refuse("devices of the host")),
}
_LOST = {
    "build": ("building images", "podman build, podman save --format=oci-archive; image: oci-archive:FILE@sha256:..."),
    "devices": ("devices of the host", ""),
    "extends": ("services of other files", "docker compose config writes them out"),
    "profiles": ("profiles", "a pod that nobody enables does not start"),
    "ulimits": ("limits of processes by ulimit", ""),
    "volumes_from": ("volumes of another service", "name them in both"),
    "links": ("other names of pods", "a pod is found by its own"),
    "external_links": ("other names of pods", "a pod is found by its own"),
    "domainname": ("a domain of its own", "subdomain"),
    "cgroup_parent": ("cgroups", "systemd.io/slice"),
    "oom_score_adj": ("the order in which processes are killed", ""),
    "mac_address": ("hardware addresses", ""),
    "runtime": ("runtimes of docker", "runtimeClassName"),
    "post_start": ("hooks", ""),
    "pre_stop": ("hooks", ""),
    "gpus": ("devices of the host", ""),
    "isolation": ("isolation of Windows", ""),
    "label_file": ("labels from files", ""),
}
SERVICE: dict[str, Handler] = {
    **{key: _any(options.refuse(why, hint)) for key, (why, hint) in _LOST.items()},
    "annotations": _pairs(options.add_label),
    "attach": options.one_value(options.accept),
    "cap_add": _each(options.add_capability),
    "cap_drop": _each(options.drop_capability),
    "command": _command,
    "configs": _configs,
    "container_name": options.one_value(options.warn("the pod is called as its service is")),
    "cpus": options.one_value(options.set_cpus),
    "depends_on": _depends_on,
    "deploy": _deploy,
    "develop": _any(options.accept),
    "dns": _each(options.add_name_server),
    "dns_opt": _each(options.add_dns_option),
    "dns_search": _each(options.add_search_domain),
    "entrypoint": _entrypoint,
    "env_file": _each(options.add_quoted_file),
    "environment": _pairs(options.add_variable),
    "expose": _each(options.expose_port),
    "extra_hosts": _pairs(options.add_host),
    "group_add": _each(options.add_group),
    "healthcheck": _healthcheck,
    "hostname": options.one_value(options.set_hostname),
    "image": options.one_value(options.take_image),
    "init": options.one_value(options.set_init),
    "ipc": options.one_value(options.unless(("private", "shareable"), "IPC name spaces of others", "hostIPC")),
    "labels": _pairs(options.add_label),
    "logging": _any(options.warn("what apps write is in the journal, and nowhere else")),
    "mem_limit": options.one_value(options.set_memory),
    "mem_reservation": options.one_value(options.request_memory),
    "network_mode": options.one_value(_network_mode),
    "pid": options.one_value(_pid_mode),
    "networks": _networks,
    "pids_limit": options.one_value(options.set_task_limit),
    "platform": options.one_value(options.warn("images are those for this machine")),
    "ports": _ports,
    "privileged": options.one_value(options.set_privileged),
    "pull_policy": options.one_value(options.set_pull_policy),
    "read_only": options.one_value(options.set_read_only),
    "restart": options.one_value(_restart),
    "scale": options.one_value(options.unless(("1",), "there is one pod of a name")),
    "secrets": _secrets,
    "security_opt": _each(_security),
    "shm_size": options.one_value(options.set_shared_memory),
    "stdin_open": options.one_value(options.unless(("false",), "a terminal of its own", "podctl exec -it")),
    "stop_grace_period": options.one_value(options.set_grace),
    "stop_signal": options.one_value(options.set_stop_signal),
    "sysctls": _pairs(options.add_sysctl),
    "tmpfs": _each(options.add_tmpfs),
    "tty": options.one_value(options.unless(("false",), "a terminal of its own", "podctl exec -it")),
    "user": options.one_value(options.set_user),
    "userns_mode": options.one_value(options.unless((), "each pod has 65536 ids of its own", "hostUsers: true")),
    "volumes": _volumes,
    "working_dir": options.one_value(options.set_working_directory),
}

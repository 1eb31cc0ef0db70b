# SPDX-License-Identifier: Apache-2.0
"""Every key of Quadlet's files (podman-systemd.unit(5) of Podman 5 and 6), and what becomes of it in a pod file."""

import os
from collections.abc import Callable
from functools import partial

from rktd_units.convert import options
from rktd_units.convert.draft import App
from rktd_units.convert.options import Option
from rktd_units.convert.words import parse_seconds, parse_size, split_words
from rktd_units.fields import Place
from rktd_units.strictyaml import Mapping, Scalar, Sequence

PODS = (".container", ".pod", ".kube")  # the files that become pods
_HEALTH = {"periodSeconds": 30, "timeoutSeconds": 30, "failureThreshold": 3}  # podman-run(1), --health-...
MOUNT_SOURCES = ("source", "src")  # what Mount= calls it
_DROP_IN = "keep it in a drop-in: systemctl edit pod@NAME"
Section = dict[str, "Handler"]
Handler = Callable[[App, Sequence, Place], None]


# How the values of a key are read: the last one counts, each counts, each is a line of words


def _last_of(option: Option) -> Handler:
    def read(app: App, values: Sequence, place: Place) -> None:
        item = values.items[-1]
        assert isinstance(item, Scalar)
        option(app, item, place)

    return read


def _each(option: Option) -> Handler:
    def read(app: App, values: Sequence, place: Place) -> None:
        for item in values.items:
            assert isinstance(item, Scalar)
            option(app, item, place)

    return read


def _words(option: Option) -> Handler:
    def read(app: App, values: Sequence, place: Place) -> None:
        for item in values.items:
            assert isinstance(item, Scalar)
            for word in _split(app, item, place):
                option(app, Scalar(item.file, item.line, item.column, word, plain=True), place)

    return read


def _split(app: App, node: Scalar, place: Place) -> list[str]:
    try:
        return split_words(node.text)
    except ValueError as error:
        app.findings.error(node, place, str(error))
        return []


def _exec(app: App, node: Scalar, place: Place) -> None:
    words = []
    for word in _split(app, node, place):
        if "$" in word.replace("$$", ""):
            app.findings.lose(
                node, place, f"'{word}': systemd would put a variable of the unit there", "write $$ for a dollar of the app's"
            )
        words.append(word.replace("$$", "$"))
    options.set_arguments(app, words)


def _entrypoint(app: App, node: Scalar, place: Place) -> None:
    import json

    try:
        words = json.loads(node.text) if node.text.startswith("[") else [node.text]
        options.set_command(app, [str(word) for word in words])
    except ValueError:
        app.findings.error(node, place, "must be a program or a JSON list")


def _network(app: App, node: Scalar, place: Place) -> None:
    name, _, rest = node.text.partition(":")
    if name == "host":
        app.pod.spec["hostNetwork"] = True
    elif name in ("none", "bridge"):
        if name == "none":
            app.pod.set_network(node, place, "none")
    elif name in ("pasta", "slirp4netns", "private", "container", "ns") or name.endswith(".container"):
        app.findings.lose(node, place, f"the network '{name}'", "pods are on a bridge, or hostNetwork: true")
    else:
        app.pod.set_network(node, place, app.pod.renames.get(name, name.removesuffix(".network")))
    for option in filter(None, rest.split(",")):
        key, _, value = option.partition("=")
        if key == "ip":
            app.pod.annotations["systemd.io/address"] = value
        elif key != "interface_name":
            app.findings.lose(node, place, f"the option '{option}' of a network")


def _address(app: App, node: Scalar, place: Place) -> None:
    app.pod.annotations["systemd.io/address"] = node.text


def _network_alias(app: App, node: Scalar, place: Place) -> None:
    if node.text != app.pod.name:
        app.findings.lose(node, place, f"other pods know this one as '{app.pod.name}'", "call the pod so")


def _mount(app: App, node: Scalar, place: Place) -> None:
    """`type=bind,source=...,destination=...`."""
    parts = split_mount(node.text)
    given = {key: value for key, value in parts if key not in ("ro", "readonly", "rw")}
    read_only = any(key in ("ro", "readonly") and value in ("", "true", "1") for key, value in parts)
    kind = given.pop("type", "volume")
    source = next((given.pop(key) for key in MOUNT_SOURCES if key in given), "")
    target = next((given.pop(key) for key in ("destination", "dst", "target") if key in given), "")
    size = given.pop("tmpfs-size", given.pop("size", "")) if kind == "tmpfs" else ""
    for key in given:
        app.findings.lose(node, place, f"the option '{key}' of a mount")
    if kind == "tmpfs":
        options.mount_memory(app, target, _size(app, node, place, size))
    elif kind in ("bind", "volume"):
        options.mount(app, node, place, _find_volume(app, source), target, read_only=read_only)
    else:
        app.findings.lose(node, place, f"a mount of type '{kind}'")


def split_mount(text: str) -> list[tuple[str, str]]:
    """The options of Mount=, with their values."""
    return [part.partition("=")[::2] for part in text.split(",")]


def _find_volume(app: App, source: str) -> str:
    """podman(1) calls the volume of x.volume systemd-x, unless that says otherwise."""
    return app.pod.renames.get(source, f"systemd-{source.removesuffix('.volume')}") if source.endswith(".volume") else source


def _volume(app: App, node: Scalar, place: Place) -> None:
    source, colon, rest = node.text.partition(":")
    options.add_volume(app, Scalar(node.file, node.line, node.column, f"{_find_volume(app, source)}{colon}{rest}", plain=True), place)


def _size(app: App, node: Scalar, place: Place, text: str) -> str:
    try:
        return parse_size(text) if text else ""
    except ValueError as error:
        app.findings.error(node, place, str(error))
        return ""


def _secret(app: App, node: Scalar, place: Place) -> None:
    name, *rest = node.text.split(",")
    given = dict(part.partition("=")[::2] for part in rest)
    target = given.pop("target", name)
    kind = given.pop("type", "mount")
    for key in given:
        app.findings.lose(node, place, f"the option '{key}' of a secret", "fsGroup, and defaultMode of the volume")
    if kind == "env":
        source = {"secretKeyRef": {"name": name, "key": "value"}}
        app.append("env", {"name": target, "valueFrom": source})
    else:
        path = target if target.startswith("/") else f"/run/secrets/{target}"
        item = {"key": "value", "path": os.path.basename(path)}
        volume = app.pod.add_volume(name, {"secret": {"secretName": name, "items": [item]}})
        app.append("volumeMounts", {"name": volume, "mountPath": path, "subPath": os.path.basename(path), "readOnly": True})
    command = f"systemd-creds encrypt --name={name}@value - /etc/credstore.encrypted/{name}@value"
    app.findings.warning(
        node, place, f"the secret is looked for among systemd's credentials: podman secret inspect --showsecret ... | {command}"
    )


def _user_namespace(app: App, node: Scalar, place: Place) -> None:
    kind = node.text.partition(":")[0]
    if kind == "host":
        app.pod.spec["hostUsers"] = True
    elif node.text not in ("auto", "private", "nomap"):
        app.findings.lose(node, place, f"'{node.text}': each pod has 65536 ids of its own")


def _time_zone(app: App, node: Scalar, place: Place) -> None:
    path = "/etc/localtime" if node.text == "local" else f"/usr/share/zoneinfo/{node.text}"
    name = app.pod.add_volume("localtime", {"hostPath": {"path": path, "type": "File"}})
    app.append("volumeMounts", {"name": name, "mountPath": "/etc/localtime", "readOnly": True})


def _notify(app: App, node: Scalar, place: Place) -> None:
    if node.text == "healthy":
        app.health["ready"] = True
    elif options.read_switch(app, node, place):
        app.pod.add_annotation("systemd.io/notify", str(app.container["name"]))


def _on_failure(app: App, node: Scalar, place: Place) -> None:
    if node.text in ("kill", "restart", "stop"):
        app.health["kind"] = "livenessProbe"
    elif node.text != "none":
        app.findings.error(node, place, f"must be none, kill, restart or stop, got '{node.text}'")


def _read_only_tmpfs(app: App, node: Scalar, place: Place) -> None:
    if options.read_switch(app, node, place) is False:
        app.health["no_tmpfs"] = True


def _volatile_tmp(app: App, node: Scalar, place: Place) -> None:
    if options.read_switch(app, node, place):
        options.mount_memory(app, "/tmp")


def _unmask(app: App, node: Scalar, place: Place) -> None:
    if node.text == "ALL":
        app.inner("securityContext")["procMount"] = "Unmasked"
    else:
        app.findings.lose(node, place, "some paths of /proc only", "procMount: Unmasked is all of them")


def finish_health(app: App, unit: Mapping) -> None:
    kind, ready = app.health.pop("kind", "readinessProbe"), app.health.pop("ready", False)
    no_tmpfs, start = app.health.pop("no_tmpfs", False), app.health.pop("start", 0)
    if app.container.get("securityContext", {}).get("readOnlyRootFilesystem") and not no_tmpfs:
        taken = {mount["mountPath"] for mount in app.container.get("volumeMounts", ())}
        for path in ("/run", "/tmp", "/var/tmp"):
            if path not in taken:
                options.mount_memory(app, path)
    if "exec" not in app.health:
        if ready:
            app.findings.error(unit, (None, "Container"), "Notify=healthy needs HealthCmd=")
        return
    if kind == "livenessProbe":
        if ready:
            app.findings.warning(unit, (None, "Container"), "the health check restarts the app, and the start does not wait for it")
        app.health["initialDelaySeconds"] = start
    elif not ready:
        app.findings.warning(unit, (None, "Container"), "the start of the pod waits until the health check has succeeded once")
    options.place_probe(app, kind, _HEALTH)


# [Unit], [Service], [Install]


def _unit_name(word: str) -> str:
    """Quadlet's names for other files' units, and those of pods."""
    stem, dot, suffix = word.rpartition(".")
    return f"pod@{stem}.service" if dot and f".{suffix}" in PODS else word


def _order(key: str, app: App, node: Scalar, place: Place) -> None:
    name = _unit_name(node.text)
    if name == "network-online.target" or name.endswith((".volume", ".network", ".image")):
        return  # stage0 waits for the former, the others are no units
    app.pod.add_annotation(f"systemd.io/{key}", name)


def _want(app: App, node: Scalar, place: Place) -> None:
    if node.text != "network-online.target":
        hint = f"systemctl edit pod@{app.pod.name}: [Unit] Wants={_unit_name(node.text)}"
        app.findings.lose(node, place, "a pod file has requires, not wants", hint)


def _comment(app: App, node: Scalar, place: Place) -> None:
    app.pod.comments.append(node.text)


def _restart(app: App, node: Scalar, place: Place) -> None:
    policies = {"no": "Never", "always": "Always", "on-failure": "OnFailure"}
    if node.text in policies:
        app.pod.spec["restartPolicy"] = policies[node.text]
    else:
        app.findings.lose(node, place, f"Restart={node.text}", "Always, OnFailure and Never are what there is")


def _memory_max(app: App, node: Scalar, place: Place) -> None:
    options.set_memory(app, Scalar(node.file, node.line, node.column, node.text.lower(), plain=True), place)


def _cpu_quota(app: App, node: Scalar, place: Place) -> None:
    percent = node.text.removesuffix("%")
    if percent == node.text or not percent.isdecimal():
        app.findings.error(node, place, f"must be a percentage, got '{node.text}'")
        return
    app.inner("resources").setdefault("limits", {})["cpu"] = f"{int(percent) * 10}m"


def _stop_timeout(app: App, node: Scalar, place: Place) -> None:
    try:
        app.pod.spec.setdefault("terminationGracePeriodSeconds", parse_seconds(node.text))
    except ValueError as error:
        app.findings.lose(node, place, str(error))


def _set_annotation(key: str, app: App, node: Scalar, place: Place) -> None:
    app.pod.add_annotation(f"systemd.io/{key}", node.text)


def _pod_name(app: App, node: Scalar, place: Place) -> None:
    if node.text not in (app.pod.name, f"systemd-{app.pod.name}"):
        app.findings.lose(node, place, f"the pod is called '{app.pod.name}', as its file is", "rename the file, or ServiceName=")


_DNS: Section = {
    "DNS": _each(options.add_name_server),
    "DNSOption": _each(options.add_dns_option),
    "DNSSearch": _each(options.add_search_domain),
}
_IDS = {
    "GIDMap UIDMap SubGIDMap SubUIDMap RemapUsers RemapUid RemapGid RemapUidSize": "each pod has 65536 ids of its own",
    "ContainersConfModule GlobalArgs PodmanArgs": "there is no podman",
}
_REFUSED: Section = {key: _each(options.refuse(why)) for keys, why in _IDS.items() for key in keys.split()}
_COMMON: Section = {
    **_DNS,
    **_REFUSED,
    "AddHost": _each(options.add_host),
    "IP": _last_of(_address),
    "IP6": _last_of(options.refuse("IPv6 addresses are given out by us")),
    "Network": _each(_network),
    "NetworkAlias": _words(_network_alias),
    "PublishPort": _each(options.add_port),
    "ServiceName": _last_of(options.accept),
    "UserNS": _last_of(_user_namespace),
}
CONTAINER: Section = {
    **_COMMON,
    "AddCapability": _words(options.add_capability),
    "AddDevice": _each(options.refuse("devices of the host")),
    "Annotation": _words(options.add_label),
    "AppArmor": _last_of(options.set_apparmor),
    "AutoUpdate": _last_of(options.set_update),
    "CgroupsMode": _last_of(options.unless(("split",), "apps are in the pod's own cgroup")),
    "ContainerName": _last_of(options.accept),
    "DropCapability": _words(options.drop_capability),
    "Entrypoint": _last_of(_entrypoint),
    "Environment": _words(options.add_variable),
    "EnvironmentFile": _each(options.add_environment_file),
    "EnvironmentHost": _last_of(options.unless(("false", "no", "0"), "variables of the host")),
    "Exec": _last_of(_exec),
    "ExposeHostPort": _each(options.expose_port),
    "Group": _last_of(options.set_group),
    "GroupAdd": _each(options.add_group),
    "HealthCmd": _last_of(options.set_health_command),
    "HealthInterval": _last_of(options.set_health_time("periodSeconds")),
    "HealthOnFailure": _last_of(_on_failure),
    "HealthRetries": _last_of(options.set_health_retries),
    "HealthStartPeriod": _last_of(options.set_health_time("start")),
    "HealthTimeout": _last_of(options.set_health_time("timeoutSeconds")),
    **{
        key: _last_of(options.refuse("a check of its own while the app starts", "startupProbe, by hand"))
        for key in ("HealthStartupCmd", "HealthStartupInterval", "HealthStartupRetries", "HealthStartupSuccess", "HealthStartupTimeout")
    },
    **{
        key: _last_of(options.warn("what a probe says is in the journal"))
        for key in ("HealthLogDestination", "HealthMaxLogCount", "HealthMaxLogSize")
    },
    "HostName": _last_of(options.set_hostname),
    "HttpProxy": _last_of(options.unless(("false", "no", "0"), "proxies of the host")),
    "Image": _last_of(options.take_image),
    "Label": _words(options.add_label),
    "LogDriver": _last_of(options.unless(("journald", "passthrough"), "what apps write is in the journal")),
    "LogOpt": _each(options.refuse("what apps write is in the journal")),
    "Mask": _each(options.refuse("masked paths", "an emptyDir there, readOnly")),
    "Memory": _last_of(options.set_memory),
    "Mount": _each(_mount),
    "NoNewPrivileges": _last_of(options.set_no_new_privileges),
    "Notify": _last_of(_notify),
    "PidsLimit": _last_of(options.set_task_limit),
    "Pod": _last_of(options.accept),
    "Pull": _last_of(options.set_pull_policy),
    "ReadOnly": _last_of(options.set_read_only),
    "ReadOnlyTmpfs": _last_of(_read_only_tmpfs),
    "ReloadCmd": _last_of(options.refuse("there is no reload of an app", "podctl exec")),
    "ReloadSignal": _last_of(options.refuse("there is no reload of an app", "podctl exec")),
    "Retry": _last_of(options.warn("stage0 tries again as long as it takes")),
    "RetryDelay": _last_of(options.warn("stage0 tries again as long as it takes")),
    "Rootfs": _last_of(options.refuse("a directory as an image", "oci:PATH, oci-archive:PATH")),
    "RunInit": _last_of(options.set_init),
    "SeccompProfile": _last_of(options.set_seccomp),
    "Secret": _each(_secret),
    **{
        f"SecurityLabel{key}": _last_of(options.warn("of SELinux's labels a pod has level and type"))
        for key in ("Disable", "FileType", "Nested")
    },
    "SecurityLabelLevel": _last_of(options.set_label("level")),
    "SecurityLabelType": _last_of(options.set_label("type")),
    "ShmSize": _last_of(options.set_shared_memory),
    "StartWithPod": _last_of(options.unless(("true", "yes", "1"), "all apps start with their pod")),
    "StopSignal": _last_of(options.set_stop_signal),
    "StopTimeout": _last_of(options.set_grace),
    "Sysctl": _words(options.add_sysctl),
    "Timezone": _last_of(_time_zone),
    "Tmpfs": _each(options.add_tmpfs),
    "Ulimit": _each(options.refuse("limits of processes by ulimit", "the image's program can lower its own")),
    "Unmask": _words(_unmask),
    "User": _last_of(options.set_user),
    "VolatileTmp": _last_of(_volatile_tmp),
    "Volume": _each(_volume),
    "WorkingDir": _last_of(options.set_working_directory),
}
POD: Section = {
    **_COMMON,
    "ExitPolicy": _last_of(options.unless(("stop",), "a pod ends with its last app")),
    "HostName": _last_of(options.set_hostname),
    "Label": _words(options.add_label),
    "PodName": _last_of(_pod_name),
    "ShmSize": _last_of(options.set_shared_memory),
    "StopTimeout": _last_of(options.set_grace),
    "Volume": _each(_volume),
}
KUBE: Section = {
    **_REFUSED,
    "AutoUpdate": _each(options.set_update),
    "ConfigMap": _each(options.accept),
    "ExitCodePropagation": _last_of(options.warn("the unit has the code of the first app that failed, always")),
    "KubeDownForce": _last_of(options.unless(("false", "no", "0"), "volumes outlive their pods")),
    "LogDriver": _last_of(options.unless(("journald", "passthrough"), "what apps write is in the journal")),
    "LogOpt": _each(options.refuse("what apps write is in the journal")),
    "Network": _each(_network),
    "PublishPort": _each(options.add_port),
    "ServiceName": _last_of(options.accept),
    "SetWorkingDirectory": _last_of(options.accept),
    "UserNS": _last_of(_user_namespace),
    "Yaml": _each(options.accept),
}
UNIT: Section = {
    "After": _words(partial(_order, "after")),
    "Description": _last_of(_comment),
    "Documentation": _each(_comment),
    "Requires": _words(partial(_order, "requires")),
    "Wants": _words(_want),
    "*": _each(options.refuse("a setting of the unit", _DROP_IN)),
}
SERVICE: Section = {
    "CPUQuota": _last_of(_cpu_quota),
    "IPAddressAllow": _words(partial(_set_annotation, "ip-address-allow")),
    "IPAddressDeny": _words(partial(_set_annotation, "ip-address-deny")),
    "MemoryMax": _last_of(_memory_max),
    "Restart": _last_of(_restart),
    "RestartSec": _last_of(options.warn("restarts wait 1 s, more each time up to 5 min")),
    "Slice": _last_of(partial(_set_annotation, "slice")),
    "TimeoutStartSec": _last_of(options.warn("a start has no limit; activeDeadlineSeconds is one for the whole pod")),
    "TimeoutStopSec": _last_of(_stop_timeout),
    "*": _each(options.refuse("a setting of the unit", _DROP_IN)),
}
# The pod's own restartPolicy counts, and what of it is limited.
SERVICE_OF_KUBE: Section = {
    **SERVICE,
    "CPUQuota": _last_of(options.refuse("a setting of the unit", _DROP_IN)),
    "MemoryMax": _last_of(options.refuse("a setting of the unit", _DROP_IN)),
    "Restart": _last_of(options.warn("the restartPolicy of the YAML file counts")),
}
INSTALL: Section = {
    "WantedBy": _words(partial(_set_annotation, "wanted-by")),
    "*": _each(options.refuse("a link of the unit", "WantedBy= is what there is")),
}
QUADLET: Section = {"DefaultDependencies": _last_of(options.unless(("true", "yes", "1"), "stage0 waits for the network"))}

# SPDX-License-Identifier: Apache-2.0
"""A container of the pod file and its image -> the app, with nothing left open. Reads the image's root, writes nothing."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from rktd_units.apparmor import check_profile
from rktd_units.confine import Confinement, bounding_set
from rktd_units.errors import ConfigError, ImageError, clean_text
from rktd_units.expand import expand_references
from rktd_units.images.manifest import Appc, ImageConfig
from rktd_units.names import listen_address
from rktd_units.paths import Layout
from rktd_units.podfile.model import Container, KeyFiles, Pod, Projected, Resources, Security, VolumeMount
from rktd_units.podsockets import Listener
from rktd_units.seccomp import load_profile
from rktd_units.stage2 import App, Check, Handler, is_environment_name
from rktd_units.translate import listen_key
from rktd_units.users import parse_accounts, resolve_identity
from rktd_units.values import Values, decode_text, find_resource, render_pairs

_NAME_RULE = "its name is not one of letters, digits and underscores"  # systemd passes on no others
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Facts(NamedTuple):
    """What fieldRef can name (Kubernetes' downward API), as far as one host has it."""

    pod: Pod
    uid: str
    node: str
    pod_ips: tuple[str, ...]  # the first one is status.podIP
    host_ips: tuple[str, ...]
    values: Values

    def value(self, field: str) -> str:
        return {
            "metadata.name": self.pod.name,
            "metadata.namespace": "default",
            "metadata.uid": self.uid,
            "metadata.labels": render_pairs(self.pod.labels),
            "metadata.annotations": render_pairs(self.pod.annotations),
            "spec.nodeName": self.node,
            "spec.serviceAccountName": "default",
            "status.podIP": self.pod_ips[0],
            "status.podIPs": ",".join(self.pod_ips),
            "status.hostIP": self.host_ips[0],
            "status.hostIPs": ",".join(self.host_ips),
        }.get(field) or self._keyed(field)

    def _keyed(self, field: str) -> str:
        """metadata.labels['KEY'] and metadata.annotations['KEY']; "" for a key that is not there, as Kubernetes has it."""
        kind, _, rest = field.partition("['")
        pairs = self.pod.labels if kind == "metadata.labels" else self.pod.annotations
        return dict(pairs).get(rest.removesuffix("']"), "")


class Root(Protocol):
    """What is asked of an image's root: `rootview.ImageRoot`."""

    def read_text(self, path: str) -> str: ...
    def links_logs(self) -> bool: ...
    @property
    def kind(self) -> Callable[[str], str]: ...


def resolve_app(facts: Facts, container: Container, config: ImageConfig, root: Root) -> App:
    """Raises ConfigError or ImageError that names the app and the path, user or signal in question."""
    pod = facts.pod
    accounts = parse_accounts(root.read_text("etc/passwd"), root.read_text("etc/group"))
    appc = config.appc or Appc()
    supplemental = pod.supplemental_groups + ((pod.fs_group,) if pod.fs_group is not None else ()) + appc.groups
    identity = resolve_identity(
        container.name,
        config.user,
        accounts,
        run_as_user=container.security.run_as_user,
        run_as_group=container.security.run_as_group,
        non_root=container.security.run_as_non_root,
        supplemental=supplemental,
    )
    env = resolve_environment(facts, container, config, identity.home)
    working_dir = container.working_dir or config.working_dir or "/"
    if not working_dir.startswith("/"):
        working_dir = "/" + working_dir
    if config.appc and not container.working_dir:
        _check_working_dir(container, working_dir, root)
    argv = resolve_command(container, config, env)
    search = dict(env.plain).get("PATH", DEFAULT_PATH)
    # As rkt had it, handlers are root's; not where the pod file wants no root.
    ids = (identity.uid, identity.gid) if container.security.run_as_non_root else (0, 0)
    handlers = [
        Handler(find_program(container, command[0], working_dir, search, root), command, *ids) if command else None
        for command in (appc.pre_start, appc.post_stop)
    ]
    listeners = resolve_listeners(container)
    return App(
        name=container.name,
        program=find_program(container, argv[0], working_dir, search, root),
        argv=argv,
        env=env.plain,
        secret_env=env.secret,
        has_secrets=bool(env.secret) or mounts_secrets(pod, container),
        working_dir=os.path.normpath(working_dir),
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        stop_signal=resolve_signal(container.name, container.stop_signal or config.stop_signal),
        confinement=resolve_confinement(container.name, container.security, appc),
        resources=resolve_resources(container.resources, appc),
        cpus=" ".join(cpus for app, cpus in pod.systemd.cpus if app == container.name),
        oom_score_adjust=appc.oom_score_adjust,
        pre_start=handlers[0],
        post_stop=handlers[1],
        checks=tuple(Check(probe, _find_check(container, probe.command, working_dir, search, root)) for probe in container.probes),
        hooks=tuple(Check(hook, _find_check(container, hook.command, working_dir, search, root)) for hook in container.hooks),
        journal_socket=container.name in pod.systemd.journal_socket,
        log_pipe=container.name in pod.systemd.log_pipe or root.links_logs() or any(not listener.proxy for listener in listeners),
        listeners=listeners,
        role=container.role,
        notify=dict(pod.systemd.notify).get(container.name),
        proc_files=tuple(mount.path for mount in container.mounts if mount.path.startswith("/proc/")),
    )


def resolve_listeners(container: Container) -> tuple[Listener, ...]:
    """In the file's order. A socket is called as its port is, or by its number."""
    return tuple(
        Listener(
            listen_key(port.protocol),
            listen_address(port.host_ip, port.host_port),
            port.name or str(port.container_port),
            port.container_port if port.activation == "proxy" else 0,
        )
        for port in container.ports
        if port.activation
    )


class Environment(NamedTuple):
    """An app's variables, those apart that are secrets or have one in them."""

    plain: tuple[tuple[str, str], ...]
    secret: tuple[tuple[str, str], ...] = ()


def resolve_environment(facts: Facts, container: Container, config: ImageConfig, home: str) -> Environment:
    """PATH, HOSTNAME and HOME where nobody says them, the image's, then the pod file's with `$(VAR)` of what stands before."""
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": facts.pod.hostname or facts.pod.name, "HOME": home}
    if config.appc:  # appc spec, ace.md, Execution Environment
        env |= {"AC_APP_NAME": container.name, "container": "rktd"}
    for name, value in config.env:
        if is_environment_name(name):
            env[name] = value
        else:
            sys.stderr.write(f"<4>app {container.name}: {clean_text(name)} of its image is no variable: {_NAME_RULE}\n")
    secret: set[str] = set()
    for name, value, kind in _named_values(facts, container):
        env[name] = value
        secret = secret | {name} if kind == "Secret" else secret - {name}
    for variable in container.env:
        used: set[str] = set()
        if variable.key:
            found = facts.values.find_text(variable.key)
            if found is None:
                continue
            value = found
        elif variable.resource:
            value = find_resource(facts.pod, variable.resource, container)
        else:
            value = facts.value(variable.field) if variable.field else expand_references(variable.value, env, used)
        env[variable.name] = value
        is_secret = used & secret or (variable.key and variable.key.kind == "Secret")
        secret = secret | {variable.name} if is_secret else secret - {variable.name}
    if "PATH" in secret:
        raise ConfigError(f"app {container.name}: PATH must not come from a Secret: it is in messages")
    return Environment(tuple(p for p in env.items() if p[0] not in secret), tuple(p for p in env.items() if p[0] in secret))


def _named_values(facts: Facts, container: Container) -> Iterator[tuple[str, str, str]]:
    """Name, value and kind of each variable of `envFrom`. What cannot be one is left out with a warning, as kubelet does."""
    for source in container.env_from:
        for key, data in sorted(facts.values.find_all(source.source).items()):
            name = source.prefix + key
            text = decode_text(data)
            if is_environment_name(name) and text is not None:
                yield name, text, source.source.kind
            else:
                what = "its value is not text" if is_environment_name(name) else _NAME_RULE
                sys.stderr.write(f"<4>app {container.name}: {source.source.kind} {source.source.name}: {key} is no variable: {what}\n")


def resolve_command(container: Container, config: ImageConfig, environment: Environment) -> tuple[str, ...]:
    """Kubernetes' table: `command` replaces Entrypoint and drops Cmd; `args` replaces Cmd. Raises ConfigError where that shows a secret."""
    env = dict(environment.plain + environment.secret)
    head = container.command if container.command is not None else config.entrypoint
    tail = container.args
    if tail is None:
        tail = config.cmd if container.command is None else ()
    own = container.command is not None, container.args is not None
    used: set[str] = set()
    argv = [expand_references(word, env, used) if own[0] else word for word in head]
    argv += [expand_references(word, env, used) if own[1] else word for word in tail]
    for name in sorted(used & {name for name, _ in environment.secret}):
        hint = "let the app read the variable, or a file of a secret volume"
        raise ConfigError(
            f"app {container.name}: $({name}) would put a secret into an argument list, which every user of the host can read", hint=hint
        )
    if not argv or not argv[0]:
        hint = f"set command of container {container.name}"
        raise ConfigError(f"app {container.name}: neither the pod file nor the image says what to run", hint=hint)
    return tuple(argv)


def _find_check(container: Container, command: tuple[str, ...], working_dir: str, search: str, root: Root) -> str:
    """The program of an exec probe, or "". By its path it may be the app's own to make first, so that only a probe tells."""
    if not command:
        return ""
    if "/" in command[0]:
        return os.path.normpath(os.path.join(working_dir, command[0]))
    return find_program(container, command[0], working_dir, search, root)


def mounts_secrets(pod: Pod, container: Container) -> bool:
    """True for a container that has a Secret as files."""
    sources = {v.name: v.sources for v in pod.volumes if isinstance(v, Projected)}
    mounted = [source for mount in container.mounts for source in sources.get(mount.volume, ())]
    return any(isinstance(source, KeyFiles) and source.source.kind == "Secret" for source in mounted)


def resolve_mounts(container: Container, app: App) -> tuple[VolumeMount, ...]:
    """subPathExpr -> subPath. Raises ConfigError where it leads out of the volume, names what is no variable, or a secret."""
    env, secret = dict(app.env), dict(app.secret_env)
    mounts = []
    for mount in container.mounts:
        if not mount.sub_path_expr:
            mounts.append(mount)
            continue
        used: set[str] = set()
        text = expand_references(mount.sub_path_expr, env | dict.fromkeys(secret, ""), used)
        parts = text.split("/")
        if used & set(secret):
            reason = f"$({sorted(used & set(secret))[0]}) is a secret"
        elif "$(" in text:
            reason = f"{text!r} names a variable that is not there"
        elif text.startswith("/") or ".." in parts or not text.isprintable():
            reason = f"{text!r} is no path inside the volume"
        else:
            mounts.append(mount._replace(sub_path="/".join(part for part in parts if part not in ("", "."))))
            continue
        raise ConfigError(f"app {container.name}: subPathExpr {mount.sub_path_expr} of volume {mount.volume}: {reason}")
    return tuple(mounts)


def find_program(container: Container, word: str, working_dir: str, search: str, root: Root) -> str:
    """The absolute path of argv[0] inside the root: as execvp(3) finds it, in the app's own PATH.

    What lies in a volume cannot be checked before the pod runs, and is taken as it is.
    """
    where = word if "/" in word else f"PATH {search!r}"
    if "/" in word:
        candidates = [os.path.normpath(os.path.join(working_dir, word))]
    else:
        candidates = [os.path.normpath(f"{directory or working_dir}/{word}") for directory in search.split(":")]
    seen = {}
    for candidate in (c for c in candidates if c.startswith("/")):
        if any(candidate.startswith(mount.path.rstrip("/") + "/") for mount in container.mounts) and "/" in word:
            return candidate
        seen[candidate] = root.kind(candidate)
        if seen[candidate] == "executable":
            return candidate
    for candidate, kind in seen.items():
        if kind != "missing":
            what = "not executable" if kind == "file" else f"a {kind}, not a program" if kind == "directory" else "no regular file"
            raise ConfigError(f"app {container.name}: cannot run {word!r}: {candidate!r} is {what} in image {container.image}")
    raise ConfigError(f"app {container.name}: cannot run {word!r}: there is none in image {container.image} ({where})")


def resolve_signal(app: str, text: str) -> str:
    """KillSignal= of the image's StopSignal: a name with or without SIG, or a number; SIGTERM when it says none."""
    name = text.upper() if text else "SIGTERM"
    if name.isascii() and name.isdigit() and 0 < int(name) <= 64:
        return name
    name = name if name.startswith("SIG") else f"SIG{name}"
    realtime = name.removeprefix("SIGRTMIN+").removeprefix("SIGRTMAX-")
    if name in signal.Signals.__members__ or (realtime != name and realtime.isascii() and realtime.isdigit() and int(realtime) <= 30):
        return name
    raise ImageError(f"app {app}: the image's StopSignal {text!r} is no signal")


def resolve_confinement(app: str, security: Security, appc: Appc) -> Confinement:
    """A privileged app has everything that its user name space has to give, and no filter. Else an ACI's isolators may take away more.

    Where the pod file says anything of capabilities, the image's set counts for nothing. Raises ConfigError where it says nothing and must.
    """
    kind, _, apparmor = security.apparmor.partition("/")
    if kind == "localhost":
        check_profile(app, apparmor)
    if security.privileged:
        return Confinement((), no_new_privileges=False, seccomp=False, masked=False, privileged=True, apparmor=apparmor)
    capabilities = bounding_set(security.add_capabilities, security.drop_capabilities)
    if appc.capabilities is not None and not security.add_capabilities and not security.drop_capabilities:
        more = sorted(set(appc.capabilities) - set(capabilities))
        if more:
            hint = f"securityContext: {{capabilities: {{add: [{', '.join(more)}]}}}} grants them, drop: [{more[0]}] runs it without"
            raise ConfigError(f"app {app}: the image wants {', '.join(more)}, which no app has unless the pod file says so", hint=hint)
        capabilities = tuple(sorted(set(appc.capabilities)))
    kind, _, path = security.seccomp.partition("/")
    return Confinement(
        capabilities,
        no_new_privileges=not security.allow_escalation,
        seccomp=security.seccomp != "Unconfined",
        masked=security.proc_mount != "Unmasked",
        apparmor=apparmor,
        profile=load_profile(f"{Layout().seccomp_profiles}/{path}") if kind == "localhost" else None,
        calls=(appc.seccomp_mode, appc.seccomp_calls, appc.seccomp_errno) if appc.seccomp_mode else None,
    )


def resolve_resources(own: Resources, appc: Appc) -> Resources:
    """The pod file's, and where it says nothing the image's, but no request above the limit."""
    memory = own.memory_limit if own.memory_limit is not None else appc.memory_limit
    cpu = own.cpu_limit if own.cpu_limit is not None else appc.cpu_limit
    return own._replace(
        memory_limit=memory,
        memory_request=own.memory_request if own.memory_request is not None else _least(appc.memory_request, memory),
        cpu_limit=cpu,
        cpu_request=own.cpu_request if own.cpu_request is not None else _least(appc.cpu_request, cpu),
    )


def _least(wanted: int | None, limit: int | None) -> int | None:
    return wanted if wanted is None or limit is None else min(wanted, limit)


def _check_working_dir(container: Container, path: str, root: Root) -> None:
    """An ACI's must be there (aci.md, workingDirectory); what lies in a volume cannot be checked before the pod runs."""
    kind = root.kind(path)
    if kind != "directory" and not any(f"{path}/".startswith(mount.path.rstrip("/") + "/") for mount in container.mounts):
        what = "is missing" if kind == "missing" else "is no directory"
        raise ImageError(f"app {container.name}: the image's workingDirectory {path!r} {what}", hint="set workingDir")

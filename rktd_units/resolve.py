# SPDX-License-Identifier: Apache-2.0
"""A container of the pod file and its image -> the app, with nothing left open. Reads the image's root, writes nothing."""

import os
import signal
from collections.abc import Callable
from typing import NamedTuple, Protocol

from rktd_units.confine import Confinement, bounding_set
from rktd_units.errors import ConfigError, ImageError
from rktd_units.expand import expand_references
from rktd_units.images.manifest import ImageConfig
from rktd_units.podfile.model import Container, Pod, Security
from rktd_units.stage2 import App
from rktd_units.users import parse_accounts, resolve_identity

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Facts(NamedTuple):
    """What fieldRef can name (Kubernetes' downward API), as far as one host has it."""

    pod: Pod
    uid: str
    node: str
    pod_ip: str
    host_ip: str

    def value(self, field: str) -> str:
        return {
            "metadata.name": self.pod.name,
            "metadata.namespace": "default",
            "metadata.uid": self.uid,
            "spec.nodeName": self.node,
            "spec.serviceAccountName": "default",
            "status.podIP": self.pod_ip,
            "status.podIPs": self.pod_ip,
            "status.hostIP": self.host_ip,
            "status.hostIPs": self.host_ip,
        }.get(field) or self._keyed(field)

    def _keyed(self, field: str) -> str:
        """metadata.labels['KEY'] and metadata.annotations['KEY']; "" for a key that is not there, as Kubernetes has it."""
        kind, _, rest = field.partition("['")
        pairs = self.pod.labels if kind == "metadata.labels" else self.pod.annotations
        return dict(pairs).get(rest.removesuffix("']"), "")


class Root(Protocol):
    """What is asked of an image's root: `rootview.ImageRoot`."""

    def read_text(self, path: str) -> str: ...
    @property
    def kind(self) -> Callable[[str], str]: ...


def resolve_app(facts: Facts, container: Container, config: ImageConfig, root: Root) -> App:
    """Raises ConfigError or ImageError that names the app and the path, user or signal in question."""
    pod = facts.pod
    accounts = parse_accounts(root.read_text("etc/passwd"), root.read_text("etc/group"))
    supplemental = pod.supplemental_groups + ((pod.fs_group,) if pod.fs_group is not None else ())
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
    argv = resolve_command(container, config, dict(env))
    return App(
        name=container.name,
        program=find_program(container, argv[0], working_dir, dict(env).get("PATH", DEFAULT_PATH), root),
        argv=argv,
        env=env,
        working_dir=os.path.normpath(working_dir),
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        stop_signal=resolve_signal(container.name, config.stop_signal),
        confinement=resolve_confinement(container.security),
        resources=container.resources,
        journal_socket=container.name in pod.systemd.journal_socket,
        proc_files=tuple(mount.path for mount in container.mounts if mount.path.startswith("/proc/")),
    )


def resolve_environment(facts: Facts, container: Container, config: ImageConfig, home: str) -> tuple[tuple[str, str], ...]:
    """PATH, HOSTNAME and HOME where nobody says them, the image's, then the pod file's with `$(VAR)` of what stands before."""
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": facts.pod.hostname or facts.pod.name, "HOME": home}
    env.update(config.env)
    for variable in container.env:
        value = facts.value(variable.field) if variable.field else expand_references(variable.value, env)
        env[variable.name] = value
    return tuple(env.items())


def resolve_command(container: Container, config: ImageConfig, env: dict[str, str]) -> tuple[str, ...]:
    """Kubernetes' table: `command` replaces Entrypoint and drops Cmd; `args` replaces Cmd."""
    head = container.command if container.command is not None else config.entrypoint
    tail = container.args
    if tail is None:
        tail = config.cmd if container.command is None else ()
    own = container.command is not None, container.args is not None
    argv = [expand_references(word, env) if own[0] else word for word in head]
    argv += [expand_references(word, env) if own[1] else word for word in tail]
    if not argv or not argv[0]:
        hint = f"set command of container {container.name}"
        raise ConfigError(f"app {container.name}: neither the pod file nor the image says what to run", hint=hint)
    return tuple(argv)


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


def resolve_confinement(security: Security) -> Confinement:
    """A privileged app has everything that its user name space has to give, and no filter."""
    if security.privileged:
        return Confinement((), no_new_privileges=False, seccomp=False, masked=False, privileged=True)
    return Confinement(
        bounding_set(security.add_capabilities, security.drop_capabilities),
        no_new_privileges=not security.allow_escalation,
        seccomp=security.seccomp != "Unconfined",
        masked=security.proc_mount != "Unmasked",
    )

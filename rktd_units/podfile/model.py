# SPDX-License-Identifier: Apache-2.0
"""The pod as immutable records: no I/O, no YAML, no systemd.

Named tuples, not dataclasses: the generator imports this at every boot and reload, and `dataclasses` alone costs it 10 ms.
Sizes are bytes, times whole seconds, CPU millicores, ids as the container sees them. None means: the file does not say.
"""

from typing import NamedTuple

KINDS = ("ConfigMap", "Secret", "PersistentVolumeClaim")  # of documents that may stand beside the pod
HUGE_PAGES = {"hugepages-1Gi": 1 << 30, "hugepages-2Mi": 2 << 20}  # what amd64 and arm64 have
At = tuple[str, int, int]  # file, line and column, for stage0's refusals


class Reference(NamedTuple):
    """A ConfigMap or Secret that is asked for, or one key of it; `key` "" is all of it. `place` is the key path in the pod file."""

    kind: str  # ConfigMap, Secret
    name: str
    key: str = ""
    optional: bool = False
    place: str = ""
    at: At = ("", 0, 0)


class ResourceRef(NamedTuple):
    """A resourceFieldRef: `resource` is limits.cpu, limits.memory, requests.cpu or requests.memory; `divisor` is in millicores or bytes."""

    container: str  # "" is the one that it stands in
    resource: str
    divisor: int
    place: str = ""
    at: At = ("", 0, 0)


class EnvVar(NamedTuple):
    """One variable: a `value`, or where it comes from. `field` is a fieldRef path (metadata.name, status.podIP ...)."""

    name: str
    value: str = ""
    field: str = ""
    key: Reference | None = None
    resource: ResourceRef | None = None


class EnvFrom(NamedTuple):
    """All keys of a ConfigMap or Secret as variables, with `prefix` before their names."""

    source: Reference
    prefix: str = ""


class VolumeMount(NamedTuple):
    """A volume seen by a container. `path` is absolute inside the container, `sub_path` relative inside the volume.

    `sub_path_expr`: what `sub_path` becomes at the start, `$(VAR)` still in it.
    """

    volume: str
    path: str
    sub_path: str = ""
    read_only: bool = False
    sub_path_expr: str = ""


class Resources(NamedTuple):
    """Limits and requests: bytes, millicores and counts."""

    memory_limit: int | None = None
    memory_request: int | None = None
    cpu_limit: int | None = None
    cpu_request: int | None = None
    pids_limit: int | None = None
    storage_limit: int | None = None  # of what the app writes to its root
    huge_pages: tuple[tuple[int, int], ...] = ()  # size of a page, bytes in all
    devices: tuple[str, ...] = ()  # paths below /dev


class SELinux(NamedTuple):
    """seLinuxOptions: parts of a label; "" is what the host's policy has for containers."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""

    def __str__(self) -> str:
        return ":".join(part or "*" for part in self)


class Security(NamedTuple):
    """securityContext of a container, the pod's already merged in. Capability names without CAP_, upper case, sorted; may hold ALL."""

    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool = False
    read_only_root: bool = False
    allow_escalation: bool = False
    privileged: bool = False
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    seccomp: str = "RuntimeDefault"  # or Unconfined, or localhost/PATH of a profile
    proc_mount: str = "Default"  # or Unmasked
    apparmor: str = ""  # RuntimeDefault, Unconfined, or localhost/NAME of a profile of the host
    selinux: SELinux | None = None  # the same in all containers of a pod


class Port(NamedTuple):
    """containerPort: informational. `host_port`: 0 for none; `host_ip`: "" for every address of the host, else in its usual form."""

    container_port: int
    protocol: str = "TCP"
    name: str = ""
    host_port: int = 0
    host_ip: str = ""
    mark: tuple[int, int] = (0, 0)  # line and column of `hostPort`
    activation: str = ""  # "fd": the host's systemd listens, and the app gets the socket; "proxy": a proxy in the pod gets it


class Probe(NamedTuple):
    """One probe of a container. Seconds and counts, with Kubernetes' defaults; `grace` None is the pod's.

    `handler`: exec (`command`), http (`host`, `port`, `path`, `tls`, `headers`), tcp (`host`, `port`), grpc (`port`, `path`: the service).
    A hook has no other than handler and kind; its handler may be sleep, for `timeout` seconds.
    """

    handler: str
    kind: str = ""  # startup, readiness, liveness; of a hook: postStart, preStop
    command: tuple[str, ...] = ()
    host: str = ""  # an address; "" is the pod itself
    port: int = 0
    port_name: str = ""  # only until the container's ports are known
    path: str = ""
    tls: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    delay: int = 0
    period: int = 10
    timeout: int = 1
    successes: int = 1
    failures: int = 3
    grace: int | None = None


class Container(NamedTuple):
    """One app. `command` and `args` are None when absent (the image's count); `$(VAR)` is still in them."""

    name: str
    image: str
    pull_policy: str  # Always, IfNotPresent, Never: the default is already applied
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFrom, ...] = ()
    mounts: tuple[VolumeMount, ...] = ()
    ports: tuple[Port, ...] = ()
    resources: Resources = Resources()
    security: Security = Security()
    role: str = (
        "app"  # "init": runs to its end before what comes after it starts; "sidecar": starts then, and stays until the apps are through
    )
    probes: tuple[Probe, ...] = ()
    hooks: tuple[Probe, ...] = ()  # of the kinds postStart and preStop
    stop_signal: str = ""  # "" is the image's


class EmptyDir(NamedTuple):
    """A scratch directory that lives as long as the pod; `medium` "" is the disk, else Memory, HugePages[-SIZE]; `size_limit` in bytes."""

    name: str
    medium: str = ""
    size_limit: int | None = None


class HostPath(NamedTuple):
    """A path of the host. `type` is Kubernetes': "", DirectoryOrCreate, Directory, FileOrCreate, File, Socket, CharDevice, BlockDevice."""

    name: str
    path: str
    type: str = ""
    mark: tuple[int, int] = (0, 0)


class Item(NamedTuple):
    """A key of a ConfigMap or Secret as a file of a volume; `mode` None is the volume's."""

    key: str
    path: str
    mode: int | None = None


class KeyFiles(NamedTuple):
    """Keys as files: those of `items`, or all of them under their own names."""

    source: Reference
    items: tuple[Item, ...] | None = None


class FieldFile(NamedTuple):
    """What a fieldRef or resourceFieldRef gives, as a file."""

    path: str
    field: str = ""
    resource: ResourceRef | None = None
    mode: int | None = None


class Projected(NamedTuple):
    """A configMap, secret, downwardAPI or projected volume: files that are written at the start. Always read-only. Later sources win."""

    name: str
    sources: tuple[KeyFiles | FieldFile, ...]
    default_mode: int = 0o644
    at: At = ("", 0, 0)


class ClaimVolume(NamedTuple):
    """A persistentVolumeClaim volume: the directory of that name, which outlives the pod."""

    name: str
    claim: str
    read_only: bool = False


Volume = EmptyDir | HostPath | Projected | ClaimVolume


class DataMap(NamedTuple):
    """A ConfigMap or Secret document: key and value, sorted by key."""

    kind: str
    name: str
    data: tuple[tuple[str, bytes], ...] = ()


class Claim(NamedTuple):
    """A PersistentVolumeClaim document; `size` in bytes, None for no limit."""

    name: str
    size: int | None = None


class Documents(NamedTuple):
    """What stands beside the pod in its file."""

    maps: tuple[DataMap, ...] = ()
    claims: tuple[Claim, ...] = ()


class Systemd(NamedTuple):
    """The `systemd.io/...` annotations: unit names and lists as systemd takes them, checked."""

    wanted_by: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    slice: str = ""
    ip_address_allow: tuple[str, ...] = ()  # IPAddressAllow= of pod@NAME
    ip_address_deny: tuple[str, ...] = ()
    journal_socket: tuple[str, ...] = ()  # apps that get /dev/log and the journal's native socket
    log_pipe: tuple[str, ...] = ()  # apps that write to pipes instead of the journal's streams
    notify: tuple[tuple[str, str], ...] = ()  # apps that say READY=1 themselves (sd_notify(3)), and their watchdog's time or ""
    network: str = ""  # "" is the common one; none is only lo
    address: str = ""  # the IPv4 address that the pod asks for
    activation: tuple[tuple[str, str], ...] = ()  # ports whose sockets start the pod, as the file names them, and how: Port.activation
    cpus: tuple[tuple[str, str], ...] = ()  # app, or "" for the pod as a whole, and the CPUs that it may use, as in `0-3,6`
    auto_update: str = ""  # registry or local: where newer images come from (podctl update)
    idle_stop: str = ""  # the time after which a pod that nobody talks to stops, as systemd has it


class Dns(NamedTuple):
    """dnsConfig: lines of resolv.conf(5) beyond those of dnsPolicy."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # as there: NAME or NAME:VALUE


class Pod(NamedTuple):
    """One pod. `source` is the file it was read from, `sources` that file and the drop-ins merged over it, in order.

    `containers` begins with the init containers and sidecars, in their order.
    """

    name: str
    source: str
    sources: tuple[str, ...]
    containers: tuple[Container, ...]
    volumes: tuple[Volume, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    systemd: Systemd = Systemd()
    runtime_class: str = "nspawn"
    restart_policy: str = "Always"
    grace_seconds: int = 30
    deadline_seconds: int | None = None
    hostname: str = ""  # "" = the pod's name
    subdomain: str = ""
    host_network: bool = False
    dns_policy: str = "ClusterFirst"
    dns: Dns = Dns()
    host_aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (address, names) for /etc/hosts
    host_users: bool = False
    share_process_namespace: bool = False
    supplemental_groups: tuple[int, ...] = ()
    fs_group: int | None = None
    sysctls: tuple[tuple[str, str], ...] = ()  # of the pod's network and IPC name spaces
    host_ipc: bool = False
    host_pid: bool = False
    pull_secrets: tuple[Reference, ...] = ()
    fs_group_on_mismatch: bool = False  # fsGroupChangePolicy: OnRootMismatch
    beside: Documents = Documents()

    @property
    def selinux(self) -> SELinux | None:
        """The label of the pod, which is that of each app."""
        return self.containers[0].security.selinux if self.containers else None

    @property
    def has_network(self) -> bool:
        """True for a pod that is on a bridge: neither the host's network nor only lo."""
        return not self.host_network and self.systemd.network != "none"

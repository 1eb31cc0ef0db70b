# SPDX-License-Identifier: Apache-2.0
import pytest

from rktd_units.images.reference import parse_reference
from rktd_units.podfile import containers, schema, volumes
from rktd_units.podfile.environment import _ENV_NAME_HINT
from rktd_units.podfile.images import default_pull_policy
from rktd_units.podfile.model import EmptyDir, EnvVar, HostPath, Pod, Port, Resources, SELinux, Systemd, VolumeMount
from rktd_units.podfile.schema import read_pod
from rktd_units.strictyaml import parse_yaml

HEAD = "{apiVersion: v1, kind: Pod, metadata: {name: web%s}, spec: {%s}}"
APP = "containers: [{name: app, image: a:1%s}]%s"
DIGEST = "sha256:" + "a" * 64


def read(text: str) -> tuple[Pod | None, list[str]]:
    documents, faults = parse_yaml(text.encode(), "f")
    assert not faults
    pod, found = read_pod(documents, "web", "f", ("f",))
    return pod, [str(fault).split(": ", 1)[1] for fault in found]


def faults(text: str) -> list[str]:
    pod, found = read(text)
    assert (pod is None) == any(not fault.startswith("warning: ") for fault in found)
    return found


def of_container(fields: str, spec: str = "") -> list[str]:
    return faults(HEAD % ("", APP % (f", {fields}" if fields else "", f", {spec}" if spec else "")))


def of_spec(fields: str) -> list[str]:
    return of_container("", fields)


def pod_of(container: str = "", spec: str = "", metadata: str = "") -> Pod:
    pod, found = read(HEAD % (metadata, APP % (f", {container}" if container else "", f", {spec}" if spec else "")))
    assert found == []
    assert pod is not None
    return pod


def test_defaults() -> None:
    pod = pod_of()
    (app,) = pod.containers
    assert (pod.runtime_class, pod.restart_policy, pod.grace_seconds, pod.host_users, pod.host_network) == (
        "nspawn",
        "Always",
        30,
        False,
        False,
    )
    assert (app.command, app.args, app.pull_policy, app.security.allow_escalation, app.security.seccomp) == (
        None,
        None,
        "IfNotPresent",
        False,
        "RuntimeDefault",
    )


def test_a_whole_container() -> None:
    pod = pod_of(
        "command: [a, 'b c'], args: ['$(X)'], workingDir: /w/, ports: [{containerPort: 80, name: http}],"
        "env: [{name: A, value: 'x'}, {name: B, valueFrom: {fieldRef: {fieldPath: status.podIP}}}],"
        "volumeMounts: [{name: d, mountPath: /d//x/, subPath: a/./b, readOnly: true}, {name: h, mountPath: /h}],"
        "resources: {limits: {memory: 1Mi, cpu: 1.5}, requests: {cpu: 250m}},"
        "securityContext: {runAsUser: 5, capabilities: {drop: [ALL], add: [KILL, CHOWN]}, readOnlyRootFilesystem: true}",
        "volumes: [{name: d, emptyDir: {medium: Memory, sizeLimit: 1Ki}}, {name: h, hostPath: {path: /srv, type: Directory}}],"
        "securityContext: {runAsUser: 1, runAsGroup: 2, fsGroup: 3, supplementalGroups: [4], runAsNonRoot: true}",
    )
    (app,) = pod.containers
    assert (app.command, app.args, app.working_dir) == (("a", "b c"), ("$(X)",), "/w")
    assert app.env == (EnvVar("A", "x"), EnvVar("B", "", "status.podIP"))
    assert app.mounts == (VolumeMount("d", "/d/x", "a/b", True), VolumeMount("h", "/h"))
    assert app.ports == (Port(80, "TCP", "http"),)
    assert app.resources == Resources(1 << 20, None, 1500, 250)
    assert app.security[:4] == (5, 2, True, True)
    assert (app.security.add_capabilities, app.security.drop_capabilities) == (("CHOWN", "KILL"), ("ALL",))
    assert pod.volumes[0] == EmptyDir("d", "Memory", 1024)
    assert pod.volumes[1][:3] == HostPath("h", "/srv", "Directory")[:3]
    assert (pod.fs_group, pod.supplemental_groups) == (3, (4,))


def test_annotations() -> None:
    text = (
        ", labels: {app: web}, annotations: {systemd.io/wanted-by: multi-user.target, systemd.io/after: 'a.service b@c.service',"
        "systemd.io/slice: a-b.slice, systemd.io/ip-address-allow: '10.0.0.0/8 localhost ::1', systemd.io/journal-socket: app, x.org/y: z}"
    )
    pod = pod_of(metadata=text)
    assert pod.labels == (("app", "web"),)
    assert pod.systemd == Systemd(
        ("multi-user.target",), ("a.service", "b@c.service"), (), "a-b.slice", ("10.0.0.0/8", "localhost", "::1"), (), ("app",)
    )


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ("wanted-by: multi-user", "'multi-user' is not the name of a unit: did you mean 'multi-user.service'?"),
        ("after: 'a@.service'", "'a@.service' is a template: name an instance"),
        ("after: 'a%i.service'", "'a%i.service' is not the name of a unit"),
        ("slice: a.service", "'a.service' is not the name of a slice"),
        ("slice: a--b.slice", "'a--b.slice' is not the name of a slice"),
        ("ip-address-deny: 10.0.0.0/33", "must be any, localhost, link-local, multicast or ADDRESS[/PREFIX], got '10.0.0.0/33'"),
        ("ip-address-deny: 'fe80::1%eth0'", "must be any, localhost, link-local, multicast or ADDRESS[/PREFIX], got 'fe80::1%eth0'"),
        ("journal-socket: other", "the pod has no container 'other'"),
        ("notify: other", "the pod has no container 'other'"),
        ("cpus: 3-1", "must be CPUS or APP=CPUS such as 0-3,6, got '3-1'"),
        ("cpus: other=1", "the pod has no container 'other'"),
        ("notify: app=soon", "must be APP or APP=WATCHDOG such as 30s, 500ms or 2min, got 'app=soon'"),
        ("auto-update: daily", "must be registry or local, got 'daily'"),
        ("wantedby: x", "unknown annotation\n  hint: did you mean 'systemd.io/wanted-by'?"),
    ],
)
def test_bad_annotations(annotation: str, message: str) -> None:
    (found,) = faults(HEAD % (f", annotations: {{systemd.io/{annotation}}}", APP % ("", "")))
    assert found == f"metadata.annotations['systemd.io/{annotation.split(':')[0]}']: {message}"


def test_network_annotations() -> None:
    pod = pod_of(metadata=", annotations: {systemd.io/network: db, systemd.io/address: 10.112.16.9}")
    assert (pod.systemd.network, pod.systemd.address, pod.has_network) == ("db", "10.112.16.9", True)
    assert not pod_of(metadata=", annotations: {systemd.io/network: none}").has_network
    assert not pod_of(spec="hostNetwork: true").has_network


@pytest.mark.parametrize(
    ("annotations", "fields", "message"),
    [
        ("network: a-name-too-long", "", "network']: 'a-name-too-long' is not the name of a network: 10 lower-case letters"),
        ("address: 'fd00::1'", "", "address']: must be an IPv4 address, got 'fd00::1'"),
        ("network: db", "hostNetwork: true", "network']: the pod has the host's network: hostNetwork is true"),
        ("network: none, systemd.io/address: 10.0.0.1", "", "address']: the pod has no network: systemd.io/network is none"),
    ],
    ids=["long", "ipv6", "host", "none"],
)
def test_network_annotation_faults(annotations: str, fields: str, message: str) -> None:
    (found,) = faults(HEAD % (f", annotations: {{systemd.io/{annotations}}}", APP % ("", f", {fields}" if fields else "")))
    assert message in found


def test_lifecycle() -> None:
    ports = "ports: [{name: web, containerPort: 80}]"
    hooks = "{postStart: {exec: {command: [a, b]}}, preStop: {httpGet: {port: web, path: x}}, stopSignal: SIGUSR1}"
    container = pod_of(container=f"{ports}, lifecycle: {hooks}").containers[0]
    start, stop = container.hooks
    assert (start.kind, start.handler, start.command) == ("postStart", "exec", ("a", "b"))
    assert (stop.kind, stop.handler, stop.port, stop.path, container.stop_signal) == ("preStop", "http", 80, "/x", "SIGUSR1")
    assert pod_of(container="lifecycle: {preStop: {sleep: {seconds: 5}}}").containers[0].hooks[0].timeout == 5
    assert pod_of(container="lifecycle: {}").containers[0].hooks == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preStop: {}", "preStop: needs one of exec, httpGet, sleep"),
        ("preStop: {exec: {command: [a]}, sleep: {seconds: 1}}", "preStop: has exec and sleep: only one of them can be"),
        ("preStop: {tcpSocket: {port: 1}}", "preStop.tcpSocket: not supported"),
        ("postStart: {sleep: {seconds: -1}}", "postStart.sleep.seconds: must be between 0 and 2147483647, got -1"),
        ("postStart: {exec: {command: []}}", "postStart.exec.command: must name a program"),
        ("preStop: {httpGet: {port: web}}", "preStop.httpGet.port: the container has no port called 'web'"),
        ("stopSignal: TERM", "stopSignal: must be a signal such as SIGTERM or SIGRTMIN+3, got 'TERM'\n  hint: did you mean 'SIGTERM'?"),
        ("preStart: {}", "preStart: unknown field\n  hint: did you mean 'postStart'?"),
    ],
    ids=["none", "two", "tcp", "negative", "empty", "port", "signal", "unknown"],
)
def test_lifecycle_faults(text: str, message: str) -> None:
    (found,) = faults(HEAD % ("", APP % (f", lifecycle: {{{text}}}", "")))
    assert found == f"{C}lifecycle.{message}"


def test_init_containers_have_no_hooks() -> None:
    text = "initContainers: [{name: i, image: 'a:1', lifecycle: {stopSignal: SIGINT}%s}]"
    (found,) = faults(HEAD % ("", APP % ("", ", " + text % "")))
    assert found == "spec.initContainers[0].lifecycle: an init container has no hooks, unless its restartPolicy is Always"
    assert pod_of(spec=text % ", restartPolicy: Always").containers[0].stop_signal == "SIGINT"


def test_a_pod_without_network_has_no_host_port() -> None:
    text = HEAD % (", annotations: {systemd.io/network: none}", APP % (", ports: [{containerPort: 80, hostPort: 80}]", ""))
    assert faults(text) == [C + "ports[0].hostPort: the pod has no network: systemd.io/network is none"]


PORTS = "{name: a, containerPort: 80, hostPort: 8080}, {containerPort: 53, hostPort: 53, protocol: UDP}, {containerPort: 81}"


@pytest.mark.parametrize(
    ("annotations", "spec", "message"),
    [
        ("socket-activation: b", "", "the pod has no port 'b'"),
        ("socket-activation: '53'", "", "the pod has no port '53'"),
        ("socket-activation: a 80", "", "port '80' is named twice"),
        ("socket-activation: '81'", "", "port '81' of container app: needs a hostPort: there the socket listens"),
        (
            "socket-activation: 53/udp=proxy",
            "",
            "port '53/udp' of container app: the proxy is for TCP only: without =proxy the app gets it",
        ),
        ("socket-activation: a=app", "", "must be PORT or PORT=proxy, a port by its name or number, got 'a=app'"),
        (
            "socket-activation: 81=proxy",
            "hostNetwork: true",
            "port '81' of container app: hostNetwork is true: app and proxy would want the same port of the host",
        ),
        ("socket-activation: a", "initContainers", "'a' is more than one port of the pod\n  hint: give them names, and use those"),
    ],
    ids=["unknown", "udp", "twice", "no hostPort", "udp proxy", "mode", "host", "ambiguous"],
)
def test_activation_faults(annotations: str, spec: str, message: str) -> None:
    ports = PORTS if spec != "hostNetwork: true" else "{containerPort: 81}"
    init = "initContainers: [{name: i, image: 'a:1', ports: [{name: a, containerPort: 9}]}]"
    more = f", {init if spec == 'initContainers' else spec}" if spec else ""
    (found,) = faults(HEAD % (f", annotations: {{systemd.io/{annotations}}}", APP % (f", ports: [{ports}]", more)))
    assert found == f"metadata.annotations['systemd.io/socket-activation']: {message}"


def test_activation() -> None:
    """No network, and ports of the host below 1024, are no fault for a port on which the host listens."""
    none = ", annotations: {systemd.io/network: none, systemd.io/socket-activation: 'a 53/udp'}"
    container = pod_of(metadata=none, container=f"ports: [{PORTS}]").containers[0]
    assert [(port.host_port, port.activation) for port in container.ports] == [(8080, "fd"), (53, "fd"), (0, "")]
    host = ", annotations: {systemd.io/socket-activation: '80'}"
    container = pod_of(metadata=host, spec="hostNetwork: true", container="ports: [{containerPort: 80}]").containers[0]
    assert (container.ports[0].host_port, container.ports[0].activation) == (80, "fd")


def test_idle_stop_is_for_proxies() -> None:
    text = ", annotations: {systemd.io/socket-activation: 'a%s', systemd.io/idle-stop: '5%s'}"
    assert pod_of(metadata=text % ("=proxy", "min"), container=f"ports: [{PORTS}]").systemd.idle_stop == "5min"
    (found,) = faults(HEAD % (text % ("", "min"), APP % (f", ports: [{PORTS}]", "")))
    assert "idle-stop']: needs systemd.io/socket-activation with PORT=proxy" in found
    (found,) = faults(HEAD % (text % ("=proxy", ""), APP % (f", ports: [{PORTS}]", "")))
    assert "idle-stop']: must be a time such as 30s, 5min or 2h, got '5'" in found


C = "spec.containers[0]."


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("imagePullpolicy: Always", [C + "imagePullpolicy: unknown field\n  hint: did you mean 'imagePullPolicy'?"]),
        (
            "imagePullPolicy: Allways",
            [C + "imagePullPolicy: must be one of Always, IfNotPresent, Never, got 'Allways'\n  hint: did you mean 'Always'?"],
        ),
        ("command: sh", [C + "command: must be a list, got 'sh'\n  hint: write it as a list, even of one"]),
        ("command: [sleep, 5]", [C + 'command[1]: must be a string, got 5\n  hint: quote it: "5"']),
        ("command: ['a\\0']".replace("'", '"'), [C + "command[0]: must not contain a NUL byte"]),
        ("env: [{name: A, value: yes}]", [C + 'env[0].value: must be a string, got yes\n  hint: quote it: "yes"']),
        ("env: [{name: A, value: 1.5}]", [C + 'env[0].value: must be a string, got 1.5\n  hint: quote it: "1.5"']),
        (
            "env: [{name: A.b}]",
            [C + f"env[0].name: 'A.b' is not the name of a variable\n  hint: {_ENV_NAME_HINT}"],
        ),
        ("env: [{name: A}, {name: A}]", [C + "env[1].name: 'A' is repeated, first in line 1"]),
        (
            "env: [{name: A, valueFrom: {secretKeyRef: {}}}]",
            [C + "env[0].valueFrom.secretKeyRef.key: is required", C + "env[0].valueFrom.secretKeyRef.name: is required"],
        ),
        ("tty: yes", [C + "tty: must be true or false, got 'yes'\n  hint: write true"]),
        ("tty: true", [C + "tty: not supported yet"]),
        ("tty: false", []),
        ("livenessProbe: {exec: {}}", [C + "livenessProbe.exec.command: is required"]),
        ("envFrom: []", []),
        ("workingDir: data", [C + "workingDir: must be absolute, got 'data'"]),
        ("terminationMessagePath: /x", ["warning: " + C + "terminationMessagePath: has no meaning on a single host, ignored"]),
        (
            "securityContext: {runAsUser: 70000}",
            [
                C + "securityContext.runAsUser: must be between 0 and 65535, got 70000\n"
                "  hint: a pod has the ids 0 to 65535: no other can exist in it"
            ],
        ),
        (
            "securityContext: {runAsUser: '5'}",
            [C + "securityContext.runAsUser: must be a number, got the string '5'\n  hint: write 5, without quotes"],
        ),
        ("securityContext: {runAsNonRoot: true, runAsUser: 0}", [C + "securityContext.runAsUser: is 0, but runAsNonRoot is true"]),
        (
            "securityContext: {capabilities: {add: [CAP_KILL]}}",
            [C + "securityContext.capabilities.add[0]: 'CAP_KILL' is not a capability\n  hint: write KILL"],
        ),
        (
            "securityContext: {seccompProfile: {type: Localhost}}",
            [C + "securityContext.seccompProfile.localhostProfile: is required"],
        ),
        (
            "securityContext: {seccompProfile: {type: Unconfined, localhostProfile: a.json}}",
            [C + "securityContext.seccompProfile.localhostProfile: must not be set unless type is Localhost"],
        ),
        ("ports: [{containerPort: 80, hostPort: 8080, hostIP: 192.0.2.1}]", []),
        ("ports: [{containerPort: 80, hostIP: 192.0.2.1}]", [C + "ports[0].hostIP: says nothing without a hostPort"]),
        ("ports: [{containerPort: 80, hostPort: 80, hostIP: here}]", [C + "ports[0].hostIP: must be an IP address, got 'here'"]),
        (
            "ports: [{containerPort: 80, hostPort: 80, protocol: SCTP}]",
            [C + "ports[0].hostPort: SCTP ports of the host are not supported\n  hint: TCP or UDP, or hostNetwork: true"],
        ),
        (
            "ports: [{containerPort: 80, hostPort: 80}, {containerPort: 81, hostPort: 80, hostIP: 192.0.2.1}]",
            [C + "ports[1].hostPort: TCP port 80 of the host is wanted twice, first in line 1"],
        ),
        ("ports: [{containerPort: 80, hostPort: 80}, {containerPort: 80, hostPort: 80, protocol: UDP}]", []),
        (
            "ports: [{containerPort: 80, hostPort: 80, hostIP: 0.0.0.0}, {containerPort: 81, hostPort: 80, hostIP: '2001:db8::1'}]",
            [],
        ),
        ("ports: [{containerPort: 80}, {containerPort: 80}]", [C + "ports[1].containerPort: '80/TCP' is repeated, first in line 1"]),
        ("volumeMounts: [{name: d, mountPath: /d}]", [C + "volumeMounts[0].name: the pod has no volume 'd'"]),
        ("resources: {limits: {memory: 1Mi}, requests: {memory: 2Mi}}", [C + "resources.requests.memory: is more than the limit"]),
        ("resources: {limits: {hugepages-2Mi: 3Mi}}", [C + "resources.limits.hugepages-2Mi: must be whole pages of 2Mi, got '3Mi'"]),
        (
            "resources: {limits: {hugepages-2Mi: 4Mi}, requests: {hugepages-2Mi: 2Mi}}",
            [C + "resources.requests.hugepages-2Mi: must be the limit"],
        ),
        (
            "resources: {limits: {systemd.io/pids: 5000000}}",
            [C + "resources.limits['systemd.io/pids']: must be 4194304 at most, got '5000000'"],
        ),
        ("resources: {limits: {systemd.io/device-fuse: 2}}", [C + "resources.limits['systemd.io/device-fuse']: must be 1, got '2'"]),
        (
            "resources: {limits: {systemd.io/device-a--b: 1}}",
            [
                C + "resources.limits['systemd.io/device-a--b']: 'a--b' is not the name of a device below /dev, with dashes for slashes\n"
                "  hint: a device whose name has a dash is a hostPath of type CharDevice or BlockDevice"
            ],
        ),
        ("securityContext: {appArmorProfile: {type: Localhost}}", [C + "securityContext.appArmorProfile.localhostProfile: is required"]),
        (
            "securityContext: {appArmorProfile: {type: Localhost, localhostProfile: -x}}",
            [C + "securityContext.appArmorProfile.localhostProfile: '-x' is not the name of an AppArmor profile"],
        ),
        ("resources: {limits: {ex.org/gpu: 1}}", [C + "resources.limits['ex.org/gpu']: not supported"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_container_faults(fields: str, expected: list[str]) -> None:
    assert of_container(fields) == expected


MOUNT = "volumeMounts: [%s]"
PROC = "what is in /proc is the kernel's, but for cpuinfo, diskstats, loadavg, meminfo, slabinfo, stat, swaps and uptime"
VOLUME = "volumes: [{name: d, emptyDir: {}}]"


@pytest.mark.parametrize(
    ("mounts", "message"),
    [
        ("{name: d, mountPath: data}", "mountPath: must be absolute, got 'data'"),
        ("{name: d, mountPath: '/a:b'}", "mountPath: must not contain ':', got '/a:b'"),
        ("{name: d, mountPath: /a/../b}", "mountPath: must not contain '..', got '/a/../b'"),
        ("{name: d, mountPath: /}", "mountPath: must not be the root of the container"),
        (
            "{name: d, mountPath: /dev}",
            "mountPath: no volume can be at '/dev': it would hide the devices that every program needs; places below it are fine",
        ),
        ("{name: d, mountPath: /dev/pts/0}", "mountPath: no volume can be at '/dev/pts/0': it has the app's terminals"),
        ("{name: d, mountPath: /dev/mqueue}", "mountPath: no volume can be at '/dev/mqueue': it has the pod's message queues"),
        ("{name: d, mountPath: /proc/./sys}", f"mountPath: no volume can be at '/proc/sys': {PROC}"),
        ("{name: d, mountPath: /proc/stat/x}", f"mountPath: no volume can be at '/proc/stat/x': {PROC}"),
        ("{name: d, mountPath: /sys}", "mountPath: no volume can be at '/sys': what is in /sys is the kernel's"),
        ("{name: d, mountPath: /a, subPath: ../b}", "subPath: must not contain '..', got '../b'"),
        ("{name: d, mountPath: /a, subPath: /b}", "subPath: must be relative, got '/b'"),
        ("{name: d, mountPath: /a, subPathExpr: a, subPath: b}", "subPathExpr: cannot be beside subPath"),
        ("{name: d, mountPath: /a, subPathExpr: $(X)/../y}", "subPathExpr: must not contain '..', got '$(X)/../y'"),
        ("{name: d, mountPath: /a, mountPropagation: Bidirectional}", "mountPropagation: 'Bidirectional' is not supported yet"),
    ],
)
def test_mount_faults(mounts: str, message: str) -> None:
    assert of_container(MOUNT % mounts, VOLUME) == [f"{C}volumeMounts[0].{message}"]


@pytest.mark.parametrize("path", ["/dev/shm", "/dev/log", "/device", "/dev/ptsx", "/proc/meminfo", "/system", "/procfs/x"])
def test_mounts_below_dev_and_beside_the_kernel(path: str) -> None:
    assert of_container(MOUNT % f"{{name: d, mountPath: {path}}}", VOLUME) == []


def test_two_mounts_at_one_path() -> None:
    mounts = "{name: d, mountPath: /a}, {name: d, mountPath: /a/}"
    assert of_container(MOUNT % mounts, VOLUME) == [C + "volumeMounts[1].mountPath: '/a' is repeated, first in line 1"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("volumes: [{name: d}]", "spec.volumes[0]: has no type"),
        ("volumes: [{name: d, emptyDir: {}, hostPath: {path: /x}}]", "spec.volumes[0]: must have one type, got emptyDir and hostPath"),
        ("volumes: [{name: d, nfs: {}}]", "spec.volumes[0].nfs: not supported"),
        ("volumes: [{name: d, image: {reference: x}}]", "spec.volumes[0].image: not supported yet"),
        (
            "volumes: [{name: d, emptyDir: {medium: HugePages-2Mi}}]",
            "spec.volumes[0].emptyDir.medium: needs a container with resources.limits of hugepages-2Mi",
        ),
        ("volumes: [{name: d, hostPath: {path: /a/..}}]", "spec.volumes[0].hostPath.path: must not contain '..'"),
        (VOLUME, "warning: spec.volumes[0]: no container mounts the volume 'd'"),
        (
            "runtimeClassName: xen, hostNetwork: true",
            "spec.hostNetwork: not supported with runtimeClassName: xen: a virtual machine has its own kernel",
        ),
        ("runtimeClassName: xen, hostIPC: true, hostUsers: true", "spec.hostIPC: not supported with runtimeClassName: xen"),
        (
            "runtimeClassName: xen, volumes: [{name: v, hostPath: {path: /v, type: Socket}}]",
            "spec.volumes[0].hostPath.type: not supported with runtimeClassName: xen: a virtual machine has its own kernel",
        ),
        (
            "runtimeClassName: xen, securityContext: {appArmorProfile: {type: Localhost, localhostProfile: x}}",
            "spec.securityContext.appArmorProfile: not supported with runtimeClassName: xen: the host's profiles are not",
        ),
        ("runtimeClassName: kata", "spec.runtimeClassName: must be one of nspawn, xen, got 'kata'"),
        ("initContainers: [{}]", "spec.initContainers[0].image: is required"),
        (
            "initContainers: [{name: a, image: x, restartPolicy: Never}]",
            "spec.initContainers[0].restartPolicy: 'Never' is not supported yet",
        ),
        ("initContainers: [{name: app, image: x}]", "spec.containers[0].name: 'app' is repeated, first in "),
        (
            "initContainers: [{name: a, image: x, volumeMounts: [{name: v, mountPath: /v}]}]",
            "spec.initContainers[0].volumeMounts[0].name: the pod",
        ),
        ("activeDeadlineSeconds: 0", "spec.activeDeadlineSeconds: must be"),
        ("dnsPolicy: None", "spec.dnsPolicy: with None, dnsConfig must have nameservers"),
        ("dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true", "spec.dnsPolicy: a pod with hostNetwork does not know the names of pods"),
        ("dnsConfig: {nameservers: [a]}", "spec.dnsConfig.nameservers[0]: must be an IP address, got 'a'"),
        (
            "dnsConfig: {nameservers: [192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4]}",
            "spec.dnsConfig.nameservers: must have 3 at most, got 4",
        ),
        ("dnsConfig: {searches: [a b]}", "spec.dnsConfig.searches[0]: must be a DNS name, got 'a b'"),
        ("dnsConfig: {options: [{name: 'ndots 5'}]}", "spec.dnsConfig.options[0]: must be without space"),
        ("hostAliases: [{ip: 192.0.2.1, hostnames: ['a\\nb']}]", "spec.hostAliases[0].hostnames[0]: must be a DNS name"),
        ("hostAliases: [{ip: 192.0.2.1}]", "spec.hostAliases[0].hostnames: is required"),
        ("subdomain: A", "spec.subdomain: 'A' is not a valid name"),
        ("runtimeClassName: xen, hostPID: true, hostUsers: true", "spec.hostPID: not supported with runtimeClassName: xen"),
        ("hostPID: true", "spec.hostPID: needs hostUsers: true: the host's processes have ids that a pod's user namespace lacks"),
        (
            "hostPID: true, hostUsers: true, shareProcessNamespace: true",
            "spec.shareProcessNamespace: cannot be with hostPID: true, by which the apps see each other's processes, too\n  hint: leave it",
        ),
        ("hostIPC: true", "spec.hostIPC: needs hostUsers: true: the host's objects have ids that a pod's user namespace lacks"),
        (
            "securityContext: {sysctls: [{name: net.ipv4.tcp_rmen, value: '1'}]}",
            "spec.securityContext.sysctls[0].name: 'net.ipv4.tcp_rmen' is not a sysctl that a pod may set\n  hint: did you mean "
            "'net.ipv4.tcp_rmem'?",
        ),
        (
            "securityContext: {sysctls: [{name: net.ipv4.tcp_rmem, value: 1; reboot}]}",
            "spec.securityContext.sysctls[0].value: must be numbers, got '1; reboot'",
        ),
        (
            "hostIPC: true, hostUsers: true, securityContext: {sysctls: [{name: kernel.shm_rmid_forced, value: '1'}]}",
            "spec.securityContext.sysctls: would change the host's IPC objects: hostIPC is true",
        ),
        (
            "securityContext: {seLinuxOptions: {type: 'a:b'}}",
            "spec.securityContext.seLinuxOptions.type: 'a:b' is no type of an SELinux label",
        ),
        (
            "hostNetwork: true, securityContext: {sysctls: [{name: net/ipv4/tcp_rmem, value: '1'}]}",
            "spec.securityContext.sysctls: would change the host's network: hostNetwork is true",
        ),
        (
            "runtimeClassName: xen, securityContext: {seLinuxOptions: {level: s0}}",
            "warning: spec.securityContext.seLinuxOptions: means nothing with runtimeClassName: xen: a virtual machine has its own kernel",
        ),
        ("nodeSelector: {a: b}", "warning: spec.nodeSelector: has no meaning on a single host, ignored"),
        ("terminationGracePeriodSeconds: -1", "spec.terminationGracePeriodSeconds: must be between 0 and 2147483647, got -1"),
        ("terminationGracePeriodSeconds: 030", "spec.terminationGracePeriodSeconds: must be a decimal number, got '030'"),
        ("image: x", "spec.image: unknown field"),
    ],
)
def test_spec_faults(fields: str, expected: str) -> None:
    assert any(found.startswith(expected) for found in of_spec(fields)), of_spec(fields)


def test_ports_of_the_host_network() -> None:
    ports = "ports: [{containerPort: 80, hostPort: 80}]"
    (found,) = of_container(ports, "hostNetwork: true")
    assert found.startswith(C + "ports[0].containerPort: port 80 of the host is out of reach: below 1024")
    assert of_container(ports, "hostNetwork: true, hostUsers: true") == []
    assert of_container("ports: [{containerPort: 8080, hostPort: 80}]", "hostNetwork: true") == [
        C + "ports[0].hostPort: must be the containerPort 8080 when hostNetwork is true, got 80"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# nothing", ["holds no pod"]),
        ("[]", ["must be a map, got a list"]),
        ("kind: Deployment", ["kind: must be Pod, got 'Deployment'\n  hint: what is under spec.template is a pod"]),
        ("apiVersion: v1\nkind: Pod", ["metadata: is required", "spec: is required"]),
        (HEAD % ("", "containers: []"), ["spec.containers: must have one container at least"]),
        (HEAD % ("", APP % ("", "")) + "\n---\nkind: Secret", ["apiVersion: is required", "metadata: is required"]),
        ("kind: Secret\n---\nkind: ConfigMap", ["holds no pod", *["apiVersion: is required", "metadata: is required"] * 2]),
        (HEAD % ("", APP % ("", "")) + "\n---\nkind: Pod", ["kind: a second Pod in one file\n  hint: give it a file of its own"]),
        ((HEAD % ("", APP % ("", ""))).replace("web", "wob"), ["metadata.name: must be 'web' as the file is called, got 'wob'"]),
        (HEAD % (", namespace: x", APP % ("", "")), ["warning: metadata.namespace: has no meaning on a single host, ignored"]),
        (
            HEAD % ("", "containers: [{name: dbus, image: a}]"),
            ["spec.containers[0].name: 'dbus' is reserved: the pod's own systemd has a unit of that name"],
        ),
        (HEAD % ("", "containers: [{name: a}]"), ["spec.containers[0].image: is required"]),
        (
            HEAD % ("", "containers: [{name: a, image: b}, {name: a, image: b}]"),
            ["spec.containers[1].name: 'a' is repeated, first in line 1"],
        ),
    ],
    ids=range(13),
)
def test_documents(text: str, expected: list[str]) -> None:
    assert faults(text) == expected


def test_all_faults_come_sorted() -> None:
    text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n"
    text += "  hostPID: true\n  containers:\n  - image: A\n    tty: 1\n  nodeName: x\n"
    documents, _ = parse_yaml(text.encode(), "f")
    found = read_pod(documents, "web", "f", ("f",))[1]
    assert [(d.line, d.column, d.path) for d in found] == [
        (6, 12, "spec.hostPID"),
        (8, 5, "spec.containers[0].name"),
        (8, 12, "spec.containers[0].image"),
        (9, 10, "spec.containers[0].tty"),
        (10, 13, "spec.nodeName"),
    ]


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("a", "Always"),
        ("a:latest", "Always"),
        ("a:1", "IfNotPresent"),
        ("127.0.0.1:5000/a", "Always"),
        ("127.0.0.1:5000/a:1", "IfNotPresent"),
        (f"a@{DIGEST}", "IfNotPresent"),
        ("oci:/srv/a", "IfNotPresent"),
        ("oci:/srv/a:latest", "IfNotPresent"),
        (f"oci:/srv/a:latest@{DIGEST}", "IfNotPresent"),
        ("docker-archive:/srv/a.tar", "IfNotPresent"),
        ("oci-archive:/srv/a.tar:latest", "IfNotPresent"),
        ("dir:/srv/a", "IfNotPresent"),
        ("aci:/srv/a.aci", "IfNotPresent"),
        ("aci:https://ex.org/a.aci", "IfNotPresent"),
        ("aci:ex.org/a", "Always"),
        ("aci:ex.org/a,os=linux", "Always"),
        ("aci:ex.org/a:latest,os=linux", "Always"),
        ("aci:ex.org/a:1", "IfNotPresent"),
        (f"aci:ex.org/a@sha512-{'0' * 128}", "IfNotPresent"),
    ],
)
def test_good_images(image: str, policy: str) -> None:
    assert default_pull_policy(image) == policy
    assert faults(HEAD % ("", f"containers: [{{name: a, image: '{image}'}}]")) == []
    assert parse_reference(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("docker://a", "'docker://a' is not an image reference\n  hint: write a"),
        ("Nginx", "'Nginx' is not a repository name\n  hint: it must be lower case: nginx"),
        ("a b", "'a b' is not an image reference"),
        ("a@sha256:1", "'sha256:1' is not a digest\n  hint: sha256: and 64 lower case hexadecimal digits"),
        ("oci:a", "the path must be absolute, got 'a'"),
        ("oci:/a/../b", "the path must be plain, without '//', '.' and '..', got '/a/../b'"),
        ("docker-archive:/a:b", "a docker-archive takes no name after its path: it must hold one image"),
        (
            "aci:a",
            "'aci:a' is not an image reference: 'a' is not the name of an ACI\n"
            "  hint: PATH, https://HOST/PATH, or HOST/NAME[:VERSION][,LABEL=VALUE]...",
        ),
        ("dir:/a:b", "a dir takes no name after its path: it must hold one image"),
        ("a:b:c", "'b:c' is not a tag"),
    ],
)
def test_bad_images(image: str, message: str) -> None:
    assert faults(HEAD % ("", f"containers: [{{name: a, image: '{image}'}}]")) == [f"spec.containers[0].image: {message}"]


# k8s.io/api/core/v1 as of Kubernetes 1.34: none may be unknown here.
POD_SPEC = """
    activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy enableServiceLinks
    ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname hostnameOverride imagePullSecrets
    initContainers nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates resourceClaims
    resources restartPolicy runtimeClassName schedulerName schedulingGates securityContext serviceAccount serviceAccountName
    setHostnameAsFQDN shareProcessNamespace subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes
"""
CONTAINER = """
    args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe resizePolicy resources
    restartPolicy restartPolicyRules securityContext startupProbe stdin stdinOnce terminationMessagePath terminationMessagePolicy
    tty volumeDevices volumeMounts workingDir
"""


def test_every_field_of_kubernetes_is_known() -> None:
    assert set(POD_SPEC.split()) <= set(schema._SPEC)
    assert set(CONTAINER.split()) <= set(containers.CONTAINER)
    assert len(containers.CAPABILITIES) == 41
    assert {"emptyDir", "hostPath", "csi", "nfs", "projected"} <= set(volumes._VOLUME)


SAME = "a pod has one SELinux label, since its systemd does not see SELinux; "


@pytest.mark.parametrize(
    ("pod", "first", "second", "expected"),
    [
        ("{level: 's0:c1,c2'}", "", "", SELinux(level="s0:c1,c2")),
        ("{}", "", "", None),
        ("{type: x_t}", "{user: u, role: r, type: t, level: s0}", "{user: u, role: r, type: t, level: s0}", SELinux("u", "r", "t", "s0")),
        ("{}", "{type: t}", "", SAME + "app one has *:*:t:*, app two has none"),
        ("{type: t}", "", "{level: s0}", SAME + "app one has *:*:t:*, app two has *:*:*:s0"),
    ],
    ids=["pod", "empty", "apps", "one-app", "other"],
)
def test_selinux_options(pod: str, first: str, second: str, expected: SELinux | str | None) -> None:
    """A container's replace those of its pod, as in Kubernetes."""
    image = "oci:/srv/i@sha256:" + "a" * 64
    apps = [
        f"{{name: {n}, image: '{image}', securityContext: {{seLinuxOptions: {o or '{}'}}}}}" for n, o in (("one", first), ("two", second))
    ]
    spec = f"securityContext: {{seLinuxOptions: {pod}}}, containers: [{', '.join(apps)}]"
    text = f"{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{{spec}}}}}"
    documents, _ = parse_yaml(text.encode(), "f")
    read, found = read_pod(documents, "web", "f", ("f",))
    assert (read.selinux if read else found[0].message) == expected


APPARMOR = "container.apparmor.security.beta.kubernetes.io"


@pytest.mark.parametrize(
    ("annotation", "fields", "expected"),
    [
        ("app: runtime/default", "", "RuntimeDefault"),
        ("app: unconfined", "", "Unconfined"),
        ("app: localhost/web-server", "", "localhost/web-server"),
        ("app: localhost/x", ", securityContext: {appArmorProfile: {type: Localhost, localhostProfile: x}}", "localhost/x"),
        (
            "app: localhost/x",
            ", securityContext: {appArmorProfile: {type: Unconfined}}",
            "the container's appArmorProfile says something else",
        ),
        ("app: localhost/a b", "", "'a b' is not the name of an AppArmor profile"),
        ("app: x", "", "must be runtime/default, unconfined or localhost/NAME, got 'x'"),
        ("other: unconfined", "", "the pod has no container 'other'"),
    ],
)
def test_apparmor_annotations(annotation: str, fields: str, expected: str) -> None:
    text = HEAD % (f", annotations: {{{APPARMOR}/{annotation}}}", APP % (fields, ""))
    documents, _ = parse_yaml(text.encode(), "f")
    pod, found = read_pod(documents, "web", "f", ("f",))
    assert (pod.containers[0].security.apparmor if pod else found[0].message) == expected

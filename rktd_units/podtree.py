# SPDX-License-Identifier: Apache-2.0
"""What stage0 writes for a pod: the stage1 root with its /etc and units, and the plan. Pure: text out, nothing touched.

Of a pod in a Xen guest all of it is in the guest, under the same paths (guesttree.py).
"""

from typing import NamedTuple

from rktd_units.network.names import render_hosts
from rktd_units.network.state import Attachment
from rktd_units.paths import Layout
from rktd_units.podfile.model import HUGE_PAGES, ClaimVolume, Container, EmptyDir, HostPath, Pod, Projected, Volume
from rktd_units.podsockets import MARK, proxy_unit, sockets_unit
from rktd_units.stage1 import nspawn
from rktd_units.stage2 import (
    ENVIRONMENT_DIRECTORY,
    HOOKS_FILE,
    NETWORK_BATCH,
    POD_STREAM,
    PROBES_FILE,
    App,
    PodSettings,
    has_probes,
    over_directory,
    pipe_path,
    render_hooks,
    render_probes,
    render_units,
    stream_path,
)
from rktd_units.translate import find_devices, has_exec_socket, is_device
from rktd_units.unitfile import UnitFile
from rktd_units.values import File

_UNITS = "etc/systemd/system"
# Units of the host's systemd that end a pod: without them a stop takes 90 s (DESIGN section 5).
_HOST_UNITS = [
    "exit.target",
    "final.target",
    "halt.target",
    "poweroff.target",
    "reboot.target",
    "shutdown.target",
    "umount.target",
    "systemd-exit.service",
    "systemd-halt.service",
    "systemd-poweroff.service",
    "systemd-reboot.service",
]
_MESSAGEBUS_ID = 65533  # of the pod's own D-Bus, which starts only when somebody asks (systemctl -M)
_NOBODY_ID = 65534
_SYSTEMD_PLACES = ("/run/host/.os-release-stage", "/run/systemd/incoming")  # it mounts there, and would fail under a read-only /run
PROVIDED_FILES = ("hosts", "hostname", "resolv.conf")


class Tree(NamedTuple):
    """Everything below the pod's directory: relative path -> text or link target. All of it belongs to the pod's root."""

    directories: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    pipes: tuple[str, ...]  # named ones


class Start(NamedTuple):
    """One start of a pod, everything resolved. `storage`: where its upper directories and scratch volumes are."""

    pod: Pod
    apps: tuple[App, ...]
    layers: tuple[tuple[str, ...], ...]  # per app, lowest first
    image_volumes: tuple[tuple[str, ...], ...]  # per app
    id_base: int | None
    storage: str
    machine_id: str
    resolv_conf: str
    files: tuple[tuple[Projected, tuple[File, ...]], ...] = ()  # of each volume that is written at the start
    hosts: str = ""  # the text of the host's own file, for a pod with hostNetwork
    attachment: Attachment | None = None
    has_names: bool = False  # the pod's network has a name server of its own
    source_hash: str = ""  # of the pod's files
    enters: bool = False  # exec probes and hooks are run by who enters the app
    labels: tuple[str, str, str] | None = None  # selinux.Labels


def render_tree(start: Start) -> Tree:
    """The stage1 root (below root/) and the files that apps get (below files/)."""
    pod = start.pod
    settings = PodSettings(
        pod.name,
        pod.restart_policy,
        pod.grace_seconds,
        pod.share_process_namespace or pod.host_pid,
        _streams(pod),
        start.attachment is not None,
        pod.sysctls,
        start.enters,
        pod.systemd.idle_stop,
        pod.deadline_seconds,
        pod.host_pid,
    )
    files = [(f"root/{_UNITS}/{name}", text) for name, text in render_units(settings, start.apps)]
    bus = _bus_units(is_user=pod.host_pid) if pod.runtime_class == "nspawn" else ()  # nobody could ask a Xen guest's
    files += [(f"root/{_UNITS}/{name}", text) for name, text in bus]
    # The apps' mounts are not the pod's PID 1's to unmount when it stops: it may not, and would say so.
    files.append((f"root/{_UNITS}/mount.d/50-leave.conf", "[Unit]\nConflicts=\nDefaultDependencies=no\n"))
    if pod.host_pid:
        files += _user_manager(start.apps)
    files += [("root/etc/machine-id", start.machine_id + "\n"), ("root/etc/os-release", f'ID=pod\nPRETTY_NAME="Pod {pod.name}"\n')]
    files += [("root/etc/passwd", _passwd(start.apps)), ("root/etc/group", _group(start.apps))]
    if start.attachment:
        # An interface of nspawn's has the size that it was made with.
        size = f"link set {nspawn.INTERFACE} mtu {start.attachment.network.mtu}\n" if pod.runtime_class == "xen" else ""
        files.append((f"root{NETWORK_BATCH}", size + _network_batch(start.attachment)))
    files += [
        ("files/hosts", render_hosts(pod, hostname(pod), start.attachment, start.hosts)),
        ("files/hostname", hostname(pod) + "\n"),
        ("files/resolv.conf", start.resolv_conf),
    ]
    files += [(f"root{over_directory(app.name)}{path}", "") for app in start.apps for path in app.proc_files]
    if any(app.hooks for app in start.apps):
        files.append((f"root{HOOKS_FILE}", render_hooks(settings, start.apps)))
    if has_probes(start.apps):
        files.append((f"root{PROBES_FILE}", render_probes(settings, start.apps)))
    links = [(f"root/{name}", target) for name, target in nspawn.ROOT_LINKS]
    links += [(f"root/{_UNITS}/{name}", f"/usr/lib/systemd/system/{name}") for name in _HOST_UNITS]
    links.append((f"root/{_UNITS}/default.target", "Ready.target"))
    # -.mount is always loaded, so these are before PID 1 hands out the streams.
    for app in start.apps:
        for stream in ("out", "err"):
            unit = f"{app.name}-{stream}.socket"
            links.append((f"root/{_UNITS}/-.mount.wants/{unit}", f"../{unit}"))
        passed = [sockets_unit(app.name)] if app.sockets else []
        passed += [f"{proxy_unit(app.name, port)}.socket" for port in app.proxied]
        links += [(f"root/{_UNITS}/-.mount.wants/{unit}", f"../{unit}") for unit in passed]
    early = (f"{POD_STREAM}.socket", *(("Deadline.timer",) if pod.deadline_seconds is not None else ()))
    links += [(f"root/{_UNITS}/-.mount.wants/{unit}", f"../{unit}") for unit in early]
    links += [(f"root/{_UNITS}/Ready.target.wants/{name}", f"../{name}") for name, _ in bus if name.endswith(".socket")]
    directories = ["status", "io", "files", "root", *(f"root/{d}" for d in nspawn.ROOT_DIRECTORIES)]
    directories += [f"root/{_UNITS}/{d}.wants" for d in ("-.mount", "Ready.target")]
    directories.append(f"root/{_UNITS}/mount.d")
    if any(app.secret_env for app in start.apps):
        directories.append(f"root{ENVIRONMENT_DIRECTORY}")
    directories += [f"root/apps/{app.name}{sub}" for app in start.apps for sub in ("", "/rootfs")]
    directories += [f"root{over_directory(app.name)}/proc" for app in start.apps if app.proc_files]
    pipes = [f"root{pipe_path(app.name, stream)}" for app in start.apps if app.log_pipe for stream in ("out", "err")]
    return Tree(tuple(directories), tuple(files), tuple(links), tuple(pipes))


def render_steps(layout: Layout, start: Start) -> tuple[tuple[str, ...], ...]:
    """The plan for `launch` of a pod that nspawn runs: see stage1/launch.py for the verbs."""
    steps = list(render_root_steps(layout, start))
    if start.attachment:
        steps.append(("interface", start.attachment.peer))
    steps += await_steps(layout, start)
    if start.pod.systemd.activation and not start.pod.host_network:
        steps.append(("marked", str(MARK)))
    return (*steps, *nspawn.render_steps(_nspawn_settings(start, layout.pod(start.pod.name))))


def await_steps(layout: Layout, start: Start) -> tuple[tuple[str, ...], ...]:
    """What is waited for on the host before the pod starts."""
    if start.attachment and start.has_names:
        return (("await", layout.names_ready(start.attachment.member.bridge)),)
    return ()


def render_root_steps(layout: Layout, start: Start) -> tuple[tuple[str, ...], ...]:
    """The part of the plan that makes the apps' roots and streams, wherever the pod's PID 1 is to run."""
    pod, directory = start.pod, layout.pod(start.pod.name)
    steps: list[tuple[str, ...]] = []
    if start.labels:
        steps.append(("label", start.labels[1]))
    if start.id_base is not None:
        steps.append(("idmap", str(start.id_base), str(nspawn.ID_COUNT)))
    lower = {key: f"{directory}/lower/{i}" for i, key in enumerate(dict.fromkeys(k for keys in start.layers for k in keys))}
    steps += [("lower", f"{layout.layer_mounts}/{key}", target) for key, target in lower.items()]
    for volume in pod.volumes:
        in_memory = isinstance(volume, EmptyDir) and (volume.medium == "Memory" or (pod.runtime_class == "xen" and volume.size_limit))
        if isinstance(volume, EmptyDir) and in_memory:
            gid = str((start.id_base or 0) + (pod.fs_group or 0))
            size = "" if volume.size_limit is None else str(volume.size_limit)
            steps.append(("tmpfs", volume_path(start, volume.name), size, empty_dir_mode(pod), gid))
        elif isinstance(volume, EmptyDir) and volume.medium:
            page, most = huge_page_size(pod, volume)
            gid = str((start.id_base or 0) + (pod.fs_group or 0))
            steps.append(("hugetlbfs", volume_path(start, volume.name), str(page), str(most), empty_dir_mode(pod), gid))
    if has_devices := bool(find_devices(pod)):
        steps.append(("nodes", f"{directory}/nodes"))
    if any(app.secret_env for app in start.apps):
        source = f"{layout.vault}/{pod.name}/environment"
        steps.append(("volume", "environment", source, "", f"{directory}/root", ENVIRONMENT_DIRECTORY, "ro", "plain"))
    for index, container in enumerate(pod.containers):
        steps += _app_steps(layout, start, index, container, lower)
    steps += [("drop", target) for target in lower.values()]
    if has_devices:
        steps.append(("drop", f"{directory}/nodes"))
    for index, app in enumerate(start.apps):
        steps += [("stream", stream_path(_streams(pod), index, name), app.name, level) for name, level in (("out", "6"), ("err", "3"))]
    steps.append(("stream", stream_path(_streams(pod), len(start.apps), "out"), "pod", "3"))
    steps.append(("oom", str(min(app.oom_score_adjust or 0 for app in start.apps))))
    return tuple(steps)


def volume_path(start: Start, volume: str) -> str:
    """Where an emptyDir lies on the host."""
    return f"{start.storage}/volumes/{volume}"


def huge_page_size(pod: Pod, volume: EmptyDir) -> tuple[int, int]:
    """The size of an emptyDir's pages, and how many bytes it may hold: its limit, or what the pod's containers may in all."""
    limits: dict[int, int] = {}
    for page, amount in (pair for container in pod.containers for pair in container.resources.huge_pages):
        limits[page] = limits.get(page, 0) + amount
    name = volume.medium.replace("HugePages", "hugepages")
    page = HUGE_PAGES[name] if name in HUGE_PAGES else min(limits)
    return page, min(volume.size_limit or limits[page], limits[page])


def empty_dir_mode(pod: Pod) -> str:
    """0777 as Kubernetes makes it; with fsGroup that group's, and inherited."""
    return "2777" if pod.fs_group is not None else "0777"


def hostname(pod: Pod) -> str:
    """A host name is 64 bytes at most in Linux, and a pod's name 63."""
    return pod.hostname or pod.name


def host_directory(layout: Layout, volume: Volume) -> str:
    """Where a hostPath or a claim lies on the host; "" for a volume of another kind."""
    if isinstance(volume, HostPath):
        return volume.path
    return f"{layout.volumes}/{volume.claim}" if isinstance(volume, ClaimVolume) else ""


def _volume_source(layout: Layout, start: Start, volume: Volume) -> tuple[str, str]:
    """Where a volume lies for who makes the apps' roots, and `idmap` where the ids in it are the pod's own, else `plain`."""
    idmap = "plain" if start.id_base is None else "idmap"
    if isinstance(volume, HostPath | ClaimVolume) and start.pod.runtime_class == "xen":
        return f"{layout.shares}/{volume.name}", "plain"
    if path := host_directory(layout, volume):
        return path, idmap
    if isinstance(volume, Projected):
        return f"{layout.vault}/{start.pod.name}/volumes/{volume.name}", "plain"
    return volume_path(start, volume.name), "plain"


def _app_steps(layout: Layout, start: Start, index: int, container: Container, lower: dict[str, str]) -> list[tuple[str, ...]]:
    """One app's root: overlay, places that systemd and the image want, volumes, read-only at last."""
    app, directory = start.apps[index], layout.pod(start.pod.name)
    root, own = f"{directory}/root/apps/{app.name}/rootfs", f"{start.storage}/apps/{app.name}"
    setuid = "nosuid" if app.confinement.no_new_privileges else "suid"
    steps: list[tuple[str, ...]] = [
        ("overlay", root, f"{own}/upper", f"{own}/work", setuid, *(lower[k] for k in reversed(start.layers[index])))
    ]
    steps += [("place", root, path) for path in ("/proc", "/sys", "/dev", *_SYSTEMD_PLACES)]
    steps.append(("devices", root, *(("net/tun",) if app.confinement.privileged else ())))
    owner = (str(app.uid), str(app.gid))  # who asked for it may use it, as containerd's device_ownership_from_security_context
    steps += [("device", f"{directory}/nodes", device, root, device, *owner) for device in container.resources.devices]
    if start.pod.host_ipc:  # POSIX has its shared memory there
        steps.append(("volume", "shm", "/dev/shm", "", root, "/dev/shm", "rw", "plain"))
    steps.append(("directory", root, app.working_dir))
    steps.append(("link", ".os-release-stage/os-release", root, "/run/host/os-release"))
    steps.append(("pin", root, "/run"))
    mounted = {mount.path for mount in container.mounts}
    steps += [("pin", root, path) for path in start.image_volumes[index] if path not in mounted and not _is_provided(path)]
    steps += [("file", f"{directory}/files/{f}", root, f"/etc/{f}") for f in PROVIDED_FILES if f"/etc/{f}" not in mounted]
    volumes = {volume.name: volume for volume in start.pod.volumes}
    for mount in sorted(container.mounts, key=lambda m: m.path.count("/")):
        volume = volumes[mount.volume]
        if isinstance(volume, HostPath) and is_device(volume):
            steps.append(("device", f"{directory}/nodes", volume.path, root, mount.path, *owner))
            continue
        source, mapping = _volume_source(layout, start, volume)
        read_only = mount.read_only or isinstance(volume, Projected) or (isinstance(volume, ClaimVolume) and volume.read_only)
        target = f"{directory}/root{over_directory(app.name)}" if mount.path in app.proc_files else root
        steps.append(("volume", volume.name, source, mount.sub_path, target, mount.path, "ro" if read_only else "rw", mapping))
    steps.append(("readonly", root, "/dev"))
    has_run = any(_names(mount.path) == ["run"] for mount in container.mounts)
    if has_run:  # a volume that has covered what was made there
        steps += [("place", root, path) for path in _SYSTEMD_PLACES]
    if container.security.read_only_root:
        steps += [*([] if has_run else [("readonly", root, "/run")]), ("readonly", root, "/")]
    return steps


def _is_provided(path: str) -> bool:
    """Where an image's own volume would only hide what every app is given."""
    return _names(path)[:1] in (["dev"], ["proc"], ["sys"])


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _nspawn_settings(start: Start, directory: str) -> nspawn.Settings:
    return nspawn.Settings(
        name=start.pod.name,
        hostname=hostname(start.pod),
        root=f"{directory}/root",
        status=f"{directory}/status",
        id_base=start.id_base,
        host_network=start.pod.host_network,
        interface=start.attachment.peer if start.attachment else "",
        capabilities=tuple(sorted({c for app in start.apps for c in app.confinement.capabilities})),
        host_ipc=start.pod.host_ipc,
        labels=start.labels and start.labels[:2],
        host_pid=start.pod.host_pid,
        machine_id=start.machine_id,
        apparmor=any(app.confinement.apparmor for app in start.apps),
        huge_pages=any(container.resources.huge_pages for container in start.pod.containers),
        exec_directory=Layout().exec_directory(start.pod.name) if has_exec_socket(start.pod) else "",
        privileged=any(app.confinement.privileged for app in start.apps),
    )


def _streams(pod: Pod) -> str:
    return f"{Layout().pod(pod.name)}/io"


def _user_manager(apps: tuple[App, ...]) -> list[tuple[str, str]]:
    """What makes a user manager as the system's: it would stop slices first at a shutdown, and raise the apps' OOM scores."""
    score = min(app.oom_score_adjust or 0 for app in apps)
    slices = [(f"root/{_UNITS}/{name}.slice", "[Unit]\nDefaultDependencies=no\n") for name in ("app", "system")]
    return [*slices, ("root/etc/systemd/user.conf", f"[Manager]\nDefaultOOMScoreAdjust={score}\n")]


def _bus_units(*, is_user: bool) -> tuple[tuple[str, str], ...]:
    """The pod's D-Bus, by socket activation, so that `systemctl -M` works; no app can reach its socket."""
    socket = UnitFile()
    socket.add_all("Unit", (("Description", "D-Bus"), ("DefaultDependencies", "no"), ("Conflicts", "shutdown.target")))
    socket.add_all("Unit", (("Before", "shutdown.target"),))
    socket.add("Socket", "ListenStream", "/run/dbus/system_bus_socket")
    if is_user:
        socket.add("Socket", "Symlinks", "/run/bus")  # where a user manager looks
    service = UnitFile()
    service.add_all("Unit", (("Description", "D-Bus"), ("DefaultDependencies", "no"), ("Conflicts", "shutdown.target")))
    service.add_all("Unit", (("Before", "shutdown.target"), ("Requires", "dbus.socket"), ("After", "dbus.socket")))
    command = "/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only"
    service.add_all("Service", (("Type", "notify"), ("NotifyAccess", "main"), ("ExecStart", command), ("StandardOutput", "null")))
    return (("dbus.socket", socket.render()), ("dbus.service", service.render()))


def _passwd(apps: tuple[App, ...]) -> str:
    """PID 1 looks User= up here, never in the image: one entry for each uid."""
    lines = ["root:x:0:0::/root:/bin/sh", f"messagebus:x:{_MESSAGEBUS_ID}:{_MESSAGEBUS_ID}::/:/bin/false"]
    lines.append(f"nobody:x:{_NOBODY_ID}:{_NOBODY_ID}::/:/bin/false")
    known = {0, _MESSAGEBUS_ID, _NOBODY_ID}
    lines += [f"u{uid}:x:{uid}:{uid}::/:/bin/false" for uid in sorted({app.uid for app in apps} - known)]
    return "\n".join(lines) + "\n"


def _group(apps: tuple[App, ...]) -> str:
    """The same for gids."""
    lines = ["root:x:0:", f"messagebus:x:{_MESSAGEBUS_ID}:", f"nogroup:x:{_NOBODY_ID}:"]
    used = {g for app in apps for g in (app.gid, app.uid, *app.groups)} - {0, _MESSAGEBUS_ID, _NOBODY_ID}
    return "\n".join(lines + [f"g{gid}:x:{gid}:" for gid in sorted(used)]) + "\n"


def _network_batch(attachment: Attachment) -> str:
    """What the pod's PID 1 has `ip -batch` do: no address of its own making, none to be waited for, everything else by the bridge."""
    network, link = attachment.network, nspawn.INTERFACE
    lines = ["link set lo up", f"addr add {attachment.address4}/{network.prefix} dev {link}"]
    for address in attachment.addresses[1:]:
        lines += [f"link set {link} addrgenmode none", f"addr add {address}/64 dev {link} nodad"]
    lines += [f"link set {link} up", *(f"route add default via {gateway}" for gateway in network.gateways)]
    return "".join(f"{line}\n" for line in lines)

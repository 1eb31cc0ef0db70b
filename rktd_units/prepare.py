# SPDX-License-Identifier: Apache-2.0
"""The start of stage0. Data: pod file -> model -> images in the store -> layers mounted -> id range -> apps resolved -> tree, plan and
pod.json in /run/rktd/pods/NAME, which appears whole by one rename. Everything is found again, or made anew, after a kill at any point.
"""

import os
import stat
import sys
from contextlib import suppress

from rktd_units import ids, podtree, selinux
from rktd_units.errors import ConfigError, Diagnostic, clean_text
from rktd_units.images.progress import StatusLine
from rktd_units.images.ready import Image, ImageRequest, held_images
from rktd_units.mounts import filesystem_type
from rktd_units.network.attach import attach, has_names
from rktd_units.network.names import render_resolv_conf
from rktd_units.network.state import Attachment
from rktd_units.paths import Layout, pod_search_path
from rktd_units.podfile.cache import hash_sources, load_cached, save_cached, source_key
from rktd_units.podfile.model import ClaimVolume, EmptyDir, HostPath, KeyFiles, Pod, Projected
from rktd_units.podfile.search import PodEntry, locate_pod
from rktd_units.podtree import Start
from rktd_units.qos import oom_scores
from rktd_units.release import remove_pod_files, withdraw_plan
from rktd_units.reload import sync_units
from rktd_units.resolve import Facts, resolve_app, resolve_mounts
from rktd_units.rootview import ImageRoot, mount_layer
from rktd_units.runfiles import lock, notify_status, read_text, remove_tree, write_text
from rktd_units.settings import Settings, load_settings
from rktd_units.stage1.plan import render_plan
from rktd_units.stage2 import render_environment_file
from rktd_units.translate import DROPIN, is_entered, render_dropin
from rktd_units.values import File, Values, volume_files

POD_JSON_VERSION = 1
SUPERVISOR = "/usr/lib/rktd/supervisor"


def prepare(name: str, layout: Layout = Layout()) -> None:
    """Readies the pod, or raises. Whatever an earlier, killed run left of it is replaced."""
    directories = pod_search_path(dict(os.environ))
    with suppress(FileNotFoundError):
        os.unlink(layout.error(name))
    with lock(layout, f"pod-{name}"):
        withdraw_plan(layout, name)
        if is_open := os.path.exists(layout.socket_record(name)):
            from rktd_units.sockets import back_off

            back_off(name)
        entry, ignored = locate_pod(name, directories)
        _warn(ignored)
        sources = hash_sources(entry)  # before they are read: an edit in between is told rather than missed
        pod = _load(layout, entry)
        settings = load_settings(layout.config)
        if pod.runtime_class == "xen":
            from rktd_units.guests import check_host, remove_guest

            check_host(pod)
            remove_guest(layout, name)
        sync_units(layout, pod)
        if pod.systemd.activation or is_open:
            from rktd_units.sockets import open_sockets

            open_sockets(layout, pod)
        if pod.systemd.activation and not pod.host_network:
            from rktd_units.network.passed import guard_sockets

            guard_sockets(layout, name)
        if pod.pull_secrets:
            settings = settings._replace(logins=Values(pod, layout.root).list_logins())
        requests = [ImageRequest(c.image, c.pull_policy) for c in pod.containers]
        if os.path.exists(layout.update_state(name)):
            from rktd_units.updates import hold_requests

            requests = hold_requests(layout, name, requests)
        with held_images(requests, settings, layout, StatusLine(notify_status)) as images:
            labels = _labels(pod)
            _mount_layers(layout, name, images, labels)
            remove_pod_files(layout, name)
            start, roots = _start(layout, settings, pod, images)
            start = start._replace(source_hash=sources, labels=labels)
            if pod.runtime_class == "xen":
                _write_guest(layout, settings, start, roots, images)
        if pod.runtime_class == "nspawn":
            _make_volumes(layout, start, roots)
            _write_tree(layout, start, images)
    notify_status(f"Pod {name} is ready to run")


def _load(layout: Layout, entry: PodEntry) -> Pod:
    cache = layout.parsed(entry.name)
    pod = load_cached(cache, entry)
    if pod is not None:
        return pod
    from rktd_units.podfile.load import load_pod

    key = source_key(entry)
    pod, diagnostics = load_pod(entry)
    if pod is None:
        raise ConfigError(f"pod file {entry.path} is not valid", diagnostics)
    _warn(diagnostics)
    if not diagnostics and not any(found.kind == "Secret" for found in pod.beside.maps):  # /run may be swapped out
        save_cached(cache, key, entry, pod)
    return pod


def _warn(diagnostics: tuple[Diagnostic, ...]) -> None:
    for diagnostic in diagnostics:
        sys.stderr.write("".join(f"<4>{line}\n" for line in str(diagnostic).split("\n")))


def _mount_layers(layout: Layout, name: str, images: tuple[Image, ...], labels: selinux.Labels | None) -> None:
    """Under the lock that `release` takes too; the claim file keeps another pod's release from unmounting what this one is about to use."""
    keys = sorted({key for image in images for key in image.layer_keys})
    with lock(layout, "layers"):
        os.makedirs(layout.layer_mounts, mode=0o700, exist_ok=True)
        write_text(f"{layout.layer_claims}/{name}", "".join(f"{key}\n" for key in keys))
        for key in keys:
            if labels:
                selinux.label_layer(f"{layout.layers}/{key}.erofs", labels.layer)
            mount_layer(layout, key)


def _start(layout: Layout, settings: Settings, pod: Pod, images: tuple[Image, ...]) -> tuple[Start, list[os.stat_result]]:
    """Everything of the start that needs the host or the images to be looked at; and each image's root directory."""
    is_guest = pod.runtime_class == "xen"  # all ids are its own
    base = None if pod.host_users or is_guest else ids.claim_range(layout.id_ranges, pod.name, settings.id_range)
    attachment = attach(layout, settings.network, pod) if pod.has_network else None
    facts = _facts(layout, pod, attachment)
    apps, roots = [], []
    for container, image in zip(pod.containers, images, strict=True):
        with ImageRoot(layout, image.layer_keys) as root:
            apps.append(resolve_app(facts, container, image.config, root))
            roots.append(root.status())
        for name, outcome in image.config.appc.isolators if image.config.appc else ():
            if outcome != "enforced":
                sys.stderr.write(f"<4>app {container.name}: isolator {clean_text(name)} of its image: {clean_text(outcome)}\n")
    scores = oom_scores(pod.containers, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # An image may say that its app is to be killed sooner, not later.
    apps = [app._replace(oom_score_adjust=max(app.oom_score_adjust or score, score)) for app, score in zip(apps, scores, strict=True)]
    containers = zip(pod.containers, apps, strict=True)
    pod = pod._replace(containers=tuple(container._replace(mounts=resolve_mounts(container, app)) for container, app in containers))
    for volume in pod.volumes:
        if isinstance(volume, HostPath):
            check_host_path(pod, volume)
        elif isinstance(volume, EmptyDir) and volume.medium not in ("", "Memory"):
            _check_huge_pages(pod, volume)
    for device in (device for container in pod.containers for device in container.resources.devices):
        _check_device(device)
    start = Start(
        pod=pod,
        apps=tuple(apps),
        layers=tuple(image.layer_keys for image in images),
        image_volumes=tuple(image.config.volumes for image in images),
        id_base=base,
        storage=f"{layout.run}/storage/{pod.name}" if is_guest else _storage(layout, pod.name),
        machine_id=os.urandom(16).hex(),
        resolv_conf=render_resolv_conf(pod, attachment, host_resolv_conf(pod), has_names=has_names()),
        files=tuple((v, volume_files(pod, v, facts.values, facts.value)) for v in pod.volumes if isinstance(v, Projected)),
        hosts=read_text("/etc/hosts") if pod.host_network else "",
        attachment=attachment,
        has_names=has_names(),
        enters=is_entered(pod) and (is_guest or _may_enter()),
    )
    return start, roots


def _labels(pod: Pod) -> selinux.Labels | None:
    if pod.selinux is None or pod.runtime_class == "xen":
        return None
    if reason := selinux.ignored_options(pod):
        sys.stderr.write(f"<4>{reason}\n")
        return None
    return selinux.find_labels(pod.name, pod.selinux)


def _may_enter() -> bool:
    """Whether services of this host can read an app's system call filters; not where they are under one, as in some containers."""
    return "\nSeccomp:\t0\n" in read_text("/proc/self/status")


def _facts(layout: Layout, pod: Pod, attachment: Attachment | None) -> Facts:
    random = bytearray(os.urandom(16))
    random[6], random[8] = random[6] & 0x0F | 0x40, random[8] & 0x3F | 0x80  # RFC 9562, version 4
    text = random.hex()
    uid = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    addresses = _host_addresses()
    own = attachment.addresses if attachment else addresses if pod.host_network else ("127.0.0.1",)
    return Facts(pod, uid, os.uname().nodename, own, addresses, Values(pod, layout.root))


def host_resolv_conf(pod: Pod) -> str:
    """The host's own; for a pod in its own network name space without the host's stub, which that does not reach."""
    path = "/etc/resolv.conf"
    if not pod.host_network and os.path.realpath(path).startswith("/run/systemd/resolve/"):
        path = "/run/systemd/resolve/resolv.conf"
    return read_text(path)


def _host_addresses() -> tuple[str, ...]:
    """Those that the default routes of IPv4 and IPv6 use; no packet is sent. 127.0.0.1 when there is no route at all."""
    import _socket

    found = []
    for family, target in ((_socket.AF_INET, "192.0.2.1"), (_socket.AF_INET6, "2001:db8::1")):  # for documentation: RFC 5737, RFC 3849
        with suppress(OSError):
            probe = _socket.socket(family, _socket.SOCK_DGRAM)
            try:
                probe.connect((target, 9))
                found.append(str(probe.getsockname()[0]))
            finally:
                probe.close()
    return tuple(found) or ("127.0.0.1",)


def check_host_path(pod: Pod, volume: HostPath) -> None:
    """Kubernetes' HostPathType, the OrCreate ones made as it makes them (0755 and 0644, root's). Raises ConfigError naming the path."""
    if volume.type == "DirectoryOrCreate":
        with suppress(FileExistsError, NotADirectoryError):  # told below
            os.makedirs(volume.path, mode=0o755, exist_ok=True)
    elif volume.type == "FileOrCreate" and not os.path.lexists(volume.path):
        with suppress(FileExistsError):
            os.close(os.open(volume.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    message = ""
    hint = ""
    try:
        mode = os.stat(volume.path).st_mode
    except OSError as error:
        message = f"hostPath {volume.path}: {(error.strerror or '').lower()}"
        hint = "type: DirectoryOrCreate makes it" if isinstance(error, FileNotFoundError) else ""
    else:
        kinds = {
            "Directory": stat.S_IFDIR,
            "File": stat.S_IFREG,
            "Socket": stat.S_IFSOCK,
            "CharDevice": stat.S_IFCHR,
            "BlockDevice": stat.S_IFBLK,
        }
        kind = volume.type.removesuffix("OrCreate")
        device = "CharDevice" if stat.S_ISCHR(mode) else "BlockDevice" if stat.S_ISBLK(mode) else ""
        if kind and stat.S_IFMT(mode) != kinds[kind]:
            message = f"hostPath {volume.path} is no {kind}"
        elif device and not kind:
            message, hint = f"hostPath {volume.path} is a device", f"type: {device} lets the pod use it"
        elif device and not volume.path.startswith("/dev/"):
            message, hint = f"hostPath {volume.path}: a device is usable below /dev only", "name the one that is there"
    if message:
        fault = Diagnostic(pod.source, *volume.mark, f"volume {volume.name}", message, hint)
        raise ConfigError(message, (fault,))


def _check_device(path: str) -> None:
    """Of resources.limits: whether the host has it."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ConfigError(f"the pod asks for the device {path}: {(error.strerror or '').lower()}") from error
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        raise ConfigError(f"the pod asks for the device {path}, which is none")


def _check_huge_pages(pod: Pod, volume: EmptyDir) -> None:
    page, size = podtree.huge_page_size(pod, volume)
    text = read_text(f"/sys/kernel/mm/hugepages/hugepages-{page >> 10}kB/free_hugepages").strip()
    if not text:
        raise ConfigError(f"volume {volume.name}: this machine has no huge pages of {page >> 10} KiB")
    if int(text) * page < size:
        hint = f"`sysctl vm.nr_hugepages=N`, or hugepages={page >> 10}K:N at boot, sets some apart (hugetlbpage.rst of the kernel)"
        raise ConfigError(
            f"volume {volume.name} is to hold {size // page} huge pages of {page >> 10} KiB, of which {text} are free", hint=hint
        )


def _storage(layout: Layout, name: str) -> str:
    """On disk; in /run where the disk is itself an overlay, which cannot carry another one's upper directory."""
    os.makedirs(layout.state, mode=0o700, exist_ok=True)
    overlay = filesystem_type(layout.state) == "overlay"
    return f"{layout.run}/storage/{name}" if overlay else layout.pod_storage(name)


def _make_volumes(layout: Layout, start: Start, roots: list[os.stat_result]) -> None:
    """Fresh upper directories, with the attributes of the images' root directories, and fresh emptyDirs. Ids are the pod's."""
    base = start.id_base or 0
    os.makedirs(os.path.dirname(start.storage), mode=0o700, exist_ok=True)
    os.chmod(os.path.dirname(start.storage), 0o700)
    for app, status in zip(start.apps, roots, strict=True):
        own = f"{start.storage}/apps/{app.name}"
        if app.resources.storage_limit is not None:
            _make_limited(start, f"apps/{app.name}", app.resources.storage_limit)
        else:
            os.makedirs(own, mode=0o711)
        for part in ("upper", "work"):
            os.mkdir(f"{own}/{part}")
            os.chown(f"{own}/{part}", base + status.st_uid, base + status.st_gid)
            os.chmod(f"{own}/{part}", stat.S_IMODE(status.st_mode))
        os.utime(f"{own}/upper", ns=(status.st_mtime_ns, status.st_mtime_ns))
    for volume in start.pod.volumes:
        if isinstance(volume, EmptyDir):
            path = podtree.volume_path(start, volume.name)
            if volume.size_limit is not None and not volume.medium:
                _make_limited(start, f"volumes/{volume.name}", volume.size_limit)
            else:
                os.makedirs(path)
            os.chown(path, base, base + (start.pod.fs_group or 0))
            os.chmod(path, int(podtree.empty_dir_mode(start.pod), 8))
            if start.labels:
                selinux.set_label(path, start.labels[1])
    _ready_claims(layout, start.pod, start.labels[1] if start.labels else "")
    if start.files or any(app.secret_env for app in start.apps):
        _fill_vault(layout, start)


def _ready_claims(layout: Layout, pod: Pod, label: str = "") -> None:
    for volume in pod.volumes:
        if isinstance(volume, ClaimVolume):
            from rktd_units.volumes import ready_volume

            ready_volume(layout, volume.claim, pod.fs_group, only_if_wrong=pod.fs_group_on_mismatch, label=label)


def _make_limited(start: Start, name: str, size: int) -> None:
    from rktd_units.limited import make_limited  # it starts programs

    make_limited(start.storage, name, size)


def _fill_vault(layout: Layout, start: Start) -> None:
    """What must not be on a disk, nor in a unit: files of configMap, secret and the like, and variables that are secrets."""
    from rktd_units.vault import open_vault, write_file, write_files, write_variables

    base = start.id_base or 0
    directory = open_vault(layout, start.pod.name)
    for volume, files in start.files:
        _check_sub_paths(start.pod, volume, files)
        group = None if start.pod.fs_group is None else base + start.pod.fs_group
        write_files(f"{directory}/volumes/{volume.name}", files, base, group)
    os.mkdir(f"{directory}/environment", 0o700)
    os.chown(f"{directory}/environment", base, base)
    for app in start.apps:
        if app.secret_env:
            write_file(f"{directory}/environment/{app.name}", render_environment_file(app.secret_env).encode(), base, base, 0o400)
    write_variables(directory, {app.name: app.secret_env for app in start.apps})
    if start.labels:
        selinux.set_label(directory, start.labels[1])


def _check_sub_paths(pod: Pod, volume: Projected, files: tuple[File, ...]) -> None:
    """A subPath that is not there would become a directory, as in Kubernetes, to everybody's surprise: only where all is optional."""
    if any(isinstance(source, KeyFiles) and source.source.optional for source in volume.sources):
        return
    for mount in (mount for container in pod.containers for mount in container.mounts if mount.volume == volume.name and mount.sub_path):
        if not any(file.path == mount.sub_path or file.path.startswith(f"{mount.sub_path}/") for file in files):
            message = f"volume {volume.name}: there is no {mount.sub_path} in it"
            hint = "it has " + ", ".join(file.path for file in files) if files else "it is empty"
            raise ConfigError(message, (Diagnostic(*volume.at, "", message, hint),))


def _write_tree(layout: Layout, start: Start, images: tuple[Image, ...]) -> None:
    """Whole by one rename: stage1 never sees half a tree."""
    name = start.pod.name
    tree = podtree.render_tree(start)
    final, temporary = layout.pod(name), f"{layout.pods}/.{name}.new"
    remove_tree(temporary)
    os.makedirs(layout.pods, mode=0o700, exist_ok=True)  # units hold what pod files say, secrets among it
    os.chmod(layout.pods, 0o700)
    os.makedirs(temporary, mode=0o755)
    for directory in (*tree.directories, "lower", "nodes"):
        os.makedirs(f"{temporary}/{directory}", exist_ok=True)
    for path, text in tree.files:
        with open(f"{temporary}/{path}", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
    for path, target in tree.links:
        os.symlink(target, f"{temporary}/{path}")
    for path in tree.pipes:
        os.mkfifo(f"{temporary}/{path}")
        os.chmod(f"{temporary}/{path}", 0o622)
    if start.id_base is not None:
        for below in ("root", "files", "status"):
            _give(f"{temporary}/{below}", start.id_base)
    if start.labels:
        for below in ("root", "files", "status"):
            selinux.set_label(f"{temporary}/{below}", start.labels[1])
    os.chmod(f"{temporary}/io", 0o700)
    _write_records(temporary, start, images, podtree.render_steps(layout, start))
    os.rename(temporary, final)


def _write_guest(layout: Layout, settings: Settings, start: Start, roots: list[os.stat_result], images: tuple[Image, ...]) -> None:
    """Likewise: the pod's tree is in the guest's ramdisk, and stage1 is the domain's supervisor."""
    from rktd_units.guests import write_guest

    name = start.pod.name
    for volume, files in start.files:
        _check_sub_paths(start.pod, volume, files)
    temporary = f"{layout.pods}/.{name}.new"
    remove_tree(temporary)
    os.makedirs(layout.pods, mode=0o700, exist_ok=True)
    os.chmod(layout.pods, 0o700)
    os.makedirs(f"{temporary}/status", mode=0o755)
    _ready_claims(layout, start.pod)
    write_guest(layout, start, roots, settings.xen, temporary, _pod_json(start, images))
    _write_records(temporary, start, images, (*podtree.await_steps(layout, start), ("exec", SUPERVISOR, name)))
    os.rename(temporary, layout.pod(name))


def _write_records(directory: str, start: Start, images: tuple[Image, ...], steps: tuple[tuple[str, ...], ...]) -> None:
    for path, text in (
        ("plan", render_plan(steps)),
        (DROPIN, render_dropin(start.pod)),
        ("apps", "".join(f"{app.name}\n" for app in start.apps)),
        ("pod.json", _pod_json(start, images)),
    ):
        write_text(f"{directory}/{path}", text)


def _give(directory: str, base: int) -> None:
    for parent, _, files in os.walk(directory):
        os.chown(parent, base, base)
        for file in files:
            os.chown(f"{parent}/{file}", base, base, follow_symlinks=False)


def _pod_json(start: Start, images: tuple[Image, ...]) -> str:
    """What runs, for podctl and whoever else asks; versioned, documented in docs/stage1-plan.md."""
    import json

    apps = []
    for app, image in zip(start.apps, images, strict=True):
        apps.append(
            {
                "name": app.name,
                "image": image.reference,
                "digest": image.manifest_digest,
                "verifiedBy": image.verified_by,
                "layers": list(image.layer_keys),
                "exposedPorts": [f"{port}/{protocol}" for port, protocol in image.config.exposed_ports],
                "program": app.program,
                "uid": app.uid,
                "gid": app.gid,
                "groups": list(app.groups),
                "workingDir": app.working_dir,
                "env": [list(pair) for pair in app.env],
                "probes": {check.probe.kind: list(check.probe.command) for check in app.checks if check.program},
                "hooks": {hook.probe.kind: list(hook.probe.command) for hook in app.hooks if hook.program},
                "isolators": dict(image.config.appc.isolators) if image.config.appc else {},
            }
        )
    pod, attachment = start.pod, start.attachment
    network = attachment and {
        "bridge": attachment.member.bridge,
        "interface": attachment.port,
        "mac": ":".join(f"{byte:02x}" for byte in attachment.mac),
        "mtu": attachment.network.mtu,
        "addresses": [f"{address}/{64 if ':' in address else attachment.network.prefix}" for address in attachment.addresses],
        "gateways": list(attachment.network.gateways),
        "names": list(attachment.member.names),
        "ports": [port._asdict() for port in attachment.member.ports],
    }
    record = {
        "version": POD_JSON_VERSION,
        "name": pod.name,
        "sources": list(pod.sources),
        "sourceHash": start.source_hash,
        "stage1": pod.runtime_class,
        "restartPolicy": pod.restart_policy,
        "idBase": start.id_base,
        "label": start.labels[0] if start.labels else "",
        "storage": start.storage,
        "claims": sorted({volume.claim for volume in pod.volumes if isinstance(volume, ClaimVolume)}),
        "network": network,
        "apps": apps,
    }
    return json.dumps(record, indent=2) + "\n"

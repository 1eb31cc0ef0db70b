# SPDX-License-Identifier: Apache-2.0
"""Stage0: readies one pod for its stage1, and takes away what it left. Runs as a oneshot unit of systemd, never as a daemon.

Data: pod file -> model -> images in the store -> layers mounted -> id range -> apps resolved -> tree, plan and pod.json in
/run/rktd/pods/NAME, which appears whole by one rename. Everything is found again, or made anew, after a kill at any point.
"""

import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rktd_units import ids, podtree
from rktd_units.errors import ConfigError, Diagnostic, RktdError, StateError
from rktd_units.images.ready import Image, ImageRequest, ready_images
from rktd_units.names import pod_unit
from rktd_units.paths import Layout, pod_search_path
from rktd_units.podfile.load import load_pod
from rktd_units.podfile.model import EmptyDir, HostPath, Pod
from rktd_units.podfile.search import PodEntry, locate_pod, stamp_sources
from rktd_units.podtree import Start
from rktd_units.resolve import Facts, resolve_app
from rktd_units.rootview import ImageRoot, mount_layer, unmount_layers
from rktd_units.settings import Settings, load_settings
from rktd_units.stage1.plan import render_plan
from rktd_units.stage2 import App
from rktd_units.translate import DROPIN, dropin_path, render_dropin

_OVERLAYFS_MAGIC = 0x794C7630
POD_JSON_VERSION = 1


def main(argv: list[str]) -> int:
    """`stage0 prepare NAME | release NAME | reload`. Errors go to stderr, hence to the journal; the exit code is the error's."""
    layout = Layout()
    try:
        match argv[1:]:
            case ["prepare", name]:
                prepare(name, layout)
            case ["release", name]:
                release(name, layout)
            case ["reload"]:
                reload_units(layout)
            case _:
                raise ConfigError("usage: stage0 prepare NAME | release NAME | reload")
    except RktdError as error:
        text, code = render_error(error), error.exit_code
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        text, code = f"<3>{place}{error.strerror}\n", StateError.exit_code
    else:
        return 0
    sys.stderr.write(text)
    if argv[1] == "prepare":
        with suppress(OSError):
            _write(layout.error(argv[2]), text)
    return code


def render_error(error: RktdError) -> str:
    """With syslog levels (sd-daemon(3)), one line each: the diagnostics of a ConfigError are its message."""
    diagnostics: tuple[Diagnostic, ...] = getattr(error, "diagnostics", ())
    lines = [line for d in diagnostics for line in str(d).split("\n")]
    if not any(d.severity == "error" for d in diagnostics):
        lines += str(error).split("\n")
        lines += [f"  hint: {error.hint}"] if error.hint else []
    return "".join(f"<3>{line}\n" for line in lines)


def prepare(name: str, layout: Layout = Layout()) -> None:
    """Readies the pod, or raises. Whatever an earlier, killed run left of it is replaced."""
    directories = pod_search_path(dict(os.environ))
    with suppress(FileNotFoundError):
        os.unlink(layout.error(name))
    with lock(layout, f"pod-{name}"):
        pod = _load(locate_pod(name, directories))
        settings = load_settings(layout.config)
        sync_units(layout, pod)
        requests = [ImageRequest(c.image, c.pull_policy) for c in pod.containers]
        images = ready_images(requests, settings, layout, notify_status)
        _mount_layers(layout, name, images)
        _remove_tree(layout, name)
        start = _start(layout, settings, pod, images)
        _make_volumes(layout, start, images)
        _write_tree(layout, start, images)
    notify_status(f"Pod {name} is ready to run")


def _load(entry: PodEntry) -> Pod:
    pod, diagnostics = load_pod(entry)
    if pod is None:
        raise ConfigError(f"pod file {entry.path} is not valid", diagnostics)
    return pod


def sync_units(layout: Layout, pod: Pod) -> None:
    """The safety net of the reload race: what systemd runs the pod with must be what its file says now.

    PID 1 applies the new settings to the waiting job of pod@NAME, but starts no unit that the old text did not require: that is done here.
    """
    wanted = render_dropin(pod)
    path = f"{layout.generator_output}/{dropin_path(pod.name)}"
    with lock(layout, "reload"):
        if _read(path) == wanted:
            return
        from rktd_units import systemd

        before = set(pod.systemd.requires) if f"\nRequires={' '.join(pod.systemd.requires)}\n" in _read(path) else set()
        # Stamps do not tell two edits of one tick of the clock apart: the text is what counts here.
        with suppress(FileNotFoundError):
            os.unlink(layout.generator_cache)
        with systemd.Manager() as manager:
            manager.reload()
            if _read(path) != wanted:
                hint = "is rktd-generator installed?"
                raise StateError(f"{path} is not what {pod.source} says, even after a reload of systemd", hint=hint)
            for unit in set(pod.systemd.requires) - before:
                manager.start_unit(unit)


def _mount_layers(layout: Layout, name: str, images: tuple[Image, ...]) -> None:
    """Under the lock that `release` takes too; the claim file keeps another pod's release from unmounting what this one is about to use."""
    keys = sorted({key for image in images for key in image.layer_keys})
    with lock(layout, "layers"):
        os.makedirs(layout.layer_mounts, mode=0o700, exist_ok=True)
        _write(f"{layout.run}/layer-claims/{name}", "".join(f"{key}\n" for key in keys))
        for key in keys:
            mount_layer(layout, key)


def _start(layout: Layout, settings: Settings, pod: Pod, images: tuple[Image, ...]) -> Start:
    """Everything of the start that needs the host or the images to be looked at."""
    base = None if pod.host_users else ids.claim_range(layout.id_ranges, pod.name, settings.id_range)
    facts = _facts(pod)
    apps: list[App] = []
    for container, image in zip(pod.containers, images, strict=True):
        with ImageRoot(layout, image.layer_keys) as root:
            apps.append(resolve_app(facts, container, image.config, root))
    for volume in pod.volumes:
        if isinstance(volume, HostPath):
            check_host_path(pod, volume)
    return Start(
        pod=pod,
        apps=tuple(apps),
        layers=tuple(image.layer_keys for image in images),
        image_volumes=tuple(image.config.volumes for image in images),
        id_base=base,
        storage=_storage(layout, pod.name),
        machine_id=os.urandom(16).hex(),
        resolv_conf=_read("/etc/resolv.conf") if pod.host_network else "",
    )


def _facts(pod: Pod) -> Facts:
    random = bytearray(os.urandom(16))
    random[6], random[8] = random[6] & 0x0F | 0x40, random[8] & 0x3F | 0x80  # RFC 9562, version 4
    text = random.hex()
    uid = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    address = _host_address()
    return Facts(pod, uid, os.uname().nodename, address if pod.host_network else "127.0.0.1", address)


def _host_address() -> str:
    """The address that the default route uses; no packet is sent. 127.0.0.1 when there is no route."""
    import _socket

    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1, RFC 5737
        return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
    finally:
        probe.close()


def check_host_path(pod: Pod, volume: HostPath) -> None:
    """Kubernetes' HostPathType, the OrCreate ones made as it makes them (0755 and 0644, root's). Raises ConfigError naming the path."""
    if volume.type == "DirectoryOrCreate":
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
        right = {
            "Directory": stat.S_ISDIR,
            "DirectoryOrCreate": stat.S_ISDIR,
            "File": stat.S_ISREG,
            "FileOrCreate": stat.S_ISREG,
            "Socket": stat.S_ISSOCK,
        }.get(volume.type)
        if right and not right(mode):
            message = f"hostPath {volume.path} is no {volume.type.removesuffix('OrCreate').lower()}"
    if message:
        fault = Diagnostic(pod.source, *volume.mark, f"volume {volume.name}", message, hint)
        raise ConfigError(message, (fault,))


def _storage(layout: Layout, name: str) -> str:
    """On disk; in /run where the disk is itself an overlay, which cannot carry another one's upper directory."""
    os.makedirs(layout.state, mode=0o700, exist_ok=True)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounted = [(f[4], f[f.index("-") + 1]) for f in (line.split(" ") for line in file)]
    real = os.path.realpath(layout.state)
    holders = [(len(point), kind) for point, kind in mounted if real == point or real.startswith(point.rstrip("/") + "/")]
    kind = max(holders)[1] if holders else ""
    return f"{layout.run}/storage/{name}" if kind == "overlay" else layout.pod_storage(name)


def _make_volumes(layout: Layout, start: Start, images: tuple[Image, ...]) -> None:
    """Fresh upper directories, with the attributes of the image's root, and fresh emptyDirs. Ids are the pod's."""
    base = start.id_base or 0
    for app, image in zip(start.apps, images, strict=True):
        own = f"{start.storage}/apps/{app.name}"
        os.makedirs(own, mode=0o711)
        with ImageRoot(layout, image.layer_keys) as root:
            status = root.status()
        for part in ("upper", "work"):
            os.mkdir(f"{own}/{part}")
            os.chown(f"{own}/{part}", base + status.st_uid, base + status.st_gid)
            os.chmod(f"{own}/{part}", stat.S_IMODE(status.st_mode))
        os.utime(f"{own}/upper", ns=(status.st_mtime_ns, status.st_mtime_ns))
    for volume in start.pod.volumes:
        if isinstance(volume, EmptyDir):
            path = podtree.volume_path(start, volume.name)
            os.makedirs(path)
            os.chown(path, base, base + (start.pod.fs_group or 0))
            os.chmod(path, int(podtree.empty_dir_mode(start.pod), 8))


def _write_tree(layout: Layout, start: Start, images: tuple[Image, ...]) -> None:
    """Whole by one rename: stage1 never sees half a tree."""
    name = start.pod.name
    tree = podtree.render_tree(start)
    final, temporary = layout.pod(name), f"{layout.pods}/.{name}.new"
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary, mode=0o755)
    for directory in (*tree.directories, "lower"):
        os.makedirs(f"{temporary}/{directory}", exist_ok=True)
    for path, text in tree.files:
        with open(f"{temporary}/{path}", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
    for path, target in tree.links:
        os.symlink(target, f"{temporary}/{path}")
    if start.id_base is not None:
        for below in ("root", "files", "status"):
            _give(f"{temporary}/{below}", start.id_base)
    os.chmod(f"{temporary}/io", 0o700)
    for path, text in (
        ("plan", render_plan(podtree.render_steps(layout, start))),
        (DROPIN, render_dropin(start.pod)),
        ("pod.json", _pod_json(start, images)),
    ):
        _write(f"{temporary}/{path}", text)
    os.rename(temporary, final)


def _give(directory: str, base: int) -> None:
    for parent, _, files in os.walk(directory):
        os.chown(parent, base, base)
        for file in files:
            os.chown(f"{parent}/{file}", base, base, follow_symlinks=False)


def _pod_json(start: Start, images: tuple[Image, ...]) -> str:
    """What runs, for podctl and whoever else asks; versioned, documented in docs/pod-json.md."""
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
            }
        )
    pod = start.pod
    record = {
        "version": POD_JSON_VERSION,
        "name": pod.name,
        "sources": list(pod.sources),
        "stage1": pod.runtime_class,
        "restartPolicy": pod.restart_policy,
        "idBase": start.id_base,
        "storage": start.storage,
        "apps": apps,
    }
    return json.dumps(record, indent=2) + "\n"


def release(name: str, layout: Layout = Layout()) -> None:
    """Takes away all that the pod has on this host but its images and the record of its end."""
    with lock(layout, f"pod-{name}"):
        _save_result(layout, name)
        _forget_machine(name)
        _remove_tree(layout, name)
        ids.release_range(layout.id_ranges, name)
        with lock(layout, "layers"):
            claims = f"{layout.run}/layer-claims"
            with suppress(FileNotFoundError):
                os.unlink(f"{claims}/{name}")
            wanted: set[str] = set()
            for claim in _list(claims):
                wanted.update(_read(f"{claims}/{claim}").split())
            unmount_layers(layout, wanted)


def _forget_machine(name: str) -> None:
    """A killed nspawn leaves its machine registered, and the next one of the name is refused."""
    if os.path.lexists(f"/run/systemd/machines/{name}"):
        from rktd_units import systemd

        with systemd.Manager() as manager, suppress(StateError):
            manager.unregister_machine(name, pod_unit(name))


def _save_result(layout: Layout, name: str) -> None:
    """results/NAME.json from what the pod's apps wrote down at their end: hostile text of known form, or left out."""
    status = f"{layout.pod(name)}/status"
    apps = {}
    for app in _list(status):
        words = _read_untrusted(f"{status}/{app}").split()
        if len(words) == 3 and all(word.isascii() and word.replace("-", "").isalnum() for word in words):
            apps[app] = {"code": words[0], "status": words[1], "result": words[2]}
    if apps:
        import json

        os.makedirs(layout.results, mode=0o755, exist_ok=True)
        _write(f"{layout.results}/{name}.json", json.dumps({"version": 1, "pod": name, "apps": apps}, indent=2) + "\n")


def _remove_tree(layout: Layout, name: str) -> None:
    for path in (layout.pod(name), f"{layout.pods}/.{name}.new", layout.pod_storage(name), f"{layout.run}/storage/{name}"):
        if os.path.lexists(path):
            shutil.rmtree(path)


def reload_units(layout: Layout = Layout()) -> None:
    """Reloads systemd until what the generator saw is what is there; then leaves its outputs in a cache for the next time."""
    from rktd_units import generator

    directories = pod_search_path(dict(os.environ))
    while True:
        with lock(layout, "reload"):
            stamps = stamp_sources(directories)
            seen = _read(f"{layout.generator_output}/{generator.STAMP_FILE}")
            if seen == generator.render_stamps(stamps) or (not seen and not any(stamp[1] for stamp in stamps)):
                break
            from rktd_units import systemd

            with systemd.Manager() as manager:
                manager.reload()
    build = generator.build_units(directories)
    if stamp_sources(directories) == stamps:
        generator.save_cache(layout, directories, stamps, build)


@contextmanager
def lock(layout: Layout, name: str) -> Iterator[None]:
    """One at a time on this host; held by the descriptor, so that a killed process holds nothing."""
    os.makedirs(layout.locks, mode=0o700, exist_ok=True)
    descriptor = os.open(f"{layout.locks}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def notify_status(text: str) -> None:
    """STATUS= of the unit, as `systemctl status` shows it (sd_notify(3)); nothing where nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        import _socket

        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        with suppress(OSError):
            channel.connect("\0" + path[1:] if path.startswith("@") else path)
            channel.send(f"STATUS={' '.join(text.split())}".encode())
        channel.close()


def _list(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except FileNotFoundError:
        return []


def _read(path: str) -> str:
    """The text, or "" when there is no file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _read_untrusted(path: str) -> str:
    """At most 256 bytes of a regular file that the pod could write: no link followed, no pipe waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(descriptor, "rb") as file:
        return file.read(256).decode("ascii", "replace") if stat.S_ISREG(os.fstat(descriptor).st_mode) else ""


def _write(path: str, text: str) -> None:
    """Whole or not at all."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.new"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
    os.rename(temporary, path)

# SPDX-License-Identifier: Apache-2.0
"""The privileged side of sandboxed jobs: each is a transient unit with its own root directory, made and removed here.

What comes out is believed only as far as the caller hashes it: file names, texts and digests in it are hostile input.
"""

import errno
import fcntl
import json
import os
import signal
from _socket import AF_INET, AF_INET6  # socket costs 2 ms more
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from ipaddress import ip_address
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rktd_units.errors import ImageError, StateError, TemporaryError, TooLargeError, clean_text
from rktd_units.images.meter import Watch, read_parts
from rktd_units.images.progress import Event, Progress
from rktd_units.images.reference import is_digest
from rktd_units.images.registries import ACCESS
from rktd_units.images.store import Store, open_regular
from rktd_units.images.urls import LINK_LOCAL, reach_of_name
from rktd_units.runfiles import remove_tree
from rktd_units.systemd import Property, ServiceResult, run_service, stop_units

WORKER = "/usr/lib/rktd/worker"
SLICE = "rktd.slice"  # units/rktd.slice: jobs give way to pods
_RESULT_MAX = 1 << 20  # bytes of result.json
_TIMEOUT = 1800.0  # seconds
_LONGEST = 86400.0  # seconds of a job that gets on all the time, or says so
_RESERVE = 1 << 30  # bytes of the file system that stay free for others, or a twentieth of it, if that is less
_KEPT_MAX = 600  # files of a pull: more than an image can have
_MEMORY_MAX = 2 << 30
_SPACE_HINT = "make space there; podctl gc removes images that nobody uses"
_KINDS = {  # with a network?
    "pull-image": True,
    "fetch-aci": True,
    "open-aci": False,
    "render-aci": False,
    "unpack-archive": False,
    "unpack-layout": False,
    "convert-layers": False,
    "find-digest": False,
    "find-manifest": True,
    "find-signatures": True,
    "verify-signatures": False,
}
# Of the host: files are copied, since each bind mount costs a millisecond of CPU time; directories are bound.
_HOST_FILES = ("/etc/ld.so.cache", "/etc/localtime")
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/ssl/openssl.cnf")
_HOST_DIRECTORIES = ("/etc/alternatives",)
_NETWORK_DIRECTORIES = ("/etc/ssl/certs",)

# systemd.exec(5) and systemd.resource-control(5), as StartTransientUnit wants them. Also implied by DynamicUser=: ProtectSystem=strict,
# NoNewPrivileges=, RestrictSUIDSGID=, RemoveIPC=, PrivateTmp=.
_SANDBOX = (
    Property("Type", "s", "oneshot"),
    Property("CollectMode", "s", "inactive-or-failed"),
    Property("DynamicUser", "b", True),
    Property("NoNewPrivileges", "b", True),
    Property("CapabilityBoundingSet", "t", 0),
    Property("AmbientCapabilities", "t", 0),
    Property("MountAPIVFS", "b", True),
    Property("BindLogSockets", "b", False),
    Property("ProtectSystem", "s", "strict"),
    Property("ProtectHome", "s", "yes"),
    Property("ProtectProc", "s", "invisible"),
    Property("ProcSubset", "s", "pid"),
    Property("ProtectClock", "b", True),
    Property("ProtectHostname", "b", True),
    Property("ProtectKernelLogs", "b", True),
    Property("ProtectKernelModules", "b", True),
    Property("ProtectKernelTunables", "b", True),
    Property("ProtectControlGroups", "b", True),
    Property("PrivateDevices", "b", True),
    Property("PrivateIPC", "b", True),
    Property("PrivateTmp", "b", True),
    Property("PrivateUsers", "b", True),
    Property("LockPersonality", "b", True),
    Property("MemoryDenyWriteExecute", "b", True),
    Property("RestrictNamespaces", "t", 0),
    Property("RestrictRealtime", "b", True),
    Property("RestrictSUIDSGID", "b", True),
    Property("KeyringMode", "s", "private"),
    Property("SystemCallArchitectures", "as", ["native"]),
    Property("SystemCallFilter", "(bas)", [True, ["@system-service"]]),
    Property("SystemCallFilter", "(bas)", [False, ["@privileged", "@keyring", "io_uring_setup", "userfaultfd", "memfd_secret"]]),
    Property("SystemCallErrorNumber", "i", errno.EPERM),
    Property("UMask", "u", 0o077),
    Property("Slice", "s", SLICE),
    Property("TasksMax", "t", 64),
    Property("MemoryMax", "t", _MEMORY_MAX),
    Property("MemorySwapMax", "t", 0),
    Property("LimitCORE", "t", 0),
    Property("LimitNOFILE", "t", 4096),
    Property("OOMScoreAdjust", "i", 500),
    Property("StandardInput", "s", "null"),
    Property("SyslogLevel", "i", 3),
    Property("LogLevelMax", "i", 4),  # PID 1's "Starting", "Finished" and so on would be noise beside the pod's
)


class Limits(NamedTuple):
    """What a job may take. With `image`, its request gets `limit`, which is that, and `space`, bytes that the file system has for it."""

    file_size: int  # bytes of the largest file that the job may write
    timeout: float = _TIMEOUT  # seconds in which it does not get on
    image: int = 0  # bytes that the image may have
    copies: int = 1  # how often the job writes them
    least: int = 1  # bytes, of one copy, without which there is no use in beginning
    others: int = 0  # bytes that another job still writes


class Output(NamedTuple):
    """What a job that has ended left behind. `work` is a directory on the store's file system, for the caller's own files too."""

    value: dict[str, Any]
    work: str
    owner: int  # uid of the files; no process of it is left

    def open(self, name: str) -> tuple[str, int]:
        """Path and descriptor of a file that the job wrote. Raises ImageError for anything but a plain file of its own."""
        if not name or "/" in name or name.startswith("."):
            raise ImageError(f"the sandboxed job names a bad file, {clean_text(name)!r}")
        path = f"{self.work}/root/out/{name}"
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            raise ImageError(f"the sandboxed job did not write {clean_text(name)}") from None
        status = os.fstat(fd)
        if status.st_nlink != 1 or status.st_uid != self.owner:
            os.close(fd)
            raise ImageError(f"the sandboxed job did not write {clean_text(name)} itself")
        return path, fd


@contextmanager
def work_directory(store: Store) -> Iterator[str]:
    """A new directory below Layout.work, locked as long as its user lives, and removed at the end."""
    with store.lock("work"):
        path = f"{store.layout.work}/{os.urandom(8).hex()}"
        os.mkdir(path, 0o700)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        _remove(path)
        os.close(lock)


def find_stale(store: Store) -> list[str]:
    """The jobs whose starter was killed."""
    with store.lock("work"):
        return _find_stale(store)


def remove_stale(store: Store) -> list[str]:
    """Stop the jobs whose starter was killed, and remove what they left; gives their names."""
    with store.lock("work"):
        stale = _find_stale(store)
        if stale:
            stop_units([_unit(name) for name in stale])
        for name in stale:
            _remove(f"{store.layout.work}/{name}")
            _remove(f"{store.layout.secrets}/{name}")
    return stale


def stop_job(work: str) -> None:
    """End the job of a work_directory that was given to finished_job, if it runs."""
    stop_units([_unit(os.path.basename(work))])


def end_jobs(store: Store) -> None:
    """End all jobs that threads of this process wait for, and begin no other."""
    store.takes_jobs = False
    stop_units(list(store.jobs))


@contextmanager
def finished_job(
    store: Store,
    kind: str,
    request: Mapping[str, Any],
    inputs: Mapping[str, str],
    limits: Limits,
    work: str = "",
    *,
    report: tuple[Progress, Event] | None = None,
    secrets: Mapping[str, bytes] = {},
) -> Iterator[Output]:
    """Run a job and give its output, which goes when the context ends.

    `inputs` are the files that the job sees as /in/NAME: paths on the host, readable for all, given by a bind mount. `work` is an own
    work_directory, if the caller has one that the inputs lie in. `report`: whom to tell how far the job is, and the event to be
    completed with that. `secrets` are the contents of more files in /in, which only root and the job can read, and which are never on
    disk. Raises ImageError or TemporaryError, with what the worker said.
    """
    if not work:
        with (
            work_directory(store) as path,
            finished_job(store, kind, request, inputs, limits, path, report=report, secrets=secrets) as output,
        ):
            yield output
        return
    root = f"{work}/root"
    space = require_space(store, limits.least, limits.copies, limits.others) if limits.image else 0
    _make_root(root, {**request, "kind": kind, **({"limit": limits.image, "space": space} if limits.image else {})})
    _copy_host_files(root, _HOST_FILES + (_NETWORK_FILES if _KINDS[kind] else ()))
    name = os.path.basename(work)
    with _written_secrets(store, name, secrets) as paths:
        properties = _render_properties(kind, root, {**inputs, **paths}, limits, _find_peers(request, secrets))
        with _noted(store, _unit(name)), nullcontext() if report is None else Watch(f"{root}/out/progress", report[1], report[0]):
            result = run_service(_unit(name), properties, limits.timeout, lambda: _read_activity(f"{root}/out"))
    try:
        output = _read_output(kind, work, result, limits.timeout)
    except TemporaryError:
        if kind == "pull-image":
            _keep_blobs(store, work)
        raise
    except TooLargeError as error:
        if space >= limits.image:
            raise
        # How much a pull needs is known before; anything else would fill the disk at each further try.
        kinds = TemporaryError if kind == "pull-image" else ImageError
        raise kinds(f"{error}: {_tell_space(store, space)}", hint=_SPACE_HINT) from error
    yield output


@contextmanager
def _noted(store: Store, unit: str) -> Iterator[None]:
    """In Store.jobs."""
    store.jobs.add(unit)
    try:
        if not store.takes_jobs:
            raise TemporaryError("was cancelled")
        yield
    finally:
        store.jobs.discard(unit)


def require_space(store: Store, size: int, copies: int = 1, others: int = 0) -> int:
    """Bytes that each of so many copies may have on the store's file system, besides `others`. Raises TemporaryError if that is less
    than `size`."""
    status = os.statvfs(store.layout.work)
    reserve = min(_RESERVE, status.f_blocks * status.f_frsize // 20)
    space = max(status.f_bavail * status.f_frsize - reserve - others, 0) // copies
    if space < size:
        raise TemporaryError(f"at least {size} bytes are needed: {_tell_space(store, space)}", hint=_SPACE_HINT)
    return space


def _tell_space(store: Store, space: int) -> str:
    return f"{os.strerror(errno.ENOSPC)}: {store.layout.work} has {space} bytes for it, besides those that it also needs and a reserve"


def _read_activity(out: str) -> object:
    """Differs when the job has got on: by what it says, or by what it has written."""
    size = 0
    with suppress(OSError), os.scandir(out) as entries:
        for entry in islice(entries, _KEPT_MAX):
            size += entry.stat(follow_symlinks=False).st_size
    return read_parts(f"{out}/progress"), size


def _keep_blobs(store: Store, work: str) -> None:
    """What came whole before a pull failed, so that the next try need not fetch it. Whoever wrote it: a blob is what its digest says."""
    out = f"{work}/root/out"
    with suppress(FileNotFoundError):
        # What ahead.py takes at the same time is not there any more.
        output = Output({}, work, os.lstat(f"{out}/progress").st_uid)
        with os.scandir(out) as entries:
            names = [entry.name for entry in islice(entries, _KEPT_MAX)]
        for name in sorted(name for name in names if is_digest(f"sha256:{name}")):
            with suppress(ImageError, FileNotFoundError):
                path, fd = output.open(name)
                try:
                    store.adopt_blob(path, fd, f"sha256:{name}")
                finally:
                    os.close(fd)


@contextmanager
def _written_secrets(store: Store, name: str, secrets: Mapping[str, bytes]) -> Iterator[dict[str, str]]:
    """Paths below a directory of root's in /run, as long as the context lasts. The job gets each by a bind mount, hence the mode."""
    directory = f"{store.layout.secrets}/{name}"
    if not secrets:
        yield {}
        return
    os.makedirs(store.layout.secrets, mode=0o700, exist_ok=True)
    os.mkdir(directory, 0o700)
    try:
        for key, content in secrets.items():
            with open(os.open(f"{directory}/{key}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444), "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o444)
        yield {key: f"{directory}/{key}" for key in secrets}
    finally:
        _remove(directory)


def _remove(directory: str) -> None:
    """What cannot be removed now is stale, and tried again then."""
    with suppress(OSError):
        remove_tree(directory)


def _unit(name: str) -> str:
    return f"rktd-job-{name}.service"


def _find_stale(store: Store) -> list[str]:
    return [name for name in sorted(os.listdir(store.layout.work)) if _is_stale(f"{store.layout.work}/{name}")]


def _is_stale(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _make_root(root: str, request: Mapping[str, Any]) -> None:
    """The root directory that the job sees: empty but for mount points, links into /usr, and its request."""
    for name in ("", "in", "usr", "etc", "etc/ssl", "proc", "sys", "dev", "run", "tmp", "var", "var/tmp"):
        os.mkdir(f"{root}/{name}")
        os.chmod(f"{root}/{name}", 0o755)
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        with suppress(OSError):  # only what the host has as links
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
    os.mkdir(f"{root}/out")
    os.chmod(f"{root}/out", 0o777)
    with open(f"{root}/in/request.json", "w", encoding="utf-8") as file:
        json.dump(request, file)
        os.fchmod(file.fileno(), 0o644)


def _copy_host_files(root: str, paths: Iterable[str]) -> None:
    """As many as there are. Nobody may read a copy who may not read the original."""
    for path in paths:
        with suppress(FileNotFoundError), open(path, "rb") as source, open(f"{root}{path}", "xb") as target:
            os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o444)
            target.write(source.read())


def _find_peers(request: Mapping[str, Any], secrets: Mapping[str, bytes]) -> Iterator[str]:
    """The link-local addresses that a job must reach: what it was told to ask, by its address, and the host's name servers."""
    access = json.loads(secrets.get(ACCESS, b"{}"))
    places = [str(request.get("reference", "")).removeprefix("aci:"), str(request.get("lookaside", ""))]
    places += [*access.get("proxies", {}).values(), *(endpoint[0] for endpoint in access.get("endpoints", ()))]
    for place in places:
        with suppress(ValueError):
            yield urlsplit(place if "://" in place else f"//{place}").hostname or ""
    with suppress(OSError), open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
        for key, *values in filter(None, map(str.split, file)):
            yield from values[:1] if key == "nameserver" else ()


def _filter_addresses(peers: Iterable[str]) -> tuple[Property, ...]:
    """No link-local address but these: where clouds tell whoever asks their secrets. systemd.resource-control(5), IPAddressDeny=."""
    allowed = []
    for peer in sorted({peer.partition("%")[0] for peer in peers if reach_of_name(peer) == LINK_LOCAL}):
        address = ip_address(peer)
        allowed.append([AF_INET if address.version == 4 else AF_INET6, address.packed, address.max_prefixlen])
    denied = [[AF_INET, bytes((169, 254, 0, 0)), 16], [AF_INET6, b"\xfe\x80" + bytes(14), 64]]
    return Property("IPAddressDeny", "a(iayu)", denied), Property("IPAddressAllow", "a(iayu)", allowed)


def _render_properties(kind: str, root: str, inputs: Mapping[str, str], limits: Limits, peers: Iterable[str] = ()) -> tuple[Property, ...]:
    network = _KINDS[kind]
    directories = _HOST_DIRECTORIES + (_NETWORK_DIRECTORIES if network else ())
    binds = [["/usr", "/usr", False, 0], *([path, path, True, 0] for path in directories)]
    binds += [[path, f"/in/{name}", False, 0] for name, path in sorted(inputs.items())]
    environment = ["LANG=C.UTF-8", "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin"]
    return (
        *_SANDBOX,
        Property("Description", "s", f"rktd-units image job: {kind}"),
        Property("SyslogIdentifier", "s", "rktd-job"),
        Property("PrivateNetwork", "b", not network),
        Property("RestrictAddressFamilies", "(bas)", [True, ["AF_INET", "AF_INET6"] if network else []]),
        *(_filter_addresses(peers) if network else ()),
        Property("RootDirectory", "s", root),
        Property("BindReadOnlyPaths", "a(ssbt)", binds),
        Property("ReadWritePaths", "as", ["+/out"]),
        Property("WorkingDirectory", "s", "/"),
        Property("Environment", "as", environment),
        Property("LimitFSIZE", "t", limits.file_size),
        Property("TimeoutStartUSec", "t", int(_LONGEST * 1_000_000)),
        Property("ExecStart", "a(sasb)", [[WORKER, [WORKER], False]]),
    )


def _read_output(kind: str, work: str, result: ServiceResult, timeout: float) -> Output:
    if result.result == "timeout":
        text = f"the sandboxed job {kind} took too long: it did not get on for {timeout:g} seconds, or ran for a day"
        raise (TemporaryError if _KINDS[kind] else ImageError)(text)
    if result.result == "oom-kill" and result.memory_peak < _MEMORY_MAX // 10 * 9:  # the host's, or a slice's
        raise TemporaryError(f"the sandboxed job {kind} was killed for want of memory, though it had less than it may have")
    if result.result == "oom-kill":
        raise ImageError(f"the sandboxed job {kind} needs more than {_MEMORY_MAX >> 20} MiB of memory: the image is too large or hostile")
    if result.exit_code == os.CLD_KILLED and result.exit_status in (signal.SIGKILL, signal.SIGTERM):  # nothing in a job sends these
        name = signal.Signals(result.exit_status).name
        raise TemporaryError(f"the sandboxed job {kind} was killed by {name}: by an administrator, or for want of memory")
    path = f"{work}/root/out/result.json"
    if result.result != "success":
        how = f"{result.result}, code {result.exit_code}, status {result.exit_status}"
        raise StateError(f"the sandboxed job {kind} failed ({how})", hint="journalctl -t rktd-job")
    try:
        with open(open_regular(path), "rb") as file:
            owner, data = os.fstat(file.fileno()).st_uid, file.read(_RESULT_MAX + 1)
        message = json.loads(data) if len(data) <= _RESULT_MAX else None
    except (FileNotFoundError, ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ImageError(f"the sandboxed job {kind} left no result")
    if isinstance(error := message.get("error"), dict):
        raised = {"temporary": TemporaryError, "large": TooLargeError}.get(str(error.get("kind")), ImageError)
        raise raised(clean_text(error.get("text", "")), hint=clean_text(error.get("hint") or ""))
    if not isinstance(value := message.get("value"), dict):
        raise ImageError(f"the sandboxed job {kind} left no result")
    return Output(value, work, owner)

# SPDX-License-Identifier: Apache-2.0
"""Pod files -> drop-ins and links below one output directory: a systemd.generator(7). The only writer of generated units.

It runs at boot and at every daemon-reload, synchronously, with the rest of the world read-only: it starts no program, talks to nobody
and writes nowhere else. Data: search directories -> stamps -> (cached or parsed) outputs -> files. One bad pod stops no other.

The cache (Layout.generator_cache, written by `stage0 reload`, never here) holds the outputs of exactly these stamps; it saves the
parsing only, what is written is the same byte for byte.
"""

import gc
import marshal
import os
import sys
from typing import NamedTuple

from rktd_units.errors import Diagnostic, RktdError, clean_text
from rktd_units.names import is_pod_name
from rktd_units.paths import Layout, pod_search_path, product_stamp
from rktd_units.podfile.search import find_pods, stamp_sources

VERSION = 1  # of the cache's form; a cache of another one is not read
STAMP_FILE = ".rktd.stamp"
DROPIN = "50-pod.conf"
Stamps = tuple[tuple[str, int, int, int, int], ...]


class Build(NamedTuple):
    """All that one run is to write and say. `messages`: (syslog priority, text)."""

    pods: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    messages: tuple[tuple[int, str], ...]


def main(argv: list[str]) -> int:
    """`rktd-generator NORMAL [EARLY LATE]`: writes to NORMAL. 1 when any pod file is wrong, though all others are served."""
    if len(argv) not in (2, 4):
        sys.stderr.write("rktd-generator: expected one or three output directories\n")
        return 1
    gc.disable()  # it ends before a collection would pay: 2 ms of 38
    output = argv[1]
    layout = Layout(os.environ.get("RKTD_ROOT", ""))
    directories = pod_search_path(dict(os.environ))
    stamps = stamp_sources(directories)
    build = load_cache(layout, directories, stamps) or build_units(directories)
    failed = any(priority <= 3 for priority, _ in build.messages)
    log(build.messages)
    try:
        write_build(build, output, layout)
        write_watches(stamps, output)
        if any(stamp[2] for stamp in stamps):
            _write(f"{output}/{STAMP_FILE}", render_stamps(stamps))
    except OSError as error:
        log(((3, f"{error.filename or output}: {error.strerror}"),))
        return 1
    return 1 if failed else 0


def build_units(directories: tuple[str, ...]) -> Build:
    """Parses every pod file; a broken one gives messages instead of units."""
    found = find_pods(directories)
    if not found.entries and not found.diagnostics:
        return Build((), (), (), ())
    from rktd_units.podfile.load import load_pod
    from rktd_units.podfile.ports import PortBook
    from rktd_units.translate import translate_pod

    pods: list[str] = []
    files: list[tuple[str, str]] = []
    links: list[tuple[str, str]] = []
    diagnostics: list[Diagnostic] = list(found.diagnostics)
    ports = PortBook()
    for entry in found.entries:
        try:
            pod, faults = load_pod(entry)
            diagnostics += faults
            if pod is None:
                continue
            if taken := ports.enter(pod):
                diagnostics += taken
                continue
            output = translate_pod(pod)
        except RktdError as error:
            diagnostics.append(Diagnostic(entry.path, 0, 0, "", str(error), error.hint))
            continue
        except Exception as error:  # a fault of ours that one file brings to light must not take the units of all other pods away
            text = f"cannot be read: {type(error).__name__}: {clean_text(error, 200)}"
            diagnostics.append(Diagnostic(entry.path, 0, 0, "", text, "please report this"))
            continue
        pods.append(pod.name)
        files += output.files
        links += output.links
    messages = tuple((4 if d.severity == "warning" else 3, str(d)) for d in diagnostics)
    return Build(tuple(pods), tuple(files), tuple(links), messages)


def load_cache(layout: Layout, directories: tuple[str, ...], stamps: Stamps) -> Build | None:
    """The cached outputs of exactly these stamps, or None. Only root can write there (/run/rktd is root's)."""
    try:
        with open(layout.generator_cache, "rb") as file:
            version, key, fields = marshal.load(file)
        if version == (VERSION, product_stamp()) and key == (directories, stamps) and all(isinstance(field, tuple) for field in fields):
            return Build(*fields)
    except (OSError, ValueError, EOFError, TypeError):
        pass
    return None


def save_cache(layout: Layout, directories: tuple[str, ...], stamps: Stamps, build: Build) -> None:
    """For the next runs of the generator; `stamps` must have been taken before `build` was made."""
    os.makedirs(layout.run, mode=0o755, exist_ok=True)
    _write(layout.generator_cache, marshal.dumps(((VERSION, product_stamp()), (directories, stamps), tuple(build))))


def render_stamps(stamps: Stamps) -> str:
    """One line per file or directory looked at: what `stage0 reload` compares with what is there now."""
    return "".join(f"{mtime} {ctime} {size} {inode} {path!r}\n" for path, mtime, ctime, size, inode in stamps)


def write_build(build: Build, output: str, layout: Layout) -> None:
    """Everything under `output`, but that a pod which runs keeps the drop-in that it was started with, whatever has become of its file.

    So does an open socket whose file went or broke: `stage0 reload` closes it, and until then it is to be whole.
    """
    valid = set(build.pods)
    files: dict[str, str | bytes] = dict(build.files)
    for name, unit, kept in _kept_dropins(layout):
        if unit.endswith(".service") or name not in valid:
            files[f"{unit}.d/{DROPIN}"] = kept
    made: set[str] = set()
    for path, text in files.items():
        directory = f"{output}/{path.rsplit('/', 1)[0]}"
        if directory not in made:
            os.makedirs(directory, exist_ok=True)
            made.add(directory)
        _write(f"{output}/{path}", text)
    for path, target in build.links:
        os.makedirs(f"{output}/{path.rsplit('/', 1)[0]}", exist_ok=True)
        try:  # noqa: SIM105 - contextlib would cost every reload
            os.symlink(target, f"{output}/{path}")
        except FileExistsError:
            pass


def write_watches(stamps: Stamps, output: str) -> None:
    """Directories of drop-ins are watched like those of the pod files: a drop-in of pods.path, whose own text cannot name them."""
    paths = [stamp[0] for stamp in stamps if stamp[0].endswith(".yaml.d") and stamp[0].isprintable()]
    if paths:
        os.makedirs(f"{output}/pods.path.d", exist_ok=True)
        lines = "".join(f"PathChanged={path.replace('%', '%%')}\n" for path in paths)
        _write(f"{output}/pods.path.d/50-drop-ins.conf", f"# Automatically generated by rktd-generator\n\n[Path]\n{lines}")


def _kept_dropins(layout: Layout) -> list[tuple[str, str, bytes]]:
    """(pod, unit, drop-in text) of all pods that run or are about to, from beside pod.json, and of all sockets that listen."""
    kept = []
    for directory, inner, suffix in ((layout.pods, f"/{DROPIN}", "service"), (layout.sockets, "", "socket")):
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in filter(is_pod_name, names):  # not what stage0 is still writing
            try:
                with open(f"{directory}/{name}{inner}", "rb") as file:
                    kept.append((name, f"pod@{name}.{suffix}", file.read()))
            except OSError:
                continue
    return kept


def _write(path: str, data: str | bytes) -> None:
    """Whole or not at all, also when two runs write at once."""
    directory, name = path.rsplit("/", 1)
    temporary = f"{directory}/.{name}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        view = memoryview(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)
    os.rename(temporary, path)


def log(messages: tuple[tuple[int, str], ...]) -> None:
    """To the kernel's log, as no other log is up when generators run (systemd.generator(7)); to stderr where there is none."""
    if not messages:
        return
    descriptor = -1
    if os.environ.get("SYSTEMD_LOG_TARGET") != "console":
        try:  # noqa: SIM105
            descriptor = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            pass
    for priority, text in messages:
        for line in text.split("\n"):
            if descriptor >= 0:
                try:  # noqa: SIM105
                    os.write(descriptor, f"<{24 | priority}>rktd-generator[{os.getpid()}]: {line}\n".encode("utf-8", "replace")[:976])
                except OSError:
                    pass
            else:
                sys.stderr.write(f"rktd-generator: {line}\n")
    if descriptor >= 0:
        os.close(descriptor)

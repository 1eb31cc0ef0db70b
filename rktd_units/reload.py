# SPDX-License-Identifier: Apache-2.0
"""Keeps what systemd knows of pods at what their files say: the reload service, and stage0's safety net (docs/design.md)."""

import os
from contextlib import suppress

from rktd_units.errors import ConfigError, StateError
from rktd_units.names import exec_socket
from rktd_units.paths import Layout, pod_search_path
from rktd_units.podfile.model import Pod
from rktd_units.podfile.search import Stamp, stamp_sources
from rktd_units.runfiles import lock, read_text
from rktd_units.translate import dropin_path, has_exec_socket, render_dropin, render_socket, socket_dropin_path

RELOAD_UNIT = "pods-reload.service"


def sync_units(layout: Layout, pod: Pod) -> None:
    """The safety net of the reload race: what systemd runs the pod with must be what its file says now.

    PID 1 applies the new settings to the waiting job of pod@NAME, but starts no unit that the old text did not require: that is done here,
    whoever has reloaded since the job was made.
    """
    path = f"{layout.generator_output}/{dropin_path(pod.name)}"
    wanted = {path: render_dropin(pod), f"{layout.generator_output}/{socket_dropin_path(pod.name)}": render_socket(pod)}
    with lock(layout, "reload"):
        if not _is_there(wanted):
            _reload_for(layout, pod, path, wanted)
    needed = list(pod.systemd.requires)
    if has_exec_socket(pod) and not os.path.exists(f"{layout.exec_directory(pod.name)}/socket"):
        needed.append(exec_socket(pod.name))
    if needed:
        from rktd_units import systemd

        with systemd.Manager() as manager:
            for unit in needed:  # those that run are left alone
                manager.start_unit(unit)


def _reload_for(layout: Layout, pod: Pod, path: str, wanted: dict[str, str]) -> None:
    from rktd_units import systemd

    # Stamps do not tell two edits of one tick of the clock apart: the text is what counts here.
    with suppress(FileNotFoundError):
        os.unlink(layout.generator_cache)
    with systemd.Manager() as manager:
        manager.reload()
        if not _is_there(wanted):
            _refuse_port(pod)
            hint = "is rktd-generator installed?"
            raise StateError(f"{path} is not what {pod.source} says, even after a reload of systemd", hint=hint)


def _is_there(files: dict[str, str]) -> bool:
    return all(read_text(path) == text for path, text in files.items())


def _refuse_port(pod: Pod) -> None:
    """Raises ConfigError when the generator serves another pod that wants the same port of the host."""
    from rktd_units.podfile.load import load_pod
    from rktd_units.podfile.ports import PortBook
    from rktd_units.podfile.search import find_pods

    ports = PortBook()
    for entry in find_pods(pod_search_path(dict(os.environ))).entries:
        other = load_pod(entry)[0]
        taken = ports.enter(other) if other else ()
        if taken and other and other.name == pod.name:
            raise ConfigError(taken[0].message, taken)


def reload_units(layout: Layout = Layout()) -> None:
    """Reloads systemd until what the generator saw is what is there; leaves its outputs in a cache for the next time; sockets follow."""
    from rktd_units import generator

    directories = pod_search_path(dict(os.environ))
    while True:
        stamps = _reload(layout, directories)
        build = generator.build_units(directories)
        if stamp_sources(directories) == stamps:
            generator.save_cache(layout, directories, stamps, build)
        if os.path.exists(layout.sockets):
            from rktd_units.sockets import sync_sockets

            sync_sockets(layout)
        if stamp_sources(directories) == stamps:
            return


def recheck_units(layout: Layout = Layout()) -> None:
    """After the end of the reload service, when the path unit watches again: has it run once more for what changed in between.

    A path unit does not watch while its service runs, and begins anew without a look (path_enter_running in systemd's path.c).
    """
    if not _is_known(layout, stamp_sources(pod_search_path(dict(os.environ)))):
        from rktd_units import systemd

        with systemd.Manager() as manager:
            manager.start_unit(RELOAD_UNIT)


def _reload(layout: Layout, directories: tuple[str, ...]) -> tuple[Stamp, ...]:
    """Returns the stamps of what the generator saw."""
    while True:
        with lock(layout, "reload"):
            stamps = stamp_sources(directories)
            if _is_known(layout, stamps):
                return stamps
            from rktd_units import systemd

            with systemd.Manager() as manager:
                manager.reload()


def _is_known(layout: Layout, stamps: tuple[Stamp, ...]) -> bool:
    from rktd_units import generator

    seen = read_text(f"{layout.generator_output}/{generator.STAMP_FILE}")
    return seen == generator.render_stamps(stamps) or (not seen and not any(stamp[1] for stamp in stamps))

# SPDX-License-Identifier: Apache-2.0
"""The sockets by which pods are activated: keeps pod@NAME.socket listening on what the pod's file says.

Layout.socket_record has the drop-in with which a socket listens, as long as it does: pod@.socket writes it. What is compared is that.
"""

import os
import sys
import time
from contextlib import suppress

from rktd_units import systemd
from rktd_units.errors import ConfigError, StateError
from rktd_units.names import is_pod_name, pod_socket, pod_unit
from rktd_units.paths import Layout, pod_search_path
from rktd_units.podfile.cache import load_cached
from rktd_units.podfile.model import Pod
from rktd_units.podfile.ports import activated_ports
from rktd_units.podfile.search import locate_pod
from rktd_units.runfiles import list_names, lock, notify_status, read_text
from rktd_units.translate import render_socket

_PAUSE = 3.0  # seconds
_PATIENCE = 10.0


def back_off(name: str) -> None:
    """Waits a while if the pod has failed just now: who tried to connect then is there still, and would have it started again at once."""
    with systemd.Manager() as manager:
        if manager.get_property(pod_unit(name), "Service", "Result") != "success":
            ended = manager.get_property(pod_unit(name), "Unit", "StateChangeTimestampMonotonic") / 1e6
            wait = ended + _PAUSE - time.monotonic()
            if wait > 0:
                notify_status(f"The last run failed: waiting for {_PAUSE:g} s")
                time.sleep(min(wait, _PAUSE))


def open_sockets(layout: Layout, pod: Pod) -> None:
    """Before its stage1 starts, which gets them from systemd. Raises StateError when something else of this host listens there."""
    wanted = render_socket(pod)
    if read_text(layout.socket_record(pod.name)) == wanted:
        return
    from rktd_units.network.ports import await_socket
    from rktd_units.network.state import HostPort

    ports = tuple(HostPort(p.protocol.lower(), p.host_ip, p.host_port, p.container_port) for p in activated_ports(pod))
    with systemd.Manager() as manager:
        _stop(manager, layout, pod.name)
        if wanted:
            manager.start_unit(pod_socket(pod.name))
            await_socket(manager, pod_socket(pod.name), pod.name, ports)


def sync_sockets(layout: Layout) -> None:
    """After a reload: all that listen. Those of a pod that runs stay as they are until it ends: then `sync_socket` is called."""
    for name in filter(is_pod_name, list_names(layout.sockets)):
        with suppress(BlockingIOError), lock(layout, f"pod-{name}", wait=False):
            if not os.path.exists(layout.pod(name)):
                sync_socket(layout, name)


def sync_socket(layout: Layout, name: str) -> None:
    """One that listens, of a pod that does not run. The caller holds the lock `pod-NAME`.

    It returns when that is done, and nobody reloads meanwhile: a socket between two states has no record, so the next one to look would
    pass it over, or one of a text with which it was not opened.
    """
    record = read_text(layout.socket_record(name))
    if not record or record == (wanted := _find_wanted(layout, name, record)):
        return
    with lock(layout, "reload"), systemd.Manager() as manager:
        try:
            _stop(manager, layout, name)
            if wanted:
                manager.start_unit(pod_socket(name))
            _await_jobs(manager, pod_socket(name))
        except StateError as error:
            sys.stderr.write(f"<4>{pod_socket(name)} does not follow its file: {error}\n")


def _await_jobs(manager: systemd.Manager, unit: str) -> None:
    """Until systemd has nothing to do for a unit, but not for ever."""
    end = time.monotonic() + _PATIENCE
    while manager.get_property(unit, "Unit", "Job")[0] and time.monotonic() < end:
        time.sleep(0.005)


def _stop(manager: systemd.Manager, layout: Layout, name: str) -> None:
    unit = pod_socket(name)
    if read_text(layout.socket_record(name)):
        manager.stop_unit(unit)
        _await_jobs(manager, unit)  # a start would take the place of a stop that systemd has not begun, and change nothing
    with suppress(StateError):  # where it is not loaded there is nothing to reset
        manager.reset_failed(unit)


def _find_wanted(layout: Layout, name: str, present: str) -> str:
    """What the pod's file says; `present` while it is broken. Not what the generator wrote: somebody may be reloading at this moment."""
    try:
        entry, _ = locate_pod(name, pod_search_path(dict(os.environ)))
    except ConfigError:
        return ""
    pod = load_cached(layout.parsed(name), entry)
    if pod is None:
        from rktd_units.podfile.load import load_pod

        pod, _ = load_pod(entry)
    return present if pod is None else render_socket(pod)

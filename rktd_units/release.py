# SPDX-License-Identifier: Apache-2.0
"""The end of stage0: takes away all that a pod had on this host but its images and the record of its end."""

import os
from contextlib import suppress

from rktd_units import ids
from rktd_units.errors import StateError, TemporaryError
from rktd_units.names import pod_unit
from rktd_units.paths import LIMITED, Layout
from rktd_units.results import save_result
from rktd_units.rootview import unmount_layers
from rktd_units.runfiles import list_names, lock, read_text, remove_tree
from rktd_units.translate import DROPIN


def release(name: str, layout: Layout = Layout()) -> None:
    """Takes away all that the pod has on this host but its images and the record of its end."""
    with lock(layout, f"pod-{name}"):
        release_locked(name, layout)


def release_locked(name: str, layout: Layout) -> None:
    """As `release`, for who holds the lock `pod-NAME`."""
    withdraw_plan(layout, name)
    _remove_secrets(layout, name)  # whatever else does not go away
    _end_jobs(layout)
    if os.path.exists(layout.domain(name)):
        from rktd_units.guests import remove_guest

        remove_guest(layout, name)
    _tell_failure(layout, name, save_result(layout, name))
    _forget_machine(name)
    if os.path.exists(layout.network_state):
        from rktd_units.network.attach import detach

        detach(layout, name)
    if os.path.exists(f"{layout.passed}/{name}"):
        from rktd_units.network.passed import release_sockets

        release_sockets(layout, name)
    _release_layers(layout, name)
    remove_pod_files(layout, name)
    with suppress(OSError):  # while the socket is in there; its unit takes both away when it stops after us
        os.rmdir(layout.exec_directory(name))
    ids.release_range(layout.id_ranges, name)
    if os.path.exists(layout.socket_record(name)):
        from rktd_units.sockets import sync_socket

        sync_socket(layout, name)


def withdraw_plan(layout: Layout, name: str) -> None:
    """The first act of every prepare and release: no stage1 may start from a tree that a pod's root has had in its hands.

    A start without either of them before it is stage1/launch.py's care.
    The settings that the pod was started with go, too: the generator's next run gives its unit those of its file.
    """
    for kept in ("plan", DROPIN):
        with suppress(FileNotFoundError):
            os.unlink(f"{layout.pod(name)}/{kept}")


def _remove_secrets(layout: Layout, name: str) -> None:
    if os.path.lexists(layout.vault):
        from rktd_units.vault import clear_vault

        clear_vault(layout, name)


def _end_jobs(layout: Layout) -> None:
    """Those of a stage0 that was ended in the midst of a pull."""
    if list_names(layout.work):
        from rktd_units.images.jobs import remove_stale
        from rktd_units.images.store import Store

        with suppress(StateError, TemporaryError):  # then the next start or `podctl gc` does
            remove_stale(Store(layout))


def _release_layers(layout: Layout, name: str) -> None:
    with lock(layout, "layers"):
        claims = layout.layer_claims
        with suppress(FileNotFoundError):
            os.unlink(f"{claims}/{name}")
        wanted: set[str] = set()
        for claim in list_names(claims):
            wanted.update(read_text(f"{claims}/{claim}").split())
        unmount_layers(layout, wanted)


def _forget_machine(name: str) -> None:
    """A killed nspawn leaves its machine registered, and the next one of the name is refused."""
    if os.path.lexists(f"/run/systemd/machines/{name}"):
        from rktd_units import systemd

        with suppress(StateError), systemd.Manager() as manager:  # at the end of a shutdown there is no bus
            manager.unregister_machine(name, pod_unit(name))


def _tell_failure(layout: Layout, name: str, apps: dict[str, dict[str, str]]) -> None:
    """What `journalctl -x` explains: the first app of the pod file that failed, or that there was no pod. Not of a pod that was stopped."""
    setup = read_text(f"{layout.pod(name)}/error")
    failed = [app for app in read_text(f"{layout.pod(name)}/apps").split() if app in apps and apps[app]["result"] != "success"]
    if not setup and not failed:
        return
    from rktd_units import events, systemd

    if setup:
        events.log(f"<3>{setup}", "stage1-failed", name)
        return
    with suppress(StateError), systemd.Manager() as manager:
        if manager.get_property(pod_unit(name), "Service", "Result") != "success":
            end = apps[failed[0]]
            how = "exit code" if end["code"] == "exited" else "signal"
            events.log(f"<3>app {failed[0]} has failed: {how} {end['status']}", "app-failed", name, APP=failed[0])


def remove_pod_files(layout: Layout, name: str) -> None:
    _remove_secrets(layout, name)
    for storage in (layout.pod_storage(name), f"{layout.run}/storage/{name}"):
        if os.path.isdir(f"{storage}/{LIMITED}"):
            from rktd_units.limited import unmount_limited

            unmount_limited(storage)
        remove_tree(storage)
    for path in (layout.pod(name), f"{layout.pods}/.{name}.new"):
        remove_tree(path)

# SPDX-License-Identifier: Apache-2.0
"""What pods left that will not be released any more: the host crashed, or stage0 was killed and its unit's stop post command, too."""

import os
import time

from rktd_units import systemd
from rktd_units.errors import StateError
from rktd_units.names import is_pod_name, pod_unit, stage0_unit
from rktd_units.network.attach import members
from rktd_units.paths import Layout
from rktd_units.release import release_locked
from rktd_units.runfiles import list_names, lock, read_text

_SETTLED = 600.0  # seconds after which a readied pod whose units are not active is nobody's any more


def sweep_pods(layout: Layout, *, dry_run: bool = False) -> list[str]:
    """Release every pod of which something is there though it neither runs nor starts; gives their names.

    A pod that somebody works on at this moment is left alone.
    """
    return [name for name in _find_names(layout) if _sweep(layout, name, dry_run)]


def _find_names(layout: Layout) -> list[str]:
    directories = (layout.pods, f"{layout.state}/pods", f"{layout.run}/storage", layout.layer_claims, layout.vault)
    names = {name for directory in directories for name in list_names(directory)}
    names |= {read_text(f"{layout.id_ranges}/{base}") for base in list_names(layout.id_ranges)}
    names |= set(members(layout))
    return sorted(name for name in names if is_pod_name(name))


def _sweep(layout: Layout, name: str, dry_run: bool) -> bool:
    try:
        with lock(layout, f"pod-{name}", wait=False):
            if not _is_left(layout, name):
                return False
            if not dry_run:
                release_locked(name, layout)
            return True
    except BlockingIOError:
        return False


def _is_left(layout: Layout, name: str) -> bool:
    """The caller holds the pod's lock: nobody readies or releases it now."""
    try:
        age = time.time() - os.stat(layout.pod(name)).st_mtime
    except FileNotFoundError:
        return not is_active(name)  # what it had on disk is there, but it never got as far, or the host went down
    return age > _SETTLED and not is_active(name) and not os.path.lexists(f"/run/systemd/machines/{name}")


def is_active(name: str) -> bool:
    """True while a unit of the pod is anything but stopped, and when systemd does not say."""
    units = (pod_unit(name), stage0_unit(name))
    try:
        with systemd.Manager() as manager:
            return any(manager.get_property(unit, "Unit", "ActiveState") not in ("inactive", "failed") for unit in units)
    except StateError:
        return True

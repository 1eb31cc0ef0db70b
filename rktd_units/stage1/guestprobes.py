# SPDX-License-Identifier: Apache-2.0
"""In a Xen guest: runs the exec probes and hooks of its pod, by the same code as on a host (rktd_units.execprobes).

It lives beside PID 1 in the guest's first root. There is no status to tell: guestlog.py tells the host how the apps are.
"""

import os
import socket
import time
from typing import NoReturn

from rktd_units import tasks
from rktd_units.execprobes import Server
from rktd_units.paths import Layout
from rktd_units.stage1 import apart
from rktd_units.stage1.guestlog import cgroups

BACKLOG = 64
_LEADER = 1
_PAUSE = 1.0  # seconds


class GuestServer(Server):
    """Until the guest ends."""

    may_be_unfiltered = True

    def locate(self, app: str) -> tuple[str, int]:
        plain, escaped = cgroups(app)
        return escaped if os.path.isdir(escaped) else plain, _LEADER

    def has_probes(self) -> bool:
        return True

    def tell_status(self) -> None:
        self.status_due = 0.0


def main(pod: str, listener: int) -> NoReturn:
    """Forked by stage1/guest.py. Does not return."""
    try:
        os.set_inheritable(listener, True)
        apart.become("rktd_units.stage1.guestprobes", f"serve({pod!r}, {listener})")
    except OSError as error:
        _tell(error)
    finally:
        os._exit(1)


def serve(pod: str, listener: int) -> NoReturn:
    """Does not return. Nobody would start it again as systemd does on a host: whatever happens, it goes on."""
    os.set_inheritable(listener, False)
    tasks.forbid_dumps()
    with socket.socket(fileno=listener) as channel:
        while True:
            try:
                GuestServer(pod, channel, Layout()).run()
            except Exception as error:
                _tell(error)
            time.sleep(_PAUSE)


def _tell(error: Exception) -> None:
    os.write(2, f"exec probes and hooks: {type(error).__name__}: {error}\n".encode())

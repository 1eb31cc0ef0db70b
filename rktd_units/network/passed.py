# SPDX-License-Identifier: Apache-2.0
"""Keeps pods that are given sockets of the host from using them as ways out: such a socket answers, it never begins.

A listening socket can be disconnected and connected anew, one for datagrams can send to anybody, and both are in the host's network, not in
the pod's. systemd gives them a mark (translate.py), which those that they accept inherit, and which no pod in a user name space can change.
"""

import os
from contextlib import suppress

from rktd_units.network.netlink import remove_table
from rktd_units.paths import Layout
from rktd_units.podsockets import MARK
from rktd_units.runfiles import list_names, lock, write_text

TABLE = "inet rktd-sockets"
_NFT = "/usr/sbin/nft"
# After conntrack (-200), before the chains that give marks of their own (-150). TCP needs no conntrack: that may be off for a packet.
_RULES = f"""
table {TABLE} {{ }}
delete table {TABLE}
table {TABLE} {{
  chain outgoing {{
    type filter hook output priority -175; policy accept;
    meta mark != {MARK:#x} accept
    tcp flags & (syn | ack) == syn drop
    meta l4proto tcp accept
    ct direction reply accept
    drop
  }}
}}
"""


def guard_sockets(layout: Layout, name: str) -> None:
    """Before a pod gets sockets. Raises CommandError: then it must not get them."""
    with lock(layout, "network"):
        write_text(f"{layout.passed}/{name}", "")
        _load()


def release_sockets(layout: Layout, name: str) -> None:
    """After a pod; with the last one goes the table. Nothing where it had none."""
    with lock(layout, "network"):
        with suppress(FileNotFoundError):
            os.unlink(f"{layout.passed}/{name}")
        if not list_names(layout.passed):
            remove_table(TABLE)


def restore_guard(layout: Layout) -> None:
    """The table anew, as after somebody's `nft flush ruleset`."""
    with lock(layout, "network"):
        if list_names(layout.passed):
            _load()


def _load() -> None:
    from rktd_units import proc

    proc.run([_NFT, "-f", "-"], input=_RULES.encode())

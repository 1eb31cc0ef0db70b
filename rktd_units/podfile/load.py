# SPDX-License-Identifier: Apache-2.0
"""From the files of one pod to its model or to all that is wrong with them."""

from rktd_units.errors import Diagnostic
from rktd_units.podfile.model import Pod
from rktd_units.podfile.search import PodEntry


def load_pod(entry: PodEntry, *, ownership: bool = True) -> tuple[Pod | None, tuple[Diagnostic, ...]]:
    """The pod, or None with its faults; warnings come with either. `ownership`: as root, demand what `check_ownership` does."""
    raise NotImplementedError


def check_ownership(entry: PodEntry) -> tuple[Diagnostic, ...]:
    """As root: faults for each file and directory of the entry that someone else than root could write (DESIGN 4.1)."""
    raise NotImplementedError

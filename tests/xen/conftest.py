# SPDX-License-Identifier: Apache-2.0
"""One Xen testbed for a session: restored afresh, stopped at the end unless RKTD_TESTBED_KEEP=1."""

import os
from collections.abc import Iterator

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import PARAVIRTUALISED, XenBed


@pytest.fixture(scope="session")
def bed(require_root: None) -> Iterator[XenBed]:
    """A real Xen with the product installed in dom0; RKTD_TESTBED_NAME names it."""
    if os.uname().machine != "x86_64":
        pytest.skip("the Xen testbed is an amd64 machine")
    testbed = XenBed(os.environ.get("RKTD_TESTBED_NAME", "tests"))
    testbed.boot()
    testbed.write("/etc/rktd/rktd.yaml", PARAVIRTUALISED)
    yield testbed
    if os.environ.get("RKTD_TESTBED_KEEP") != "1":
        testbed.stop()


@pytest.fixture
def pods(pods_session: Pods) -> Iterator[Pods]:
    """No pod after the test, and so none before it: to look takes ten seconds here."""
    pods_session.mark()
    yield pods_session
    pods_session.clean()

# SPDX-License-Identifier: Apache-2.0
"""One Xen testbed for a session: restored afresh, stopped at the end unless RKTD_TESTBED_KEEP=1."""

import os
from collections.abc import Iterator

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import XenBed


@pytest.fixture(scope="session")
def bed(require_root: None) -> Iterator[XenBed]:
    """A real Xen with the product installed in dom0; RKTD_TESTBED_NAME names it."""
    if os.uname().machine != "x86_64":
        pytest.skip("the Xen testbed is an amd64 machine")
    testbed = XenBed(os.environ.get("RKTD_TESTBED_NAME", "tests"))
    testbed.boot()
    yield testbed
    if os.environ.get("RKTD_TESTBED_KEEP") != "1":
        testbed.stop()


@pytest.fixture(scope="session")
def pods_session(bed: XenBed) -> Pods:
    return Pods(bed)


@pytest.fixture
def pods(pods_session: Pods) -> Iterator[Pods]:
    """No pod before the test, none after it."""
    pods_session.clean()
    yield pods_session
    pods_session.clean()

# SPDX-License-Identifier: Apache-2.0
"""One testbed for a session, or for each worker of one: booted afresh, stopped at the end unless RKTD_TESTBED_KEEP=1."""

import os
from collections.abc import Iterator

import pytest

from tests.integration.bed import Bed


@pytest.fixture(scope="session")
def bed(require_root: None) -> Iterator[Bed]:
    """A real systemd with the product installed; RKTD_TESTBED_NAME names it, and a worker of pytest-xdist adds its own name."""
    names = (os.environ.get("RKTD_TESTBED_NAME", "tests"), os.environ.get("PYTEST_XDIST_WORKER", ""))
    testbed = Bed("-".join(filter(None, names)))
    testbed.boot()
    yield testbed
    if os.environ.get("RKTD_TESTBED_KEEP") != "1":
        testbed.stop()

# SPDX-License-Identifier: Apache-2.0
"""Marks, order and skips of the whole test suite."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.integration.bed import Bed
from tests.integration.pods import Pods

INTEGRATION = Path(__file__).parent / "integration"
XEN = Path(__file__).parent / "xen"
settings.register_profile("busy", deadline=None)  # a machine that does other work is no fault of what is tested
settings.load_profile("busy")


# Modules that take longest come first, and the unit tests last: so no worker is left alone with a long one at the end.
LONGEST = (
    "test_lifecycle",
    "test_registry",
    "test_network",
    "test_store",
    "test_layers_umoci",
    "test_updates",
    "test_trust",
    "test_reload",
    "test_roles",
    "test_probes",
    "test_config",
    "test_activation",
    "test_host_pid",
    "test_images",
    "test_examples",
    "test_verity",
    "test_package",
    "test_mounts",
    "test_aci",
    "test_volumes",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of tests/integration has its mark, and all of tests/xen has it and its own.

    A reboot of the Xen testbed comes last. Workers share out whole modules, whose fixtures are dear.
    """
    for item in items:
        if {INTEGRATION, XEN} & set(item.path.parents):
            item.add_marker(pytest.mark.integration)
        if XEN in item.path.parents:
            item.add_marker(pytest.mark.xen)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[bool, int, bool]:
    is_integration = INTEGRATION in item.path.parents
    length = LONGEST.index(item.path.stem) if is_integration and item.path.stem in LONGEST else len(LONGEST)
    return XEN in item.path.parents, length if is_integration else len(LONGEST) + 1, item.path == XEN / "test_reboot.py"


def lack(reason: str) -> None:
    """Something that a test needs is not there: a failure in CI, a skip that names it elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], str]:
    """A function: a program's name -> its path."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if not path:
            lack(f"needs the program {name}")
        return path or ""

    return find


@pytest.fixture(scope="session")
def require_root() -> None:
    if os.geteuid() != 0:
        lack("needs root")


@pytest.fixture(scope="session")
def pods_session(bed: Bed) -> Pods:
    """`bed` is the testbed of the directory that the test is in."""
    return Pods(bed)


@pytest.fixture
def pods(pods_session: Pods) -> Iterator[Pods]:
    """No pod before the test, none after it."""
    pods_session.begin()
    yield pods_session
    pods_session.clean()

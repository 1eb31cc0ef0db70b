# SPDX-License-Identifier: Apache-2.0
"""A Xen testbed as tests see it: dom0 is what the container is to the other integration tests."""

import os

from tests.integration.bed import TESTBED, Bed


class XenBed(Bed):
    """A running dom0 in emulation: everything takes ten times as long as elsewhere, so timeouts are generous and tests few."""

    def boot(self, *, install: bool = True) -> None:
        options = [] if install else ["--no-install"]
        self._testbed("exec", "--fresh", f"--name={self.name}", *options, "--", "true")
        self.prefix = [os.fspath(TESTBED), "xen", "exec", f"--name={self.name}", "--no-install", "--"]

    def _testbed(self, *argv: str) -> str:
        return super()._testbed("xen", *argv)

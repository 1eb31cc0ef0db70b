# SPDX-License-Identifier: Apache-2.0
"""A Xen testbed as tests see it: dom0 is what the container is to the other integration tests."""

import os

from tests.integration.bed import TESTBED, Bed

PARAVIRTUALISED = "xen: {type: pv}\n"  # rktd.yaml: hardware virtualisation, which is emulated too, takes half as long again


class XenBed(Bed):
    """A running dom0 in emulation: everything takes ten times as long as elsewhere, so timeouts are generous and tests few."""

    pause = 1.0  # a look costs dom0 a third of a second of its processor

    def boot(self, *, install: bool = True, selinux: bool = False) -> None:
        options = [*([] if install else ["--no-install"]), *(["--selinux"] if selinux else [])]
        self._testbed("exec", "--fresh", f"--name={self.name}", *options, "--", "true")
        self.prefix = [os.fspath(TESTBED), "xen", "exec", f"--name={self.name}", "--no-install", "--"]
        if install:
            self.mask_generators()

    def reboot(self) -> None:
        """Until all of it runs again."""
        self._testbed("reboot", f"--name={self.name}")

    def _testbed(self, *argv: str) -> str:
        return super()._testbed("xen", *argv)


def left_overs(bed: Bed) -> str:
    """What domains could leave in dom0, a line each: "" when nothing is left."""
    script = (
        "xl list | tail -n +3; losetup -nl; xenstore-ls -f | grep -E '^/(libxl|vm|local/domain)/.' | "
        "grep -Ev '^/local/domain/0( |/control|/name|/domid|/memory|/device-model|/backend(/[a-z0-9]+)? )'; "
        "find /run/rktd/domains /run/rktd/vault /run/rktd/pods -mindepth 1; machinectl list --no-legend; ip -br link | grep vpod; "
        "grep -E ' (9p|erofs|overlay) |/run/rktd/' /proc/mounts | grep -v testbed; pgrep -af '[r]ktd/share|[x]l create|[r]ktd/supervisor'"
    )
    return bed.sh(f"{{ {script}; }} 2>/dev/null", check=False).stdout

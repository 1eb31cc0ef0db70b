# SPDX-License-Identifier: Apache-2.0
"""The README's first command, where systemd is PID 1 and where it is not."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.bed import Bed, own_name
from tests.integration.pods import Pods

CHECKOUT = Path(__file__).resolve().parents[2]


def check(said: str) -> None:
    """What it has shown of the pod's life."""
    assert "Hello from a pod" in said
    assert "Active: active (running)" in said
    journal = said[said.index("$ journalctl") :]
    assert "server[" in journal
    assert "reader[" in journal
    assert "response:200" in journal
    assert said.rstrip().endswith("Nothing is left of the pod; the image stays in /var/lib/rktd, its source in /srv/rktd-demo.")


def test_demo(pods: Pods) -> None:
    """It installs, builds, starts, asks, shows and stops, and takes its pod away again."""
    pods.bed.bind(CHECKOUT, "/opt/rktd-units", read_only=True)
    check(pods.bed.run("/opt/rktd-units/tools/demo", timeout=120).stdout)
    assert pods.bed.run("systemctl", "is-active", "pod@web", check=False).stdout == "inactive\n"
    pods.wait_end("web")
    assert pods.bed.sh("ls -A /etc/pods; ls /run/rktd/pods").stdout == ""
    assert pods.bed.run("systemctl", "start", "pod@web", check=False).returncode == 1


def test_demo_on_a_fresh_machine(require_root: None, tmp_path: Path) -> None:
    """It has apt install what is missing, and the product from the checkout."""
    bed = Bed(own_name("demo"))
    bed.boot(install=False)
    try:
        missing = ("python3-isal", "python3-pystemd", "python3-pyxs", "python3-tqdm")
        bed.run("apt-get", "purge", "--yes", "--quiet", *missing, "busybox-static")
        bed.offer_packages(tmp_path, *missing, "busybox-static")
        bed.bind(CHECKOUT, "/opt/rktd-units", read_only=True)
        bed.run("apt-get", "update", "--quiet")
        told = bed.run("/opt/rktd-units/tools/install", "--no-reload", check=False)  # without --dependencies it tells what is missing
        assert (told.returncode, told.stderr.splitlines()[0].split()[-4:]) == (1, list(missing))
        bed.run("/opt/rktd-units/tools/install", "--uninstall")
        check(bed.run("/opt/rktd-units/tools/demo", timeout=300).stdout)
        listed = bed.run("dpkg-query", "--show", "--showformat=${db:Status-Status}\\n", *missing, "busybox-static").stdout
        assert listed.split() == ["installed"] * 5
        assert bed.run("podctl", "info").returncode == 0
    finally:
        bed.stop()


def test_demo_where_systemd_is_not_pid_1(require_root: None) -> None:
    """It says so, and does it all in a testbed of its own, of which nothing is left."""
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd is PID 1 of this machine")
    argv = [os.fspath(CHECKOUT / "tools/demo")]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    assert "PID 1 of this machine is not systemd: running the demo in a testbed" in done.stdout
    check(done.stdout)
    assert not os.path.exists("/run/rktd-testbed/demo")

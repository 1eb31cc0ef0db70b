# SPDX-License-Identifier: Apache-2.0
"""The Xen testbed itself: what the other tests here take for granted."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.bed import TESTBED
from tests.xen.bed import XenBed

RUN = Path("/run/rktd-testbed-xen")


def test_dom0_is_a_control_domain(bed: XenBed) -> None:
    assert bed.read("/proc/1/comm") == "systemd\n"
    assert bed.run("systemctl", "is-system-running").stdout == "running\n"
    assert bed.run("xl", "list").stdout.split("\n")[1].startswith("Domain-0")
    assert "memory" in bed.read("/sys/fs/cgroup/cgroup.controllers").split()
    assert bed.run("podctl", "list").stdout.splitlines()[-1] == "0 pods listed."


def test_exec_passes_streams_and_exit_code(bed: XenBed) -> None:
    argv = [*bed.prefix, "sh", "-c", 'cat; echo "$1" >&2; exit 7', "sh", "a  'b"]
    done = subprocess.run(argv, input=b"\0\xff\r\n", capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"\0\xff\r\n", b"a  'b\n")


def test_the_generator_says_in_the_kernels_log_what_is_wrong(bed: XenBed) -> None:
    """Containers have none, so it is looked at here."""
    bed.write("/etc/pods/broken.yaml", "spec: [\n")
    bed.sh("systemctl daemon-reload; rm /etc/pods/broken.yaml")
    entries = bed.journal("-b", "-t", "rktd-generator")
    said = {(entry["MESSAGE"].partition(": did")[0], entry["PRIORITY"], entry["_TRANSPORT"]) for entry in entries}
    assert ("/etc/pods/broken.yaml:2:1: is not YAML", "3", "kernel") in said


def test_bind_works_both_ways(bed: XenBed, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("from the host")
    for _ in range(2):  # the second time it stays as it is
        bed.bind(tmp_path, "/mnt/bound")
    bed.bind(tmp_path, "/mnt/fixed", read_only=True)
    bed.bind(tmp_path / "host", "/mnt/one")
    assert bed.run("grep", "-c", " /mnt/bound ", "/proc/self/mounts").stdout == "1\n"
    assert bed.run("cat", "/mnt/bound/host", "/mnt/one").stdout == "from the host" * 2
    bed.write("/mnt/bound/guest", "from inside", 0o600)
    assert (tmp_path / "guest").read_text() == "from inside"
    assert (tmp_path / "guest").stat().st_mode & 0o777 == 0o600
    assert "Read-only" in bed.run("touch", "/mnt/fixed/x", check=False).stderr
    bed.sh("umount /mnt/bound /mnt/fixed /mnt/one")


@pytest.mark.slow
def test_start_and_stop_at_any_state(bed: XenBed) -> None:
    """One that runs, one whose QEMU was killed, one whose start was; a stale pid file; two at once."""
    other = XenBed(f"{bed.name}-other")
    state, link = RUN / other.name, RUN / f"{other.name}.system"
    try:
        other.boot(install=False)
        other.run("touch", "/root/here")
        qemu = int((state / "pid").read_text())
        os.kill(qemu, signal.SIGKILL)
        assert other.run("ls", "/root/here", check=False).returncode == 2  # a new one
        (state / "ready").unlink()
        assert other.run("cat", "/proc/sys/kernel/hostname").stdout == "dom0\n"
        assert int((state / "pid").read_text()) != qemu
    finally:
        other.stop()
    assert not state.exists()
    assert not link.is_symlink()
    state.mkdir()
    (state / "pid").write_text("1\n")
    assert subprocess.run([TESTBED, "xen", "status", f"--name={other.name}"], stdout=subprocess.DEVNULL, check=False).returncode == 3
    other.stop()
    assert not state.exists()

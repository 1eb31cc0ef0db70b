# SPDX-License-Identifier: Apache-2.0
"""The testbed itself: what the other integration tests take for granted."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.bed import TESTBED, Bed


def test_systemd_is_pid_1(bed: Bed) -> None:
    assert bed.read("/proc/1/comm") == "systemd\n"
    assert bed.run("systemctl", "is-system-running").stdout == "running\n"


def test_the_product_is_the_debian_package(bed: Bed, require_program: Callable[[str], str]) -> None:
    """Whole, but for the manual, which the testbed leaves out of all packages, and settings of tests; its units that start at boot run."""
    require_program("go-md2man")
    lines = bed.run("dpkg", "--verify", "rktd-units", check=False).stdout.splitlines()
    left_out = ("/usr/share/doc/", "/usr/share/man/", "/etc/rktd/rktd.yaml")
    assert not [line for line in lines if not any(place in line for place in left_out)]
    version = bed.run("dpkg-query", "--show", "--showformat=${Version}", "rktd-units").stdout
    assert bed.run("podctl", "version").stdout == f"podctl {version}\n"
    assert bed.run("systemctl", "is-active", "pods.path", "pods.target", "rktd-gc.timer").stdout.split() == ["active"] * 3


def test_exec_passes_streams_and_exit_code(bed: Bed) -> None:
    argv = [str(TESTBED), "exec", f"--name={bed.name}", "--no-install", "--", "sh", "-c", 'cat; echo "$1" >&2; exit 7', "sh", "a  b"]
    done = subprocess.run(argv, input=b"\0\xff\r\n", capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"\0\xff\r\n", b"a  b\n")


def test_failure_shows_output(bed: Bed) -> None:
    with pytest.raises(AssertionError, match=r"exit code 1\n\ncat: /nonexistent: No such file"):
        bed.read("/nonexistent")


def test_bind_works_both_ways(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("from the host")
    for _ in range(2):  # the second time it stays as it is
        bed.bind(tmp_path, "/mnt/bound")
    assert bed.run("grep", "-c", " /mnt/bound ", "/proc/self/mounts").stdout == "1\n"
    assert bed.read("/mnt/bound/host") == "from the host"
    bed.write("/mnt/bound/guest", "from inside", 0o600)
    assert (tmp_path / "guest").read_text() == "from inside"
    assert (tmp_path / "guest").stat().st_mode & 0o777 == 0o600
    bed.bind(tmp_path, "/mnt/fixed", read_only=True)
    assert "Read-only" in bed.run("touch", "/mnt/fixed/x", check=False).stderr
    bed.sh("umount /mnt/bound /mnt/fixed")


def test_journal_is_whole(bed: Bed) -> None:
    bed.sh("seq 1000 | systemd-cat --identifier=testbed-journal")
    assert [entry["MESSAGE"] for entry in bed.journal("--identifier=testbed-journal")] == [str(n) for n in range(1, 1001)]


@pytest.mark.parametrize("path", ["/var/lib/rktd", "/var/lib/containers"])
def test_state_can_carry_overlays(bed: Bed, path: str) -> None:
    bed.sh(f"""
        mkdir -p {path}/t/upper {path}/t/work {path}/t/lower {path}/t/root; cd {path}/t
        mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay root
        touch root/file; umount root
        mount --bind -o X-mount.idmap=b:0:100000:65536 upper root
        test "$(stat -c %u root/file)" = 100000; umount root
        mkfs.erofs --quiet layer.erofs upper; cd /
        python3 -c 'import ctypes; c = ctypes.CDLL(None); assert not c.mount(b"{path}/t/layer.erofs", b"{path}/t/root", b"erofs", 1, None)'
        for i in $(seq 50); do umount {path}/t/root && break; sleep 0.1; done; rm -r {path}/t  # busy for a moment on a loaded machine
    """)


def test_stop_leaves_nothing(bed: Bed) -> None:
    name = f"{bed.name}-stop"
    subprocess.run([TESTBED, "exec", f"--name={name}", "--no-install", "--", "true"], stdin=subprocess.DEVNULL, check=True)
    subprocess.run([TESTBED, "stop", f"--name={name}"], check=True)
    assert f"rktd-testbed-{name}" not in Path("/proc/self/mountinfo").read_text()
    assert not Path(f"/run/rktd-testbed/{name}").exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/rktd-testbed-{name}"))
    assert subprocess.run([TESTBED, "status", f"--name={name}"], stdout=subprocess.DEVNULL, check=False).returncode == 3

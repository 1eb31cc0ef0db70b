# SPDX-License-Identifier: Apache-2.0
"""The README's first command, where systemd is PID 1."""

from pathlib import Path

from tests.integration.pods import Pods

CHECKOUT = Path(__file__).resolve().parents[2]


def test_demo(pods: Pods) -> None:
    """It installs, builds, starts, asks, shows and stops, and takes its pod away again."""
    pods.bed.bind(CHECKOUT, "/opt/rktd-units", read_only=True)
    said = pods.bed.run("/opt/rktd-units/tools/demo", timeout=120).stdout
    assert "Hello from a pod" in said
    assert "Active: active (running)" in said
    journal = said[said.index("$ journalctl") :]
    assert "server[" in journal
    assert "reader[" in journal
    assert "response:200" in journal
    assert pods.bed.sh("ls -A /etc/pods /run/rktd/pods; systemctl is-active pod@web", check=False).stdout.split()[-1] == "inactive"
    assert pods.bed.run("systemctl", "start", "pod@web", check=False).returncode == 1

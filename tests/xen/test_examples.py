# SPDX-License-Identifier: Apache-2.0
"""docs/examples: those that need Xen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import PARAVIRTUALISED, XenBed

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/scan.yaml"
UPLOAD = {
    "275239824e00e61b0a220e61a41791c7e9b4bd726f8b0c27077a338f8131c9dc  ./install.sh",
    "4c79eaac8afa9947eda3dea18c43074fffd6088456477f83b42633e85988e300  ./photos/one.jpg",
}


@pytest.fixture
def hardware(bed: XenBed) -> Iterator[None]:
    """What the host can do decides, as it does by default: with QEMU's emulation of AMD's virtualisation that is PVH."""
    bed.write("/etc/rktd/rktd.yaml", "{}\n")
    yield
    bed.write("/etc/rktd/rktd.yaml", PARAVIRTUALISED)


@pytest.mark.slow
def test_scan_as_pvh(pods: Pods, hardware: None) -> None:
    """The job runs to its end in a domain; what it found is in the journal, and its success is the unit's."""
    pods.bed.write("/etc/pods/scan.yaml", EXAMPLE.read_text())
    pods.bed.write("/etc/pods/scan.yaml.d/50-image.yaml", f'spec: {{containers: [{{name: scan, image: "{pods.image}"}}]}}\n')
    pods.start("scan", timeout=600)
    assert 'type = "pvh"' in pods.bed.read("/run/rktd/pods/scan/domain.cfg")
    assert pods.wait_end("scan", timeout=300) == "inactive"
    entries = pods.bed.journal("-u", "pod@scan", "-t", "scan", f"--after-cursor={pods.cursor}")
    assert {entry["MESSAGE"] for entry in entries} == UPLOAD
    assert pods.show("scan", "Result")["Result"] == "success"
